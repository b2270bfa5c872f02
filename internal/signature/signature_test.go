package signature

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func walk(dim, depth int, path ...[]float64) *Transform {
	t := New(dim, depth)
	step := make([]float64, dim)
	for i := 1; i < len(path); i++ {
		for j := range step {
			step[j] = path[i][j] - path[i-1][j]
		}
		t.Extend(step)
	}
	return t
}

func logSignature(t *Transform) map[string]float64 {
	x := make([]float64, t.Size())
	t.LogSignature(x)
	m := map[string]float64{}
	for i, w := range t.Words() {
		name := ""
		for _, letter := range w {
			name += fmt.Sprint(letter + 1)
		}
		m[name] = x[i]
	}
	return m
}

func demand(t *testing.T, what string, got map[string]float64, want map[string]float64) {
	t.Helper()
	for w, x := range want {
		if y, ok := got[w]; !ok || math.Abs(y-x) > 4e-15*max(1, math.Abs(x)) {
			t.Errorf("%s, word %s: %.17g, want %.17g", what, w, y, x)
		}
	}
}

// Exact rationals, computed by hand with fractions.
func TestOracles(t *testing.T) {
	demand(t, "corner", logSignature(walk(2, 5, []float64{0, 0}, []float64{1, 0}, []float64{1, 1})), map[string]float64{
		"1": 1, "2": 1, "12": 1. / 2, "112": 1. / 12, "122": 1. / 12, "1112": 0, "1122": 1. / 24, "1222": 0, "11112": -1. / 720, "11122": 1. / 180,
		"11212": -1. / 120, "11222": 1. / 180, "12122": -1. / 120, "12222": -1. / 720})
	demand(t, "zigzag", logSignature(walk(2, 4, []float64{0, 0}, []float64{1, 2}, []float64{2, 1}, []float64{3, 4}, []float64{4, 3})), map[string]float64{
		"1": 4, "2": 3, "12": -5. / 2, "112": -1. / 2, "122": 7. / 4, "1112": -1. / 24, "1122": 13. / 24, "1222": -11. / 12})
	demand(t, "space", logSignature(walk(3, 3, []float64{0, 0, 0}, []float64{1, 0, 2}, []float64{1, 3, 1}, []float64{2, 2, 2})), map[string]float64{
		"1": 2, "2": 2, "3": 2, "12": -1. / 2, "13": -1. / 2, "23": -1, "112": -1. / 2, "113": 1. / 6, "122": 4. / 3, "123": 1, "132": -1, "133": 0, "223": 4. / 3, "233": 0})
	// The example in the documentation of esig.
	sig := make([]float64, 6)
	walk(2, 2, []float64{1, 1}, []float64{3, 4}, []float64{5, 2}, []float64{8, 6}).Signature(sig)
	for i, want := range []float64{7, 5, 24.5, 19, 16, 12.5} {
		if math.Abs(sig[i]-want) > 1e-14 {
			t.Errorf("signature element %d: %v, want %v", i, sig[i], want)
		}
	}
}

func TestSizes(t *testing.T) {
	for dim, want := range map[int][]int{1: {1, 1, 1, 1, 1}, 2: {2, 3, 5, 8, 14}, 3: {3, 6, 14, 32, 80}, 4: {4, 10, 30, 90, 294}} {
		for depth, n := range want {
			if got := New(dim, depth+1).Size(); got != n {
				t.Errorf("dimension %d, depth %d: %d Lyndon words, want %d", dim, depth+1, got, n)
			}
		}
	}
}

func paths(dim int) *rapid.Generator[[][]float64] {
	return rapid.SliceOfN(rapid.SliceOfN(rapid.Float64Range(-2, 2), dim, dim), 2, 7)
}

func near(t *rapid.T, what string, a, b []float64) {
	for i := range a {
		if math.Abs(a[i]-b[i]) > 1e-9 {
			t.Fatalf("%s: element %d is %v and %v", what, i, a[i], b[i])
		}
	}
}

// A path and its reverse have opposite log-signatures; a point on a segment changes nothing; Chen's identity joins two
// paths; S¹S² = S¹² + S²¹.
func TestIdentities(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dim, depth := rapid.IntRange(2, 4).Draw(t, "dim"), rapid.IntRange(2, 5).Draw(t, "depth")
		path := paths(dim).Draw(t, "path")
		whole := walk(dim, depth, path...)
		a, b := make([]float64, whole.Size()), make([]float64, whole.Size())
		whole.LogSignature(a)

		var back [][]float64
		for i := range path {
			back = append(back, path[len(path)-1-i])
		}
		walk(dim, depth, back...).LogSignature(b)
		for i := range b {
			b[i] = -b[i]
		}
		near(t, "reversal", a, b)

		at, part := rapid.IntRange(1, len(path)-1).Draw(t, "at"), rapid.Float64Range(0, 1).Draw(t, "part")
		between := make([]float64, dim)
		for j := range between {
			between[j] = path[at-1][j] + part*(path[at][j]-path[at-1][j])
		}
		more := append(append(append([][]float64{}, path[:at]...), between), path[at:]...)
		walk(dim, depth, more...).LogSignature(b)
		near(t, "collinear point", a, b)

		// Chen: the signature of the whole is the product of those of its parts.
		first, second := walk(dim, depth, path[:at+1]...), walk(dim, depth, path[at:]...)
		copy(first.log, second.sig)
		first.times(depth) // (S − 1) ⊗ S'
		for i, x := range second.sig {
			first.power[i] += x
		}
		near(t, "Chen", first.power, whole.sig)

		s := whole.sig
		near(t, "shuffle", []float64{s[1] * s[2]}, []float64{s[1+dim+1] + s[1+dim+dim]})
	})
}

// What is written out for the plane has the bits of the general rule.
func TestPlane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		depth := rapid.IntRange(3, 4).Draw(t, "depth")
		a, b := New(2, depth), New(2, depth)
		for _, v := range rapid.SliceOfN(rapid.SliceOfN(rapid.Float64Range(-1e9, 1e9), 2, 2), 1, 20).Draw(t, "segments") {
			a.Extend(v)
			b.extend(v)
		}
		for i, x := range a.sig {
			if math.Float64bits(x) != math.Float64bits(b.sig[i]) {
				t.Fatalf("element %d: %x and %x", i, x, b.sig[i])
			}
		}
		of, general := make([]float64, a.Size()), make([]float64, a.Size())
		a.LogSignature(of)
		a.logSignature(general)
		for i, x := range of {
			if math.Float64bits(x) != math.Float64bits(general[i]) {
				t.Fatalf("log-signature, element %d: %x and %x", i, x, general[i])
			}
		}
	})
}

func TestNothingIsAllocated(t *testing.T) {
	s, x := New(2, 4), make([]float64, 8)
	if n := testing.AllocsPerRun(10, func() {
		s.Reset()
		s.Extend([]float64{1, 2})
		s.LogSignature(x)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func Example() {
	s := New(2, 2)
	s.Extend([]float64{1, 0})
	s.Extend([]float64{0, 1})
	x := make([]float64, s.Size())
	s.LogSignature(x)
	fmt.Println(s.Words(), x) // displacement, and the area that the path turned left by
	// Output: [[0] [1] [0 1]] [1 1 0.5]
}

func BenchmarkSixteenSegments(b *testing.B) {
	s, x := New(2, 4), make([]float64, 8)
	for b.Loop() {
		s.Reset()
		for i := range 16 {
			s.Extend([]float64{1, float64(i%3 - 1)})
		}
		s.LogSignature(x)
	}
}
