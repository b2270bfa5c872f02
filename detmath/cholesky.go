package detmath

import "math"

// Cholesky factors the symmetric n×n matrix a, row-major, of which the lower triangle is read, in place into its lower
// triangle L with LLᵀ = a. It returns false, and leaves a half-done, if a is not positive definite or not finite.
func Cholesky(a []float64, n int) bool {
	for j := range n {
		rowJ := a[j*n : j*n+j+1]
		s := rowJ[j]
		for _, x := range rowJ[:j] {
			s -= float64(x * x)
		}
		if !(s > 0) || math.IsInf(s, 0) {
			return false
		}
		l := math.Sqrt(s)
		rowJ[j] = l
		for i := j + 1; i < n; i++ {
			rowI := a[i*n : i*n+j+1]
			t := rowI[j]
			for k, x := range rowJ[:j] {
				t -= float64(rowI[k] * x)
			}
			rowI[j] = t / l
		}
	}
	return true
}

// CholeskySolve solves LLᵀx = b in place for the factor l of Cholesky; false if the result is not finite.
func CholeskySolve(l, b []float64, n int) bool {
	for i := range n {
		for k := range i {
			b[i] -= float64(l[i*n+k] * b[k])
		}
		b[i] /= l[i*n+i]
	}
	for i := n - 1; i >= 0; i-- {
		for k := i + 1; k < n; k++ {
			b[i] -= float64(l[k*n+i] * b[k])
		}
		b[i] /= l[i*n+i]
		if math.IsNaN(b[i]) || math.IsInf(b[i], 0) {
			return false
		}
	}
	return true
}
