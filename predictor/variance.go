package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

const (
	varianceBound  = 3.0   // |score| counts at most so much: a square at most 9
	varianceSlack  = 0.5   // k, in standard deviations of the bounded square
	varianceMemory = 0.995 // of the mean square that scores are measured in
	varianceLeast  = 20    // errors in that mean before the chart begins
	varianceRecent = 33    // errors that it is taken to rest on after an alarm: the memory of the error scale
)

// varianceChart is Page's one-sided chart on the bounded squares of scores, standardised:
//
//	G ← max(0, G + (min(z², 9) − μ)/σ − k),  alarm when G exceeds h,
//
// where μ and σ² are mean and variance of min(z²,9) for a standard normal z. Its z is the forecast error in units of a
// root mean square with a long memory, not of the error scale: that scale would have followed the change before the sum
// had risen. On Student's scores with 3 to 10 degrees of freedom and variance 1 it alarms about twice as often as on normal ones.
type varianceChart struct {
	sum, shown float64
	reference  float64 // mean squared error
	n          uint64  // errors in it
	grace      int     // steps left without alarms
	threshold  float64
	wait       int
}

// observe takes in an error of a forecast, and recent, the present mean squared error, which the reference becomes after an
// alarm. It returns FlagAlarmVariance or 0.
func (v *varianceChart) observe(err, recent, floor float64) uint64 {
	seen := v.n
	unit2 := max(v.reference, float64(floor*floor))
	e2 := winsorise(float64(err*err), v.reference, scoreClip, floor, seen)
	v.n++
	v.reference += float64(max(1-varianceMemory, 1/float64(v.n)) * (e2 - v.reference))
	if seen < varianceLeast {
		return 0
	}
	e := err / math.Sqrt(unit2)
	alarm := v.add(e)
	if alarm != 0 {
		v.reference, v.n = max(v.reference, recent), varianceRecent
	}
	return alarm
}

// add takes in a score. After an alarm the sum starts again at zero, and again when the grace time is over.
func (v *varianceChart) add(z float64) uint64 {
	z = clip(z, varianceBound)
	v.sum = max(0, v.sum+((float64(z*z)-squareMean)/squareDeviation-varianceSlack))
	v.shown = v.sum
	if v.grace > 0 {
		if v.grace--; v.grace == 0 {
			v.sum = 0
		}
		return 0
	}
	if v.sum <= v.threshold {
		return 0
	}
	v.sum, v.grace = 0, v.wait
	return FlagAlarmVariance
}

func (v *varianceChart) visit(c *codec) {
	c.float(&v.threshold)
	c.float(&v.sum)
	c.float(&v.shown)
	c.float(&v.reference)
	c.uint(&v.n)
	c.int(&v.grace, 0, 1<<20)
}

// Mean and standard deviation of min(Z²,9) for a standard normal Z; TestBoundedSquare computes them.
const (
	squareMean      = 0.9950072780344535
	squareDeviation = 1.3789312977567905
)

// varianceRunLength returns the mean run length of the chart from zero on normal scores of mean 0 and that standard
// deviation.
func varianceRunLength(h, deviation float64) float64 {
	inside := func(x float64) float64 { // P(ψ − k ≤ x and the square is not bounded)
		square := float64((x+varianceSlack)*squareDeviation) + squareMean
		z := math.Sqrt(max(0, min(varianceBound*varianceBound, square)))
		return 1 - float64(2*detmath.NormalCDF(-z/deviation))
	}
	top := (varianceBound*varianceBound-squareMean)/squareDeviation - varianceSlack
	return chainRunLength(h, inside, jump{top, float64(2 * detmath.NormalCDF(-varianceBound/deviation))})
}
