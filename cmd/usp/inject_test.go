package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// leaveRing makes what a producer that ended leaves for its recorder: a ring with n records and two staged states.
func (w *world) leaveRing(id string, n int) (path string) {
	w.t.Helper()
	schema := predictor.Schema(4)
	path = filepath.Join(w.ring, rundir.RingName(id))
	p, err := ring.Create(ring.Config{Path: path, RunID: id, Schema: schema.Text(), PayloadLen: 8 * schema.Words(), Slots: 1024, StagingAreas: 4, StagingCapacity: 1 << 14})
	if err != nil {
		w.t.Fatal(err)
	}
	v := record.NewValues(schema)
	for step := uint64(1); step <= uint64(n); step++ {
		p.Emit(v.Payload(step, int64(step)))
		if step%uint64(n/4) == 0 {
			s := []snapshot.Section{{Name: "state", Data: bytes.Repeat([]byte{byte(step)}, 5000)}}
			p.Stage(step, 1, snapshot.SectionsSize(s), func(dst []byte) { snapshot.AppendSections(dst[:0], s) })
		}
	}
	if err := p.Close(true); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// strace runs a recorder for a left ring with a fault at one system call, and returns its exit code; −1 is a signal.
func (w *world) strace(ring, call, fault string, when int) int {
	w.t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:%s:when=%d", call, fault, when),
		w.bin, "record", ring, "--dir", "runs")
	cmd.Dir = w.dir
	// One thread makes nearly all system calls, so that the count, which strace keeps by thread, means the same each time.
	cmd.Env = append(w.env, "GOMAXPROCS=1", "USP_RECORDER_SEGMENT_SIZE=64KiB", "USP_SNAPSHOT_KEEP_LAST=2", "USP_RECORDER_COMMIT_BYTES=8KiB")
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	w.t.Fatal(err)
	return 0
}

// TestSystemCallFaults lets a recorder be killed at, or fail with EIO, each of the system calls with which it changes
// something, one after the other. Whatever happens, the run must verify as closed or as a crash tail, and the next
// recorder must bring it to its end with every record. A sample in the normal run, all of them with TORTURE=1.
func TestSystemCallFaults(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed: no faults can be injected into system calls")
	}
	if raceDetector {
		t.Skip("under the race detector every process takes half a second to start: this test runs hundreds, without -race")
	}
	w := newWorld(t)
	if err := exec.Command("strace", "-qq", "-o", "/dev/null", "true").Run(); err != nil {
		t.Skipf("strace cannot trace here (%v): no faults can be injected into system calls", err)
	}
	all := os.Getenv("TORTURE") != ""
	const records = 400
	calls := []string{"openat", "write", "pwrite64", "fsync", "fdatasync", "renameat,renameat2,rename", "linkat", "unlinkat", "mkdirat", "ftruncate", "fallocate", "close", "fchmodat"}
	run, hurt := 0, 0
	for _, call := range calls {
		for _, fault := range []string{"signal=KILL", "error=EIO"} {
			for when, clean := 1, 0; clean < 3; when++ {
				if !all && when > 1 {
					when += 7 // a sample
				}
				run++
				id := "20260101T000000-" + fmt.Sprintf("%05d", run)
				path := w.leaveRing(id, records)
				code := w.strace(path, call, fault, when)
				if code == 0 {
					clean++ // beyond the last call of the kind in any thread, or a failure that did no harm
				} else {
					clean = 0
					hurt++
				}
				w.judge(id, path, fmt.Sprintf("%s %s at call %d", call, fault, when), records)
				if !all && when > 16 {
					break
				}
			}
		}
	}
	t.Logf("%d recorders were run, %d of them ended by the fault", run, hurt)
	if hurt < len(calls) {
		t.Errorf("only %d faults were felt: nothing was tested", hurt)
	}
}

// judge verifies what a recorder has left, has another one finish it, and counts.
func (w *world) judge(id, ringPath, what string, records int) {
	w.t.Helper()
	dir := filepath.Join("runs", id)
	code, out, errw := w.run("verify", dir)
	if code != 0 && code != 21 && code != 10 {
		w.t.Fatalf("%s: verify says %d\n%s%s", what, code, out, errw)
	}
	if _, err := os.Stat(ringPath); err == nil {
		if code, out, errw := w.run("record", ringPath, "--dir", "runs"); code != 0 {
			w.t.Fatalf("%s: the next recorder says %d\n%s%s", what, code, out, errw)
		}
	}
	code, out, errw = w.run("verify", dir, "--json")
	var r struct {
		Completeness struct {
			Closed       bool
			Stored, Lost uint64
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		w.t.Fatalf("%s: %v\n%s%s", what, err, out, errw)
	}
	if code != 0 || !r.Completeness.Closed || r.Completeness.Stored != uint64(records) || r.Completeness.Lost != 0 {
		w.t.Fatalf("%s: in the end verify says %d, stored %s, lost %s\n%s", what, code,
			strconv.FormatUint(r.Completeness.Stored, 10), strconv.FormatUint(r.Completeness.Lost, 10), out)
	}
	if err := os.RemoveAll(filepath.Join(w.dir, dir)); err != nil {
		w.t.Fatal(err)
	}
}
