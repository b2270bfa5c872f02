package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
)

const (
	// minKept is the size from which a section is worth a reference: below it, the
	// other file costs a reader more than the bytes.
	minKept = 64 << 10
	// reuseLimit is the default of Reuse.Limit.
	reuseLimit = 7
)

// Reuse remembers, from one Write to the next, where the large sections of a run
// lie, so that those that did not change need not be written again. The zero value
// is ready for use, by one Write at a time; after a restart a new one begins with
// a snapshot that is whole.
//
// Sections of 64 KiB and more are compared byte by byte with what the older file
// holds, so a reference is as good as a section that was written and read back,
// and an older file that has gone bad is not referred to any more. What differs or
// cannot be read is written; Info.BaseErr then says what could not be read.
//
// References never leave a group of snapshots: a whole one and at most Limit that
// follow it. So the loss of one file costs no more than the rest of its group, and
// Plan can let go of a group as one.
type Reuse struct {
	Limit int // snapshots in a row that may refer to others; 0 means 7

	runID string
	dir   string
	since int // snapshots since the whole one
	held  map[string]held
}

// held is where a section's bytes lie.
type held struct {
	in    base
	entry entry // as in the index of that file, flags and digest aside
	sum   [32]byte
	known bool // sum is the digest of the state
}

// full says whether the next snapshot begins a group.
func (u *Reuse) full(dir string, m Meta) bool {
	limit := u.Limit
	if limit == 0 {
		limit = reuseLimit
	}
	return u.runID != m.RunID || u.dir != dir || u.since >= limit
}

// choose decides which sections are not written. It runs before anything is.
func (w *writer) choose(dir string) {
	w.refs = make([]*held, len(w.sections))
	u := w.options.Reuse
	if u == nil || len(w.options.Recipients) > 0 || u.full(dir, w.meta) {
		return
	}
	r := &reader{fsys: w.options.FS, path: filepath.Join(dir, FileName(w.meta.Step, w.meta.Generation)), meta: w.meta} // only to open bases with
	defer func() { w.baseErr = errors.Join(w.baseErr, r.closeBases()) }()
	numbers := map[base]int{}
	for i, s := range w.sections {
		h, ok := u.held[s.Name]
		if !ok || h.entry.raw != int64(len(s.Data)) || !h.in.before(w.meta) {
			continue
		}
		switch same, err := r.holds(&h, s); {
		case err != nil:
			w.baseErr = errors.Join(w.baseErr, fmt.Errorf("section %q in %s: %w", s.Name, h.in.name(), err))
		case same:
			if _, ok := numbers[h.in]; !ok {
				numbers[h.in] = len(w.bases)
				w.bases = append(w.bases, h.in)
			}
			h.entry.flags = flagRawSum | flagKept | uint32(numbers[h.in])<<baseShift
			w.refs[i] = &h
		}
	}
}

var errDiffers = errors.New("differs")

// holds compares a section with the bytes in an older snapshot, and completes h.
func (r *reader) holds(h *held, s Section) (bool, error) {
	e := h.entry
	e.flags, r.bases = 0, []base{h.in}
	b, k, err := r.inBase(&e)
	if err != nil {
		return false, err
	}
	sum := sha256.New()
	err = b.section(nil, k, visit{
		into: b.scratch,
		check: func(_ int, off int64, raw []byte) error {
			if !bytes.Equal(raw, s.Data[off:off+int64(len(raw))]) {
				return errDiffers
			}
			if !h.known {
				sum.Write(raw)
			}
			return nil
		},
	})
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	if err == nil && !h.known {
		h.sum, h.known = [32]byte(sum.Sum(nil)), true
	}
	return err == nil, err
}

// remember notes where the sections of a snapshot that was just written lie.
func (u *Reuse) remember(dir string, w *writer) {
	if u == nil || len(w.options.Recipients) > 0 {
		return
	}
	if u.full(dir, w.meta) {
		u.since = -1
	}
	u.since++
	u.runID, u.dir = w.meta.RunID, dir
	was := u.held
	u.held = map[string]held{}
	self := base{w.meta.Step, w.meta.Generation, w.offset, w.sum}
	for i, e := range w.entries {
		switch {
		case w.refs[i] != nil:
			h := *w.refs[i]
			h.entry = was[e.name].entry
			u.held[e.name] = h
		case e.raw >= minKept:
			u.held[e.name] = held{in: self, entry: entry{name: e.name, offset: e.offset, raw: e.raw, stored: e.stored}}
		}
	}
}
