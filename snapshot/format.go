package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// The layout, as in doc/format/snapshot.md:
//
//	header 256 | section data, each 64-aligned | index, 64-aligned | footer 128
//
// The index holds, for each section, an entry and its chunk table, and behind
// them a row for each base. A chunk is ChunkSize bytes of state (the last one of a
// section may be shorter).
const (
	version    = 1
	headerLen  = 256
	entryLen   = 128
	chunkLen   = 8
	baseLen    = 64
	footerLen  = 128
	sumOffset  = 92 // of the SHA-256 in the footer
	alignment  = 64
	nameLen    = 64
	runIDLen   = 32
	maxRatio   = 1024 // a compressed chunk holds at least 1/maxRatio of its state's size
	compressed = 1 << 31
	flagRawSum = 1 << 0 // entry: raw_sha256 is present
	flagKept   = 1 << 1 // entry: the section lies in the base whose number is in the upper half of the flags
	baseShift  = 16
	flagSealed = 1 << 0 // header: the sections are encrypted
	flagBases  = 1 << 2 // header: the index ends with bases

	// ChunkSize is how many bytes of state are checksummed, and compressed, together.
	ChunkSize = 1 << 20
	// MaxSections is the largest number of sections in a snapshot.
	MaxSections = 4096
	// MaxState is the largest state in bytes, all sections together.
	MaxState = 64 << 30

	// Encryption adds 1/4096 to a section, and up to 3 chunks for keys and ends.
	maxIndex = MaxSections*entryLen + (MaxState/ChunkSize+MaxState/ChunkSize/4096+4*MaxSections)*chunkLen + MaxSections*baseLen
)

const (
	magic       = "USPSNAP1"
	footerMagic = "USPSNAPF"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }

// chunk is one row of a chunk table.
type chunk struct {
	stored uint32 // bytes in the file
	zstd   bool
	crc    uint32 // CRC-32C of the stored bytes
}

// entry is one section of the index.
type entry struct {
	name   string
	offset int64
	raw    int64
	stored int64
	flags  uint32
	sum    [32]byte // SHA-256 of the state, if flags has flagRawSum
	chunks []chunk
	at     int64 // of the entry in the index, when it was read
}

// kept says that the section lies in another file: offset and stored are there,
// and so are the chunks.
func (e *entry) kept() bool { return e.flags&flagKept != 0 }

func (e *entry) base() int { return int(e.flags >> baseShift) }

// rawChunk is the number of state bytes in chunk i of a section of n bytes.
func rawChunk(n int64, i int) int { return int(min(n-int64(i)*ChunkSize, ChunkSize)) }

func chunkCount(n int64) int64 { return (n + ChunkSize - 1) / ChunkSize }

func aligned(n int64) int64 { return (n + alignment - 1) &^ (alignment - 1) }

// placed is an error at an offset relative to what was parsed.
type placed struct {
	at  int64
	err error
}

func (p *placed) Error() string { return p.err.Error() }
func (p *placed) Unwrap() error { return p.err }

func at(off int64, format string, args ...any) error {
	return &placed{off, fmt.Errorf(format, args...)}
}

// shift moves a placed error by n bytes.
func shift(err error, n int64) error {
	var p *placed
	if errors.As(err, &p) {
		p.at += n
	}
	return err
}

// inFile turns a placed error into a *CorruptError and leaves others alone.
func inFile(file string, base int64, err error) error {
	var p *placed
	if errors.As(err, &p) {
		return &CorruptError{File: file, Offset: base + p.at, Err: p.err}
	}
	return err
}

func appendHeader(dst []byte, m Meta, codec Codec, flags uint32) []byte {
	var b [headerLen]byte
	copy(b[:], magic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], headerLen)
	le.PutUint32(b[16:], flags)
	le.PutUint32(b[20:], m.Reason)
	copy(b[24:24+runIDLen], m.RunID)
	le.PutUint32(b[56:], m.Generation)
	le.PutUint32(b[60:], uint32(codec))
	le.PutUint64(b[64:], m.Step)
	le.PutUint64(b[72:], m.Seq)
	le.PutUint64(b[80:], m.TreeSize)
	le.PutUint64(b[88:], uint64(m.Created.UnixNano()))
	copy(b[96:], m.Schema[:])
	copy(b[128:], m.TreeRoot[:])
	le.PutUint32(b[headerLen-4:], crc(b[:headerLen-4]))
	return append(dst, b[:]...)
}

// parseHeader reads the first headerLen bytes of a file that begins with magic.
func parseHeader(b []byte) (m Meta, codec Codec, flags uint32, err error) {
	le := binary.LittleEndian
	if crc(b[:headerLen-4]) != le.Uint32(b[headerLen-4:]) {
		return Meta{}, 0, 0, at(0, "header checksum differs")
	}
	// Every version keeps magic, version, length and the checksum at the end
	// of the header where they are, so that newer and damaged stay apart.
	flags = le.Uint32(b[16:])
	if le.Uint32(b[8:]) != version || flags&^(flagSealed|flagBases) != 0 || le.Uint32(b[60:]) > uint32(Zstd) {
		return Meta{}, 0, 0, ErrVersion
	}
	if n := le.Uint32(b[12:]); n != headerLen {
		return Meta{}, 0, 0, at(12, "header length %d, want %d", n, headerLen)
	}
	if flags == flagSealed|flagBases {
		return Meta{}, 0, 0, at(16, "an encrypted snapshot that refers to others")
	}
	id, err := parsePadded(b[24 : 24+runIDLen])
	if err != nil {
		return Meta{}, 0, 0, at(24, "run id: %w", err)
	}
	if i := firstNonZero(b[160 : headerLen-4]); i >= 0 {
		return Meta{}, 0, 0, at(160+int64(i), "reserved byte is not zero")
	}
	m = Meta{
		RunID:      id,
		Reason:     le.Uint32(b[20:]),
		Generation: le.Uint32(b[56:]),
		Step:       le.Uint64(b[64:]),
		Seq:        le.Uint64(b[72:]),
		TreeSize:   le.Uint64(b[80:]),
		Created:    time.Unix(0, int64(le.Uint64(b[88:]))).UTC(),
		Schema:     [32]byte(b[96:128]),
		TreeRoot:   [32]byte(b[128:160]),
	}
	return m, Codec(le.Uint32(b[60:])), flags, checkRunID(id)
}

func appendIndex(dst []byte, entries []entry, bases []base) []byte {
	le := binary.LittleEndian
	for i := range entries {
		e := &entries[i]
		var b [entryLen]byte
		copy(b[:nameLen], e.name)
		le.PutUint64(b[64:], uint64(e.offset))
		le.PutUint64(b[72:], uint64(e.raw))
		le.PutUint64(b[80:], uint64(e.stored))
		le.PutUint32(b[88:], uint32(len(e.chunks)))
		le.PutUint32(b[92:], e.flags)
		copy(b[96:], e.sum[:])
		dst = append(dst, b[:]...)
		for _, c := range e.chunks {
			size := c.stored
			if c.zstd {
				size |= compressed
			}
			dst = le.AppendUint32(dst, size)
			dst = le.AppendUint32(dst, c.crc)
		}
	}
	for i := range bases {
		dst = bases[i].append(dst)
	}
	return dst
}

// parseIndex reads count sections, of which those that are not kept elsewhere
// must fill the file exactly from the header to end, the offset of the index.
func parseIndex(b []byte, count uint32, end int64, flags uint32) ([]entry, []base, error) {
	if count > MaxSections || int64(count)*entryLen > int64(len(b)) {
		return nil, nil, at(0, "index of %d bytes cannot hold %d sections", len(b), count)
	}
	entries := make([]entry, 0, count)
	seen := make(map[string]bool, count)
	next, total, pos := int64(headerLen), int64(0), 0
	for range count {
		e, n, err := parseEntry(b[pos:], next, end, flags)
		if err != nil {
			return nil, nil, shift(err, int64(pos))
		}
		if seen[e.name] {
			return nil, nil, at(int64(pos), "section %q is there twice", e.name)
		}
		seen[e.name] = true
		if total += e.raw; total > MaxState {
			return nil, nil, at(int64(pos), "state larger than %d bytes", int64(MaxState))
		}
		if !e.kept() {
			next = aligned(e.offset + e.stored)
		}
		e.at = int64(pos)
		pos += n
		entries = append(entries, e)
	}
	if next != end {
		return nil, nil, at(0, "sections end at byte %d, the index begins at %d", next, end)
	}
	if flags&flagBases != 0 {
		bases, err := parseBases(b[pos:], entries)
		return entries, bases, shift(err, int64(pos))
	}
	if pos != len(b) {
		return nil, nil, at(int64(pos), "%d bytes too many in the index", len(b)-pos)
	}
	return entries, nil, nil
}

// parseEntry reads one entry and its chunk table and returns their length.
func parseEntry(b []byte, offset, end int64, flags uint32) (entry, int, error) {
	if len(b) < entryLen {
		return entry{}, 0, at(0, "index ends inside an entry")
	}
	le := binary.LittleEndian
	name, err := parsePadded(b[:nameLen])
	if err == nil {
		err = checkSectionName(name)
	}
	if err != nil {
		return entry{}, 0, at(0, "section name: %w", err)
	}
	e := entry{name: name, flags: le.Uint32(b[92:]), sum: [32]byte(b[96:128])}
	encrypted := flags&flagSealed != 0
	switch {
	case e.flags&^(flagRawSum|flagKept|0xffff<<baseShift) != 0, !e.kept() && e.base() != 0:
		return entry{}, 0, fmt.Errorf("section %q has flags %#x: %w", name, e.flags, ErrVersion)
	case e.flags&flagRawSum == 0 && e.sum != [32]byte{}:
		return entry{}, 0, at(96, "digest without its flag")
	case encrypted && e.flags != 0:
		return entry{}, 0, at(92, "digest of an encrypted state")
	case e.kept():
		return parseKept(e, b, flags)
	}
	off, raw, stored, chunks := le.Uint64(b[64:]), le.Uint64(b[72:]), le.Uint64(b[80:]), int64(le.Uint32(b[88:]))
	switch {
	case off != uint64(offset):
		return entry{}, 0, at(64, "section %q at byte %d, want %d", name, off, offset)
	case stored > uint64(end-offset):
		return entry{}, 0, at(80, "section %q runs past the index", name)
	case raw > MaxState, !encrypted && chunkCount(int64(raw)) != chunks, encrypted && chunkCount(int64(stored)) != chunks:
		return entry{}, 0, at(72, "section %q of %d bytes, %d stored, in %d chunks", name, raw, stored, chunks)
	case encrypted && (raw > stored*maxRatio || raw == 0 && stored != 0):
		return entry{}, 0, at(80, "section %q: %d bytes stored for %d", name, stored, raw)
	case int64(len(b)-entryLen) < chunks*chunkLen:
		return entry{}, 0, at(entryLen, "index ends inside a chunk table")
	}
	e.offset, e.raw, e.stored = offset, int64(raw), int64(stored)
	return parseChunks(e, b[entryLen:entryLen+chunks*chunkLen], encrypted)
}

// fits says whether a chunk of n bytes of state can be stored like that.
func (c chunk) fits(n int) bool {
	if c.zstd {
		return int(c.stored) < n && int64(c.stored)*maxRatio >= int64(n)
	}
	return int(c.stored) == n
}

func parseChunks(e entry, b []byte, encrypted bool) (entry, int, error) {
	le := binary.LittleEndian
	e.chunks = make([]chunk, 0, len(b)/chunkLen)
	var sum int64
	for i := range len(b) / chunkLen {
		row := b[i*chunkLen:]
		size, raw := le.Uint32(row), 0
		if encrypted { // a table of the stored bytes
			raw = rawChunk(e.stored, i)
		} else {
			raw = rawChunk(e.raw, i)
		}
		c := chunk{stored: size &^ compressed, zstd: size&compressed != 0, crc: le.Uint32(row[4:])}
		if !c.fits(raw) || c.zstd && encrypted {
			return entry{}, 0, at(int64(entryLen+i*chunkLen), "chunk %d of section %q: %d bytes stored for %d", i, e.name, c.stored, raw)
		}
		sum += int64(c.stored)
		e.chunks = append(e.chunks, c)
	}
	if sum != e.stored {
		return entry{}, 0, at(80, "section %q: %d bytes stored, its chunks hold %d", e.name, e.stored, sum)
	}
	return e, entryLen + len(b), nil
}

// footer is the fixed end of a file.
type footer struct {
	sections    uint32
	indexOffset int64
	indexLen    int64
	indexCRC    uint32
	total       int64
}

// appendFooter leaves the SHA-256 and the checksum behind it at zero; they are
// known only when everything before them has been hashed.
func appendFooter(dst []byte, ft footer) []byte {
	var b [footerLen]byte
	copy(b[:], footerMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], ft.sections)
	le.PutUint64(b[16:], uint64(ft.indexOffset))
	le.PutUint64(b[24:], uint64(ft.indexLen))
	le.PutUint64(b[32:], uint64(ft.total))
	le.PutUint32(b[40:], ft.indexCRC)
	return append(dst, b[:]...)
}

// sealFooter fills in what appendFooter left open.
func sealFooter(b []byte, sum [32]byte) {
	copy(b[sumOffset:], sum[:])
	binary.LittleEndian.PutUint32(b[footerLen-4:], crc(b[:footerLen-4]))
}

// parseFooter reads the last footerLen bytes of a file of size bytes.
func parseFooter(b []byte, size int64) (footer, error) {
	le := binary.LittleEndian
	total := le.Uint64(b[32:])
	if crc(b[:footerLen-4]) != le.Uint32(b[footerLen-4:]) {
		// A cut file ends in something else altogether; a damaged footer still
		// has its magic or its size.
		if string(b[:8]) != footerMagic && total != uint64(size) {
			return footer{}, at(0, "%w", ErrTruncated)
		}
		return footer{}, at(0, "footer checksum differs")
	}
	if string(b[:8]) != footerMagic {
		return footer{}, at(0, "footer magic differs")
	}
	if le.Uint32(b[8:]) != version {
		return footer{}, at(8, "footer version %d under a header of version %d", le.Uint32(b[8:]), version)
	}
	if total != uint64(size) {
		return footer{}, at(32, "footer says %d bytes, file has %d", total, size)
	}
	if i := firstNonZero(b[44:sumOffset]); i >= 0 {
		return footer{}, at(44+int64(i), "reserved byte is not zero")
	}
	off, n := le.Uint64(b[16:]), le.Uint64(b[24:])
	if off < headerLen || off%alignment != 0 || off > total || n > maxIndex || off+n != total-footerLen {
		return footer{}, at(16, "index at byte %d with %d bytes does not fit a file of %d", off, n, size)
	}
	return footer{le.Uint32(b[12:]), int64(off), int64(n), le.Uint32(b[40:]), size}, nil
}

func firstNonZero(b []byte) int {
	return bytes.IndexFunc(b, func(r rune) bool { return r != 0 })
}

// parsePadded reads a zero-padded string.
func parsePadded(b []byte) (string, error) {
	n := bytes.IndexByte(b, 0)
	if n < 0 {
		n = len(b)
	}
	if firstNonZero(b[n:]) >= 0 {
		return "", errors.New("bytes behind the terminating zero")
	}
	return string(b[:n]), nil
}

func checkRunID(id string) error {
	if id == "" || len(id) > runIDLen {
		return at(24, "run id %q: want 1 to %d bytes", id, runIDLen)
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' || c == '/' {
			return at(24, "run id %q: want printable ASCII without space or slash", id)
		}
	}
	return nil
}

func checkSectionName(name string) error {
	if name == "" || len(name) > nameLen {
		return fmt.Errorf("%q: want 1 to %d bytes", name, nameLen)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("%q: want only letters, digits, '.', '_' and '-'", name)
		}
	}
	return nil
}
