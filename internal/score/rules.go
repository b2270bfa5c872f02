package score

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// boa is Bernstein online aggregation on linearised squared errors (Wintenberger, Machine Learning 106, 2017).
type boa struct {
	W, V, S []float64 // weights; sums of 2.2 r² and of r − r²/√V
}

func newBOA(n int) boa { return boa{uniform(n), make([]float64, n), make([]float64, n)} }

// learn takes the experts' errors e (forecast − value) and the error m of their mixture by W.
func (b *boa) learn(e []float64, m float64) {
	top := math.Inf(-1)
	for i := range e {
		r := 2 * float64(m*(m-e[i]))
		b.V[i] += 2.2 * float64(r*r)
		if b.V[i] > 0 {
			b.S[i] += r - float64(r*r)/math.Sqrt(b.V[i])
			top = max(top, b.S[i]/math.Sqrt(b.V[i]))
		}
	}
	sum := 0.0
	for i, v := range b.V {
		if v <= 0 { // nothing has told the experts apart yet
			for j := range b.W {
				b.W[j] = 1 / float64(len(b.W))
			}
			return
		}
		b.W[i] = detmath.Exp(b.S[i]/math.Sqrt(v)-top) / math.Sqrt(v)
		sum += b.W[i]
	}
	for i := range b.W {
		b.W[i] /= sum
	}
}

// rescale multiplies the unit of the regrets by f.
func (b *boa) rescale(f float64) {
	for i := range b.V {
		b.V[i] *= float64(f * f)
		b.S[i] *= f
	}
}

// poly is ML-Poly on linearised squared errors (Gaillard, Stoltz, van Erven, COLT 2014).
type poly struct {
	W, R, Inv []float64 // weights; sums of regrets; inverse learning rates
}

func newPoly(n int) poly { return poly{uniform(n), make([]float64, n), make([]float64, n)} }

func (p *poly) learn(e []float64, m float64) {
	sum := 0.0
	for i := range e {
		r := 2 * float64(m*(m-e[i]))
		p.R[i] += r
		p.Inv[i] += float64(r * r)
		p.W[i] = 0
		if p.R[i] > 0 && p.Inv[i] > 0 {
			p.W[i] = p.R[i] / p.Inv[i]
		}
		sum += p.W[i]
	}
	for i := range p.W {
		if sum > 0 {
			p.W[i] /= sum
		} else {
			p.W[i] = 1 / float64(len(p.W))
		}
	}
}

func (p *poly) rescale(f float64) {
	for i := range p.R {
		p.R[i] *= f
		p.Inv[i] *= float64(f * f)
	}
}

func uniform(n int) []float64 {
	w := make([]float64, n)
	for i := range w {
		w[i] = 1 / float64(n)
	}
	return w
}
