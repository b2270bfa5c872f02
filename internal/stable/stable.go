// Package stable knows the symmetric α-stable laws: the only limits of sums of independent, identically distributed
// terms, with tails like |x|^−(1+α) for α < 2. The standard law S(α, 0, 1, 0) has the characteristic function
// exp(−|t|^α), in which the parametrisations S0 and S1 of Nolan (Univariate Stable Distributions, 2020) agree: at α = 1
// it is Cauchy's, at α = 2 the normal with variance 2. Laws with skewness are not here.
//
// The density is in no closed form. It is tabulated, as polynomials in α and x, and a step that evaluates it takes no
// quadrature. All results are the same bits on every architecture.
package stable

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// MinAlpha and MaxAlpha are the ends of the range of the index α.
const (
	MinAlpha = 1.0
	MaxAlpha = 2.0
)

const (
	octaves   = 5  // of 1 + |x| that the table covers
	inX       = 14 // coefficients in x within an octave, an even number
	inAlpha   = 14 // coefficients in α
	tailTerms = 7  // of the series beyond the table
	tailFrom  = 1<<octaves - 1
)

// Law is the standard symmetric stable law of one index. The zero value is no law; Set makes it one.
type Law struct {
	alpha  float64
	octave [octaves][inX / 2][2]float64 // density for 1 + |x| in [2ᵏ, 2ᵏ⁺¹), highest power of s first; s goes from −1 to 1 there
	tail   [tailTerms]float64           // of the series in |x|^−α, lowest power first
}

// Alpha returns the index.
func (l *Law) Alpha() float64 { return l.alpha }

// Set makes l the law of index alpha, which is moved into [MinAlpha, MaxAlpha]. It takes about a microsecond.
func (l *Law) Set(alpha float64) {
	l.alpha = max(MinAlpha, min(MaxAlpha, alpha))
	a := float64(2*l.alpha) - 3
	for k := range l.octave {
		for i := range inX {
			s := 0.0
			for _, c := range &table[k][i] {
				s = c + float64(a*s)
			}
			l.octave[k][i/2][i%2] = s
		}
	}
	// Σ (−1)ᵏ⁺¹ Γ(αk+1)/k! sin(πkα/2)/π · x^−(αk+1): Feller, An Introduction to Probability Theory II, 1971, XVII.6.
	sign, factorial := 1.0, 1.0
	for i := range l.tail {
		k := float64(i + 1)
		factorial = float64(factorial * k)
		gamma := detmath.Exp(detmath.Lgamma(float64(k*l.alpha) + 1))
		l.tail[i] = float64(sign*gamma*detmath.Sin(float64(0.5*math.Pi*k*l.alpha))) / float64(factorial*math.Pi)
		sign = -sign
	}
}

// Density returns the density at x. Its error is below 4e−9, and for α ≤ 1.95 below 5e−6 of the density; it is never
// negative, and never NaN for a number.
func (l *Law) Density(x float64) float64 {
	const mantissa = 1<<52 - 1
	x = math.Abs(x)
	if !(x < tailFrom) {
		return l.far(x)
	}
	b := math.Float64bits(1 + x)
	m := math.Float64frombits(b&mantissa | 1023<<52)
	s := float64(2*m) - 3
	// Odd and even powers apart, so that neither waits for the other.
	square := float64(s * s)
	odd, even := 0.0, 0.0
	for _, c := range &l.octave[b>>52-1023] {
		odd = c[0] + float64(square*odd)
		even = c[1] + float64(square*even)
	}
	if d := even + float64(s*odd); d > 0 {
		return d
	}
	return 0
}

// far returns the density at x ≥ tailFrom by the first terms of its asymptotic series.
func (l *Law) far(x float64) float64 {
	y := detmath.Exp(float64(-l.alpha * detmath.Log(x)))
	s := 0.0
	for i := tailTerms - 1; i >= 0; i-- {
		s = float64(y * (l.tail[i] + s))
	}
	return max(0, s/x)
}
