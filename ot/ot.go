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
	t                  *Transition
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
		psi: cut(n), d: cut(n), row: cut(n), try: cut(n), t: NewTransition(n)}
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
