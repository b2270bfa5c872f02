package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"github.com/usp-project/usp/internal/vfs"
)

// FileName is the name of the snapshot of a step: STEP-GENERATION.snap with the
// numbers padded, so that names sort by step.
func FileName(step uint64, generation uint32) string {
	return fmt.Sprintf("%020d-%04d.snap", step, generation)
}

// Write makes the snapshot of sections durable in dir, which must exist, and
// returns its name, size and SHA-256. When it returns nil the file is on stable
// storage under its name and has been read back and compared with sections; when
// it returns an error no file of that name was added. An existing snapshot of the
// same step and generation is left alone: the error then is fs.ErrExist.
//
// The state is written in chunks of ChunkSize and never copied as a whole;
// sections must not change until Write returns.
func Write(dir string, m Meta, sections []Section, o Options) (Info, error) {
	o = o.withDefaults()
	if m.Created.IsZero() {
		m.Created = o.Now()
	}
	if err := check(m, sections, o); err != nil {
		return Info{}, fmt.Errorf("snapshot of step %d: %w", m.Step, err)
	}
	info := Info{Name: FileName(m.Step, m.Generation), Meta: m}
	err := vfs.Create(o.FS, filepath.Join(dir, info.Name), 0o600, func(f vfs.File) error {
		w := &writer{f: f, hash: newHasher()}
		defer w.hash.stop()
		if err := w.write(m, sections, o); err != nil {
			return err
		}
		info.Size, info.SHA256 = w.offset, w.sum
		if err := f.Sync(); err != nil {
			return err
		}
		return readBack(o.FS, f.Name(), m, sections)
	})
	if err != nil {
		return Info{}, fmt.Errorf("snapshot of step %d: %w", m.Step, err)
	}
	info.Verified = true
	return info, nil
}

func check(m Meta, sections []Section, o Options) error {
	if err := checkRunID(m.RunID); err != nil {
		return err
	}
	if o.Codec > Zstd {
		return fmt.Errorf("unknown codec %d", o.Codec)
	}
	return checkSections(sections)
}

func checkSections(sections []Section) error {
	if len(sections) > MaxSections {
		return fmt.Errorf("%d sections: at most %d", len(sections), MaxSections)
	}
	seen := make(map[string]bool, len(sections))
	var total int64
	for _, s := range sections {
		if err := checkSectionName(s.Name); err != nil {
			return fmt.Errorf("section name %w", err)
		}
		if seen[s.Name] {
			return fmt.Errorf("section %q is there twice", s.Name)
		}
		seen[s.Name] = true
		if total += int64(len(s.Data)); total > MaxState {
			return fmt.Errorf("state larger than %d bytes", int64(MaxState))
		}
	}
	return nil
}

// writer lays one file out from front to back.
type writer struct {
	f      vfs.File
	hash   *hasher
	offset int64
	sum    [32]byte // of the whole file, once written
}

func (w *writer) write(m Meta, sections []Section, o Options) error {
	var pack *packer
	if o.Codec == Zstd {
		var err error
		if pack, err = newPacker(o.Level); err != nil {
			return err
		}
		defer pack.enc.Close()
	}
	if err := w.put(appendHeader(nil, m, o.Codec)); err != nil {
		return err
	}
	entries := make([]entry, len(sections))
	for i, s := range sections {
		if err := w.section(&entries[i], s, pack); err != nil {
			return err
		}
	}
	ft := footer{sections: uint32(len(sections)), indexOffset: w.offset}
	tail := appendIndex(nil, entries)
	ft.indexLen, ft.indexCRC = int64(len(tail)), crc(tail)
	ft.total = w.offset + ft.indexLen + footerLen
	tail = appendFooter(tail, ft)
	end := tail[len(tail)-footerLen:]
	h := w.hash.stop()
	h.Write(tail[:len(tail)-footerLen+sumOffset])
	sealFooter(end, [32]byte(h.Sum(nil)))
	h.Write(end[sumOffset:])
	w.sum = [32]byte(h.Sum(nil))
	n, err := w.f.Write(tail)
	w.offset += int64(n)
	return err
}

func (w *writer) put(b []byte) error {
	w.hash.write(b)
	n, err := w.f.Write(b)
	w.offset += int64(n)
	return err
}

func (w *writer) section(e *entry, s Section, pack *packer) error {
	*e = entry{name: s.Name, offset: w.offset, raw: int64(len(s.Data))}
	e.chunks = make([]chunk, 0, chunkCount(e.raw))
	for i := range chunkCount(e.raw) {
		raw := s.Data[i*ChunkSize:][:rawChunk(e.raw, int(i))]
		stored := raw
		if pack != nil {
			stored = pack.pack(raw)
		}
		zipped := len(stored) < len(raw)
		if zipped {
			e.flags |= flagRawSum
		}
		e.chunks = append(e.chunks, chunk{stored: uint32(len(stored)), zstd: zipped, crc: crc(stored)})
		e.stored += int64(len(stored))
		if err := w.put(stored); err != nil {
			return err
		}
	}
	if e.flags&flagRawSum != 0 {
		e.sum = sha256.Sum256(s.Data)
	}
	return w.put(make([]byte, aligned(w.offset)-w.offset))
}

// packer compresses chunks into two buffers in turn, because the hasher may
// still be reading the one before.
type packer struct {
	enc  *zstd.Encoder
	bufs [2][]byte
	turn int
}

func newPacker(level int) (*packer, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithWindowSize(ChunkSize))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &packer{enc: enc}, nil
}

// pack returns raw compressed, or raw itself when that is not smaller.
func (p *packer) pack(raw []byte) []byte {
	p.turn ^= 1
	b := p.enc.EncodeAll(raw, p.bufs[p.turn][:0])
	// The format bounds how far a chunk may expand, so that a small hostile
	// file cannot ask for unbounded memory. A zstd skippable frame fills up.
	if least := (len(raw) + maxRatio - 1) / maxRatio; len(b) < least {
		fill := max(least-len(b)-8, 0)
		b = binary.LittleEndian.AppendUint32(b, 0x184D2A50)
		b = binary.LittleEndian.AppendUint32(b, uint32(fill))
		b = append(b, make([]byte, fill)...)
	}
	p.bufs[p.turn] = b
	if len(b) >= len(raw) {
		return raw
	}
	return b
}

// readBack decodes the file just written and compares it with the state itself,
// which is stronger than any checksum and finds an encoder at fault as well.
func readBack(fsys vfs.FS, path string, m Meta, sections []Section) error {
	r, err := open(fsys, path)
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	defer r.f.Close()
	if !sameMeta(r.meta, m) || len(r.entries) != len(sections) {
		return errors.New("reading back: the header is not the one written")
	}
	for i := range sections {
		if r.entries[i].name != sections[i].Name || r.entries[i].raw != int64(len(sections[i].Data)) {
			return fmt.Errorf("reading back: section %q is not as written", sections[i].Name)
		}
	}
	err = r.scan(nil, r.scratch, func(i int, off int64, raw []byte) error {
		if !bytes.Equal(raw, sections[i].Data[off:off+int64(len(raw))]) {
			return fmt.Errorf("section %q differs from the state near byte %d", sections[i].Name, off)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	return nil
}

func sameMeta(a, b Meta) bool {
	same := a.Created.UnixNano() == b.Created.UnixNano()
	a.Created = b.Created
	return same && a == b
}
