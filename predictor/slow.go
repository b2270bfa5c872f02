package predictor

import "math"

const (
	slowLeast   = 20   // values in the level before its errors are charted
	slowMost    = 1000 // values that the level and its errors rest on at most
	slowClip    = 3.0  // of the scores
	slowSlack   = 1.0  // k: half of a change by two standard deviations
	slowLag     = 4    // values that the level leaves out, so that it does not follow what it is to find
	slowPrior   = 1    // values' worth of belief that successive errors are unrelated
	slowRelated = 0.7  // autocorrelation of the errors beyond which the signal has no level
	slowTarget  = 8    // run length in those of the first chart
)

// slowChart watches for a lasting change of level that the experts hide: they follow it, so that their own errors never
// grow. It compares a value with the mean of all that came since the last change, but for the newest slowLag, in units of
// s·√(1+1/n). Values that depend on those before make that wander; s is then that of their sum in the long run, by the autocorrelation
// of first order, and a signal that is nearly a random walk is not charted at all: it has no level to leave.
type slowChart struct {
	chart    cusum
	n        uint64           // values since the last change
	level    float64          // their mean
	s2       float64          // mean square of the recursive residuals
	product  float64          // mean product of two successive ones
	previous float64          // the last of them
	recent   [slowLag]float64 // values that are not in it yet, and all that came before
	held     uint64
}

func newSlowChart() slowChart {
	sd := clippedDeviation(slowClip)
	return slowChart{chart: cusum{clip: slowClip, normal2: float64(sd * sd), own2: float64(sd * sd), slack: slowSlack, wait: 1}}
}

// observe takes in a value and returns the alarm flag it raises, or 0. It raises none while quiet, and both sums then stay
// at zero.
func (s *slowChart) observe(y, floor float64, quiet bool) uint64 {
	alarm := uint64(0)
	if quiet {
		s.chart.up, s.chart.down = 0, 0
	} else if s.n >= slowLeast {
		size := float64(min(s.n, slowMost))
		related := s.product / float64(s.s2*(1+float64(slowPrior)/size))
		if related < slowRelated {
			related = max(0, related)
			unit := max(floor, math.Sqrt(float64(s.s2*(1+1/size)*((1+related)/(1-related)))))
			alarm = s.chart.observe((y - s.level) / unit)
		}
	}
	if s.held >= slowLag {
		s.learn(s.recent[s.held%slowLag], floor)
	}
	s.recent[s.held%slowLag] = y
	s.held++
	return alarm
}

// restart forgets the level, after a change.
func (s *slowChart) restart() {
	*s = slowChart{chart: s.chart}
	s.chart.up, s.chart.down, s.chart.grace = 0, 0, 0
}

// learn takes a value into the level, and the spread and autocorrelation about it.
func (s *slowChart) learn(y, floor float64) {
	if size := float64(min(s.n, slowMost)); size > 0 {
		r := float64(math.Sqrt(size/(size+1)) * (y - s.level))
		if s.n >= 5 && s.s2 > float64(floor*floor) {
			r = clip(r, float64(slowClip*math.Sqrt(s.s2)))
		}
		s.product += (float64(r*s.previous) - s.product) / size
		s.s2 += (float64(r*r) - s.s2) / size
		s.previous = r
	}
	s.n++
	s.level += (y - s.level) / float64(min(s.n, slowMost))
}

func (s *slowChart) visit(c *codec) {
	s.chart.visit(c)
	c.uint(&s.n)
	c.float(&s.level)
	c.float(&s.s2)
	c.float(&s.product)
	c.float(&s.previous)
	c.floats(s.recent[:])
	c.uint(&s.held)
}
