package pyramid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// Modes of what is made, as those of the run directory.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// Sink is a sink.Sink that makes the file of each segment when that has come to its end. Its cursor stands at the beginning of
// the first segment that has none; what was read of that before a kill is read again. Which that is, is told from the files
// alone, so that a file that was removed is made again. It holds the aggregates of one segment, a twentieth of its size at most.
type Sink struct {
	fsys    vfs.FS
	dir     rundir.Dir
	leaf    uint32
	runID   string
	builder *builder
	skipped uint64 // the segment that has its file already
	skips   bool
	next    uint64
	begun   bool
}

// NewSink makes a sink for the run in dir. It opens nothing.
func NewSink(fsys vfs.FS, dir rundir.Dir) *Sink {
	return &Sink{fsys: fsys, dir: dir, leaf: defaultLeaf}
}

// Begin finds the first segment that has no file.
func (s *Sink) Begin(ctx context.Context, run sink.Run, at sink.Cursor) (sink.Cursor, error) {
	s.builder, s.skips, s.runID, s.begun = nil, false, run.ID, false
	if err := prepare(s.fsys, s.dir); err != nil {
		return at, fmt.Errorf("pyramid: %w", err)
	}
	if _, err := vfs.RemoveTemps(s.fsys, directory(s.dir)); err != nil {
		return at, fmt.Errorf("pyramid: %w", err)
	}
	next, err := s.complete(ctx)
	if err != nil {
		return at, fmt.Errorf("pyramid: %w", err)
	}
	s.next, s.begun = next, true
	return sink.Cursor{Next: next}, nil
}

// prepare makes the directory of the files.
func prepare(fsys vfs.FS, dir rundir.Dir) error { return vfs.MkdirAll(fsys, directory(dir), dirMode) }

// complete is the ordinal up to which the segments have their files. A segment that nobody can read needs none.
func (s *Sink) complete(ctx context.Context) (next uint64, err error) {
	infos, err := list(s.fsys, s.dir)
	if err != nil {
		return 0, err
	}
	known := schemas{}
	for i, info := range infos {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		p, err := openFor(s.fsys, fileOf(s.dir, info.Base), s.runID, infos, i, known)
		switch {
		case err == nil:
			next = p.next
			p.close()
		case i+1 < len(infos) && !legible(s.fsys, info.Path):
			next = infos[i+1].Base
		default:
			return info.Base, nil
		}
	}
	return next, nil
}

// list are the telemetry segments of a run.
func list(fsys vfs.FS, dir rundir.Dir) ([]segment.Info, error) {
	infos, err := segment.List(fsys, dir.Telemetry())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return infos, err
}

// legible says whether there are records to be had from a segment.
func legible(fsys vfs.FS, path string) bool {
	r, err := segment.Open(fsys, path)
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = record.ParseStreamMeta(r.Header().Meta)
	return err == nil
}

// openFor opens the file of segment i, which has that path. A file of another run, or of frames that the segment does not have, is none: a crash
// may have taken frames from the segment's end, whose numbers others have now.
func openFor(fsys vfs.FS, path, runID string, infos []segment.Info, i int, known schemas) (*file, error) {
	p, err := open(fsys, path, known)
	if err != nil {
		return nil, err
	}
	fits := p.base == infos[i].Base && (runID == "" || p.runID == runID)
	if i+1 < len(infos) {
		fits = fits && p.next == infos[i+1].Base
	}
	if !fits {
		p.close()
		return nil, p.corrupt(0, "of run %q, frames %d to %d, where segment %s stands", p.runID, p.base, p.next, infos[i].Name)
	}
	return p, nil
}

var errNotBegun = errors.New("pyramid: the sink is not open")

// Write takes in a batch, and makes the file of the segment that ends with it.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !s.begun {
		return errNotBegun
	}
	if s.skips && b.Segment == s.skipped {
		s.leave(b)
		return nil
	}
	if s.builder == nil {
		if s.has(b.Segment) {
			s.builder, s.skips, s.skipped = nil, true, b.Segment
			s.leave(b)
			return nil
		}
		s.builder = newBuilder(b, s.leaf)
	}
	if err := s.builder.add(b); err != nil {
		return fmt.Errorf("pyramid: %w", err)
	}
	if !b.End {
		return nil
	}
	if err := s.builder.write(s.fsys, s.dir, s.runID); err != nil {
		return fmt.Errorf("pyramid: %w", err)
	}
	s.builder = nil
	s.leave(b)
	return nil
}

// leave notes that a segment that has its file has come to its end.
func (s *Sink) leave(b *sink.Batch) {
	if b.End {
		s.next = b.Next
	}
}

// has says whether a segment has its file already.
func (s *Sink) has(base uint64) bool {
	infos, err := list(s.fsys, s.dir)
	if err != nil {
		return false
	}
	for i := range infos {
		if infos[i].Base == base {
			p, err := openFor(s.fsys, fileOf(s.dir, base), s.runID, infos, i, nil)
			if err == nil {
				p.close()
			}
			return err == nil
		}
	}
	return false
}

// write puts the file of a segment in its place for good.
func (z *builder) write(fsys vfs.FS, dir rundir.Dir, runID string) error {
	if z.next == z.base {
		return nil
	}
	b, err := z.encode(runID)
	if err != nil {
		return err
	}
	return vfs.Replace(fsys, fileOf(dir, z.base), b, fileMode)
}

// Sync says how far the files go: Write has made them durable.
func (s *Sink) Sync(context.Context) (sink.Cursor, error) {
	if !s.begun {
		return sink.Cursor{}, errNotBegun
	}
	return sink.Cursor{Next: s.next}, nil
}

// Close gives up what was read of a segment that has not come to its end.
func (s *Sink) Close() error {
	s.builder, s.begun = nil, false
	return nil
}
