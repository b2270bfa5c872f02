package detmath

import "math"

// Sum returns the sum of xs from left to right with Neumaier's compensation: its error does not grow with the
// number of terms. A sum that is not finite is returned as plain summation gives it.
func Sum(xs []float64) float64 {
	s, c := 0.0, 0.0
	for _, x := range xs {
		t := s + x
		if math.Abs(s) >= math.Abs(x) {
			c += (s - t) + x
		} else {
			c += (x - t) + s
		}
		s = t
	}
	if math.IsInf(s, 0) || math.IsNaN(s) {
		return s
	}
	return s + c
}

// Dot returns Σ xs[i]·ys[i], each product rounded, added from left to right. The slices must have equal length.
func Dot(xs, ys []float64) float64 {
	ys = ys[:len(xs)]
	s := 0.0
	for i, x := range xs {
		s += float64(x * ys[i])
	}
	return s
}

// LogSumExp returns log Σ exp(xs[i]) without overflow: −Inf for no terms.
func LogSumExp(xs []float64) float64 {
	m := math.Inf(-1)
	for _, x := range xs {
		if math.IsNaN(x) {
			return x
		}
		m = max(m, x)
	}
	if math.IsInf(m, 0) {
		return m
	}
	s := 0.0
	for _, x := range xs {
		s += Exp(x - m)
	}
	return m + Log(s)
}
