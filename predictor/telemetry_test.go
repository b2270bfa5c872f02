package predictor

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/record"
)

func TestSchema(t *testing.T) {
	s := Schema(12)
	if s.Name() != "usp.predictor.v2" || !slices.Equal(s.DigestFields(), []string{"rho", "ot_cost_digest"}) {
		t.Errorf("schema:\n%s", s.Text())
	}
	for i, name := range []string{"cusum_pos", "cusum_neg", "cusum_var", "threshold", "entropy", "law_entropy", "diffusion_entropy", "mixture_share", "flags", "ot_cost", "free_energy", "epsilon",
		"residual", "gap", "iterations", "rel_volatility", "kurtosis", "holder", "holder_se", "scale", "rho", "ot_cost_digest"} {
		if at, ok := s.Index(name); !ok || at != i {
			t.Errorf("field %s is at %d, want %d", name, at, i)
		}
	}
}

// TestSchemaWithWeights wants a record with weights to be one without, and the weights: every other field, the digests
// too, has the same words.
func TestSchemaWithWeights(t *testing.T) {
	p := create(t, Config{})
	n := len(p.Experts())
	plain, full := record.NewValues(Schema(n)), record.NewValues(SchemaWithWeights(n))
	if got, want := full.Schema().Name(), plain.Schema().Name()+".weights"; got != want {
		t.Errorf("schema %s, want %s", got, want)
	}
	if !slices.Equal(full.Schema().DigestFields(), plain.Schema().DigestFields()) || full.Schema().StoredWords() != plain.Schema().StoredWords()+n {
		t.Fatalf("schema:\n%s", full.Schema().Text())
	}
	words := func(v *record.Values, out *Output, name string) []uint64 {
		i, ok := v.Schema().Index(name)
		if !ok {
			t.Fatalf("no field %s", name)
		}
		from := v.Schema().Offset(i)
		return v.Payload(out.Step, out.Time)[from : from+v.Schema().Field(i).Len]
	}
	y, _ := example(t, "nile")
	feed(t, p, y, func(_ int, _ float64, out *Output) {
		Fill(plain, out)
		Fill(full, out)
		for _, f := range plain.Schema().Fields() {
			if a, b := words(plain, out, f.Name), words(full, out, f.Name); !slices.Equal(a, b) {
				t.Fatalf("step %d: %s is %x with weights, %x without", out.Step, f.Name, b, a)
			}
		}
		for i, w := range words(full, out, "weights") {
			if w != math.Float64bits(out.Weights[i]) {
				t.Fatalf("step %d: weight %d is %x, want %x", out.Step, i, w, math.Float64bits(out.Weights[i]))
			}
		}
		if allocs := testing.AllocsPerRun(1, func() { Fill(full, out) }); allocs != 0 {
			t.Fatalf("%g allocations", allocs)
		}
	})
}

// TestRecordHoldsNoSignal runs every field of every record against the numbers that would give the signal away:
// values, forecasts, interval ends, errors and increments.
func TestRecordHoldsNoSignal(t *testing.T) {
	for _, name := range []string{"sunspots", "nile", "co2"} {
		y, season := example(t, name)
		p := create(t, Config{Season: season})
		secrets := map[uint64]string{}
		tell := func(x float64, what string) {
			if math.Trunc(8*x) != 8*x { // small whole numbers are everywhere
				secrets[math.Float64bits(x)], secrets[math.Float64bits(-x)] = what, what
			}
		}
		v := record.NewValues(Schema(len(p.Experts())))
		var payloads [][]uint64
		feed(t, p, y, func(i int, x float64, out *Output) {
			tell(x, "value")
			tell(out.Forecast, "forecast")
			tell(out.Lower, "lower end")
			tell(out.Upper, "upper end")
			tell(out.Scale, "scale before rounding")
			if i > 0 {
				tell(x-out.Prior, "error")
				tell(x-y[i-1], "increment")
			}
			Fill(v, out)
			payloads = append(payloads, slices.Clone(v.Payload(out.Step, out.Time)))
		})
		coarse := 0
		for i, words := range payloads {
			for j, w := range words[2:] {
				what, bad := secrets[w]
				if bad && j == fieldScale && what == "scale before rounding" {
					coarse++ // a scale may by chance need no rounding
					continue
				}
				if bad {
					t.Fatalf("%s, step %d: field %d holds a %s", name, i+1, j, what)
				}
			}
		}
		if coarse > len(payloads)/20 {
			t.Errorf("%s: %d of %d scales are not rounded", name, coarse, len(payloads))
		}
	}
}

func TestFill(t *testing.T) {
	out := Output{CusumPos: 1, CusumNeg: 2, CusumVar: 2.501, Threshold: 3, Entropy: 4, LawEntropy: 5, DiffusionEntropy: 5.25, MixtureShare: .5, Flags: 6, OTCost: 7, FreeEnergy: 8, Epsilon: 9, Residual: 10, Gap: 10.5,
		Iterations: 11, RelVolatility: 12, Kurtosis: 13, Holder: 14, HolderError: 14.5, Scale: 15.01, Weights: []float64{.25, .75}}
	v := record.NewValues(Schema(2))
	Fill(v, &out)
	want := []uint64{100, 200}
	for _, x := range []float64{1, 2, 2.5, 3, 4, 5, 5.25, .5} {
		want = append(want, math.Float64bits(x))
	}
	want = append(want, 6)
	for _, x := range []float64{7, 8, 9, 10, 10.5} {
		want = append(want, math.Float64bits(x))
	}
	want = append(want, 11)
	for _, x := range []float64{12, 13, 14, 14.5, 15, .25, .75, 7} {
		want = append(want, math.Float64bits(x))
	}
	if got := v.Payload(100, 200); !slices.Equal(got, want) {
		t.Errorf("payload\n%x, want\n%x", got, want)
	}
}

func TestStepRefuses(t *testing.T) {
	p := create(t, Config{})
	feed(t, p, walk(1, 30), nil)
	before := state(p)
	out := Output{Step: 77}
	for _, c := range []struct {
		obs  Observation
		want error
	}{
		{Observation{Time: 1e15, Value: math.NaN()}, ErrNotFinite}, {Observation{Time: 1e15, Value: math.Inf(1)}, ErrNotFinite}, {Observation{Time: 1e15, Value: math.Inf(-1)}, ErrNotFinite},
		{Observation{Time: p.time, Value: 1}, ErrTime}, {Observation{Time: p.time - 1, Value: 1}, ErrTime}, {Observation{Time: math.MinInt64, Value: 1}, ErrTime},
	} {
		if err := p.Step(c.obs, &out); !errors.Is(err, c.want) {
			t.Errorf("%v: error %v, want %v", c.obs, err, c.want)
		}
	}
	for name, data := range state(p) {
		if string(data) != string(before[name]) {
			t.Errorf("a refused observation changed section %q", name)
		}
	}
	if out.Step != 77 {
		t.Error("a refused observation wrote the output")
	}
}

func TestOutput(t *testing.T) {
	p := create(t, Config{})
	var last Output
	feed(t, p, walk(9, 100), func(i int, _ float64, out *Output) {
		if out.Step != uint64(i+1) || out.HasPrior != (i > 0) {
			t.Errorf("value %d: step %d, prior %v", i, out.Step, out.HasPrior)
		}
		if i > 0 && (out.Prior != last.Forecast || out.PriorLower != last.Lower || out.PriorUpper != last.Upper) {
			t.Errorf("step %d: the prior is not the forecast stored one step before", i+1)
		}
		last = *out
	})
	if p.Steps() != 100 {
		t.Errorf("Steps = %d", p.Steps())
	}
}

func TestConfig(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Error(err)
	}
	if got := (Config{}).WithDefaults().WithDefaults(); got != (Config{}).WithDefaults() {
		t.Error("filling in defaults twice differs from once")
	}
	for name, c := range map[string]Config{
		"season": {Season: -1}, "coverage": {Coverage: 1}, "grace": {Grace: -3}, "confirm_steps": {ConfirmSteps: 9}, "forgetting": {Forgetting: math.NaN()},
		"epsilon_max": {Orchestrator: Orchestrator{EpsilonMin: 1, EpsilonMax: .5}}, "soft_reset": {Orchestrator: Orchestrator{SoftReset: 2}}, "holder_window": {HolderWindow: 1 << 20},
		"kernel_window": {KernelWindow: 15}, "variance_run_length": {VarianceRunLength: 1}, "stale_after": {StaleAfter: 1}, "step": {Orchestrator: Orchestrator{Step: "sgd"}}, "tau": {Orchestrator: Orchestrator{Tau: -1}}, "lambda": {Orchestrator: Orchestrator{Lambda: 1e9}}, "holder_min": {HolderMin: .6},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
		if p, err := New(c); p != nil || err == nil {
			t.Errorf("%s: New accepts it", name)
		}
	}
}

// sane checks what must hold of any output for any input.
func sane(t *testing.T, out *Output) {
	t.Helper()
	for i, x := range []float64{out.Forecast, out.Lower, out.Upper, out.CusumPos, out.CusumNeg, out.CusumVar, out.Threshold, out.Entropy, out.LawEntropy, out.OTCost,
		out.FreeEnergy, out.Epsilon, out.Residual, out.Gap, out.RelVolatility, out.Kurtosis, out.Holder, out.HolderError, out.Scale} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			t.Fatalf("step %d: number %d of the output is %v: %+v", out.Step, i, x, *out)
		}
	}
	for i, w := range out.Weights {
		if !(w >= 0 && w <= 1+0x1p-50) {
			t.Fatalf("step %d: weight %d is %v", out.Step, i, w)
		}
	}
	if d := math.Abs(detmath.Sum(out.Weights) - 1); d > 0x1p-50 {
		t.Fatalf("step %d: the weights' sum is off by %v", out.Step, d)
	}
	// Where settings are extreme, rounding leaves the marginal that jko solves for some 1e-14 off; the gap tells whether it is solved.
	solved := out.Residual <= 1e-14 || out.Iterations > 1 || out.Residual <= 1e-12 && out.Gap <= 1e-14
	if out.Lower > out.Forecast || out.Upper < out.Forecast || out.OTCost < 0 || (!solved && out.Flags&FlagNotConverged == 0) || out.Gap < 0 || out.Holder < 0 || out.Holder > 1 {
		t.Fatalf("step %d: %+v", out.Step, *out)
	}
}

// FuzzStep feeds whatever the bytes spell: letters stand for the values that break forecasters, for values that are no
// numbers, for a repeat of the value before, and for clocks that stand, run back or leap. Whatever comes, what Step accepts is
// sane in Output and in the record, what it refuses changes nothing, and the state has its size and can be restored.
func FuzzStep(f *testing.F) {
	f.Add([]byte("abcdefgh"), 0)
	f.Add([]byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabababaababbbbabbbabab"), 7)
	f.Add([]byte("hhhhhhhhhhhhgggggggggggghhggfefefefecdcdcdcdhhhggghghghghghghghghghg"), 1)
	f.Add([]byte("0123456789!#$%&()*+,-./:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&()*+,-./hA0bB1cgC2dD3eE4fF5gG6hH"), 11)
	f.Add([]byte("aaaaaaeaaaaaaaaaa"), 0) // squares that are almost nothing
	f.Add([]byte("iABCjDEFkGHIlJKLmNOPnQRSTlllllllllllAnBBBmCCoDDoEEEmmFFFlnGiiHjjIkkJJoKLMNn1h2g3f4e5nnd6llll"), 0)
	special := map[byte]float64{'a': 0, 'b': 1, 'c': -1, 'd': math.SmallestNonzeroFloat64, 'e': 1e-160, 'f': -1e160, 'g': math.MaxFloat64, 'h': -math.MaxFloat64,
		'i': math.NaN(), 'j': math.Inf(1), 'k': math.Inf(-1)}
	clock := map[byte]int64{'m': 0, 'n': -3, 'o': 1e15}
	f.Fuzz(func(t *testing.T, data []byte, season int) {
		p := create(t, Config{Season: max(0, min(60, season)), KernelWindow: 16})
		var out Output
		v := record.NewValues(Schema(len(p.Experts())))
		size := p.StateSize()
		obs, last := Observation{}, int64(-1)
		for _, b := range data[:min(len(data), 400)] {
			step := int64(1)
			if d, ok := clock[b]; ok {
				step = d
			}
			obs.Time = last + step
			obs.Arrival = obs.Time * int64(b%5) // also before the time, and past the end of the clock
			if y, ok := special[b]; ok {
				obs.Value = y
			} else if b != 'l' {
				obs.Value = float64(b)
			}
			err := p.Step(obs, &out)
			switch finite := !math.IsNaN(obs.Value - obs.Value); {
			case !finite && errors.Is(err, ErrNotFinite):
				obs.Value = 0
				continue
			case finite && step <= 0 && p.Steps() > 0 && errors.Is(err, ErrTime):
				continue
			case err != nil || !finite:
				t.Fatalf("%+v after %d: error %v", obs, last, err)
			}
			last = obs.Time
			sane(t, &out)
			Fill(v, &out)
			for i, w := range v.Payload(out.Step, out.Time)[2:] {
				if x := math.Float64frombits(w); i != fieldFlags && i != fieldIterations && math.IsNaN(x-x) {
					t.Fatalf("step %d: field %d of the record is %v", out.Step, i, x)
				}
			}
		}
		if n := p.StateSize(); n != size {
			t.Fatalf("the state has grown from %d to %d bytes", size, n)
		}
		same(t, p, restore(t, p))
	})
}
