package detmath

import "math"

// NormalPDF returns the density of the standard normal distribution at x. The error is below 4 units in the last
// place where the result is not subnormal.
func NormalPDF(x float64) float64 {
	const invSqrt2Pi = 0.398942280401432677939946059934
	if math.Abs(x) > 39 {
		return 0
	}
	z := head(x) // −x²/2 in an exact part and a small one
	return float64(float64(invSqrt2Pi*Exp(float64(-0.5*z*z))) * Exp(float64(-0.5*(x-z)*(x+z))))
}

// NormalCDF returns the standard normal distribution function Φ(x), accurate also far in the lower tail: the error is
// below 6 units in the last place where the result is not subnormal.
func NormalCDF(x float64) float64 {
	const (
		sqrt2Hi = 1.4142131805419921875 // 20 bits of √2
		sqrt2Lo = math.Sqrt2 - sqrt2Hi
	)
	t := x / math.Sqrt2
	p := float64(0.5 * Erfc(-t))
	if !(math.Abs(x) < 39) {
		return p
	}
	// What rounding took from t matters in the tails: Φ(x) = Φ(t·√2) + φ(x)·(x − t·√2) to first order.
	h := head(t)
	rest := ((x - float64(h*sqrt2Hi)) - float64((t-h)*sqrt2Hi)) - float64(t*sqrt2Lo)
	return p + float64(rest*NormalPDF(x))
}

// NormalQuantile returns the x with Φ(x) = p: ∓Inf at 0 and 1, NaN outside [0, 1]. The relative error is below 2e-15.
// It is algorithm AS 241 (PPND16) of Wichura, Applied Statistics 37 (1988).
func NormalQuantile(p float64) float64 {
	switch {
	case !(p >= 0 && p <= 1):
		return math.NaN()
	case p == 0:
		return math.Inf(-1)
	case p == 1:
		return math.Inf(1)
	}
	q := p - 0.5
	if math.Abs(q) <= 0.425 {
		r := 0.180625 - float64(q*q)
		return float64(q*horner(r, quantileA[:])) / horner(r, quantileB[:])
	}
	r := p
	if q > 0 {
		r = 1 - p
	}
	r = math.Sqrt(-Log(r))
	var x float64
	if r <= 5 {
		x = horner(r-1.6, quantileC[:]) / horner(r-1.6, quantileD[:])
	} else {
		x = horner(r-5, quantileE[:]) / horner(r-5, quantileF[:])
	}
	if q < 0 {
		return -x
	}
	return x
}

// Coefficients of AS 241, lowest order first. They are never written to.
var (
	quantileA = [...]float64{3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
		4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3}
	quantileB = [...]float64{1, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
		2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3}
	quantileC = [...]float64{1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
		1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4}
	quantileD = [...]float64{1, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
		1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9}
	quantileE = [...]float64{6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
		2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7}
	quantileF = [...]float64{1, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
		7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15}
)
