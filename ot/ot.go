// Package ot computes optimal-transport steps between probability vectors on a finite ground set: the
// Hellinger–Kantorovich and JKO steps that move an ensemble's weights, and Sinkhorn's plan between given marginals.
//
// Every function is pure. Results go to dst, scratch space to a Workspace, nothing else is written and nothing is
// allocated. All arithmetic is in a fixed order with the functions of package detmath, so the bits of a result
// depend on the arguments alone. Costs are row-major n×n matrices; ε, the entropic regularisation, has the unit of
// the cost; entropies are in nats. Slices whose lengths do not fit make a function panic, as indexing would.
package ot

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// Workspace is the scratch space of the functions of this package. One workspace serves one goroutine at a time;
// nothing is remembered in it from call to call.
type Workspace struct {
	n                  int
	kernel, hess       []float64 // n×n
	w, q, p, g, psi, d []float64 // n
	row, try           []float64 // n
}

// NewWorkspace returns a workspace for vectors of length n ≥ 1.
func NewWorkspace(n int) *Workspace {
	b := make([]float64, 2*n*n+8*n)
	cut := func(k int) []float64 {
		s := b[:k:k]
		b = b[k:]
		return s
	}
	return &Workspace{n: n, kernel: cut(n * n), hess: cut(n * n), w: cut(n), q: cut(n), p: cut(n), g: cut(n),
		psi: cut(n), d: cut(n), row: cut(n), try: cut(n)}
}

// HKResult says what a Hellinger–Kantorovich step cost.
type HKResult struct {
	MixLoss  float64 // −(1/η)·ln Σ ρᵢ·exp(−ηℓᵢ), the least value of ⟨w,ℓ⟩ + KL(w‖ρ)/η: unit of the loss
	OTCost   float64 // ⟨C,π⟩ of the transport plan executed: unit of the cost
	Residual float64 // largest deviation of the plan's first marginal from what was to be transported
}

// HK performs one Hellinger–Kantorovich step by splitting: a Fisher–Rao step (exponentiated gradient with rate η)
// followed by a Wasserstein step whose kernel is softmax(−C/ε), row by row. See Kernel and HKKernel, which it
// combines. dst may be rho.
//
// This is the splitting scheme of Gallouët and Monsaingeon (SIAM J. Math. Anal. 49, 2017); read as prediction with
// expert advice it is the forward algorithm of a hidden Markov model over experts, of which Herbster and Warmuth's
// fixed share is the case of constant C. For every path of experts i₁…i_T
//
//	Σ MixLoss ≤ Σ ℓ(t,i_t) + (1/η)·[ln N + Σ −ln K_t(i_t,i_{t+1})].
func HK(dst, rho, loss, cost []float64, eta, eps float64, ws *Workspace) HKResult {
	Kernel(ws.kernel, cost, eps)
	return HKKernel(dst, rho, loss, cost, ws.kernel, eta, ws)
}

// Kernel writes softmax(−C/ε) by rows to dst: Kᵢⱼ = exp(−Cᵢⱼ/ε) / Σⱼ exp(−Cᵢⱼ/ε). ε must be positive.
func Kernel(dst, cost []float64, eps float64) {
	n := side(cost)
	dst = dst[:n*n]
	for i := range n {
		softmin(dst[i*n:(i+1)*n], cost[i*n:(i+1)*n], eps)
	}
}

// softmin writes softmax(−c/eps) to dst.
func softmin(dst, c []float64, eps float64) {
	dst = dst[:len(c)]
	least := c[0]
	for _, x := range c[1:] {
		least = min(least, x)
	}
	s := 0.0
	for j, x := range c {
		e := 1.0
		if x != least { // the diagonal of a cost, most often
			e = detmath.Exp((least - x) / eps)
		}
		dst[j] = e
		s += e
	}
	for j := range dst {
		dst[j] /= s
	}
}

// HKKernel is HK with the rows of kernel given, for several steps that share one cost. η = 0 leaves the Fisher–Rao
// step out. dst may be rho.
func HKKernel(dst, rho, loss, cost, kernel []float64, eta float64, ws *Workspace) HKResult {
	n := len(rho)
	w := ws.w[:n]
	var r HKResult
	r.MixLoss = fisherRao(w, rho, loss[:n], eta)
	p := ws.p[:n]
	clear(p)
	for i := range n {
		k, c := kernel[i*n:(i+1)*n], cost[i*n:(i+1)*n]
		mass, paid := 0.0, 0.0
		for j, kij := range k {
			pi := float64(w[i] * kij)
			p[j] += pi
			mass += pi
			paid += float64(pi * c[j])
		}
		r.OTCost += paid
		r.Residual = max(r.Residual, math.Abs(mass-w[i]))
	}
	copy(dst[:n], p)
	Normalize(dst[:n])
	return r
}

// fisherRao writes w ∝ ρ·exp(−ηℓ) and returns the mix loss.
func fisherRao(w, rho, loss []float64, eta float64) float64 {
	if eta == 0 {
		copy(w, rho)
		return detmath.Dot(rho, loss)
	}
	least := math.Inf(1) // among the experts that have weight: relative to another's, all exponentials could be zero
	for i, l := range loss {
		if rho[i] > 0 {
			least = min(least, l)
		}
	}
	s := 0.0
	for i, l := range loss {
		w[i] = 0
		if rho[i] > 0 {
			w[i] = float64(rho[i] * detmath.Exp(float64(-eta*(l-least))))
			s += w[i]
		}
	}
	for i := range w {
		w[i] /= s
	}
	return least - detmath.Log(s)/eta
}

// Entropy returns −Σ p·ln p in nats, with 0·ln 0 = 0.
func Entropy(p []float64) float64 {
	h := 0.0
	for _, x := range p {
		if x > 0 {
			h -= float64(x * detmath.Log(x))
		}
	}
	return h
}

// Normalize scales p, whose elements are not negative, to sum 1: |Σp − 1| ≤ 2⁻⁵⁰, the same bits everywhere, since the
// sum is compensated and each quotient off by at most 2⁻⁵³ of itself. A p whose sum is zero or not finite becomes
// uniform.
func Normalize(p []float64) {
	s := detmath.Sum(p)
	if !(s > 0) || math.IsInf(s, 0) {
		for i := range p {
			p[i] = 1 / float64(len(p))
		}
		return
	}
	for i := range p {
		p[i] /= s
	}
}

func side(cost []float64) int {
	n := int(math.Sqrt(float64(len(cost))) + 0.5)
	if n == 0 || n*n != len(cost) {
		panic("ot: the cost is not a square matrix")
	}
	return n
}
