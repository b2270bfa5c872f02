package detmath

import "math"

// Cholesky factors the symmetric n×n matrix a, row-major, of which the upper triangle is read, in place into the upper
// triangle U with UᵀU = a. It returns false, and leaves a half-done, if a is not positive definite or not finite. Rows
// are updated one after the other, so that no sum waits for itself: n = 64 takes about as long as 5,000 exponentials.
func Cholesky(a []float64, n int) bool {
	for k := range n {
		pivot := a[k*n+k : (k+1)*n]
		if !(pivot[0] > 0) || math.IsInf(pivot[0], 0) {
			return false
		}
		d := math.Sqrt(pivot[0])
		for j := range pivot {
			pivot[j] /= d
		}
		for i := 1; i < len(pivot); i++ {
			f, u := pivot[i], pivot[i:]
			row := a[(k+i)*n+k+i : (k+i+1)*n]
			row = row[:len(u)]
			for j, x := range u {
				row[j] -= float64(f * x)
			}
		}
	}
	return true
}

// CholeskySolve solves UᵀUx = b in place for the factor u of Cholesky; false if the result is not finite.
func CholeskySolve(u, b []float64, n int) bool {
	CholeskyForward(u, b, n)
	for i := n - 1; i >= 0; i-- {
		s := b[i]
		for j, x := range u[i*n+i+1 : (i+1)*n] {
			s -= float64(x * b[i+1+j])
		}
		b[i] = s / u[i*n+i]
		if math.IsNaN(b[i]) || math.IsInf(b[i], 0) {
			return false
		}
	}
	return true
}

// CholeskyForward solves Uᵀx = b in place for the factor u of Cholesky.
func CholeskyForward(u, b []float64, n int) {
	for i := range n {
		x := b[i] / u[i*n+i]
		b[i] = x
		for j, f := range u[i*n+i+1 : (i+1)*n] {
			b[i+1+j] -= float64(f * x)
		}
	}
}
