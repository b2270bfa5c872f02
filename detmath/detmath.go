// Package detmath holds elementary functions, reductions and a random number generator that return the same bits
// on every platform Go compiles to.
//
// The functions of package math do not: math.Exp picks a fused-multiply-add path at run time by CPU, some
// architectures have their own assembly, and the compiler may fuse x*y+z wherever the hardware can. Everything here
// is built from operations that IEEE 754 rounds correctly (+ − × ÷ √), comparisons and integers, in one fixed
// order, and every product is written float64(x*y), which by the language specification may not be fused.
// Errors are below one unit in the last place unless a function says otherwise.
//
// Code that must be reproducible calls this package instead of math and writes its own products the same way.
// A test of this package walks the syntax trees of such packages and the machine code of five architectures.
package detmath

import "math"

// Sqrt returns the square root of x. It is math.Sqrt, which IEEE 754 rounds correctly and hence is reproducible.
func Sqrt(x float64) float64 { return math.Sqrt(x) }

// Split constants of the argument reduction by ln 2; the high part has 32 trailing zero bits.
const (
	ln2Hi = 6.93147180369123816490e-01 // 0x3fe62e42fee00000
	ln2Lo = 1.90821492927058770002e-10 // 0x3dea39ef35793c76
	log2e = 1.44269504088896338700e+00 // 0x3ff71547652b82fe
)
