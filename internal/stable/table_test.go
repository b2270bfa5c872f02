package stable

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write table.go anew")

// fourier returns the density of index alpha at x as (1/π)∫cos(xt)·exp(−t^α)dt over t > 0, by the double exponential rule t =
// exp(s − e^−s), which the singularity of t^α at zero does not harm: to 1e−14 for |x| ≤ 40.
func fourier(alpha, x float64) float64 {
	const h = 1.0 / 512
	sum := 0.0
	for i := -5 * 512; i <= 4*512; i++ {
		s := float64(i) * h
		t := math.Exp(s - math.Exp(-s))
		sum += math.Cos(x*t) * math.Exp(-math.Pow(t, alpha)) * t * (1 + math.Exp(-s)) * h
	}
	return sum / math.Pi
}

// compute interpolates the density at Chebyshev's points, in α over [1, 2] and in 1 + x within each octave, and turns both
// polynomials into powers.
func compute() (table [octaves][inX][inAlpha]float64) {
	for k := range table {
		var f [inX][inAlpha]float64
		for i := range f {
			for j := range f[i] {
				s, a := point(i, inX), point(j, inAlpha)
				f[i][j] = fourier(1.5+a/2, math.Ldexp(1.5+s/2, k)-1)
			}
		}
		for i, c := range powers(inX) {
			for j, d := range powers(inAlpha) {
				sum := 0.0
				for p, u := range c {
					for q, v := range d {
						sum += u * v * f[p][q]
					}
				}
				table[k][inX-1-i][inAlpha-1-j] = sum
			}
		}
	}
	return table
}

func point(i, n int) float64 { return math.Cos(math.Pi * (float64(i) + .5) / float64(n)) }

// powers returns the coefficients c with p(s) = Σ sⁱ Σ c[i][p]·f(point(p)) for the polynomial p through n values f: discrete cosine
// transform, and T₀ = 1, T₁ = s, Tₖ₊₁ = 2s·Tₖ − Tₖ₋₁.
func powers(n int) [][]float64 {
	chebyshev := make([][]float64, n)
	c := make([][]float64, n)
	for k := range n {
		chebyshev[k], c[k] = make([]float64, n), make([]float64, n)
		switch k {
		case 0, 1:
			chebyshev[k][k] = 1
		default:
			for i := range n {
				chebyshev[k][i] = -chebyshev[k-2][i]
				if i > 0 {
					chebyshev[k][i] += 2 * chebyshev[k-1][i-1]
				}
			}
		}
	}
	for k := range n {
		for p := range n {
			w := 2 * math.Cos(math.Pi*float64(k)*(float64(p)+.5)/float64(n)) / float64(n)
			if k == 0 {
				w /= 2
			}
			for i := range n {
				c[i][p] += chebyshev[k][i] * w
			}
		}
	}
	return c
}

// TestTable computes the table anew. Powers magnify the last bits of the functions of package math, which are not the same
// on every machine; TestDensityError says what they are worth.
func TestTable(t *testing.T) {
	want := compute()
	if *update {
		write(t, &want)
	}
	for k := range want {
		for i := range want[k] {
			for j, w := range want[k][i] {
				if got := table[k][i][j]; math.Abs(got-w) > 1e-8 {
					t.Errorf("table[%d][%d][%d] = %g, want %g", k, i, j, got, w)
				}
			}
		}
	}
}

func write(t *testing.T, table *[octaves][inX][inAlpha]float64) {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "package stable\n\n// table is written by go test -run TestTable -update, which computes and compares it. table[k][i][j] is the coefficient of\n")
	fmt.Fprintf(&b, "// s^(%d−i)·a^(%d−j) in the density for 1 + |x| = 2ᵏ(3+s)/2 and α = (3+a)/2. It is never written to.\n", inX-1, inAlpha-1)
	fmt.Fprintf(&b, "var table = [octaves][inX][inAlpha]float64{\n")
	for _, octave := range table {
		fmt.Fprintf(&b, "\t{\n")
		for _, row := range octave {
			fmt.Fprintf(&b, "\t\t{")
			for j, c := range row {
				switch {
				case j > 0 && j%7 == 0:
					fmt.Fprintf(&b, ",\n\t\t\t")
				case j > 0:
					fmt.Fprintf(&b, ", ")
				}
				fmt.Fprintf(&b, "%.13g", c)
			}
			fmt.Fprintf(&b, "},\n")
		}
		fmt.Fprintf(&b, "\t},\n")
	}
	fmt.Fprintf(&b, "}\n")
	if err := os.WriteFile("table.go", b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
}
