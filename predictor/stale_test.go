package predictor

import (
	"math"
	"slices"
	"testing"
)

// clocked returns the flags of every step of observations with these gaps and ages, and whether its weights are those of the step before.
func clocked(t *testing.T, gaps, ages []float64) (flags []uint64, still []bool) {
	t.Helper()
	p := create(t, Config{KernelWindow: 1})
	var out Output
	var weights []float64
	at := int64(1e18)
	for i, y := range walk(41, len(gaps)) {
		at += int64(gaps[i])
		obs := Observation{Time: at, Value: y}
		if ages != nil && ages[i] != 0 {
			obs.Arrival = at + int64(ages[i])
		}
		if err := p.Step(obs, &out); err != nil {
			t.Fatal(err)
		}
		flags = append(flags, out.Flags)
		still = append(still, slices.Equal(weights, out.Weights))
		weights = slices.Clone(out.Weights)
	}
	return flags, still
}

const day = 86400e9

func even(n int, gap float64) []float64 { return slices.Repeat([]float64{gap}, n) }

func TestStaleByGap(t *testing.T) {
	gaps := even(100, 1e9)
	gaps[60] = 11e9 // an outage: the observation behind it is late, the next one is not
	flags, still := clocked(t, gaps, nil)
	demand(t, "outage", flags, FlagStale, 60)
	demand(t, "outage", flags, FlagDegraded, 60)
	for i := 5; i < len(still); i++ {
		if still[i] != (i == 60) {
			t.Errorf("step %d: weights unchanged is %v", i, still[i])
		}
	}
	gaps[60] = 9.9e9
	flags, _ = clocked(t, gaps, nil)
	demand(t, "just in time", flags, FlagStale)
}

func TestStaleByAgeWithHysteresis(t *testing.T) {
	ages := make([]float64, 100)
	for i, periods := range []float64{9, 9.9, 10.1, 9, 8.1, 7.9, 9, 10.1, 0} {
		ages[50+i] = periods * 1e9
	}
	ages[80] = -50e9 // of a clock that is ahead
	flags, still := clocked(t, even(100, 1e9), ages)
	demand(t, "age", flags, FlagStale, 52, 53, 54, 57)
	demand(t, "age", flags, FlagDegraded, 52, 53, 54, 57)
	if !still[52] || !still[54] || still[55] {
		t.Error("the weights move while stale, or stay afterwards")
	}
}

// What is irregular by nature is not stale.
func TestNaturalGapsAreNotStale(t *testing.T) {
	business := even(500, day)
	for i := range business {
		if i%5 == 0 {
			business[i] = 3 * day
		}
		if i%250 == 103 {
			business[i] = 6 * day // the turn of the year
		}
	}
	poisson := make([]float64, 3000)
	u := noise(42, 2*len(poisson))
	for i := range poisson { // exponential gaps, with mean 1 s
		poisson[i] = 1 + 1e9*(u[2*i]*u[2*i]+u[2*i+1]*u[2*i+1])/2
	}
	monthly := make([]float64, 240)
	for i := range monthly {
		monthly[i] = day * []float64{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}[i%12]
	}
	for _, c := range []struct {
		name string
		gaps []float64
		most int // stale steps
	}{{"business days", business, 0}, {"weeks", even(200, 7*day), 0}, {"months", monthly, 0}, {"exponential", poisson, 3}} {
		flags, _ := clocked(t, c.gaps, nil)
		n := len(steps(flags, FlagStale))
		t.Logf("%s: %d of %d", c.name, n, len(flags))
		if n > c.most {
			t.Errorf("%s: %d steps are stale, want at most %d", c.name, n, c.most)
		}
	}
	// A rate that falls to a fiftieth for good is followed.
	flags, _ := clocked(t, append(even(100, 1e9), even(100, 50e9)...), nil)
	if n := len(steps(flags, FlagStale)); n == 0 || n > 10 {
		t.Errorf("%d steps are stale when the rate falls, want 1 to 10", n)
	}
}

func TestStaleAtTheEndsOfTime(t *testing.T) {
	p := create(t, Config{KernelWindow: 1})
	var out Output
	at := int64(math.MinInt64)
	for i := range int64(20) {
		if err := p.Step(Observation{Time: at + i, Value: float64(i), Arrival: math.MaxInt64}, &out); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Step(Observation{Time: math.MaxInt64, Value: 1}, &out); err != nil || out.Flags&FlagStale == 0 {
		t.Errorf("error %v, flags %v: want stale", err, FlagNames(out.Flags))
	}
	sane(t, &out)
}
