package record

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dchest/siphash"
	"pgregory.net/rapid"
)

// agree is the agreement of two vectors in bits, as ladder.go defines it, computed from the values.
func agree(a, b []float64, floor int) float64 {
	worst := 0.0
	for i := range a {
		if a[i] == b[i] || math.IsNaN(a[i]) && math.IsNaN(b[i]) {
			continue
		}
		scale := max(math.Abs(a[i]), math.Abs(b[i]), math.Ldexp(1, floor))
		r := math.Abs(a[i]/scale - b[i]/scale) // divided first: the difference of two large numbers may overflow
		if math.IsNaN(r) || math.IsInf(scale, 0) {
			r = 2
		}
		worst = max(worst, r)
	}
	return -math.Log2(worst)
}

func bitsOf(xs []float64) []uint64 {
	words := make([]uint64, len(xs))
	for i, x := range xs {
		words[i] = math.Float64bits(x)
	}
	return words
}

// reported is what the ladders of two vectors say.
func reported(levels []int, floor int, a, b []float64) int {
	m := newLadderMaker(levels, floor, PublicAuditKey(), len(a))
	la, lb := m.append(nil, bitsOf(a)), m.append(nil, bitsOf(b))
	return agreement(len(a), levels, la, levels, lb)
}

// anyFloat draws numbers of all kinds, those near powers of two and of the grids' own boundaries among them.
func anyFloat(t *rapid.T, label string) float64 {
	switch rapid.IntRange(0, 5).Draw(t, label+" kind") {
	case 0:
		return rapid.Float64().Draw(t, label)
	case 1:
		return math.Ldexp(1, rapid.IntRange(-1074, 1023).Draw(t, label+" power"))
	case 2: // where the second grid has its boundaries
		return math.Ldexp(5.0/3, rapid.IntRange(-900, 900).Draw(t, label+" five thirds"))
	case 3:
		return rapid.SampledFrom([]float64{0, math.Copysign(0, -1), math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, 1e-308}).Draw(t, label+" special")
	}
	return rapid.Float64Range(-1, 1).Draw(t, label+" unit")
}

// moved is x changed by a relative 2^-bits, or by a few units in the last place.
func moved(t *rapid.T, x float64, label string) float64 {
	if rapid.Bool().Draw(t, label+" by units") {
		y := x
		for range rapid.IntRange(0, 4).Draw(t, label+" units") {
			y = math.Nextafter(y, rapid.SampledFrom([]float64{math.Inf(1), math.Inf(-1), 0}).Draw(t, label+" towards"))
		}
		return y
	}
	bits := rapid.Float64Range(0, 54).Draw(t, label+" bits")
	sign := rapid.SampledFrom([]float64{1, -1}).Draw(t, label+" sign")
	return x * (1 + sign*math.Exp2(-bits))
}

// everyLevel are all levels that there can be.
func everyLevel() []int { return append([]int{MinLevel}, DefaultLevels()...) }

func drawLevels(t *rapid.T) []int {
	if rapid.Bool().Draw(t, "every level") {
		return everyLevel()
	}
	return slices.DeleteFunc(everyLevel(), func(l int) bool { return rapid.Bool().Draw(t, "without") })
}

// Never is more agreement reported than there is.
func TestLadderNeverTooMuch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		levels := drawLevels(t)
		floor := rapid.SampledFrom([]int{DefaultFloor, MinFloor, -40, 0}).Draw(t, "floor")
		n := rapid.IntRange(1, 6).Draw(t, "n")
		a, b := make([]float64, n), make([]float64, n)
		for i := range a {
			a[i] = anyFloat(t, "x")
			switch rapid.IntRange(0, 2).Draw(t, "change") {
			case 0:
				b[i] = a[i]
			case 1:
				b[i] = moved(t, a[i], "y")
			default:
				b[i] = anyFloat(t, "y")
			}
		}
		if got, is := reported(levels, floor, a, b), agree(a, b, floor); got > 0 && float64(got) > is {
			t.Fatalf("%v and %v: reported %d bits, they agree to %.3f", a, b, got, is)
		}
	})
}

// So it is around zero, where numbers of two signs lie in one cell.
func TestLadderNeverTooMuchAroundZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		floor := rapid.SampledFrom([]int{DefaultFloor, MinFloor, -40, 0}).Draw(t, "floor")
		near := func(label string) float64 {
			return math.Ldexp(rapid.Float64Range(-1, 1).Draw(t, label)*rapid.SampledFrom([]float64{6, 300}).Draw(t, label+" size"), floor-mantissa)
		}
		a, b := []float64{near("x")}, []float64{near("y")}
		if got, is := reported(everyLevel(), floor, a, b), agree(a, b, floor); got > 0 && float64(got) > is {
			t.Fatalf("%v and %v: reported %d bits, they agree to %.3f", a, b, got, is)
		}
	})
}

// Of up to seven numbers, at most 1.2 + log2(parts+1) bits and the way to the next level are missing.
func TestLadderNeverMuchTooLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		levels := drawLevels(t)
		floor := rapid.SampledFrom([]int{DefaultFloor, MinFloor, -40}).Draw(t, "floor")
		n := rapid.IntRange(1, maxGrids-1).Draw(t, "n")
		a, b := make([]float64, n), make([]float64, n)
		bits := rapid.Float64Range(3, 54).Draw(t, "bits of all")
		for i := range a {
			a[i] = anyFloat(t, "x")
			if rapid.Bool().Draw(t, "alike") {
				b[i] = a[i] * (1 + math.Copysign(math.Exp2(-bits), rapid.Float64Range(-1, 1).Draw(t, "sign")))
			} else {
				b[i] = moved(t, a[i], "y")
			}
		}
		is := agree(a, b, floor)
		if is < 3 {
			t.Skip("not even close")
		}
		_, parts := gridsOf(n)
		want := 0
		for _, l := range levels {
			if float64(l) <= is-1.2-math.Log2(float64(parts+1)) {
				want = l
			}
		}
		if got := reported(levels, floor, a, b); got < want {
			t.Fatalf("%v and %v agree to %.3f bits: reported %d, want at least %d", a, b, is, got, want)
		}
	})
}

// At every level, the boundaries of the grids are at least a part of a cell apart that is one smaller than an even division would make it.
func TestGridsAreStaggered(t *testing.T) {
	for n := 1; n < 20; n++ {
		grids, parts := gridsOf(n)
		if grids < min(n, maxGrids-1)+1 || parts < grids || parts%2 == 0 {
			t.Errorf("%d numbers: %d grids, %d parts", n, grids, parts)
		}
		for level := 1; level <= MaxLevel; level++ {
			width := int64(1) << (mantissa - level)
			for i := range grids {
				for j := range i {
					apart := (stagger(i, parts) - stagger(j, parts)) % width
					if apart = min(apart, width-apart); apart < width/int64(parts+1) {
						t.Errorf("%d numbers, level %d: grids %d and %d are %d of %d places apart", n, level, i, j, apart, width)
					}
				}
			}
		}
	}
}

// More numbers than that: where all moved by a relative 2^-t, level t-2-log2(n) is missed about once in 10^4 steps.
func TestLadderOfLongVectors(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{8, 16, 64, 256} {
		const rounds, level = 2000, 34
		moved, missed := level+2+math.Log2(float64(n)), 0
		for range rounds {
			a, b := make([]float64, n), make([]float64, n)
			for i := range a {
				a[i] = rng.ExpFloat64()
				b[i] = a[i] * (1 + math.Copysign(math.Exp2(-moved), rng.Float64()-0.5))
			}
			if reported([]int{level}, DefaultFloor, a, b) == 0 {
				missed++
			}
		}
		t.Logf("%d elements: level %d of %.0f missed in %d of %d", n, level, moved, missed, rounds)
		if missed > 3 {
			t.Errorf("%d elements that agree to %.0f bits: level %d was missed in %d of %d", n, moved, level, missed, rounds)
		}
	}
}

// What the design promises of it: a machine that flushes subnormals does not part from one that keeps them, and the uniform weights
// that every run begins with lie on a boundary of one grid only.
func TestLadderCases(t *testing.T) {
	third, ulp := 1.0/3, math.Nextafter(0.25, 0)
	for _, c := range []struct {
		name  string
		a, b  []float64
		floor int
		least int
		most  int
	}{
		{"flushed subnormal", []float64{0.5, 1e-313}, []float64{0.5, 0}, DefaultFloor, 50, 50},
		{"flushed subnormal without a floor", []float64{0.5, 1e-313}, []float64{0.5, 0}, MinFloor, 10, 18},
		{"signs of zero", []float64{0}, []float64{math.Copysign(0, -1)}, DefaultFloor, 50, 50},
		{"uniform of four", []float64{.25, .25, .25, .25}, []float64{ulp, ulp, ulp, ulp}, DefaultFloor, 46, 50},
		{"uniform of three", []float64{third, third, third}, []float64{third, third, math.Nextafter(third, 1)}, DefaultFloor, 46, 50},
		{"other sign", []float64{1e-3}, []float64{-1e-3}, DefaultFloor, 0, 0},
		{"not a number", []float64{math.NaN(), 1}, []float64{math.NaN(), 1 + 1e-9}, DefaultFloor, 22, 29},
		{"not a number in one", []float64{math.NaN()}, []float64{1}, DefaultFloor, 0, 0},
		{"infinite in one", []float64{math.Inf(1)}, []float64{math.MaxFloat64}, DefaultFloor, 0, 0},
		{"infinite with two signs", []float64{math.Inf(1)}, []float64{math.Inf(-1)}, DefaultFloor, 0, 0},
		{"not a number and minus infinity", []float64{math.NaN()}, []float64{math.Inf(-1)}, DefaultFloor, 0, 0},
		{"below the floor", []float64{1e-20}, []float64{0}, -40, 22, 26},
	} {
		if got := reported(DefaultLevels(), c.floor, c.a, c.b); got < c.least || got > c.most {
			t.Errorf("%s: %d bits, want %d to %d", c.name, got, c.least, c.most)
		}
	}
}

// Places ascend with the numbers, without a jump at the floor, at zero or between octaves.
func TestPlacesAscend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlacer(rapid.SampledFrom([]int{DefaultFloor, MinFloor, -40, 0}).Draw(t, "floor"))
		x := anyFloat(t, "x")
		if math.IsNaN(x) || math.IsInf(x, 0) || x == math.MaxFloat64 {
			t.Skip()
		}
		y := math.Nextafter(x, math.Inf(1))
		a, b := p.place(math.Float64bits(x)), p.place(math.Float64bits(y))
		if b < a || b > a+1 {
			t.Fatalf("%v at %d, the next number at %d", x, a, b)
		}
	})
}

// The hash of every beginning of a message is that of the library.
func TestSip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k0, k1 := rapid.Uint64().Draw(t, "k0"), rapid.Uint64().Draw(t, "k1")
		h, message := newSip(k0, k1), []byte{}
		for _, word := range rapid.SliceOfN(rapid.Uint64(), 0, 40).Draw(t, "message") {
			message = binary.LittleEndian.AppendUint64(message, word)
			next, got := h.sum(word, len(message))
			if want := siphash.Hash(k0, k1, message); got != want || next != h.absorb(word) {
				t.Fatalf("of %d bytes: %x, want %x", len(message), got, want)
			}
			h = next
		}
	})
}

func TestAgreementOfOtherLevels(t *testing.T) {
	a, b := []float64{0.3}, []float64{0.3 * (1 + math.Exp2(-31))}
	la := newLadderMaker([]int{6, 18, 26}, DefaultFloor, PublicAuditKey(), 1).append(nil, bitsOf(a))
	lb := newLadderMaker([]int{2, 6, 22, 26}, DefaultFloor, PublicAuditKey(), 1).append(nil, bitsOf(b))
	if got := agreement(1, []int{6, 18, 26}, la, []int{2, 6, 22, 26}, lb); got != 26 {
		t.Errorf("agreement over levels 6 and 26 is %d, want 26", got)
	}
	if got := agreement(1, []int{18}, la[8:16], []int{2, 6, 22, 26}, lb); got != 0 {
		t.Errorf("agreement without a common level is %d", got)
	}
}

// With another key every digest is another, and the public key is the documented one.
func TestAuditKeys(t *testing.T) {
	secret, other := NewAuditKey([]byte("a")), NewAuditKey([]byte("b"))
	if secret.ID == other.ID || secret.ID == PublicAuditKey().ID || PublicAuditKey().ID != [8]byte{} {
		t.Error("key ids do not tell keys apart")
	}
	xs := bitsOf([]float64{0.1, 0.9})
	a, b := newLadderMaker(DefaultLevels(), DefaultFloor, secret, 2).append(nil, xs), newLadderMaker(DefaultLevels(), DefaultFloor, other, 2).append(nil, xs)
	for i := 0; i < len(a); i += shortSum {
		if binary.LittleEndian.Uint32(a[i:]) == binary.LittleEndian.Uint32(b[i:]) {
			t.Errorf("digest %d is the same with two keys", i/shortSum)
		}
	}
}

func BenchmarkLadder(b *testing.B) {
	for _, n := range []int{1, 4, 16, 256} {
		b.Run(fmt.Sprintf("elements=%d", n), func(b *testing.B) {
			m := newLadderMaker(DefaultLevels(), DefaultFloor, PublicAuditKey(), n)
			words := bitsOf(slices.Repeat([]float64{0.1234}, n))
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst = m.append(dst[:0], words)
			}
		})
	}
}
