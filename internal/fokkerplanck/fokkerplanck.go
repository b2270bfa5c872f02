// Package fokkerplanck evolves the density of a one-dimensional diffusion dx = b dt + σ dW on a grid. A step is
// implicit in time, keeps every cell non-negative, and keeps the mass to rounding.
package fokkerplanck

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// Solver holds what a step needs between its two sweeps, for grids of a fixed number of cells.
type Solver struct {
	right, left []float64 // rates of flow out of cell j to j+1 and to j−1, times the step
	pivot, q    []float64
}

// New returns a solver for grids of cells cells, at least 2.
func New(cells int) *Solver {
	a := make([]float64, 4*cells)
	return &Solver{a[:cells], a[cells : 2*cells], a[2*cells : 3*cells], a[3*cells:]}
}

// Step advances the density p by dt under ∂p/∂t = −∂(b·p)/∂x + ½∂²(v·p)/∂x² with reflecting ends. Drift b and squared
// diffusion v ≥ 0 are given at the centres of the cells, width apart; all slices have one length, the solver's.
// The fluxes are those of Chang and Cooper, J. Comput. Phys. 6, 1970; the Thomas sweeps are arranged without a
// subtraction (columns of the matrix sum to one), so that no rounding can make a cell negative.
func (s *Solver) Step(p, b, v []float64, width, dt float64) {
	n := len(p)
	s.left[0], s.right[n-1] = 0, 0
	scale := dt / width
	for j := range n - 1 {
		drift := float64(0.5*(b[j]+b[j+1])) - float64(0.5*(v[j+1]-v[j]))/width
		up, down := edge(drift, float64(0.25*(v[j]+v[j+1]))/width)
		s.right[j], s.left[j+1] = float64(scale*up), float64(scale*down)
	}
	// kept is the pivot less the flow to the right: at least one.
	kept := 1.0
	s.q[0], s.pivot[0] = p[0], kept+s.right[0]
	for j := 1; j < n; j++ {
		kept = 1 + float64(s.left[j]*(kept/s.pivot[j-1]))
		s.pivot[j] = kept + s.right[j]
		s.q[j] = p[j] + float64(s.right[j-1]/s.pivot[j-1]*s.q[j-1])
	}
	p[n-1] = s.q[n-1] / s.pivot[n-1]
	for j := n - 2; j >= 0; j-- {
		p[j] = (s.q[j] + float64(s.left[j+1]*p[j+1])) / s.pivot[j]
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
	case speed < float64(0.02*c):
		w := speed / c
		against = float64(c * (1 - float64(0.5*w) + float64(w*w)/12))
	default:
		e := detmath.Exp(-speed / c)
		against = float64(speed*e) / (1 - e)
	}
	if drift < 0 {
		return against, against + speed
	}
	return against + speed, against
}
