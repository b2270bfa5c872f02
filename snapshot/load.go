package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/usp-project/usp/internal/vfs"
)

// Load reads a snapshot and returns its sections once every byte of the file has
// been checked. want, if not nil, is the SHA-256 the file must have, from the
// digest log. Memory is the state's size plus a few chunks, whatever the file says.
//
// Errors wrap ErrNotSnapshot, ErrVersion, ErrTruncated or ErrMismatch, are a
// *CorruptError with the damaged place, or come from the file system.
func Load(fsys vfs.FS, path string, want *[32]byte) (Meta, []Section, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Meta{}, nil, err
	}
	defer r.f.Close()
	sections := make([]Section, len(r.entries))
	for i, e := range r.entries {
		sections[i] = Section{Name: e.name, Data: make([]byte, e.raw)}
	}
	into := func(i int, off int64, n int) []byte { return sections[i].Data[off : off+int64(n)] }
	if _, err := r.verify(want, into); err != nil {
		return Meta{}, nil, err
	}
	return r.meta, sections, nil
}

// Verify checks every byte of a snapshot as Load does, in flat memory, and
// returns what it found. want may be nil.
func Verify(fsys vfs.FS, path string, want *[32]byte) (Info, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Info{}, err
	}
	defer r.f.Close()
	info := r.info()
	if info.SHA256, err = r.verify(want, r.scratch); err != nil {
		return Info{}, err
	}
	info.Verified = true
	return info, nil
}

// Inspect reads header, index and footer of a snapshot and checks these only.
func Inspect(fsys vfs.FS, path string) (Meta, []SectionInfo, error) {
	r, err := open(fsys, path)
	if err != nil {
		return Meta{}, nil, err
	}
	defer r.f.Close()
	infos := make([]SectionInfo, len(r.entries))
	for i, e := range r.entries {
		infos[i] = SectionInfo{Name: e.name, Offset: e.offset, Size: e.raw, StoredSize: e.stored}
		if e.flags&flagRawSum != 0 {
			infos[i].Codec = Zstd
		}
	}
	return r.meta, infos, nil
}

// reader is an open snapshot whose header, index and footer are consistent.
type reader struct {
	f       vfs.File
	path    string
	size    int64
	header  []byte
	tail    []byte // index and footer
	meta    Meta
	entries []entry
	turn    int
	bufs    [2][]byte // compressed bytes of two chunks in turn, because a hasher may still read the one before
	plain   [2][]byte // what scratch hands out, in turn for the same reason
	dec     *zstd.Decoder
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
	r = &reader{f: f, path: path, size: st.Size()}
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
	r.meta, _, err = parseHeader(r.header)
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
	r.entries, err = parseIndex(r.tail, ft.sections, ft.indexOffset)
	r.tail = append(r.tail, end...)
	return r.explain(ft.indexOffset, err)
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
	return Info{Name: baseName(r.path), Size: r.size, Meta: r.meta}
}

// scratch is a destination for scan when the state is not kept.
func (r *reader) scratch(_ int, _ int64, n int) []byte {
	r.turn ^= 1
	if len(r.plain[r.turn]) < n {
		r.plain[r.turn] = make([]byte, ChunkSize)
	}
	return r.plain[r.turn][:n]
}

// verify checks all data and both SHA-256 and returns that of the whole file.
func (r *reader) verify(want *[32]byte, into func(int, int64, int) []byte) ([32]byte, error) {
	h := newHasher()
	defer h.stop()
	h.write(r.header)
	if err := r.scan(h, into, nil); err != nil {
		return [32]byte{}, err
	}
	end := r.tail[len(r.tail)-footerLen:]
	sha := h.stop()
	sha.Write(r.tail[:len(r.tail)-footerLen+sumOffset])
	if [32]byte(sha.Sum(nil)) != [32]byte(end[sumOffset:]) {
		return [32]byte{}, &CorruptError{r.path, r.size - footerLen + sumOffset, errors.New("SHA-256 differs from the one in the footer")}
	}
	sha.Write(end[sumOffset:])
	sum := [32]byte(sha.Sum(nil))
	if want != nil && sum != *want {
		return sum, fmt.Errorf("snapshot %s of step %d has SHA-256 %x, want %x: %w", r.path, r.meta.Step, sum, *want, ErrMismatch)
	}
	return sum, nil
}

// scan reads all sections in file order: the state of each chunk goes to the
// buffer that into returns, and then to check. h may be nil.
func (r *reader) scan(h *hasher, into func(i int, off int64, n int) []byte, check func(i int, off int64, raw []byte) error) error {
	defer func() {
		if r.dec != nil {
			r.dec.Close()
			r.dec = nil
		}
	}()
	for i := range r.entries {
		e := &r.entries[i]
		var sum hash.Hash
		if e.flags&flagRawSum != 0 {
			sum = sha256.New()
		}
		pos := e.offset
		for c := range e.chunks {
			off := int64(c) * ChunkSize
			raw := into(i, off, rawChunk(e.raw, c))
			if err := r.chunk(h, e.chunks[c], pos, raw); err != nil {
				return err
			}
			if sum != nil {
				sum.Write(raw)
			}
			if check != nil {
				if err := check(i, off, raw); err != nil {
					return err
				}
			}
			pos += int64(e.chunks[c].stored)
		}
		if sum != nil && [32]byte(sum.Sum(nil)) != e.sum {
			return &CorruptError{r.path, e.offset, fmt.Errorf("SHA-256 of section %q differs", e.name)}
		}
		if err := r.padding(h, pos); err != nil {
			return err
		}
	}
	return nil
}

// chunk reads the stored chunk at pos and puts its state into raw.
func (r *reader) chunk(h *hasher, c chunk, pos int64, raw []byte) error {
	stored := raw
	if c.zstd {
		stored = r.compressed(int(c.stored))
	}
	if err := r.read(stored, pos); err != nil {
		return err
	}
	if h != nil {
		h.write(stored)
	}
	if crc(stored) != c.crc {
		return &CorruptError{r.path, pos, fmt.Errorf("checksum of the chunk of %d bytes differs", c.stored)}
	}
	if !c.zstd {
		return nil
	}
	if err := r.decoder(); err != nil {
		return err
	}
	got, err := r.dec.DecodeAll(stored, raw[:0:len(raw)])
	if err == nil && len(got) != len(raw) {
		err = fmt.Errorf("%d bytes, want %d", len(got), len(raw))
	}
	if err != nil {
		return &CorruptError{r.path, pos, fmt.Errorf("zstd chunk: %w", err)}
	}
	return nil
}

func (r *reader) compressed(n int) []byte {
	if len(r.bufs[r.turn]) < n {
		r.bufs[r.turn] = make([]byte, n)
	}
	return r.bufs[r.turn][:n]
}

func (r *reader) decoder() error {
	if r.dec != nil {
		return nil
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(2*ChunkSize),
		zstd.WithDecoderMaxWindow(ChunkSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return fmt.Errorf("snapshot: zstd: %w", err)
	}
	r.dec = dec
	return nil
}

// padding checks the zero bytes from pos to the next section.
func (r *reader) padding(h *hasher, pos int64) error {
	var pad [alignment]byte
	b := pad[:aligned(pos)-pos]
	if err := r.read(b, pos); err != nil {
		return err
	}
	if i := firstNonZero(b); i >= 0 {
		return &CorruptError{r.path, pos + int64(i), errors.New("padding is not zero")}
	}
	if h != nil {
		h.write(make([]byte, len(b)))
	}
	return nil
}
