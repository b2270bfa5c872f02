package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/dchest/siphash"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const planText = `usp-plan v1
every 7
levels 6 26 50
floor -960
key public
digest rho f64 4 ladder simplex
digest big f64 2000 - -
digest cost f32 1 ladder -
flag flags u64 2
`

func planSchema(t testing.TB) *Schema {
	return mustSchema(t,
		Field{Name: "flags", Class: Flag, Type: Uint64, Len: 2},
		Field{Name: "loss", Class: Metric},
		Field{Name: "rho", Class: Digest, Len: 4},
		Field{Name: "big", Class: Digest, Len: 2000},
		Field{Name: "cost", Class: Digest, Type: Float32},
	)
}

func planOptions() PlanOptions {
	return PlanOptions{Every: 7, Levels: []int{6, 26, 50}, Floor: DefaultFloor, Key: PublicAuditKey(), Weights: []string{"rho", "weights"}}
}

func mustPlan(t testing.TB, s *Schema, o PlanOptions) *Plan {
	t.Helper()
	p, err := NewPlan(s, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlanText(t *testing.T) {
	p := mustPlan(t, planSchema(t), planOptions())
	if diff := cmp.Diff(planText, string(p.Text())); diff != "" {
		t.Error(diff)
	}
	back, err := ParsePlan([]byte(planText))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back); diff != "" {
		t.Error(diff)
	}
	if p.LadderSize() != 3*4*(5+2) || p.InvariantsSize() != 1+16 || p.FlagWords() != 2 {
		t.Errorf("ladders of %d bytes, invariants of %d, %d flag words", p.LadderSize(), p.InvariantsSize(), p.FlagWords())
	}
	keyed := planOptions()
	keyed.Key = NewAuditKey([]byte("secret"))
	if text := string(mustPlan(t, planSchema(t), keyed).Text()); strings.Contains(text, "public") || strings.Contains(text, "secret") {
		t.Errorf("the plan with a key: %s", text)
	}
}

func TestPlanRefusals(t *testing.T) {
	for _, levels := range [][]int{{0}, {54}, {6, 6}, {10, 6}, {-2}, {8}, {6, 7}} {
		o := planOptions()
		o.Levels = levels
		if _, err := NewPlan(planSchema(t), o); !errors.Is(err, ErrPlan) {
			t.Errorf("levels %v: %v", levels, err)
		}
	}
	for _, c := range []struct{ old, new string }{
		{"every 7", "every 0"}, {"every 7", "every 07"}, {"levels 6 26 50", "levels"}, {"levels 6 26 50", "levels 6 26 51"}, {"levels 6 26 50", "levels 6 - 50"},
		{"levels 6 26 50", "levels -"}, {"floor -960", "floor 1"}, {"key public", "key secret"}, {"key public", "key 0000000000000000"},
		{"2000 - -", "2000 ladder -"}, {"2000 - -", "0 - -"}, {"f32", "f16"}, {"flag flags u64 2", "flag Flags u64 2"}, {"usp-plan v1", "usp-plan v2"},
		{"every 7\nlevels 6 26 50", "levels 6 26 50\nevery 7"}, {"u64 2\n", "u64 2\nflag flags u64 2\n"}, {"u64 2\n", "u64 2"}, {"u64 2\n", "u64 2\n\n"},
	} {
		text := strings.Replace(planText, c.old, c.new, 1)
		if _, err := ParsePlan([]byte(text)); !errors.Is(err, ErrPlan) {
			t.Errorf("%q for %q: %v", c.new, c.old, err)
		}
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add([]byte(planText))
	f.Add([]byte(strings.Replace(planText, "public", "0123456789abcdef", 1)))
	f.Add([]byte("usp-plan v1\nevery 1\nlevels -\nfloor 0\nkey public\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePlan(text)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Text(), text) {
			t.Errorf("accepted %q, which is written %q", text, p.Text())
		}
		for i := range p.Digests {
			p.Ladder(make([]byte, p.LadderSize()), i) // must not panic
		}
		p.Invariants(make([]byte, p.InvariantsSize()), new(Invariants))
	})
}

// fill puts vectors into a payload of planSchema.
func fill(s *Schema, rho []float64, cost float64, flags ...uint64) []uint64 {
	p := make([]uint64, s.Words())
	set := func(name string, words []uint64) {
		i, _ := s.Index(name)
		copy(p[s.Offset(i):], words)
	}
	set("rho", bitsOf(rho))
	set("cost", bitsOf([]float64{cost}))
	set("flags", flags)
	return p
}

func TestInvariants(t *testing.T) {
	s := planSchema(t)
	p := mustPlan(t, s, planOptions())
	r := NewProber(s, p, PublicAuditKey())
	for _, c := range []struct {
		rho           []float64
		sum, negative bool
	}{
		{[]float64{.25, .25, .25, .25}, false, false},
		{[]float64{.1, .2, .3, .4}, false, false},
		{[]float64{.1, .2, .3, .4 + 1e-9}, false, false},
		{[]float64{.1, .2, .3, .4 + 1e-5}, true, false},
		{[]float64{-.1, .3, .4, .4}, false, true},
		{[]float64{math.NaN(), .3, .4, .4}, true, true},
		{[]float64{math.Inf(1), .3, .4, .4}, true, false},
		{[]float64{0, 0, 0, 0}, true, false},
	} {
		var inv Invariants
		if !p.Invariants(r.AppendInvariants(nil, fill(s, c.rho, 1, 5, 9)), &inv) {
			t.Fatalf("%v: the invariants are not of their plan", c.rho)
		}
		if (inv.Sum == 1) != c.sum || (inv.NonNegative == 1) != c.negative || !slices.Equal(inv.Flags, []uint64{5, 9}) {
			t.Errorf("%v: %+v", c.rho, inv)
		}
	}
	b := r.AppendInvariants(nil, fill(s, []float64{1, 0, 0, 0}, 1))
	b[0] |= 4
	if p.Invariants(b, new(Invariants)) || p.Invariants(b[1:], new(Invariants)) {
		t.Error("invariants of an unknown form were taken")
	}
}

// Flags beyond the eighth word are in the last one, as a hash.
func TestManyFlags(t *testing.T) {
	s := mustSchema(t, Field{Name: "a", Class: Flag, Type: Uint64, Len: 6}, Field{Name: "b", Class: Flag, Type: Uint64, Len: 6}, Field{Name: "rho", Class: Digest})
	p := mustPlan(t, s, PlanOptions{})
	r := NewProber(s, p, PublicAuditKey())
	words := func(change int) []uint64 {
		payload := make([]uint64, s.Words())
		if change >= 0 {
			payload[headWords+change]++
		}
		var inv Invariants
		if !p.Invariants(r.AppendInvariants(nil, payload), &inv) || len(inv.Flags) != MaxFlagWords {
			t.Fatalf("flags %v", inv.Flags)
		}
		return inv.Flags
	}
	same := words(-1)
	for i := range 12 {
		if slices.Equal(words(i), same) {
			t.Errorf("a change of flag word %d is not seen", i)
		}
	}
}

// The agreement of two entries' fields is that of their vectors, whatever else the entries have.
func TestPlanAgreement(t *testing.T) {
	s := planSchema(t)
	rapid.Check(t, func(t *rapid.T) {
		oa, ob := planOptions(), planOptions()
		oa.Levels, ob.Levels = append(drawLevels(t), MaxLevel), append(drawLevels(t), MaxLevel)
		oa.Levels, ob.Levels = slices.Compact(oa.Levels), slices.Compact(ob.Levels)
		pa, errA := NewPlan(s, oa)
		pb, errB := NewPlan(s, ob)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		rho := []float64{.1, .2, .3, .4}
		moved := slices.Clone(rho)
		bits := rapid.IntRange(8, 48).Draw(t, "bits")
		moved[rapid.IntRange(0, 3).Draw(t, "element")] *= 1 + math.Exp2(-float64(bits))
		a := NewProber(s, pa, PublicAuditKey()).AppendLadders(nil, fill(s, rho, 7))
		b := NewProber(s, pb, PublicAuditKey()).AppendLadders(nil, fill(s, moved, 7))
		want := 0 // the highest level of both that must be seen to agree
		for _, l := range oa.Levels {
			if slices.Contains(ob.Levels, l) && l <= bits-5 {
				want = l
			}
		}
		if got, ok := pa.Agreement(a, 0, pb, b, 0); !ok || got > bits || got < want {
			t.Fatalf("rho: %d bits %v, want %d to %d", got, ok, want, bits)
		}
		if got, ok := pa.Agreement(a, 2, pb, b, 2); !ok || got != MaxLevel {
			t.Fatalf("cost: %d bits %v, want %d", got, ok, MaxLevel)
		}
		if _, ok := pa.Agreement(a, 1, pb, b, 1); ok {
			t.Fatal("a field without a ladder has an agreement")
		}
		if _, ok := pa.Agreement(a[1:], 0, pb, b, 0); ok {
			t.Fatal("ladders of another length have an agreement")
		}
	})
	other := planOptions()
	other.Key = NewAuditKey([]byte("x"))
	a, b := mustPlan(t, s, planOptions()), mustPlan(t, s, other)
	la := NewProber(s, a, PublicAuditKey()).AppendLadders(nil, fill(s, []float64{1, 0, 0, 0}, 1))
	if _, ok := a.Agreement(la, 0, b, la, 0); ok {
		t.Error("ladders of two keys have an agreement")
	}
}

// The last flag word, where there are more than eight, is the hash that the format page says.
func TestHashOfFlags(t *testing.T) {
	words, key := []uint64{7, 8, 9}, NewAuditKey([]byte("x"))
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	if got, want := key.hash(words), siphash.Hash(key.k0, key.k1, b); got != want {
		t.Errorf("%x, want %x", got, want)
	}
}

func BenchmarkProber(b *testing.B) {
	s := mustSchema(b, Field{Name: "flags", Class: Flag, Type: Uint64}, Field{Name: "rho", Class: Digest, Len: 5}, Field{Name: "cost", Class: Digest})
	p := mustPlan(b, s, PlanOptions{Levels: DefaultLevels(), Floor: DefaultFloor, Key: PublicAuditKey(), Weights: []string{"rho"}})
	r, payload := NewProber(s, p, PublicAuditKey()), make([]uint64, s.Words())
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = r.AppendLadders(dst[:0], payload)
		dst = r.AppendInvariants(dst, payload)
	}
}
