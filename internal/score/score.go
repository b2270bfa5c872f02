// Package score says what one-step forecasts were worth: beside the forecasts themselves it keeps what each expert, the
// best fixed mixture of them in hindsight, their plain mean and two standard aggregation rules would have achieved on the
// same observations. Its memory is quadratic in the number of experts and does not grow with the series.
package score

import (
	"math"

	"github.com/usp-project/usp/internal/aggregate"
	"github.com/usp-project/usp/predictor"
)

// Board accumulates the scores. Everything that it needs later is in exported fields; it is not safe for concurrent use.
type Board struct {
	N       uint64    // observations that had forecasts
	Unit    float64   // largest error of an expert so far, at least the smallest normal number
	Gram    []float64 // sums of products of the experts' errors, in units of Unit²: the lower triangle, row by row
	Abs     []float64 // sums of the experts' absolute errors, in units of Unit
	Uniform float64   // sum of squared errors of the experts' mean, in units of Unit²
	BOASq   float64   // likewise of Bernstein online aggregation
	PolySq  float64   // likewise of ML-Poly
	BOA     aggregate.BOA
	Poly    aggregate.MLPoly

	Turnover float64   // Σ|Δρ| of the ensemble's weights
	Rho      []float64 // weights at the last step; nil before the first
	CRPS     float64   // sum of the scores of the predictive laws, in the unit of the value
	Laws     uint64    // how many there were

	Flags    uint64             // of the last step
	Events   []Event            // the first MaxEvents of each kind, in their order
	Happened [len(kinds)]uint64 // all of them, by kind

	errs []float64
}

// New returns an empty board for so many experts.
func New(experts int) *Board {
	b := &Board{Unit: 0x1p-1022, Abs: make([]float64, experts), Poly: aggregate.NewMLPoly(experts, 0),
		Rho: make([]float64, experts), errs: make([]float64, experts)}
	equal := make([]float64, experts)
	aggregate.Uniform(equal)
	b.BOA = aggregate.NewBOA(equal)
	b.Gram = make([]float64, experts*(experts+1)/2)
	return b
}

// AddLaw takes the value of a step and the predictive law that stood before it. A value beyond the numbers that a score can
// be computed of is left out.
func (b *Board) AddLaw(value float64, law *predictor.Law) {
	if s := law.CRPS(value); s >= 0 && !math.IsInf(b.CRPS+s, 0) {
		b.CRPS += s
		b.Laws++
	}
}

// MeanCRPS is the mean score of the laws, NaN if there was none.
func (b *Board) MeanCRPS() float64 { return b.CRPS / float64(b.Laws) }

// Add takes the value of a step and what the predictor yielded at it.
func (b *Board) Add(value float64, out *predictor.Output) {
	if out.HasPrior {
		b.learn(value, out.PriorExperts)
		for i, w := range out.Weights {
			b.Turnover += math.Abs(w - b.Rho[i])
		}
	}
	copy(b.Rho, out.Weights)
	b.watch(out)
}

// learn scores the experts' forecasts x of one value.
func (b *Board) learn(value float64, x []float64) {
	b.N++
	largest := b.Unit
	for i := range x {
		b.errs[i] = x[i] - value
		largest = max(largest, math.Abs(b.errs[i]))
	}
	b.rescale(largest)
	var mean, boa, poly float64
	for i := range b.errs {
		b.errs[i] /= b.Unit
		mean += b.errs[i]
		boa += float64(b.BOA.Share[i] * b.errs[i])
		poly += float64(b.Poly.Share[i] * b.errs[i])
	}
	mean /= float64(len(x))
	b.Uniform += float64(mean * mean)
	b.BOASq += float64(boa * boa)
	b.PolySq += float64(poly * poly)
	for i, e := range b.errs {
		b.BOA.Gain(i, float64(2*boa*(boa-e)))
		b.Poly.Gain(i, float64(2*poly*(poly-e)))
		b.Abs[i] += math.Abs(e)
	}
	rest := b.Gram
	for i, e := range b.errs {
		row := rest[:i+1]
		rest = rest[i+1:]
		for j, f := range b.errs[:len(row)] {
			row[j] += float64(e * f)
		}
	}
	b.BOA.Mix()
	b.Poly.Mix()
}

// rescale makes unit the unit of all sums. Both rules do not depend on the unit of the errors.
func (b *Board) rescale(unit float64) {
	f := b.Unit / unit
	if f == 1 {
		return
	}
	b.Unit = unit
	b.Uniform *= float64(f * f)
	b.BOASq *= float64(f * f)
	b.PolySq *= float64(f * f)
	b.BOA.Scale(float64(f * f))
	b.Poly.Scale(float64(f * f))
	for i := range b.Abs {
		b.Abs[i] *= f
	}
	for i := range b.Gram {
		b.Gram[i] *= float64(f * f)
	}
}

// rmse is the root mean square of a sum of squares in units of Unit².
func (b *Board) rmse(sq float64) float64 {
	if b.N == 0 {
		return 0
	}
	return math.Sqrt(max(0, sq)/float64(b.N)) * b.Unit
}

// Errors returns the root mean square and the mean absolute error of one expert, in the unit of the value.
func (b *Board) Errors(expert int) (rmse, mae float64) {
	return b.rmse(b.Gram[expert*(expert+3)/2]), b.Abs[expert] / float64(max(1, b.N)) * b.Unit
}

// Report is what the experts and the mixtures of them achieved: root mean square errors, in the unit of the value.
type Report struct {
	Best       int     // expert with the smallest RMSE
	BestRMSE   float64 // its RMSE
	BestMAE    float64 // its mean absolute error
	ConvexRMSE float64 // of the best fixed convex combination in hindsight
	Convex     []float64
	Uniform    float64
	BOA        float64
	MLPoly     float64
}

// matrix is the whole of Gram.
func (b *Board) matrix() [][]float64 {
	g := make([][]float64, len(b.Abs))
	for i := range g {
		g[i] = make([]float64, len(g))
	}
	rest := b.Gram
	for i := range g {
		for j := range i + 1 {
			g[i][j], g[j][i] = rest[j], rest[j]
		}
		rest = rest[i+1:]
	}
	return g
}

// Report evaluates the sums.
func (b *Board) Report() Report {
	var r Report
	gram := b.matrix()
	for i := range gram {
		if gram[i][i] < gram[r.Best][r.Best] {
			r.Best = i
		}
	}
	w, sq := Simplex(gram)
	r.Convex, r.ConvexRMSE = w, b.rmse(sq)
	r.BestRMSE, r.BestMAE = b.Errors(r.Best)
	r.Uniform, r.BOA, r.MLPoly = b.rmse(b.Uniform), b.rmse(b.BOASq), b.rmse(b.PolySq)
	return r
}
