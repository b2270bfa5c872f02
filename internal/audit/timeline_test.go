package audit_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
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
