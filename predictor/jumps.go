package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// jumpExperts returns the experts for mean reversion with jumps and for heavy tails.
func jumpExperts(Config) []expert { return []expert{&jumpDiffusion{}, newStableWalk()} }

// JumpLaw is the law of what a process gains within one step when it moves by a drift, a Brownian motion and a compound
// Poisson process with normal jumps (Merton, J. Financial Economics 3, 1976, on the scale of the logarithm): the
// Poisson mixture Σₖ e^−λ λᵏ/k! · N(drift + k·m, sd² + k·s²). All but Rate are in the unit of the value.
type JumpLaw struct {
	Drift, SD        float64 // of one step without a jump; SD > 0
	Rate             float64 // λ, expected jumps in a step, ≥ 0
	JumpMean, JumpSD float64 // m and s of one jump
}

// jumpTerms is the greatest number of terms of the mixture: for λ ≤ 1 what is left out weighs less than 1e−18.
const jumpTerms = 20

// Mean returns the expectation.
func (l *JumpLaw) Mean() float64 { return l.Drift + float64(l.Rate*l.JumpMean) }

// Variance returns the variance.
func (l *JumpLaw) Variance() float64 {
	return float64(l.SD*l.SD) + float64(l.Rate*(float64(l.JumpMean*l.JumpMean)+float64(l.JumpSD*l.JumpSD)))
}

// Density returns the density at x, from at most jumpTerms terms.
func (l *JumpLaw) Density(x float64) float64 {
	sum, weight := 0.0, detmath.Exp(-l.Rate)
	for k := range jumpTerms {
		mean, sd := l.term(float64(k))
		sum += float64(weight / sd * detmath.NormalPDF((x-mean)/sd))
		weight = float64(weight * l.Rate / float64(k+1))
	}
	return sum
}

// term returns mean and standard deviation of the gain in a step with k jumps.
func (l *JumpLaw) term(k float64) (mean, sd float64) {
	return l.Drift + float64(k*l.JumpMean), math.Sqrt(float64(l.SD*l.SD) + float64(k*float64(l.JumpSD*l.JumpSD)))
}

const (
	jumpThreshold = 4    // innovations beyond so many σ are jumps
	jumpMemory    = 250  // steps that σ, rate and reversion rest on
	jumpSizes     = 0.05 // weight of the newest jump in the moments of the sizes, at least
	jumpLeast     = 1e-6 // terms of the mixture that weigh less are left out
	jumpEvidence  = 9    // squared t statistic that reversion must exceed: far beyond what a random walk shows
	driftEvidence = 4    // the same for a drift
)

// jumpDiffusion is an Ornstein–Uhlenbeck process with Poisson jumps, seen at unit steps: Δx = drift + b·(x − mean) + σ·ε + jump
// with b = e^−θ − 1 ≤ 0. σ comes from bipower variation (Barndorff-Nielsen and Shephard, J. Financial Econometrics 2,
// 2004), which a single jump hardly moves; an innovation beyond 4σ is a jump; drift and reversion come from the
// regression of the other increments on the level before them (Mancini, Scand. J. Statistics 36, 2009). Everything is
// forgotten exponentially and takes constant time; without evidence drift and reversion are nil.
type jumpDiffusion struct {
	last    float64 // |innovation| before, bounded
	bipower float64 // mean product of neighbouring |innovations|
	pairs   uint64  // products in it

	rate      float64 // share of steps with a jump
	jumps     uint64  // seen
	size, sq  float64 // mean size and mean squared size of the jumps seen
	used      uint64  // increments in the regression
	mx, my    float64 // means of level and increment
	cxx, cxy  float64 // central moments
	cyy       float64
	law       JumpLaw // of the next gain
	value     float64 // newest
	predicted float64 // gain without a jump that was expected for the next step
}

func (*jumpDiffusion) name() string   { return "jump" }
func (*jumpDiffusion) family() Family { return FamilyJump }

func (e *jumpDiffusion) step(h *history) float64 {
	if h.n > 1 {
		e.learn(h.back(1), h.back(0)-h.back(1), h)
	}
	e.value = h.back(0)
	e.look(h)
	return e.value + e.law.Mean()
}

// learn takes in the increment d that followed level x.
func (e *jumpDiffusion) learn(x, d float64, h *history) {
	z := d - e.predicted
	size := math.Abs(z)
	jumped := e.pairs > 20 && size > float64(jumpThreshold*e.law.SD)
	const least = 1.0 / jumpMemory
	// A jump counts with its neighbours as the greatest that is none; the bound lets σ grow where all have grown.
	bounded := size
	if e.pairs > 20 {
		bounded = min(size, float64(jumpThreshold*max(e.law.SD, h.floor())))
	}
	if h.n > 2 {
		e.pairs++
		e.bipower += float64(max(least, 1/float64(e.pairs)) * (float64(bounded*e.last) - e.bipower))
	}
	e.last = bounded
	occurred := 0.0
	if jumped {
		occurred = 1
	}
	e.rate += float64(least * (occurred - e.rate))
	if jumped {
		e.jumps++
		rate := max(jumpSizes, 1/float64(e.jumps))
		e.size += float64(rate * (z - e.size))
		e.sq += float64(rate * (float64(z*z) - e.sq))
		return
	}
	e.used++
	rate := max(least, 1/float64(e.used))
	dx, dy := x-e.mx, d-e.my
	e.mx += float64(rate * dx)
	e.my += float64(rate * dy)
	rest := 1 - rate
	e.cxx = float64(rest * (e.cxx + float64(rate*dx*dx)))
	e.cxy = float64(rest * (e.cxy + float64(rate*dx*dy)))
	e.cyy = float64(rest * (e.cyy + float64(rate*dy*dy)))
}

// look computes the law of the next gain.
func (e *jumpDiffusion) look(h *history) {
	sd := max(math.Sqrt(float64(0.5*math.Pi*e.bipower)), h.floor())
	e.law = JumpLaw{SD: sd}
	n := float64(min(e.used, 2*jumpMemory)) // what exponential forgetting is worth
	e.predicted = 0
	if e.used > 20 {
		e.predicted = e.drift(n) + float64(e.reversion(n)*(e.value-e.mx))
		e.predicted = clip(e.predicted, float64(jumpThreshold*sd))
	}
	e.law.Drift = e.predicted
	if e.jumps > 0 {
		e.law.Rate = -detmath.Log1p(-min(0.5, e.rate))
		// Two jumps say nothing about their mean; what it is denied goes into the spread, so that the second moment stays.
		if e.jumps > 2 {
			k := min(float64(e.jumps), 1/jumpSizes)
			e.law.JumpMean = float64(e.size * shrink(float64(k*e.size*e.size), e.sq-float64(e.size*e.size), driftEvidence))
		}
		e.law.JumpSD = math.Sqrt(max(0, e.sq-float64(e.law.JumpMean*e.law.JumpMean)))
	}
}

// drift returns the mean increment, shrunk to zero by the positive part rule of James and Stein.
func (e *jumpDiffusion) drift(n float64) float64 {
	return float64(e.my * shrink(float64(n*e.my*e.my), e.cyy, driftEvidence))
}

// reversion returns b in [−1, 0], shrunk likewise.
func (e *jumpDiffusion) reversion(n float64) float64 {
	if !(e.cxx > 0) || e.cxy >= 0 {
		return 0
	}
	b := e.cxy / e.cxx
	explained := float64(b * e.cxy)
	return max(-1, float64(b*shrink(float64(n*explained), e.cyy-explained, jumpEvidence)))
}

// shrink returns (1 − evidence/t²)⁺ for t² = signal/noise.
func shrink(signal, noise, evidence float64) float64 {
	if !(signal > float64(evidence*noise)) {
		return 0
	}
	return 1 - float64(evidence*max(0, noise))/signal
}

// spread adds the Poisson mixture.
func (e *jumpDiffusion) spread(g *lawGrid, weight float64) {
	w := float64(weight * detmath.Exp(-e.law.Rate))
	for k := range jumpTerms {
		if k > 0 && w < jumpLeast {
			break
		}
		mean, sd := e.law.term(float64(k))
		g.addNormal(w, e.value+mean, sd)
		w = float64(w * e.law.Rate / float64(k+1))
	}
}

func (e *jumpDiffusion) visit(c *codec) {
	for _, p := range [...]*float64{&e.last, &e.bipower, &e.rate, &e.size, &e.sq, &e.mx, &e.my, &e.cxx, &e.cxy, &e.cyy, &e.law.Drift,
		&e.law.SD, &e.law.Rate, &e.law.JumpMean, &e.law.JumpSD, &e.value, &e.predicted} {
		c.float(p)
	}
	c.uint(&e.pairs)
	c.uint(&e.jumps)
	c.uint(&e.used)
}
