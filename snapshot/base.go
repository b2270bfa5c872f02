package snapshot

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// A section that has not changed since an older snapshot of the run can be kept
// there: the newer file then has an entry for it that says in which file, its
// base, the bytes lie. A base is a snapshot like any other. What is kept lies in
// the base itself, never in a base of the base, so a snapshot needs its own file
// and the bases that its index names, and nothing else.

// base is one row of the table of bases.
type base struct {
	step       uint64
	generation uint32
	size       int64
	sum        [32]byte // of the whole file
}

func (b *base) name() string { return FileName(b.step, b.generation) }

// before says whether a base is older than what refers to it.
func (b *base) before(m Meta) bool {
	return cmp.Or(cmp.Compare(b.step, m.Step), cmp.Compare(b.generation, m.Generation)) < 0
}

func (b *base) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, b.step)
	dst = le.AppendUint32(dst, b.generation)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint64(dst, uint64(b.size))
	dst = le.AppendUint64(dst, 0)
	return append(dst, b.sum[:]...)
}

// parseBases reads the rows behind the entries, each of which an entry must name.
func parseBases(b []byte, entries []entry) ([]base, error) {
	if len(b) == 0 || len(b)%baseLen != 0 || len(b)/baseLen > len(entries) {
		return nil, at(0, "%d bytes of bases for %d sections", len(b), len(entries))
	}
	le := binary.LittleEndian
	bases := make([]base, len(b)/baseLen)
	used := make([]bool, len(bases))
	seen := make(map[string]bool, len(bases))
	for i := range bases {
		row := b[i*baseLen:][:baseLen]
		x := base{step: le.Uint64(row), generation: le.Uint32(row[8:]), size: int64(le.Uint64(row[16:])), sum: [32]byte(row[32:])}
		if le.Uint32(row[12:]) != 0 || le.Uint64(row[24:]) != 0 {
			return nil, at(int64(i*baseLen+12), "reserved bytes of base %d are not zero", i)
		}
		if x.size < headerLen+footerLen || seen[x.name()] {
			return nil, at(int64(i*baseLen), "base %d, %s of %d bytes, is too short or there twice", i, x.name(), x.size)
		}
		seen[x.name()] = true
		bases[i] = x
	}
	for i := range entries {
		e := &entries[i]
		if !e.kept() {
			continue
		}
		if e.base() >= len(bases) || e.offset > bases[e.base()].size || e.stored > bases[e.base()].size-e.offset {
			return nil, at(0, "section %q lies outside of base %d", e.name, e.base())
		}
		used[e.base()] = true
	}
	for i := range used {
		if !used[i] {
			return nil, at(int64(i*baseLen), "no section is kept in base %d, %s", i, bases[i].name())
		}
	}
	return bases, nil
}

// parseKept reads the rest of an entry whose section lies elsewhere. Its chunk
// table lies there too.
func parseKept(e entry, b []byte, flags uint32) (entry, int, error) {
	le := binary.LittleEndian
	off, raw, stored, chunks := le.Uint64(b[64:]), le.Uint64(b[72:]), le.Uint64(b[80:]), le.Uint32(b[88:])
	switch {
	case flags&flagBases == 0:
		return entry{}, 0, at(92, "section %q is kept elsewhere, but there are no bases", e.name)
	case e.flags&flagRawSum == 0:
		return entry{}, 0, at(92, "section %q is kept elsewhere without its digest", e.name)
	case off < headerLen || off%alignment != 0 || off > 1<<62:
		return entry{}, 0, at(64, "section %q at byte %d of its base", e.name, off)
	case raw == 0, raw > MaxState, stored > raw, raw > stored*maxRatio, chunks != 0:
		return entry{}, 0, at(72, "section %q of %d bytes, %d stored, in %d chunks, is kept elsewhere", e.name, raw, stored, chunks)
	}
	e.offset, e.raw, e.stored = int64(off), int64(raw), int64(stored)
	return e, entryLen, nil
}

// BaseError says that a section cannot be had because of the other snapshot that
// it is kept in. It always comes inside a *CorruptError of the snapshot that
// refers to it.
type BaseError struct {
	Section string
	Base    string // file name of the snapshot that holds the bytes
	Err     error  // fs.ErrNotExist if the base is not there. Not unwrapped: it is of another file
}

func (e *BaseError) Error() string {
	return fmt.Sprintf("section %q is kept in %s, which cannot be used: %v", e.Section, e.Base, e.Err)
}

// inBase returns an open base and which of its sections is kept there for e.
func (r *reader) inBase(e *entry) (*reader, int, error) {
	want := &r.bases[e.base()]
	b, ok := r.opened[*want]
	if !ok {
		var err error
		if b, err = open(r.fsys, filepath.Join(filepath.Dir(r.path), want.name())); err != nil {
			return nil, 0, err
		}
		if r.opened == nil {
			r.opened = map[base]*reader{}
		}
		r.opened[*want] = b
	}
	if b.meta.RunID != r.meta.RunID || b.meta.Step != want.step || b.meta.Generation != want.generation {
		return nil, 0, fmt.Errorf("it is of run %s, step %d, generation %d", b.meta.RunID, b.meta.Step, b.meta.Generation)
	}
	if b.size != want.size || b.encrypted {
		return nil, 0, fmt.Errorf("it has %d bytes (encrypted: %v), want %d", b.size, b.encrypted, want.size)
	}
	for i := range b.entries {
		x := &b.entries[i]
		switch {
		case x.name != e.name:
		case x.kept():
			return nil, 0, fmt.Errorf("it does not hold the section either, but refers to %s", b.bases[x.base()].name())
		case x.offset != e.offset || x.raw != e.raw || x.stored != e.stored:
			return nil, 0, fmt.Errorf("it has a section of that name elsewhere: %d bytes, %d stored, at byte %d", x.raw, x.stored, x.offset)
		default:
			return b, i, nil
		}
	}
	return nil, 0, errors.New("it has no section of that name")
}

// keptSection reads a section from the base that holds it. The digest in the
// entry, which this file's own checksums cover, is what the bytes are held
// against; the rest of the base does not matter.
func (r *reader) keptSection(i int, v visit) error {
	e := &r.entries[i]
	b, k, err := r.inBase(e)
	if err == nil {
		// For this reader of the base only: it then checks the digest.
		b.entries[k].flags |= flagRawSum
		b.entries[k].sum = e.sum
		err = b.section(nil, k, visit{
			into: func(_ int, off int64, n int) []byte { return v.into(i, off, n) },
			check: func(_ int, off int64, raw []byte) error {
				if err := v.checked(i, off, raw); err != nil {
					return &rejected{err}
				}
				return nil
			},
		})
	}
	var failed *rejected
	if errors.As(err, &failed) {
		return failed.err
	}
	var path *fs.PathError
	if err == nil || errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist) {
		return err // of the device: it says nothing about the base
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fs.ErrNotExist
	}
	return &CorruptError{r.path, r.indexAt + e.at, &BaseError{e.name, r.bases[e.base()].name(), err}}
}

// Base is a snapshot that holds sections for another one.
type Base struct {
	Name   string // in the same directory
	Size   int64
	SHA256 [32]byte // of the whole file
}

func exported(bases []base) (out []Base) {
	for i := range bases {
		out = append(out, Base{bases[i].name(), bases[i].size, bases[i].sum})
	}
	return out
}
