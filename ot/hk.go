package ot

import (
	"math"

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
	kernel, paid, mass, off []float64
	gap                     float64
}

// NewTransition returns a transition between n points, for Set to fill.
func NewTransition(n int) *Transition {
	b := make([]float64, n*n+3*n)
	return &Transition{kernel: b[: n*n : n*n], paid: b[n*n : n*n+n], mass: b[n*n+n : n*n+2*n], off: b[n*n+2*n:]}
}

// Kernel returns K, n×n by rows, valid until the next Set and not to be written.
func (t *Transition) Kernel() []float64 { return t.kernel }

// Gap returns by how much a row's ⟨C,p⟩ + ε·Σ p·ln p is off its dual value −ε·ln Σ exp(−C/ε), relative to max(1, |that
// value|): the greatest of the rows, which bounds the gap of any step by this kernel.
func (t *Transition) Gap() float64 { return t.gap }

// Set computes the kernel of a cost at ε > 0.
func (t *Transition) Set(cost []float64, eps float64) {
	n := len(t.paid)
	cost = cost[:n*n]
	clear(t.off)
	if plain(cost, n) {
		t.mirror(cost, eps)
	} else {
		for i := range n {
			t.row(i, cost[i*n:(i+1)*n], eps)
		}
	}
	t.gap = 0
	for i := range n {
		t.normalise(i, cost[i*n:(i+1)*n], eps)
	}
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
	n := len(t.paid)
	for i := range n {
		row, c := t.kernel[i*n:i*n+i+1], cost[i*n:i*n+i]
		for j, x := range c {
			e, off := expOff(-x / eps)
			row[j], t.kernel[j*n+i] = e, e
			t.off[i] += off
			t.off[j] += off
		}
		row[i] = 1
	}
}

// row writes exp((least − C)/ε) for row i.
func (t *Transition) row(i int, c []float64, eps float64) {
	row := t.kernel[i*len(c) : (i+1)*len(c)]
	least := c[0]
	for _, x := range c[1:] {
		least = min(least, x)
	}
	for j, x := range c {
		var off float64
		row[j], off = expOff((least - x) / eps)
		t.off[i] += off
	}
}

// expOff returns e = exp(x) for x ≤ 0 and e·(ln e − x), what rounding, or a fault, made of it.
func expOff(x float64) (e, off float64) {
	e = detmath.Exp(x)
	if e < 0x1p-60 && x < -40 { // nothing that could be wrong with it counts
		return e, 0
	}
	return e, float64(e * (detmath.Log(e) - x))
}

// normalise makes row i sum to 1, and takes its cost and its gap.
func (t *Transition) normalise(i int, c []float64, eps float64) {
	row := t.kernel[i*len(c) : (i+1)*len(c)]
	s, least := 0.0, c[0]
	for j, e := range row {
		s += e
		least = min(least, c[j])
	}
	paid, mass := 0.0, 0.0
	for j, e := range row {
		k := e / s
		row[j] = k
		mass += k
		paid += float64(k * c[j])
	}
	t.paid[i], t.mass[i] = paid, mass
	// With Eᵢⱼ = exp((least − Cᵢⱼ)/ε) as computed, ln Kᵢⱼ is ln Eᵢⱼ − ln s.
	log := detmath.Log(s)
	gap := float64(eps * (t.off[i]/s + float64(log*(1-mass))))
	t.gap = max(t.gap, math.Abs(gap)/max(1, math.Abs(least-float64(eps*log))))
}

// HK performs a Fisher–Rao step with rate η and then the Wasserstein step by the kernel. η = 0 leaves the former out. dst may be rho.
func (t *Transition) HK(dst, rho, loss []float64, eta float64, ws *Workspace) HKResult {
	n := len(rho)
	w, p := ws.w[:n], ws.p[:n]
	var r HKResult
	r.MixLoss, r.Gap = FisherRao(w, rho, loss[:n], eta)
	r.Gap = max(r.Gap, t.gap)
	clear(p)
	for i, wi := range w {
		k := t.kernel[i*n : (i+1)*n]
		for j, kij := range k[:len(p)] {
			p[j] += float64(wi * kij)
		}
		r.OTCost += float64(wi * t.paid[i])
		r.Residual = max(r.Residual, float64(wi*math.Abs(t.mass[i]-1)))
	}
	copy(dst[:n], p)
	Normalize(dst[:n])
	return r
}

// FisherRao writes to dst the w ∝ ρ·exp(−ηℓ) that minimises ⟨w,ℓ⟩ + KL(w‖ρ)/η over the simplex, and returns the least
// value −(1/η)·ln Σ ρᵢ·exp(−ηℓᵢ), which is also that of the dual, and the gap: by how much the objective at the w written
// is off that value, in units of 1/η and relative to max(1, η|value|). η = 0 writes ρ and returns its mean loss. dst may be rho.
func FisherRao(dst, rho, loss []float64, eta float64) (value, gap float64) {
	dst, loss = dst[:len(rho)], loss[:len(rho)]
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
	s, off, mass := 0.0, 0.0, 0.0
	for i, l := range loss {
		e := 0.0
		if rho[i] > 0 {
			x := float64(-eta * (l - least))
			if e = detmath.Exp(x); e > 0 {
				off += float64(rho[i] * e * (detmath.Log(e) - x))
			}
			e = float64(rho[i] * e)
		}
		dst[i] = e
		s += e
	}
	for i := range dst {
		dst[i] /= s
		mass += dst[i]
	}
	// With Eᵢ = exp(−η(ℓᵢ − least)) as computed, ln(wᵢ/ρᵢ) is ln Eᵢ − ln s.
	log := detmath.Log(s)
	value = least - log/eta
	return value, math.Abs(off/s+float64(log*(1-mass))) / max(1, math.Abs(float64(eta*value)))
}
