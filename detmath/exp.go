package detmath

import "math"

// Exp, Expm1, Log and Log1p are translations of FreeBSD's msun e_exp.c, s_expm1.c, e_log.c and s_log1p.c by way of
// Go's package math, with every rounding made explicit. The C code came with this notice:
//
// ====================================================
// Copyright (C) 1993, 2004 by Sun Microsystems, Inc. All rights reserved.
//
// Developed at SunPro, a Sun Microsystems, Inc. business.
// Permission to use, copy, modify, and distribute this
// software is freely granted, provided that this notice
// is preserved.
// ====================================================

// Exp returns eˣ. It returns +Inf above 709.78, 0 below −745.13 and NaN for NaN.
func Exp(x float64) float64 {
	const (
		overflow  = 7.09782712893383973096e+02
		underflow = -7.45133219101941108420e+02
		nearZero  = 1.0 / (1 << 28)
	)
	switch {
	case math.IsNaN(x):
		return x
	case x > overflow:
		return math.Inf(1)
	case x < underflow:
		return 0
	case -nearZero < x && x < nearZero:
		return 1 + x
	}
	half := 0.5
	if x < 0 {
		half = -0.5
	}
	k := int(float64(log2e*x) + half)
	hi := x - float64(float64(k)*ln2Hi)
	lo := float64(float64(k) * ln2Lo)
	r := hi - lo
	c := r - expTail(float64(r*r))
	y := 1 - ((lo - float64(r*c)/(2-c)) - hi)
	if k > -1021 && k < 1023 {
		return math.Float64frombits(math.Float64bits(y) + uint64(k)<<52)
	}
	return scale(y, k)
}

// ExpEach replaces each element of xs by its Exp, with the same bits. It is made for elements that are not positive.
func ExpEach(xs []float64) {
	for i, x := range xs {
		if !(x <= -0x1p-28 && x >= -700) {
			xs[i] = Exp(x)
			continue
		}
		k := int(float64(log2e*x) - 0.5)
		hi := x - float64(float64(k)*ln2Hi)
		lo := float64(float64(k) * ln2Lo)
		r := hi - lo
		c := r - expTail(float64(r*r))
		y := 1 - ((lo - float64(r*c)/(2-c)) - hi)
		xs[i] = math.Float64frombits(math.Float64bits(y) + uint64(k)<<52)
	}
}

// expTail is the polynomial R(t) − 2 of the rational approximation r(eʳ+1)/(eʳ−1) = 2 + r²P₁ + r⁴P₂ + …, t = r².
func expTail(t float64) float64 {
	const (
		p1 = 1.66666666666666657415e-01  // 0x3fc55555 55555555
		p2 = -2.77777777770155933842e-03 // 0xbf66c16c 16bebd93
		p3 = 6.61375632143793436117e-05  // 0x3f11566a af25de2c
		p4 = -1.65339022054652515390e-06 // 0xbebbbd41 c5d26bf1
		p5 = 4.13813679705723846039e-08  // 0x3e663769 72bea4d0
	)
	return float64(t * (p1 + float64(t*(p2+float64(t*(p3+float64(t*(p4+float64(t*p5)))))))))
}

// scale returns y·2ᵏ for y in [½, 4]: exact where the result is normal, rounded once where it is not.
func scale(y float64, k int) float64 {
	if k > -1021 && k < 1023 {
		return math.Float64frombits(math.Float64bits(y) + uint64(k)<<52)
	}
	return math.Ldexp(y, k)
}

// Expm1 returns eˣ − 1, accurate also where x is near zero.
func Expm1(x float64) float64 {
	const (
		overflow = 7.09782712893383973096e+02
		ln2X56   = 3.88162421113569373274e+01
		ln2Half  = 3.46573590279972654709e-01
		tiny     = 1.0 / (1 << 54)
	)
	switch {
	case math.IsNaN(x):
		return x
	case x > overflow:
		return math.Inf(1)
	case x <= -ln2X56:
		return -1
	case -tiny < x && x < tiny:
		return x
	}
	if -ln2Half <= x && x <= ln2Half {
		return expm1Small(x, 0, 0)
	}
	half := 0.5
	if x < 0 {
		half = -0.5
	}
	k := int(float64(log2e*x) + half)
	hi := x - float64(float64(k)*ln2Hi)
	lo := float64(float64(k) * ln2Lo)
	r := hi - lo
	return expm1Small(r, (hi-r)-lo, k)
}

// expm1Small returns 2ᵏ·eˣ⁺ᶜ − 1 for |x| ≤ ½·ln 2 and c the rounding error of x.
func expm1Small(x, c float64, k int) float64 {
	const (
		q1 = -3.33333333333331316428e-02 // 0xbfa11111111110f4
		q2 = 1.58730158725481460165e-03  // 0x3f5a01a019fe5585
		q3 = -7.93650757867487942473e-05 // 0xbf14ce199eaadbb7
		q4 = 4.00821782732936239552e-06  // 0x3ed0cfca86e65239
		q5 = -2.01099218183624371326e-07 // 0xbe8afdb76e09c32d
	)
	hfx := float64(0.5 * x)
	hxs := float64(x * hfx)
	r1 := 1 + float64(hxs*(q1+float64(hxs*(q2+float64(hxs*(q3+float64(hxs*(q4+float64(hxs*q5)))))))))
	t := 3 - float64(r1*hfx)
	e := float64(hxs * ((r1 - t) / (6.0 - float64(x*t))))
	if k == 0 {
		return x - (float64(x*e) - hxs)
	}
	e = float64(x*(e-c)) - c
	e -= hxs
	switch {
	case k == -1:
		return float64(0.5*(x-e)) - 0.5
	case k == 1 && x < -0.25:
		return float64(-2 * (e - (x + 0.5)))
	case k == 1:
		return 1 + float64(2*(x-e))
	case k <= -2 || k > 56:
		return scale(1-(e-x), k) - 1
	case k < 20:
		return scale((1-scale(1, -k))-(e-x), k)
	}
	return scale((x-(e+scale(1, -k)))+1, k)
}
