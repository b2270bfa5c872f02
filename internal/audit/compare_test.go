package audit_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

func TestTimeline(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	line, err := audit.Open(mem, runDir)
	if err != nil {
		t.Fatal(err)
	}
	var steps, digests []string
	for r, err := range line.Records() {
		if err != nil {
			t.Fatal(err)
		}
		if got := math.Float64frombits(r.Words[2]); got != 1/float64(r.Step()+1) {
			t.Errorf("step %d has loss %v", r.Step(), got)
		}
		steps = append(steps, fmt.Sprintf("%d.%d", r.Generation, r.Step()))
	}
	for it, err := range line.Digests() {
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, fmt.Sprintf("%d.%d", it.Entry.Generation, it.Entry.Step))
	}
	var want, wantDigests []string
	for s := range 44 {
		if s >= 10 && s < 13 {
			continue // lost
		}
		at := fmt.Sprintf("%d.%d", min(s/20, 1), s) // resumed behind step 19
		want = append(want, at)
		if s%2 == 0 {
			wantDigests = append(wantDigests, at)
		}
	}
	if got := strings.Join(steps, " "); got != strings.Join(want, " ") {
		t.Errorf("records %s", got)
	}
	if got := strings.Join(digests, " "); got != strings.Join(wantDigests, " ") {
		t.Errorf("digests %s", got)
	}
	for range line.Records() {
		break // an iteration that is left early closes its files
	}
	if g := audit.Glance(mem, runDir); g.State != audit.Closed || g.Generation != 1 || g.End == nil || g.End.Stored != 24 || g.LastStep != 42 {
		t.Errorf("status %+v", g)
	}
}

// TestColdStart begins a second generation without a snapshot, once without a
// REWIND entry and once with one that names none, and leaves the manifest of a
// third that never came to be.
func TestColdStart(t *testing.T) {
	coldStart(t, nil, 4, "0.0 0.1 0.2 0.3 1.4 1.5 1.6 1.7")
	coldStart(t, &rundir.Resumed{}, 0, "1.0 1.1 1.2 1.3 1.4 1.5 1.6 1.7")
}

func coldStart(t *testing.T, resumed *rundir.Resumed, from uint64, want string) {
	t.Helper()
	mem := vfs.NewMem()
	f := closed(mem, func(*fixture) {})
	f.openLog()
	f.begin(1, resumed)
	f.emit(from, 8)
	f.end(digestlog.StatusClean)
	if _, err := rundir.WriteManifest(mem, f.dir, rundir.Manifest{
		RunID: runID, Generation: 2, Created: created, Schema: string(f.schema.Text()), Resumed: &rundir.Resumed{Generation: 1, Step: 1},
	}); err != nil {
		t.Fatal(err)
	}
	line, err := audit.Open(mem, runDir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r, err := range line.Records() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d.%d", r.Generation, r.Step()))
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("records %s, want %s", s, want)
	}
	if r := verify(t, mem); r.Verdict != audit.OK {
		t.Errorf("%v %v %v", r.Verdict, r.Integrity.Problems, r.Completeness.Tail)
	}
}

// pair makes two runs; change turns the second writer into another one.
func pair(change func(f *fixture), to uint64) vfs.FS {
	mem := vfs.NewMem()
	a := newFixture(mem)
	a.begin(0, nil)
	a.emit(0, 30)
	a.end(digestlog.StatusClean)
	must(mem.Rename("/runs", "/a"))
	b := newFixture(mem)
	change(b)
	b.begin(0, nil)
	b.emit(0, to)
	b.end(digestlog.StatusClean)
	must(mem.Rename("/runs", "/b"))
	return mem
}

func TestCompare(t *testing.T) {
	same := func(*fixture) {}
	later := func(f *fixture) {
		f.value = func(step uint64) float64 {
			if step >= 11 {
				return 2
			}
			return 1 / float64(step+1)
		}
	}
	fields := func(fs ...record.Field) func(*fixture) {
		return func(f *fixture) {
			s, err := record.NewSchema("other", append([]record.Field{{Name: "loss", Class: record.Metric}, {Name: "flags", Class: record.Flag, Type: record.Uint64}}, fs...)...)
			must(err)
			f.schema = s
		}
	}
	rho := record.Field{Name: "rho", Class: record.Digest, Len: 4}
	for _, tc := range []struct {
		name   string
		change func(f *fixture)
		to     uint64
		want   string // verdict exit common onlyA onlyB
		first  string
		note   string
	}{
		{"same", same, 30, "identical 0 15 0 0", "", ""},
		{"shorter", same, 20, "identical 0 10 5 0", "", ""},
		{"longer", same, 40, "identical 0 15 0 5", "", ""},
		{"other interval", func(f *fixture) { f.every = 3 }, 30, "identical 0 5 10 5", "", "digest interval 2 in A and 3 in B"},
		{"diverged", later, 30, "diverged 22 15 0 0", "12 rho", ""},
		{"field order", fields(record.Field{Name: "cost", Class: record.Digest}, rho), 0, "incomparable 2 0 15 0", "", ""},
		{"other fields", fields(record.Field{Name: "cost2", Class: record.Digest}, rho), 0, "incomparable 2 0 15 0", "", "field cost is in A only"},
		{"no field", fields(record.Field{Name: "other", Class: record.Digest}, record.Field{Name: "x", Class: record.Digest}), 0, "incomparable 2 0 0 0", "", "field other is in B only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fsys := pair(tc.change, tc.to)
			c, err := audit.Compare(context.Background(), fsys, "/a/"+runID, "/b/"+runID)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(c.Verdict, " ", c.Exit, " ", c.Common, " ", c.A.Only, " ", c.B.Only); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			first := ""
			if c.First != nil {
				first = fmt.Sprint(c.First.Step, " ", c.First.Field)
			}
			if first != tc.first {
				t.Errorf("first divergent %q, want %q", first, tc.first)
			}
			if !strings.Contains(strings.Join(c.Notes, "\n"), tc.note) {
				t.Errorf("notes %q, want %q among them", c.Notes, tc.note)
			}
		})
	}
}

// TestCompareResumed holds an interrupted and resumed run against one that was not.
func TestCompareResumed(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	must(mem.Rename("/runs", "/a"))
	b := newFixture(mem)
	b.begin(0, nil)
	b.emit(0, 44)
	b.end(digestlog.StatusClean)
	c, err := audit.Compare(context.Background(), mem, "/a/"+runID, runDir)
	if err != nil || c.Verdict != audit.Identical || c.B.Only != 2 || c.B.FirstOnly != 10 || c.A.Only != 0 {
		t.Errorf("%v %+v", err, c)
	}
	if _, err := audit.Compare(context.Background(), mem, "/a/"+runID, "/none"); err == nil {
		t.Error("compared with nothing")
	}
}

// TestCompareAllocations wants a comparison to keep nothing of the steps it has passed.
func TestCompareAllocations(t *testing.T) {
	measure := func(steps uint64) float64 {
		mem := vfs.NewMem()
		f := newFixture(mem)
		f.every = 1
		f.begin(0, nil)
		for s := uint64(0); s < steps; s += 100 {
			f.emit(s, s+100)
			f.commit()
		}
		f.end(digestlog.StatusClean)
		return testing.AllocsPerRun(1, func() {
			if _, err := audit.Compare(context.Background(), mem, runDir, runDir); err != nil {
				t.Fatal(err)
			}
		})
	}
	short, long := measure(200), measure(2200)
	if per := (long - short) / 2000; per > 8 { // decoding an entry allocates its digests; none of it is kept
		t.Errorf("%.1f allocations per step", per)
	}
}
