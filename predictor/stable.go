package predictor

import (
	"errors"
	"math"

	"github.com/usp-project/usp/internal/stable"
)

const (
	stableWindow   = 256 // increments that the law is fitted to
	stableEvery    = 64  // steps from one fit to the next
	stableFirst    = 32  // increments at the first fit; before it the law is normal
	stableClip     = 4   // an increment pulls the next one as if it were at most so many scales
	stableEvidence = 4   // squared t statistic that the pull must exceed
)

// stableWalk has increments that follow the one before at a rate, the pull, and else are independent and of one symmetric
// α-stable law: a Lévy motion seen at unit steps where the pull is nil. Without evidence there is neither pull nor drift. All
// is fitted anew to a window of increments every stableEvery steps; a step between takes next to no time.
type stableWalk struct {
	value, gain float64 // newest value, and the location of what comes on top of it
	drift, pull float64
	scale       float64 // unit of the value
	law         stable.Law
	errors      [stableWindow]float64 // scratch of fit
}

func newStableWalk() *stableWalk {
	e := &stableWalk{}
	e.law.Set(stable.MaxAlpha)
	return e
}

func (*stableWalk) name() string   { return "stable" }
func (*stableWalk) family() Family { return FamilyJump }

// belief is small: before the first fit it is the naive forecast once more, and after it often.
func (*stableWalk) belief() float64 { return 0.1 }

func (e *stableWalk) step(h *history) float64 {
	switch n := h.n - 1; {
	case n < stableFirst:
		e.scale = h.spread / math.Sqrt2
	case n == stableFirst || n%stableEvery == 0:
		e.fit(h)
	}
	e.value, e.gain = h.back(0), e.drift
	if e.pull != 0 {
		e.gain += float64(e.pull * e.bounded(h, 0))
	}
	return e.value + e.gain
}

// bounded returns the increment that ended lag steps back, no greater than it may pull.
func (e *stableWalk) bounded(h *history, lag int) float64 {
	return clip(h.back(lag)-h.back(lag+1), float64(stableClip*e.scale))
}

// fit estimates the pull from the increments of the window, bounded by the scale that was known so far, and the law from
// what the pull leaves of them.
func (e *stableWalk) fit(h *history) {
	z := e.errors[:min(stableWindow, h.len()-2)]
	e.pull = e.correlation(h, len(z))
	for k := range z {
		z[k] = h.back(k) - h.back(k+1)
		if e.pull != 0 {
			z[k] -= float64(e.pull * e.bounded(h, k+1))
		}
	}
	alpha, location, scale := stable.Fit(z)
	e.law.Set(alpha)
	e.scale = scale
	noise := float64(stable.LocationVariance * scale * scale)
	e.drift = float64(location * shrink(float64(float64(len(z))*location*location), noise, driftEvidence))
}

// correlation returns that of neighbours among the last n increments, shrunk to zero.
func (e *stableWalk) correlation(h *history, n int) float64 {
	cross, square := 0.0, 0.0
	next := e.bounded(h, 0)
	for k := range n {
		x := e.bounded(h, k+1)
		cross += float64(x * next)
		square += float64(x * x)
		next = x
	}
	if !(square > 0) {
		return 0
	}
	r := clip(cross/square, 1)
	return float64(r * shrink(float64(float64(n)*r*r), 1-float64(r*r), stableEvidence))
}

// spread adds the stable density; like a normal law, one narrower than half the grid's step is given that width.
func (e *stableWalk) spread(g *lawGrid, weight float64) {
	scale := max(e.scale, float64(0.5/math.Sqrt2*g.step))
	at, step, top := (g.node(0)-e.value-e.gain)/scale, g.step/scale, weight/scale
	for k := range g.density {
		g.density[k] += float64(top * e.law.Density(at+float64(float64(k)*step)))
	}
}

func (e *stableWalk) visit(c *codec) {
	alpha := e.law.Alpha()
	for _, p := range [...]*float64{&e.value, &e.gain, &e.drift, &e.pull, &e.scale, &alpha} {
		c.float(p)
	}
	if !c.load {
		return
	}
	e.law.Set(alpha) // the rest of the law follows from it
	if e.law.Alpha() != alpha {
		c.fail(errors.New("it holds an index of no stable law"))
	}
}
