package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

// runWithSnapshots is a closed generation 0 with a snapshot every ten steps.
func runWithSnapshots(t testing.TB, n int) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	o := options(m)
	o.Snapshot.Retention.KeepLast = n
	x := start(t, p.Path(), o)
	for i := range n {
		p.emit(10)
		p.stage()
		p.waitFor(uint64(i + 1))
	}
	check(t, p.Close(true))
	x.finish()
	verifyOK(t, m)
	return m
}

// damage flips a bit in the middle of a file and returns how to undo that.
func damage(t testing.TB, m *vfs.Mem, path string) (undo func()) {
	t.Helper()
	flip := func() {
		t.Helper()
		check(t, m.Chmod(path, 0o600))
		f, err := m.OpenFile(path, os.O_RDWR, 0)
		check(t, err)
		defer f.Close()
		info, err := f.Stat()
		check(t, err)
		b := make([]byte, 1)
		_, err = f.ReadAt(b, info.Size()/2)
		check(t, err)
		b[0] ^= 1
		_, err = f.WriteAt(b, info.Size()/2)
		check(t, err)
	}
	flip()
	return flip
}

func snapshotPath(step uint64, generation uint32) string {
	return rundir.At(runDir).Snapshot(snapshot.FileName(step, generation))
}

// load is NewestSnapshot with what it says of those it rejects.
func load(t testing.TB, m vfs.FS) (*recorder.Found, []error) {
	t.Helper()
	var rejected []error
	found, err := recorder.NewestSnapshot(m, runDir, func(err error) { rejected = append(rejected, err) })
	if err != nil && !errors.Is(err, recorder.ErrNoSnapshot) || (err == nil) != (found != nil) {
		t.Fatalf("found %v, error %v", found, err)
	}
	return found, rejected
}

func wantFound(t testing.TB, m vfs.FS, step uint64, generation uint32, rejected int) {
	t.Helper()
	found, errs := load(t, m)
	if found == nil || found.Meta.Step != step || found.Meta.Generation != generation || len(errs) != rejected {
		t.Fatalf("want step %d of generation %d and %d rejected; found %+v, rejected %v", step, generation, rejected, found, errs)
	}
	if want := fmt.Sprint("state after ", step); string(found.Sections[0].Data) != want {
		t.Fatalf("the snapshot of step %d holds %q", step, found.Sections[0].Data)
	}
}

func TestNewestSnapshot(t *testing.T) {
	m := runWithSnapshots(t, 3)
	wantFound(t, m, 30, 0, 0)

	undo := damage(t, m, snapshotPath(30, 0))
	wantFound(t, m, 20, 0, 1)
	_, errs := load(t, m)
	wantText(t, errs[0], "step 30", snapshot.FileName(30, 0))
	undo()

	check(t, m.Rename(snapshotPath(30, 0), "/elsewhere"))
	wantFound(t, m, 20, 0, 1)
	check(t, m.Link(snapshotPath(20, 0), snapshotPath(30, 0))) // a good snapshot under another's name
	wantFound(t, m, 20, 0, 1)
	check(t, m.Remove(snapshotPath(30, 0)))
	check(t, m.Remove(snapshotPath(20, 0)))
	check(t, m.Remove(snapshotPath(10, 0)))
	if found, errs := load(t, m); found != nil || len(errs) != 3 {
		t.Fatalf("found %v, rejected %v", found, errs)
	}
	if _, err := recorder.NewestSnapshot(vfs.NewMem(), runDir, nil); !errors.Is(err, recorder.ErrNoSnapshot) {
		t.Fatalf("without a run: %v", err)
	}
}

// A snapshot that no log entry names is never loaded, and set aside by the next recorder.
func TestUnloggedSnapshot(t *testing.T) {
	m := runWithSnapshots(t, 2)
	check(t, m.Link(snapshotPath(10, 0), snapshotPath(40, 0)))
	wantFound(t, m, 20, 0, 0)
	resume(t, m, func(p *producer) { p.emit(5) }, 1)
	if !exists(m, snapshotPath(40, 0)+rundir.OrphanSuffix) || exists(m, snapshotPath(40, 0)) {
		t.Fatal(names(t, m, rundir.At(runDir).Snapshots()))
	}
	verifyOK(t, m)
}

// What a resume went back behind is on an abandoned timeline: its snapshots are never chosen, do not count as newer than
// what the run goes on from, and are left alone.
func TestAbandonedTimeline(t *testing.T) {
	m := runWithSnapshots(t, 3)
	undo := damage(t, m, snapshotPath(30, 0))
	p := newProducer(t, ringConfig{generation: 1, resumed: newest(t, m), after: 20})
	x := start(t, p.Path(), options(m)) // keeps two
	p.emit(2)
	p.waitFor(0)
	undo()
	wantFound(t, m, 20, 0, 0) // although 30 is whole again, and generation 1 has no snapshot yet
	for i := range uint64(3) {
		p.stage()
		p.waitFor(i + 1)
		wantFound(t, m, 22+2*i, 1, 0)
		p.emit(2)
	}
	check(t, p.Close(true))
	x.finish()
	verifyOK(t, m)
	for path, want := range map[string]bool{
		snapshotPath(10, 0): false, snapshotPath(20, 0): false, snapshotPath(22, 1): false, // given up
		snapshotPath(24, 1): true, snapshotPath(26, 1): true, // the two newest
		snapshotPath(30, 0): true, // abandoned
	} {
		if exists(m, path) != want {
			t.Errorf("%s: there: %v", path, !want)
		}
	}
	progress, err := recorder.LastStep(m, runDir)
	check(t, err)
	if progress != (recorder.Progress{Generation: 1, Step: 28, Status: digestlog.StatusClean}) {
		t.Errorf("%+v", progress)
	}
}

// A cold start leaves nothing of what was before it to continue from, not even a snapshot of step 0.
func TestColdStart(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), options(m))
	p.stage() // of step 0
	p.emit(5)
	p.stage()
	p.waitFor(2)
	check(t, p.Close(true))
	x.finish()
	wantFound(t, m, 5, 0, 0)
	p = newProducer(t, ringConfig{generation: 1, resumed: &rundir.Resumed{}})
	x = start(t, p.Path(), options(m))
	if found, errs := load(t, m); found != nil || len(errs) > 0 {
		t.Fatalf("found %+v, rejected %v", found, errs)
	}
	p.emit(3)
	p.stage()
	p.waitFor(1)
	wantFound(t, m, 3, 1, 0)
	check(t, p.Close(true))
	x.finish()
	verifyOK(t, m)
}

func TestRecover(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	live := filepath.Dir(p.Path())
	x := start(t, p.Path(), options(m))
	p.emit(10)
	p.waitFor(0)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := recorder.Recover(ctx, runDir, live, options(m))
	wantErr(t, err, recorder.ErrRunning)
	x.cancel()
	x.wait()
	p.emit(10) // only in the ring
	dead, path := p.die(t)

	gone := m.Crash(nil, vfs.KeepAll)
	last, err := recorder.Recover(t.Context(), runDir, t.TempDir(), options(gone))
	check(t, err)
	want := recorder.Last{RunID: runID, Schema: testSchema(t).Sum(), Status: digestlog.StatusCrashed}
	if last != want {
		t.Fatalf("%+v", last)
	}
	if g := verifyOK(t, gone).Completeness.Generations[0]; g.Stored != 10 || g.EmittedKnown {
		t.Fatalf("without the ring: %+v", g)
	}

	last, err = recorder.Recover(t.Context(), runDir, dead, options(m))
	check(t, err)
	if last != want {
		t.Fatalf("%+v", last)
	}
	noRing(t, path)
	if g := verifyOK(t, m).Completeness.Generations[0]; g.Stored != 20 || !g.EmittedKnown {
		t.Fatalf("with the ring: %+v", g)
	}

	before := snapshotOf(t, m)
	_, err = recorder.Recover(t.Context(), runDir, dead, options(m))
	check(t, err)
	equal(t, "files of a closed run", snapshotOf(t, m), before)
}

// snapshotOf lists a run directory's files with what changes when they are written.
func snapshotOf(t testing.TB, m *vfs.Mem) []string {
	t.Helper()
	var out []string
	dir := rundir.At(runDir)
	for _, d := range []string{dir.Path(), dir.Telemetry(), dir.Digests(), dir.Snapshots()} {
		list, err := m.ReadDir(d)
		check(t, err)
		for _, e := range list {
			info, err := e.Info()
			check(t, err)
			if !e.IsDir() {
				out = append(out, fmt.Sprint(e.Name(), info.Size(), info.Mode(), info.ModTime()))
			}
		}
	}
	return out
}

func TestRecoverRefuses(t *testing.T) {
	m := vfs.NewMem()
	_, err := recorder.Recover(t.Context(), runDir, t.TempDir(), options(m))
	wantErr(t, err, os.ErrNotExist, "manifest.json")

	m = runWithSnapshots(t, 1)
	check(t, m.Rename(runDir, "/runs/renamed"))
	_, err = recorder.Recover(t.Context(), "/runs/renamed", t.TempDir(), options(m))
	wantText(t, err, "/runs/renamed", runID, "rename it")
}

func TestPrune(t *testing.T) {
	m := runWithSnapshots(t, 5)
	o := options(m) // keeps two
	given := snapshots(10, 20, 30)
	before := snapshotOf(t, m)
	got, err := recorder.Prune(runDir, o, true)
	check(t, err)
	equal(t, "dry", got, given)
	equal(t, "files after a dry run", snapshotOf(t, m), before)

	// Killed between the log and the files: the next one finishes.
	signed := func(op vfs.Op) bool { return op.Kind == vfs.OpRename && op.Name == rundir.At(runDir).Head() }
	crashed := m.Crash(nil, vfs.KeepAll)
	if _, err := recorder.Prune(runDir, options(dieAfter(crashed, signed)), false); err == nil {
		t.Fatal("the removal was to fail")
	}
	equal(t, "snapshots that are still there", names(t, crashed, rundir.At(runDir).Snapshots()), snapshots(10, 20, 30, 40, 50))
	verifyOK(t, crashed)
	got, err = recorder.Prune(runDir, options(crashed), false)
	check(t, err)
	equal(t, "given up the second time", got, nil)
	equal(t, "snapshots", names(t, crashed, rundir.At(runDir).Snapshots()), snapshots(40, 50))

	got, err = recorder.Prune(runDir, o, false)
	check(t, err)
	equal(t, "given up", got, given)
	equal(t, "snapshots", names(t, m, rundir.At(runDir).Snapshots()), snapshots(40, 50))
	verifyOK(t, m)
	logged, err := recorder.LoggedSnapshots(m, runDir)
	check(t, err)
	if _, ok := logged[snapshot.FileName(50, 0)]; !ok || len(logged) != 2 {
		t.Fatalf("logged: %v", logged)
	}
	before = snapshotOf(t, m)
	if got, err = recorder.Prune(runDir, o, false); err != nil || len(got) > 0 {
		t.Fatalf("a second time: %v, %v", got, err)
	}
	equal(t, "files after nothing to do", snapshotOf(t, m), before)
	resume(t, m, func(p *producer) { p.emit(5) }, 1)
	verifyOK(t, m)
}

// A recorder that was killed between pruning a snapshot and giving its state's area back leaves a state that was saved and given up. The next
// one does not save it again: killed in the middle of that, it would leave another file than the log has under the name.
func TestPrunedStateStillStaged(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{areas: 3})
	for range 3 {
		p.emit(10)
		if !p.stage() {
			t.Fatal("no area for a state")
		}
	}
	_, path := p.die(t) // all three areas are taken in it
	var mu sync.Mutex
	var crashed *vfs.Mem
	m.SetHook(func(op vfs.Op) {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == vfs.OpRemove && op.Name == snapshotPath(10, 0) && crashed == nil {
			crashed = m.Crash(nil, vfs.DropAll)
		}
	})
	check(t, p.Close(true))
	_, err := runToEnd(t, p.Path(), options(m))
	check(t, err)
	equal(t, "snapshots at the crash", names(t, crashed, rundir.At(runDir).Snapshots()), snapshots(10, 20, 30))

	again := false
	in := dieAfter(crashed, func(op vfs.Op) bool {
		again = again || op.Kind == vfs.OpLink && op.Name == snapshotPath(10, 0)
		return again
	})
	if _, err := runToEnd(t, path, options(in)); err != nil || again {
		t.Errorf("saved again: %v, %v; then the run verifies as %v", again, err, verify(t, crashed).Verdict)
	}
	equal(t, "snapshots", names(t, crashed, rundir.At(runDir).Snapshots()), snapshots(20, 30))
	verifyOK(t, crashed)
}

func TestPruneRefuses(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), options(m))
	_, err := recorder.Prune(runDir, options(m), false)
	wantErr(t, err, vfs.ErrLocked)
	x.cancel()
	x.wait()
	_, err = recorder.Prune(runDir, options(m), false)
	wantErr(t, err, recorder.ErrNotEnded)
	wantText(t, err, runID+": the run has not ended: its recorder prunes")
}
