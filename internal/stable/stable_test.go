package stable

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/detmath"
)

func law(alpha float64) *Law {
	l := &Law{}
	l.Set(alpha)
	return l
}

// By mpmath 1.3 at 400 digits from the power series at 0, beyond x = 40 at 40 digits from that at infinity.
func TestDensity(t *testing.T) {
	for _, c := range []struct{ alpha, x, want float64 }{
		{1.2, 0, .29942005917982891}, {1.2, 1, .18096537440816913}, {1.2, 3, .032309557795483367},
		{1.5, 0, .28735275145216445}, {1.5, 1, .20203815960784013}, {1.5, 3, .031509423616324935},
		{1.8, 0, .28306875859161901}, {1.8, 1, .21418871210506861}, {1.8, 3, .030244348676958558},
		{1.35, .5, .26143085294550203}, {1.5, 7.25, .0024944054976443881}, {1.7, 12, .00029765741891404577},
		{1.95, 5, .0012361454110448074}, {1.95, 6.5, .00028264277618814025},
		{1.9, 40, 2.0741426451572053e-6}, {1.5, 1000, 9.4627019493268651e-9}, {1.75, 1e6, 6.1954505586436104e-18},
	} {
		got := law(c.alpha).Density(c.x)
		if d := math.Abs(got - c.want); d > 4e-9 || d > 5e-6*c.want {
			t.Errorf("density of index %v at %v is %.17g, want %.17g", c.alpha, c.x, got, c.want)
		}
	}
	// Closed forms at the ends.
	for x := -30.0; x <= 60; x += .37 {
		cauchy, normal := 1/(math.Pi*(1+x*x)), math.Exp(-x*x/4)/(2*math.Sqrt(math.Pi))
		if got := law(1).Density(x); math.Abs(got-cauchy) > 4e-9 {
			t.Errorf("α = 1: density at %v is %.17g, want %.17g", x, got, cauchy)
		}
		if got := law(2).Density(x); math.Abs(got-normal) > 4e-9 {
			t.Errorf("α = 2: density at %v is %.17g, want %.17g", x, got, normal)
		}
	}
}

// TestDensityError measures the error between the points that the table goes through, against the Fourier integral.
func TestDensityError(t *testing.T) {
	absolute, relative := 0.0, 0.0
	for alpha := 1.0; alpha <= 2.0001; alpha += .0575 {
		l := law(alpha)
		for x := .01; x < 40; x = x*1.1 + .02 {
			want := fourier(l.Alpha(), x)
			d := math.Abs(l.Density(x) - want)
			absolute = max(absolute, d)
			if alpha <= 1.95 {
				relative = max(relative, d/want)
			}
		}
	}
	t.Logf("error at most %.2g, and %.2g of the density for α ≤ 1.95", absolute, relative)
	if absolute > 4e-9 || relative > 5e-6 {
		t.Errorf("error %.2g, relative to the density for α ≤ 1.95 %.2g; want 4e-9 and 5e-6", absolute, relative)
	}
}

func TestDensityProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		alpha := rapid.Float64Range(MinAlpha, MaxAlpha).Draw(t, "alpha")
		l := law(alpha)
		x := rapid.Float64().Draw(t, "x")
		f := l.Density(x)
		if !(f >= 0 && f <= 1/math.Pi+1e-8) || f != l.Density(-x) {
			t.Errorf("index %v: density at ±%v is %v, %v", alpha, x, f, l.Density(-x))
		}
		// One mode, up to the error.
		near, far := rapid.Float64Range(0, 100).Draw(t, "near"), rapid.Float64Range(0, 100).Draw(t, "beyond")
		if a, b := l.Density(near), l.Density(near+far); b > a+8e-9 {
			t.Errorf("index %v: density grows from %v at %v to %v at %v", alpha, a, near, b, near+far)
		}
		// The tail: x^(1+α)·f → sin(πα/2)·Γ(1+α)/π.
		big := rapid.Float64Range(1e6, 1e9).Draw(t, "big")
		limit := math.Sin(math.Pi*alpha/2) * math.Gamma(1+alpha) / math.Pi
		if got := math.Pow(big, 1+alpha) * l.Density(big); alpha < 1.99 && math.Abs(got/limit-1) > 1e-5 {
			t.Errorf("index %v: x^(1+α)·f(x) at %v is %v, want %v", alpha, big, got, limit)
		}
	})
	for _, x := range []float64{math.Inf(1), math.Inf(-1), math.MaxFloat64} {
		if f := law(1.5).Density(x); f != 0 {
			t.Errorf("density at %v is %v", x, f)
		}
	}
	for _, alpha := range []float64{-3, .5, 7} {
		if got := law(alpha).Alpha(); got != max(MinAlpha, min(MaxAlpha, alpha)) {
			t.Errorf("index %v becomes %v", alpha, got)
		}
	}
}

// TestMass: Simpson's rule to x = 2²⁰, evenly within octaves, and the tail in closed form.
func TestMass(t *testing.T) {
	for alpha := 1.0; alpha <= 2; alpha += .0625 {
		l, mass := law(alpha), 0.0
		const top, parts = 20, 256
		for k := range top {
			h := math.Ldexp(1, k) / parts
			for i := range parts {
				x := math.Ldexp(1, k) - 1 + float64(i)*h
				mass += h / 3 * (l.Density(x) + 4*l.Density(x+h/2) + l.Density(x+h))
			}
		}
		mass += 2 * math.Sin(math.Pi*alpha/2) * math.Gamma(alpha) / math.Pi * math.Pow(1<<top, -alpha)
		if math.Abs(mass-1) > 1e-8 {
			t.Errorf("index %v: the mass is %.12f", alpha, mass)
		}
	}
}

// sample returns n numbers of the standard law, by Chambers, Mallows and Stuck (J. American Statistical Association 71, 1976).
func sample(u *detmath.Uniform, alpha float64, n int) []float64 {
	z := make([]float64, n)
	for i := range z {
		v, w := math.Pi*(u.Float64()-.5), -math.Log(u.Float64())
		z[i] = math.Sin(alpha*v) / math.Pow(math.Cos(v), 1/alpha) * math.Pow(math.Cos((1-alpha)*v)/w, (1-alpha)/alpha)
	}
	return z
}

func TestFit(t *testing.T) {
	const n, repeats, scale, location = 256, 600, 7., -2.
	for _, c := range []struct{ alpha, deviation float64 }{{1.1, .10}, {1.3, .12}, {1.5, .12}, {1.7, .11}, {1.9, .08}, {2, .035}} {
		u := detmath.Uniform{Seed: 3}
		var sum, square [3]float64
		for range repeats {
			z := sample(&u, c.alpha, n)
			for i := range z {
				z[i] = location + scale*z[i]
			}
			a, m, s := Fit(z)
			for i, x := range [3]float64{a, (m - location) / scale, math.Log(s / scale)} {
				sum[i] += x / repeats
				square[i] += x * x / repeats
			}
		}
		var sd [3]float64
		for i := range sd {
			sd[i] = math.Sqrt(square[i] - sum[i]*sum[i])
		}
		t.Logf("α = %v: bias %+.3f, standard error %.3f; location %+.3f, %.3f; log of the scale %+.3f, %.3f; n·variance of the location %.2f",
			c.alpha, sum[0]-c.alpha, sd[0], sum[1], sd[1], sum[2], sd[2], sd[1]*sd[1]*n)
		if math.Abs(sum[0]-c.alpha) > .025 || sd[0] > c.deviation {
			t.Errorf("α = %v: estimated with bias %.3f and standard error %.3f", c.alpha, sum[0]-c.alpha, sd[0])
		}
		if math.Abs(sum[2]) > .02 || sd[2] > .1 || math.Abs(sum[1]) > .02 {
			t.Errorf("α = %v: log of the scale has bias %.3f and standard error %.3f, location bias %.3f", c.alpha, sum[2], sd[2], sum[1])
		}
		if v := sd[1] * sd[1] * n; v > 1.15*LocationVariance || v < .8*LocationVariance {
			t.Errorf("α = %v: n times the variance of the location is %.2f, want %v", c.alpha, v, LocationVariance)
		}
	}
}

// The estimate does not depend on unit and origin, and never leaves its range.
func TestFitProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := rapid.SliceOfN(rapid.Float64Range(-1e100, 1e100), 4, 40).Draw(t, "z")
		moved := make([]float64, len(z))
		for i, x := range z {
			moved[i] = -x / 4
		}
		alpha, location, scale := Fit(z)
		if !(alpha >= MinAlpha && alpha <= MaxAlpha && math.Abs(location) <= 1e100 && scale >= 0) || math.IsInf(scale, 0) {
			t.Fatalf("Fit gives %v, %v, %v", alpha, location, scale)
		}
		a, m, s := Fit(moved)
		if math.Abs(a-alpha) > 1e-6 || math.Abs(-4*m-location) > 1e-9*(math.Abs(location)+scale) || math.Abs(4*s-scale) > 1e-6*scale {
			t.Errorf("Fit gives %v, %v, %v, and in another unit %v, %v, %v", alpha, location, scale, a, -4*m, 4*s)
		}
	})
	for _, c := range []struct {
		z     []float64
		scale float64
	}{{[]float64{3, 3, 3, 3, 3}, 0}, {[]float64{0, 0, 0, 8, 0, 0, 0, -8}, math.Sqrt(math.Pi)}} {
		if a, _, s := Fit(c.z); a != 2 || math.Abs(s-c.scale) > 1e-15 {
			t.Errorf("Fit(%v) gives α %v, scale %v; want 2, %v", c.z, a, s, c.scale)
		}
	}
	// Quartiles whose distance is subnormal beside numbers that are not.
	if a, m, s := Fit([]float64{-1e100, 0, 0, 0, 5e-324, 5e-324, 5e-324, 1e100}); math.IsNaN(a+m+s) || math.IsInf(s, 0) {
		t.Errorf("Fit gives %v, %v, %v", a, m, s)
	}
}

func BenchmarkSet(b *testing.B) {
	l := &Law{}
	for i := 0; b.Loop(); i++ {
		l.Set(1 + float64(i%100)/100)
	}
}

func BenchmarkDensity(b *testing.B) {
	l, sum := law(1.6), 0.0
	for i := 0; b.Loop(); i++ {
		sum += l.Density(float64(i%400)/10 - 20)
	}
	_ = sum
}

func BenchmarkFit(b *testing.B) {
	u := detmath.Uniform{Seed: 3}
	z, work := sample(&u, 1.6, 256), make([]float64, 256)
	for b.Loop() {
		copy(work, z)
		Fit(work)
	}
}

// TestSameBits hashes 20,000 densities and 50 fits; the digest was computed on linux/amd64 and holds everywhere.
func TestSameBits(t *testing.T) {
	const want = "ff6ca85a07dc89b6bfc753c823ca66b6731d9e97010954a29f8df9e1e93bf534"
	h := sha256.New()
	u := detmath.Uniform{Seed: 8}
	add := func(x float64) { binary.Write(h, binary.LittleEndian, x) }
	for range 50 {
		l := law(1 + u.Float64())
		z := make([]float64, 400)
		for i := range z {
			z[i] = u.Normal() / u.Float64()
			add(l.Density(z[i]))
		}
		alpha, location, scale := Fit(z)
		add(alpha)
		add(location)
		add(scale)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}
