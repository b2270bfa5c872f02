package s3

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestResume has one machine record, and another one go on from the store: step by step the digests are those of the run that was
// never interrupted, and the run that went on verifies by itself.
func TestResume(t *testing.T) {
	s := newStore(t)
	one := newMachine(t, s)
	one.usp(0, "309 stored", "run", "example:sunspots")
	id := one.latest()
	one.usp(0, "remote       5 snapshots sent, 0 waiting", "sink", "--status", "latest")
	one.usp(0, "remote     5 snapshots sent", "show", "latest")
	whole := one.digests("latest")
	if len(whole) != 309 {
		t.Fatalf("%d steps have digests, want 309", len(whole))
	}

	// As if the machine had been lost behind step 200.
	for _, key := range s.keys(t) {
		if strings.Contains(key, "00300-") || strings.Contains(key, "00309-") {
			s.remove(t, key)
		}
	}
	other := newMachine(t, s)
	r := other.usp(0, "continuing run "+id+" behind step 200", "run", "--resume", place+"/latest")
	if !strings.Contains(r.err, "no --key") {
		t.Errorf("whom it believes is not said:\n%s", r.err)
	}
	went := other.digests("latest")
	for step, sum := range went {
		if step <= 200 || whole[step] != sum {
			t.Errorf("step %v: %s, want %s", step, sum, whole[step])
		}
	}
	if len(went) != 109 {
		t.Errorf("%d steps were computed, want 109", len(went))
	}
	other.usp(0, "", "verify", "latest", "--deep")
	other.usp(0, "", "snapshot", "verify", "latest")
	other.usp(0, "continues  run "+id+" behind step 200", "show", "latest")
	other.usp(0, "109", "compare", filepath.Join(one.dir, "runs", id), "latest")
	other.usp(0, "nothing to resume", "run", "--resume", "latest")

	// What went on is in the store too, as a run of its own.
	if next := other.latest(); next == id {
		t.Errorf("the run that goes on has the id of the first one")
	} else {
		other.usp(0, "300", "snapshot", "ls", place+"/"+next)
	}
	if left, err := filepath.Glob(filepath.Join(other.dir, "runs", ".usp-remote-*")); err != nil || len(left) > 0 {
		t.Errorf("what was fetched is still there: %v %v", left, err)
	}
}
