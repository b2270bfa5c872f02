package predictor

import (
	"math"
	"slices"
	"testing"

	"github.com/usp-project/usp/detmath"
)

// student returns a draw of Student's t with that many degrees of freedom, in units of its standard deviation.
func student(u *detmath.Uniform, freedom int) float64 {
	chi2 := 0.0
	for range freedom {
		x := u.Normal()
		chi2 += x * x
	}
	return u.Normal() / math.Sqrt(chi2/float64(freedom-2))
}

// meanRun returns the mean number of scores up to an alarm, over so many charts that start from zero.
func meanRun(charts int, alarm func(restart bool) bool) float64 {
	n := 0
	for range charts {
		n++
		for restart := true; !alarm(restart); restart = false {
			n++
		}
	}
	return float64(n) / float64(charts)
}

// cusumRun lets one chart alarm so many times, and begin at zero after each; what it has learned of the scores it keeps.
func cusumRun(seed uint64, charts int, draw func(u *detmath.Uniform) float64) float64 {
	cfg := Config{}.WithDefaults()
	u := detmath.Uniform{Seed: seed}
	g := newCusum(&cfg)
	g.threshold, g.wait = cusumThreshold(cfg.CusumSlack, cfg.CusumClip, cfg.TargetRunLength), 0
	for range 5000 {
		g.observe(draw(&u))
	}
	g.restart()
	return meanRun(charts, func(bool) bool { return g.observe(draw(&u)) != 0 })
}

// shiftDelay returns the mean number of scores from a shift to the alarm, of charts that are at zero.
func shiftDelay(seed uint64, charts int, shift float64) float64 {
	cfg := Config{}.WithDefaults()
	u := detmath.Uniform{Seed: seed}
	g := newCusum(&cfg)
	g.threshold, g.wait = cusumThreshold(cfg.CusumSlack, cfg.CusumClip, cfg.TargetRunLength), 0
	for range 5000 {
		g.observe(u.Normal())
	}
	g.restart()
	learned := g
	return meanRun(charts, func(restart bool) bool {
		if restart {
			g = learned
		}
		return g.observe(u.Normal()+shift) != 0
	})
}

// The bars: within a tenth of the design on Gaussian scores, 0.9 to 1.4 times it on Student's with 3, 5 and 10 degrees of
// freedom, at most 12 steps to a shift by a standard deviation where the design is 465 or more.
func TestRunLengthOfTheCusum(t *testing.T) {
	statistics(t)
	const target = 500
	charts := 500 // standard error 4 %
	if torture() {
		charts = 2000 // 2 %
	}
	check := func(what string, got, lo, hi float64) {
		t.Helper()
		t.Logf("%s: %.4g", what, got)
		if got < lo || got > hi {
			t.Errorf("%s: %.4g, want %.4g to %.4g", what, got, lo, hi)
		}
	}
	check("normal scores", cusumRun(1, charts, (*detmath.Uniform).Normal), .9*target, 1.1*target)
	for _, freedom := range []int{3, 5, 10} {
		got := cusumRun(2, charts, func(u *detmath.Uniform) float64 { return student(u, freedom) })
		t.Logf("Student's with %d: %.3f of the design", freedom, got/target)
		check("Student's scores", got, .9*target, 1.4*target)
	}
	check("delay of a shift by 1", shiftDelay(3, 10*charts, 1), 0, 12)
	check("delay of a shift by -1", shiftDelay(3, 10*charts, -1), 0, 12)
}

func TestBoundedSquare(t *testing.T) {
	const c = varianceBound
	outside, density := 2*detmath.NormalCDF(-c), detmath.NormalPDF(c)
	mean := 1 - outside - 2*c*density + c*c*outside
	fourth := 3*(1-outside) - 2*density*(c*c*c+3*c) + c*c*c*c*outside
	near(t, "mean", squareMean, mean, 1e-15)
	near(t, "standard deviation", squareDeviation, math.Sqrt(fourth-mean*mean), 1e-15)
}

// After an alarm there is none for the grace time, however large the scores, and the sum begins at zero behind it.
func TestGraceOfTheVarianceChart(t *testing.T) {
	v := varianceChart{threshold: 5, wait: 7}
	var at []int
	for i := range 20 {
		if v.add(3) != 0 {
			at = append(at, i)
		}
	}
	if !slices.Equal(at, []int{0, 8, 16}) { // a score of 3 is an alarm by itself
		t.Errorf("alarms at %v, want one every 8 scores", at)
	}
}

func TestRunLengthOfTheVarianceChart(t *testing.T) {
	statistics(t)
	charts := 500 // standard error 4 %
	if torture() {
		charts = 2000 // 2 %
	}
	for _, target := range []float64{200, 1000} {
		threshold := thresholdFor(target, func(h float64) float64 { return varianceRunLength(h, 1) })
		run := func(seed uint64, charts int, draw func(u *detmath.Uniform) float64) float64 {
			u := detmath.Uniform{Seed: seed}
			var v varianceChart
			return meanRun(charts, func(restart bool) bool {
				if restart {
					v = varianceChart{threshold: threshold}
				}
				return v.add(draw(&u)) != 0
			})
		}
		got := run(4, charts, (*detmath.Uniform).Normal)
		t.Logf("target %v: threshold %.4f, measured %.4g", target, threshold, got)
		if math.Abs(got/target-1) > .1 {
			t.Errorf("target %v: %.4g steps between false alarms", target, got)
		}
		for _, freedom := range []int{3, 5, 10} {
			t.Logf("  Student's with %d: %.4g", freedom, run(5, charts/2, func(u *detmath.Uniform) float64 { return student(u, freedom) }))
		}
		for _, deviation := range []float64{1.5, 2, 3} {
			want := varianceRunLength(threshold, deviation)
			got := run(6, 10*charts, func(u *detmath.Uniform) float64 { return deviation * u.Normal() })
			t.Logf("  deviation %v: delay %.4g, computed %.4g", deviation, got, want)
			if math.Abs(got/want-1) > .05 {
				t.Errorf("target %v, deviation %v: delay %.4g, computed %.4g", target, deviation, got, want)
			}
		}
	}
}
