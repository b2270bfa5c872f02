// Package tensorboard writes the telemetry of a run as an event file that TensorBoard and everything that reads its files
// can show.
//
// A run has one file, DIR/RUN-ID/events.out.tfevents.TIME.usp.0.0, in which TIME is the second in the run's id. The name is
// the same after each restart and on each machine, so there is one file to cut back and go on with, and TensorBoard, which
// follows the newest file of a directory, follows it. The bytes depend on the stored frames alone: a file that was cut back to
// what was durable grows again to what it was.
//
// Each record is one event with its step, its time as wall time, and a scalar for every field; a vector has a scalar for each
// element, name/0, name/1 and so on. Scalars are simple_value, not tensors: 5 bytes in place of 17, shown by every version of
// TensorBoard and by what else reads event files, and TensorBoard makes float32 of tensors too. So:
//
//   - a float has 24 significant bits; beyond 3.4e38 it is infinite, below 1.4e-45 it is 0; NaN stays NaN;
//   - an integer or a set of flags is exact up to 2^24 and rounded beyond: of flags only the 24 lowest bits can be relied on;
//   - wall time is float64 seconds, which is a quarter of a microsecond in our time;
//   - a step is int64: a larger one is refused.
//
// Narrowing counts it, and the description of each chart says it. The records are exact in the run directory.
//
// Where a generation begins again at an earlier step, a SessionLog.START event makes TensorBoard drop what it has of that step
// and those behind it. Lost records are the scalar usp/lost, how many so far, and the text usp/losses, which and why.
package tensorboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// Options say where event files go and what is in them. Dir is needed.
type Options struct {
	Dir    string   // the log directory that TensorBoard is given; each run has a directory in it
	Every  uint64   // an event for every so many records, from the first of each generation on; 0: for each. Flags that are set in those between are in the next event
	Fields []string // names of the fields that are written; nil: all
	FS     vfs.FS   // nil: the real file system
}

func (o *Options) fs() vfs.FS {
	if o.FS == nil {
		return vfs.OS()
	}
	return o.FS
}

// encoder is one for these options.
func (o *Options) encoder(emit func([]byte) error) encoder {
	return encoder{every: max(1, o.Every), fields: o.Fields, emit: emit}
}

// check looks for fields that the run does not have.
func (o *Options) check(run sink.Run) error {
	for _, name := range o.Fields {
		if i, ok := run.Schema.Index(name); !ok || run.Schema.Offset(i) >= run.Schema.StoredWords() {
			return fmt.Errorf("tensorboard: run %s stores no field %q: %w", run.ID, name, sink.ErrRefused)
		}
	}
	return nil
}

// FileName is that of the event file of a run.
func FileName(runID string) string {
	return fmt.Sprintf("events.out.tfevents.%010d.usp.0.0", created(runID).Unix())
}

// created is the second in a run's id, or 1970 for an id that somebody chose.
func created(runID string) time.Time {
	const layout = "20060102T150405"
	if len(runID) >= len(layout) {
		if t, err := time.Parse(layout, runID[:len(layout)]); err == nil && t.Unix() > 0 {
			return t
		}
	}
	return time.Unix(0, 0)
}

// Modes of what is made; the file is for whoever looks at it.
const (
	fileMode = 0o644
	dirMode  = 0o755
)

// Sink is a sink.Sink that appends to the event file of a run.
type Sink struct {
	options Options
	enc     encoder
	ctx     context.Context // of the call that goes on

	file   vfs.File
	path   string
	length int64 // of the file, buffered bytes not counted
	next   uint64
	broken error // a batch was taken in part, or a sync failed: nothing is vouched for until Begin
}

// New makes a sink. It opens nothing.
func New(o Options) *Sink {
	s := &Sink{options: o}
	s.enc = o.encoder(s.append)
	return s
}

// state is what a cursor holds.
type state struct {
	File   string `json:"file"`
	Length int64  `json:"length"`
	place
}

// Begin opens the event file and cuts it back to what the cursor says. A file that is not there, or shorter than that, is begun
// anew, with all frames.
func (s *Sink) Begin(_ context.Context, run sink.Run, at sink.Cursor) (sink.Cursor, error) {
	if err := s.Close(); err != nil {
		return at, err
	}
	if s.options.Dir == "" {
		return at, fmt.Errorf("tensorboard: no directory is set: %w", sink.ErrRefused)
	}
	if err := s.options.check(run); err != nil {
		return at, err
	}
	var from state
	if len(at.State) > 0 {
		if err := json.Unmarshal(at.State, &from); err != nil {
			return at, fmt.Errorf("tensorboard: the cursor cannot be read: %v: %w", err, sink.ErrRefused)
		}
	}
	dir := filepath.Join(s.options.Dir, run.ID)
	s.path = filepath.Join(dir, FileName(run.ID))
	if err := vfs.MkdirAll(s.options.fs(), dir, dirMode); err != nil {
		return at, fmt.Errorf("tensorboard: %w", err)
	}
	if from.File != s.path { // another directory than the last time, or none yet
		from, at = state{}, sink.Cursor{}
	}
	if err := s.open(run.ID, &from); err != nil {
		return at, errors.Join(fmt.Errorf("tensorboard: %w", err), s.Close())
	}
	if from.Length == 0 {
		at = sink.Cursor{}
	}
	s.enc.resume(from.place)
	s.next, s.broken = at.Next, nil
	return at, nil
}

// open opens the file and cuts it back to a place, which it sets to zero if the file does not go as far. A file that is not
// there is made with its header in it, at once, so that what does not begin with it is not ours, whatever crashed.
func (s *Sink) open(runID string, from *state) error {
	fsys := s.options.fs()
	header := appendHeader(nil, created(runID).UnixNano())
	if _, err := fsys.Stat(s.path); errors.Is(err, fs.ErrNotExist) {
		err = vfs.Create(fsys, s.path, fileMode, func(f vfs.File) error {
			_, err := f.Write(header)
			return err
		})
		if err != nil {
			return err
		}
	}
	f, err := fsys.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s.file = f
	info, err := f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, len(header))
	if n, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return err
	} else if !bytes.Equal(head[:n], header) {
		return fmt.Errorf("%s was not written by usp for this run: move it away: %w", s.path, sink.ErrRefused)
	}
	if info.Size() < from.Length {
		*from = state{}
	}
	s.length = max(from.Length, int64(len(header)))
	if info.Size() > s.length {
		return f.Truncate(s.length)
	}
	return nil
}

// append writes to the end of the file.
func (s *Sink) append(b []byte) error {
	if err := s.ctx.Err(); err != nil {
		return context.Cause(s.ctx)
	}
	if _, err := s.file.WriteAt(b, s.length); err != nil {
		return fmt.Errorf("tensorboard: %w", err)
	}
	s.length += int64(len(b))
	return nil
}

// Write takes in a batch. At most a quarter of a megabyte, and an event, is held back.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if err := s.enc.write(b); err != nil {
		s.broken = err
		return err
	}
	s.next = b.Next
	return nil
}

// ready makes sure that the sink can be called, before anything is done.
func (s *Sink) ready(ctx context.Context) error {
	switch {
	case s.file == nil:
		return errClosed
	case s.broken != nil:
		return fmt.Errorf("tensorboard: it is to be begun again after: %w", s.broken)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	s.ctx = ctx
	return nil
}

var errClosed = errors.New("tensorboard: the sink is not open")

// Sync makes all that was written durable.
func (s *Sink) Sync(ctx context.Context) (sink.Cursor, error) {
	if err := s.ready(ctx); err != nil {
		return sink.Cursor{}, err
	}
	if err := s.enc.flush(1); err != nil {
		return sink.Cursor{}, err
	}
	if err := s.file.Datasync(); err != nil {
		s.broken = err // the kernel may have given up what it had
		return sink.Cursor{}, fmt.Errorf("tensorboard: %w", err)
	}
	b, err := json.Marshal(state{File: s.path, Length: s.length, place: s.enc.where()})
	if err != nil {
		return sink.Cursor{}, fmt.Errorf("tensorboard: %w", err)
	}
	return sink.Cursor{Next: s.next, State: b}, nil
}

// Close closes the file. What was not synced is given up.
func (s *Sink) Close() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("tensorboard: %w", err)
	}
	return nil
}

// Narrowing says what was rounded since the sink was made.
func (s *Sink) Narrowing() Narrowing { return s.enc.narrowing }
