package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

// In an encrypted snapshot each section that is not empty is an age file. Inside
// it, each chunk follows a word like that of a chunk table: its size, and whether
// it is compressed. The chunk table in the index is of the age file itself, cut
// every ChunkSize bytes, and says nothing about what is inside.
const (
	ageIntro  = "age-encryption.org/v1\n"
	frameWord = 4
)

// fileKeys holds, from when a section was encrypted until it was read back, the
// key that age drew for it.
type fileKeys [][]byte

func (k fileKeys) identity(i int) []age.Identity {
	return []age.Identity{age.NewInjectedFileKeyIdentity(k[i])}
}

func (k fileKeys) forget() {
	for _, key := range k {
		clear(key)
	}
}

// witness is a recipient that keeps a copy of the file key, so that what was
// written can be decrypted once and compared.
type witness struct {
	age.Recipient
	key *[]byte
}

func (w witness) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	*w.key = bytes.Clone(fileKey)
	if r, ok := w.Recipient.(age.RecipientWithLabels); ok {
		return r.WrapWithLabels(fileKey)
	}
	stanzas, err := w.Wrap(fileKey)
	return stanzas, nil, err
}

// seal writes one section encrypted and keeps its file key in key.
func (w *writer) seal(e *entry, s Section, pack *packer, recipients []age.Recipient, key *[]byte) error {
	to := append([]age.Recipient{witness{recipients[0], key}}, recipients[1:]...)
	out := &pieces{w: w, e: e}
	enc, err := age.Encrypt(out, to...)
	if err != nil {
		return fmt.Errorf("encrypting section %q: %w", s.Name, err)
	}
	for i := range chunkCount(e.raw) {
		raw := s.Data[i*ChunkSize:][:rawChunk(e.raw, int(i))]
		stored := pack.pack(nil, raw)
		word := uint32(len(stored))
		if len(stored) < len(raw) {
			word |= compressed
		}
		if _, err := enc.Write(binary.LittleEndian.AppendUint32(nil, word)); err != nil {
			return err
		}
		if _, err := enc.Write(stored); err != nil {
			return err
		}
	}
	if err := enc.Close(); err != nil {
		return err
	}
	return out.flush()
}

// pieces cuts an age file into the rows of a chunk table.
type pieces struct {
	w   *writer
	e   *entry
	buf []byte
}

func (p *pieces) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if p.buf == nil {
			p.buf = p.w.bufs.next(p.w.hash, ChunkSize)[:0]
		}
		k := min(len(b), ChunkSize-len(p.buf))
		p.buf = append(p.buf, b[:k]...)
		b = b[k:]
		if len(p.buf) == ChunkSize {
			if err := p.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (p *pieces) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	p.e.chunks = append(p.e.chunks, chunk{stored: uint32(len(p.buf)), crc: crc(p.buf)})
	p.e.stored += int64(len(p.buf))
	p.w.bufs.lent(p.w.hash.write(p.buf))
	err := p.w.put(p.buf)
	p.buf = nil
	return err
}

// storedReader reads the stored bytes of a section; each is checked before it is
// handed out. err is what went wrong below, which a consumer may have disguised.
type storedReader struct {
	r    *reader
	h    *hasher
	e    *entry
	next int // row of the chunk table
	pos  int64
	rest []byte
	err  error
}

func (s *storedReader) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		if s.err == nil {
			s.err = s.fill()
		}
		if s.err != nil {
			return 0, s.err
		}
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *storedReader) fill() error {
	if s.next == len(s.e.chunks) {
		return io.EOF
	}
	c := s.e.chunks[s.next]
	b := s.r.bufs.next(s.h, int(c.stored))
	if err := s.r.read(b, s.pos); err != nil {
		return err
	}
	s.r.bufs.lent(s.h.write(b))
	if crc(b) != c.crc {
		return s.r.corrupt(s.pos, "checksum of the piece of %d bytes differs", c.stored)
	}
	if s.next == 0 && !bytes.HasPrefix(b, []byte(ageIntro)) {
		return s.r.corrupt(s.pos, "section %q of an encrypted snapshot is no age file", s.e.name)
	}
	s.pos += int64(c.stored)
	s.next++
	s.rest = b
	return nil
}

// sealed reads one section of an encrypted snapshot: with identities it hands out
// the state, without it checks the stored bytes.
func (r *reader) sealed(h *hasher, i int, v visit) error {
	e := &r.entries[i]
	src := &storedReader{r: r, h: h, e: e, pos: e.offset}
	if v.identities == nil {
		for src.err == nil {
			src.err = src.fill()
		}
	} else if e.raw > 0 {
		if err := r.unseal(src, i, v); err != nil && (src.err == nil || src.err == io.EOF) {
			return err
		}
	}
	if src.err != nil && src.err != io.EOF {
		return src.err
	}
	return nil
}

func (r *reader) unseal(src *storedReader, i int, v visit) error {
	e := &r.entries[i]
	plain, err := age.Decrypt(src, v.identities(i)...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return fmt.Errorf("snapshot %s, section %q: %w", r.path, e.name, ErrWrongIdentity)
	}
	if err != nil {
		return r.corrupt(e.offset, "section %q: %w", e.name, err)
	}
	for c := range int(chunkCount(e.raw)) {
		err := r.unsealChunk(plain, int64(c)*ChunkSize, rawChunk(e.raw, c), i, v)
		var failed *rejected
		if errors.As(err, &failed) {
			return failed.err
		}
		if err != nil {
			return r.corrupt(e.offset, "section %q, chunk %d: %w", e.name, c, err)
		}
	}
	// Only the end of the stream says that nothing was cut off.
	if n, err := io.ReadFull(plain, make([]byte, 1)); n != 0 || err != io.EOF {
		return r.corrupt(e.offset, "section %q does not end after %d bytes of state: %v", e.name, e.raw, err)
	}
	return nil
}

// rejected is an error of visit.check, which says nothing about the file.
type rejected struct{ err error }

func (e *rejected) Error() string { return e.err.Error() }

func (r *reader) unsealChunk(plain io.Reader, off int64, n, i int, v visit) error {
	var word [frameWord]byte
	if _, err := io.ReadFull(plain, word[:]); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint32(word[:])
	c := chunk{stored: size &^ compressed, zstd: size&compressed != 0}
	if !c.fits(n) {
		return fmt.Errorf("%d bytes stored for %d", c.stored, n)
	}
	raw := v.into(i, off, n)
	if c.zstd {
		stored := r.inner.next(nil, int(c.stored))
		if _, err := io.ReadFull(plain, stored); err != nil {
			return err
		}
		if err := r.unpack.unpack(raw, stored); err != nil {
			return err
		}
	} else if _, err := io.ReadFull(plain, raw); err != nil {
		return err
	}
	if err := v.checked(i, off, raw); err != nil {
		return &rejected{err}
	}
	return nil
}
