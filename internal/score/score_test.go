package score

import (
	"math"
	"reflect"
	"testing"

	"github.com/usp-project/usp/predictor"
)

// TestRules holds both aggregation rules to forecasts computed by another program (canonical BOA, and opera's ML-Poly).
func TestRules(t *testing.T) {
	x := [][]float64{{1, 2, 4}, {2, 2.5, 1}, {3, 2, 2}, {1, 1.5, 3}}
	y := []float64{1.5, 2.25, 2.5, 1.25}
	boa := []float64{7. / 3, 2.3441571630380554, 2.2002661764416673, 1.4470800421892703}
	poly := []float64{7. / 3, 2.4, 2.2178586192641587, 1.3481778881949529}
	b := New(3)
	for i, row := range x {
		var fb, fp float64
		for j := range row {
			fb += b.BOA.Share[j] * row[j]
			fp += b.Poly.Share[j] * row[j]
		}
		if math.Abs(fb-boa[i]) > 1e-12 || math.Abs(fp-poly[i]) > 1e-12 {
			t.Errorf("round %d: BOA %.17g, ML-Poly %.17g, want %.17g, %.17g", i, fb, fp, boa[i], poly[i])
		}
		b.learn(y[i], row)
	}
	if allocs := testing.AllocsPerRun(100, func() { b.learn(1, x[0]) }); allocs != 0 {
		t.Errorf("%g allocations per step", allocs)
	}
}

// TestSimplex compares the minimum with a search over a grid of the simplex.
func TestSimplex(t *testing.T) {
	for _, g := range [][][]float64{
		{{2, .5, .1}, {.5, 1, .3}, {.1, .3, 3}},
		{{1, 2, 2}, {2, 5, 4}, {2, 4, 6}},   // the first vertex is best
		{{1, -1, 0}, {-1, 1, 0}, {0, 0, 1}}, // zero is reached
	} {
		w, value := Simplex(g)
		least := math.Inf(1)
		const n = 400
		for i := range n + 1 {
			for j := range n + 1 - i {
				v := []float64{float64(i) / n, float64(j) / n, float64(n-i-j) / n}
				q := 0.0
				for a := range 3 {
					for b := range 3 {
						q += v[a] * v[b] * g[a][b]
					}
				}
				least = min(least, q)
			}
		}
		if value > least+1e-10 || value < least-1e-4 || math.Abs(w[0]+w[1]+w[2]-1) > 1e-12 || min(w[0], w[1], w[2]) < 0 {
			t.Errorf("%v: %v, %g; the grid has %g", g, w, value, least)
		}
	}
}

// TestState wants a restored board to go on to the bit.
func TestState(t *testing.T) {
	a := New(2)
	step := func(b *Board, i int) {
		out := predictor.Output{Step: uint64(i + 1), HasPrior: i > 0, Weights: []float64{1 / float64(i+1), 1 - 1/float64(i+1)}, PriorExperts: []float64{float64(i), 3}}
		if i%7 == 0 {
			out.Flags = predictor.FlagAlarmUp
		}
		b.Add(float64(i%5), &out)
	}
	for i := range 30 {
		step(a, i)
	}
	state, _ := a.AppendBinary(nil)
	b := New(2)
	if err := b.UnmarshalBinary(state); err != nil {
		t.Fatal(err)
	}
	for i := 30; i < 60; i++ {
		step(a, i)
		step(b, i)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("restored %+v, want %+v", b, a)
	}
	for _, bad := range [][]byte{nil, state[:len(state)-1], append(state, 0)} {
		if New(2).UnmarshalBinary(bad) == nil {
			t.Errorf("%d bytes accepted", len(bad))
		}
	}
}
