package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// lawNodes and lawReach set the quadrature of the law's entropy: nodes on ±lawReach standard deviations of the law.
const (
	lawNodes = 49
	lawReach = 6.0
)

// lawEntropy returns the differential entropy, in nats, of the mixture Σ ρᵢ·N(xᵢ, sᵢ²) measured in units of scale, by
// the trapezoidal rule. density is scratch of length lawNodes. Along the even grid each Gaussian follows from its
// neighbour by two products, g(u+h) = g(u)·r, r ← r·q, so a component costs three exponentials.
func lawEntropy(rho, mean, variance []float64, scale float64, density []float64) float64 {
	centre, spread := 0.0, 0.0
	for i, w := range rho {
		centre += float64(w * mean[i])
	}
	for i, w := range rho {
		d := (mean[i] - centre) / scale
		spread += float64(w * (variance[i]/scale/scale + float64(d*d)))
	}
	sd := math.Sqrt(spread)
	if !(sd > 0) || math.IsInf(sd, 0) {
		return 0
	}
	h := float64(2 * lawReach / (lawNodes - 1) * sd)
	clear(density)
	for i, w := range rho {
		if w < 1e-9 {
			continue
		}
		s := max(math.Sqrt(variance[i])/scale, float64(0.5*h)) // narrower than the grid would not be seen by it
		addGaussian(density, w/(s*math.Sqrt(2*math.Pi)), (mean[i]-centre)/scale/s, h/s)
	}
	total, entropy := 0.0, 0.0
	for _, f := range density {
		if f > 0 {
			total += f
			entropy -= float64(f * detmath.Log(f))
		}
	}
	// The grid's own mass is one to rounding; dividing by it makes the rule exact for whatever it leaves out.
	mass := float64(total * h)
	return entropy/total + detmath.Log(mass)
}

// addGaussian adds top·exp(−(u−at)²/2) to density, whose nodes lie at u = (k − middle)·step.
func addGaussian(density []float64, top, at, step float64) {
	n := len(density)
	middle := n / 2
	first := max(0, min(n-1, middle+int(math.Floor(at/step+0.5))))
	u := float64(float64(first-middle)*step) - at
	g := float64(top * detmath.Exp(float64(-0.5*u*u)))
	half := float64(-0.5 * step * step)
	q := detmath.Exp(float64(2 * half))
	up := detmath.Exp(float64(-u*step) + half)
	down := detmath.Exp(float64(u*step) + half)
	density[first] += g
	x, r := g, up
	for k := first + 1; k < n; k++ {
		x = float64(x * r)
		r = float64(r * q)
		density[k] += x
	}
	x, r = g, down
	for k := first - 1; k >= 0; k-- {
		x = float64(x * r)
		r = float64(r * q)
		density[k] += x
	}
}

// CRPS returns the continuous ranked probability score of the mixture Σ wᵢ·N(mᵢ, vᵢ) at y, in the unit of y; less is
// better. It is Σ wᵢ·A(y−mᵢ, vᵢ) − ½ΣΣ wᵢwⱼ·A(mᵢ−mⱼ, vᵢ+vⱼ) with A(m,v) = E|N(m,v)| (Grimit, Gneiting, Berrocal
// and Johnson, Q. J. R. Meteorol. Soc. 132, 2006). Variances may be zero.
func CRPS(weight, mean, variance []float64, y float64) float64 {
	s := 0.0
	for i, w := range weight {
		s += float64(w * absMoment(y-mean[i], variance[i]))
		for j, u := range weight {
			s -= float64(0.5 * w * u * absMoment(mean[i]-mean[j], variance[i]+variance[j]))
		}
	}
	return s
}

// absMoment returns E|X| for X normal with mean m and variance v.
func absMoment(m, v float64) float64 {
	if !(v > 0) {
		return math.Abs(m)
	}
	sd := math.Sqrt(v)
	z := m / sd
	return float64(2*sd*detmath.NormalPDF(z)) + float64(m*(1-float64(2*detmath.NormalCDF(-z))))
}

// Pinball returns the quantile loss of q as a forecast of the quantile tau of y, in the unit of y.
func Pinball(tau, y, q float64) float64 {
	if y >= q {
		return float64(tau * (y - q))
	}
	return float64((1 - tau) * (q - y))
}
