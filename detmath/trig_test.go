package detmath

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

const bigBits = 1400 // the greatest float has 1,024 bits before its point

// bigPi returns π by Machin's formula, 16·arctan(1/5) − 4·arctan(1/239), in integers scaled by 2^(bigBits+64).
func bigPi() *big.Float {
	const scale = bigBits + 64
	arctan := func(x int64) *big.Int {
		sum, power := new(big.Int), new(big.Int).Lsh(big.NewInt(1), scale)
		power.Quo(power, big.NewInt(x))
		for k := int64(1); power.Sign() != 0; k += 2 {
			term := new(big.Int).Quo(power, big.NewInt(k))
			if k%4 == 1 {
				sum.Add(sum, term)
			} else {
				sum.Sub(sum, term)
			}
			power.Quo(power, big.NewInt(x*x))
		}
		return sum
	}
	pi := new(big.Int).Mul(big.NewInt(16), arctan(5))
	pi.Sub(pi, new(big.Int).Mul(big.NewInt(4), arctan(239)))
	f := new(big.Float).SetPrec(bigBits).SetInt(pi)
	return f.SetMantExp(f, -scale)
}

// bigSinCos returns sine and cosine by their Taylor series after the removal of multiples of 2π.
func bigSinCos(x float64, pi *big.Float) (sin, cos *big.Float) {
	number := func(v float64) *big.Float { return new(big.Float).SetPrec(bigBits).SetFloat64(v) }
	turn := new(big.Float).Mul(pi, number(2))
	n, _ := new(big.Float).Quo(number(x), turn).Int(nil)
	y := new(big.Float).Sub(number(x), new(big.Float).Mul(turn, new(big.Float).SetPrec(bigBits).SetInt(n)))
	y.SetPrec(300) // the terms below are as great as 2π⁶/720: nothing is lost that a float would show
	square := new(big.Float).Mul(y, y)
	series := func(term *big.Float, k float64) *big.Float {
		sum := new(big.Float).Copy(term)
		for ; term.Sign() != 0 && term.MantExp(nil) > -260; k += 2 {
			term.Mul(term, square)
			term.Quo(term, number(-(k+1)*(k+2)))
			sum.Add(sum, term)
		}
		return sum
	}
	return series(new(big.Float).Copy(y), 1), series(number(1).SetPrec(300), 0)
}

// TestTrigULP measures the error of sine and cosine, everywhere a float can lie and where most are wrong: next to multiples of π/2.
func TestTrigULP(t *testing.T) {
	pi := bigPi()
	if got := pi.Text('g', 51); got != "3.14159265358979323846264338327950288419716939937511" {
		t.Fatalf("π is %s", got)
	}
	u := Uniform{Seed: 5}
	worst := [2]float64{}
	at := [2]float64{}
	check := func(x float64) {
		gotSin, gotCos := SinCos(x)
		wantSin, wantCos := bigSinCos(x, pi)
		for i, got := range [2]float64{gotSin, gotCos} {
			want := [2]*big.Float{wantSin, wantCos}[i]
			near, _ := want.Float64()
			d, _ := new(big.Float).Sub(want, new(big.Float).SetFloat64(got)).Float64()
			if e := math.Abs(d) / ulp(near); e > worst[i] {
				worst[i], at[i] = e, x
			}
		}
	}
	for range 2000 {
		check(float64((2*u.Float64() - 1) * 10))
		check(math.Ldexp(1+u.Float64(), int(u.Uint64()%1040)-16))
		multiple := float64(float64(u.Uint64()%100000) * (math.Pi / 2))
		check(multiple)
		check(math.Nextafter(multiple, 1e9))
	}
	// The float nearest to a multiple of π/2 of all (Muller, Elementary Functions, 2016, section 11.3.2).
	check(math.Ldexp(6381956970095103, 797))
	for i, name := range [2]string{"Sin", "Cos"} {
		t.Logf("%s: at most %.3f ulp, at %v", name, worst[i], at[i])
		if worst[i] > 0.8 {
			t.Errorf("%s(%v) is off by %.3f ulp, want at most 0.8", name, at[i], worst[i])
		}
	}
}

func TestTrigProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.Float64().Draw(t, "x")
		sin, cos := SinCos(x)
		if r := float64(sin*sin) + float64(cos*cos); math.Abs(r-1) > 4e-16 {
			t.Errorf("sin² + cos² of %v is %v", x, r)
		}
		if s, c := SinCos(-x); s != -sin || c != cos {
			t.Errorf("SinCos(%v) = %v, %v, but %v, %v at %v", x, sin, cos, s, c, -x)
		}
		if Sin(x) != sin || Cos(x) != cos {
			t.Errorf("Sin, Cos and SinCos of %v differ", x)
		}
	})
}
