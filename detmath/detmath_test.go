package detmath

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Correctly rounded values from mpmath 1.3 at 200 bits, sin and cos at 1400; nq is by Newton's method on erfc there.
var oracles = []struct {
	fn      string
	x, want float64
}{
	{"exp", -745.0, 0x0.0000000000001p-1022},
	{"exp", -700.25, 0x1.af5fe9a485c8ep-1011},
	{"exp", -20.5, 0x1.57a3afeed00abp-30},
	{"exp", -1.0, 0x1.78b56362cef38p-2},
	{"exp", -0.125, 0x1.c3d6a24ed8222p-1},
	{"exp", 1e-10, 0x1.000000006df38p+0},
	{"exp", 0.3, 0x1.599058c8c1a96p+0},
	{"exp", 1.0, 0x1.5bf0a8b145769p+1},
	{"exp", 10.75, 0x1.6c4c0e9175d8ep+15},
	{"exp", 300.5, 0x1.719c25b8f5b4ap+433},
	{"exp", 709.5, 0x1.81e9b4b52d0c9p+1023},
	{"expm1", -30.5, -0x1.ffffffffffe01p-1},
	{"expm1", -1.0, -0x1.43a54e4e98864p-1},
	{"expm1", -0.3, -0x1.0966f2c7907f6p-2},
	{"expm1", -1e-12, -0x1.19799812de065p-40},
	{"expm1", 1e-07, 0x1.ad7f2b1414adbp-24},
	{"expm1", 0.25, 0x1.22d78f0fa061ap-2},
	{"expm1", 0.9, 0x1.75a88cab8f177p+0},
	{"expm1", 5.5, 0x1.e76244f21bbf6p+7},
	{"expm1", 40.25, 0x1.0c71922974cbfp+58},
	{"log", 5e-324, -0x1.74385446d71c3p+9},
	{"log", 1e-300, -0x1.5963447f87fb5p+9},
	{"log", 0.1, -0x1.26bb1bbb55515p+1},
	{"log", 0.7, -0x1.6d3c324e13f50p-2},
	{"log", 0.9999, -0x1.a3738d2cf1cc2p-14},
	{"log", 1.0001, 0x1.a368d0657fcd4p-14},
	{"log", 1.5, 0x1.9f323ecbf984cp-2},
	{"log", 2.0, 0x1.62e42fefa39efp-1},
	{"log", 10.0, 0x1.26bb1bbb55516p+1},
	{"log", 1e+300, 0x1.5963447f87fb5p+9},
	{"log1p", -0.999, -0x1.ba18a998fff9fp+2},
	{"log1p", -0.5, -0x1.62e42fefa39efp-1},
	{"log1p", -0.2, -0x1.c8ff7c79a9a22p-3},
	{"log1p", -1e-09, -0x1.12e0be84bbb51p-30},
	{"log1p", 1e-15, 0x1.203af9ee75613p-50},
	{"log1p", 0.3, 0x1.0ca937be1b9dcp-2},
	{"log1p", 0.5, 0x1.9f323ecbf984cp-2},
	{"log1p", 1.0, 0x1.62e42fefa39efp-1},
	{"log1p", 7.25, 0x1.0e1b775589bd9p+1},
	{"log1p", 1e+20, 0x1.7069e2aa2aa5bp+5},
	{"erfc", -5.5, 0x1.fffffffffffdfp+0},
	{"erfc", -1.0, 0x1.d7bb3d3a08445p+0},
	{"erfc", -0.3, 0x1.5420e22077a84p+0},
	{"erfc", 0.1, 0x1.c66b42bb60999p-1},
	{"erfc", 0.5, 0x1.eb02147ce245cp-2},
	{"erfc", 1.0, 0x1.4226162fbddd5p-3},
	{"erfc", 2.0, 0x1.328f5ec350e67p-8},
	{"erfc", 3.5, 0x1.8ef2a9a18d857p-21},
	{"erfc", 10.0, 0x1.7d8a7f2a8a2d0p-149},
	{"erfc", 26.5, 0x1.3df6725a60cf5p-1019},
	{"lgamma", 1e-05, 0x1.7069d68f4ec83p+3},
	{"lgamma", 0.1, 0x1.2058e35f3deeep+1},
	{"lgamma", 0.5, 0x1.250d048e7a1bdp-1},
	{"lgamma", 0.95, 0x1.fb648aaf97604p-6},
	{"lgamma", 1.3, -0x1.bb158251658adp-4},
	{"lgamma", 1.9, -0x1.3f5bf3c4bb75ap-5},
	{"lgamma", 2.5, 0x1.2383e809a67e8p-2},
	{"lgamma", 7.75, 0x1.00d08e2072be8p+3},
	{"lgamma", 20.5, 0x1.46a6e9fba19d8p+5},
	{"lgamma", 10000000000.0, 0x1.9a43710f467c1p+37},
	{"ncdf", -37.5, 0x1.08eda98086fd1p-1021},
	{"ncdf", -8.0, 0x1.669d2c90d55cep-51},
	{"ncdf", -1.959963984540054, 0x1.999999999999dp-6},
	{"ncdf", -0.5, 0x1.3bf143b9aa712p-2},
	{"ncdf", 0.0, 0x1.0000000000000p-1},
	{"ncdf", 1.0, 0x1.aec4bd120d37dp-1},
	{"ncdf", 3.0, 0x1.ff4f10f033d25p-1},
	{"ncdf", 8.0, 0x1.ffffffffffffap-1},
	{"nq", 1e-300, -0x1.286074064c26ep+5},
	{"nq", 1e-10, -0x1.97203597a2155p+2},
	{"nq", 0.001, -0x1.8b8cbb7204471p+1},
	{"nq", 0.025, -0x1.f5c0331eeff85p+0},
	{"nq", 0.3, -0x1.0c7e39582c5fbp-1},
	{"nq", 0.5, 0x0.0p+0},
	{"nq", 0.9, 0x1.4813c36e26d33p+0},
	{"nq", 0.95, 0x1.a515209676abbp+0},
	{"nq", 0.999999, 0x1.30381a97985efp+2},
	{"sin", -3.5, 0x1.6733b7eba621fp-2},
	{"sin", 1e-09, 0x1.12e0be826d695p-30},
	{"sin", 0.3, 0x1.2e9cd95baba33p-2},
	{"sin", 0.7853981633974483, 0x1.6a09e667f3bccp-1},
	{"sin", 1.5707963267948966, 0x1.0000000000000p+0},
	{"sin", 3.0, 0x1.210386db6d55bp-3},
	{"sin", 3.141592653589793, 0x1.1a62633145c07p-53},
	{"sin", 100.25, -0x1.1bf00980dc35cp-2},
	{"sin", 5.319372648326541e+255, 0x1.0000000000000p+0},
	{"sin", 1e+300, -0x1.a2c16b010e385p-1},
	{"cos", -3.5, -0x1.df77403c11a5fp-1},
	{"cos", 1e-09, 0x1.0000000000000p+0},
	{"cos", 0.3, 0x1.e921dd42f09bap-1},
	{"cos", 0.7853981633974483, 0x1.6a09e667f3bcdp-1},
	{"cos", 1.5707963267948966, 0x1.1a62633145c07p-54},
	{"cos", 3.0, -0x1.fae04be85e5d2p-1},
	{"cos", 3.141592653589793, -0x1.0000000000000p+0},
	{"cos", 100.25, 0x1.ebec72ba6b0ecp-1},
	{"cos", 5.319372648326541e+255, -0x1.14ae72e6ba22fp-61},
	{"cos", 1e+300, -0x1.2699022adc4c1p-1},
}

// Bounds in units in the last place, as the functions' comments promise them.
var functions = map[string]struct {
	f    func(float64) float64
	ulps float64
}{
	"exp": {Exp, 1}, "expm1": {Expm1, 1}, "log": {Log, 1}, "log1p": {Log1p, 1}, "erfc": {Erfc, 4}, "lgamma": {Lgamma, 2},
	"ncdf": {NormalCDF, 6}, "npdf": {NormalPDF, 4}, "nq": {NormalQuantile, 16},
	"sin": {Sin, 1}, "cos": {Cos, 1},
}

func ulp(x float64) float64 {
	x = math.Abs(x)
	return math.Nextafter(x, math.Inf(1)) - x
}

func TestOracles(t *testing.T) {
	for _, o := range oracles {
		fn := functions[o.fn]
		got := fn.f(o.x)
		if d := math.Abs(got - o.want); d > fn.ulps*ulp(o.want) {
			t.Errorf("%s(%v) = %v, want %v: off by %.1f ulp", o.fn, o.x, got, o.want, d/ulp(o.want))
		}
	}
}

func TestSpecialValues(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"Exp(0)", Exp(0), 1}, {"Exp(+Inf)", Exp(inf), inf}, {"Exp(-Inf)", Exp(-inf), 0}, {"Exp(NaN)", Exp(nan), nan},
		{"Exp(710)", Exp(710), inf}, {"Exp(-746)", Exp(-746), 0},
		{"Expm1(0)", Expm1(0), 0}, {"Expm1(+Inf)", Expm1(inf), inf}, {"Expm1(-Inf)", Expm1(-inf), -1}, {"Expm1(NaN)", Expm1(nan), nan},
		{"Log(1)", Log(1), 0}, {"Log(0)", Log(0), -inf}, {"Log(-1)", Log(-1), nan}, {"Log(+Inf)", Log(inf), inf}, {"Log(NaN)", Log(nan), nan},
		{"Log1p(0)", Log1p(0), 0}, {"Log1p(-1)", Log1p(-1), -inf}, {"Log1p(-2)", Log1p(-2), nan}, {"Log1p(+Inf)", Log1p(inf), inf},
		{"Erfc(0)", Erfc(0), 1}, {"Erfc(+Inf)", Erfc(inf), 0}, {"Erfc(-Inf)", Erfc(-inf), 2}, {"Erfc(NaN)", Erfc(nan), nan}, {"Erfc(30)", Erfc(30), 0},
		{"Lgamma(0)", Lgamma(0), inf}, {"Lgamma(1)", Lgamma(1), 0}, {"Lgamma(2)", Lgamma(2), 0}, {"Lgamma(-1)", Lgamma(-1), nan}, {"Lgamma(+Inf)", Lgamma(inf), inf},
		{"NormalCDF(+Inf)", NormalCDF(inf), 1}, {"NormalCDF(-Inf)", NormalCDF(-inf), 0}, {"NormalCDF(NaN)", NormalCDF(nan), nan},
		{"NormalPDF(+Inf)", NormalPDF(inf), 0}, {"NormalQuantile(0)", NormalQuantile(0), -inf}, {"NormalQuantile(1)", NormalQuantile(1), inf},
		{"NormalQuantile(1.5)", NormalQuantile(1.5), nan}, {"NormalQuantile(NaN)", NormalQuantile(nan), nan}, {"Sqrt(2)", Sqrt(2), math.Sqrt2},
		{"Sin(0)", Sin(0), 0}, {"Sin(+Inf)", Sin(inf), nan}, {"Sin(NaN)", Sin(nan), nan}, {"Cos(0)", Cos(0), 1}, {"Cos(-Inf)", Cos(-inf), nan},
		{"LogSumExp()", LogSumExp(nil), -inf}, {"LogSumExp(NaN)", LogSumExp([]float64{1, nan}), nan},
		{"LogSumExp(+Inf)", LogSumExp([]float64{1, inf}), inf}, {"Sum(Inf)", Sum([]float64{inf, 1}), inf}, {"Sum()", Sum(nil), 0},
	} {
		if c.got != c.want && !(math.IsNaN(c.got) && math.IsNaN(c.want)) {
			t.Errorf("%s = %v, want %v", c.name, c.got, c.want)
		}
	}
}

// TestSameBits hashes 44,000 results. The digest was computed on linux/amd64 by this package and holds wherever it
// runs; test runs for other processors and compiler settings are started by package predictor.
func TestSameBits(t *testing.T) {
	const want = "f7c039e004fbbdca3ba3f3f2fe6abcefd8766ff3c6db6dc8aab90a579871da4f"
	h := sha256.New()
	u := Uniform{Seed: 2, Stream: 3}
	var b [8]byte
	for _, c := range []struct {
		f      func(float64) float64
		lo, hi float64
	}{{Exp, -745, 709}, {Expm1, -40, 40}, {Log, 0, 10}, {Log1p, -1, 10}, {Erfc, -7, 28}, {Lgamma, 0, 30}, {NormalCDF, -38, 9},
		{NormalPDF, -38, 38}, {NormalQuantile, 0, 1}, {Sin, -10, 10}, {Cos, -1e9, 1e9}} {
		for range 4000 {
			x := c.f(c.lo + float64((c.hi-c.lo)*u.Float64()))
			binary.LittleEndian.PutUint64(b[:], math.Float64bits(x))
			h.Write(b[:])
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("digest of the functions' results = %s, want %s", got, want)
	}
}

func TestReductions(t *testing.T) {
	if got := Sum([]float64{1, 1e100, 1, -1e100}); got != 2 { // the example of Neumaier's paper
		t.Errorf("Sum = %v, want 2", got)
	}
	if got := Dot([]float64{1, 2, 3}, []float64{4, 5, 6}); got != 32 {
		t.Errorf("Dot = %v, want 32", got)
	}
	if got, want := LogSumExp([]float64{1000, 1000}), 1000+math.Ln2; math.Abs(got-want) > 2e-13 {
		t.Errorf("LogSumExp = %v, want %v", got, want)
	}
}

// Known answers of Random123 1.09, kat_vectors, philox4x32 with 10 rounds.
func TestPhilox(t *testing.T) {
	const ones = 0xffffffff
	for _, c := range []struct {
		key       [2]uint32
		ctr, want [4]uint32
	}{
		{[2]uint32{}, [4]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[2]uint32{ones, ones}, [4]uint32{ones, ones, ones, ones}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[2]uint32{0xa4093822, 0x299f31d0}, [4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
			[4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := Philox4x32(c.key, c.ctr); got != c.want {
			t.Errorf("Philox4x32(%x, %x) = %x, want %x", c.key, c.ctr, got, c.want)
		}
	}
}

func TestUniform(t *testing.T) {
	var a, b Uniform
	b.Stream = 1
	mean, square, same := 0.0, 0.0, 0
	const n = 100000
	for range n {
		x := a.Normal()
		mean += x / n
		square += x * x / n
		if a.Float64() == b.Float64() {
			same++
		}
	}
	if math.Abs(mean) > 0.01 || math.Abs(square-1) > 0.02 || same > 0 {
		t.Errorf("mean %v, mean square %v, %d draws equal between streams; want 0, 1, 0", mean, square, same)
	}
	again := Uniform{Counter: 7}
	var skip Uniform
	for range 7 {
		skip.Uint64()
	}
	if x, y := again.Uint64(), skip.Uint64(); x != y {
		t.Errorf("draw 7 is %x by its counter, %x by skipping", x, y)
	}
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.Float64Range(-30, 30).Draw(t, "x")
		y := rapid.Float64Range(-30, 30).Draw(t, "y")
		if x < y && Exp(x) > Exp(y) {
			t.Errorf("Exp falls between %v and %v", x, y)
		}
		if got := Log(Exp(x)); math.Abs(got-x) > 1e-13*max(1, math.Abs(x)) && x > -1 {
			t.Errorf("Log(Exp(%v)) = %v", x, got)
		}
		if s := NormalCDF(x) + NormalCDF(-x); math.Abs(s-1) > 1e-15 {
			t.Errorf("Φ(%v) + Φ(%v) = %v", x, -x, s)
		}
		if e, want := Expm1(x), Exp(x)-1; math.Abs(e-want) > 1e-15*max(1, math.Abs(want)) {
			t.Errorf("Expm1(%v) = %v, Exp − 1 = %v", x, e, want)
		}
		if p := NormalCDF(x); p > 1e-300 && p < 0.9 {
			if q := NormalQuantile(p); math.Abs(q-x) > 1e-14*max(1, math.Abs(x)) {
				t.Errorf("Φ⁻¹(Φ(%v)) = %v", x, q)
			}
		}
	})
}

// ExpEach gives the bits of Exp, wherever the argument lies.
func TestExpEach(t *testing.T) {
	u := Uniform{Seed: 9}
	xs := []float64{0, math.Copysign(0, -1), 1, -1, -0x1p-28, -0x1p-29, -699.9, -700, -700.1, -744, -746, 709, 710, math.Inf(1), math.Inf(-1), math.NaN(), 0x1p-1074, -0x1p-1074}
	for range 10_000 {
		xs = append(xs, -40*u.Float64(), -700*u.Float64(), 20*u.Float64())
	}
	got := slices.Clone(xs)
	ExpEach(got)
	for i, x := range xs {
		if math.Float64bits(got[i]) != math.Float64bits(Exp(x)) {
			t.Errorf("exp(%v): %v one by one, %v", x, Exp(x), got[i])
		}
	}
}

// TestVecMul: the bits of adding one term after the other, whatever the length modulo four.
func TestVecMul(t *testing.T) {
	for n := range 11 {
		x, a, y := make([]float64, n), make([]float64, n*n), make([]float64, n)
		for i := range x {
			x[i], y[i] = math.Sqrt(float64(i+2)), math.NaN() // what y held does not count
		}
		for i := range a {
			a[i] = math.Sin(float64(i)) * math.Exp(float64(i%7))
		}
		VecMul(y, x, a)
		for j := range y {
			want := 0.0
			for i := range x {
				want += float64(x[i] * a[i*n+j])
			}
			if math.Float64bits(y[j]) != math.Float64bits(want) {
				t.Errorf("n %d, element %d: %v, want %v", n, j, y[j], want)
			}
		}
	}
}
