package predictor

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/hex"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/examples"
)

// torture asks for the long forms of the tests.
func torture() bool { return os.Getenv("TORTURE") != "" }

// statistics leaves a test out of -short that judges the numbers of many thousand steps. -short is for the race detector and
// the emulator, under which it takes minutes and says nothing: this package starts no goroutine, and the other tests
// take each step through the same code.
func statistics(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped by -short: judges numbers over many thousand steps, in which no goroutine has a part")
	}
}

// example returns the values of a shipped series and its season.
func example(t testing.TB, name string) ([]float64, int) {
	t.Helper()
	s, ok := examples.Lookup(name)
	if !ok {
		t.Fatalf("no example %q", name)
	}
	rows, err := csv.NewReader(bytes.NewReader(s.CSV)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var values []float64
	for _, r := range rows[1:] {
		x, err := strconv.ParseFloat(r[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, x)
	}
	return values, s.Season
}

// designs are the thresholds that New has found, by what they depend on: they take longer to find than most series here to run.
var designs = struct {
	sync.Mutex
	found map[[4]float64][3]float64
}{found: map[[4]float64][3]float64{}}

// create is New, which it calls once for each design of the charts.
func create(t rapid.TB, cfg Config) *Predictor {
	t.Helper()
	p, err := newPredictor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	designs.Lock()
	defer designs.Unlock()
	design := [4]float64{p.cfg.CusumSlack, p.cfg.CusumClip, p.cfg.TargetRunLength, p.cfg.VarianceRunLength}
	found, ok := designs.found[design]
	if !ok {
		if p, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		designs.found[design] = [3]float64{p.cusum.threshold, p.slow.chart.threshold, p.variance.threshold}
		return p
	}
	p.cusum.threshold, p.slow.chart.threshold, p.variance.threshold = found[0], found[1], found[2]
	return p
}

// feed steps p through values, one second apart, and calls after for each.
func feed(t testing.TB, p *Predictor, values []float64, after func(i int, y float64, out *Output)) {
	t.Helper()
	var out Output
	first := p.Steps()
	for i, y := range values {
		if err := p.Step(Observation{Time: int64(first+uint64(i)+1) * 1e9, Value: y}, &out); err != nil {
			t.Fatal(err)
		}
		if after != nil {
			after(i, y, &out)
		}
	}
}

// chain is a hash over ρ, transport cost and forecast of every step.
type chain struct{ sum [32]byte }

func (c *chain) add(out *Output) {
	b := slices.Clone(c.sum[:])
	for _, x := range append(slices.Clone(out.Weights), out.OTCost, out.Forecast) {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
	}
	c.sum = sha256.Sum256(b)
}

func (c *chain) String() string { return hex.EncodeToString(c.sum[:]) }

// state returns a copy of every section.
func state(p *Predictor) map[string][]byte {
	m := map[string][]byte{}
	p.State(func(name string, data []byte) { m[name] = bytes.Clone(data) })
	return m
}

// noise returns n reproducible standard normal numbers.
func noise(seed uint64, n int) []float64 {
	u := detmath.Uniform{Seed: seed}
	x := make([]float64, n)
	for i := range x {
		x[i] = u.Normal()
	}
	return x
}

// walk returns 100 plus noise about a slow wave: a signal on which every part of the predictor has something to do. Like
// every input of a golden test it is made without anything that differs between machines.
func walk(seed uint64, n int) []float64 {
	x := noise(seed, n)
	for i := range x {
		w := i % 94
		x[i] += 100 + float64(0.2*float64(min(w, 94-w)))
	}
	return x
}
