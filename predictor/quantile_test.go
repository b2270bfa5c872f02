package predictor

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestLawCRPS compares the score on the grid with the closed form, inside the law and beyond the grid.
func TestLawCRPS(t *testing.T) {
	for _, c := range []struct{ w, m, v []float64 }{
		{[]float64{1}, []float64{0}, []float64{1}},
		{[]float64{1}, []float64{1}, []float64{4}},
		{[]float64{.3, .7}, []float64{-1, 2}, []float64{1, .25}},
	} {
		var l Law
		if !l.of(lawOf(c.w, c.m, c.v)) {
			t.Fatal("no law")
		}
		for _, y := range []float64{-20, -2.5, -.1, 0, .5, 1, 4, 30} {
			want := CRPS(c.w, c.m, c.v, y)
			if got := l.CRPS(y); math.Abs(got-want) > 1e-3*want {
				t.Errorf("%v %v %v at %g: %.9g, want %.9g (relative %.2g)", c.w, c.m, c.v, y, got, want, got/want-1)
			}
		}
	}
}

// TestLawQuantile: the distribution function undoes the quantile.
func TestLawQuantile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.SliceOfN(rapid.Float64Range(-10, 10), 3, 3).Draw(t, "mean")
		v := rapid.SliceOfN(rapid.Float64Range(.01, 4), 3, 3).Draw(t, "variance")
		var l Law
		l.of(lawOf([]float64{.2, .3, .5}, m, v))
		p := rapid.Float64Range(.001, .999).Draw(t, "p")
		if got := l.CDF(l.Quantile(p)); math.Abs(got-p) > 1e-9 {
			t.Fatalf("CDF(Quantile(%g)) = %g", p, got)
		}
	})
}

// TestLawAfterRestore: a restored predictor tells the same law to the bit; before the warm-up there is none.
func TestLawAfterRestore(t *testing.T) {
	p, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := p.Law(); ok {
		t.Error("a law before the first value")
	}
	var out Output
	for i := range 400 {
		if err := p.Step(Observation{Time: int64(i + 1), Value: math.Sin(float64(i * i))}, &out); err != nil {
			t.Fatal(err)
		}
	}
	q, err := Restore(p.Config(), state(p))
	if err != nil {
		t.Fatal(err)
	}
	a, ok := p.Law()
	b, ok2 := q.Law()
	if !ok || !ok2 || a != b {
		t.Errorf("laws %t %t, equal %t", ok, ok2, a == b)
	}
}
