package record

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Summary is the index of a telemetry segment: what its frames amount to. They are of one generation, and the sequence numbers
// [From, To) are each stored or lost.
type Summary struct {
	Generation          uint32
	Frames              uint64
	Stored, Lost        uint64
	From, To            uint64 // sequence numbers
	FirstStep, LastStep uint64 // of the stored records; 0 if there are none
}

const (
	summaryVersion = 1
	summaryLen     = 2*4 + 7*8
)

var (
	// ErrSummary is wrapped by the error for a summary that is not well formed.
	ErrSummary = errors.New("record: invalid telemetry summary")
	// ErrSummaryVersion is wrapped by the error for a summary of a later version: the frames are to be read instead.
	ErrSummaryVersion = errors.New("record: telemetry summary of a newer version")
)

// Append appends the 64 bytes of s to dst.
func (s *Summary) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(le.AppendUint32(dst, summaryVersion), s.Generation)
	for _, n := range [...]uint64{s.Frames, s.Stored, s.Lost, s.From, s.To, s.FirstStep, s.LastStep} {
		dst = le.AppendUint64(dst, n)
	}
	return dst
}

// ParseSummary decodes what Append writes. It refuses counts that no frames can have.
func ParseSummary(b []byte) (Summary, error) {
	var s Summary
	le := binary.LittleEndian
	if len(b) >= 4 && le.Uint32(b) > summaryVersion {
		return s, fmt.Errorf("%w: version %d", ErrSummaryVersion, le.Uint32(b))
	}
	if len(b) != summaryLen || le.Uint32(b) != summaryVersion {
		return s, fmt.Errorf("%w: %d bytes", ErrSummary, len(b))
	}
	s.Generation = le.Uint32(b[4:])
	for i, n := range []*uint64{&s.Frames, &s.Stored, &s.Lost, &s.From, &s.To, &s.FirstStep, &s.LastStep} {
		*n = le.Uint64(b[8+8*i:])
	}
	if !s.valid() {
		return Summary{}, fmt.Errorf("%w: %+v", ErrSummary, s)
	}
	return s, nil
}

func (s *Summary) valid() bool {
	n := s.To - s.From
	ranges := s.Frames - s.Stored // frames of lost ranges, each of which holds a number at least
	switch {
	case s.Frames == 0 || s.To <= s.From || s.Stored > n || s.Lost != n-s.Stored:
		return false
	case s.Frames < s.Stored || ranges > s.Lost || (ranges == 0) != (s.Lost == 0):
		return false
	case s.Stored < 2:
		return s.FirstStep == s.LastStep && (s.Stored == 1 || s.FirstStep == 0)
	}
	return s.FirstStep < s.LastStep && s.LastStep-s.FirstStep >= s.Stored-1
}

// A Summarizer makes the Summary of a segment while its frames are written or read.
type Summarizer struct {
	sum Summary
	bad bool // the frames are not those of one generation in order
}

// Add takes in the next frame of the segment.
func (z *Summarizer) Add(_ uint64, frame []byte) {
	s := &z.sum
	if !frameFits(frame) {
		z.bad = true
		return
	}
	le := binary.LittleEndian
	head, seq, word := le.Uint64(frame), le.Uint64(frame[8:]), le.Uint64(frame[16:])
	kind, generation := FrameKind(head), uint32(head>>32)
	if s.Frames == 0 {
		s.Generation, s.From, s.To = generation, seq, seq
	}
	s.Frames++
	z.bad = z.bad || generation != s.Generation || seq != s.To || uint64(generation)<<32|uint64(kind) != head
	switch kind {
	case KindRecord:
		if s.Stored == 0 {
			s.FirstStep = word
		} else if word <= s.LastStep {
			z.bad = true
		}
		s.Stored++
		s.LastStep, s.To = word, seq+1
	case KindLost:
		reason := le.Uint64(frame[24:])
		z.bad = z.bad || len(frame) != frameHead+16 || word <= seq || reason < uint64(LostOverrun) || reason > uint64(LostVanished)
		s.Lost += word - seq
		s.To = word
	default:
		z.bad = true
	}
}

// Summary returns what the frames so far amount to. ok is false if there are none, or not all of them follow each other.
func (z *Summarizer) Summary() (s Summary, ok bool) {
	return z.sum, !z.bad && z.sum.Frames > 0 && z.sum.valid()
}

// Index returns the encoded Summary, or nil if there is none.
func (z *Summarizer) Index() []byte {
	s, ok := z.Summary()
	if !ok {
		return nil
	}
	return s.Append(nil)
}
