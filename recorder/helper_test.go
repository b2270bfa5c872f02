package recorder_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

const (
	runID   = "20261122T201833-9f3kq"
	runDir  = "/runs/" + runID
	keyFile = "/home/signing.key"
)

// torture asks for the long forms of the loops.
var torture = os.Getenv("TORTURE") == "1"

// slice is how many moments of a life a test goes on by, of which TORTURE=1 takes all. It shares no factor with 2, 3 and 5, by
// which the moments are told what happens at them.
const slice = 7

// TestMain lets more tests run at once than there are processors: a recorder that looks for a dead producer waits.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// clock advances by a little with each look, so that intervals pass without anybody sleeping.
func clock() func() time.Time {
	var n atomic.Int64
	start := time.Date(2026, 11, 22, 20, 18, 33, 0, time.UTC)
	return func() time.Time { return start.Add(time.Duration(n.Add(1)) * 100 * time.Microsecond) }
}

// options are small: many commits, heads and rolls in a short run.
func options(fsys vfs.FS) recorder.Options {
	return recorder.Options{
		Runs: "/runs", KeyFile: keyFile, SegmentSize: 8 << 10, CommitBytes: 2 << 10,
		CommitInterval: time.Millisecond, HeadInterval: 20 * time.Millisecond, Patience: 5 * time.Millisecond,
		Snapshot: recorder.SnapshotOptions{Retention: snapshot.Retention{KeepLast: 2}},
		Version:  "test", FS: fsys, Now: clock(), Rand: rand.Reader,
	}
}

func testSchema(t testing.TB) *record.Schema {
	t.Helper()
	s, err := record.NewSchema("test.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "rho", Class: record.Digest, Len: 4},
		record.Field{Name: "cost", Class: record.Digest})
	check(t, err)
	return s
}

// producer is the other end: a real ring.
type producer struct {
	*ring.Producer
	t      testing.TB
	slots  int
	values *record.Values
	step   uint64 // of the last record
}

type ringConfig struct {
	dir        string // default: a new temporary directory
	generation uint32
	slots      int // default 64
	areas      int
	capacity   int64 // of a staging area, default 4 KiB
	resumed    *rundir.Resumed
	after      uint64 // the first record is of the step after it
}

func newProducer(t testing.TB, c ringConfig) *producer {
	t.Helper()
	schema := testSchema(t)
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	if c.slots == 0 {
		c.slots = 64
	}
	meta, err := json.Marshal(recorder.RingMeta{Producer: map[string]any{"name": "test"}, Resumed: c.resumed, Environment: map[string]string{"goarch": "test"}})
	check(t, err)
	p, err := ring.Create(ring.Config{
		Path: filepath.Join(c.dir, rundir.RingName(runID)), RunID: runID, Generation: c.generation,
		Schema: schema.Text(), Meta: meta, PayloadLen: 8 * schema.Words(), Slots: c.slots, StagingAreas: c.areas, StagingCapacity: cmp.Or(c.capacity, 4<<10),
	})
	check(t, err)
	t.Cleanup(func() { p.Close(false) }) // an error says that the test closed it
	return &producer{Producer: p, t: t, slots: c.slots, values: record.NewValues(schema), step: c.after}
}

// emit emits the next n steps.
func (p *producer) emit(n int) {
	for range n {
		p.step++
		p.Emit(p.payload(p.step))
	}
}

// payload is what is computed at a step. It is valid until the next one.
func (p *producer) payload(step uint64) []uint64 {
	x := 1 / float64(step+1)
	p.values.SetFloat64(0, x)
	p.values.SetFloat64s(2, []float64{x, 0.25, 0.25, 0.25})
	p.values.SetFloat64(3, x*x)
	return p.values.Payload(step, int64(step)*1e9)
}

func state(step uint64) []snapshot.Section {
	return []snapshot.Section{{Name: "state", Data: []byte(fmt.Sprint("state after ", step))}}
}

// stage asks for a snapshot of the last step.
func (p *producer) stage() bool {
	s := state(p.step)
	return p.Stage(p.step, 1, snapshot.SectionsSize(s), func(dst []byte) { snapshot.AppendSections(dst[:0], s) })
}

// until waits until the recorder has published what done wants.
func (p *producer) until(done func(ring.ConsumerState) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(p.Consumer()); runtime.Gosched() {
		if time.Now().After(deadline) {
			p.t.Fatalf("the recorder is stuck at %+v, %d records were emitted", p.Consumer(), p.Position())
		}
	}
}

// waitFor waits until the recorder has made everything so far durable, and so many snapshots.
func (p *producer) waitFor(snapshots uint64) {
	p.t.Helper()
	p.until(func(c ring.ConsumerState) bool {
		return c.Synced >= p.Position() && c.Snapshots >= snapshots && (snapshots == 0 || p.CanStage())
	})
}

// waitDrained waits until the recorder has taken everything so far out of the ring, but for what it leaves there while
// storage takes nothing: there is room for a quarter more.
func (p *producer) waitDrained() {
	p.t.Helper()
	p.until(func(c ring.ConsumerState) bool {
		return c.Position >= p.Position() || c.Fault != 0 && p.Position()-c.Position <= uint64(p.slots)/4*3
	})
}

// die leaves the ring as it is now in a directory of its own, where nobody holds its lock: what a producer that was
// killed at this moment leaves.
func (p *producer) die(t testing.TB) (ringDir, path string) {
	t.Helper()
	dir := t.TempDir()
	return dir, copyRing(t, p.Path(), dir)
}

func copyRing(t testing.TB, path, dir string) string {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	check(t, err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, 0o600))
	}
	return filepath.Join(dir, filepath.Base(path))
}

// running is a recorder in a goroutine.
type running struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan struct{}
	sum    recorder.Summary
	err    error
}

func start(t testing.TB, path string, o recorder.Options) *running {
	t.Helper()
	r, err := recorder.Attach(path, o)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	x := &running{t: t, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		x.sum, x.err = r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-x.done })
	return x
}

// wait returns what Run returned; a recorder that hangs fails the test.
func (x *running) wait() (recorder.Summary, error) {
	x.t.Helper()
	select {
	case <-x.done:
	case <-time.After(30 * time.Second):
		x.t.Fatal("Run does not return")
	}
	return x.sum, x.err
}

func (x *running) finish() recorder.Summary {
	x.t.Helper()
	sum, err := x.wait()
	check(x.t, err)
	return sum
}

// record attaches and runs to the end; a generation that turns out to be closed already counts.
func runToEnd(t testing.TB, path string, o recorder.Options) (recorder.Summary, error) {
	t.Helper()
	r, err := recorder.Attach(path, o)
	var finished *recorder.FinishedError
	if errors.As(err, &finished) {
		return finished.Summary, nil
	}
	if err != nil {
		return recorder.Summary{}, err
	}
	return r.Run(t.Context())
}

func verify(t testing.TB, fsys vfs.FS) *audit.Report {
	t.Helper()
	rep, err := audit.Verify(t.Context(), fsys, runDir, audit.Options{Deep: true})
	check(t, err)
	verifyIndex(t, fsys, rep)
	return rep
}

// verifyIndex wants the ends of files to say of a run that is not damaged what all its bytes say, and LastStep what the entries say.
func verifyIndex(t testing.TB, fsys vfs.FS, all *audit.Report) {
	t.Helper()
	if all.Verdict != audit.OK && all.Verdict != audit.CrashTail {
		return
	}
	rep, err := audit.Verify(t.Context(), fsys, runDir, audit.Options{Index: true})
	check(t, err)
	a, b := &all.Completeness, &rep.Completeness
	if rep.Verdict != all.Verdict || a.Stored != b.Stored || a.Lost != b.Lost || a.Digests != b.Digests || a.Snapshots != b.Snapshots || a.Closed != b.Closed {
		t.Errorf("by the index %v, %+v:\n%swant %v, %+v", rep.Verdict, *b, describe(rep), all.Verdict, *a)
	}
	if notes := strings.Join(rep.Notes, " "); strings.Contains(notes, "no summary") {
		t.Errorf("notes %q", notes)
	}
	if _, err := fsys.Stat(runDir + "/digests"); err != nil {
		return
	}
	var want recorder.Progress
	for it, err := range digestlog.Entries(fsys, runDir+"/digests") {
		e := &it.Entry
		switch {
		case err != nil:
		case e.Kind == digestlog.KindOpen:
			want.Generation, want.Step, want.Status = e.Generation, 0, 0
		case e.Kind == digestlog.KindStep, e.Kind == digestlog.KindSnapshot:
			want.Step = max(want.Step, e.Step)
		case e.Kind == digestlog.KindRewind:
			want.Step = max(want.Step, e.Target)
		case e.Kind == digestlog.KindLost:
			want.Lost += e.To - e.From
		case e.Kind == digestlog.KindEnd:
			want.Status = e.Status
		}
	}
	if got, err := recorder.LastStep(fsys, runDir); err != nil || got != want {
		t.Errorf("last step %+v, %v; the entries say %+v", got, err, want)
	}
}

// verifyOK wants a closed and faultless run.
func verifyOK(t testing.TB, fsys vfs.FS) *audit.Report {
	t.Helper()
	rep := verify(t, fsys)
	if rep.Verdict != audit.OK || !rep.Completeness.Closed || len(rep.Files.Unknown) > 0 {
		t.Fatalf("verdict %v:\n%s", rep.Verdict, describe(rep))
	}
	return rep
}

func describe(rep *audit.Report) string {
	var b strings.Builder
	for i := range rep.Integrity.Problems {
		fmt.Fprintln(&b, "problem:", rep.Integrity.Problems[i].String())
	}
	fmt.Fprintf(&b, "tail: %q\nnotes: %q\nfiles: %+v\n", rep.Completeness.Tail, rep.Notes, rep.Files)
	for _, g := range rep.Completeness.Generations {
		fmt.Fprintf(&b, "%+v\n", g)
	}
	return b.String()
}

// balanced wants that nothing is unaccounted for, in the summary and in what the judge counted.
func balanced(t testing.TB, sum recorder.Summary, g audit.Generation, emitted uint64) {
	t.Helper()
	if sum.Emitted != emitted || sum.Stored+sum.Lost != emitted || g.Stored != sum.Stored || g.Lost != sum.Lost || !g.EmittedKnown || g.Emitted != emitted {
		t.Fatalf("%d records were emitted; the summary says %+v, the judge %+v", emitted, sum, g)
	}
}

// entries are the log's, of one kind.
func entries(t testing.TB, fsys vfs.FS, kind digestlog.Kind) []digestlog.Entry {
	t.Helper()
	var list []digestlog.Entry
	for it, err := range digestlog.Entries(fsys, rundir.At(runDir).Digests()) {
		check(t, err)
		if it.Entry.Kind == kind {
			list = append(list, it.Entry)
		}
	}
	return list
}

func names(t testing.TB, fsys vfs.FS, dir string) []string {
	t.Helper()
	list, err := fsys.ReadDir(dir)
	check(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func snapshots(steps ...uint64) []string {
	var out []string
	for _, s := range steps {
		out = append(out, snapshot.FileName(s, 0))
	}
	return out
}

func noRing(t testing.TB, path string) {
	t.Helper()
	left, err := filepath.Glob(path + "*")
	check(t, err)
	if len(left) > 0 {
		t.Fatalf("the ring was not removed: %v", left)
	}
}

func equal[T comparable](t testing.TB, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func wantErr(t testing.TB, err, want error, parts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	wantText(t, err, parts...)
}

func wantText(t testing.TB, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Fatalf("the error %v does not say %q", err, part)
		}
	}
}

func exists(fsys vfs.FS, name string) bool {
	_, err := fsys.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dieAfter returns a file system on which everything fails from the first operation behind the one that at picks.
func dieAfter(fsys vfs.FS, at func(vfs.Op) bool) *vfs.Injector {
	in := vfs.Inject(fsys)
	in.SetHook(func(op vfs.Op) {
		if at(op) {
			in.Add(vfs.Rule{Sticky: true})
		}
	})
	return in
}

// frames are those of the telemetry, copied.
func frames(t testing.TB, fsys vfs.FS) []record.Frame {
	t.Helper()
	var list []record.Frame
	for f, err := range segment.Frames(fsys, rundir.At(runDir).Telemetry()) {
		check(t, err)
		var x record.Frame
		check(t, record.DecodeFrame(f.Data, &x))
		list = append(list, x)
	}
	return list
}

// tearRecord makes the ring in a file look as if its producer had died while it wrote record n, the one after the last.
func tearRecord(t testing.TB, path string, n int) {
	t.Helper()
	c, err := ring.Open(path)
	check(t, err)
	h := c.Header()
	check(t, c.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	info, err := f.Stat()
	check(t, err)
	slots := info.Size() - int64(h.Slots*h.SlotSize)
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(2*n+1)), slots+int64(n%h.Slots*h.SlotSize))
	check(t, err)
}
