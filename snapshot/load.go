package snapshot

import (
	"fmt"
	"io"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
)

// LoadOptions configure LoadWith. The zero value loads what is not encrypted.
type LoadOptions struct {
	// Identities are the age secret keys to try; see ReadIdentities. A snapshot
	// that is not encrypted is loaded without them.
	Identities []age.Identity
}

// Load is LoadWith without a key: an encrypted snapshot is ErrEncrypted.
func Load(fsys vfs.FS, path string, want *[32]byte) (Meta, []Section, error) {
	return LoadWith(fsys, path, want, LoadOptions{})
}

// LoadWith reads a snapshot and returns its sections once every byte of the file
// has been checked, and decrypted to its authenticated end. want, if not nil, is
// the SHA-256 the file must have, from the digest log. Memory is the state's size
// plus a few chunks, whatever the file says.
//
// Errors wrap ErrNotSnapshot, ErrVersion, ErrTruncated, ErrMismatch, ErrEncrypted
// or ErrWrongIdentity, are a *CorruptError with the damaged place, or come from
// the file system. A section that is kept in an older snapshot is read there; if
// that one cannot be used, there is a *BaseError in the *CorruptError.
func LoadWith(fsys vfs.FS, path string, want *[32]byte, o LoadOptions) (Meta, []Section, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Meta{}, nil, err
	}
	defer r.close()
	if r.encrypted && len(o.Identities) == 0 {
		return Meta{}, nil, fmt.Errorf("snapshot %s of step %d: %w", path, r.meta.Step, ErrEncrypted)
	}
	sections := make([]Section, len(r.entries))
	for i, e := range r.entries {
		sections[i] = Section{Name: e.name, Data: []byte{}}
	}
	v := visit{
		into: func(i int, off int64, n int) []byte {
			if off == 0 {
				sections[i].Data = make([]byte, r.entries[i].raw)
			}
			return sections[i].Data[off : off+int64(n)]
		},
		identities: func(int) []age.Identity { return o.Identities },
		kept:       true,
	}
	if _, err := r.verify(want, v); err != nil {
		return Meta{}, nil, err
	}
	return r.meta, sections, nil
}

// LoadTo is LoadWith for a state that is to lie elsewhere: it writes sections as one
// container, that of AppendSections, in flat memory. to is called once, when header
// and index are checked, with the container's size; what it returns must read as
// zeros wherever nothing is written. What was written is worth nothing unless LoadTo
// returns nil, for the checks end with the last byte.
//
// With names only these sections are written, in the order of the file. The whole
// file is checked all the same: the digest log vouches for it as a whole. A name that
// the snapshot does not have is ErrNoSection.
func LoadTo(fsys vfs.FS, path string, want *[32]byte, o LoadOptions, names []string, to func(m Meta, size int64) (io.WriterAt, error)) (Meta, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Meta{}, err
	}
	defer r.close()
	if r.encrypted && len(o.Identities) == 0 {
		return Meta{}, fmt.Errorf("snapshot %s of step %d: %w", path, r.meta.Step, ErrEncrypted)
	}
	picked, err := r.pick(names)
	if err != nil {
		return Meta{}, err
	}
	size := containerTable(len(picked))
	at := make([]int64, len(r.entries)) // 0: not wanted, since no section begins there
	for _, i := range picked {
		at[i] = size
		size += aligned(r.entries[i].raw)
	}
	dst, err := to(r.meta, size)
	if err != nil {
		return Meta{}, err
	}
	head := appendContainerHead(nil, len(picked), size, func(i int) (string, int64) {
		e := &r.entries[picked[i]]
		return e.name, e.raw
	})
	if _, err := dst.WriteAt(head, 0); err != nil {
		return Meta{}, err
	}
	v := visit{
		into: r.scratch,
		check: func(i int, off int64, raw []byte) error {
			if at[i] == 0 {
				return nil
			}
			_, err := dst.WriteAt(raw, at[i]+off)
			return err
		},
		identities: func(int) []age.Identity { return o.Identities },
		kept:       true,
	}
	if _, err := r.verify(want, v); err != nil {
		return Meta{}, err
	}
	return r.meta, nil
}

// pick returns which sections have one of the names; all without names.
func (r *reader) pick(names []string) (picked []int, err error) {
	missing := map[string]bool{}
	for _, name := range names {
		missing[name] = true
	}
	for i := range r.entries {
		if len(names) == 0 || missing[r.entries[i].name] {
			picked = append(picked, i)
			delete(missing, r.entries[i].name)
		}
	}
	for _, name := range names {
		if missing[name] {
			return nil, fmt.Errorf("snapshot %s of step %d: section %q: %w", r.path, r.meta.Step, name, ErrNoSection)
		}
	}
	return picked, nil
}

// Verify checks every byte of a snapshot as Load does, in flat memory, and
// returns what it found. It needs no key: of an encrypted snapshot it checks the
// stored bytes. want may be nil.
func Verify(fsys vfs.FS, path string, want *[32]byte) (Info, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Info{}, err
	}
	defer r.close()
	info := r.info()
	if info.SHA256, err = r.verify(want, visit{into: r.scratch, kept: true}); err != nil {
		return Info{}, err
	}
	info.Verified = true
	return info, nil
}

// Inspect reads header, index and footer of a snapshot and checks these only.
// It needs no key and no other file.
func Inspect(fsys vfs.FS, path string) (Meta, []SectionInfo, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Meta{}, nil, err
	}
	defer r.close()
	infos := make([]SectionInfo, len(r.entries))
	for i, e := range r.entries {
		infos[i] = SectionInfo{Name: e.name, Offset: e.offset, Size: e.raw, StoredSize: e.stored, Encrypted: r.encrypted}
		switch {
		case r.encrypted:
			infos[i].Codec = r.codec
		case e.kept():
			infos[i].Base = exported(r.bases)[e.base()]
			if e.stored < e.raw {
				infos[i].Codec = Zstd
			}
		case e.flags&flagRawSum != 0:
			infos[i].Codec = Zstd
		}
	}
	return r.meta, infos, nil
}
