package predictor

import (
	"fmt"
	"math"
	"math/bits"
)

// moments holds the first four power sums of the scores in a sliding window. The scores are in fixed point and the sums
// integers, so that a sliding sum is that of its window exactly, however long the run.
type moments struct {
	ring          []int64
	first, second int64 // |score| < 2²² in fixed point, 2¹⁶ of them: below 2³⁸ and 2⁶⁰
	third, fourth wide  // below 2⁸² and 2¹⁰⁴
}

func newMoments(window int) moments { return moments{ring: make([]int64, window)} }

// push takes in score n, counted from 1, and forgets the one a window ago.
func (m *moments) push(q int64, n uint64) {
	at := (n - 1) % uint64(len(m.ring))
	if n > uint64(len(m.ring)) {
		m.add(m.ring[at], -1)
	}
	m.ring[at] = q
	m.add(q, 1)
}

func (m *moments) add(q, sign int64) {
	square := q * q
	m.first += sign * q
	m.second += sign * square
	m.third = m.third.plus(wideProduct(square, sign*q))
	m.fourth = m.fourth.plus(wideProduct(square, sign*square))
}

// kurtosis returns that of the n scores last pushed, all that there are if the window is not full; 3 if it has none.
// The sums are moved to the whole number nearest to the mean first, exactly: what is left to subtract in floating point is
// less than half a unit of the fixed point.
func (m *moments) kurtosis(n uint64) float64 {
	k := int64(min(n, uint64(len(m.ring))))
	if k < 8 {
		return 3
	}
	c := m.first / k
	first := m.first - k*c
	second := m.second - 2*c*m.first + k*c*c
	c2 := c * c
	third := m.third.plus(wideProduct(-3*c, m.second)).plus(wideProduct(3*c2, m.first)).plus(wideProduct(-k*c2, c))
	fourth := m.fourth.plus(m.third.times(-4 * c)).plus(wideProduct(6*c2, m.second)).plus(wideProduct(c2, -4*c*m.first)).plus(wideProduct(k*c2, c2))
	// About the true mean, which lies d above c.
	size := float64(k)
	d := float64(first) / size
	d2 := float64(d * d)
	s2 := float64(second) - float64(size*d2)
	s4 := fourth.float() - float64(4*d*third.float()) + float64(6*d2*float64(second)) - float64(3*size*float64(d2*d2))
	if !(s2 > 0) {
		return 3
	}
	return max(1, min(100, float64(size*s4)/float64(s2*s2)))
}

// visit walks the ring alone; the sums follow from it. n is the number of scores pushed.
func (m *moments) visit(c *codec, n uint64) {
	for i := range m.ring {
		c.int64(&m.ring[i])
		if q := m.ring[i]; q > scoreBound*fixed || q < -scoreBound*fixed {
			c.fail(fmt.Errorf("it holds a score of %d where at most %d can stand", q, scoreBound*fixed))
		}
	}
	if c.load && c.err == nil {
		m.refill(n)
	}
}

// refill computes the sums from the ring, of which the first n scores ever pushed, or the last that fit, are there.
func (m *moments) refill(n uint64) {
	m.first, m.second, m.third, m.fourth = 0, 0, wide{}, wide{}
	for _, q := range m.ring[:min(n, uint64(len(m.ring)))] {
		m.add(q, 1)
	}
}

// wide is an integer of 128 bits in two's complement.
type wide struct {
	hi int64
	lo uint64
}

func (a wide) plus(b wide) wide {
	lo, carry := bits.Add64(a.lo, b.lo, 0)
	return wide{a.hi + b.hi + int64(carry), lo}
}

// times returns a·x, modulo 2¹²⁸.
func (a wide) times(x int64) wide {
	hi, lo := bits.Mul64(a.lo, uint64(x))
	// As an unsigned number a negative x is 2⁶⁴ too great.
	if x < 0 {
		hi -= a.lo
	}
	return wide{int64(hi) + a.hi*x, lo}
}

// wideProduct returns x·y.
func wideProduct(x, y int64) wide { return wide{x >> 63, uint64(x)}.times(y) }

// float returns a in floating point; it is less than an ulp and a half off.
func (a wide) float() float64 {
	if a.hi < 0 {
		return -wide{}.minus(a).magnitude()
	}
	return a.magnitude()
}

func (a wide) minus(b wide) wide {
	lo, borrow := bits.Sub64(a.lo, b.lo, 0)
	return wide{a.hi - b.hi - int64(borrow), lo}
}

func (a wide) magnitude() float64 { return float64(float64(a.hi)*0x1p64) + float64(a.lo) }

// toFixed returns a score, at most scoreBound, in fixed point.
func toFixed(z float64) int64 { return int64(math.Floor(float64(z*fixed) + 0.5)) }
