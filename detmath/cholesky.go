package detmath

import "math"

// Cholesky factors the symmetric n×n matrix a, row-major, of which the upper triangle is read, in place into the upper
// triangle U with UᵀU = a. It returns false, and leaves a half-done, if a is not positive definite or not finite.
func Cholesky(a []float64, n int) bool { return CholeskyBeside(a, n, n) }

// CholeskyBeside is Cholesky of the left square of n rows of width numbers, width ≥ n. Each column b beside the square becomes
// the x that solves Uᵀx = b: two of them, x and x′, have bᵀa⁻¹b′ = x·x′. Each row takes up the rows above it, four at a time: from
// each element the products are subtracted in the order of the rows, one after the other, while those of its neighbours are
// under way. n = 64 takes about as long as 3,000 exponentials.
func CholeskyBeside(a []float64, n, width int) bool {
	for i := range n {
		row := a[i*width+i : (i+1)*width]
		k := 0
		for ; k+4 <= i; k += 4 {
			at := k*width + i
			subtractFour(row, a[at:at+len(row)], a[at+width:at+width+len(row)], a[at+2*width:at+2*width+len(row)], a[at+3*width:at+3*width+len(row)])
		}
		for ; k < i; k++ {
			u := a[k*width+i : (k+1)*width]
			u = u[:len(row)]
			f := u[0]
			for j, x := range u {
				row[j] -= float64(f * x)
			}
		}
		if !(row[0] > 0) || math.IsInf(row[0], 0) {
			return false
		}
		inverse := 1 / math.Sqrt(row[0])
		for j, x := range row {
			row[j] = float64(x * inverse)
		}
	}
	return true
}

// subtractFour takes from row each of four rows times its first element.
func subtractFour(row, u, v, w, x []float64) {
	n := len(row)
	u, v, w, x = u[:n], v[:n], w[:n], x[:n]
	fu, fv, fw, fx := u[0], v[0], w[0], x[0]
	for j := range row {
		r := row[j]
		r -= float64(fu * u[j])
		r -= float64(fv * v[j])
		r -= float64(fw * w[j])
		r -= float64(fx * x[j])
		row[j] = r
	}
}

// CholeskySolve solves UᵀUx = b in place for the factor u of Cholesky; false if the result is not finite.
func CholeskySolve(u, b []float64, n int) bool {
	choleskyForward(u, b, n)
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

// choleskyForward solves Uᵀx = b in place for the factor u of Cholesky.
func choleskyForward(u, b []float64, n int) {
	for i := range n {
		x := b[i] / u[i*n+i]
		b[i] = x
		for j, f := range u[i*n+i+1 : (i+1)*n] {
			b[i+1+j] -= float64(f * x)
		}
	}
}
