package ot

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/detmath"
)

// squares returns the cost (xᵢ − xⱼ)² + extra·1{i≠j}.
func squares(extra float64, x ...float64) []float64 {
	var c []float64
	for i, a := range x {
		for j, b := range x {
			v := float64((a - b) * (a - b))
			if i != j {
				v += extra
			}
			c = append(c, v)
		}
	}
	return c
}

func near(t *testing.T, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol*max(1e-3, math.Abs(want))) {
		t.Errorf("%s = %.17g, want %.17g", what, got, want)
	}
}

func nearAll(t *testing.T, what string, got, want []float64, tol float64) {
	t.Helper()
	for i := range want {
		near(t, what, got[i], want[i], tol)
	}
}

var (
	oracleRho  = []float64{.4, .3, .2, .1}
	oracleLoss = []float64{1, .5, .25, 2}
	oracleU    = []float64{.25, .25, .25, .25}
)

// Sinkhorn 2×2: agrees with the value in the documentation of POT. 4×4: own computation with mpmath, 50 digits.
func TestSinkhornOracles(t *testing.T) {
	ws := NewWorkspace(4)
	plan := make([]float64, 4)
	half := []float64{.5, .5}
	r := Sinkhorn(plan, half, half, []float64{0, 1, 1, 0}, 1, SinkhornOptions{}, ws)
	nearAll(t, "plan", plan, []float64{.36552928931500244, .13447071068499756, .13447071068499756, .36552928931500244}, 1e-13)
	near(t, "cost", r.Cost, .26894142136999512, 1e-13)

	a, b := []float64{.1, .2, .3, .4}, []float64{.4, .3, .2, .1}
	plan = make([]float64, 16)
	for _, c := range []struct{ eps, cost, regularised float64 }{
		{1, 2.5969980749682076, 3.1243287244413312}, {.5, 2.5137136887605528, 2.8329724085974474}, {.1, 2.5000000016489229, 2.5673011666184795},
	} {
		r := Sinkhorn(plan, a, b, squares(0, 0, 1, 2, 4), c.eps, SinkhornOptions{}, ws)
		if !r.Converged {
			t.Errorf("ε = %v: not converged: %+v", c.eps, r)
		}
		near(t, "cost", r.Cost, c.cost, 1e-13)
		near(t, "regularised cost", r.Regularised, c.regularised, 1e-13)
	}
}

func TestSinkhornSaysWhenNotConverged(t *testing.T) {
	plan := make([]float64, 16)
	r := Sinkhorn(plan, []float64{.1, .2, .3, .4}, []float64{.4, .3, .2, .1}, squares(0, 0, 1, 2, 4), .1, SinkhornOptions{MaxIterations: 3}, NewWorkspace(4))
	rows := 0.0
	for i, a := range []float64{.1, .2, .3, .4} {
		rows = max(rows, math.Abs(detmath.Sum(plan[4*i:4*i+4])-a))
	}
	if r.Converged || r.Iterations != 3 || r.Residual != rows || rows < 1e-6 {
		t.Errorf("after 3 iterations: %+v, while the rows are off by %v", r, rows)
	}
}

// JKO: own computation with mpmath, 50 digits, by 10⁵ scaling iterations.
func TestJKOOracles(t *testing.T) {
	for _, c := range []struct {
		eps, tau, lambda float64
		want             []float64
		otCost           float64
	}{
		{.1, .5, 0, []float64{.030238443892776377, .51866631757086781, .45103996068933724, 5.5277847018565787e-5}, .23210738614676891},
		{.1, .5, .2, []float64{.15017638871279445, .40628720700137686, .42358354761578794, .019952856670040744}, .18020139323483734},
		{.1, 5, .2, []float64{.028703494053751499, .27584808680343334, .69520314791853242, .00024527122428274601}, 0},
		{1e4, .5, .2, []float64{.25000718509460985, .25002718490539878, .25002843478670221, .24993719521328916}, 0},
		{.02, .05, .2, []float64{.3999758599529562, .30001842904198254, .20000571100506126, .1}, 0},
	} {
		dst := make([]float64, 4)
		r := JKO(dst, oracleRho, oracleLoss, oracleU, squares(0, 0, .5, 1, 2), c.tau, c.eps, c.lambda, JKOOptions{}, NewWorkspace(4))
		nearAll(t, "ρ⁺", dst, c.want, 1e-12) // of each weight, and 1e-13 of their sum
		for i, w := range c.want {
			if d := math.Abs(dst[i] - w); !(d <= 1e-13) {
				t.Errorf("weight %d is off by %v", i, d)
			}
		}
		if c.otCost > 0 {
			near(t, "OT cost", r.OTCost, c.otCost, 1e-13)
		}
		if !r.Converged || math.Abs(r.Gap) > 1e-10*max(1, math.Abs(r.Primal)) || r.Residual > 1e-13 || r.Iterations > 20 {
			t.Errorf("ε=%v τ=%v λ=%v: %+v", c.eps, c.tau, c.lambda, r)
		}
		if c.eps == .1 && c.tau == .5 && c.lambda == .2 {
			near(t, "free energy", r.FreeEnergy, .55785440974502804, 1e-13)
			// The reference value counts Σ q(ln q/u − 1), which is 2τλ less.
			near(t, "primal", r.Primal-2*c.tau*c.lambda, .25565681055319806, 1e-13)
		}
	}
}

// A weight far below the tolerance is right relative to itself: own computation with mpmath, 60 digits.
func TestJKOSmallWeights(t *testing.T) {
	dst := make([]float64, 4)
	r := JKO(dst, oracleRho, []float64{1, .5, .25, 12}, oracleU, squares(0, 0, .5, 1, 2), .5, .1, .2, JKOOptions{}, NewWorkspace(4))
	for i, want := range []float64{.15092565061166772, .40983482633117319, .43923952305715902, 7.3493447878946715e-17} {
		if math.Abs(dst[i]/want-1) > 1e-12 {
			t.Errorf("weight %d is %v, want %v", i, dst[i], want)
		}
	}
	if !r.Converged {
		t.Errorf("%+v", r)
	}
}

// As τ grows without bound the step forgets where it came from: ρ⁺ → u·exp(−ℓ/λ)/Z.
func TestJKOLimitOfLongSteps(t *testing.T) {
	dst := make([]float64, 4)
	JKO(dst, oracleRho, oracleLoss, oracleU, squares(0, 0, .5, 1, 2), 1e9, .1, .2, JKOOptions{}, NewWorkspace(4))
	nearAll(t, "ρ⁺", dst, []float64{.017949997583133563, .21867573715116657, .763253319133351, .00012094613234886618}, 1e-8)
}

// With λ = 0 the step is a reversible Markov kernel; iterating it leads to the law ∝ b·(Kb), b = exp(−2τℓ/ε).
func TestJKOStationaryLaw(t *testing.T) {
	ws := NewWorkspace(4)
	rho := slices.Clone(oracleRho)
	for range 2000 {
		JKO(rho, rho, oracleLoss, oracleU, squares(0, 0, .5, 1, 2), .5, .1, 0, JKOOptions{}, ws)
	}
	nearAll(t, "stationary law", rho, []float64{3.9772391444887915e-6, .013212443242785179, .98678357951695232, 1.1180146127734169e-12}, 1e-13)
}

func TestJKOSaysWhenNotConverged(t *testing.T) {
	dst := make([]float64, 4)
	r := JKO(dst, oracleRho, oracleLoss, oracleU, squares(0, 0, .5, 1, 2), 1e6, .1, .2, JKOOptions{MaxIterations: 1}, NewWorkspace(4))
	if r.Converged || r.Gap < 1e-6 || r.Residual < 1e-6 {
		t.Errorf("after one Newton and one scaling step at τ = 1e6: %+v", r)
	}
}

// HK: own computation with mpmath, 50 digits.
func TestHKOracles(t *testing.T) {
	ws := NewWorkspace(4)
	cost := squares(.5, 0, .5, 1, 2)
	rho := slices.Clone(oracleRho)
	r := HK(rho, rho, oracleLoss, cost, .5, .1, ws)
	near(t, "mix loss", r.MixLoss, .74346165286509841, 1e-13)
	near(t, "OT cost", r.OTCost, .00053320617554994743, 1e-13)
	nearAll(t, "ρ⁺", rho, []float64{.35183930581997176, .3387966044695348, .25601258545365717, .053351504256836274}, 1e-13)
	r = HK(rho, rho, []float64{0, 1, 1, 1}, cost, .5, .1, ws)
	near(t, "mix loss", r.MixLoss, .58882631288112877, 1e-13)
	nearAll(t, "ρ⁺", rho, []float64{.4721786475466122, .27590932754615408, .20847481299835968, .043437211908874043}, 1e-13)
}

func TestHKLimits(t *testing.T) {
	ws := NewWorkspace(4)
	dst := make([]float64, 4)
	cost := squares(.5, 0, .5, 1, 2)
	HK(dst, oracleRho, oracleLoss, cost, .5, 1e9, ws)
	nearAll(t, "ε → ∞", dst, oracleU, 1e-8)
	HK(dst, oracleRho, oracleLoss, cost, 0, 1e-3, ws)
	nearAll(t, "η = 0, ε → 0", dst, oracleRho, 1e-15)
	if r := HK(dst, oracleRho, oracleLoss, cost, 0, .1, ws); math.Abs(r.MixLoss-detmath.Dot(oracleRho, oracleLoss)) > 1e-15 {
		t.Errorf("η = 0: mix loss %v, want the mean loss", r.MixLoss)
	}
}

func simplex(n int) *rapid.Generator[[]float64] {
	return rapid.Custom(func(t *rapid.T) []float64 {
		p := rapid.SliceOfN(rapid.Float64Range(0, 1), n, n).Draw(t, "weights")
		p[rapid.IntRange(0, n-1).Draw(t, "one")] += 0.1
		Normalize(p)
		return p
	})
}

func costs(n int) *rapid.Generator[[]float64] {
	return rapid.Custom(func(t *rapid.T) []float64 {
		return squares(rapid.Float64Range(0.01, 2).Draw(t, "c0"), rapid.SliceOfN(rapid.Float64Range(-3, 3), n, n).Draw(t, "x")...)
	})
}

func checkSimplex(t *rapid.T, what string, p []float64) {
	for i, x := range p {
		if !(x >= 0 && x <= 1+0x1p-50) {
			t.Fatalf("%s: element %d is %v", what, i, x)
		}
	}
	if d := math.Abs(detmath.Sum(p) - 1); d > 0x1p-50 {
		t.Fatalf("%s: sum is off by %v", what, d)
	}
}

func TestStepsStayInTheSimplex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		ws := NewWorkspace(n)
		rho, cost := simplex(n).Draw(t, "rho"), costs(n).Draw(t, "cost")
		loss := rapid.SliceOfN(rapid.Float64Range(-1e3, 1e3), n, n).Draw(t, "loss")
		eps := rapid.Float64Range(0.01, 100).Draw(t, "eps")
		dst, alias := make([]float64, n), slices.Clone(rho)
		eta := rapid.Float64Range(0, 10).Draw(t, "eta")
		r := HK(dst, rho, loss, cost, eta, eps, ws)
		checkSimplex(t, "HK", dst)
		if r.OTCost < 0 || r.Residual > 1e-14 {
			t.Fatalf("HK: %+v", r)
		}
		if again := HK(alias, alias, loss, cost, eta, eps, ws); again != r || !slices.Equal(alias, dst) {
			t.Fatalf("HK with dst = ρ gives %v, apart %v", alias, dst)
		}
		u := make([]float64, n)
		for i := range u {
			u[i] = 1 / float64(n)
		}
		lambda := rapid.SampledFrom([]float64{0, .05, 1}).Draw(t, "lambda")
		for i := range loss {
			loss[i] /= 100
		}
		j := JKO(dst, rho, loss, u, cost, rapid.Float64Range(.01, 10).Draw(t, "tau"), eps, lambda, JKOOptions{}, ws)
		checkSimplex(t, "JKO", dst)
		if scale := max(1, math.Abs(j.Primal)); j.Gap < -1e-10*scale || (j.Converged && j.Gap > 1e-10*scale) {
			t.Fatalf("JKO: %+v", j)
		}
		if !j.Converged && j.Residual < 1e-12 {
			t.Fatalf("JKO: residual %v but not converged: %+v", j.Residual, j)
		}
	})
}

// TestRegret asserts the tracking-regret inequality of HK's comment over the cheapest path of experts, found by
// Viterbi's recursion, while ε changes from step to step; hence it holds over every path.
func TestRegret(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 6).Draw(t, "n")
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		eta := rapid.Float64Range(.01, 2).Draw(t, "eta")
		cost := costs(n).Draw(t, "cost")
		ws := NewWorkspace(n)
		rho, k := make([]float64, n), NewTransition(n)
		best, next := make([]float64, n), make([]float64, n)
		for i := range n {
			rho[i] = 1 / float64(n)
			best[i] = math.Log(float64(n)) / eta
		}
		mixed, before := 0.0, 0.0
		for step := range steps {
			loss := rapid.SliceOfN(rapid.Float64Range(-8, 8), n, n).Draw(t, "loss")
			eps := rapid.Float64Range(.02, 1).Draw(t, "eps")
			k.Set(cost, eps)
			mean := detmath.Dot(rho, loss)
			r := k.HK(rho, rho, loss, eta, ws)
			mixed += r.MixLoss
			if mean > r.MixLoss+eta*16*16/8+1e-9 { // Hoeffding: losses range over 16
				t.Fatalf("step %d: mean loss %v above mix loss %v + η·16²/8", step, mean, r.MixLoss)
			}
			for j := range n {
				next[j] = math.Inf(1)
				for i := range n {
					next[j] = min(next[j], best[i]+loss[i]-math.Log(k.Kernel()[i*n+j])/eta)
				}
			}
			// The last step of a path pays no transition.
			end := math.Inf(1)
			for i := range n {
				end = min(end, best[i]+loss[i])
			}
			if mixed > end+1e-9*(1+math.Abs(before)) {
				t.Fatalf("step %d: cumulated mix loss %v exceeds the bound %v", step, mixed, end)
			}
			before = end
			best, next = next, best
		}
	})
}

func TestEntropyAndNormalize(t *testing.T) {
	near(t, "entropy", Entropy(oracleU), math.Log(4), 1e-15)
	near(t, "entropy of certainty", Entropy([]float64{0, 1, 0}), 0, 0)
	for _, p := range [][]float64{{0, 0}, {math.NaN(), 1}, {math.Inf(1), 1}} {
		if Normalize(p); p[0] != .5 || p[1] != .5 {
			t.Errorf("what cannot be scaled becomes %v, want uniform", p)
		}
	}
	p := make([]float64, 1000)
	for i := range p {
		p[i] = 1 / float64(i+3)
	}
	if Normalize(p); math.Abs(detmath.Sum(p)-1) > 0x1p-50 {
		t.Errorf("sum is off by %v", detmath.Sum(p)-1)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	ws := NewWorkspace(4)
	dst, plan, cost := make([]float64, 4), make([]float64, 16), squares(.5, 0, .5, 1, 2)
	if n := testing.AllocsPerRun(10, func() {
		HK(dst, oracleRho, oracleLoss, cost, .5, .1, ws)
		JKO(dst, oracleRho, oracleLoss, oracleU, cost, .5, .1, .2, JKOOptions{}, ws)
		Sinkhorn(plan, oracleRho, oracleU, cost, 1, SinkhornOptions{}, ws)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHK(b *testing.B) {
	ws, dst, cost := NewWorkspace(4), make([]float64, 4), squares(.5, 0, .5, 1, 2)
	for b.Loop() {
		HK(dst, oracleRho, oracleLoss, cost, .5, .1, ws)
	}
}

func BenchmarkJKO(b *testing.B) {
	ws, dst, cost := NewWorkspace(4), make([]float64, 4), squares(.5, 0, .5, 1, 2)
	for b.Loop() {
		JKO(dst, oracleRho, oracleLoss, oracleU, cost, .5, .1, .2, JKOOptions{}, ws)
	}
}

// value returns ⟨C,π⟩ + ε·Σ π(ln π − 1) of the plan w·K.
func value(w, kernel, cost []float64, eps float64) float64 {
	n, v := len(w), 0.0
	for i := range n {
		for j := range n {
			if pi := w[i] * kernel[i*n+j]; pi > 0 {
				v += pi * (cost[i*n+j] + eps*(math.Log(pi)-1))
			}
		}
	}
	return v
}

// The gap of a step in closed form is that of its definition to rounding, both for costs with a mirror image and for others; it grows when the
// kernel's mass is wrong.
func TestTransitionGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		w, cost := simplex(n).Draw(t, "w"), costs(n).Draw(t, "cost")
		if rapid.Bool().Draw(t, "lopsided") {
			cost[n-1] += rapid.Float64Range(-1, 1).Draw(t, "more")
		}
		eps := rapid.Float64Range(.01, 10).Draw(t, "eps")
		k := NewTransition(n)
		k.Set(cost, eps)
		dual := -eps // Σ w·φ − ε·Σ exp((φ−C)/ε) at φ = ε(ln w − ln Σ exp(−C/ε))
		for i, x := range w {
			s := 0.0
			for j := range n {
				s += math.Exp(-cost[i*n+j] / eps)
			}
			if x > 0 {
				dual += eps * x * (math.Log(x) - math.Log(s))
			}
		}
		gap := math.Abs(value(w, k.Kernel(), cost, eps)-dual) / max(1, eps)
		if math.Abs(gap-k.Gap()) > 1e-13 || k.Gap() > 1e-13 {
			t.Fatalf("gap %v, by the definition %v", k.Gap(), gap)
		}
	})
	// A row that lacks 10⁻⁹ of its mass, as a fault in the exponentials' sum would make it.
	k := NewTransition(4)
	k.Set(squares(.5, 0, .5, 1, 2), .5)
	if k.measure(.5); k.Gap() > 1e-14 {
		t.Errorf("gap %v", k.Gap())
	}
	k.mass[2] -= 1e-9
	if k.measure(.5); k.Gap() < 5e-10 {
		t.Errorf("gap %v of a plan that lacks mass", k.Gap())
	}
}

// A cost that is its own mirror image has half of its exponentials computed; the bits are those of computing all.
func TestMirroredKernel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		cost, eps := costs(n).Draw(t, "cost"), rapid.Float64Range(.01, 10).Draw(t, "eps")
		half, whole := NewTransition(n), NewTransition(n)
		half.Set(cost, eps)
		for i := range n {
			whole.row(i, cost[i*n:(i+1)*n], eps)
			whole.normalise(i, cost[i*n:(i+1)*n])
		}
		if !slices.Equal(half.Kernel(), whole.Kernel()) || !slices.Equal(half.paid, whole.paid) {
			t.Fatalf("%v and %v", half.Kernel(), whole.Kernel())
		}
	})
}

func TestFisherRaoGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		rho := simplex(n).Draw(t, "rho")
		loss := rapid.SliceOfN(rapid.Float64Range(-8, 8), n, n).Draw(t, "loss")
		eta := rapid.Float64Range(.01, 2).Draw(t, "eta")
		w := make([]float64, n)
		least, gap := FisherRao(w, rho, loss, eta, NewWorkspace(n))
		objective := 0.0
		for i, x := range w {
			if x > 0 {
				objective += x * (loss[i] + math.Log(x/rho[i])/eta)
			}
		}
		if math.Abs(objective-least)*eta > 1e-13*max(1, math.Abs(least*eta)) || gap > 1e-13 {
			t.Fatalf("objective %v, dual %v, gap %v", objective, least, gap)
		}
	})
	// Weights that lack 10⁻⁹ of their mass, as a fault in the sum would make them: the objective is off by about as much.
	if gap := fisherRaoGap(1-1e-9, -.5, .5); gap < 1e-9 || gap > 2e-9 {
		t.Errorf("gap %v of weights that lack mass", gap)
	}
}
