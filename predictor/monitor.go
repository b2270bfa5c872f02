package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

const (
	scaleMemory = 0.97  // of the error scale
	fastMemory  = 0.90  // of the volatility in the numerator of the relative volatility
	slowMemory  = 0.995 // and in its denominator
	scoreClip   = 9     // a squared error counts at most so many times its mean
	scoreBound  = 10    // |standardised score| in kurtosis and variogram
	holderLags  = 8
)

// monitor measures the forecast errors: their scale, its change, the weight of their tails, and their roughness.
type monitor struct {
	scored           uint64
	scale2           float64 // mean squared error, winsorised
	fast2, slow2     float64
	scores           moments // of the standardised errors in fixed point, for the kurtosis
	steps            []int64 // ring of the same, for the variogram
	sums             [holderLags]int64
	kurtosis, holder float64
	logs             [holderLags]float64 // regression weights of the exponent; not state
}

// fixed is the fixed point of the variogram: |score| ≤ scoreBound < 2⁴, eight of them < 2⁷, squared, 2¹² of them, so
// 2²⁶ + 2·fixed bits; 18 fractional bits leave the sums inside an int64. Integers make sliding sums exact: they
// cannot drift, however long the run.
const fixed = 1 << 18

func newMonitor(cfg *Config) monitor {
	m := monitor{scores: newMoments(cfg.KurtosisWindow), steps: make([]int64, cfg.HolderWindow+holderLags), kurtosis: 3, holder: 0.5}
	mean := 0.0
	for l := range holderLags {
		m.logs[l] = detmath.Log(float64(l + 1))
		mean += float64(m.logs[l] / holderLags)
	}
	ss := 0.0
	for l := range holderLags {
		m.logs[l] -= mean
		ss += float64(m.logs[l] * m.logs[l])
	}
	for l := range holderLags {
		m.logs[l] = m.logs[l] / (2 * ss) // the variogram grows as lag^2H
	}
	return m
}

// scale returns the error scale, at least floor.
func (m *monitor) scale(floor float64) float64 { return max(math.Sqrt(m.scale2), floor) }

// relative returns the short-term volatility of the errors relative to the long-term one, in [0.1, 10].
func (m *monitor) relative() float64 {
	if !(m.slow2 > 0) {
		return 1
	}
	return max(0.1, min(10, math.Sqrt(m.fast2/m.slow2)))
}

// winsorise bounds a squared deviation by so many times the mean of the n before it, unless they are few or their mean
// is not above the numerical floor: nothing could ever leave zero otherwise.
func winsorise(d2, mean, times, floor float64, n uint64) float64 {
	if n < 5 || mean <= float64(floor*floor) {
		return d2
	}
	return min(d2, float64(times*mean))
}

// widen raises the scale to at least √s2, after a change that the usual bounds would take in only slowly.
func (m *monitor) widen(s2 float64) {
	m.scale2, m.fast2, m.slow2 = max(m.scale2, s2), max(m.fast2, s2), max(m.slow2, s2)
}

// observe takes in the error of a forecast and its score, the error in units of the scale before it.
func (m *monitor) observe(err, score, floor float64) {
	e2 := winsorise(float64(err*err), m.scale2, scoreClip, floor, m.scored)
	m.scored++
	warm := 1 / float64(m.scored)
	m.scale2 += float64(max(1-scaleMemory, warm) * (e2 - m.scale2))
	m.fast2 += float64(max(1-fastMemory, warm) * (e2 - m.fast2))
	m.slow2 += float64(max(1-slowMemory, warm) * (e2 - m.slow2))
	if m.scored < 3 { // scores in units of a scale that rests on one error say nothing
		return
	}
	q := toFixed(clip(score, scoreBound))
	m.scores.push(q, m.seen())
	m.kurtosis = m.scores.kurtosis(m.seen())
	m.roughness(q)
}

// seen is the number of scores that the windows were shown: the first two were in units of too little.
func (m *monitor) seen() uint64 { return max(m.scored, 2) - 2 }

// roughness updates the Hölder exponent of the cumulated scores: half the slope of the log variogram over lags
// 1…8 (white scores: ½; their standard deviation at a window of 256 is about 0.045).
func (m *monitor) roughness(q int64) {
	n, size := m.seen(), uint64(len(m.steps))
	window := size - holderLags
	at := func(back uint64) int64 { // score of back steps ago; zero before the first
		if back >= n {
			return 0
		}
		return m.steps[(n-1-back)%size]
	}
	// First take out the sums that end where the window used to begin; the ring reaches just as far back.
	if n > window {
		sum := int64(0)
		for l := range uint64(holderLags) {
			sum += m.steps[(n-1+size-window-l)%size]
			if n-window > l {
				m.sums[l] -= sum * sum
			}
		}
	}
	m.steps[(n-1)%size] = q
	sum := int64(0)
	for l := range uint64(holderLags) {
		sum += at(l)
		if n > l {
			m.sums[l] += sum * sum
		}
	}
	m.holder = m.exponent(n, window)
}

func (m *monitor) exponent(n, window uint64) float64 {
	if n < 4*holderLags {
		return 0.5
	}
	slope := 0.0
	for l := range uint64(holderLags) {
		if m.sums[l] <= 0 {
			return 0.5
		}
		pairs := min(n-l, window)
		slope += float64(m.logs[l] * detmath.Log(float64(m.sums[l])/float64(pairs)))
	}
	return max(0, min(1, slope))
}

func (m *monitor) visit(c *codec) {
	c.uint(&m.scored)
	c.float(&m.scale2)
	c.float(&m.fast2)
	c.float(&m.slow2)
	m.scores.visit(c, m.seen())
	for i := range m.steps {
		c.int64(&m.steps[i])
	}
	for i := range m.sums {
		c.int64(&m.sums[i])
	}
	c.float(&m.kurtosis)
	c.float(&m.holder)
}
