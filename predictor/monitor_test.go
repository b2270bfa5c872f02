package predictor

import (
	"math"
	"slices"
	"testing"

	"github.com/usp-project/usp/detmath"
)

func near(t *testing.T, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol) {
		t.Errorf("%s = %.17g, want %.17g ± %g", what, got, want, tol)
	}
}

// Run lengths of the two-sided chart on unclipped scores from zero, by Nyström's method on the integral equation; the
// one-sided ones are in print (e.g. Montgomery, Statistical Quality Control, 10.1). Clipping at 8 changes nothing.
func TestRunLengthOracles(t *testing.T) {
	for _, c := range []struct {
		k, h, inControl float64
		shifted         [5]float64 // by .5, 1, 1.5, 2 and 3 standard deviations
	}{
		{.5, 4, 167.6838, [5]float64{26.63, 8.383, 4.747, 3.343, 2.194}},
		{.5, 4.77, 368.5614, [5]float64{35.21, 9.917, 5.517, 3.855, 2.484}},
		{.5, 5, 465.4435, [5]float64{38.00, 10.376, 5.747, 4.009, 2.573}},
		{.25, 8, 368.3939, [5]float64{28.76, 11.393, 7.114, 5.214, 3.476}},
	} {
		near(t, "run length in control", cusumRunLength(c.k, 8, c.h, 0), c.inControl, .002*c.inControl)
		for i, shift := range []float64{.5, 1, 1.5, 2, 3} {
			near(t, "run length when shifted", cusumRunLength(c.k, 8, c.h, shift), c.shifted[i], .003*c.shifted[i])
		}
	}
	near(t, "one-sided run length", sideRunLength(.5, 8, 4, 0), 335.3676, .5)
	near(t, "one-sided run length", sideRunLength(.5, 8, 5, 0), 930.8870, 1.5)
	// Clipped at 1.5: simulation of the same prototype.
	near(t, "run length of clipped scores", cusumRunLength(.5, 1.5, 5, 0), 618, 6)
}

func TestThresholdMeetsItsTarget(t *testing.T) {
	for _, c := range []struct{ slack, clip, target float64 }{{.5, 1.5, 500}, {.5, 1.5, 30}, {.5, 1.5, 1e6}, {.25, 3, 1000}, {.1, 10, 1e4}, {.9, 2, 100}} {
		h := cusumThreshold(c.slack, c.clip, c.target)
		if got := cusumRunLength(c.slack, c.clip, h, 0); math.Abs(got/c.target-1) > 1e-3 {
			t.Errorf("%+v: threshold %v has run length %v", c, h, got)
		}
	}
	// Clipped this tightly, two bounds in a row are an alarm or are not: there is no run length of 20.
	h := cusumThreshold(.9, 1, 20)
	if below, above := cusumRunLength(.9, 1, h-1e-6, 0), cusumRunLength(.9, 1, h, 0); below >= 20 || above < 20 {
		t.Errorf("threshold %v: run length %v below it, %v at it", h, below, above)
	}
}

// The Nile with its first 20 years as reference: k = .5, h = 5, no clipping; own computation with numpy.
func TestCusumFindsTheNileBreak(t *testing.T) {
	y, _ := example(t, "nile")
	mean, ss := detmath.Sum(y[:20])/20, 0.0
	for _, v := range y[:20] {
		ss += (v - mean) * (v - mean)
	}
	sd := math.Sqrt(ss / 19)
	g := cusum{threshold: 5, clip: 100, normal2: 1, own2: 1, slack: .5, wait: 1}
	for i, v := range y {
		switch g.observe((v - mean) / sd) {
		case FlagAlarmDown:
			if i != 1902-1871 {
				t.Errorf("alarm in %d, want 1902", 1871+i)
			}
			near(t, "lower sum", g.shownDown, 5.656285643007721, 1e-12)
			return
		case FlagAlarmUp:
			t.Fatalf("upward alarm in %d", 1871+i)
		}
	}
	t.Error("no alarm")
}

func TestMonitorOnKnownNoise(t *testing.T) {
	cfg := Config{HolderWindow: 2048, KurtosisWindow: 4096}.WithDefaults()
	run := func(z []float64) *monitor {
		m := newMonitor(&cfg)
		for _, x := range z {
			m.observe(2*x, x, 0)
		}
		return &m
	}
	x := noise(11, 6000)
	m := run(x)
	near(t, "scale", m.scale(0), 2, .5)
	near(t, "kurtosis of normal scores", m.kurtosis, 3, .3)
	near(t, "exponent of white scores", m.holder, .5, .05)
	near(t, "relative volatility", m.relative(), 1, .5)

	persistent, reverting, heavy := make([]float64, len(x)), make([]float64, len(x)), make([]float64, len(x))
	for i := 1; i < len(x); i++ {
		persistent[i] = .8*persistent[i-1] + .6*x[i]
		reverting[i] = (x[i] - x[i-1]) / math.Sqrt2
		heavy[i] = x[i] * math.Exp(x[(i*7)%len(x)]*.7) / 2
	}
	if h := run(persistent).holder; h < .7 {
		t.Errorf("exponent of persistent scores %v, want above .7", h)
	}
	if h := run(reverting).holder; h > .1 {
		t.Errorf("exponent of reverting scores %v, want below .1", h)
	}
	if k := run(heavy).kurtosis; k < 4 {
		t.Errorf("kurtosis of heavy-tailed scores %v, want above 4", k)
	}
	loud := slices.Clone(x)
	for i := range 15 {
		loud[len(x)-1-i] *= 4
	}
	if r := run(loud).relative(); r < 1.5 {
		t.Errorf("relative volatility %v after a loud spell, want above 1.5", r)
	}
}

// The sliding sums must equal those of the window taken afresh, exactly.
func TestSlidingSumsDoNotDrift(t *testing.T) {
	cfg := Config{HolderWindow: 64}.WithDefaults()
	m := newMonitor(&cfg)
	var z []int64
	for i, x := range noise(12, 1000) {
		m.observe(x, 3*x, 0)
		if i < 2 {
			continue // not scored yet
		}
		z = append(z, int64(math.Floor(clip(3*x, scoreBound)*fixed+.5)))
		for l := range holderLags {
			want := int64(0)
			for end := max(l, len(z)-64); end < len(z); end++ {
				s := int64(0)
				for k := end - l; k <= end; k++ {
					s += z[k]
				}
				want += s * s
			}
			if m.sums[l] != want {
				t.Fatalf("score %d, lag %d: sum %d, want %d", len(z), l+1, m.sums[l], want)
			}
		}
	}
}

// |mean miss − α*| ≤ (max(α₁,1−α₁)+γ)/(γT) holds for any series; here one whose errors grow and shrink.
func TestConformalCoverageOfAnySeries(t *testing.T) {
	cfg := Config{ConformalRate: .02}.WithDefaults()
	c := newConformal(&cfg)
	const n = 5000
	misses := 0
	for i, x := range noise(13, n) {
		score := math.Abs(x) * math.Exp(3*math.Sin(float64(i)/300))
		miss := score > c.width()
		if miss {
			misses++
		}
		c.missed(miss)
		c.observe(score)
	}
	near(t, "misses", float64(misses)/n, .1, (.9+.02)/(.02*n)+.005)
}

func TestConformalQuantile(t *testing.T) {
	cfg := Config{}.WithDefaults()
	c := newConformal(&cfg)
	x := noise(14, 700)
	for _, z := range x {
		c.observe(math.Abs(z))
	}
	recent := make([]float64, 0, conformalWindow)
	for _, z := range x[len(x)-conformalWindow:] {
		recent = append(recent, math.Abs(z))
	}
	slices.Sort(recent)
	if !slices.Equal(recent, c.sorted) {
		t.Error("the sorted window differs from sorting the window")
	}
	near(t, "width", c.width(), 1.645, .25)
}

// CRPS of normal laws and of a mixture: mpmath, 30 digits. Pinball: by hand.
func TestScoringOracles(t *testing.T) {
	for _, c := range []struct {
		w, m, v []float64
		y, want float64
	}{
		{[]float64{1}, []float64{0}, []float64{1}, 0, .23369497725510907},
		{[]float64{1}, []float64{0}, []float64{1}, 1, .60244135762761631},
		{[]float64{1}, []float64{0}, []float64{1}, -2.5, 1.9398186908105001},
		{[]float64{1}, []float64{1}, []float64{4}, 4, 1.9888480079549059},
		{[]float64{.3, .7}, []float64{-1, 2}, []float64{1, .25}, .5, .69832236361173094},
		{[]float64{1}, []float64{3}, []float64{0}, 5, 2},
	} {
		near(t, "CRPS", CRPS(c.w, c.m, c.v, c.y), c.want, 2e-15)
	}
	near(t, "pinball", Pinball(.9, 1, .4), .54, 1e-15)
	near(t, "pinball", Pinball(.9, .4, 1), .06, 1e-15)
}

// law returns the law of normals as the mixture of experts without a shape of their own.
func lawOf(w, m, v []float64) *lawGrid {
	experts := make([]expert, len(w))
	for i := range experts {
		experts[i] = &naive{}
	}
	var g lawGrid
	if !g.lay(experts, w, m, v) {
		return nil
	}
	return &g
}

func TestLawEntropy(t *testing.T) {
	const normal = 1.4189385332046727 // ½·ln 2πe
	near(t, "standard normal", lawOf([]float64{1}, []float64{5}, []float64{1}).entropy(1), normal, 1e-7)
	near(t, "in units of its scale", lawOf([]float64{1}, []float64{5}, []float64{9}).entropy(3), normal, 1e-7)
	near(t, "twice as wide", lawOf([]float64{1}, []float64{5}, []float64{4}).entropy(1), normal+math.Ln2, 1e-7)
	near(t, "two that agree", lawOf([]float64{.3, .7}, []float64{5, 5}, []float64{1, 1}).entropy(1), normal, 1e-7)
	far := lawOf([]float64{.5, .5}, []float64{-4, 4}, []float64{1, 1}).entropy(1)
	near(t, "two far apart", far, normal+math.Ln2, 1e-3)
	if lawOf([]float64{1}, []float64{5}, []float64{0}) != nil {
		t.Error("a law without width is laid")
	}

	// Against a rule fifty times finer.
	w, m, v := []float64{.2, .5, .3}, []float64{0, .7, -1.1}, []float64{1, .5, 2}
	want, step := 0.0, .002
	for u := -15.0; u < 15; u += step {
		f := 0.0
		for i := range w {
			z := (u - m[i]) / math.Sqrt(v[i])
			f += w[i] * detmath.NormalPDF(z) / math.Sqrt(v[i])
		}
		if f > 0 {
			want -= f * math.Log(f) * step
		}
	}
	near(t, "mixture", lawOf(w, m, v).entropy(1), want, 1e-5)
}
