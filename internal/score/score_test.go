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

// TestBoard compares the sums with errors kept one by one, while errors grow from subnormal to greater than their squares
// could be.
func TestBoard(t *testing.T) {
	for _, top := range []float64{1, 1e-310, 1e200} {
		b := New(3)
		var errs [3][]float64
		turnover := 0.0
		rho := []float64{.2, .3, .5}
		for i := range 40 {
			size := top
			if i < 20 {
				size = top / 1e4
			}
			value := size * float64(i%5)
			out := predictor.Output{Step: uint64(i + 1), HasPrior: i > 0, Weights: []float64{rho[i%3], rho[(i+1)%3], rho[(i+2)%3]}}
			for k := range errs {
				x := size * float64((i*(k+2))%7)
				out.PriorExperts = append(out.PriorExperts, x)
				if i > 0 {
					errs[k] = append(errs[k], (x-value)/top)
					turnover += math.Abs(rho[(i+k)%3] - rho[(i+k+2)%3])
				}
			}
			b.Add(value, &out)
		}
		r := b.Report()
		near := func(what string, got, want float64) {
			t.Helper()
			if math.Abs(got/top-want) > 1e-12*want && (top > 1e-300 || math.Abs(got/top-want) > 1e-9) { // subnormal: few bits
				t.Errorf("errors up to %g: %s %g, want %g", top, what, got/top, want)
			}
		}
		best, least := 0, math.Inf(1)
		var mae [3]float64
		for k, e := range errs {
			sq := 0.0
			for _, x := range e {
				sq += x * x
				mae[k] += math.Abs(x) / float64(len(e))
			}
			if sq < least {
				best, least = k, sq
			}
		}
		n := float64(len(errs[0]))
		if r.Best != best {
			t.Errorf("errors up to %g: best expert %d, want %d", top, r.Best, best)
		}
		for k, e := range errs {
			rmse, mean := b.Errors(k)
			sq := 0.0
			for _, x := range e {
				sq += x * x
			}
			near("RMSE of an expert", rmse, math.Sqrt(sq/n))
			near("its MAE", mean, mae[k])
		}
		near("RMSE of the best", r.BestRMSE, math.Sqrt(least/n))
		near("its MAE", r.BestMAE, mae[best])
		uniform, convex := 0.0, 0.0
		for i := range errs[0] {
			m, c := 0.0, 0.0
			for k := range errs {
				m += errs[k][i] / 3
				c += r.Convex[k] * errs[k][i]
			}
			uniform += m * m
			convex += c * c
		}
		near("RMSE of the mean", r.Uniform, math.Sqrt(uniform/n))
		near("RMSE of the best mixture", r.ConvexRMSE, math.Sqrt(convex/n))
		if math.Abs(b.Turnover-turnover) > 1e-12 {
			t.Errorf("turnover %g, want %g", b.Turnover, turnover)
		}
	}
}

// TestSimplexIsOptimal wants what makes a minimum of a convex function on the simplex one: every gradient at least that of
// the support, to the gap.
func TestSimplexIsOptimal(t *testing.T) {
	const n = 14
	g := make([][]float64, n)
	for i := range g {
		g[i] = make([]float64, n)
		for j := range g[i] {
			for k := range 30 { // errors of strongly correlated experts
				g[i][j] += (math.Sin(float64(3*k)) + .1*math.Sin(float64(k*(i+2)))) * (math.Sin(float64(3*k)) + .1*math.Sin(float64(k*(j+2))))
			}
		}
	}
	w, value := Simplex(g)
	for i := range g {
		grad := 0.0
		for j := range w {
			grad += g[i][j] * w[j]
		}
		if 2*(value-grad) > 1.01e-10*value {
			t.Errorf("vertex %d: gap %g of %g", i, 2*(value-grad), value)
		}
	}
}

// TestLaw wants the mean of the laws' own scores, and nothing of one that cannot be computed.
func TestLaw(t *testing.T) {
	p, err := predictor.New(predictor.Config{KernelWindow: 1})
	if err != nil {
		t.Fatal(err)
	}
	b, sum, n := New(1), 0.0, 0
	var out predictor.Output
	for i := range 40 {
		value := float64((i * i) % 11)
		if law, ok := p.Law(); ok {
			sum += law.CRPS(value)
			n++
			b.AddLaw(value, &law)
		}
		if err := p.Step(predictor.Observation{Time: int64(i), Value: value}, &out); err != nil {
			t.Fatal(err)
		}
	}
	law, _ := p.Law()
	b.AddLaw(math.NaN(), &law)
	b.AddLaw(math.Inf(1), &law)
	if n < 20 || b.MeanCRPS() != sum/float64(n) {
		t.Errorf("mean CRPS %g of %d laws, want %g of %d", b.MeanCRPS(), b.Laws, sum/float64(n), n)
	}
	state, _ := b.AppendBinary(nil)
	again := New(1)
	if err := again.UnmarshalBinary(state); err != nil || again.MeanCRPS() != b.MeanCRPS() {
		t.Errorf("restored: %v, mean CRPS %g, want %g", err, again.MeanCRPS(), b.MeanCRPS())
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
