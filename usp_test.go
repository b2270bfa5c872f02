package usp_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// TestMain lets the test binary be its own recorder, as a program of a user's would.
func TestMain(m *testing.M) {
	usp.ServeRecorder()
	goleak.VerifyTestMain(m)
}

func testOptions(t *testing.T) usp.Options {
	t.Helper()
	schema, err := record.NewSchema("test.v1", record.Field{Name: "x", Class: record.Metric}, record.Field{Name: "w", Class: record.Digest, Len: 3})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rings := filepath.Join(dir, "rings")
	return usp.Options{
		Schema: schema, Recorder: recorder.Options{Runs: filepath.Join(dir, "runs"), KeyFile: filepath.Join(dir, "key")},
		Ring: usp.RingOptions{Dir: rings}, Stderr: io.Discard,
	}
}

func emit(run *usp.Run, schema *record.Schema, from, to uint64) {
	v := record.NewValues(schema)
	for s := from; s <= to; s++ {
		v.SetFloat64(0, float64(s))
		v.SetFloat64s(1, []float64{float64(s), 1, 2})
		run.Emit(s, int64(s), v)
	}
}

func verify(t *testing.T, dir string, want audit.Verdict) *audit.Report {
	t.Helper()
	r, err := audit.Verify(context.Background(), vfs.OS(), dir, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != want {
		t.Fatalf("%s: verdict %v, want %v: %+v", dir, r.Verdict, want, r)
	}
	return r
}

func TestStartEmitClose(t *testing.T) {
	o := testOptions(t)
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 5000)
	if !run.SnapshotLast(5000, usp.Section{Name: "s", Data: []byte("state")}) {
		t.Error("a snapshot with every area free was not taken")
	}
	sum, err := run.Close()
	if err != nil {
		t.Fatal(err)
	}
	if sum.Emitted != 5000 || sum.Stored != 5000 || sum.Lost != 0 || sum.Digests != 5000 || sum.Snapshots != 1 {
		t.Errorf("summary %+v", sum)
	}
	r := verify(t, sum.Dir, audit.OK)
	if !r.Completeness.Closed || r.Completeness.Stored != 5000 {
		t.Errorf("completeness %+v", r.Completeness)
	}
	if left, err := ring.List(o.Ring.Dir); err != nil || len(left) != 0 {
		t.Errorf("rings left: %v, %v", left, err)
	}
}

// TestEmitIsTimed reads from outside what emitting takes, while the loop goes on: of each record at first, then of a few.
func TestEmitIsTimed(t *testing.T) {
	o := testOptions(t)
	var looks atomic.Int64                                              // also by who watches over the recorder
	o.Now = func() time.Time { return time.Unix(1e9, 50*looks.Add(1)) } // 50 ns from one look to the next
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 5000)
	const timed = 1024 + 16 // and 16 multiples of 256 from there to 5000
	c, err := ring.Open(filepath.Join(o.Ring.Dir, rundir.RingName(run.ID())))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if d := c.Durations(); d.Counted() != timed || d.Longest < 50 || d.Longest%50 != 0 || d.Sum < 50*timed || d.Quantile(.5) > 62 {
		t.Errorf("%d counted, longest %v, sum %v, median %v", d.Counted(), d.Longest, d.Sum, d.Quantile(.5))
	}
	if _, err := run.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFailIsRecorded(t *testing.T) {
	o := testOptions(t)
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 3)
	sum, err := run.Fail()
	if err != nil {
		t.Fatal(err)
	}
	if got := verify(t, sum.Dir, audit.OK).Completeness.Generations[0].End; got != "failed" {
		t.Errorf("end %q, want failed", got)
	}
}

// TestResumeRefusals: another schema, a run that is alive, a run that is not there.
func TestResumeRefusals(t *testing.T) {
	o := testOptions(t)
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 3)
	if _, _, err := usp.Resume(context.Background(), run.ID(), o); !errors.Is(err, recorder.ErrRunning) {
		t.Errorf("resume of a live run: %v, want ErrRunning", err)
	}
	if _, err := run.Close(); err != nil {
		t.Fatal(err)
	}
	other := o
	if other.Schema, err = record.NewSchema("other.v1", record.Field{Name: "y", Class: record.Metric}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := usp.Resume(context.Background(), run.ID(), other); err == nil || !strings.Contains(err.Error(), "schema") {
		t.Errorf("resume with another schema: %v", err)
	}
	if _, _, err := usp.Resume(context.Background(), "20200101T000000-00000", o); err == nil {
		t.Error("resume of no run: no error")
	}
	verify(t, run.Dir(), audit.OK)
}

// TestStartErrors: what the recorder cannot do is an error of Start, and leaves nothing behind.
func TestStartErrors(t *testing.T) {
	o := testOptions(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Recorder.Runs = filepath.Join(file, "runs")
	_, err := usp.Start(context.Background(), o)
	var died *usp.RecorderError
	if !errors.As(err, &died) || !strings.Contains(died.Message, "not a directory") {
		t.Errorf("runs below a file: %v", err)
	}
	if left, err := ring.List(o.Ring.Dir); err != nil || len(left) != 0 {
		t.Errorf("rings left: %v, %v", left, err)
	}
	if _, err := usp.Start(context.Background(), usp.Options{}); err == nil {
		t.Error("no schema: no error")
	}
}

// TestNoRecorder: nobody drains; the loop goes on, and Close says that nothing was stored.
func TestNoRecorder(t *testing.T) {
	o := testOptions(t)
	o.Outside, o.Ring.Slots, o.DrainTimeout = true, 16, time.Millisecond
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 1000)
	sum, err := run.Close()
	if !errors.Is(err, usp.ErrIncomplete) || sum.Emitted != 1000 || sum.Stored != 0 {
		t.Fatalf("%+v, %v", sum, err)
	}
	// A recorder that comes later accounts for all of it.
	paths, err := ring.List(o.Ring.Dir)
	if err != nil || len(paths) != 1 {
		t.Fatalf("rings %v, %v", paths, err)
	}
	r, err := recorder.Attach(paths[0], o.Recorder)
	if err != nil {
		t.Fatal(err)
	}
	late, err := r.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if late.Emitted != 1000 || late.Stored+late.Lost != 1000 || late.Stored == 0 || late.Lost < 900 {
		t.Errorf("%+v", late)
	}
	verify(t, late.Dir, audit.OK)
}

// TestRecorderDies: the recorder is killed and another takes its place; nothing that the ring holds is lost.
func TestRecorderDies(t *testing.T) {
	o := testOptions(t)
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 2000)
	first := run.Live().PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 2001, 4000)
	sum, err := run.Close()
	if err != nil {
		t.Fatal(err)
	}
	if sum.Emitted != 4000 || sum.Stored != 4000 || sum.Lost != 0 || sum.Digests != 4000 {
		t.Errorf("summary %+v", sum)
	}
	if r := verify(t, sum.Dir, audit.OK); r.Completeness.DigestsMissing != 0 {
		t.Errorf("%d digests are missing", r.Completeness.DigestsMissing)
	}
}

// TestUnreadableRing: what stands in a ring's place and is none must not keep the run from being continued.
func TestUnreadableRing(t *testing.T) {
	o := testOptions(t)
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(run, o.Schema, 1, 3)
	if _, err := run.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.Ring.Dir, run.ID()+".ring")
	if err := os.WriteFile(path, []byte("no ring"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, state, err := usp.Resume(context.Background(), run.ID(), o)
	if err != nil {
		t.Fatal(err)
	}
	emit(again, o.Schema, state.Step+1, state.Step+5)
	sum, err := again.Close()
	if err != nil || sum.Stored != 5 {
		t.Fatalf("%+v, %v", sum, err)
	}
	verify(t, sum.Dir, audit.OK)
	if _, err := os.Stat(path + ".broken"); err != nil {
		t.Errorf("the file was not set aside: %v", err)
	}
}
