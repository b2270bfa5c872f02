package predictor

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/aggregate"
)

// told is an expert that forecasts what it is told.
type told struct {
	id       string
	forecast []float64
	next     int
}

func (e *told) name() string { return e.id }
func (*told) family() Family { return FamilyLinear }
func (*told) visit(*codec)   {}
func (e *told) step(*history) float64 {
	e.next++
	return e.forecast[min(e.next, len(e.forecast)-1)]
}

// contest is a series with the forecasts of n experts for it. The truth is a slow wave. The series is off it by noise of SD 0.3, the
// one expert that is good at the time by noise of SD 0.4, and each of the others by errors of SD 1, of whose variance a given share
// is common to them: they miss the same thing. Every period steps another one, drawn at random, becomes the good one; never if
// period is 0. With nothing in common, the mean of the many is nearly as good as the good one, and there is little to follow.
type contest struct {
	y       []float64
	experts [][]float64
	common  float64
}

const contestNoise, contestGood, contestSteps = .3, .4, 2000

func newContest(n, period int, common float64, seed uint64) contest {
	u := detmath.Uniform{Seed: seed}
	c := contest{experts: make([][]float64, n), common: common}
	good := int(u.Float64() * float64(n))
	for t := range contestSteps {
		if period > 0 && t > 0 && t%period == 0 {
			good = (good + 1 + int(u.Float64()*float64(n-1))) % n
		}
		truth := 10 * math.Sin(2*math.Pi*float64(t)/300)
		c.y = append(c.y, truth+contestNoise*u.Normal())
		missed := math.Sqrt(common) * u.Normal()
		for i := range n {
			e := contestGood * u.Normal()
			if i != good {
				e = missed + math.Sqrt(1-common)*u.Normal()
			}
			c.experts[i] = append(c.experts[i], truth+e)
		}
	}
	return c
}

// bound is the mean squared error of the best fixed mixture, were it known which expert is good.
func (c contest) bound() float64 {
	good, others := contestGood*contestGood, c.common+(1-c.common)/float64(len(c.experts)-1)
	return contestNoise*contestNoise + good*others/(good+others)
}

// predictor returns one whose experts are those of the contest.
func (c contest) predictor(t testing.TB, cfg Config, ready *Predictor) *Predictor {
	cfg.Season, cfg.KernelWindow = 1, 1
	p, err := newPredictor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.cusum.threshold, p.slow.chart.threshold, p.variance.threshold = ready.cusum.threshold, ready.slow.chart.threshold, ready.variance.threshold
	p.experts = nil
	for i, f := range c.experts {
		p.experts = append(p.experts, &told{id: fmt.Sprint("told.", i), forecast: f})
	}
	p.ensemble = newEnsemble(&p.cfg.Orchestrator, equal(len(c.experts)))
	p.ensemble.ground.epsilon = p.epsilon()
	p.weights = slices.Clone(p.ensemble.rho)
	p.guarded = false // none of these experts is naive
	p.prior = make([]float64, len(p.experts))
	p.sections = p.parts()
	return p
}

// errors returns the mean squared errors of the predictor, of BOA and of ML-Poly as published, from the second value on.
func (c contest) errors(t testing.TB, cfg Config, ready *Predictor) (own, boa, poly float64) {
	p := c.predictor(t, cfg, ready)
	n := float64(len(c.y) - 1)
	b, m := aggregate.NewBOA(equal(len(c.experts))), aggregate.NewMLPoly(len(c.experts), 0)
	x := make([]float64, len(c.experts))
	feed(t, p, c.y, func(i int, y float64, out *Output) {
		if i == 0 {
			return
		}
		for k := range x {
			x[k] = c.experts[k][i]
		}
		own += (y - out.Prior) * (y - out.Prior) / n
		byBOA, byPoly := detmath.Dot(b.Share, x), detmath.Dot(m.Share, x)
		boa += (y - byBOA) * (y - byBOA) / n
		poly += (y - byPoly) * (y - byPoly) / n
		for k := range x {
			b.Gain(k, 2*(byBOA-y)*(byBOA-x[k]))
			m.Gain(k, 2*(byPoly-y)*(byPoly-x[k]))
		}
		b.Mix()
		m.Mix()
	})
	return own, boa, poly
}

// mean returns the mean of x and its standard error.
func mean(x []float64) (m, se float64) {
	for _, v := range x {
		m += v / float64(len(x))
	}
	for _, v := range x {
		se += (v - m) * (v - m)
	}
	return m, math.Sqrt(se / float64(len(x)*(len(x)-1)))
}

// contests are what the ensemble is held to: its mean squared error in percent relative to BOA's and to ML-Poly's, at most. With eight
// experts and nothing in common, the best mixture itself is only some 16 % better than BOA.
var contests = []struct {
	n, period int
	common    float64
	most      float64
}{
	{4, 250, .5, -15}, {8, 250, .5, -15}, {4, 0, .5, 2}, {8, 0, .5, 2},
	{4, 250, 0, -9}, {8, 250, 0, -2}, {4, 0, 0, 2}, {8, 0, 0, 2},
}

// played is the relative mean squared errors, in percent, of as many contests as there are seeds.
type played struct{ boa, poly, bound []float64 }

func play(t testing.TB, n, period int, common float64, seeds uint64, ready *Predictor) (p played) {
	for seed := range seeds {
		c := newContest(n, period, common, seed)
		own, boa, poly := c.errors(t, Config{}, ready)
		p.boa, p.poly = append(p.boa, 100*(own/boa-1)), append(p.poly, 100*(own/poly-1))
		p.bound = append(p.bound, 100*(own/c.bound()-1))
	}
	return p
}

func TestSwitching(t *testing.T) {
	ready := create(t, Config{})
	for _, c := range contests {
		p := play(t, c.n, c.period, c.common, 4, ready)
		boa, _ := mean(p.boa)
		poly, _ := mean(p.poly)
		if boa > c.most || poly > c.most {
			t.Errorf("%d experts, period %d, common %v: mean squared error %+.1f %% of BOA's, %+.1f %% of ML-Poly's; want at most %+v", c.n, c.period, c.common, boa, poly, c.most)
		}
	}
}

// BenchmarkSwitching compares the ensemble's mean squared error with that of BOA and of ML-Poly on the same experts, over 20 seeds.
func BenchmarkSwitching(b *testing.B) {
	ready := create(b, Config{})
	for _, c := range contests {
		name := fmt.Sprintf("n=%d/period=%d/common=%v", c.n, c.period, c.common)
		b.Run(name, func(b *testing.B) {
			for range b.N {
				p := play(b, c.n, c.period, c.common, 20, ready)
				boa, boaSE := mean(p.boa)
				poly, polySE := mean(p.poly)
				bound, boundSE := mean(p.bound)
				b.ReportMetric(boa, "%BOA")
				b.ReportMetric(poly, "%ML-Poly")
				b.ReportMetric(bound, "%bound")
				b.Logf("%s: mean squared error %+.1f ± %.1f %% of BOA's, %+.1f ± %.1f %% of ML-Poly's, %+.1f ± %.1f %% of the best mixture's",
					name, boa, boaSE, poly, polySE, bound, boundSE)
			}
		})
	}
}
