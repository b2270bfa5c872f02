package predictor

import (
	"math"
	"testing"
)

// The root mean squared errors of the naive forecast were computed from the same files with other programs. The ceilings are
// relative to them, whole series, the first step included. mean is the bar on the geometric mean over the five series
// with the season declared. The Nile's ceiling is above what a smaller ensemble without regressions on the path reached
// (.873): a hundred values do not pay for more experts.
func TestBeatsNaive(t *testing.T) {
	statistics(t)
	const mean = .770
	logs := 0.0
	for _, c := range []struct {
		name    string
		season  int // as declared
		naive   float64
		ceiling float64
		counts  bool
	}{
		{"sunspots", 11, 23.9754088, .65, true}, {"nile", 0, 167.3246406, .885, true}, {"co2", 52, .4886074778, .775, true},
		{"unemployment", 4, 0.3438281864, .82, true}, {"gdp", 4, 1.171332462, .77, true},
		// The same without telling it the season.
		{"sunspots", 0, 23.9754088, .65, false}, {"co2", 0, .4886074778, .79, false},
	} {
		y, _ := example(t, c.name)
		own, naive, inside := 0.0, 0.0, 0
		feed(t, create(t, Config{Season: c.season}), y, func(i int, v float64, out *Output) {
			if i == 0 {
				return
			}
			own += (v - out.Prior) * (v - out.Prior)
			naive += (v - y[i-1]) * (v - y[i-1])
			if v >= out.PriorLower && v <= out.PriorUpper {
				inside++
			}
		})
		n := float64(len(y) - 1)
		own, naive = math.Sqrt(own/n), math.Sqrt(naive/n)
		if c.counts {
			logs += math.Log(own/naive) / 5
		}
		if math.Abs(naive/c.naive-1) > 1e-8 {
			t.Errorf("%s: naive RMSE %.10g, want %.10g", c.name, naive, c.naive)
		}
		if own > c.ceiling*naive {
			t.Errorf("%s, season %d: RMSE is %.4f of naive, want at most %v", c.name, c.season, own/naive, c.ceiling)
		}
		coverage := float64(inside) / n
		if tolerance := .01 + 1/math.Sqrt(10*n); math.Abs(coverage-.9) > tolerance {
			t.Errorf("%s: %.1f %% within the 90 %% interval", c.name, 100*coverage)
		}
		t.Logf("%-8s season %2d: RMSE %.4f of naive, coverage %.3f", c.name, c.season, own/naive, coverage)
	}
	if g := math.Exp(logs); g > mean {
		t.Errorf("geometric mean of the five: %.4f of naive, want at most %v", g, mean)
	} else {
		t.Logf("geometric mean of the five: %.4f of naive", g)
	}
}

// On white noise nothing beats the mean by much; on a random walk nothing beats naive.
func TestHonestWhereThereIsNothingToLearn(t *testing.T) {
	statistics(t)
	x := noise(3, 3000)
	walk := make([]float64, len(x))
	for i := 1; i < len(x); i++ {
		walk[i] = walk[i-1] + x[i]
	}
	for _, c := range []struct {
		name   string
		y      []float64
		lo, hi float64 // of the mean squared error, whose best possible value is 1
	}{{"white noise", x, .95, 1.06}, {"random walk", walk, .95, 1.05}} {
		sum := 0.0
		feed(t, create(t, Config{}), c.y, func(i int, v float64, out *Output) {
			if i >= 500 {
				sum += (v - out.Prior) * (v - out.Prior) / 2500
			}
		})
		if sum < c.lo || sum > c.hi {
			t.Errorf("%s: mean squared error %.3f, want %v to %v", c.name, sum, c.lo, c.hi)
		}
	}
}

func TestSeasonIsFound(t *testing.T) {
	statistics(t)
	e := noise(5, 1100)
	seasonal := func(m int, amplitude float64) []float64 {
		y := make([]float64, len(e))
		for i := range y {
			y[i] = e[i] + amplitude*math.Sin(2*math.Pi*float64(i)/float64(m)) + amplitude*float64(i%m)/float64(m)
		}
		return y
	}
	for _, c := range []struct {
		name string
		y    []float64
		want int
	}{
		{"7", seasonal(7, 4), 7}, {"12", seasonal(12, 4), 12}, {"24", seasonal(24, 6), 24}, {"none", e, 0}, {"constant", make([]float64, 600), 0},
	} {
		p := create(t, Config{KernelWindow: 1}) // the experts have no part in the search
		feed(t, p, c.y, nil)
		if p.history.season != c.want {
			t.Errorf("season %s: found %d", c.name, p.history.season)
		}
		p = create(t, Config{Season: 1, KernelWindow: 1})
		feed(t, p, c.y, nil)
		if p.history.season != 0 {
			t.Errorf("season %s: found %d although none was declared", c.name, p.history.season)
		}
	}
}

func TestStepDoesNotAllocate(t *testing.T) {
	y, season := example(t, "co2")
	p := create(t, Config{Season: season})
	feed(t, p, y[:600], nil) // every window of an expert is full
	var out Output
	i := 0
	n := testing.AllocsPerRun(500, func() {
		v := y[i%len(y)]
		if i%100 == 50 {
			v += 1e6
		}
		if err := p.Step(Observation{Time: int64(1e15) + int64(i), Value: v}, &out); err != nil {
			t.Fatal(err)
		}
		i++
	})
	if n != 0 {
		t.Errorf("Step allocates %v times", n)
	}
	bytes := 0
	emit := func(_ string, data []byte) { bytes += len(data) }
	if n := testing.AllocsPerRun(10, func() { p.State(emit) }); n != 0 {
		t.Errorf("State allocates %v times", n)
	}
}

func BenchmarkStep(b *testing.B) { benchmarkStep(b, 0) }

func BenchmarkStepWithoutKernel(b *testing.B) { benchmarkStep(b, 1) }

func benchmarkStep(b *testing.B, window int) {
	y, season := example(b, "co2")
	p := create(b, Config{Season: season, KernelWindow: window})
	var out Output
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := p.Step(Observation{Time: int64(i), Value: y[i%len(y)]}, &out); err != nil {
			b.Fatal(err)
		}
	}
}
