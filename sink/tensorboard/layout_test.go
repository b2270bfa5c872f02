package tensorboard

import (
	"math"
	"testing"

	"github.com/usp-project/usp/record"
)

// TestNarrow wants each loss of float32 counted as what it is, and nothing else.
func TestNarrow(t *testing.T) {
	f := math.Float64bits
	i := func(x int64) uint64 { return uint64(x) }
	inf := float32(math.Inf(1))
	for n, tt := range []struct {
		word uint64
		typ  record.Type
		want float32
		lost Narrowing
	}{
		{f(1.5), record.Float64, 1.5, Narrowing{}},
		{f(float64(float32(0.1))), record.Float32, 0.1, Narrowing{}},
		{f(0.1), record.Float64, 0.1, Narrowing{Rounded: 1}},
		{f(1e39), record.Float64, inf, Narrowing{Rounded: 1, Infinite: 1}},
		{f(-1e39), record.Float64, -inf, Narrowing{Rounded: 1, Infinite: 1}},
		{f(1e-60), record.Float64, 0, Narrowing{Rounded: 1, Zero: 1}},
		{f(math.Inf(1)), record.Float64, inf, Narrowing{}},
		{f(0), record.Float64, 0, Narrowing{}},
		{i(1 << 24), record.Int64, 1 << 24, Narrowing{}},
		{i(1<<24 + 1), record.Int64, 1 << 24, Narrowing{Integers: 1}},
		{i(-1<<24 - 1), record.Int64, -1 << 24, Narrowing{Integers: 1}},
		{i(-1), record.Int64, -1, Narrowing{}},
		{i(math.MinInt64), record.Int64, -1 << 63, Narrowing{}},
		{i(math.MaxInt64), record.Int64, 1 << 63, Narrowing{Integers: 1}},
		{1 << 63, record.Uint64, 1 << 63, Narrowing{}},
		{1<<24 + 1, record.Uint64, 1 << 24, Narrowing{Integers: 1}},
		{math.MaxUint64, record.Uint64, 1 << 64, Narrowing{Integers: 1}},
	} {
		var lost Narrowing
		if got := lost.narrow(tt.word, tt.typ); got != tt.want || lost != tt.lost {
			t.Errorf("case %d, %v %#x: %g, %+v; want %g, %+v", n, tt.typ, tt.word, got, lost, tt.want, tt.lost)
		}
	}
	var lost Narrowing
	if got := lost.narrow(f(math.NaN()), record.Float64); got == got || lost != (Narrowing{}) {
		t.Errorf("NaN: %g, %+v", got, lost)
	}
}
