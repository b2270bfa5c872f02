package detmath

import "math"

// Coefficients of log((1+s)/(1−s)) = 2s + s·R(s²), shared by Log and Log1p.
const (
	lg1 = 6.666666666666735130e-01 // 0x3fe5555555555593
	lg2 = 3.999999999940941908e-01 // 0x3fd999999997fa04
	lg3 = 2.857142874366239149e-01 // 0x3fd2492494229359
	lg4 = 2.222219843214978396e-01 // 0x3fcc71c51d8e78af
	lg5 = 1.818357216161805012e-01 // 0x3fc7466496cb03de
	lg6 = 1.531383769920937332e-01 // 0x3fc39a09d078c69f
	lg7 = 1.479819860511658591e-01 // 0x3fc2f112df3e5244
)

func logTail(z float64) float64 {
	return float64(z * (lg1 + float64(z*(lg2+float64(z*(lg3+float64(z*(lg4+float64(z*(lg5+float64(z*(lg6+float64(z*lg7)))))))))))))
}

// Log returns the natural logarithm of x: −Inf for zero, NaN for what is negative.
func Log(x float64) float64 {
	b := math.Float64bits(x)
	f1, ki := math.Float64frombits(b&(1<<52-1)|1022<<52), int(b>>52)-1022
	if !(x >= 0x1p-1022 && x <= math.MaxFloat64) { // not a positive normal number
		switch {
		case math.IsNaN(x) || math.IsInf(x, 1):
			return x
		case x < 0:
			return math.NaN()
		case x == 0:
			return math.Inf(-1)
		}
		f1, ki = math.Frexp(x)
	}
	if f1 < math.Sqrt2/2 {
		f1 = float64(f1 * 2)
		ki--
	}
	f := f1 - 1
	k := float64(ki)
	s := f / (2 + f)
	hfsq := float64(float64(0.5*f) * f)
	return float64(k*ln2Hi) - ((hfsq - (float64(s*(hfsq+logTail(float64(s*s)))) + float64(k*ln2Lo))) - f)
}

// Log1p returns the natural logarithm of 1 + x, accurate also where x is near zero: −Inf at −1, NaN below.
func Log1p(x float64) float64 {
	const (
		sqrt2M1     = 4.142135623730950488017e-01  // √2 − 1
		sqrt2HalfM1 = -2.928932188134524755992e-01 // √2/2 − 1
		small       = 1.0 / (1 << 29)
		tiny        = 1.0 / (1 << 54)
	)
	switch {
	case x < -1 || math.IsNaN(x):
		return math.NaN()
	case x == -1:
		return math.Inf(-1)
	case math.IsInf(x, 1):
		return x
	case -tiny < x && x < tiny:
		return x
	case -small < x && x < small:
		return x - float64(float64(x*x)*0.5)
	case sqrt2HalfM1 < x && x < sqrt2M1:
		return log1pReduced(x, 0, 0)
	}
	u := 1 + x
	f1, k := math.Frexp(u)
	if f1 < math.Sqrt2/2 {
		f1 = float64(f1 * 2)
		k--
	}
	var c float64 // what rounding took from 1 + x, relative to u
	switch {
	case x >= 1<<53:
	case x >= 1:
		c = (1 - (u - x)) / u
	default:
		c = (x - (u - 1)) / u
	}
	return log1pReduced(f1-1, c, k)
}

// log1pReduced returns k·ln 2 + log(1+f) + c for √2/2 − 1 ≤ f ≤ √2 − 1.
func log1pReduced(f, c float64, k int) float64 {
	hfsq := float64(float64(0.5*f) * f)
	s := f / (2 + f)
	r := logTail(float64(s * s))
	if k == 0 {
		return f - (hfsq - float64(s*(hfsq+r)))
	}
	kf := float64(k)
	return float64(kf*ln2Hi) - ((hfsq - (float64(s*(hfsq+r)) + (float64(kf*ln2Lo) + c))) - f)
}
