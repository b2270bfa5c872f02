package pyramid

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// The layout; doc/format/pyramid.md has the tables.
const (
	magic      = "USPPYRA1"
	version    = 1
	fixedLen   = 136      // bytes of the header before the schema
	maxSchema  = 1 << 20  // bytes of the schema
	maxLeaf    = 1 << 16  // records of an aggregate of the lowest level
	maxLeaves  = 1 << 24  // aggregates of the lowest level
	maxFile    = 16 << 30 // bytes
	mostAhead  = 4 << 20  // bytes of a level that is read at once
	stretchLen = 48
	aggLen     = 36
)

var (
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	errChecksum = errors.New("checksum mismatch")
	le          = binary.LittleEndian
)

// header is what a file says of itself and its segment.
type header struct {
	runID       string
	base, next  uint64 // ordinals of the frames of the segment: [base, next)
	generation  uint32
	leaf        uint32
	leaves      uint32
	records     uint64
	leftOut     uint64
	lost        uint64
	unread      uint64
	first, last uint64 // steps; 0 without records
	schema      *record.Schema
	kinds       []kind

	tag uint32
	len int64 // bytes of the header
}

// levels are the numbers of aggregates of each level, the lowest first.
func (h *header) levels() []int {
	ns := []int{int(h.leaves)}
	for n := ns[0]; n > 1; ns = append(ns, n) {
		n = (n + factor - 1) / factor
	}
	return ns
}

// align is the next multiple of 8.
func align(n int64) int64 { return (n + 7) &^ 7 }

// blockLen is the length of a block with so many bytes, its checksum and padding included.
func blockLen(n int64) int64 { return align(n + 4) }

// levelLen is the length of a level of n aggregates.
func (h *header) levelLen(n int) int64 {
	return blockLen(int64(n)*stretchLen) + int64(len(h.kinds))*blockLen(int64(n)*aggLen)
}

// size is the length of the file.
func (h *header) size() int64 {
	size := h.len
	for _, n := range h.levels() {
		size += h.levelLen(n)
	}
	return size
}

// place is where a block lies: of the stretches of a level, or, with an element of 0 and more, of its aggregates.
func (h *header) place(l, element int) (off int64, block uint32, n int) {
	ns := h.levels()
	off = h.len
	for i := len(ns) - 1; i > l; i-- {
		off += h.levelLen(ns[i])
		block += uint32(1 + len(h.kinds))
	}
	if n = ns[l]; element >= 0 {
		off += blockLen(int64(n)*stretchLen) + int64(element)*blockLen(int64(n)*aggLen)
	}
	return off, block + uint32(1+element), n
}

// encode makes the file of a segment that has come to its end.
func (z *builder) encode(runID string) ([]byte, error) {
	if len(runID) > segment.MaxRunID || strings.ContainsRune(runID, 0) {
		return nil, fmt.Errorf("run id %q: must be at most %d bytes without NUL", runID, segment.MaxRunID)
	}
	levels := []*level{z.level()}
	for l := levels[0]; len(l.stretches) > 1; levels = append(levels, l) {
		l = l.above(z.kinds)
	}
	leaves := len(levels[0].stretches)
	if leaves > maxLeaves {
		return nil, fmt.Errorf("segment %d: more than %d records", z.base, uint64(maxLeaves)*uint64(z.leaf))
	}
	h := header{
		runID: runID, base: z.base, next: z.next, generation: z.generation, leaf: z.leaf, leaves: uint32(leaves),
		records: z.records, leftOut: z.leftOut, schema: z.schema, kinds: z.kinds,
	}
	for i := range levels[0].stretches {
		s := &levels[0].stretches[i]
		h.lost += s.lost
		h.unread += uint64(s.unread)
	}
	h.first, h.last = levels[0].stretches[0].first, levels[0].stretches[leaves-1].last
	b := h.append(nil)
	if h.size() > maxFile {
		return nil, fmt.Errorf("segment %d: its aggregates are more than %d bytes", z.base, int64(maxFile))
	}
	b = slices.Grow(b, int(h.size())-len(b))
	block := uint32(0)
	for _, l := range slices.Backward(levels) {
		b = h.appendBlock(b, block, func(b []byte) []byte { return appendStretches(b, l.stretches) })
		block++
		for _, as := range l.aggs {
			b = h.appendBlock(b, block, func(b []byte) []byte { return appendAggs(b, as) })
			block++
		}
	}
	return b, nil
}

// append encodes the header and sets its tag and length.
func (h *header) append(dst []byte) []byte {
	text := h.schema.Text()
	h.len = align(fixedLen+int64(len(text))) + 8
	b := make([]byte, h.len)
	copy(b, magic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], uint32(h.len))
	copy(b[16:48], h.runID)
	le.PutUint64(b[48:], h.base)
	le.PutUint64(b[56:], h.next)
	for i, n := range []uint32{h.generation, h.leaf, factor, uint32(len(h.kinds)), h.leaves, uint32(len(text))} {
		le.PutUint32(b[64+4*i:], n)
	}
	for i, n := range []uint64{h.records, h.leftOut, h.lost, h.unread, h.first, h.last} {
		le.PutUint64(b[88+8*i:], n)
	}
	copy(b[fixedLen:], text)
	h.tag = crc32.Checksum(b[:h.len-8], castagnoli)
	le.PutUint32(b[h.len-8:], h.tag)
	return append(dst, b...)
}

// sum is the checksum of a block, which ties it to its file and its place there.
func (h *header) sum(block uint32, payload []byte) uint32 {
	var b [8]byte
	le.PutUint32(b[:], h.tag)
	le.PutUint32(b[4:], block)
	return crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, payload)
}

func (h *header) appendBlock(dst []byte, block uint32, payload func([]byte) []byte) []byte {
	start := len(dst)
	dst = payload(dst)
	dst = le.AppendUint32(dst, h.sum(block, dst[start:]))
	for len(dst)%8 != 0 {
		dst = append(dst, 0)
	}
	return dst
}

func appendStretches(b []byte, ss []stretch) []byte {
	for i := range ss {
		s := &ss[i]
		for _, n := range [...]uint64{s.first, s.last, s.time, s.ordinal, s.lost} {
			b = le.AppendUint64(b, n)
		}
		b = le.AppendUint32(le.AppendUint32(b, s.count), s.unread)
	}
	return b
}

func appendAggs(b []byte, as []agg) []byte {
	for _, of := range [...]func(*agg) uint64{
		func(a *agg) uint64 { return a.min }, func(a *agg) uint64 { return a.max },
		func(a *agg) uint64 { return record.Canonical(a.sum) }, func(a *agg) uint64 { return a.last },
	} {
		for i := range as {
			b = le.AppendUint64(b, of(&as[i]))
		}
	}
	for i := range as {
		b = le.AppendUint32(b, as[i].nans)
	}
	return b
}

// file is an open file of aggregates.
type file struct {
	header
	f    vfs.File
	path string

	level []byte // that was read ahead
	at    int64  // where it lies
}

// schemas parses each text once.
type schemas map[string]*record.Schema

func (s schemas) parse(text []byte) (*record.Schema, error) {
	if known := s[string(text)]; known != nil {
		return known, nil
	}
	parsed, err := record.ParseSchema(text)
	if err == nil && s != nil {
		s[string(text)] = parsed
	}
	return parsed, err
}

// open opens a file and checks its header and its size.
func open(fsys vfs.FS, path string, known schemas) (*file, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	p := &file{f: f, path: path}
	if err := p.readHeader(known); err != nil {
		_ = f.Close() // only read
		return nil, err
	}
	return p, nil
}

// reopen opens a file whose header is known.
func reopen(fsys vfs.FS, path string, h *header) (*file, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	p := &file{header: *h, f: f, path: path}
	var tag [4]byte
	if _, err = f.ReadAt(tag[:], h.len-8); err == io.EOF || err == nil && le.Uint32(tag[:]) != h.tag {
		err = p.corrupt(h.len-8, "it is not the file that was opened before")
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *file) close() { _ = p.f.Close() } // only read

func (p *file) corrupt(off int64, format string, args ...any) error {
	return &CorruptError{File: p.path, Offset: off, Err: fmt.Errorf(format, args...)}
}

func (p *file) readHeader(known schemas) error {
	info, err := p.f.Stat()
	if err != nil {
		return err
	}
	start := make([]byte, min(info.Size(), 4096))
	if _, err := p.f.ReadAt(start, 0); err != nil && err != io.EOF {
		return fmt.Errorf("pyramid %s: %w", p.path, err)
	}
	if !bytes.HasPrefix(start, []byte(magic)) {
		return fmt.Errorf("%s: %w", p.path, ErrNotPyramid)
	}
	if len(start) < fixedLen+8 {
		return p.corrupt(0, "the header is cut off after %d bytes", len(start))
	}
	n := int64(le.Uint32(start[12:]))
	if n < fixedLen+8 || n > fixedLen+maxSchema+16 || n%8 != 0 || n > info.Size() {
		return p.corrupt(12, "a header of %d bytes", n)
	}
	if n > int64(len(start)) {
		start = make([]byte, n)
		if _, err := p.f.ReadAt(start, 0); err != nil && err != io.EOF {
			return fmt.Errorf("pyramid %s: %w", p.path, err)
		}
	}
	b := start[:n]
	if p.tag = le.Uint32(b[n-8:]); crc32.Checksum(b[:n-8], castagnoli) != p.tag {
		return p.corrupt(0, "header: %w", errChecksum)
	}
	if v := le.Uint32(b[8:]); v != version { // only now it is no flipped bit
		return fmt.Errorf("%s: %w: version %d, known is %d", p.path, ErrVersion, v, version)
	}
	if err := p.parse(b, known); err != nil {
		return p.corrupt(0, "header: %w", err)
	}
	if size := p.size(); size != info.Size() {
		return p.corrupt(min(size, info.Size()), "%d bytes, want %d", info.Size(), size)
	}
	return nil
}

// parse decodes the header behind its version, and refuses what no segment has.
func (h *header) parse(b []byte, known schemas) error {
	h.len = int64(len(b))
	h.runID = string(bytes.TrimRight(b[16:48], "\x00"))
	h.base, h.next = le.Uint64(b[48:]), le.Uint64(b[56:])
	var factors, elements, text uint32
	for i, n := range []*uint32{&h.generation, &h.leaf, &factors, &elements, &h.leaves, &text} {
		*n = le.Uint32(b[64+4*i:])
	}
	for i, n := range []*uint64{&h.records, &h.leftOut, &h.lost, &h.unread, &h.first, &h.last} {
		*n = le.Uint64(b[88+8*i:])
	}
	if align(fixedLen+int64(text))+8 != h.len {
		return fmt.Errorf("a schema of %d bytes in a header of %d", text, h.len)
	}
	var err error
	if h.schema, err = known.parse(b[fixedLen : fixedLen+text]); err != nil {
		return err
	}
	h.kinds = kindsOf(h.schema)
	frames := h.next - h.base
	switch {
	case int(elements) != len(h.kinds):
		return fmt.Errorf("%d elements, the schema has %d", elements, len(h.kinds))
	case strings.ContainsRune(h.runID, 0):
		return fmt.Errorf("run id %q", h.runID)
	case h.leaf == 0 || h.leaf > maxLeaf || factors != factor:
		return fmt.Errorf("aggregates of %d records and by %d", h.leaf, factors)
	case h.next <= h.base || frames > math.MaxUint32 || h.records > frames || h.leftOut > frames-h.records || h.unread > frames-h.records-h.leftOut:
		return fmt.Errorf("%d records, %d left out and %d unread frames of %d", h.records, h.leftOut, h.unread, frames)
	case h.leaves > maxLeaves || uint64(h.leaves) != max(1, (h.records+uint64(h.leaf)-1)/uint64(h.leaf)):
		return fmt.Errorf("%d aggregates of %d records", h.leaves, h.records)
	case h.records == 0 && (h.first != 0 || h.last != 0), h.records > 0 && (h.last < h.first || h.last-h.first < h.records-1):
		return fmt.Errorf("steps %d to %d of %d records", h.first, h.last, h.records)
	}
	if again := *h; !bytes.Equal(again.append(nil), b) {
		return errors.New("it has bytes that are none of its fields")
	}
	return nil
}

// ahead reads all blocks of a level at once, if they are not too long. Whether they can be read, and are good, is for read to find.
func (p *file) ahead(l int) {
	off, _, n := p.place(l, -1)
	size := p.levelLen(n)
	if size > mostAhead {
		return
	}
	b := make([]byte, size)
	if got, err := p.f.ReadAt(b, off); err == nil {
		p.level, p.at = b[:got], off
	}
}

// read returns the bytes of a block.
func (p *file) read(off int64, block uint32, n int64) ([]byte, error) {
	b, err := p.bytes(off, n+4)
	if err != nil {
		return nil, err
	}
	if p.sum(block, b[:n]) != le.Uint32(b[n:]) {
		return nil, p.corrupt(off, "block %d: %w", block, errChecksum)
	}
	return b[:n], nil
}

// bytes reads some bytes, or has read them.
func (p *file) bytes(off, n int64) ([]byte, error) {
	if from := off - p.at; from >= 0 && from+n <= int64(len(p.level)) {
		return p.level[from : from+n], nil
	}
	b := make([]byte, n)
	if _, err := p.f.ReadAt(b, off); err == io.EOF {
		return nil, p.corrupt(off, "the file was cut off")
	} else if err != nil {
		return nil, fmt.Errorf("pyramid %s: read at offset %d: %w", p.path, off, err)
	}
	return b, nil
}

// stretches reads those of a level.
func (p *file) stretches(l int) ([]stretch, error) {
	off, block, n := p.place(l, -1)
	b, err := p.read(off, block, int64(n)*stretchLen)
	if err != nil {
		return nil, err
	}
	ss := make([]stretch, n)
	for i := range ss {
		s := &ss[i]
		c := b[i*stretchLen:]
		s.first, s.last, s.time, s.ordinal = le.Uint64(c), le.Uint64(c[8:]), le.Uint64(c[16:]), le.Uint64(c[24:])
		s.lost, s.count, s.unread = le.Uint64(c[32:]), le.Uint32(c[40:]), le.Uint32(c[44:])
	}
	return ss, nil
}

// aggregates reads those of a level and an element.
func (p *file) aggregates(l, element int) ([]agg, error) {
	off, block, n := p.place(l, element)
	b, err := p.read(off, block, int64(n)*aggLen)
	if err != nil {
		return nil, err
	}
	as := make([]agg, n)
	for i := range as {
		word := func(column int) uint64 { return le.Uint64(b[8*(column*n+i):]) }
		as[i] = agg{min: word(0), max: word(1), sum: math.Float64frombits(word(2)), last: word(3), nans: le.Uint32(b[32*n+4*i:])}
	}
	return as, nil
}

// check reads all of a file.
func (p *file) check() error {
	for l := range p.levels() {
		for e := -1; e < len(p.kinds); e++ {
			off, block, n := p.place(l, e)
			each := int64(aggLen)
			if e < 0 {
				each = stretchLen
			}
			if _, err := p.read(off, block, int64(n)*each); err != nil {
				return err
			}
		}
	}
	return nil
}
