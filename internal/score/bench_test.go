package score

import (
	"math/rand/v2"
	"testing"

	"github.com/usp-project/usp/predictor"
)

// BenchmarkAdd is what the scores cost per step, BenchmarkStep beside it what the step of a predictor without the kernel
// expert costs whose experts are scored, BenchmarkLaw what the score of its law costs.
func BenchmarkAdd(b *testing.B) {
	p, series := warmed(b)
	var out predictor.Output
	board := New(len(p.Experts()))
	outs := make([]predictor.Output, 256)
	for i := range outs {
		if err := p.Step(predictor.Observation{Time: int64(len(series) + i), Value: series[i]}, &out); err != nil {
			b.Fatal(err)
		}
		outs[i] = out
		outs[i].Weights, outs[i].PriorExperts = append([]float64{}, out.Weights...), append([]float64{}, out.PriorExperts...)
	}
	for i := range outs {
		board.Add(series[i], &outs[i])
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		board.Add(series[i%256], &outs[i%256])
	}
}

func BenchmarkStep(b *testing.B) {
	p, series := warmed(b)
	var out predictor.Output
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := p.Step(predictor.Observation{Time: int64(len(series) + i), Value: series[i%len(series)]}, &out); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLaw(b *testing.B) {
	p, series := warmed(b)
	board := New(len(p.Experts()))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		law, _ := p.Law()
		board.AddLaw(series[i%len(series)], &law)
	}
}

// warmed is a predictor that has seen the series.
func warmed(b *testing.B) (*predictor.Predictor, []float64) {
	p, err := predictor.New(predictor.Config{KernelWindow: 1})
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 9))
	series := make([]float64, 1000)
	var out predictor.Output
	for i := range series {
		series[i] = 0.9*series[max(0, i-1)] + rnd.NormFloat64()
		if err := p.Step(predictor.Observation{Time: int64(i), Value: series[i]}, &out); err != nil {
			b.Fatal(err)
		}
	}
	return p, series
}
