// Package fokkerplanck evolves the density of a one-dimensional diffusion dx = b dt + σ dW on a grid. A step is
// implicit in time, keeps every cell non-negative, and keeps the mass to rounding.
package fokkerplanck

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// Solver holds the operator of one step, for grids of a fixed number of cells.
type Solver struct {
	right, left    []float64 // rates of flow out of cell j to j+1 and to j−1, times the step
	inverse, carry []float64 // of the pivot; what a cell hands to the next in the first sweep
}

// New returns a solver for grids of cells cells, at least 2.
func New(cells int) *Solver {
	a := make([]float64, 4*cells)
	return &Solver{a[:cells], a[cells : 2*cells], a[2*cells : 3*cells], a[3*cells:]}
}

// Prepare sets the operator of Advance: a step of length dt under ∂p/∂t = −∂(b·p)/∂x + ½∂²(v·p)/∂x² with reflecting
// ends. Drift b and squared diffusion v ≥ 0 are given at the centres of the cells, width apart; both have the solver's
// length. The fluxes are those of Chang and Cooper, J. Comput. Phys. 6, 1970.
func (s *Solver) Prepare(b, v []float64, width, dt float64) {
	n := len(s.left)
	s.left[0], s.right[n-1] = 0, 0
	scale, cells := dt/width, 1/width
	for j := range n - 1 {
		drift := float64(0.5*(b[j]+b[j+1])) - float64(0.5*(v[j+1]-v[j])*cells)
		up, down := edge(drift, float64(0.25*(v[j]+v[j+1])*cells))
		s.right[j], s.left[j+1] = float64(scale*up), float64(scale*down)
	}
	// kept is the pivot less the flow to the right: at least one.
	kept := 1.0
	s.inverse[0], s.carry[0] = 1/(kept+s.right[0]), 0
	for j := 1; j < n; j++ {
		kept = 1 + float64(s.left[j]*float64(kept*s.inverse[j-1]))
		s.inverse[j] = 1 / (kept + s.right[j])
		s.carry[j] = float64(s.right[j-1] * s.inverse[j-1])
	}
}

// Advance takes the density p, of the solver's length, one prepared step on, implicitly. The Thomas sweeps are arranged
// without a subtraction (columns of the matrix sum to one), so that no rounding can make a cell negative.
func (s *Solver) Advance(p []float64) {
	n := len(p)
	left, inverse, carry := s.left[:n], s.inverse[:n], s.carry[:n]
	for j := 1; j < n; j++ {
		p[j] += float64(carry[j] * p[j-1])
	}
	p[n-1] = float64(p[n-1] * inverse[n-1])
	for j := n - 2; j >= 0; j-- {
		p[j] = float64((p[j] + float64(left[j+1]*p[j+1])) * inverse[j])
	}
}

// edge returns the speeds at which an edge passes on the densities of the cells left and right of it: c·B(−w) and
// c·B(w) with B(w) = w/(eʷ−1) and w = drift/c, where c is the diffusion divided by the width of a cell.
func edge(drift, c float64) (up, down float64) {
	speed := math.Abs(drift)
	var against float64
	switch {
	case speed >= float64(40*c):
		against = 0
	case speed < float64(0.25*c): // the series, to 1e−11
		w := speed / c
		w2 := float64(w * w)
		against = float64(c * (1 - float64(0.5*w) + float64(w2*(1-float64(w2*(1-float64(w2*(1.0/42)))*(1.0/60)))*(1.0/12))))
	default:
		e := detmath.Exp(-speed / c)
		against = float64(speed*e) / (1 - e)
	}
	if drift < 0 {
		return against, against + speed
	}
	return against + speed, against
}
