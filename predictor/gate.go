package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// maxPending bounds how many observations a quarantine can hold.
const maxPending = 8

// verdict says what is to be done with an observation.
type verdict uint8

const (
	accept verdict = iota
	hold           // it goes into quarantine
	shift          // the quarantined and this one are a new level: learn all
	drop           // the quarantined were a glitch: replace them, learn this one
)

// gate decides which observations the predictor learns from. An observation far from its forecast is held back
// until later ones have shown whether the signal has gone there or has come back; to reject it outright would make
// every value after a true jump an outlier too.
type gate struct {
	pending  [maxPending]float64
	held     int
	limit    float64 // Config.OutlierSigma
	confirm  int     // Config.ConfirmSteps
	freeze   int     // Config.FreezeSteps
	run      uint64  // successive repeats of the newest value
	repeats  uint64  // pairs of equal successive values, those of the present run left out
	pairs    uint64  // pairs of successive values, likewise
	frozen   bool
	changes  int // of the value since it froze
	previous float64
	started  bool
}

func newGate(cfg *Config) gate {
	return gate{limit: cfg.OutlierSigma, confirm: cfg.ConfirmSteps, freeze: cfg.FreezeSteps}
}

// judge weighs a value against its forecast. warm says that the scale can be trusted.
func (g *gate) judge(y, forecast, scale float64, warm bool) verdict {
	far := warm && math.Abs(y-forecast)/scale > g.limit
	switch {
	case g.held == 0 && !far:
		return accept
	case g.held > 0 && !far:
		return drop
	case g.held >= g.confirm:
		return shift // away for the whole quarantine, wherever to: refusing for ever would be worse
	}
	g.pending[g.held] = y
	g.held++
	return hold
}

// spread2 returns the mean squared difference between successive values of the quarantine, y being the last: what
// the errors will be like on the new level.
func (g *gate) spread2(y float64) float64 {
	s := 0.0
	for i := range g.held {
		next := y
		if i+1 < g.held {
			next = g.pending[i+1]
		}
		d := next - g.pending[i]
		s += float64(d * d)
	}
	return s / float64(max(1, g.held))
}

// improbable is the log probability of a run of equal values below which it counts as frozen.
const improbable = -9.2 // ln 1e-4

// watch follows runs of equal values and sets frozen. How often values repeat is learned outside of runs in
// progress, so that counts and rounded prices are not taken for a stuck sensor.
func (g *gate) watch(y float64) {
	same := g.started && y == g.previous
	g.previous, g.started = y, true
	if same {
		g.run++
	} else {
		if !g.frozen { // a frozen stretch says nothing about the living signal
			g.repeats += g.run
			g.pairs += g.run + 1
		} else if g.changes++; g.changes >= 2 {
			g.frozen, g.changes = false, 0
		}
		g.run = 0
		return
	}
	if !g.frozen && g.run+1 >= uint64(g.freeze) {
		chance := (float64(g.repeats) + 0.5) / (float64(g.pairs) + 1)
		if float64(float64(g.run)*detmath.Log(chance)) < improbable {
			g.frozen, g.changes = true, 0
		}
	}
}

func (g *gate) visit(c *codec) {
	c.floats(g.pending[:])
	c.int(&g.held, 0, maxPending)
	c.uint(&g.run)
	c.uint(&g.repeats)
	c.uint(&g.pairs)
	c.bool(&g.frozen)
	c.int(&g.changes, 0, 2)
	c.float(&g.previous)
	c.bool(&g.started)
}
