package recorder_test

import (
	"testing"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// reuseRun is a generation with n snapshots, one a step, of a state most of which stays.
func reuseRun(t testing.TB, fsys vfs.FS, c ringConfig, limit, n int) {
	t.Helper()
	c.capacity = 256 << 10
	p := newProducer(t, c)
	o := options(fsys)
	o.Snapshot.Reuse = limit
	x := start(t, p.Path(), o)
	for i := range n {
		p.emit(1)
		s := append(state(p.step), snapshot.Section{Name: "history", Data: make([]byte, 100<<10)})
		if !p.Stage(p.step, 1, snapshot.SectionsSize(s), func(dst []byte) { snapshot.AppendSections(dst[:0], s) }) {
			t.Fatal("the snapshot was dropped")
		}
		p.waitFor(uint64(i + 1))
	}
	check(t, p.Close(true))
	x.finish()
}

// What did not change is not written again, and what is referred to is not pruned.
func TestReuse(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	reuseRun(t, m, ringConfig{}, 2, 7) // whole: 1, 4, 7
	dir := rundir.At(runDir).Snapshots()
	equal(t, "snapshots", names(t, m, dir), snapshots(4, 6, 7))
	infos, err := snapshot.List(m, dir)
	check(t, err)
	for i, large := range []bool{true, false, true} {
		if (infos[i].Size > 100<<10) != large || (len(infos[i].Bases) == 0) != large {
			t.Errorf("snapshot %s: %d bytes, bases %v", infos[i].Name, infos[i].Size, infos[i].Bases)
		}
	}
	verifyOK(t, m)

	// 6 does not load without 4; 7 does not need it.
	check(t, m.Rename(snapshotPath(4, 0), "/away"))
	rep := verify(t, m)
	if len(rep.Integrity.Problems) != 2 {
		t.Fatalf("one is gone and one refers to it:\n%s", describe(rep))
	}
	wantFound(t, m, 7, 0, 0)
	check(t, m.Rename(snapshotPath(7, 0), "/newest"))
	if found, rejected := load(t, m); found != nil || len(rejected) != 3 {
		t.Fatalf("found %v, rejected %v", found, rejected)
	} else {
		wantText(t, rejected[1], snapshot.FileName(6, 0), snapshot.FileName(4, 0), `section "history"`)
	}
	check(t, m.Rename("/away", snapshotPath(4, 0)))
	wantFound(t, m, 6, 0, 1)
}

// What an abandoned timeline refers to stays, as it does itself.
func TestReuseAbandoned(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	reuseRun(t, m, ringConfig{}, 7, 4)
	equal(t, "snapshots", names(t, m, rundir.At(runDir).Snapshots()), snapshots(1, 2, 3, 4))
	infos, err := snapshot.List(m, rundir.At(runDir).Snapshots())
	check(t, err)
	sums, err := snapshot.Verify(m, snapshotPath(1, 0), nil)
	check(t, err)
	to := &rundir.Resumed{Generation: 0, Step: infos[0].Step, SnapshotSHA256: sums.SHA256}
	reuseRun(t, m, ringConfig{generation: 1, resumed: to, after: 1}, 1, 6)
	verifyOK(t, m)
	for _, want := range snapshots(1, 2, 3, 4) {
		if !exists(m, rundir.At(runDir).Snapshot(want)) {
			t.Errorf("%s was removed", want)
		}
	}
}
