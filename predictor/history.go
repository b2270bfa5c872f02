package predictor

import "math"

const (
	detectWindow = 512 // values that the search for a season looks back on
	longestLag   = 16  // of the autoregressions, seasons aside
)

// history is the recent past every expert may look at: accepted values, newest last, and what is known of their season.
type history struct {
	values []float64 // ring; value k (counted from 0) is at k mod len
	n      uint64    // values seen in all
	season int       // period in use; 0 if none
	auto   bool      // the period is searched for

	increments []float64 // smoothed increment by step number modulo the season
	learned    uint64    // increments taken in at this season
	level      float64   // exponentially smoothed value

	mean   float64 // of all values, with a memory of at most meanMemory of them
	spread float64 // root mean square of first differences, in the unit of the value
	diff2  float64
	peak   float64 // greatest |value|, for numerical floors
}

const (
	meanMemory    = 1000
	levelRate     = 0.3
	incrementRate = 0.2
	diffRate      = 0.01 // of the mean squared first difference
	diffClip      = 25   // a squared difference counts at most so many times its mean
)

func newHistory(season int) history {
	h := history{season: season, auto: season == 0, values: make([]float64, max(season+2, detectWindow)),
		increments: make([]float64, longestSeason(season))}
	if season == 1 {
		h.season = 0
	}
	return h
}

// longestSeason returns the longest period that can be in use where that season is configured.
func longestSeason(configured int) int {
	if configured == 0 {
		return detectWindow / 3
	}
	return configured
}

// len returns how many values can be looked back on.
func (h *history) len() int { return int(min(h.n, uint64(len(h.values)))) }

// back returns the value lag steps before the newest; lag 0 is the newest. There must be that many.
func (h *history) back(lag int) float64 {
	return h.values[(h.n-1-uint64(lag))%uint64(len(h.values))]
}

// has says whether back(lag) may be called.
func (h *history) has(lag int) bool { return lag < h.len() }

// push appends y. Differences are winsorised so that one jump does not blind the experts' scaling.
func (h *history) push(y float64) {
	if h.n > 0 {
		d := y - h.back(0)
		d2 := winsorise(float64(d*d), h.diff2, diffClip, h.floor(), h.n-1)
		h.diff2 += float64(max(diffRate, 1/float64(h.n)) * (d2 - h.diff2))
	}
	h.peak = max(h.peak, math.Abs(y))
	h.values[h.n%uint64(len(h.values))] = y
	h.n++
	h.mean += (y - h.mean) / float64(min(h.n, meanMemory))
	h.spread = max(math.Sqrt(h.diff2), h.floor())
	h.level += float64(max(levelRate, 1/float64(h.n)) * (y - h.level))
	if h.auto && h.n >= 32 && h.n&(h.n-1) == 0 {
		if m := h.detect(); m != h.season {
			h.season, h.learned = m, 0
			clear(h.increments)
			for lag := h.len() - 2; lag > 0; lag-- {
				h.learnIncrement(lag)
			}
		}
	}
	if h.n > 1 {
		h.learnIncrement(0)
	}
}

// learnIncrement takes in the increment that ends lag steps back.
func (h *history) learnIncrement(lag int) {
	m := max(1, h.season)
	at := &h.increments[(h.n-1-uint64(lag))%uint64(m)]
	rate := max(incrementRate, 1/float64(h.learned/uint64(m)+1))
	if m == 1 {
		rate = max(1.0/meanMemory, 1/float64(h.learned+1))
	}
	*at += float64(rate * (h.back(lag) - h.back(lag+1) - *at))
	h.learned++
}

// increment returns what the place in the season leads one to expect of the next increment; without a season, the
// mean increment.
func (h *history) increment() float64 {
	m := max(1, h.season)
	return h.increments[h.n%uint64(m)]
}

// floor is the least scale that errors are measured in: the rounding of the values themselves.
func (h *history) floor() float64 { return float64(h.peak*1e-12) + 1e-150 }

// detect returns the period that the last detectWindow values show, or 0: the shortest lag among the strongest at
// which the autocorrelation of first differences peaks, reaches what white noise does not (4/√n, and at least
// 0.3), and is borne out by a like correlation at twice the lag. A period in use stays unless another is clearly
// stronger, so that noise does not make the experts start afresh.
func (h *history) detect() int {
	n := min(h.len(), detectWindow) - 1
	mean := (h.back(0) - h.back(n)) / float64(n)
	variance := h.covariance(0, n, mean)
	if !(variance > 0) {
		return 0
	}
	least := max(0.3, 4/math.Sqrt(float64(n)))
	top, at := 0.0, 0
	prev, here := 1.0, h.covariance(2, n, mean)/variance
	for lag := 2; 4*lag < n; lag++ {
		next := h.covariance(lag+1, n, mean) / variance
		if here > least && here > float64(1.15*top) && here >= prev && here >= next &&
			h.covariance(2*lag, n, mean)/variance > float64(0.5*here) {
			top, at = here, lag
		}
		prev, here = here, next
	}
	if m := h.season; m > 1 && at != m && 4*m < n {
		near := at > 0 && max(at-m, m-at) <= 1+m/16
		if near || float64(1.5*h.covariance(m, n, mean)/variance) > max(top, least) {
			return m
		}
	}
	return at
}

// covariance is that of the last n first differences at a lag, per pair.
func (h *history) covariance(lag, n int, mean float64) float64 {
	s := 0.0
	for k := lag; k < n; k++ {
		a := h.back(k-lag) - h.back(k-lag+1) - mean
		b := h.back(k) - h.back(k+1) - mean
		s += float64(a * b)
	}
	return s / float64(n-lag)
}

func (h *history) visit(c *codec) {
	c.floats(h.values)
	c.uint(&h.n)
	c.int(&h.season, 0, len(h.increments))
	c.floats(h.increments)
	c.uint(&h.learned)
	c.float(&h.level)
	c.float(&h.mean)
	c.float(&h.spread)
	c.float(&h.diff2)
	c.float(&h.peak)
}
