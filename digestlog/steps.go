package digestlog

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/usp-project/usp/internal/vfs"
)

// A StepEntry is a STEP entry that is not decoded.
type StepEntry struct {
	Index      uint64 // in the tree
	Generation uint32
	Step, Seq  uint64
	Raw        []byte // the leaf's bytes; valid until the next entry
	File       string // base name
	Offset     int64  // of its frame, in bytes from the file's start
}

// stepDigests is where the digests are in a STEP entry, behind nonfinite and count.
const stepDigests = entryHeader + 4 + 4

// ParseStep looks at an entry's bytes. ok is false if they are not a STEP entry of a version that is known.
func ParseStep(raw []byte) (s StepEntry, ok bool) {
	r, ok := stepOf(raw)
	return StepEntry{Generation: r.Generation, Step: r.FirstStep, Seq: r.FirstSeq, Raw: raw}, ok
}

// Nonfinite returns the bits that say which digest fields held a NaN or an infinity: bit min(i, 31) for field i.
func (s *StepEntry) Nonfinite() uint32 { return binary.LittleEndian.Uint32(s.Raw[entryHeader:]) }

// Len returns the number of digests.
func (s *StepEntry) Len() int { return int(binary.LittleEndian.Uint32(s.Raw[entryHeader+4:])) }

// Digest returns the digest of field i, which must be less than Len. It is a part of Raw.
func (s *StepEntry) Digest(i int) []byte {
	return s.Raw[stepDigests+32*i : stepDigests+32*(i+1) : stepDigests+32*(i+1)]
}

// Ext returns the extension, a part of Raw.
func (s *StepEntry) Ext() []byte { return s.Raw[stepDigests+32*s.Len()+2:] }

// Body returns all that is not in the common header: nonfinite, digests and extension. It is a part of Raw.
func (s *StepEntry) Body() []byte { return s.Raw[entryHeader:] }

// A StepReader reads the STEP entries of a log in order, and passes stretches that its caller knows already without reading them. It needs neither key
// nor lock, and can read a log that is being written. Its memory does not grow with the log. It is for one goroutine.
//
// Of what it passes it believes the outline of a sealed file, as [Outline] does: that this is true only [Verify] finds out.
type StepReader struct {
	w      walker
	files  []extent
	listed bool

	cur    *extent   // the file that the next entry is looked for in; nil: the next one
	f      *openFile // cur, when something was read of it
	list   []Stretch // of cur: those that were not begun
	lined  bool      // cur has stretches
	behind uint64    // of cur, if it has stretches: the index behind its last entry
	rest   uint64    // entries to come of the stretch that was begun; 0: the next one is at the start of a stretch

	faults []*Fault // found and not told
	step   StepEntry
	have   bool // step was read and not returned
	err    error
}

// NewStepReader returns a reader of the log in the directory dir. A nil fsys is the real file system. It opens nothing yet.
func NewStepReader(fsys vfs.FS, dir string) *StepReader {
	r := &StepReader{w: walker{fsys: orOS(fsys), dir: dir}}
	r.w.fault = func(f *Fault) bool { r.faults = append(r.faults, f); return true }
	return r
}

// Next returns the next STEP entry. At the end of the log the error is [io.EOF]. An error that is a [*Fault] stands in the place of what is wrong there;
// the next call goes on behind it. Faults are those of [Entries], but of what was passed none. Any other error is the
// file system's and is final.
func (r *StepReader) Next() (StepEntry, error) {
	for {
		switch {
		case len(r.faults) > 0:
			f := r.faults[0]
			r.faults = r.faults[1:]
			return StepEntry{}, f
		case r.have:
			r.have = false
			return r.step, nil
		case r.err != nil:
			return StepEntry{}, r.err
		}
		r.advance()
	}
}

// Stretch reports whether what Next returns next begins a stretch, and which. It reads no entries.
func (r *StepReader) Stretch() (Stretch, bool) {
	for len(r.faults) == 0 && !r.have && r.err == nil && r.rest == 0 && r.file() {
		if !r.lined {
			return Stretch{}, false
		}
		if len(r.list) > 0 {
			return r.list[0], true
		}
		r.finish()
	}
	return Stretch{}, false
}

// Skip passes the stretch that Stretch tells of. Where it tells of none, Skip does nothing.
func (r *StepReader) Skip() {
	if _, ok := r.Stretch(); !ok {
		return
	}
	if r.list = r.list[1:]; len(r.list) > 0 {
		r.w.next = r.list[0].Index
	} else {
		r.w.next = r.behind
		r.leave()
		return
	}
	if r.f != nil {
		r.f.r.SkipTo(r.w.next)
	}
}

// Close closes the file that is open. After it Next returns io.EOF.
func (r *StepReader) Close() error {
	if r.err == nil {
		r.err = io.EOF
	}
	r.have, r.faults = false, nil
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.r.Close()
}

// file makes sure that there is a file to look in, and knows its stretches. False: there is none, or something is to be told first.
func (r *StepReader) file() bool {
	if !r.listed {
		r.listed = true
		if r.files, r.err = r.w.headers(); r.err != nil {
			return false
		}
	}
	for r.cur == nil && len(r.faults) == 0 {
		if len(r.files) == 0 {
			r.err = io.EOF
			return false
		}
		s := &r.files[0]
		if r.files = r.files[1:]; !s.ok {
			continue
		}
		r.cur = s
		if r.list, r.behind, r.lined, r.err = r.w.stretches(s); r.err != nil {
			return false
		}
		r.w.gap(s, s.base, 0)
	}
	return len(r.faults) == 0
}

// leave is done with the file.
func (r *StepReader) leave() {
	if r.f != nil {
		if err := r.f.r.Close(); err != nil && r.err == nil {
			r.err = err
		}
	}
	if !r.cur.final {
		r.w.gap(r.cur, r.cur.limit, r.w.end)
	}
	r.cur, r.f, r.list, r.rest = nil, nil, nil, 0
}

// finish is done with a file that has no more stretches. What lies behind the last is read if that was.
func (r *StepReader) finish() {
	if r.f == nil {
		r.w.next = r.behind
		r.leave()
		return
	}
	for f := r.f; r.f == f && !r.have && len(r.faults) == 0 && r.err == nil; {
		r.read()
	}
}

// advance reads until there is an entry, or something to tell.
func (r *StepReader) advance() {
	if !r.file() {
		return
	}
	if r.f == nil {
		if !r.open() {
			return
		}
	}
	r.read()
}

// open opens the file to read it from the next entry on.
func (r *StepReader) open() bool {
	f, err := r.w.open(r.cur)
	var fault *Fault
	switch {
	case errors.As(err, &fault): // its header was good when the files were listed
		r.faults, r.err = append(r.faults, fault), io.EOF
		return false
	case err != nil:
		r.err = err
		return false
	}
	if r.lined {
		f.r.SkipTo(r.w.next)
	}
	r.f = f
	return true
}

// read takes one entry from the open file, or finds something to tell, or the end.
func (r *StepReader) read() {
	raw, end, err := r.w.entry(r.f)
	switch {
	case err != nil:
		r.err = err
		return
	case end:
		r.leave()
		return
	case raw == nil:
		return
	}
	index := r.w.next
	r.w.next++
	s, ok := stepOf(raw)
	if !ok {
		it := Item{Index: index, Raw: raw, File: r.f.name(), Offset: r.f.r.Position()}
		if _, f := parseItem(&it); f != nil {
			r.faults = append(r.faults, f)
		}
		return
	}
	r.step, r.have = StepEntry{Index: index, Generation: s.Generation, Step: s.FirstStep, Seq: s.FirstSeq, Raw: raw, File: r.f.file, Offset: r.f.r.Position()}, true
	r.place(index)
}

// place finds out in which stretch the entry is that was read. Behind damage rest is too large, and nobody skips before the next stretch but one.
func (r *StepReader) place(index uint64) {
	if r.rest > 0 {
		r.rest--
	}
	for len(r.list) > 0 && r.list[0].Index <= index {
		r.rest, r.list = r.list[0].Count-1, r.list[1:]
	}
}

// stretches returns what the outline of a file says of its stretches, and where the file ends. False: it says nothing. The error is the file system's.
func (w *walker) stretches(s *extent) (list []Stretch, behind uint64, ok bool, _ error) {
	ends, ok, err := w.ends(s)
	if err != nil || !ok {
		return nil, 0, false, err
	}
	bare, err := readOutline(ends.Index, ends.Next-s.base, nil, func(x Stretch) {
		x.Index += s.base
		list = append(list, x)
	})
	return list, ends.Next, err == nil && !bare, nil
}
