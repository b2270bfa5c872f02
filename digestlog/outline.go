package digestlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// Steps is a run of consecutive STEP entries of one generation, in which steps and sequence numbers grow.
type Steps struct {
	Generation          uint32
	Count               uint64 // at least 1
	FirstStep, FirstSeq uint64 // of the first entry
	LastStep, LastSeq   uint64 // of the last
}

// joins reports whether n continues the run.
func (s *Steps) joins(n *Steps) bool {
	return s.Count > 0 && n.Generation == s.Generation && n.FirstStep > s.LastStep && n.FirstSeq > s.LastSeq
}

// valid reports whether there can be such a run.
func (s *Steps) valid() bool {
	steps, seqs := s.LastStep-s.FirstStep, s.LastSeq-s.FirstSeq
	return s.Count > 0 && s.FirstStep <= s.LastStep && s.FirstSeq <= s.LastSeq &&
		s.Count-1 <= min(steps, seqs) && (s.Count > 1 || steps == 0 && seqs == 0)
}

// A Span is what the outline of a log says of entries that follow each other: a run of STEP entries without their digests, or
// one entry as it is.
type Span struct {
	Item       // the entry; of a run Index and File only
	Run  Steps // Count is 0 if the span is one entry
}

// Entries returns how many entries the span stands for.
func (s *Span) Entries() uint64 { return max(1, s.Run.Count) }

// Outline is [Entries] for a caller who does not need the digests: the same entries in the same order, but runs of STEP entries come as one
// [Span] where a sealed file says so in its index. Of such a file only the two ends are read, so the cost grows with the number of files and
// of other entries, not with the steps. Files without a readable outline (the active one, for example) are read. A run ends at the end of a file,
// and where something is wrong. Checksums, places and the trees in the headers of neighbours are checked; that an outline is true only when its
// file is read, as by [Verify]. Errors are those of Entries.
func Outline(fsys vfs.FS, dir string) iter.Seq2[Span, error] {
	return func(yield func(Span, error) bool) {
		w := walker{fsys: orOS(fsys), dir: dir, check: true}
		c := chainCheck{fault: func(f *Fault) bool { return yield(Span{}, f) }}
		w.enter, w.fault = c.enter, c.fault
		w.item = func(it Item, f *Fault) bool {
			if f != nil {
				return yield(spanOf(it), f)
			}
			return yield(spanOf(it), nil)
		}
		w.steps = func(s Span) bool { return yield(s, nil) }
		if err := w.run(); err != nil && !w.stopped {
			yield(Span{}, err)
		}
	}
}

// spanOf makes a span of an entry that was read.
func spanOf(it Item) Span {
	if e := &it.Entry; e.Kind == KindStep {
		return Span{Item: it, Run: Steps{e.Generation, 1, e.Step, e.Seq, e.Step, e.Seq}}
	}
	return Span{Item: it}
}

// outlined answers for a file from the index at its end. False: it cannot, and the file is to be read, which finds out why.
func (w *walker) outlined(s *extent) bool {
	if w.whole != nil && w.whole(&s.link) {
		return false
	}
	ends, err := segment.ReadEnds(w.fsys, s.path)
	if err != nil || !ends.Sealed || ends.Header.Base != s.base || !s.final && ends.Next != s.limit {
		return false
	}
	count := ends.Next - s.base
	if eachSpan(ends.Index, count, func(Steps, []byte) bool { return true }) != nil {
		return false
	}
	w.last, w.base, w.sealed, w.end = s.name(), s.base, true, ends.Size
	if !w.gap(s, s.base, 0) {
		return true
	}
	_ = eachSpan(ends.Index, count, func(run Steps, raw []byte) bool {
		if run.Count == 0 {
			w.deliver(s, 0, raw)
			return !w.stopped
		}
		w.stopped = !w.steps(Span{Item: Item{Index: w.next, File: s.name()}, Run: run})
		w.next += run.Count
		return !w.stopped
	})
	return true
}

// compare holds the outline in a file against one of the entries that were read.
func (w *walker) compare(s *extent, seen *outliner) error {
	ends, err := segment.ReadEnds(w.fsys, s.path)
	if err != nil {
		return readFault(s.path, err)
	}
	if len(ends.Index) == 0 || ends.Index[0] > outlineVersion || seen.bad {
		return nil
	}
	if string(ends.Index) != string(seen.Index()) {
		w.report(&Fault{Class: ClassCorrupt, File: s.name(), Offset: ends.Size, From: s.base, To: ends.Next, Err: errOutline})
	}
	return nil
}

// Layout of an outline; doc/format/digestlog.md has the table.
const (
	outlineVersion = 1
	outlineCut     = 1  // flag: it was too long, and has no items
	outlineHeader  = 16 // version u8, flags u8, zero u16, items u32, entries u64
	itemSteps      = 1
	itemEntry      = 2
	itemStepsLen   = 1 + 4 + 5*8
	itemEntryLen   = 1 + 4 // and the entry
)

// An outliner makes the outline of one file, in memory that is bounded by what an index may have.
type outliner struct {
	out     []byte // encoded items, without the run that goes on
	items   uint32
	entries uint64
	run     Steps
	cut     bool // out would have become too long
	bad     bool // not all is an entry
}

func newOutliner(segment.Header) segment.Indexer { return new(outliner) }

// Add takes in an entry.
func (o *outliner) Add(_ uint64, raw []byte) {
	o.entries++
	if s, ok := stepOf(raw); ok {
		if o.run.joins(&s) {
			o.run.Count++
			o.run.LastStep, o.run.LastSeq = s.LastStep, s.LastSeq
			return
		}
		o.endRun()
		o.run = s
		return
	}
	if _, err := ParseEntry(raw); errors.Is(err, ErrEntry) {
		o.bad = true
	}
	o.endRun()
	o.put(func(out []byte) []byte {
		out = append(out, itemEntry)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
		return append(out, raw...)
	}, itemEntryLen+len(raw))
}

// endRun writes the run that goes on down.
func (o *outliner) endRun() {
	if o.run.Count > 0 {
		o.put(o.run.append, itemStepsLen)
	}
	o.run = Steps{}
}

// put appends an item of n bytes if there is room, now and for a last run.
func (o *outliner) put(item func([]byte) []byte, n int) {
	if o.cut = o.cut || outlineHeader+len(o.out)+n+itemStepsLen > segment.MaxIndex; o.cut {
		o.out = nil
		return
	}
	o.out = item(o.out)
	o.items++
}

// Index returns the outline of the entries so far.
func (o *outliner) Index() []byte {
	if o.bad {
		return nil
	}
	h := [outlineHeader]byte{outlineVersion}
	items := o.items
	if o.run.Count > 0 {
		items++
	}
	if o.cut {
		h[1], items = outlineCut, 0
	}
	binary.LittleEndian.PutUint32(h[4:], items)
	binary.LittleEndian.PutUint64(h[8:], o.entries)
	b := append(h[:], o.out...)
	if o.run.Count > 0 && !o.cut {
		b = o.run.append(b)
	}
	return b
}

func (s *Steps) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(append(dst, itemSteps), s.Generation)
	for _, n := range [...]uint64{s.Count, s.FirstStep, s.FirstSeq, s.LastStep, s.LastSeq} {
		dst = le.AppendUint64(dst, n)
	}
	return dst
}

// stepOf reads what an outline keeps of a STEP entry, without decoding the digests. ok is false for every entry that ParseEntry would
// not return as a STEP.
func stepOf(raw []byte) (s Steps, ok bool) {
	d := decoder{rest: raw}
	if d.u8() != EntryVersion || Kind(d.u8()) != KindStep || len(raw) > MaxEntrySize {
		return s, false
	}
	d.u16()
	s = Steps{Generation: d.u32(), Count: 1, FirstStep: d.u64(), FirstSeq: d.u64()}
	s.LastStep, s.LastSeq = s.FirstStep, s.FirstSeq
	nonfinite, digests := d.u32(), d.u32()
	if digests > MaxDigests {
		return s, false
	}
	d.take(32 * int(digests))
	ext := d.bytes()
	return s, !d.short && len(d.rest) == 0 && len(ext) <= MaxExt && uint64(nonfinite)>>digests == 0
}

// Errors of an outline that does not answer for its file.
var (
	errOutlineNew  = errors.New("outline of a newer version")
	errOutlineCut  = errors.New("outline was cut off")
	errOutlineForm = errors.New("malformed outline")
)

// eachSpan calls back for every item of the outline b of a file with so many entries: with a run, or with the bytes of an entry. It accepts
// exactly what an outliner makes.
func eachSpan(b []byte, entries uint64, item func(run Steps, raw []byte) bool) error {
	d := decoder{rest: b}
	switch version := d.u8(); {
	case version > outlineVersion:
		return errOutlineNew
	case version == 0:
		return fmt.Errorf("%w: %d bytes", errOutlineForm, len(b))
	}
	flags, zero, items, count := d.u8(), d.u16(), d.u32(), d.u64()
	if d.short || flags&^outlineCut != 0 || zero != 0 || count != entries || len(b) > segment.MaxIndex {
		return fmt.Errorf("%w: header %x for %d entries", errOutlineForm, b[:min(len(b), outlineHeader)], entries)
	}
	if flags == outlineCut && items == 0 && len(d.rest) == 0 {
		return errOutlineCut
	}
	if flags != 0 {
		return fmt.Errorf("%w: cut off, with %d items", errOutlineForm, items)
	}
	var before Steps
	for i := range items {
		run, raw, ok := d.outlineItem()
		n := max(1, run.Count)
		if !ok || n > count || before.joins(&run) {
			return fmt.Errorf("%w: item %d", errOutlineForm, i)
		}
		count -= n
		before = run
		if !item(run, raw) {
			return nil
		}
	}
	if count != 0 || len(d.rest) != 0 {
		return fmt.Errorf("%w: %d entries and %d bytes more than items", errOutlineForm, count, len(d.rest))
	}
	return nil
}

// outlineItem takes one item.
func (d *decoder) outlineItem() (run Steps, raw []byte, ok bool) {
	switch d.u8() {
	case itemSteps:
		run = Steps{Generation: d.u32(), Count: d.u64(), FirstStep: d.u64(), FirstSeq: d.u64(), LastStep: d.u64(), LastSeq: d.u64()}
		return run, nil, !d.short && run.valid()
	case itemEntry:
		raw = d.take(int(d.u32()))
		_, step := stepOf(raw)
		_, err := ParseEntry(raw)
		return run, raw, !d.short && !step && !errors.Is(err, ErrEntry)
	}
	return run, nil, false
}
