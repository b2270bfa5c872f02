package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Batch header layout; doc/format/segment.md has the table.
const (
	batchMagic  = 0x54414255 // "UBAT"
	batchHeader = 40
	headSum     = 32 // offset of the checksum of the 32 bytes before it
	bodySum     = 36 // offset of the checksum of the 36 bytes before it and of everything behind it
	flagFooter  = 1  // the last batch of a sealed file: no frames
	flagIndex   = 2  // the batch before it, if there is an index: no frames either
	frameHeader = 4  // length of a frame
	alignment   = 8
)

// batch is a decoded batch.
type batch struct {
	flags   uint32
	first   uint64 // ordinal of the first frame; of index and footer, one past the last
	count   uint32 // frames; of the footer, bytes of the index batch in front of it
	synced  int64  // everything before this offset was durable when the batch was written
	end     int64  // offset behind the padding
	payload []byte // count times {length, bytes}
}

// pad returns n rounded up to the alignment.
func pad(n int) int { return (n + alignment - 1) &^ (alignment - 1) }

// summer computes checksums; its buffer keeps the loops free of allocation.
type summer struct{ buf [12 + headSum]byte }

// head is the checksum of a batch header. It covers the segment it belongs to and the place where it
// lies, so neither a stale block of another file nor a batch inside the bytes of a frame passes as one.
func (s *summer) head(tag uint32, off int64, header []byte) uint32 {
	binary.LittleEndian.PutUint32(s.buf[0:], tag)
	binary.LittleEndian.PutUint64(s.buf[4:], uint64(off))
	copy(s.buf[12:], header[:headSum])
	return crc32.Checksum(s.buf[:], castagnoli)
}

// body is the checksum of a whole batch, from header to padding.
func body(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:bodySum], castagnoli), castagnoli, b[batchHeader:])
}

// seal fills in the header of the batch b, whose frames are in place and padded, for offset off.
func (s *summer) seal(b []byte, tag uint32, off int64, x batch, payload int) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], batchMagic)
	le.PutUint32(b[4:], x.flags)
	le.PutUint64(b[8:], x.first)
	le.PutUint32(b[16:], x.count)
	le.PutUint32(b[20:], uint32(payload))
	le.PutUint64(b[24:], uint64(x.synced))
	le.PutUint32(b[headSum:], s.head(tag, off, b))
	le.PutUint32(b[bodySum:], body(b))
}

// footer returns the footer batch for offset off. By writing it one promises everything before it. The last
// index bytes of that are the index batch.
func (s *summer) footer(tag uint32, off int64, next uint64, index int) []byte {
	b := make([]byte, batchHeader)
	s.seal(b, tag, off, batch{flags: flagFooter, first: next, count: uint32(index), synced: off}, 0)
	return b
}

// index returns the batch for offset off that holds the index of the frames before next.
func (s *summer) index(tag uint32, off, synced int64, next uint64, index []byte) []byte {
	b := make([]byte, batchHeader+pad(len(index)))
	copy(b[batchHeader:], index)
	s.seal(b, tag, off, batch{flags: flagIndex, first: next, synced: synced}, len(index))
	return b
}

var (
	errNoBatch   = errors.New("no batch header")
	errPayload   = fmt.Errorf("batch payload: %w", errChecksum)
	errFrames    = errors.New("batch does not hold the frames it says")
	errFlags     = errors.New("batch flags are unknown")
	errTrailing  = errors.New("data behind the footer")
	errDuplicate = errors.New("batch repeats ordinals")
	errCutOff    = errors.New("batch is cut off by the end of the file")
	errIndex     = errors.New("the footer and what is in front of it disagree on the index")
)

// decodeHead checks the header of a batch at off and returns the batch without payload, and the
// payload's length. room is the number of bytes from off to the end of the file.
func (s *summer) decodeHead(b []byte, tag uint32, off, room int64) (x batch, payload int, err error) {
	le := binary.LittleEndian
	if le.Uint32(b) != batchMagic || le.Uint32(b[headSum:]) != s.head(tag, off, b) {
		return x, 0, errNoBatch
	}
	n := int64(le.Uint32(b[20:]))
	x = batch{flags: le.Uint32(b[4:]), first: le.Uint64(b[8:]), count: le.Uint32(b[16:]), synced: int64(le.Uint64(b[24:]))}
	if n > MaxBatch || x.synced < 0 || x.synced > off || x.first+uint64(x.count) < x.first {
		return x, 0, errNoBatch // no writer makes such a header, so nothing in it is to be trusted
	}
	x.end = off + batchHeader + int64(pad(int(n)))
	if x.end > off+room {
		return x, 0, errCutOff
	}
	return x, int(n), nil
}

// check verifies a whole batch of a file of the version, of which decodeHead returned x and payload.
func (x *batch) check(version uint32, b []byte, payload int) error {
	if binary.LittleEndian.Uint32(b[bodySum:]) != body(b) {
		return errPayload
	}
	x.payload = b[batchHeader : batchHeader+payload]
	switch {
	case x.flags == 0:
		return x.checkFrames()
	case x.flags == flagFooter:
		if payload != 0 || x.count != 0 && (version == 1 || x.count > batchHeader+MaxIndex || x.count%alignment != 0) {
			return errFrames
		}
		return nil
	case x.flags == flagIndex && version > 1:
		if x.count != 0 || payload == 0 || payload > MaxIndex {
			return errFrames
		}
		return nil
	}
	return errFlags
}

func (x *batch) checkFrames() error {
	if x.count == 0 {
		return errFrames
	}
	rest := x.payload
	for range x.count {
		if len(rest) < frameHeader {
			return errFrames
		}
		n := binary.LittleEndian.Uint32(rest)
		if n > MaxFrame || int(n) > len(rest)-frameHeader {
			return errFrames
		}
		rest = rest[frameHeader+int(n):]
	}
	if len(rest) != 0 {
		return errFrames
	}
	return nil
}

// split cuts the first frame off a checked payload.
func split(payload []byte) (frame, rest []byte) {
	n := frameHeader + int(binary.LittleEndian.Uint32(payload))
	return payload[frameHeader:n:n], payload[n:]
}
