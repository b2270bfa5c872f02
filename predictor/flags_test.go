package predictor

import (
	"math"
	"slices"
	"strings"
	"testing"
)

// flagsOf returns the flags of every step.
func flagsOf(t *testing.T, p *Predictor, values []float64) []uint64 {
	t.Helper()
	var flags []uint64
	feed(t, p, values, func(_ int, _ float64, out *Output) { flags = append(flags, out.Flags) })
	return flags
}

// steps returns the indices at which flag is set.
func steps(flags []uint64, flag uint64) []int {
	var at []int
	for i, f := range flags {
		if f&flag != 0 {
			at = append(at, i)
		}
	}
	return at
}

// between returns from, from+1, …, to.
func between(from, to int) []int {
	var at []int
	for i := from; i <= to; i++ {
		at = append(at, i)
	}
	return at
}

func demand(t *testing.T, name string, flags []uint64, flag uint64, want ...int) {
	t.Helper()
	if got := steps(flags, flag); !slices.Equal(got, want) {
		t.Errorf("%s: %v set at %v, want %v", name, FlagNames(flag), got, want)
	}
}

func TestFlagNames(t *testing.T) {
	if got := strings.Join(FlagNames(flagEnd-1), " "); got != strings.Join(flagNames[:], " ") || len(flagNames) != len(FlagNames(flagEnd-1)) {
		t.Errorf("names of all flags: %s", got)
	}
	if got := FlagNames(FlagFrozen | FlagDegraded | 1<<63); !slices.Equal(got, []string{"frozen", "degraded"}) {
		t.Errorf("FlagNames = %v", got)
	}
	if got := FlagNames(0); got != nil {
		t.Errorf("FlagNames(0) = %v", got)
	}
}

func TestWarmUp(t *testing.T) {
	flags := flagsOf(t, create(t, Config{}), walk(1, 60))
	demand(t, "default", flags, FlagWarmUp, between(0, 9)...) // the tenth score comes with the eleventh value
	flags = flagsOf(t, create(t, Config{WarmUp: 25}), walk(1, 60))
	demand(t, "25", flags, FlagWarmUp, between(0, 24)...)
}

// accelerating is noise that from the given step on runs away from any extrapolation, up or down.
func accelerating(from int, sign float64) []float64 {
	y := noise(2, from+60)
	for i := range y {
		if d := float64(i - from); d > 0 {
			d = min(d, 25)
			y[i] += float64(sign * 0.5 * d * d * math.Sqrt(d))
		}
	}
	return y
}

func TestAlarmAndGrace(t *testing.T) {
	for _, c := range []struct {
		sign           float64
		raised, silent uint64
	}{{1, FlagAlarmUp, FlagAlarmDown}, {-1, FlagAlarmDown, FlagAlarmUp}} {
		y := accelerating(100, c.sign)
		flags := flagsOf(t, create(t, Config{TargetRunLength: 1e5, OutlierSigma: 1e6}), y)
		// The slow chart may have spoken before; its alarms begin no grace.
		first := slices.IndexFunc(flags, func(f uint64) bool { return f&(c.raised|FlagGrace) == c.raised|FlagGrace })
		if first < 101 || first > 112 {
			t.Fatalf("sign %v: alarm at %d, want one soon after 100", c.sign, first)
		}
		if flags[first+1]&c.raised != 0 {
			t.Errorf("sign %v: the alarm of step %d is still set one step later", c.sign, first)
		}
		if got := steps(flags[:first+21], FlagGrace); !slices.Equal(got, between(first, first+19)) {
			t.Errorf("sign %v: alarm at %d, grace at %v, want the 20 steps from it", c.sign, first, got)
		}
		if got := steps(flags[first:first+20], c.raised|c.silent); !slices.Equal(got, []int{0}) {
			t.Errorf("sign %v: alarms at %d + %v within the grace time", c.sign, first, got)
		}
	}
}

func TestAlarmSoftensTheWeights(t *testing.T) {
	y := accelerating(100, 1)
	run := func(soft float64) (before, after []float64) {
		p := create(t, Config{TargetRunLength: 1e5, OutlierSigma: 1e6, Orchestrator: Orchestrator{SoftReset: soft}})
		feed(t, p, y, func(_ int, _ float64, out *Output) {
			if after == nil && out.Flags&FlagAlarmUp != 0 && out.CusumPos > out.Threshold { // not by the slow chart
				after = slices.Clone(out.Weights)
			} else if after == nil {
				before = slices.Clone(out.Weights)
			}
		})
		return before, after
	}
	if _, after := run(1); slices.Max(after)-slices.Min(after) > 1e-15 {
		t.Errorf("a full reset leaves weights %v, want uniform", after)
	}
	if _, after := run(1e-9); slices.Max(after)-slices.Min(after) < .01 {
		t.Errorf("hardly any reset leaves weights %v uniform", after)
	}
}

func TestSpikeIsQuarantinedAndDropped(t *testing.T) {
	y := walk(3, 120)
	clean := slices.Clone(y)
	y[100] += 1000
	flags := flagsOf(t, create(t, Config{}), y)
	demand(t, "spike", flags, FlagOutlier, 100)
	demand(t, "spike", flags, FlagDropped, 101)
	demand(t, "spike", flags, FlagShift)
	demand(t, "spike", flags, FlagDegraded, 100)
	// The forecasts afterwards are nearly those without the spike.
	p, q := create(t, Config{}), create(t, Config{})
	feed(t, p, y, nil)
	feed(t, q, clean, nil)
	if d := math.Abs(p.forecast - q.forecast); d > 0.2 {
		t.Errorf("the spike moves the forecast 19 steps later by %v", d)
	}
}

func TestWeightsStayWhileDegraded(t *testing.T) {
	y := walk(3, 110)
	y[100] += 1000
	var before []float64
	feed(t, create(t, Config{}), y, func(i int, _ float64, out *Output) {
		if out.Flags&FlagDegraded != 0 {
			if !slices.Equal(before, out.Weights) || out.OTCost != 0 || out.Iterations != 0 || out.FreeEnergy != 0 || out.Residual != 0 {
				t.Errorf("step %d is degraded, but weights moved or a transport is reported: %+v", i, out)
			}
		} else if i > 1 && (out.Iterations != 1 || out.OTCost <= 0) {
			t.Errorf("step %d: %d iterations, cost %v; want one step executed", i, out.Iterations, out.OTCost)
		}
		before = slices.Clone(out.Weights)
	})
}

// A jump of 39 scales, like the euro in Swiss francs on 2015-01-15, is accepted by the third value on the new level.
func TestJumpIsConfirmed(t *testing.T) {
	y := noise(4, 150)
	for i := 100; i < len(y); i++ {
		y[i] += 45
	}
	p := create(t, Config{})
	flags := flagsOf(t, p, y)
	demand(t, "jump", flags, FlagOutlier, 100, 101)
	demand(t, "jump", flags, FlagShift, 102)
	demand(t, "jump", flags, FlagDropped)
	demand(t, "jump", flags, FlagGrace, between(102, 120)...)
	if math.Abs(p.forecast-45) > 2 {
		t.Errorf("forecast %v, want it on the new level 45", p.forecast)
	}
}

// Errors three times as large as before, to both sides, are an alarm of the variance within a few steps; while they last it is not
// repeated once the chart has learned them, and before and after there is none.
func TestVarianceAlarm(t *testing.T) {
	y := noise(31, 500)
	for i := 300; i < len(y); i++ {
		y[i] *= 3
	}
	flags := flagsOf(t, create(t, Config{VarianceRunLength: 1e5, TargetRunLength: 1e5}), y)
	at := steps(flags, FlagAlarmVariance)
	t.Logf("alarms at %v", at)
	if len(at) == 0 || len(at) > 2 || at[0] < 301 || at[0] > 310 {
		t.Errorf("alarms of the variance at %v, want one in 301 to 310 and at most one more", at)
	}
	demand(t, "variance", flags[:400], FlagOutlier|FlagAlarmUp|FlagAlarmDown)
}

// When the whole signal grows a thousandfold no value agrees with another, and still it is followed.
func TestScaleChangeIsFollowed(t *testing.T) {
	y := noise(4, 400)
	for i := 100; i < len(y); i++ {
		y[i] *= 1000
	}
	flags := flagsOf(t, create(t, Config{}), y)
	if n := len(steps(flags[110:], FlagDegraded)); n > 0 {
		t.Errorf("%d steps after the change are still quarantined", n)
	}
}

func TestFrozen(t *testing.T) {
	y := walk(5, 120)
	for i := 60; i < 80; i++ {
		y[i] = y[59]
	}
	p := create(t, Config{})
	flags := flagsOf(t, p, y)
	// 59 to 63 are five equal values; 80 is the first change, 81 the second.
	demand(t, "frozen", flags, FlagFrozen, between(63, 80)...)
	demand(t, "frozen", flags, FlagDegraded, between(63, 80)...)
	demand(t, "frozen", flags, FlagOutlier)
}

// A count that is zero nine times in ten repeats itself by nature.
func TestRepeatsByNatureAreNotFrozen(t *testing.T) {
	statistics(t)
	u := noise(6, 2000)
	y := make([]float64, len(u))
	for i := range y {
		if u[i] > 1.28 {
			y[i] = math.Round(3 * u[i])
		}
	}
	flags := flagsOf(t, create(t, Config{}), y)
	if n := len(steps(flags[200:], FlagFrozen)); n > 60 {
		t.Errorf("%d of 1800 steps frozen", n)
	}
}

func TestSaturated(t *testing.T) {
	y := walk(7, 40)
	y[5], y[30] = -1e300, 1e101
	p := create(t, Config{})
	flags := flagsOf(t, p, y)
	demand(t, "saturated", flags, FlagSaturated, 5, 30)
}

// A constant signal that comes to life is followed at once, not an outlier for ever.
func TestConstantThenAlive(t *testing.T) {
	y := make([]float64, 300)
	for i, e := range noise(8, 300) {
		if y[i] = 10; i >= 100 {
			y[i] += e
		}
	}
	p := create(t, Config{})
	flags := flagsOf(t, p, y)
	if n := len(steps(flags[115:], FlagDegraded|FlagFrozen|FlagWarmUp)); n > 0 {
		t.Errorf("%d steps after it came to life are degraded, frozen or in warm-up", n)
	}
	if s := p.monitor.scale(0); s < .7 || s > 1.5 {
		t.Errorf("error scale %v, want about 1", s)
	}
	if p.history.spread < .7 || slices.Min(p.ensemble.errors) < .5 {
		t.Errorf("spread %v and expert errors %v still remember the rest", p.history.spread, p.ensemble.errors)
	}
}
