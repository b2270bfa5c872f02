package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/usp-project/usp/internal/vfs"
)

const (
	// writebackStep is after how many bytes the kernel is asked to begin writing:
	// the device is then at work while the rest is written, hashed and read back.
	// Smaller steps cost more calls than they gain.
	writebackStep = 1 << 20
	// backStep is how many bytes are read back at once: new memory for more costs a
	// small snapshot as much as the reading itself.
	backStep = 64 << 10
)

// writer lays one file out from front to back.
type writer struct {
	f        vfs.File
	meta     Meta
	sections []Section
	options  Options

	hash    *hasher
	header  []byte
	bufs    buffers // of encrypted pieces
	back    []byte  // what was read back
	keys    fileKeys
	entries []entry
	refs    []*held // of the sections that are not written, where they lie
	bases   []base
	baseErr error
	offset  int64
	started int64    // what is before it is on its way to the device
	sum     [32]byte // of the whole file, once written
}

// write leaves a whole file behind that was compared with the state but not synced.
//
// What bounds it is the hash, so all else is done while the hash runs: the hash
// covers the state itself, queued by the section, and only the footer needs it.
// Reading back before the sync is as good as after it: both read what the kernel
// holds for this file, and a sync that could not write that fails. A state that
// is stored as it is is read back step by step while it is in the processor's
// cache, anything else decoded from the file in a second pass.
func (w *writer) write() error {
	if err := w.body(); err != nil {
		return err
	}
	index := appendIndex(nil, w.entries, w.bases)
	ft := footer{sections: uint32(len(w.entries)), indexOffset: w.offset, indexLen: int64(len(index)), indexCRC: crc(index)}
	w.hash.write(index)
	if err := w.put(index); err != nil {
		return err
	}
	if !w.plain() {
		if err := w.compare(); err != nil {
			return fmt.Errorf("reading back: %w", err)
		}
	}
	ft.total = w.offset + footerLen
	end := appendFooter(nil, ft)
	h := w.hash.stop()
	h.Write(end[:sumOffset])
	sealFooter(end, [32]byte(h.Sum(nil)))
	h.Write(end[sumOffset:])
	w.sum = [32]byte(h.Sum(nil))
	if err := w.put(end); err != nil {
		return err
	}
	if err := w.reopen(end); err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	return nil
}

// plain says that the state is stored as it is.
func (w *writer) plain() bool { return w.options.Codec == None && len(w.options.Recipients) == 0 }

// start begins to hash what is known before anything is written.
func (w *writer) start() {
	var flags uint32
	if len(w.options.Recipients) > 0 {
		flags |= flagSealed
	}
	if len(w.bases) > 0 {
		flags |= flagBases
	}
	w.header = appendHeader(nil, w.meta, w.options.Codec, flags)
	w.hash = newHasher(size(w.sections) <= hashWriteInline)
	w.hash.write(w.header)
	if !w.plain() {
		return
	}
	end := int64(len(w.header))
	for i, s := range w.sections {
		if w.refs[i] != nil {
			continue
		}
		w.hash.write(s.Data)
		end += int64(len(s.Data))
		w.hash.write(make([]byte, aligned(end)-end))
		end = aligned(end)
	}
}

// body writes header and sections.
func (w *writer) body() error {
	var pack *packer
	if w.options.Codec == Zstd {
		var err error
		if pack, err = newPacker(w.options.Level); err != nil {
			return err
		}
		defer pack.enc.Close()
	}
	if err := w.put(w.header); err != nil {
		return err
	}
	w.entries = make([]entry, len(w.sections))
	w.keys = make(fileKeys, len(w.sections))
	for i, s := range w.sections {
		e := &w.entries[i]
		if h := w.refs[i]; h != nil {
			*e = h.entry
			e.sum = h.sum
			continue
		}
		*e = entry{name: s.Name, offset: w.offset, raw: int64(len(s.Data))}
		var err error
		switch {
		case len(s.Data) == 0:
		case len(w.options.Recipients) > 0:
			err = w.seal(e, s, pack, w.options.Recipients, &w.keys[i])
		case pack != nil:
			err = w.zipped(e, s, pack)
		default:
			err = w.asIs(e, s)
		}
		if err != nil {
			return err
		}
		pad := make([]byte, aligned(w.offset)-w.offset)
		if !w.plain() {
			w.hash.write(pad)
		}
		at := w.offset
		if err := w.put(pad); err != nil {
			return err
		}
		back, err := w.readBack(len(pad), at)
		if err != nil {
			return err
		}
		if !bytes.Equal(back, pad) {
			return fmt.Errorf("reading back: the padding of section %q is not zero", s.Name)
		}
	}
	return nil
}

// asIs writes a section without change and reads it back on the way.
func (w *writer) asIs(e *entry, s Section) error {
	e.chunks = make([]chunk, 0, chunkCount(e.raw))
	for i := range chunkCount(e.raw) {
		raw := s.Data[i*ChunkSize:][:rawChunk(e.raw, int(i))]
		c := chunk{stored: uint32(len(raw))}
		at := w.offset
		if err := w.put(raw); err != nil {
			return err
		}
		for len(raw) > 0 {
			step := raw[:min(len(raw), backStep)]
			back, err := w.readBack(len(step), at)
			if err != nil {
				return err
			}
			if !bytes.Equal(back, step) {
				return fmt.Errorf("reading back: section %q differs from the state in chunk %d", s.Name, i)
			}
			c.crc = crc32.Update(c.crc, castagnoli(), back)
			raw = raw[len(step):]
			at += int64(len(step))
		}
		e.chunks = append(e.chunks, c)
		e.stored += int64(c.stored)
	}
	return nil
}

// readBack returns n bytes that the file holds now.
func (w *writer) readBack(n int, at int64) ([]byte, error) {
	if cap(w.back) < n {
		w.back = make([]byte, n)
	}
	back := w.back[:n]
	if _, err := w.f.ReadAt(back, at); err != nil && n > 0 {
		return nil, fmt.Errorf("reading back %s at byte %d: %w", w.f.Name(), at, err)
	}
	return back, nil
}

// zipped writes a section compressed.
func (w *writer) zipped(e *entry, s Section, pack *packer) error {
	e.chunks = make([]chunk, 0, chunkCount(e.raw))
	for i := range chunkCount(e.raw) {
		raw := s.Data[i*ChunkSize:][:rawChunk(e.raw, int(i))]
		stored := pack.pack(w.hash, raw)
		pack.bufs.lent(w.hash.write(stored))
		c := chunk{stored: uint32(len(stored)), zstd: len(stored) < len(raw), crc: crc(stored)}
		if c.zstd {
			e.flags |= flagRawSum
		}
		e.chunks = append(e.chunks, c)
		e.stored += int64(c.stored)
		if err := w.put(stored); err != nil {
			return err
		}
	}
	if e.flags&flagRawSum != 0 {
		e.sum = sha256.Sum256(s.Data)
	}
	return nil
}

// put writes b, which the caller hands to the hasher.
func (w *writer) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := w.f.Write(b)
	w.offset += int64(n)
	if err != nil || w.offset-w.started < writebackStep {
		return err
	}
	// Whole pages only: the last one will be written to again.
	until := w.offset &^ 4095
	from := w.started
	w.started = until
	return vfs.StartWriteback(w.f, from, until-from)
}

// compare decodes the sections just written and compares them with the state
// itself, which is stronger than any checksum and finds an encoder at fault as
// well.
func (w *writer) compare() error {
	r := &reader{f: w.f, path: w.f.Name(), size: w.offset, encrypted: len(w.options.Recipients) > 0, entries: w.entries}
	v := visit{into: r.scratch, check: func(i int, off int64, raw []byte) error {
		if !bytes.Equal(raw, w.sections[i].Data[off:off+int64(len(raw))]) {
			return fmt.Errorf("section %q differs from the state near byte %d", w.sections[i].Name, off)
		}
		return nil
	}}
	if r.encrypted {
		v.identities = w.keys.identity
	}
	return r.scan(nil, v)
}

// reopen reads header, index and footer as any reader will.
func (w *writer) reopen(end []byte) error {
	r, err := open(w.options.FS, w.f.Name())
	if err != nil {
		return err
	}
	defer r.close()
	if !sameMeta(r.meta, w.meta) || r.codec != w.options.Codec || r.encrypted != (len(w.options.Recipients) > 0) {
		return errors.New("the header is not the one written")
	}
	if !slices.EqualFunc(r.entries, w.entries, sameEntry) || !slices.Equal(r.bases, w.bases) {
		return errors.New("the index is not the one written")
	}
	if !bytes.Equal(r.tail[len(r.tail)-footerLen:], end) {
		return errors.New("the footer is not the one written")
	}
	return nil
}

func sameMeta(a, b Meta) bool {
	same := a.Created.UnixNano() == b.Created.UnixNano()
	a.Created = b.Created
	return same && a == b
}

func sameEntry(a, b entry) bool {
	same := slices.Equal(a.chunks, b.chunks)
	return same && a.name == b.name && a.offset == b.offset && a.raw == b.raw && a.stored == b.stored && a.flags == b.flags && a.sum == b.sum
}
