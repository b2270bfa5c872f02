package sink

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// The most that a Batch holds.
const (
	maxRecords = 8192
	maxWords   = 128 << 10
)

// Follower reads the telemetry of a run from a frame on, in batches, also while it is being recorded: what it gives is
// what the recorder has handed to the file, an instant before or after that is synced. It holds one file open.
type Follower struct {
	// Damaged is called with what cannot be read: a *segment.CorruptError, or a frame that is none. What is left comes.
	// nil: nothing is called.
	Damaged func(error)

	fsys  vfs.FS
	dir   string // of the segments
	next  uint64 // ordinal of the next frame
	batch Batch
	frame record.Frame

	reader *segment.Reader // of the segment that next is in; nil: it is to be opened
	info   segment.Info
	meta   record.StreamMeta
	bound  uint64 // ordinal at which a later segment begins; math.MaxUint64: there is none
	begun  bool   // a batch of this segment was given
	over   string // path of the last segment that came to its end
}

// Follow reads the run in dir from the frame with the ordinal next on.
func Follow(fsys vfs.FS, dir rundir.Dir, next uint64) *Follower {
	return &Follower{fsys: fsys, dir: dir.Telemetry(), next: next}
}

// Position is the ordinal of the frame that comes next.
func (f *Follower) Position() uint64 { return f.next }

// Close closes the file.
func (f *Follower) Close() error {
	if f.reader == nil {
		return nil
	}
	r := f.reader
	f.reader = nil
	return r.Close()
}

// Next returns what comes next: some thousand records at most, of one segment. io.EOF says that there is nothing more for
// the moment; a later call looks again. The batch is valid until the next call.
func (f *Follower) Next() (*Batch, error) {
	for {
		if f.reader == nil {
			if err := f.open(); err != nil {
				return nil, err
			}
		}
		b, err := f.fill()
		if err != nil {
			return nil, err
		}
		if b.Next > b.First || b.End && f.begun { // a cursor at the very end of a segment has its end behind it
			f.begun = true
			return b, nil
		}
		again, err := f.atEnd()
		if err != nil {
			return nil, err
		}
		if !again {
			return nil, io.EOF
		}
	}
}

// open finds the segment that holds the next frame, or will hold it. io.EOF: there is none yet.
func (f *Follower) open() error {
	infos, err := segment.List(f.fsys, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return io.EOF
	}
	if err != nil {
		return err
	}
	at := -1
	for i, info := range infos {
		if info.Base <= f.next {
			at = i
		}
	}
	if at < 0 {
		if len(infos) == 0 {
			return io.EOF
		}
		f.damage(fmt.Errorf("frames %d to %d are missing before %s", f.next, infos[0].Base-1, infos[0].Path))
		f.next, at = infos[0].Base, 0
	}
	if infos[at].Path == f.over {
		return io.EOF
	}
	r, err := segment.Open(f.fsys, infos[at].Path)
	if err != nil {
		if at+1 == len(infos) { // it is just being made, or replaced
			return orEnd(f.fsys, infos[at].Path, err)
		}
		f.damage(err)
		f.next = infos[at+1].Base
		return f.open()
	}
	f.info, f.bound, f.begun = infos[at], math.MaxUint64, false
	if f.meta, err = record.ParseStreamMeta(r.Header().Meta); err != nil {
		_ = r.Close() // nothing was written
		return fmt.Errorf("%s: %w", f.info.Path, err)
	}
	f.reader = r
	r.SkipTo(f.next)
	f.limit(infos[at+1:])
	return nil
}

// orEnd is io.EOF for a file that is not there, or empty as yet.
func orEnd(fsys vfs.FS, path string, err error) error {
	if errors.Is(err, segment.ErrNotSegment) {
		if info, statErr := fsys.Stat(path); statErr != nil || info.Size() == 0 {
			return io.EOF
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return io.EOF
	}
	return err
}

// limit notes that there is a later segment, whose frames this one may hold too.
func (f *Follower) limit(later []segment.Info) {
	if len(later) > 0 {
		f.bound = later[0].Base
		f.reader.Limit(f.bound)
	}
}

// fill makes a batch of what can be read.
func (f *Follower) fill() (*Batch, error) {
	b, words := &f.batch, f.meta.Schema.StoredWords()
	most := min(maxRecords, max(1, maxWords/words))
	*b = Batch{
		First: f.next, Next: f.next, Segment: f.info.Base, Generation: f.meta.Generation, Schema: f.meta.Schema,
		Seq: slices.Grow(b.Seq[:0], most), Words: slices.Grow(b.Words[:0], most*words), Losses: b.Losses[:0],
	}
	for len(b.Seq) < most {
		data, ordinal, err := f.reader.Next()
		if err == nil {
			f.take(b, data)
			b.Next = ordinal + 1
			f.next = b.Next
			continue
		}
		var corrupt *segment.CorruptError // here: it would be allocated for each frame
		if errors.As(err, &corrupt) {
			f.damage(err)
			continue
		}
		if !ended(err) {
			return nil, err
		}
		if b.End = f.finished(); b.End {
			f.over = f.info.Path
			_ = f.Close() // only read
		}
		f.next = b.Next
		return b, nil
	}
	return b, nil
}

// ended says whether there is nothing more to read for the moment.
func ended(err error) bool {
	var torn *segment.TornError
	return errors.Is(err, io.EOF) || errors.As(err, &torn)
}

// finished says whether the segment has come to its end, and takes the batch up to it.
func (f *Follower) finished() bool {
	next := f.reader.Ordinal()
	if f.bound == math.MaxUint64 {
		if !f.reader.Sealed() {
			return false
		}
	} else if next < f.bound {
		f.damage(fmt.Errorf("segment %s: frames %d to %d are missing", f.info.Path, next, f.bound-1))
	}
	if f.bound != math.MaxUint64 {
		next = f.bound
	}
	f.batch.Next = max(f.batch.Next, next)
	return true
}

// atEnd looks, where there is nothing to read, whether a later segment has begun, or this one was made anew: a recorder
// that stored nothing leaves no file, and the next one makes it again. It says whether to read again.
func (f *Follower) atEnd() (again bool, err error) {
	if f.reader == nil {
		return true, nil
	}
	infos, err := segment.List(f.fsys, f.dir)
	if err != nil {
		return false, err
	}
	for i, info := range infos {
		if info.Base > f.info.Base {
			f.limit(infos[i:]) // what was stored before it began is read first
			return true, nil
		}
	}
	if f.next == f.info.Base {
		_ = f.Close() // only read
	}
	return false, nil
}

// take adds one frame.
func (f *Follower) take(b *Batch, data []byte) {
	n := len(b.Words)
	f.frame.Words = b.Words[n:] // there is room for a record of the schema: it is decoded in its place
	err := record.DecodeFrame(data, &f.frame)
	switch {
	case err != nil:
	case f.frame.Generation != b.Generation:
		err = fmt.Errorf("%w: of generation %d in a segment of %d", record.ErrFrame, f.frame.Generation, b.Generation)
	case f.frame.Kind == record.KindLost:
		b.Losses = append(b.Losses, Loss{From: f.frame.Seq, To: f.frame.To, Reason: f.frame.Reason, Before: len(b.Seq)})
		return
	case len(f.frame.Words) != b.Schema.StoredWords():
		err = fmt.Errorf("%w: %d words, the schema has %d", record.ErrFrame, len(f.frame.Words), b.Schema.StoredWords())
	default:
		b.Seq = append(b.Seq, f.frame.Seq)
		b.Words = b.Words[:n+len(f.frame.Words)]
		return
	}
	f.damage(fmt.Errorf("segment %s: frame at offset %d: %w", f.info.Path, f.reader.Position(), err))
}

func (f *Follower) damage(err error) {
	if f.Damaged != nil {
		f.Damaged(err)
	}
}

// End is the ordinal behind the last frame that is there now, and how many frames a cursor lags behind is its
// difference. It reads the newest segment's batches, not their frames.
func End(fsys vfs.FS, dir rundir.Dir) (uint64, error) {
	infos, err := segment.List(fsys, dir.Telemetry())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(infos) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	last := infos[len(infos)-1]
	r, err := segment.Open(fsys, last.Path)
	if err != nil {
		if orEnd(fsys, last.Path, err) == io.EOF {
			err = nil
		}
		return last.Base, err
	}
	defer r.Close()
	r.SkipTo(math.MaxUint64)
	for {
		_, _, err := r.Next()
		var corrupt *segment.CorruptError
		if errors.As(err, &corrupt) || err == nil {
			continue
		}
		if ended(err) {
			err = nil
		}
		return r.Ordinal(), err
	}
}
