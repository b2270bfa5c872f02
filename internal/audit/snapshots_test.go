package audit

import (
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// What the log has and the listing before it had not is missing only where it is not there, and only of a run that nobody
// records it is missing because the listing says so.
func TestPublishedSinceTheListing(t *testing.T) {
	mem := vfs.NewMem()
	dir := rundir.At("run")
	if err := vfs.MkdirAll(mem, dir.Snapshots(), 0o755); err != nil {
		t.Fatal(err)
	}
	const there, gone = "00000000000000000020-0000.snap", "00000000000000000040-0000.snap"
	if err := vfs.Create(mem, dir.Snapshot(there), 0o600, func(vfs.File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, recording := range []bool{true, false} {
		j := &judge{ctx: t.Context(), fsys: mem, dir: dir, book: newLedger(), opt: Options{MaxProblems: 10}}
		j.InProgress = recording
		j.book.snapshots[there] = logged{Entry: digestlog.Entry{Step: 20}}
		j.book.snapshots[gone] = logged{Entry: digestlog.Entry{Step: 40}}
		if err := j.checkSnapshots(); err != nil {
			t.Fatal(err)
		}
		want := 2
		if recording {
			want = 1
		}
		if got := j.Integrity.Problems; len(got) != want || recording && got[0].File != "snapshots/"+gone {
			t.Errorf("recording %v: %v", recording, got)
		}
	}
}
