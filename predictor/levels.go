package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

const (
	levelCells   = 64
	levelDecay   = .6   // of a cell's influence on the next, either way
	levelEvery   = 8    // steps after which the coefficients are computed anew
	levelRescan  = 256  // steps after which the grid may be refined
	levelWithin  = 0.99 // share of the weight that a finer grid must hold
	restEvidence = 1    // squared t statistic that what the line leaves must exceed
)

// levelMoments holds the moments of the increments of a series by the level that they started from, on an even grid that
// grows with the series and is refined where most of it has long been left.
type levelMoments struct {
	low, width float64 // of the grid and a cell, unit of the value; width 0: nothing yet
	count      uint64  // increments learned
	total      float64 // weight of what is remembered

	weight, first, second [levelCells]float64 // Σ1, Σd, Σd², each remembered

	old            bool                // the coefficients are those of another grid
	mean, variance [levelCells]float64 // of an increment, by level, as of the last smooth
	slope          float64             // of the mean on the level, over all

	// Scratch of smooth.
	rest   [levelCells]float64    // sums of what the line leaves, then of squared deviations
	around [2][levelCells]float64 // weight and rest, seen through the kernel
}

// learn takes in the increment d from level x; unit is the usual size of an increment.
func (m *levelMoments) learn(x, d, unit float64) {
	if m.width == 0 {
		m.width = float64(0.25 * unit)
		m.low = x - float64(0.5*levelCells*m.width)
		m.old = true
	}
	m.cover(x)
	m.count++
	for j := range m.weight {
		m.weight[j] = float64(m.weight[j] * diffusionMemory)
		m.first[j] = float64(m.first[j] * diffusionMemory)
		m.second[j] = float64(m.second[j] * diffusionMemory)
	}
	m.total = float64(m.total*diffusionMemory) + 1
	j := m.index(x)
	m.weight[j]++
	m.first[j] += d
	m.second[j] += float64(d * d)
	if m.count%levelRescan == 0 && m.width > float64(0.125*unit) {
		m.refine(j)
	}
}

// index returns the cell of x, or the one at the end that is nearer.
func (m *levelMoments) index(x float64) int {
	return int(max(0, min(levelCells-1, math.Floor((x-m.low)/m.width))))
}

// cover makes the grid twice as wide, by joining cells in pairs, until it holds x.
func (m *levelMoments) cover(x float64) {
	for {
		span := float64(levelCells * m.width)
		var into int
		switch {
		case x < m.low:
			m.low -= span
			into = levelCells / 2
		case x >= m.low+span:
		default:
			return
		}
		m.width, m.old = float64(2*m.width), true
		for _, a := range [...]*[levelCells]float64{&m.weight, &m.first, &m.second} {
			var joined [levelCells]float64
			for j := range levelCells / 2 {
				joined[into+j] = a[2*j] + a[2*j+1]
			}
			*a = joined
		}
	}
}

// refine halves the width of the cells if half of the grid holds nearly all that is remembered, and cell now.
func (m *levelMoments) refine(now int) {
	const half = levelCells / 2
	for _, from := range [...]int{half / 2, 0, half} {
		inside := 0.0
		for _, w := range m.weight[from : from+half] {
			inside += w
		}
		if now < from || now >= from+half || inside < float64(levelWithin*m.total) {
			continue
		}
		m.low += float64(float64(from) * m.width)
		m.width, m.old = float64(0.5*m.width), true
		m.total = inside
		for _, a := range [...]*[levelCells]float64{&m.weight, &m.first, &m.second} {
			var split [levelCells]float64
			for j := range levelCells {
				split[j] = float64(0.5 * a[from+j/2])
			}
			*a = split
		}
		return
	}
}

// follow computes the coefficients if they are due.
func (m *levelMoments) follow() {
	if m.old || m.count%levelEvery == 0 {
		m.smooth()
		m.old = false
	}
}

// smooth computes mean and variance of an increment at each level. The mean is a straight line through all levels plus what
// the levels around, by an exponential kernel, leave of it; as much of either as is not clear of its error is left out.
func (m *levelMoments) smooth() {
	all1, all2, level := 0.0, 0.0, 0.0
	for j, w := range m.weight {
		all1 += m.first[j]
		all2 += m.second[j]
		level += float64(w * float64(j))
	}
	mean := all1 / m.total
	level /= m.total
	sxx, sxy := 0.0, 0.0
	for j, w := range m.weight {
		x := float64(j) - level
		sxx += float64(w * x * x)
		sxy += float64(x * (m.first[j] - float64(w*mean)))
	}
	spread := max(0, all2/m.total-float64(mean*mean))
	slope := 0.0 // per cell
	if sxx > 0 {
		slope = sxy / sxx
		explained := float64(slope * sxy)
		slope = float64(slope * shrink(explained, max(0, spread-explained/m.total), jumpEvidence))
	}
	mean = float64(mean * shrink(float64(m.total*mean*mean), spread, driftEvidence))
	m.slope = slope / m.width
	for j, w := range m.weight {
		line := mean + float64(slope*(float64(j)-level))
		m.mean[j] = line
		m.rest[j] = m.first[j] - float64(w*line)
	}
	sweep(&m.around[0], &m.weight)
	sweep(&m.around[1], &m.rest)
	for j, w := range m.around[0] {
		n := w + diffusionPrior
		rest := m.around[1][j] / n
		m.mean[j] += float64(rest * shrink(float64(w*rest*rest), spread, restEvidence))
		b := m.mean[j]
		m.rest[j] = max(0, m.second[j]-float64(2*b*m.first[j])+float64(b*b*m.weight[j]))
	}
	sum := 0.0
	for _, r := range m.rest {
		sum += r
	}
	sweep(&m.around[1], &m.rest)
	for j, w := range m.around[0] {
		m.variance[j] = (m.around[1][j] + float64(diffusionPrior*(sum/m.total))) / (w + diffusionPrior)
	}
}

// sweep sets to to from seen through an exponential kernel, scaled so that a cell counts itself once.
func sweep(to, from *[levelCells]float64) {
	run := 0.0
	for j, x := range from {
		run = float64(run*levelDecay) + x
		to[j] = run
	}
	run = 0
	for j := levelCells - 1; j >= 0; j-- {
		to[j] += run
		run = float64((run + from[j]) * levelDecay)
	}
}

// place returns where x lies among the centres of the cells.
func (m *levelMoments) place(x float64) float64 { return (x-m.low)/m.width - 0.5 }

// at returns mean and variance of an increment from a place, by linear interpolation; beyond the grid those at its end.
func (m *levelMoments) at(place float64) (mean, variance float64) {
	if !(place > 0) {
		place = 0
	}
	if place > levelCells-1 {
		place = levelCells - 1
	}
	j := min(levelCells-2, int(place))
	part := place - float64(j)
	return m.mean[j] + float64(part*(m.mean[j+1]-m.mean[j])), m.variance[j] + float64(part*(m.variance[j+1]-m.variance[j]))
}

// correction returns the factors that take mean and variance of an increment over unit time to drift and squared
// diffusion: for dx = −θ(x−μ) dt + √v dW the mean has slope s = e^−θ − 1 and the variance is v(1 − e^−2θ)/2θ.
func (m *levelMoments) correction() (stretch, widen float64) {
	s := max(-0.9, min(0, m.slope))
	if s > -1e-4 {
		return 1, 1
	}
	theta := -detmath.Log1p(s)
	return theta / -s, float64(2*theta) / (1 - float64((1+s)*(1+s)))
}

func (m *levelMoments) visit(c *codec) {
	c.float(&m.low)
	c.float(&m.width)
	c.uint(&m.count)
	c.float(&m.total)
	c.floats(m.weight[:])
	c.floats(m.first[:])
	c.floats(m.second[:])
	c.bool(&m.old)
	c.floats(m.mean[:])
	c.floats(m.variance[:])
	c.float(&m.slope)
}
