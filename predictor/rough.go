package predictor

import "github.com/usp-project/usp/internal/signature"

// rough forecasts from the shape of the recent path: a ridge regression of the next increment on the log-signatures of
// the path of time and value over windows of several lengths (Lyons, 1998; Levin, Lyons and Ni, arXiv 1309.0260, 2013).
// Values are in units of the history's spread, time runs from 0 to 1. The signatures are computed afresh at each step:
// nothing is ever divided out of them, so nothing drifts.
type rough struct {
	id string
	rls
	unit float64 // of features and target, at the last forecast

	transform *signature.Transform
	windows   []int
	scale     []float64 // of each word: k! for length k, by which its coefficient is small
}

const (
	roughDepth = 4
	roughPrior = 0.1 // variance of the coefficient of a word of one letter
	roughBound = 10  // |coefficient · k!| of a word of length k that goes into the regression
)

func roughExperts(cfg Config) []expert {
	return []expert{newRough("signature", cfg.Forgetting, 3, 8, 16)}
}

func newRough(id string, forgetting float64, windows ...int) *rough {
	t := signature.New(2, roughDepth)
	n := t.Size()
	words := t.Words()
	scale := make([]float64, n)
	for i, w := range words {
		scale[i] = 1
		for k := 2; k <= len(w); k++ {
			scale[i] = float64(scale[i] * float64(k))
		}
	}
	// The longer the word, the less is expected of its coefficient.
	prior := func(i int) float64 {
		if i == 0 {
			return rlsPrior
		}
		k := float64(len(words[(i-1)%n]))
		return roughPrior / k / k
	}
	return &rough{id: id, rls: newRLS(forgetting, 1+len(windows)*n, prior), transform: t, windows: windows, scale: scale}
}

func (e *rough) name() string  { return e.id }
func (*rough) family() Family  { return FamilyRough }
func (*rough) belief() float64 { return 3 }

func (e *rough) step(h *history) float64 {
	if h.n > 3 && e.unit > float64(unitFloors*h.floor()) { // else the unit says nothing yet
		e.learn(clip((h.back(0)-h.back(1))/e.unit, arOutermost))
	}
	e.look(h)
	return h.back(0) + float64(e.unit*clip(e.predict(), arOutermost))
}

// look computes the features for the forecast after the newest value.
func (e *rough) look(h *history) {
	e.unit = h.spread
	x := e.features
	clear(x)
	x[0] = 0.1
	n := e.transform.Size()
	var v [2]float64
	for i, w := range e.windows {
		if !h.has(w) {
			break
		}
		e.transform.Reset()
		v[0] = 1 / float64(w)
		before := h.back(w)
		for k := w - 1; k >= 0; k-- {
			now := h.back(k)
			v[1] = clip((now-before)/e.unit, arFeature)
			e.transform.Extend(v[:])
			before = now
		}
		at := x[1+i*n : 1+(i+1)*n]
		e.transform.LogSignature(at)
		at[0] = 0 // time itself is the constant
		for j := range at {
			at[j] = clip(float64(at[j]*e.scale[j]), roughBound)
		}
	}
}

func (e *rough) visit(c *codec) {
	e.rls.visit(c)
	c.float(&e.unit)
}
