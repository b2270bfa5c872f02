package detmath

import (
	"math"
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
