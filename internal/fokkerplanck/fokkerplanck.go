// Package fokkerplanck evolves the density of a one-dimensional diffusion dx = b dt + σ dW on a grid. A step is
// implicit in time, keeps every cell non-negative, and keeps the mass to rounding.
package fokkerplanck

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// Solver holds the operator of one step, for grids of a fixed number of cells.
type Solver struct {
	right, left []float64 // rates of flow out of cell j to j+1 and to j−1, times the step
	inverse     []float64 // of the pivot
	hand        []float64 // share of its sum that a cell hands to the next one inwards
	back        []float64 // share of the next inner cell's solution that it gets back
}

// New returns a solver for grids of cells cells, at least 2.
func New(cells int) *Solver {
	a := make([]float64, 5*cells)
	part := func(k int) []float64 { return a[k*cells : (k+1)*cells] }
	return &Solver{part(0), part(1), part(2), part(3), part(4)}
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
	s.eliminate()
}

// eliminate takes the matrix apart from both ends at once towards the middle, which halves the time that is spent waiting
// for a neighbour. It is arranged without a subtraction (columns of the matrix sum to one), so that no rounding can make a
// cell negative.
func (s *Solver) eliminate() {
	n := len(s.left)
	right, left, inverse, hand, back := s.right[:n], s.left[:n], s.inverse[:n], s.hand[:n], s.back[:n]
	middle := n / 2
	// The pivots less the flows inwards, at least one, and what their elimination leaves of the next.
	low, high, fromLow, fromHigh := 1.0, 1.0, 0.0, 0.0
	for i := range middle {
		low = 1 + float64(left[i]*fromLow)
		inverse[i] = 1 / (low + right[i])
		fromLow = float64(low * inverse[i])
		if k := n - 1 - i; k > middle {
			high = 1 + float64(right[k]*fromHigh)
			inverse[k] = 1 / (high + left[k])
			fromHigh = float64(high * inverse[k])
		}
	}
	inverse[middle] = 1 / (1 + float64(left[middle]*fromLow) + float64(right[middle]*fromHigh))
	for i := range middle {
		hand[i], back[i] = float64(right[i]*inverse[i]), float64(left[i+1]*inverse[i])
	}
	for k := middle + 1; k < n; k++ {
		hand[k], back[k] = float64(left[k]*inverse[k]), float64(right[k-1]*inverse[k])
	}
}

// Advance takes the density p, of the solver's length, one prepared step on, implicitly.
func (s *Solver) Advance(p []float64) {
	n := len(p)
	inverse, hand, back := s.inverse[:n], s.hand[:n], s.back[:n]
	middle := n / 2
	low, high := 0.0, 0.0
	for i := range middle {
		p[i] += low
		low = float64(hand[i] * p[i])
		if k := n - 1 - i; k > middle {
			p[k] += high
			high = float64(hand[k] * p[k])
		}
	}
	p[middle] = float64((p[middle] + low + high) * inverse[middle])
	low, high = p[middle], p[middle]
	for i := middle - 1; i >= 0; i-- {
		low = float64(p[i]*inverse[i]) + float64(back[i]*low)
		p[i] = low
		if k := n - 1 - i; k > middle {
			high = float64(p[k]*inverse[k]) + float64(back[k]*high)
			p[k] = high
		}
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
