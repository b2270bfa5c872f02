package predictor

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// restore returns p's twin made from its state.
func restore(t rapid.TB, p *Predictor) *Predictor {
	q, err := Restore(p.Config(), state(p))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// same demands that p and q hold the same state, to the bit.
func same(t rapid.TB, p, q *Predictor) {
	a, b := state(p), state(q)
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if !bytes.Equal(a[name], b[name]) {
			t.Fatalf("step %d: section %q differs", p.Steps(), name)
		}
	}
}

// sameOutput demands that a and b are equal, to the bit but for the sign of zero.
func sameOutput(t rapid.TB, a, b *Output) {
	x, y := *a, *b
	x.Weights, y.Weights = nil, nil
	if !slices.Equal(a.Weights, b.Weights) || !reflect.DeepEqual(x, y) {
		t.Fatalf("step %d (-without +with restore):\n%s", a.Step, cmp.Diff(a, b))
	}
}

// TestRestoreAnywhere replaces the predictor by its restored twin after every step.
func TestRestoreAnywhere(t *testing.T) {
	y, season := example(t, "nile")
	y[40] *= 100 // pass through quarantine,
	for i := 60; i < 80; i++ {
		y[i] = 1000 // and a frozen stretch
	}
	restoreAnywhere(t, Config{Season: season}, y, FlagOutlier|FlagDropped|FlagFrozen)
	restoreAnywhere(t, Config{TargetRunLength: 1e5, OutlierSigma: 1e6}, accelerating(40, 1), FlagAlarmUp|FlagGrace)
}

// restoreAnywhere demands that all the flags of pass are met on the way.
func restoreAnywhere(t *testing.T, cfg Config, y []float64, pass uint64) {
	t.Helper()
	p, through := create(t, cfg), create(t, cfg)
	var a, b Output
	seen := uint64(0)
	for i, v := range y {
		obs := Observation{Time: int64(i), Value: v}
		if err := p.Step(obs, &a); err != nil {
			t.Fatal(err)
		}
		if err := through.Step(obs, &b); err != nil {
			t.Fatal(err)
		}
		sameOutput(t, &a, &b)
		same(t, p, through)
		through = restore(t, through)
		same(t, p, through)
		seen |= a.Flags
	}
	if seen&pass != pass {
		t.Errorf("only met %v of %v", FlagNames(seen), FlagNames(pass))
	}
}

func TestRestoreAtRandomSteps(t *testing.T) {
	series := map[string][]float64{}
	for _, name := range []string{"sunspots", "nile", "co2"} {
		series[name], _ = example(t, name)
	}
	series["disturbed"] = disturbed()
	series["alarms"] = accelerating(60, 1)
	rapid.Check(t, func(t *rapid.T) {
		y := series[rapid.SampledFrom([]string{"sunspots", "nile", "co2", "disturbed", "alarms"}).Draw(t, "series")]
		from := rapid.IntRange(0, len(y)-100).Draw(t, "from")
		y = y[from:min(len(y), from+150)]
		// The smallest kernel window goes round most often; TestRestoreAnywhere has the default.
		cfg := Config{Season: rapid.SampledFrom([]int{0, 1, 4, 11, 52}).Draw(t, "season"), KernelWindow: 16}
		at := rapid.IntRange(0, len(y)-1).Draw(t, "at")
		p := create(t, cfg)
		var out Output
		for i, v := range y[:at] {
			if err := p.Step(Observation{Time: int64(i), Value: v}, &out); err != nil {
				t.Fatal(err)
			}
		}
		q := restore(t, p)
		var a, b Output
		for i, v := range y[at:] {
			obs := Observation{Time: int64(at + i), Value: v}
			if err := errors.Join(p.Step(obs, &a), q.Step(obs, &b)); err != nil {
				t.Fatal(err)
			}
			sameOutput(t, &a, &b)
		}
		same(t, p, q)
	})
}

func TestStateSections(t *testing.T) {
	p := create(t, Config{})
	empty := p.StateSize()
	feed(t, p, walk(1, 700), nil)
	if n := p.StateSize(); n != empty {
		t.Errorf("state grew from %d to %d bytes", empty, n)
	}
	var names []string
	p.State(func(name string, _ []byte) { names = append(names, name) })
	want := []string{"orchestrator", "detector", "histories"}
	for _, e := range p.Experts() {
		want = append(want, "expert."+e)
	}
	if !slices.Equal(names, want) {
		t.Errorf("sections %v, want %v", names, want)
	}
}

func TestRestoreRefuses(t *testing.T) {
	p := create(t, Config{})
	feed(t, p, walk(1, 50), nil)
	good := state(p)
	float := func(section string, offset int, bits uint64) func(map[string][]byte) {
		return func(m map[string][]byte) {
			for i := range 8 {
				m[section][offset+i] = byte(bits >> (8 * i))
			}
		}
	}
	for _, c := range []struct {
		name   string
		cfg    Config
		damage func(map[string][]byte)
		want   string
	}{
		{"missing", Config{}, func(m map[string][]byte) { delete(m, "detector") }, `section "detector" is missing`},
		{"short", Config{}, func(m map[string][]byte) { m["histories"] = m["histories"][:100] }, `section "histories": it ends too early`},
		{"empty", Config{}, func(m map[string][]byte) { m["orchestrator"] = nil }, `section "orchestrator": it ends too early`},
		{"long", Config{}, func(m map[string][]byte) { m["expert.naive"] = append(m["expert.naive"], 0) }, `1 bytes too long`},
		{"version", Config{}, float("detector", 0, 99), `it has version 99`},
		{"NaN", Config{}, float("histories", 8, math.Float64bits(math.NaN())), `it holds NaN`},
		{"configuration", Config{Grace: 7}, func(map[string][]byte) {}, `under another configuration`},
		{"season", Config{Season: 5}, func(map[string][]byte) {}, `under another configuration`},
	} {
		damaged := map[string][]byte{}
		for name, data := range good {
			damaged[name] = bytes.Clone(data)
		}
		c.damage(damaged)
		q, err := Restore(c.cfg, damaged)
		if q != nil || !errors.Is(err, ErrState) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", c.name, err, c.want)
		}
	}
	if _, err := Restore(Config{Grace: -1}, good); err == nil {
		t.Error("an invalid configuration is accepted")
	}
}

// FuzzRestore shows Restore damaged state. Whatever it accepts can be stepped, and saves as what was read.
func FuzzRestore(f *testing.F) {
	p := create(f, Config{})
	feed(f, p, walk(1, 60), nil)
	for name, data := range state(p) {
		f.Add(name, data)
	}
	good := state(p)
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		damaged := maps.Clone(good)
		damaged[name] = data
		q, err := Restore(Config{}, damaged)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if _, known := good[name]; known && !bytes.Equal(state(q)[name], data) {
			t.Fatal("it saves as other bytes than it was restored from")
		}
		var out Output
		for i := range 3 {
			if err := q.Step(Observation{Time: math.MaxInt64 - 3 + int64(i), Value: float64(i)}, &out); err != nil && !errors.Is(err, ErrTime) {
				t.Fatal(err)
			}
		}
	})
}
