package sink

import (
	"errors"
	"io"
	"io/fs"
	"iter"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// Selection says what Read gives of a run.
type Selection struct {
	From, Until    uint64 // steps, both included; Until 0: to the end
	AllGenerations bool   // also what a later generation computed again

	Damaged func(error)                // called with what cannot be read; nil: nothing is called
	Passed  func(frames, total uint64) // called now and then with how far it is in the run; nil: nothing is called
}

// Read gives the stored records of a run as they are on disk now, in batches, on the effective timeline unless all are
// wanted. Sealed segments that hold nothing of the selection are passed by what their index says. Losses are given with the
// generation and the segment that they are in, whether their steps would be in the range or not: a lost record's step is
// not known. A batch is valid until the next one.
func Read(fsys vfs.FS, line *audit.Timeline, s Selection) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) {
		infos, err := segment.List(fsys, line.Dir.Telemetry())
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(infos) == 0 {
			return
		}
		if err != nil {
			yield(nil, err)
			return
		}
		total, err := End(fsys, line.Dir)
		if err != nil {
			total = infos[len(infos)-1].Base // what is wrong with the last one is said when it is its turn
		}
		for _, info := range infos {
			if s.Passed != nil {
				s.Passed(info.Base, total)
			}
			if s.skips(fsys, line, info) {
				continue
			}
			if err := readable(fsys, info); err != nil {
				if s.Damaged != nil && !errors.Is(err, fs.ErrNotExist) { // it may have been removed since
					s.Damaged(err)
				}
				continue
			}
			if !s.segment(fsys, line, info, total, yield) {
				return
			}
		}
		if s.Passed != nil {
			s.Passed(total, total)
		}
	}
}

// readable says why a segment cannot be opened. A Follower goes on to the next one then, and waits at the last.
func readable(fsys vfs.FS, info segment.Info) error {
	r, err := segment.Open(fsys, info.Path)
	if err != nil {
		return err
	}
	return r.Close()
}

// segment gives one segment's batches; false: no more are wanted.
func (s *Selection) segment(fsys vfs.FS, line *audit.Timeline, info segment.Info, total uint64, yield func(*Batch, error) bool) bool {
	f := Follow(fsys, line.Dir, info.Base)
	f.Damaged = s.Damaged
	defer f.Close()
	for {
		b, err := f.Next()
		if errors.Is(err, io.EOF) || err == nil && b.Segment != info.Base {
			return true
		}
		if err != nil {
			return yield(nil, err)
		}
		next, end := b.Next, b.End
		s.cut(b, line)
		if (len(b.Seq) > 0 || len(b.Losses) > 0 || b.End) && !yield(b, nil) {
			return false
		}
		if s.Passed != nil {
			s.Passed(next, total)
		}
		if end {
			return true
		}
	}
}

// skips says whether a segment is sealed and its index says that it has nothing of the selection. One with losses is
// read: they are to be told.
func (s *Selection) skips(fsys vfs.FS, line *audit.Timeline, info segment.Info) bool {
	ends, err := segment.ReadEnds(fsys, info.Path)
	if err != nil || ends.Index == nil {
		return false
	}
	sum, err := record.ParseSummary(ends.Index)
	if err != nil || sum.Stored == 0 || sum.Lost > 0 {
		return false
	}
	return sum.LastStep < s.From || s.Until > 0 && sum.FirstStep > s.Until || !s.AllGenerations && line.Superseded(sum.Generation, sum.FirstStep)
}

// cut leaves the selected rows in a batch. A program is to emit growing steps, and nothing makes it.
func (s *Selection) cut(b *Batch, line *audit.Timeline) {
	words := b.Schema.StoredWords()
	last := uint64(0)
	for i := range b.Seq {
		last = max(last, b.Words[i*words])
	}
	stale := !s.AllGenerations && line.Superseded(b.Generation, last) // some of it is
	kept, losses := 0, b.Losses
	for i := range b.Seq {
		for len(losses) > 0 && losses[0].Before <= i {
			losses[0].Before, losses = kept, losses[1:]
		}
		step := b.Words[i*words]
		if step < s.From || s.Until > 0 && step > s.Until || stale && line.Superseded(b.Generation, step) {
			continue
		}
		if kept < i {
			b.Seq[kept] = b.Seq[i]
			copy(b.Words[kept*words:], b.Words[i*words:(i+1)*words])
		}
		kept++
	}
	for i := range losses {
		losses[i].Before = kept
	}
	b.Seq, b.Words = b.Seq[:kept], b.Words[:kept*words]
}
