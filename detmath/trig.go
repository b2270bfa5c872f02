package detmath

import (
	"math"
	"math/bits"
)

// The two polynomials are those of FreeBSD's msun k_sin.c and k_cos.c, with every rounding made explicit. The C code came
// with this notice:
//
// ====================================================
// Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved.
//
// Developed at SunPro, a Sun Microsystems, Inc. business.
// Permission to use, copy, modify, and distribute this
// software is freely granted, provided that this notice
// is preserved.
// ====================================================

// Sin returns the sine of x radians, NaN where x is not finite.
func Sin(x float64) float64 {
	s, _ := SinCos(x)
	return s
}

// Cos returns the cosine of x radians, NaN where x is not finite.
func Cos(x float64) float64 {
	_, c := SinCos(x)
	return c
}

// SinCos returns sine and cosine of x radians, both NaN where x is not finite.
func SinCos(x float64) (sin, cos float64) {
	a := math.Abs(x)
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return math.NaN(), math.NaN()
	case a < 1.0/(1<<27):
		return x, 1
	case a <= math.Pi/4:
		return sinTail(x, 0), cosTail(x, 0)
	}
	n, y, tail := reduce(a)
	sin, cos = sinTail(y, tail), cosTail(y, tail)
	if n&1 == 1 {
		sin, cos = cos, -sin
	}
	if n&2 == 2 {
		sin, cos = -sin, -cos
	}
	if x < 0 {
		sin = -sin
	}
	return sin, cos
}

// sinTail returns the sine of y + tail for |y| ≤ π/4 and tail below half a unit in y's last place.
func sinTail(y, tail float64) float64 {
	const (
		s1 = -1.66666666666666324348e-01 // 0xbfc55555 55555549
		s2 = 8.33333333332248946124e-03  // 0x3f811111 1110f8a6
		s3 = -1.98412698298579493134e-04 // 0xbf2a01a0 19c161d5
		s4 = 2.75573137070700676789e-06  // 0x3ec71de3 57b1fe7d
		s5 = -2.50507602534068634195e-08 // 0xbe5ae5e6 8a2b9ceb
		s6 = 1.58969099521155010221e-10  // 0x3de5d93a 5acfd57c
	)
	z := float64(y * y)
	v := float64(z * y)
	r := s2 + float64(z*(s3+float64(z*(s4+float64(z*(s5+float64(z*s6)))))))
	return y - ((float64(z*(float64(0.5*tail)-float64(v*r))) - tail) - float64(v*s1))
}

// cosTail returns the cosine of y + tail for |y| ≤ π/4 and tail below half a unit in y's last place.
func cosTail(y, tail float64) float64 {
	const (
		c1 = 4.16666666666666019037e-02  // 0x3fa55555 5555554c
		c2 = -1.38888888888741095749e-03 // 0xbf56c16c 16c15177
		c3 = 2.48015872894767294178e-05  // 0x3efa01a0 19cb1590
		c4 = -2.75573143513906633035e-07 // 0xbe927e4f 809c52ad
		c5 = 2.08757232129817482790e-09  // 0x3e21ee9e bdb4b1c4
		c6 = -1.13596475577881948265e-11 // 0xbda8fae9 be8838d4
	)
	z := float64(y * y)
	r := float64(z * (c1 + float64(z*(c2+float64(z*(c3+float64(z*(c4+float64(z*(c5+float64(z*c6)))))))))))
	half := float64(0.5 * z)
	w := 1 - half
	return w + (((1 - w) - half) + (float64(z*r) - float64(y*tail)))
}

// fourOverPi is 4/π in words of 64 bits, the first before the binary point: enough for the greatest float. It is never
// written to.
var fourOverPi = [...]uint64{
	0x0000000000000001, 0x45f306dc9c882a53, 0xf84eafa3ea69bb81, 0xb6c52b3278872083,
	0xfca2c757bd778ac3, 0x6e48dc74849ba5c0, 0x0c925dd413a32439, 0xfc3bd63962534e7d,
	0xd1046bea5d768909, 0xd338e04d68befc82, 0x7323ac7306a673e9, 0x3908bf177bf25076,
	0x3ff12fffbc0b301f, 0xde5e2316b414da3e, 0xda6cfd9e4f96136e, 0x9e8c7ecd3cbfd45a,
	0xea4f758fd7cbe2f6, 0x7a0e73ef14a525d4, 0xd7f6bf623f1aba10, 0xac06608df8f6d757,
}

// reduce returns n modulo 4 and y + tail = x − n·π/2 in [−π/4, π/4] for finite x > ½, after Payne and Hanek ("Radian
// reduction for trigonometric functions", SIGNUM 18, 1983): only those bits of x·4/π are computed that decide the
// quadrant and the fraction, in integers, however great x is. No float comes nearer to a multiple of π/2 than 2^−62 of
// it, so that of the fraction's 126 bits at least 64 are good.
func reduce(x float64) (n uint64, y, tail float64) {
	const mantissa = 1<<52 - 1
	b := math.Float64bits(x)
	m := b&mantissa | 1<<52
	at := uint(int(b>>52) - 1023 - 52 + 61) // bits of 4/π that only give multiples of 2π
	k, shift := at/64, at%64
	word := func(i uint) uint64 { return fourOverPi[k+i]<<shift | fourOverPi[k+i+1]>>(64-shift) }
	low, _ := bits.Mul64(word(2), m)
	middleHi, middleLo := bits.Mul64(word(1), m)
	lo, carry := bits.Add64(middleLo, low, 0)
	hi, _ := bits.Add64(word(0)*m, middleHi, carry)

	n = hi >> 62
	hi, lo = hi<<2|lo>>62, lo<<2
	sign := 1.0
	if hi>>63 == 1 { // beyond half: from the next multiple backwards
		n++
		sign = -1
		lo, carry = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, carry)
	}
	zeros := uint(bits.LeadingZeros64(hi))
	hi = hi<<zeros | lo>>(64-zeros)

	const (
		piHi = 1.570796012878418       // 21 bits of π/2, so that 32 bits times it are exact
		piLo = 3.139164786504813e-07   // the rest
		pi64 = math.Pi / 2 / (1 << 32) // for the second half of the 64 bits
	)
	big := float64(float64(hi>>32) * piHi)
	rest := float64(float64(hi>>32)*piLo) + float64(float64(hi&(1<<32-1))*pi64)
	y = big + rest
	tail = rest - (y - big)
	unit := float64(sign * math.Float64frombits(uint64(1023-32-zeros)<<52))
	return n, float64(y * unit), float64(tail * unit)
}
