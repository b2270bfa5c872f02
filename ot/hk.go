package ot

import (
	"math"
	"slices"

	"github.com/usp-project/usp/detmath"
)

// HKResult says what a Hellinger–Kantorovich step cost.
type HKResult struct {
	MixLoss  float64 // −(1/η)·ln Σ ρᵢ·exp(−ηℓᵢ), the least value of ⟨w,ℓ⟩ + KL(w‖ρ)/η: unit of the loss
	OTCost   float64 // ⟨C,π⟩ of the transport plan executed: unit of the cost
	Residual float64 // largest deviation of the plan's first marginal from what was to be transported
	Gap      float64 // relative duality gap, the greater of FisherRao's and of Transition.Gap
}

// HK performs one Hellinger–Kantorovich step by splitting: a Fisher–Rao step (exponentiated gradient with rate η)
// followed by a Wasserstein step whose kernel is softmax(−C/ε), row by row. See FisherRao and Transition, which it
// combines. dst may be rho.
//
// This is the splitting scheme of Gallouët and Monsaingeon (SIAM J. Math. Anal. 49, 2017); read as prediction with
// expert advice it is the forward algorithm of a hidden Markov model over experts, of which Herbster and Warmuth's
// fixed share is the case of constant C. For every path of experts i₁…i_T
//
//	Σ MixLoss ≤ Σ ℓ(t,i_t) + (1/η)·[ln N + Σ −ln K_t(i_t,i_{t+1})].
func HK(dst, rho, loss, cost []float64, eta, eps float64, ws *Workspace) HKResult {
	ws.t.Set(cost, eps)
	return ws.t.HK(dst, rho, loss, eta, ws)
}

// Transition is the kernel K = softmax(−C/ε), row by row, with what all Wasserstein steps by it share. The plan that moves w,
// πᵢⱼ = wᵢ·Kᵢⱼ, minimises ⟨C,π⟩ + ε·Σ π(ln π − 1) among those with first marginal w.
type Transition struct {
	kernel, paid, mass []float64
	gap, logN          float64
}

// NewTransition returns a transition between n points, for Set to fill.
func NewTransition(n int) *Transition {
	b := make([]float64, n*n+2*n)
	return &Transition{kernel: b[: n*n : n*n], paid: b[n*n : n*n+n], mass: b[n*n+n:], logN: detmath.Log(float64(n))}
}

// Kernel returns K, n×n by rows, valid until the next Set and not to be written.
func (t *Transition) Kernel() []float64 { return t.kernel }

// Gap bounds the duality gap of the Wasserstein steps by this kernel, relative to max(1, ε). The plan has the form
// exp((φᵢ − Cᵢⱼ)/ε) with φᵢ = ε·(ln wᵢ − ln Σⱼ exp(−Cᵢⱼ/ε)), the dual's maximiser, so primal minus dual is
// Σ (φᵢ − ε)·(massᵢ − wᵢ) with massᵢ the sum of row i of the plan. The masses are summed up from the kernel as it is used;
// that its elements are exponentials of what they should be is for the tests of package detmath.
func (t *Transition) Gap() float64 { return t.gap }

// Set computes the kernel of a cost at ε > 0.
func (t *Transition) Set(cost []float64, eps float64) {
	n := len(t.paid)
	cost = cost[:n*n]
	if plain(cost, n) {
		t.mirror(cost, eps)
	} else {
		for i := range n {
			t.row(i, cost[i*n:(i+1)*n], eps)
		}
	}
	for i := range n {
		t.normalise(i, cost[i*n:(i+1)*n])
	}
	t.measure(eps)
}

// measure takes the gap from the masses.
func (t *Transition) measure(eps float64) {
	worst := 0.0
	for _, m := range t.mass {
		worst = max(worst, math.Abs(m-1))
	}
	// Σ |φ − ε|·w is at most this, because Σ −w·ln w ≤ ln n and a row's exponentials, the greatest being 1, sum up to n at most.
	t.gap = float64(eps*(1+float64(2*t.logN))*worst) / max(1, eps)
}

// plain says whether the cost is that of a metric: symmetric, zero to stay and none below.
func plain(cost []float64, n int) bool {
	for i := range n {
		row := cost[i*n : (i+1)*n]
		for j, c := range row[:i] {
			if c != cost[j*n+i] || !(c >= 0) {
				return false
			}
		}
		if row[i] != 0 {
			return false
		}
	}
	return true
}

// mirror writes exp(−C/ε) for a plain cost, each pair once.
func (t *Transition) mirror(cost []float64, eps float64) {
	n, inverse := len(t.paid), -1/eps
	for i := range n {
		row, c := t.kernel[i*n:i*n+i+1], cost[i*n:i*n+i]
		for j, x := range c {
			row[j] = float64(x * inverse)
		}
		detmath.ExpEach(row[:i])
		for j, e := range row[:i] {
			t.kernel[j*n+i] = e
		}
		row[i] = 1
	}
}

// row writes exp((least − C)/ε) for row i.
func (t *Transition) row(i int, c []float64, eps float64) {
	row := t.kernel[i*len(c) : (i+1)*len(c)]
	least, inverse := slices.Min(c), 1/eps
	for j, x := range c {
		row[j] = float64((least - x) * inverse)
	}
	detmath.ExpEach(row)
}

// normalise makes row i sum to 1, and takes its cost and what it does sum to.
func (t *Transition) normalise(i int, c []float64) {
	row := t.kernel[i*len(c) : (i+1)*len(c)]
	s := 0.0
	for _, e := range row {
		s += e
	}
	paid, mass, share := 0.0, 0.0, 1/s
	for j, e := range row {
		k := float64(e * share)
		row[j] = k
		mass += k
		paid += float64(k * c[j])
	}
	t.paid[i], t.mass[i] = paid, mass
}

// HK performs a Fisher–Rao step with rate η and then the Wasserstein step by the kernel. η = 0 leaves the former out. dst may be rho.
func (t *Transition) HK(dst, rho, loss []float64, eta float64, ws *Workspace) HKResult {
	n := len(rho)
	w, p := ws.w[:n], ws.p[:n]
	var r HKResult
	r.MixLoss, r.Gap = FisherRao(w, rho, loss[:n], eta, ws)
	r.Gap = max(r.Gap, t.gap)
	detmath.VecMul(p, w, t.kernel)
	for i, wi := range w {
		r.OTCost += float64(wi * t.paid[i])
		r.Residual = max(r.Residual, float64(wi*math.Abs(t.mass[i]-1)))
	}
	copy(dst[:n], p)
	Normalize(dst[:n])
	return r
}

// FisherRao writes to dst the w ∝ ρ·exp(−ηℓ) that minimises ⟨w,ℓ⟩ + KL(w‖ρ)/η over the simplex, and returns the least
// value, −(1/η)·ln Σ ρᵢ·exp(−ηℓᵢ), and the duality gap: by how much the objective at the w written is off it, in units of
// 1/η, relative to max(1, η|value|) and, like Transition.Gap, by the mass that was written. η = 0 writes ρ and returns its
// mean loss. dst may be rho.
func FisherRao(dst, rho, loss []float64, eta float64, ws *Workspace) (value, gap float64) {
	dst, loss = dst[:len(rho)], loss[:len(rho)]
	w := ws.q[:len(rho)]
	if eta == 0 {
		copy(dst, rho)
		return detmath.Dot(rho, loss), 0
	}
	least := math.Inf(1) // among the experts that have weight: relative to another's, all exponentials could be zero
	for i, l := range loss {
		if rho[i] > 0 {
			least = min(least, l)
		}
	}
	for i, l := range loss {
		w[i] = min(0, float64(-eta*(l-least))) // 0 for those without weight
	}
	detmath.ExpEach(w)
	s, mass := 0.0, 0.0
	for i, r := range rho {
		dst[i] = float64(r * w[i])
		s += dst[i]
	}
	for i := range dst {
		dst[i] /= s
		mass += dst[i]
	}
	log := detmath.Log(s)
	value = least - log/eta
	return value, fisherRaoGap(mass, log, float64(eta*value))
}

// fisherRaoGap returns the gap of a w that sums to mass, where log is ln Σ ρᵢ·exp(−η(ℓᵢ − least)).
func fisherRaoGap(mass, log, etaValue float64) float64 {
	return float64((1+math.Abs(log))*math.Abs(mass-1)) / max(1, math.Abs(etaValue))
}
