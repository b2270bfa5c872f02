package sink

import (
	"errors"
	"io"
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
		total, err := End(fsys, line.Dir)
		if err != nil {
			yield(nil, err)
			return
		}
		infos, err := segment.List(fsys, line.Dir.Telemetry())
		if err != nil {
			yield(nil, err)
			return
		}
		for _, info := range infos {
			if s.Passed != nil {
				s.Passed(info.Base, total)
			}
			if s.skips(fsys, line, info) {
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

// cut leaves the selected rows in a batch. Steps grow within it.
func (s *Selection) cut(b *Batch, line *audit.Timeline) {
	words := b.Schema.StoredWords()
	n := len(b.Seq)
	find := func(want func(step uint64) bool) int { // the first row that is wanted
		low, high := 0, n
		for low < high {
			if mid := (low + high) / 2; want(b.Words[mid*words]) {
				high = mid
			} else {
				low = mid + 1
			}
		}
		return low
	}
	first := find(func(step uint64) bool { return step >= s.From })
	last := n
	if s.Until > 0 {
		last = find(func(step uint64) bool { return step > s.Until })
	}
	if !s.AllGenerations {
		last = min(last, find(func(step uint64) bool { return line.Superseded(b.Generation, step) }))
	}
	last = max(first, last)
	for i := range b.Losses {
		b.Losses[i].Before = min(max(b.Losses[i].Before-first, 0), last-first)
	}
	b.Seq, b.Words = b.Seq[first:last], b.Words[first*words:last*words]
}
