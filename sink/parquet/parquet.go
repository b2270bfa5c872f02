// Package parquet brings a run's telemetry to a directory as Parquet files, one for each sealed segment:
//
//	DIR/run=ID/part-BASE.parquet
//
// in which BASE is the ordinal of the segment's first frame, so that the files sort as the records were stored, and a reader
// that knows Hive's way of naming sees the run's id as a column. A file appears when it is whole, and is never changed. The
// records of a segment that is still being written are not there yet: telemetry.segment_size says how often one is sealed.
//
// All generations are there, with the column generation; doc/query.md has the query for the effective timeline. The same
// segment gives the same bytes, so a file that is written twice is there once.
package parquet

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/usp-project/usp/internal/columnar"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// Options say where files go. Dir is needed.
type Options struct {
	Dir string
	FS  vfs.FS // nil: the real file system
}

// Sink is a sink.Sink that writes Parquet files.
type Sink struct {
	dir string
	fs  vfs.FS
	run sink.Run

	part    *part  // of the segment that is being read; nil: none
	durable uint64 // frames before this one are in files
}

// part is a file that is being written.
type part struct {
	segment uint64
	path    string
	draft   *vfs.Writing
	buf     *bufio.Writer
	out     *columnar.Writer
}

// New makes a sink. It opens nothing.
func New(o Options) *Sink {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	return &Sink{dir: o.Dir, fs: o.FS}
}

const (
	fileMode fs.FileMode = 0o644
	dirMode  fs.FileMode = 0o755
)

// Directory is where a run's files are, below dir.
func Directory(dir, runID string) string { return filepath.Join(dir, "run="+runID) }

// FileName is that of the file of a segment.
func FileName(segment uint64) string { return fmt.Sprintf("part-%020d.parquet", segment) }

// Begin makes the run's directory. It goes on at the segment that the cursor is in front of.
func (s *Sink) Begin(_ context.Context, run sink.Run, at sink.Cursor) (sink.Cursor, error) {
	s.drop()
	s.run, s.durable = run, at.Next
	if s.dir == "" {
		return at, fmt.Errorf("parquet: no directory is set: %w", sink.ErrRefused)
	}
	dir := Directory(s.dir, run.ID)
	if err := vfs.MkdirAll(s.fs, dir, dirMode); err != nil {
		return at, fmt.Errorf("parquet: %w", err)
	}
	if _, err := vfs.RemoveTemps(s.fs, dir); err != nil { // of a process that was killed
		return at, fmt.Errorf("parquet: %w", err)
	}
	return sink.Cursor{Next: at.Next}, nil
}

// Write adds the batch to the file of its segment, which is closed, and there, with the segment's last batch.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.part == nil || s.part.segment != b.Segment {
		s.drop()
		if b.First != b.Segment {
			return fmt.Errorf("parquet: the batch begins at frame %d in the middle of segment %d", b.First, b.Segment)
		}
		if err := s.open(b); err != nil {
			return err
		}
	}
	err := s.part.out.Write(b)
	if err == nil && b.End {
		err = s.place(b.Next)
	}
	if err != nil {
		s.drop()
	}
	return err
}

func (s *Sink) open(b *sink.Batch) error {
	columns, err := columnar.Columns(b.Schema, nil)
	if err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	path := filepath.Join(Directory(s.dir, s.run.ID), FileName(b.Segment))
	draft, err := vfs.Begin(s.fs, path, fileMode)
	if err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	buf := bufio.NewWriterSize(draft, 1<<18)
	meta := map[string]string{
		"usp.run": s.run.ID, "usp.segment": strconv.FormatUint(b.Segment, 10), "usp.generation": strconv.FormatUint(uint64(b.Generation), 10),
		"usp.schema": string(b.Schema.Text()),
	}
	s.part = &part{segment: b.Segment, path: path, draft: draft, buf: buf, out: columnar.NewWriter(buf, b.Schema, columns, meta)}
	return nil
}

// place closes the file and puts it in its place. next is the first frame behind it.
func (s *Sink) place(next uint64) error {
	p := s.part
	if err := p.out.Close(); err != nil {
		return err
	}
	if err := p.buf.Flush(); err != nil {
		return fmt.Errorf("parquet: write %s: %w", p.path, err)
	}
	if err := p.draft.Place(); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	s.part, s.durable = nil, next
	return nil
}

// drop gives up the file that is being written.
func (s *Sink) drop() {
	if s.part != nil {
		_ = s.part.draft.Discard() // the next Begin tries again
		s.part = nil
	}
}

// Sync returns the end of the last file: each was synced when it was put in its place.
func (s *Sink) Sync(context.Context) (sink.Cursor, error) { return sink.Cursor{Next: s.durable}, nil }

// Close gives up the file of a segment that is not at its end.
func (s *Sink) Close() error {
	s.drop()
	return nil
}
