package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// FrameKind tells what a telemetry frame holds.
type FrameKind uint8

// The kinds of telemetry frames.
const (
	KindRecord FrameKind = 1 // one step's persisted fields
	KindLost   FrameKind = 2 // a range of sequence numbers that was not stored, and why
)

// LostReason says why records were not stored.
type LostReason uint8

// The reasons for a loss.
const (
	LostOverrun  LostReason = 1 // the producer lapped the recorder in the ring
	LostTorn     LostReason = 2 // the producer died while it wrote the slot, or the slot failed its checksum
	LostStorage  LostReason = 3 // drained, but no file could take it
	LostVanished LostReason = 4 // the ring was gone before it was drained
)

// String returns the reason's name.
func (r LostReason) String() string {
	switch r {
	case LostOverrun:
		return "overrun"
	case LostTorn:
		return "torn"
	case LostStorage:
		return "storage"
	case LostVanished:
		return "vanished"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// ErrFrame is wrapped by every error about a telemetry frame that is not well formed.
var ErrFrame = errors.New("record: invalid telemetry frame")

// Frame is a decoded telemetry frame. It has no place for digest fields.
type Frame struct {
	Kind       FrameKind
	Generation uint32
	Seq        uint64     // of the record, or first of the lost range
	To         uint64     // lost range: one past its last sequence number
	Reason     LostReason // lost range: why
	Words      []uint64   // record: step, time, then the persisted fields; reused by the next decode
}

// Step returns the step of a record frame.
func (f *Frame) Step() uint64 { return f.Words[0] }

// Time returns the input time of a record frame in Unix nanoseconds.
func (f *Frame) Time() int64 { return int64(f.Words[1]) }

// Float64 returns element j of persisted field i of s.
func (f *Frame) Float64(s *Schema, i, j int) float64 {
	return math.Float64frombits(f.Words[s.offsets[i]+j])
}

// Uint64 returns element j of persisted field i of s as its raw word.
func (f *Frame) Uint64(s *Schema, i, j int) uint64 { return f.Words[s.offsets[i]+j] }

const frameHead = 16 // kind and generation, then sequence number

func appendHead(dst []byte, k FrameKind, gen uint32, seq uint64) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(gen)<<32|uint64(k))
	return binary.LittleEndian.AppendUint64(dst, seq)
}

// AppendRecord appends the frame of one record to dst. stored is the persisted prefix of its payload:
// payload[:Schema.StoredWords()].
func AppendRecord(dst []byte, gen uint32, seq uint64, stored []uint64) []byte {
	dst = appendHead(dst, KindRecord, gen, seq)
	for _, w := range stored {
		dst = binary.LittleEndian.AppendUint64(dst, w)
	}
	return dst
}

// AppendLost appends the frame of a lost range [from, to) to dst.
func AppendLost(dst []byte, gen uint32, from, to uint64, reason LostReason) []byte {
	dst = appendHead(dst, KindLost, gen, from)
	dst = binary.LittleEndian.AppendUint64(dst, to)
	return binary.LittleEndian.AppendUint64(dst, uint64(reason))
}

// frameFits reports whether a frame can have as many bytes.
func frameFits(b []byte) bool {
	return len(b) >= frameHead+16 && len(b)%8 == 0 && len(b) <= frameHead+8*(headWords+MaxElements)
}

// DecodeFrame decodes b into f, reusing f.Words. It accepts exactly what AppendRecord and AppendLost produce;
// the error wraps ErrFrame.
func DecodeFrame(b []byte, f *Frame) error {
	if !frameFits(b) {
		return fmt.Errorf("%w: %d bytes", ErrFrame, len(b))
	}
	head := binary.LittleEndian.Uint64(b)
	*f = Frame{Kind: FrameKind(head), Generation: uint32(head >> 32), Seq: binary.LittleEndian.Uint64(b[8:]), Words: f.Words[:0]}
	if uint64(f.Generation)<<32|uint64(f.Kind) != head {
		return fmt.Errorf("%w: reserved bits are set in head %#x", ErrFrame, head)
	}
	switch f.Kind {
	case KindRecord:
		b = b[frameHead:]
		f.Words = slices.Grow(f.Words, len(b)/8)[:len(b)/8]
		for i := range f.Words {
			f.Words[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		return nil
	case KindLost:
		f.To = binary.LittleEndian.Uint64(b[16:])
		if len(b) != frameHead+16 || f.To <= f.Seq {
			return fmt.Errorf("%w: lost range [%d,%d) in %d bytes", ErrFrame, f.Seq, f.To, len(b))
		}
		reason := binary.LittleEndian.Uint64(b[24:])
		f.Reason = LostReason(reason)
		if reason < uint64(LostOverrun) || reason > uint64(LostVanished) {
			return fmt.Errorf("%w: lost range [%d,%d) gives unknown reason %d", ErrFrame, f.Seq, f.To, reason)
		}
		return nil
	}
	return fmt.Errorf("%w: unknown kind %d", ErrFrame, f.Kind)
}
