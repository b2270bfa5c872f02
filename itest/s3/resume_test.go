package s3

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
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
	s.lose(t, id, 300, 309)
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
	other.usp(0, "109 common steps", "compare", filepath.Join(one.dir, "runs", id), "latest")
	other.usp(0, "nothing to resume", "run", "--resume", "latest")

	// What went on is in the store too, as a run of its own.
	if next := other.latest(); next == id {
		t.Errorf("the run that goes on has the id of the first one")
	} else {
		other.usp(0, "300   0           cadence", "snapshot", "ls", place+"/"+next)
	}
	if left, err := filepath.Glob(filepath.Join(other.dir, "runs", ".usp-remote-*")); err != nil || len(left) > 0 {
		t.Errorf("what was fetched is still there: %v %v", left, err)
	}
}

// TestInput goes on with the input that the run was begun with, wherever it is now, and with no other.
func TestInput(t *testing.T) {
	s := newStore(t)
	one := newMachine(t, s)
	series := func(n int, change int) []byte {
		var b bytes.Buffer
		fmt.Fprintln(&b, "when,price")
		for i := range n {
			v := i * i % 97
			if i == change {
				v++
			}
			fmt.Fprintf(&b, "%d,%d\n", (i+1)*1e9, v)
		}
		return b.Bytes()
	}
	check(t, os.WriteFile(filepath.Join(one.dir, "prices.csv"), series(250, -1), 0o600))
	one.usp(0, "250 stored", "run", "prices.csv", "--time-column", "when", "--value-column", "price", "--season", "7")
	id, far := one.latest(), place+"/latest"
	whole := one.digests("latest")
	s.lose(t, id, 250)

	other := newMachine(t, s)
	other.usp(2, "the run's input is not there any more; say where it is: usp run --resume "+far+" INPUT", "run", "--resume", far)
	check(t, os.WriteFile(filepath.Join(other.dir, "changed.csv"), series(250, 20), 0o600))
	other.usp(2, "not the input that the run was started with", "run", "--resume", far, "changed.csv")
	if len(other.runs()) > 0 {
		t.Errorf("runs %v", other.runs())
	}
	check(t, os.WriteFile(filepath.Join(other.dir, "longer.csv"), series(300, 280), 0o600))
	r := other.usp(0, `"run_id":"`+id+`"`, "run", "--resume", far, "longer.csv", "--json")
	if !strings.Contains(r.out, `"from_step":200,"steps":300`) || !strings.Contains(r.out, `"from":"`+place+"/"+id+`"`) {
		t.Errorf("%s", r.out)
	}
	went := other.digests("latest")
	for step, sum := range went {
		if step <= 250 && whole[step] != sum {
			t.Errorf("step %v is another one", step)
		}
	}
	if len(went) != 100 {
		t.Errorf("%d steps", len(went))
	}
	other.usp(0, "", "verify", "latest", "--deep")
	other.usp(0, "reproduced", "replay", "latest")

	// Standard input is given once more from its beginning.
	c := other.command("run", "--resume", place+"/"+id, "-")
	c.Stdin = bytes.NewReader(series(250, -1))
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "behind step 200") {
		t.Errorf("%v: %s", err, out)
	}
	for step, sum := range other.digests("latest") {
		if whole[step] != sum || step <= 200 {
			t.Errorf("step %v is another one", step)
		}
	}

	// What went on is killed and goes on in its own directory.
	again := newMachine(t, s)
	check(t, os.WriteFile(filepath.Join(again.dir, "prices.csv"), series(250, -1), 0o600))
	d := again.command("run", "--resume", place+"/"+id, "-")
	in, err := d.StdinPipe()
	check(t, err)
	check(t, d.Start())
	_, err = in.Write(series(230, -1))
	check(t, err)
	for range 200 { // until the run is there and has stored something
		if len(again.runs()) > 0 && strings.Contains(again.try("log", "latest", "--effective", "--kind", "STEP").out, "step 230") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	check(t, d.Process.Kill())
	_ = d.Wait() // it was killed
	again.usp(0, "", "run", "--resume", "latest", "prices.csv")
	got := again.digests("latest")
	for step, sum := range got {
		if whole[step] != sum {
			t.Errorf("step %v is another one", step)
		}
	}
	if len(got) != 50 {
		t.Errorf("%d steps, want 201 to 250", len(got))
	}
	again.usp(0, "", "verify", "latest", "--deep", "--input", "prices.csv")
}

// TestAwayInBetween begins nothing where the store goes away while it is read.
func TestAwayInBetween(t *testing.T) {
	s := newStore(t)
	one := newMachine(t, s)
	one.usp(0, "309 stored", "run", "-q")
	far := place + "/" + one.latest()
	s.forget()
	newMachine(t, s).usp(0, "", "run", "--resume", far, "-q")
	requests := 0
	s.each(func(method, _ string, _ http.Header) {
		if method == http.MethodGet {
			requests++
		}
	})
	if requests < 8 {
		t.Fatalf("%d requests", requests)
	}
	other := newMachine(t, s, "USP_SNAPSHOT_REMOTE=")
	for n := range 8 {
		var count atomic.Int32
		s.set(func(w http.ResponseWriter, _ *http.Request) bool {
			if count.Add(1) <= int32(n) {
				return false
			}
			cut(w, nil, nil, "before")
			return true
		})
		r := other.usp(75, "does not answer", "run", "--resume", far)
		if strings.Contains(r.err, "not loaded") || len(other.runs()) > 0 {
			t.Errorf("request %d: runs %v: %s", n, other.runs(), r.err)
		}
	}
}
