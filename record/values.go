package record

import (
	"fmt"
	"math"
)

// Values is a producer's reusable buffer for one record. Setters panic on a field index or vector length that
// does not fit the schema: that is a fault of the program, found at its first step. It is not safe for concurrent use.
type Values struct {
	schema *Schema
	words  []uint64
}

// NewValues returns a buffer for records of schema s, all fields zero.
func NewValues(s *Schema) *Values { return &Values{schema: s, words: make([]uint64, s.words)} }

// Schema returns the schema of the buffer.
func (v *Values) Schema() *Schema { return v.schema }

// SetFloat64 sets field i, a single float, to x.
func (v *Values) SetFloat64(i int, x float64) { *v.word(i, Float64, Float32) = math.Float64bits(x) }

// SetUint64 sets field i, a single unsigned integer or set of flags, to x.
func (v *Values) SetUint64(i int, x uint64) { *v.word(i, Uint64, Uint64) = x }

// SetInt64 sets field i, a single signed integer, to x.
func (v *Values) SetInt64(i int, x int64) { *v.word(i, Int64, Int64) = uint64(x) }

// SetFloat64s sets field i, a vector of floats, to xs, which must have the field's length.
func (v *Values) SetFloat64s(i int, xs []float64) {
	f := &v.schema.fields[i]
	if f.Len != len(xs) || (f.Type != Float64 && f.Type != Float32) {
		panic(fmt.Sprintf("record: field %q holds %d %s, got %d floats", f.Name, f.Len, f.Type, len(xs)))
	}
	for j, x := range xs {
		v.words[v.schema.offsets[i]+j] = math.Float64bits(x)
	}
}

func (v *Values) word(i int, want, alt Type) *uint64 {
	f := &v.schema.fields[i]
	if f.Len != 1 || (f.Type != want && f.Type != alt) {
		panic(fmt.Sprintf("record: field %q holds %d %s, cannot be set to one %s", f.Name, f.Len, f.Type, want))
	}
	return &v.words[v.schema.offsets[i]]
}

// Payload stamps the buffer with step and time (Unix nanoseconds of the input, not of the wall clock) and returns
// its words, which stay valid, and change, with the next use of v.
func (v *Values) Payload(step uint64, time int64) []uint64 {
	v.words[0], v.words[1] = step, uint64(time)
	return v.words
}
