package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
)

// readStep is how many bytes of a chunk are read, hashed and compared together.
const readStep = 256 << 10

// reader is an open snapshot whose header, index and footer are consistent.
type reader struct {
	fsys    vfs.FS
	f       vfs.File
	path    string
	size    int64
	header  []byte
	tail    []byte // index and footer
	meta    Meta
	codec   Codec // policy of the writer
	flags   uint32
	entries []entry
	indexAt int64
	bases   []base
	opened  map[base]*reader // bases that were needed so far

	encrypted bool
	hash      *hasher // of the scan under way; may be nil
	bufs      buffers // stored bytes that are not the state itself
	plain     buffers // what scratch hands out
	inner     buffers // compressed chunks that were encrypted
	unpack    unpacker
}

func open(fsys vfs.FS, path string) (r *reader, err error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("snapshot: %s is not a regular file: %w", path, ErrNotSnapshot)
	}
	r = &reader{fsys: fsys, f: f, path: path, size: st.Size()}
	if err := r.readHeader(); err != nil {
		return nil, err
	}
	return r, r.readTail()
}

func (r *reader) readHeader() error {
	r.header = make([]byte, min(r.size, headerLen))
	if err := r.read(r.header, 0); err != nil {
		return err
	}
	n := min(len(r.header), len(magic))
	switch {
	case string(r.header[:n]) != magic[:n]:
		return fmt.Errorf("snapshot: %s: %w", r.path, ErrNotSnapshot)
	case r.size < headerLen+footerLen:
		return &CorruptError{r.path, r.size, ErrTruncated}
	}
	var err error
	r.meta, r.codec, r.flags, err = parseHeader(r.header)
	r.encrypted = r.flags&flagSealed != 0
	return r.explain(0, err)
}

func (r *reader) readTail() error {
	end := make([]byte, footerLen)
	if err := r.read(end, r.size-footerLen); err != nil {
		return err
	}
	ft, err := parseFooter(end, r.size)
	if err != nil {
		return r.explain(r.size-footerLen, err)
	}
	r.tail = make([]byte, ft.indexLen, ft.indexLen+footerLen)
	if err := r.read(r.tail, ft.indexOffset); err != nil {
		return err
	}
	if crc(r.tail) != ft.indexCRC {
		return &CorruptError{r.path, ft.indexOffset, errors.New("index checksum differs")}
	}
	r.indexAt = ft.indexOffset
	r.entries, r.bases, err = parseIndex(r.tail, ft.sections, ft.indexOffset, r.flags)
	for i := range r.bases {
		if !r.bases[i].before(r.meta) {
			err = at(0, "refers to %s, which is not older", r.bases[i].name())
		}
	}
	r.tail = append(r.tail, end...)
	return r.explain(ft.indexOffset, err)
}

// close closes the file and the bases that were opened.
func (r *reader) close() error {
	r.unpack.close()
	return errors.Join(r.f.Close(), r.closeBases())
}

func (r *reader) closeBases() (err error) {
	for _, b := range r.opened {
		err = errors.Join(err, b.close())
	}
	return err
}

// explain adds the file to what a parser said.
func (r *reader) explain(base int64, err error) error {
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("snapshot: %s: %w", r.path, err)
	}
	return inFile(r.path, base, err)
}

// read fills b from an offset inside the file.
func (r *reader) read(b []byte, off int64) error {
	n, err := r.f.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return &CorruptError{r.path, off + int64(n), ErrTruncated}
	}
	return fmt.Errorf("snapshot: reading %s at byte %d: %w", r.path, off, err)
}

func (r *reader) info() Info {
	return Info{Name: baseName(r.path), Size: r.size, Meta: r.meta, Encrypted: r.encrypted, Bases: exported(r.bases)}
}

// corrupt reports damage at an offset.
func (r *reader) corrupt(off int64, format string, args ...any) error {
	return &CorruptError{r.path, off, fmt.Errorf(format, args...)}
}

// scratch is a destination for scan when the state is not kept.
func (r *reader) scratch(_ int, _ int64, n int) []byte { return r.plain.next(r.hash, n) }

// verify checks all data and both SHA-256 and returns that of the whole file.
func (r *reader) verify(want *[32]byte, v visit) ([32]byte, error) {
	h := newHasher(r.size <= hashReadInline)
	defer h.abandon()
	h.write(r.header)
	if err := r.scan(h, v); err != nil {
		return [32]byte{}, err
	}
	end := r.tail[len(r.tail)-footerLen:]
	sha := h.stop()
	sha.Write(r.tail[:len(r.tail)-footerLen+sumOffset])
	if [32]byte(sha.Sum(nil)) != [32]byte(end[sumOffset:]) {
		return [32]byte{}, r.corrupt(r.size-footerLen+sumOffset, "SHA-256 differs from the one in the footer")
	}
	sha.Write(end[sumOffset:])
	sum := [32]byte(sha.Sum(nil))
	if want != nil && sum != *want {
		return sum, fmt.Errorf("snapshot %s of step %d has SHA-256 %x, want %x: %w", r.path, r.meta.Step, sum, *want, ErrMismatch)
	}
	return sum, nil
}

// visit is what scan does with the state.
type visit struct {
	into       func(i int, off int64, n int) []byte     // where n bytes of section i go
	check      func(i int, off int64, raw []byte) error // what they are handed to then; may be nil
	identities func(i int) []age.Identity               // keys of section i; nil: an encrypted state is not looked at
	kept       bool                                     // sections that are kept elsewhere count too
}

func (v *visit) checked(i int, off int64, raw []byte) error {
	if v.check == nil {
		return nil
	}
	return v.check(i, off, raw)
}

// scan reads and checks all sections in file order, and gives what the file holds
// to h, which may be nil. What is kept elsewhere is read too, if v says so.
func (r *reader) scan(h *hasher, v visit) error {
	r.hash = h
	defer r.unpack.close()
	for i := range r.entries {
		if r.entries[i].kept() {
			if !v.kept {
				continue
			}
			if err := r.keptSection(i, v); err != nil {
				return err
			}
			continue
		}
		read := r.section
		if r.encrypted {
			read = r.sealed
		}
		if err := read(h, i, v); err != nil {
			return err
		}
		e := &r.entries[i]
		if err := r.padding(h, e.offset+e.stored); err != nil {
			return err
		}
	}
	return nil
}

// section reads one that is not encrypted.
func (r *reader) section(h *hasher, i int, v visit) error {
	e := &r.entries[i]
	var sum hash.Hash
	if e.flags&flagRawSum != 0 {
		sum = sha256.New()
	}
	pos := e.offset
	for n, c := range e.chunks {
		off := int64(n) * ChunkSize
		take := func(off int64, raw []byte) error {
			if sum != nil {
				sum.Write(raw)
			}
			return v.checked(i, off, raw)
		}
		var err error
		if c.zstd {
			raw := v.into(i, off, rawChunk(e.raw, n))
			if err = r.zipped(h, c, pos, raw); err == nil {
				err = take(off, raw)
			}
		} else {
			err = r.asIs(h, c, pos, func(at int64, n int) []byte { return v.into(i, off+at, n) },
				func(at int64, raw []byte) error { return take(off+at, raw) })
		}
		if err != nil {
			return err
		}
		pos += int64(c.stored)
	}
	if sum != nil && [32]byte(sum.Sum(nil)) != e.sum {
		return r.corrupt(e.offset, "SHA-256 of section %q differs", e.name)
	}
	return nil
}

// asIs reads a chunk that is the state itself, in steps that stay in the
// processor's cache.
func (r *reader) asIs(h *hasher, c chunk, pos int64, into func(int64, int) []byte, take func(int64, []byte) error) error {
	var got uint32
	for at := int64(0); at < int64(c.stored); at += readStep {
		raw := into(at, int(min(int64(c.stored)-at, readStep)))
		if err := r.read(raw, pos+at); err != nil {
			return err
		}
		r.plain.lent(h.write(raw))
		got = crc32.Update(got, castagnoli(), raw)
		if err := take(at, raw); err != nil {
			return err
		}
	}
	if got != c.crc {
		return r.corrupt(pos, "checksum of the chunk of %d bytes differs", c.stored)
	}
	return nil
}

// zipped reads a compressed chunk and decodes it to raw.
func (r *reader) zipped(h *hasher, c chunk, pos int64, raw []byte) error {
	stored := r.bufs.next(h, int(c.stored))
	if err := r.read(stored, pos); err != nil {
		return err
	}
	r.bufs.lent(h.write(stored))
	if crc(stored) != c.crc {
		return r.corrupt(pos, "checksum of the chunk of %d bytes differs", c.stored)
	}
	if err := r.unpack.unpack(raw, stored); err != nil {
		return r.corrupt(pos, "%w", err)
	}
	return nil
}

// padding checks the zero bytes from pos to the next section.
func (r *reader) padding(h *hasher, pos int64) error {
	b := make([]byte, aligned(pos)-pos)
	if len(b) == 0 {
		return nil
	}
	if err := r.read(b, pos); err != nil {
		return err
	}
	if i := firstNonZero(b); i >= 0 {
		return r.corrupt(pos+int64(i), "padding is not zero")
	}
	h.write(b)
	return nil
}
