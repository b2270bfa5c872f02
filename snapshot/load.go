package snapshot

import (
	"fmt"

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
