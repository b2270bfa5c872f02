package record

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/usp-project/usp/internal/fixedsum"
)

// canonicalNaN is the one NaN that enters a digest. Hardware and compilers disagree on the payloads and signs of
// the NaNs they produce; a digest must not.
const canonicalNaN = 0x7ff8000000000000

// Canonical returns the bits that stand for x in a digest: −0 becomes +0, every NaN becomes 0x7ff8000000000000,
// all else (subnormals and infinities included) is kept.
func Canonical(x float64) uint64 { return canonicalBits(math.Float64bits(x)) }

func canonicalBits(b uint64) uint64 {
	switch {
	case b == 1<<63:
		return 0
	case b&^(1<<63) > 0x7ff<<52:
		return canonicalNaN
	}
	return b
}

func finiteBits(b uint64) bool { return b&(0x7ff<<52) != 0x7ff<<52 }

// AppendCanonical appends the canonical little-endian bytes of xs to dst, 8 per element, without a prefix: what
// numpy's asarray(xs, '<f8').tobytes() gives for values that are neither −0 nor NaN.
func AppendCanonical(dst []byte, xs []float64) []byte {
	for _, x := range xs {
		dst = binary.LittleEndian.AppendUint64(dst, Canonical(x))
	}
	return dst
}

// SumFloat64s returns the SHA-256 of the canonical bytes of xs.
func SumFloat64s(xs []float64) [32]byte {
	return sha256.Sum256(AppendCanonical(make([]byte, 0, 8*len(xs)), xs))
}

// Digester computes the digests of a schema's digest fields without allocating per record.
// It is not safe for concurrent use.
type Digester struct {
	schema *Schema
	first  int // index of the first digest field
	sums   []*fixedsum.Hasher
}

// NewDigester returns a Digester for s.
func NewDigester(s *Schema) *Digester {
	d := &Digester{schema: s, first: len(s.fields)}
	for i, f := range s.fields {
		if f.Class == Digest {
			d.first = min(d.first, i)
			d.sums = append(d.sums, fixedsum.New(8*f.Len))
		}
	}
	return d
}

// Append appends to dst one SHA-256 for each digest field of payload, in layout order. Bit i of nonfinite is
// set if the i-th digest field held a NaN or an infinity. payload must have Schema.Words words.
func (d *Digester) Append(dst [][32]byte, payload []uint64) (sums [][32]byte, nonfinite uint32) {
	s := d.schema
	for i, h := range d.sums {
		b, field := h.Message(), d.first+i
		for j, w := range payload[s.offsets[field]:][:s.fields[field].Len] {
			if !finiteBits(w) {
				nonfinite |= 1 << i
			}
			binary.LittleEndian.PutUint64(b[8*j:], canonicalBits(w))
		}
		dst = append(dst, h.Sum())
	}
	return dst, nonfinite
}
