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

// VecMul sets y to xᵀA for the square matrix A, by rows, of the length n of x and y. The terms of each element are added
// one after the other, from the first row on; four rows are gone through together because that is twice as fast.
func VecMul(y, x, a []float64) {
	n := len(x)
	y = y[:n]
	clear(y)
	i := 0
	for ; i+4 <= n; i += 4 {
		x0, x1, x2, x3 := x[i], x[i+1], x[i+2], x[i+3]
		a0, a1 := a[i*n:(i+1)*n], a[(i+1)*n:(i+2)*n]
		a2, a3 := a[(i+2)*n:(i+3)*n], a[(i+3)*n:(i+4)*n]
		for j, s := range y {
			y[j] = s + float64(x0*a0[j]) + float64(x1*a1[j]) + float64(x2*a2[j]) + float64(x3*a3[j])
		}
	}
	for ; i < n; i++ {
		for j, e := range a[i*n : (i+1)*n] {
			y[j] += float64(x[i] * e)
		}
	}
}
