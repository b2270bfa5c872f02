package compare_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// perturbed multiplies the weights by 1 + 2^-bits from a step on.
func perturbed(from uint64, bits float64) func(p *program) {
	return func(p *program) {
		p.rho = func(step uint64) []float64 {
			w := weights(step)
			if step >= from {
				for i := range w {
					w[i] *= 1 + math.Exp2(-bits)
				}
			}
			return w
		}
	}
}

func verdict(c *compare.Comparison) string {
	s := fmt.Sprintf("%s %d", c.Verdict, c.Exit)
	if c.First != nil {
		s += fmt.Sprintf(" at %d in %s", c.First.Step, c.First.Field)
	}
	return s
}

func TestVerdicts(t *testing.T) {
	const steps = 1000
	rho := record.Field{Name: "rho", Class: record.Digest, Len: 4}
	flags := record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64}
	for _, c := range []struct {
		name   string
		change func(p *program)
		opt    compare.Options
		want   string
		common uint64
		note   string // among notes and reason
	}{
		{"the same", func(*program) {}, compare.Options{}, "identical 0", steps, ""},
		{"a little apart", perturbed(500, 30), compare.Options{}, "agree 22 at 500 in rho", steps, ""},
		{"a little apart, enough", perturbed(500, 30), compare.Options{MinBits: 20}, "agree 0 at 500 in rho", steps, ""},
		{"a little apart, not enough", perturbed(500, 30), compare.Options{MinBits: 40}, "agree 22 at 500 in rho", steps, ""},
		{"apart", perturbed(500, 1), compare.Options{MinBits: 1}, "parted 22 at 500 in rho", steps, ""},
		{"apart behind the range", perturbed(500, 1), compare.Options{To: 499}, "identical 0", 500, ""},
		{"apart before the range", func(p *program) {
			p.cost = func(s uint64) float64 { return map[bool]float64{true: 1, false: 3 + math.Cos(float64(s))}[s == 3] }
		}, compare.Options{From: 4}, "identical 0", steps - 4, ""},
		{"one step", func(p *program) {
			p.cost = func(s uint64) float64 { return map[bool]float64{true: 1, false: 3 + math.Cos(float64(s))}[s == 3] }
		}, compare.Options{}, "parted 22 at 3 in cost", steps, ""},
		{"only in a flag", func(p *program) { p.flags = func(s uint64) uint64 { return s / 700 } }, compare.Options{MinBits: 1}, "parted 22 at 700 in flag flags", steps, "flag flags differs"},
		{"weights that are none", perturbed(500, 12), compare.Options{MinBits: 6}, "parted 22 at 500 in rho", steps, "sum of rho is 1 differs"},
		{"not finite", func(p *program) {
			p.cost = func(s uint64) float64 {
				return map[bool]float64{true: math.Inf(1), false: 3 + math.Cos(float64(s))}[s == 3]
			}
		}, compare.Options{}, "parted 22 at 3 in cost", steps, "cost is finite differs"},
		{"interval 7", func(p *program) { p.plan.Every = 7 }, compare.Options{}, "identical 0", 143, "digest interval 1 in A and 7 in B"},
		{"interval 100 and apart", func(p *program) { perturbed(530, 30)(p); p.plan.Every = 100 }, compare.Options{}, "agree 22 at 600 in rho", 10, "digest interval 1 in A and 100 in B"},
		{"no ladder", func(p *program) { perturbed(500, 30)(p); p.plan.Levels = nil }, compare.Options{}, "parted 22 at 500 in rho", steps, "nothing says how far rho agrees"},
		{"no ladder, the same", func(p *program) { p.plan.Levels = nil }, compare.Options{}, "identical 0", steps, "B has no precision ladders"},
		{"another key", func(p *program) { perturbed(500, 30)(p); p.plan.Key = record.NewAuditKey([]byte("secret")) }, compare.Options{}, "parted 22 at 500 in rho", steps, "different audit keys"},
		{"other levels", func(p *program) { perturbed(500, 30)(p); p.plan.Levels = []int{10, 22, 30} }, compare.Options{}, "agree 22 at 500 in rho", steps, ""},
		{"levels of which none is common", func(p *program) { perturbed(500, 30)(p); p.plan.Levels = []int{2} }, compare.Options{}, "parted 22 at 500 in rho", steps, "no level in common"},
		{"another floor", func(p *program) { perturbed(500, 30)(p); p.plan.Floor = -40 }, compare.Options{}, "parted 22 at 500 in rho", steps, "different floors"},
		{"fields in another order", func(p *program) { p.fields = []record.Field{flags, {Name: "cost", Class: record.Digest}, rho} }, compare.Options{}, "identical 0", steps, ""},
		{"another metric", func(p *program) { p.fields = append(p.fields, record.Field{Name: "more", Class: record.Metric}) }, compare.Options{}, "identical 0", steps, ""},
		{"a field less", func(p *program) { p.fields = []record.Field{flags, rho} }, compare.Options{}, "incomparable 2", 0, "cost is in A only; --field rho compares"},
		{"a field less, and not wanted", func(p *program) { p.fields = []record.Field{flags, rho} }, compare.Options{Fields: []string{"rho"}}, "identical 0", steps, ""},
		{"a field that nobody has", func(*program) {}, compare.Options{Fields: []string{"roh"}}, "incomparable 2", 0, `"roh"`},
		{"another length", func(p *program) {
			p.fields = []record.Field{flags, {Name: "rho", Class: record.Digest, Len: 5}, {Name: "cost", Class: record.Digest}}
			p.rho = func(uint64) []float64 { return make([]float64, 5) }
		}, compare.Options{}, "incomparable 2", 0, "rho has 4 elements in A and 5 in B"},
		{"other fields", func(p *program) { p.fields = []record.Field{{Name: "x", Class: record.Digest}} }, compare.Options{}, "incomparable 2", 0, "no digest field in common"},
		{"no common step", func(*program) {}, compare.Options{From: 5000}, "incomparable 2", 0, "no step"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := pair(t, steps, c.change, c.opt)
			if v := verdict(got); v != c.want || got.Common != c.common {
				t.Errorf("%s, %d common steps (%s)\nwant %s, %d", v, got.Common, got.Reason, c.want, c.common)
			}
			if all := strings.Join(append(got.Notes, got.Reason), "\n"); !strings.Contains(all, c.note) {
				t.Errorf("want a note %q in\n%s", c.note, all)
			}
		})
	}
}

// What interrupted one of them does not make two runs of the same program differ.
func TestTimelines(t *testing.T) {
	at := func(step uint64) *uint64 { return &step }
	for _, c := range []struct {
		name string
		b    func(p *program)
		want string
		only string
	}{
		{"two rewinds", func(p *program) {
			p.begin(0, nil)
			p.steps(0, 300)
			p.begin(1, at(199))
			p.steps(200, 500)
			p.begin(2, at(399))
			p.steps(400, 1000)
		}, "identical 0", "0 0"},
		{"a rewind behind a rewind", func(p *program) {
			p.begin(0, nil)
			p.steps(0, 300)
			p.begin(1, at(199))
			p.steps(200, 250)
			p.begin(2, at(99))
			p.steps(100, 1000)
		}, "identical 0", "0 0"},
		{"what was overridden was wrong", func(p *program) {
			good := p.cost
			p.begin(0, nil)
			p.steps(0, 200)
			p.cost = func(uint64) float64 { return -1 }
			p.steps(200, 300)
			p.cost = good
			p.begin(1, at(199))
			p.steps(200, 1000)
		}, "identical 0", "0 0"},
		{"what overrides is wrong", func(p *program) {
			p.begin(0, nil)
			p.steps(0, 300)
			p.cost = func(uint64) float64 { return -1 }
			p.begin(1, at(199))
			p.steps(200, 1000)
		}, "parted 22 at 200 in cost", "0 0"},
		{"overridden and not got as far", func(p *program) {
			p.begin(0, nil)
			p.steps(0, 1000)
			p.begin(1, at(199))
			p.steps(200, 300)
		}, "identical 0", "700 0"},
		{"lost ranges", func(p *program) {
			p.begin(0, nil)
			p.steps(0, 300)
			p.lose(300, 350)
			p.steps(350, 600)
			p.lose(600, 601)
			p.steps(601, 1000)
		}, "identical 0", "51 0"},
		{"a start without a snapshot", func(p *program) {
			p.begin(0, nil)
			p.steps(0, 300)
			p.begin(1, nil)
			p.steps(150, 1000)
		}, "identical 0", "0 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			newProgram(t, mem, "/a").run(1000)
			b := newProgram(t, mem, "/b")
			c.b(b)
			b.end()
			got := held(t, mem, compare.Options{})
			if v, only := verdict(got), fmt.Sprint(got.A.Only, " ", got.B.Only); v != c.want || only != c.only {
				t.Errorf("%s, only %s; want %s, %s", v, only, c.want, c.only)
			}
		})
	}
}

// Whatever lies between the steps and however files roll, what is passed unread changes nothing in the answer.
func TestSkipping(t *testing.T) {
	const steps = 20_000
	for _, from := range []uint64{0, 1, 7777, steps - 1, steps} {
		mem := vfs.NewMem()
		newProgram(t, mem, "/a").run(steps)
		b := newProgram(t, mem, "/b")
		b.segment = 3 << 20
		perturbed(from, 30)(b)
		b.run(steps)
		got := held(t, mem, compare.Options{})
		want := "identical 0"
		if from < steps {
			want = fmt.Sprintf("agree 22 at %d in rho", from)
		}
		if v := verdict(got); v != want || got.Common != steps || got.Differ != steps-from || got.A.Steps != steps || got.A.LastStep != steps-1 {
			t.Errorf("perturbed from %d: %s, %d common, %d differ, A %+v", from, v, got.Common, got.Differ, got.A)
		}
		for _, f := range got.Fields {
			if f.Compared != steps {
				t.Errorf("%s was compared in %d steps", f.Name, f.Compared)
			}
		}
		if from == steps && got.Skipped < steps/2 {
			t.Errorf("of %d equal steps %d were passed", steps, got.Skipped)
		}
	}
}

// A perturbation of 2^-30 from the middle of a run on is found where it begins, never reported as more than 30 bits of agreement, and in the
// median as at least 25. With TORTURE=1 the runs have 10,000 steps.
func TestTorturePerturbations(t *testing.T) {
	pairs, steps := 1000, uint64(8)
	switch {
	case os.Getenv("TORTURE") != "":
		steps = 10_000
	case testing.Short():
		pairs = 100
	}
	rng := rand.New(rand.NewPCG(3, 4))
	var got []int
	for range pairs {
		c := perturbedPair(t, rng, steps)
		if c.First == nil || c.First.Step != steps/2 || c.First.Field != "rho" || c.Differ != steps/2 || c.Verdict != compare.Agree {
			t.Fatalf("%s, %d steps differ", verdict(c), c.Differ)
		}
		for _, b := range c.Fields[0].Growth {
			if b.Differ == b.Steps && b.Max > 30 {
				t.Errorf("reported %d bits of agreement at a step, there are 30", b.Max)
			}
		}
		got = append(got, *c.Bits) // the least of all steps
	}
	slices.Sort(got)
	if most := got[len(got)-1]; most > 30 {
		t.Errorf("reported %d bits of agreement, there are 30", most)
	}
	if median := got[len(got)/2]; median < 25 {
		t.Errorf("the median agreement reported is %d bits, want at least 25", median)
	}
	t.Logf("%d pairs of %d steps: %d to %d bits reported, median %d", pairs, steps, got[0], got[len(got)-1], got[len(got)/2])
}

// perturbedPair compares two runs with weights of their own, of which the second multiplies all weights, or one, by 1 + 2^-30 or 1 - 2^-30 in the
// second half.
func perturbedPair(t *testing.T, rng *rand.Rand, steps uint64) *compare.Comparison {
	start, one, all := rng.Float64()*100, rng.IntN(4), rng.Float64() < 0.5
	factor := 1 + math.Copysign(math.Exp2(-30), rng.Float64()-0.5)
	base := func(step uint64) []float64 {
		w, sum := make([]float64, 4), 0.0
		for i := range w {
			w[i] = math.Abs(math.Sin(start+float64(i)*1.7+float64(step)*0.01)) + 1e-3
			sum += w[i]
		}
		for i := range w {
			w[i] /= sum
		}
		return w
	}
	mem := vfs.NewMem()
	a, b := newProgram(t, mem, "/a"), newProgram(t, mem, "/b")
	a.rho = base
	b.rho = func(step uint64) []float64 {
		w := base(step)
		for i := range w {
			if step >= steps/2 && (all || i == one) {
				w[i] *= factor
			}
		}
		return w
	}
	a.run(steps)
	b.run(steps)
	return held(t, mem, compare.Options{})
}

func TestGrowth(t *testing.T) {
	c := pair(t, 3000, func(p *program) {
		p.rho = func(step uint64) []float64 {
			w := weights(step)
			if step >= 1000 {
				w[0] *= 1 + math.Exp2(-50+float64(step-1000)/50) // from 50 bits to 10
			}
			return w
		}
		p.plan.Weights = nil
	}, compare.Options{})
	g := c.Fields[0].Growth
	if len(g) > 256 || len(g) < 100 || g[0].From != 0 || g[len(g)-1].To != 2999 {
		t.Fatalf("%d buckets from %d to %d", len(g), g[0].From, g[len(g)-1].To)
	}
	steps := uint64(0)
	for i, b := range g {
		if steps += b.Steps; b.To < b.From || i > 0 && b.From <= g[i-1].To || b.Min > b.Max {
			t.Errorf("bucket %+v", b)
		}
		if b.To < 1000 && (b.Min != compare.Exact || b.Differ > 0) {
			t.Errorf("before the gap: %+v", b)
		}
	}
	if last := g[len(g)-1]; steps != 3000 || last.Max > 14 || last.Min < 1 || c.Fields[1].Growth != nil {
		t.Errorf("%d steps, the last bucket is %+v", steps, g[len(g)-1])
	}
}

func TestEnvironment(t *testing.T) {
	c := pair(t, 10, func(p *program) { p.env = map[string]string{"goarch": "arm64", "goamd64": "v1"} }, compare.Options{})
	if len(c.Environment) != 2 || c.Environment[0].Key != "goarch" || c.Environment[0].B != "arm64" {
		t.Errorf("%+v", c.Environment)
	}
	c = pair(t, 10, func(p *program) { p.env = nil }, compare.Options{})
	if c.Environment != nil || !strings.Contains(strings.Join(c.Notes, "\n"), "the log of B does not say") {
		t.Errorf("%+v %q", c.Environment, c.Notes)
	}
}

func TestEach(t *testing.T) {
	var got []string
	pair(t, 10, func(p *program) {
		perturbed(8, 30)(p)
		p.flags = func(s uint64) uint64 { return s / 9 }
	}, compare.Options{Each: func(s compare.Step) error {
		text := fmt.Sprint(s.Step, s.Other)
		for _, f := range s.Fields {
			text += fmt.Sprint(" ", f.Field, " ", *f.Bits)
		}
		got = append(got, text)
		return nil
	}})
	if len(got) != 2 || !strings.HasPrefix(got[0], "8 [] rho 2") || !strings.HasPrefix(got[1], "9 [flag flags] rho 2") {
		t.Errorf("%q", got)
	}
}

// Entries that are the same bytes about other fields are not the same, in stretches neither.
func TestSameBytesOfOtherFields(t *testing.T) {
	const steps = 5000
	x := func(step uint64) float64 { return 1 + float64(step) }
	y := func(step uint64) float64 { return -1 - float64(step) }
	vector := func(f func(uint64) float64) func(uint64) []float64 {
		return func(step uint64) []float64 { return []float64{f(step)} }
	}
	rho, cost := record.Field{Name: "rho", Class: record.Digest}, record.Field{Name: "cost", Class: record.Digest}
	mem := vfs.NewMem()
	a, b := newProgram(t, mem, "/a"), newProgram(t, mem, "/b")
	a.plan.Weights, b.plan.Weights = nil, nil
	a.fields, a.rho, a.cost = []record.Field{rho, cost}, vector(x), y
	b.fields, b.rho, b.cost = []record.Field{cost, rho}, vector(y), x
	a.run(steps)
	b.run(steps)
	got := held(t, mem, compare.Options{})
	if v := verdict(got); v != "parted 22 at 0 in rho" || got.Differ != steps || got.Skipped != 0 {
		t.Errorf("%s, %d steps differ, %d were passed", v, got.Differ, got.Skipped)
	}
}
