package detmath

import (
	"math"
	"slices"
	"testing"
)

// The Hilbert-like matrix 1/(i+j+1) + 1{i=j}, whose factor times its transpose must give it back.
func TestCholesky(t *testing.T) {
	const n = 7
	a, b := make([]float64, n*n), make([]float64, n)
	for i := range n {
		for j := range n {
			a[i*n+j] = 1 / float64(i+j+1)
			b[i] += a[i*n+j] * float64(j+1)
		}
		a[i*n+i]++
		b[i] += float64(i + 1)
	}
	u := append([]float64{}, a...)
	if !Cholesky(u, n) || !CholeskySolve(u, b, n) {
		t.Fatal("a positive definite matrix is refused")
	}
	for i := range n {
		for j := range i + 1 {
			got := 0.0
			for k := range j + 1 {
				got += u[k*n+i] * u[k*n+j]
			}
			if math.Abs(got-a[i*n+j]) > 1e-15 {
				t.Errorf("element %d, %d of UᵀU is %v, want %v", i, j, got, a[i*n+j])
			}
		}
		if math.Abs(b[i]-float64(i+1)) > 1e-13 {
			t.Errorf("solution %d is %v, want %d", i, b[i], i+1)
		}
	}
	for _, bad := range [][]float64{{1, 2, 2, 1}, {0, 0, 0, 1}, {math.NaN(), 0, 0, 1}, {math.Inf(1), 0, 0, 1}} {
		if Cholesky(append([]float64{}, bad...), 2) {
			t.Errorf("%v is called positive definite", bad)
		}
	}
	if CholeskySolve([]float64{1e-300, 0, 0, 1}, []float64{1e300, 1}, 2) {
		t.Error("a solution that is not finite is returned")
	}
}

// The order of operations is that of the plain algorithm, which updates the rows below as soon as a row is known: the bits are the same.
func TestCholeskyOrder(t *testing.T) {
	u := Uniform{Seed: 8}
	for n := range 40 {
		a := make([]float64, n*n)
		for i := range n {
			for j := i; j < n; j++ {
				a[i*n+j] = u.Normal() / 10
			}
			a[i*n+i] = 3 + u.Float64()
		}
		want := slices.Clone(a)
		for k := range n {
			pivot := want[k*n+k : (k+1)*n]
			inverse := 1 / math.Sqrt(pivot[0])
			for j := range pivot {
				pivot[j] *= inverse
			}
			for i := 1; i < len(pivot); i++ {
				for j := i; j < len(pivot); j++ {
					want[(k+i)*n+k+j] -= float64(pivot[i] * pivot[j])
				}
			}
		}
		if !Cholesky(a, n) || !slices.Equal(a, want) {
			t.Fatalf("n = %d: the factor differs", n)
		}
	}
}

func BenchmarkCholesky(b *testing.B) {
	const n = 64
	u := Uniform{Seed: 9}
	a, work := make([]float64, n*n), make([]float64, n*n)
	for i := range n {
		for j := i; j < n; j++ {
			a[i*n+j] = u.Normal() / 100
		}
		a[i*n+i] = 3
	}
	for b.Loop() {
		copy(work, a)
		Cholesky(work, n)
	}
}

// A column beside the square comes out as the forward solution.
func TestCholeskyBeside(t *testing.T) {
	const n, width = 7, 9
	u := Uniform{Seed: 4}
	square, a := make([]float64, n*n), make([]float64, n*width)
	var columns [width - n][]float64
	for i := range n {
		for j := i; j < n; j++ {
			square[i*n+j] = u.Normal() / 10
		}
		square[i*n+i] = 2
		copy(a[i*width:], square[i*n:(i+1)*n])
		for k := range columns {
			a[i*width+n+k] = u.Normal()
			columns[k] = append(columns[k], a[i*width+n+k])
		}
	}
	if !CholeskyBeside(a, n, width) || !Cholesky(square, n) {
		t.Fatal("not positive definite")
	}
	for k, b := range columns {
		choleskyForward(square, b, n)
		for i := range n {
			if got := a[i*width+n+k]; math.Abs(got-b[i]) > 1e-15 {
				t.Errorf("column %d, row %d: %v, want %v", k, i, got, b[i])
			}
		}
	}
}
