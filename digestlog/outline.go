package digestlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/mod/sumdb/tlog"

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

// ends reads the ends of a file. False: they do not answer for it, and it is to be read, which finds out why. The error is the file system's.
func (w *walker) ends(s *extent) (segment.Ends, bool, error) {
	ends, err := segment.ReadEnds(w.fsys, s.path)
	var f *Fault
	if err = readFault(s.path, err); errors.As(err, &f) {
		return ends, false, nil
	}
	return ends, err == nil && ends.Sealed && ends.Header.Base == s.base && (s.final || ends.Next == s.limit), err
}

// outlined answers for a file from the index at its end. False: it cannot, and the file is to be read.
func (w *walker) outlined(s *extent) bool {
	if w.whole != nil && w.whole(&s.link) {
		return false
	}
	ends, ok, err := w.ends(s)
	if err != nil || !ok {
		return false // an error comes again with the file
	}
	count := ends.Next - s.base
	if _, err := readOutline(ends.Index, count, nil, nil); err != nil {
		return false
	}
	w.last, w.base, w.sealed, w.end = s.name(), s.base, true, ends.Size
	if !w.gap(s, s.base, 0) {
		return true
	}
	_, _ = readOutline(ends.Index, count, func(run Steps, raw []byte) bool {
		if run.Count == 0 {
			w.deliver(s, 0, raw)
			return !w.stopped
		}
		w.stopped = !w.steps(Span{Item: Item{Index: w.next, File: s.name()}, Run: run})
		w.next += run.Count
		return !w.stopped
	}, nil)
	return true
}

// A comparison holds the outline in a file against one of the entries that are read.
type comparison struct {
	ends segment.Ends
	seen *outliner // nil: there is nothing to compare
}

// compare begins the comparison for a file that is about to be read. What is wrong with its ends, the one who reads the file will find out; the
// error is the file system's.
func (w *walker) compare(s *extent) (c comparison, _ error) {
	if !w.check || s.void {
		return c, nil
	}
	ends, ok, err := w.ends(s)
	if ok && len(ends.Index) > 0 && ends.Index[0] <= outlineVersion {
		c = comparison{ends: ends, seen: &outliner{plain: ends.Index[0] < outlineVersion}}
	}
	return c, err
}

// end reports an outline that is not that of the entries, all of which were seen.
func (c *comparison) end(w *walker, s *extent) {
	if c.seen != nil && !c.seen.bad && string(c.ends.Index) != string(c.seen.Index()) {
		w.report(&Fault{Class: ClassCorrupt, File: s.name(), Offset: c.ends.Size, From: s.base, To: c.ends.Next, Err: errOutline})
	}
}

// Layout of an outline; doc/format/digestlog.md has the table.
const (
	outlineVersion = 2
	outlinePlain   = 1  // the version without stretches
	outlineCut     = 1  // flag: it was too long, and has no items
	outlineBare    = 2  // flag: it would have been too long with its stretches, and has none
	outlineHeader  = 16 // version u8, flags u8, zero u16, items u32, entries u64
	itemSteps      = 1
	itemEntry      = 2
	itemStepsLen   = 1 + 4 + 5*8
	itemEntryLen   = 1 + 4 // and the entry
)

// An outliner makes the outline of one file, in memory that is bounded by what an index may have.
type outliner struct {
	out      []byte // encoded items, without the run that goes on
	items    uint32
	entries  uint64
	run      Steps
	cut      bool // out would have become too long
	bad      bool // not all is an entry
	plain    bool // of version 1
	stretch  stretcher
	leaf     tlog.Hash // of the next entry, if expected
	expected bool
	hash     Encoder // for one that was not
}

func newOutliner(segment.Header) segment.Indexer { return new(outliner) }

// expect gives the outliner the leaf hash of the entry that comes next, from one who has it, so that it is not computed twice.
func (o *outliner) expect(leaf *tlog.Hash) { o.leaf, o.expected = *leaf, true }

// Add takes in an entry.
func (o *outliner) Add(_ uint64, raw []byte) {
	var leaf *tlog.Hash
	if o.expected {
		leaf, o.expected = &o.leaf, false
	}
	s, ok := stepOf(raw)
	o.add(raw, &s, ok, leaf)
}

// add is Add for one who knows already what stepOf says, and may know the leaf hash.
func (o *outliner) add(raw []byte, s *Steps, isStep bool, leaf *tlog.Hash) {
	o.entries++
	if isStep {
		if !o.plain && !o.cut {
			if leaf == nil {
				o.leaf = o.hash.hash(raw)
				leaf = &o.leaf
			}
			o.stretch.add(s, leaf)
		}
		if o.run.joins(s) {
			o.run.Count++
			o.run.LastStep, o.run.LastSeq = s.LastStep, s.LastSeq
			return
		}
		o.endRun()
		o.run = *s
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
		o.out, o.stretch = nil, stretcher{}
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
	if o.plain {
		h[0] = outlinePlain
	}
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
	if o.plain || o.cut {
		return b
	}
	b, ok := o.stretch.append(b)
	if !ok {
		b[1] = outlineBare
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
	le := binary.LittleEndian
	if len(raw) < stepDigests+2 || len(raw) > MaxEntrySize || raw[0] != EntryVersion || Kind(raw[1]) != KindStep {
		return s, false
	}
	nonfinite, digests := le.Uint32(raw[entryHeader:]), le.Uint32(raw[entryHeader+4:])
	ext := stepDigests + 32*int(min(digests, MaxDigests))
	if digests > MaxDigests || len(raw) < ext+2 || uint64(nonfinite)>>digests != 0 {
		return s, false
	}
	if n := int(le.Uint16(raw[ext:])); n > MaxExt || len(raw) != ext+2+n {
		return s, false
	}
	s = Steps{Generation: le.Uint32(raw[4:]), Count: 1, FirstStep: le.Uint64(raw[8:]), FirstSeq: le.Uint64(raw[16:])}
	s.LastStep, s.LastSeq = s.FirstStep, s.FirstSeq
	return s, true
}

// Errors of an outline that does not answer for its file.
var (
	errOutlineNew  = errors.New("outline of a newer version")
	errOutlineCut  = errors.New("outline was cut off")
	errOutlineForm = errors.New("malformed outline")
)

// readOutline calls back for every item of the outline b of a file with so many entries: with a run, or with the bytes of an entry; and for every
// stretch, with an index that counts from the first entry of the file. It accepts exactly what an outliner makes, as far as that can be known
// without the entries. bare says that it has no stretches. Either callback may be nil; if item returns false, that is the end.
func readOutline(b []byte, entries uint64, item func(run Steps, raw []byte) bool, stretch func(Stretch)) (bare bool, _ error) {
	d := decoder{rest: b}
	version := d.u8()
	switch {
	case version > outlineVersion:
		return true, errOutlineNew
	case version == 0:
		return true, fmt.Errorf("%w: %d bytes", errOutlineForm, len(b))
	}
	flags, zero, items, count := d.u8(), d.u16(), d.u32(), d.u64()
	known := flags == 0 || flags == outlineCut || flags == outlineBare && version > outlinePlain
	if d.short || !known || zero != 0 || count != entries || len(b) > segment.MaxIndex {
		return true, fmt.Errorf("%w: header %x for %d entries", errOutlineForm, b[:min(len(b), outlineHeader)], entries)
	}
	switch {
	case flags == outlineCut && items == 0 && len(d.rest) == 0:
		return true, errOutlineCut
	case flags == outlineCut:
		return true, fmt.Errorf("%w: cut off, with %d items", errOutlineForm, items)
	}
	all := d
	steps, err := d.eachItem(items, count, item)
	bare = version == outlinePlain || flags == outlineBare
	switch {
	case err == errStopped:
		return bare, nil
	case err != nil:
		return bare, err
	case !bare:
		if stretch == nil {
			stretch = func(Stretch) {}
		}
		return false, eachStretch(d.rest, func(item func(Steps, []byte) bool) error {
			_, err := all.eachItem(items, count, item)
			return err
		}, stretch)
	case len(d.rest) != 0:
		return bare, fmt.Errorf("%w: %d bytes more than items", errOutlineForm, len(d.rest))
	case bare && version > outlinePlain && len(b)+stretchesLen+int(min(steps, segment.MaxIndex))*stretchLen <= segment.MaxIndex:
		return bare, fmt.Errorf("%w: no stretches, of %d steps", errOutlineForm, steps)
	}
	return bare, nil
}

// errStopped: a callback of eachItem wanted no more.
var errStopped = errors.New("stopped")

// eachItem calls back for so many items, which must stand for count entries, and counts STEP entries.
func (d *decoder) eachItem(items uint32, count uint64, item func(run Steps, raw []byte) bool) (steps uint64, _ error) {
	var before Steps
	for i := range items {
		run, raw, ok := d.outlineItem()
		n := max(1, run.Count)
		if !ok || n > count || before.joins(&run) {
			return steps, fmt.Errorf("%w: item %d", errOutlineForm, i)
		}
		count -= n
		steps += run.Count
		before = run
		if item != nil && !item(run, raw) {
			return steps, errStopped
		}
	}
	if count != 0 {
		return steps, fmt.Errorf("%w: %d entries more than items", errOutlineForm, count)
	}
	return steps, nil
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
