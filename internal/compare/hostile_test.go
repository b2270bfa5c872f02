package compare_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// A scribe writes logs that no recorder makes.
type scribe struct {
	t   testing.TB
	log *digestlog.Log
	gen uint32
	seq uint64
}

func newScribe(t testing.TB, fsys vfs.FS, dir string) *scribe {
	t.Helper()
	log, err := digestlog.Open(rundir.At(dir).Digests(), digestlog.Options{FS: fsys, RunID: runID, SegmentSize: 64 << 10, Now: func() time.Time { return time.Unix(0, 0) }})
	check(t, err)
	return &scribe{t: t, log: log}
}

func (s *scribe) append(e *digestlog.Entry) {
	s.t.Helper()
	_, err := s.log.Append(e)
	check(s.t, err)
}

// open begins a generation with a plan as text. resumed is the step that it goes on behind; nil: it does not say.
func (s *scribe) open(gen uint32, resumed *uint64, plan string) {
	s.t.Helper()
	s.gen, s.seq = gen, 0
	s.append(&digestlog.Entry{Kind: digestlog.KindOpen, Generation: gen, Resumed: resumed != nil, Ext: digestlog.AppendBlock(nil, digestlog.TagPlan, []byte(plan))})
	if resumed != nil {
		s.rewind(gen, *resumed)
	}
}

func (s *scribe) rewind(gen uint32, to uint64) {
	s.append(&digestlog.Entry{Kind: digestlog.KindRewind, Generation: gen, Target: to, SHA256: [32]byte{1}})
}

// step logs a step with digests that each begin with one of the bytes.
func (s *scribe) step(step uint64, ext []byte, digests ...byte) {
	s.t.Helper()
	e := digestlog.Entry{Kind: digestlog.KindStep, Generation: s.gen, Step: step, Seq: s.seq, Ext: ext}
	for _, b := range digests {
		e.Digests = append(e.Digests, [32]byte{b})
	}
	s.seq++
	s.append(&e)
}

func (s *scribe) end() {
	s.t.Helper()
	s.append(&digestlog.Entry{Kind: digestlog.KindEnd, Generation: s.gen, Status: digestlog.StatusClean})
	check(s.t, s.log.Sync())
	check(s.t, s.log.Close())
}

func planText(fields ...string) string {
	return "usp-plan v1\nevery 1\nlevels -\nfloor -960\nkey public\n" + strings.Join(fields, "\n") + "\n"
}

const (
	rhoLine    = "digest rho f64 1 - -"
	costLine   = "digest cost f64 1 - -"
	ladderPlan = "usp-plan v1\nevery 1\nlevels 6\nfloor -960\nkey public\ndigest rho f64 1 ladder -\n"
)

// judged compares /a and /b: verdict, or "contradiction".
func judged(t testing.TB, fsys vfs.FS) (string, *compare.Comparison) {
	t.Helper()
	got, err := compare.Compare(context.Background(), fsys, "/a", "/b", compare.Options{})
	switch {
	case errors.Is(err, compare.ErrContradiction):
		return "contradiction", nil
	case err != nil:
		t.Fatal(err)
	}
	return verdict(got), got
}

// What a log says against itself is an error, or makes the runs incomparable: never are they identical in what is left.
func TestHostileLogs(t *testing.T) {
	at := func(step uint64) *uint64 { return &step }
	one, both, swapped := planText(rhoLine), planText(rhoLine, costLine), planText(costLine, rhoLine)
	twice := planText(rhoLine, rhoLine)
	flag := planText(rhoLine, "flag x u64 1")
	words := func(w ...byte) []byte {
		b := make([]byte, 8*len(w))
		for i := range w {
			b[8*i] = w[i]
		}
		return digestlog.AppendBlock(nil, digestlog.TagInvariants, b)
	}
	nine := planText(rhoLine, "flag x u64 7", "flag y u64 2")
	keyed := strings.Replace(nine, "public", "0123456789abcdef", 1)
	for _, c := range []struct {
		name string
		a, b func(s *scribe)
		want string // verdict, or "contradiction"
		note string // among notes and reason
	}{
		{
			"a step that stands twice",
			func(s *scribe) { s.open(0, nil, one); s.step(1, nil, 1); s.step(2, nil, 2) },
			func(s *scribe) { s.open(0, nil, one); s.step(1, nil, 1); s.step(1, nil, 9); s.step(2, nil, 2) },
			"contradiction", "",
		},
		{
			"a step that hides those before it",
			func(s *scribe) { s.open(0, nil, one); s.step(1, nil, 1); s.step(math.MaxUint64, nil, 2) },
			func(s *scribe) {
				s.open(0, nil, one)
				s.step(1, nil, 1)
				s.step(math.MaxUint64, nil, 2)
				s.step(2, nil, 9)
			},
			"contradiction", "",
		},
		{
			"a step of a generation that was left",
			func(s *scribe) { s.open(0, nil, one); s.step(1, nil, 1); s.step(2, nil, 2) },
			func(s *scribe) {
				s.open(0, nil, one)
				s.step(1, nil, 1)
				s.open(1, at(1), one)
				s.step(2, nil, 2)
				s.gen = 0
				s.step(3, nil, 9)
			},
			"contradiction", "",
		},
		{
			"opened again with another plan",
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 1, 2) },
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 2, 1); s.open(0, nil, swapped) },
			"contradiction", "",
		},
		{
			"resumed behind two steps",
			func(s *scribe) { s.open(0, nil, one); s.step(1, nil, 1); s.step(2, nil, 2) },
			func(s *scribe) {
				s.open(0, nil, one)
				s.step(1, nil, 1)
				s.step(2, nil, 2)
				s.open(1, at(0), one)
				s.step(1, nil, 9)
				s.rewind(1, 7)
			},
			"contradiction", "",
		},
		{
			"fewer digests than planned",
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 1, 2) },
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 1) },
			"contradiction", "",
		},
		{
			"a plan that is none",
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 1, 2) },
			func(s *scribe) { s.open(0, nil, strings.Replace(both, "f64 1", "f64 99999999999999999999", 1)) },
			"contradiction", "",
		},
		{
			"a field that stands twice",
			func(s *scribe) { s.open(0, nil, twice); s.step(1, nil, 1, 2) },
			func(s *scribe) { s.open(0, nil, twice); s.step(1, nil, 1, 9) },
			"contradiction", "",
		},
		{
			"a field that a generation has not",
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 1, 2); s.open(1, at(1), one); s.step(2, nil, 3) },
			func(s *scribe) { s.open(0, nil, both); s.step(1, nil, 1, 2); s.step(2, nil, 3, 4) },
			"incomparable 2", "in 1 step of 2 only one of the runs has cost",
		},
		{
			"generations that have other fields",
			func(s *scribe) {
				s.open(0, nil, one)
				s.step(1, nil, 1)
				s.open(1, at(1), planText(costLine))
				s.step(2, nil, 2)
			},
			func(s *scribe) {
				s.open(0, nil, planText(costLine))
				s.step(1, nil, 8)
				s.open(1, at(1), one)
				s.step(2, nil, 9)
			},
			"incomparable 2", "in 2 steps of 2 only one of the runs has rho",
		},
		{
			"a last step that was overridden",
			func(s *scribe) { s.open(0, nil, one); s.step(math.MaxUint64, nil, 1) },
			func(s *scribe) {
				s.open(0, nil, one)
				s.step(math.MaxUint64, nil, 1)
				s.open(1, at(math.MaxUint64-1), one)
				s.step(math.MaxUint64, nil, 9)
			},
			"parted 22 at 18446744073709551615 in rho", "",
		},
		{
			"the first step and the last",
			func(s *scribe) { s.open(0, nil, one); s.step(5, nil, 1); s.step(math.MaxUint64, nil, 2) },
			func(s *scribe) { s.open(0, nil, one); s.step(5, nil, 1); s.step(math.MaxUint64, nil, 2) },
			"identical 0", "2 equal steps were passed by hashes",
		},
		{
			"an extension that is none",
			func(s *scribe) { s.open(0, nil, flag); s.step(1, words(1), 1) },
			func(s *scribe) { s.open(0, nil, flag); s.step(1, []byte{1, 2, 3, 4}, 1) },
			"identical 0", "flags and weights were not compared in 1 step",
		},
		{
			"invariants of another length",
			func(s *scribe) { s.open(0, nil, flag); s.step(1, words(1), 1) },
			func(s *scribe) { s.open(0, nil, flag); s.step(1, words(1, 2), 1) },
			"identical 0", "flags and weights were not compared in 1 step",
		},
		{
			"flags that only one has",
			func(s *scribe) {
				s.open(0, nil, planText(rhoLine, "flag x u64 1", "flag y u64 1"))
				s.step(1, words(1, 2), 1)
			},
			func(s *scribe) { s.open(0, nil, planText(rhoLine, "flag y u64 1")); s.step(1, words(3), 1) },
			"parted 22 at 1 in flag y", "flag x is not compared",
		},
		{
			"more flags than fit, and other keys",
			func(s *scribe) { s.open(0, nil, nine); s.step(1, words(1, 2, 3, 4, 5, 6, 7, 8), 1) },
			func(s *scribe) { s.open(0, nil, keyed); s.step(1, words(1, 2, 3, 4, 5, 6, 7, 9), 1) },
			"identical 0", "flag y[0], and flags behind it, are not compared",
		},
		{
			"more flags than fit",
			func(s *scribe) { s.open(0, nil, nine); s.step(1, words(1, 2, 3, 4, 5, 6, 7, 8), 1) },
			func(s *scribe) { s.open(0, nil, nine); s.step(1, words(1, 2, 3, 4, 5, 6, 7, 9), 1) },
			"parted 22 at 1 in flag y[0]", "",
		},
		{
			"ladders of another length",
			func(s *scribe) {
				s.open(0, nil, ladderPlan)
				s.step(1, digestlog.AppendBlock(nil, digestlog.TagLadder, make([]byte, 8)), 1)
			},
			func(s *scribe) {
				s.open(0, nil, ladderPlan)
				s.step(1, digestlog.AppendBlock(nil, digestlog.TagLadder, make([]byte, 7)), 9)
			},
			"parted 22 at 1 in rho", "nothing says how far",
		},
		{
			"nothing but a beginning",
			func(s *scribe) { s.open(0, nil, one) },
			func(s *scribe) { s.open(0, nil, one) },
			"incomparable 2", "no step",
		},
		{
			"one step",
			func(s *scribe) { s.open(0, nil, one); s.step(0, nil, 1) },
			func(s *scribe) { s.open(0, nil, one); s.step(0, nil, 1) },
			"identical 0", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			for dir, write := range map[string]func(*scribe){"/a": c.a, "/b": c.b} {
				s := newScribe(t, mem, dir)
				write(s)
				s.end()
			}
			is, got := judged(t, mem)
			if is != c.want {
				t.Fatalf("%s, want %s", is, c.want)
			}
			if got != nil && !strings.Contains(strings.Join(append(slices.Clone(got.Notes), got.Reason), "\n"), c.note) {
				t.Errorf("want a note %q in %q %s", c.note, got.Notes, got.Reason)
			}
		})
	}
}

// That a run goes on, or broke off, is said.
func TestNotEnded(t *testing.T) {
	mem := vfs.NewMem()
	newProgram(t, mem, "/a").run(10)
	b := newProgram(t, mem, "/b")
	b.begin(0, nil)
	b.steps(0, 5)
	check(t, b.log.Sync())
	is, got := judged(t, mem)
	notes := strings.Join(got.Notes, "\n")
	if is != "identical 0" || got.Common != 5 || got.A.Only != 5 || !strings.Contains(notes, "B has not ended") || strings.Contains(notes, "A has not ended") {
		t.Errorf("%s, %d common steps, %d in A only: %s", is, got.Common, got.A.Only, notes)
	}
}

// FuzzCompare compares logs that hold whatever entries there are. Runs that are called identical have the same digests at every step that
// both have, in the newest generation that has it.
func FuzzCompare(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 9}, uint8(1))
	f.Add([]byte{0, 0, 1, 1, 2, 0, 1, 3, 1, 1, 1, 9, 0, 0, 1, 1}, uint8(3))
	f.Fuzz(func(t *testing.T, script []byte, own uint8) {
		mem := vfs.NewMem()
		var logs [2][]digestlog.Entry
		for i, dir := range []string{"/a", "/b"} {
			s := newScribe(t, mem, dir)
			logs[i] = s.play(script, i == 1, own)
			s.end()
		}
		is, got := judged(t, mem)
		if is != "identical 0" {
			return
		}
		a, b := timeline(logs[0]), timeline(logs[1])
		common := uint64(0)
		for step, e := range a {
			other, ok := b[step]
			if !ok {
				continue
			}
			if common++; !slices.Equal(e.Digests, other.Digests) {
				t.Fatalf("identical, and step %d has %x and %x", step, e.Digests, other.Digests)
			}
		}
		if common != got.Common {
			t.Fatalf("%d common steps, want %d", got.Common, common)
		}
	})
}

// fuzzPlans are plans whose entries have one digest or two.
var fuzzPlans = []string{planText(rhoLine), planText(rhoLine, costLine), planText(costLine, rhoLine), ladderPlan, planText(rhoLine, "flag x u64 1"), "usp-plan v1\n"}

// play logs what the bytes of a script say. The second of two logs has others in the places that own says.
func (s *scribe) play(script []byte, second bool, own uint8) (list []digestlog.Entry) {
	next := func() byte {
		if len(script) == 0 {
			return 0
		}
		b := script[0]
		script = script[1:]
		return b
	}
	put := func(e digestlog.Entry) {
		list = append(list, e)
		s.append(&e)
	}
	for n := 0; len(script) > 0 && n < 200; n++ {
		kind, gen, x, y := next(), uint32(next()%4), next(), next()
		if second && own != 0 && n%int(own) == int(own)-1 {
			y ^= 1
		}
		step := uint64(x)
		if x > 250 {
			step = math.MaxUint64 - uint64(255-x)
		}
		switch kind % 8 {
		case 0:
			put(digestlog.Entry{Kind: digestlog.KindOpen, Generation: gen, Ext: digestlog.AppendBlock(nil, digestlog.TagPlan, []byte(fuzzPlans[int(x)%len(fuzzPlans)]))})
		case 1:
			put(digestlog.Entry{Kind: digestlog.KindRewind, Generation: gen, Target: step, SHA256: [32]byte{y & 1}})
		case 2:
			put(digestlog.Entry{Kind: digestlog.KindLost, Generation: gen, From: step / 2, To: step/2 + 1, Reason: record.LostOverrun})
		case 3:
			put(digestlog.Entry{Kind: digestlog.KindSnapshot, Generation: gen, Step: step, Name: "x.snap"})
		default:
			e := digestlog.Entry{Kind: digestlog.KindStep, Generation: gen, Step: step, Seq: uint64(n), Digests: [][32]byte{{y & 3}, {y >> 2 & 3}}[:1+kind>>3&1]}
			if kind&16 != 0 {
				e.Ext = digestlog.AppendBlock(nil, digestlog.Tag(1+y>>4&1), make([]byte, y>>4))
			}
			put(e)
		}
	}
	return list
}

// timeline is what a run has of each step: of the newest generation that has it, but for steps that a later one has overridden.
func timeline(list []digestlog.Entry) map[uint64]digestlog.Entry {
	begins, opened, last := map[uint32]uint64{}, map[uint32]bool{}, uint32(0)
	for _, e := range list {
		last = max(last, e.Generation)
		_, known := begins[e.Generation]
		switch {
		case e.Kind == digestlog.KindOpen:
			opened[e.Generation] = true
		case e.Kind == digestlog.KindRewind && e.SHA256 == [32]byte{}:
			begins[e.Generation] = 0
		case e.Kind == digestlog.KindRewind && e.Target < math.MaxUint64:
			begins[e.Generation] = e.Target + 1
		case e.Kind == digestlog.KindRewind:
			delete(begins, e.Generation)
			opened[e.Generation] = false // it overrides nothing
		case e.Kind == digestlog.KindStep && !known:
			begins[e.Generation] = e.Step
		}
	}
	out := map[uint64]digestlog.Entry{}
	for _, e := range list {
		counts := e.Kind == digestlog.KindStep
		for g := e.Generation + 1; g <= last; g++ {
			begin, ok := begins[g]
			counts = counts && !(ok && opened[g] && e.Step >= begin)
		}
		if counts {
			out[e.Step] = e
		}
	}
	return out
}
