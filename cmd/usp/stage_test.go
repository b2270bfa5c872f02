package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/usp-project/usp/internal/cli"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// torture asks for the long forms of the tests.
func torture() bool { return os.Getenv("TORTURE") != "" }

const (
	stageID      = "20260101T000000-abcde"
	stageRecords = 800 // per generation: several segments of the size below
	keepLast     = 2
)

// recorderSettings make a short run one with rolls and prunes.
var recorderSettings = []string{"USP_RECORDER_SEGMENT_SIZE=64KiB", "USP_SNAPSHOT_KEEP_LAST=2", "USP_RECORDER_COMMIT_BYTES=8KiB", "USP_DIGEST_HEAD_INTERVAL=10ms"}

// stage is a state in which a recorder finds ring and run directory; every test gets copies of it.
type stage struct {
	w           *world
	name        string
	dir         string
	generations int
	copies      atomic.Int64
}

// bench is one copy of a stage, to be used up.
type bench struct {
	stage *stage
	dir   string // run directories, signing key, trace
	rings string // memory-backed
}

func (b *bench) runs() string { return filepath.Join(b.dir, "runs") }
func (b *bench) run() string  { return filepath.Join(b.dir, "runs", stageID) }
func (b *bench) key() string  { return filepath.Join(b.dir, "key") }
func (b *bench) ring() string { return filepath.Join(b.rings, rundir.RingName(stageID)) }

// bench copies the stage. An error is a panic: it may be called from any goroutine.
func (s *stage) bench() *bench {
	n := s.copies.Add(1)
	b := &bench{stage: s, dir: filepath.Join(s.w.ring, fmt.Sprintf("%s-%d.work", s.name, n)), rings: filepath.Join(s.w.ring, fmt.Sprintf("%s-%d", s.name, n))}
	for _, c := range [][2]string{{filepath.Join(s.dir, "rings"), b.rings}, {filepath.Join(s.dir, "work"), b.dir}} {
		copyTree(c[1], c[0])
	}
	return b
}

// copyTree copies a directory with all modes. An error is a panic.
func copyTree(to, from string) {
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		panic(fmt.Sprintf("copy %s: %v: %s", from, err, out))
	}
}

func (b *bench) remove() error {
	return errors.Join(os.RemoveAll(b.dir), os.RemoveAll(b.rings))
}

// newStage begins a stage with empty directories; the bench that it returns is the stage itself, to be filled.
func (w *world) newStage(name string, generations int) (*stage, *bench) {
	w.t.Helper()
	s := &stage{w: w, name: name, dir: filepath.Join(w.dir, "stage-"+name), generations: generations}
	b := &bench{stage: s, dir: filepath.Join(s.dir, "work"), rings: filepath.Join(s.dir, "rings")}
	for _, dir := range []string{b.rings, b.runs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	return s, b
}

// left is what a producer leaves.
type left struct {
	generation uint32
	resumed    *rundir.Resumed
	producer   any     // what the ring says of it
	killed     bool    // it did not say that it has ended
	records    int     // 0: stageRecords
	state      int     // bytes of each of the four staged states; 0: 5000; negative: there are none
	cost       float64 // the last field, a digest, in the second half of the records
}

// states is how many were staged.
func (l left) states() int {
	if l.state < 0 {
		return 0
	}
	return 4
}

// leaveRing makes what a producer leaves that ended, or that was killed: a ring with records and four staged states.
func (b *bench) leaveRing(t testing.TB, l left) {
	t.Helper()
	if l.records == 0 {
		l.records = stageRecords
	}
	if l.state == 0 {
		l.state = 5000
	}
	schema := predictor.Schema(4)
	meta, err := json.Marshal(recorder.RingMeta{Resumed: l.resumed, Producer: l.producer})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ring.Create(ring.Config{
		Path: b.ring(), RunID: stageID, Generation: l.generation, Schema: schema.Text(), Meta: meta,
		PayloadLen: 8 * schema.Words(), Slots: 1024, StagingAreas: 4, StagingCapacity: 1 << 14,
	})
	if err != nil {
		t.Fatal(err)
	}
	v, step := record.NewValues(schema), uint64(0)
	if l.resumed != nil {
		step = l.resumed.Step
	}
	for i := range l.records {
		step++
		if i == l.records/2 {
			v.SetFloat64(len(schema.Fields())-1, l.cost)
		}
		p.Emit(v.Payload(step, int64(step)))
		if l.states() > 0 && i%(l.records/l.states()) == l.records/8 {
			s := []snapshot.Section{{Name: "state", Data: bytes.Repeat([]byte{byte(step)}, l.state)}}
			p.Stage(step, 1, snapshot.SectionsSize(s), func(dst []byte) { snapshot.AppendSections(dst[:0], s) })
		}
	}
	if l.killed { // nothing in the ring says that its producer has ended, and nobody holds its lock
		left := filepath.Join(b.dir, "left")
		copyTree(left, b.rings)
		defer func() {
			if err := errors.Join(os.RemoveAll(b.rings), os.Rename(left, b.rings)); err != nil {
				t.Fatal(err)
			}
		}()
	}
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
}

// freshStage: the producer has ended, and there was no recorder yet.
func (w *world) freshStage() *stage {
	w.t.Helper()
	s, b := w.newStage("fresh", 1)
	b.leaveRing(w.t, left{})
	return s
}

// takenUpStage: the first recorder was killed in the middle.
func (w *world) takenUpStage() *stage {
	w.t.Helper()
	s, b := w.newStage("taken-up", 1)
	b.leaveRing(w.t, left{})
	b.killRecorder(w)
	return s
}

// resumedStage: of generation 0 producer and recorder were killed in the middle, a resume has closed it, and generation 1
// waits for its recorder.
func (w *world) resumedStage() *stage {
	w.t.Helper()
	s, b := w.newStage("resumed", 2)
	b.leaveRing(w.t, left{killed: true})
	b.killRecorder(w)
	ctx := context.Background()
	if _, err := recorder.Recover(ctx, b.run(), b.rings, b.options()); err != nil {
		w.t.Fatal(err)
	}
	b.leaveRing(w.t, left{generation: 1, resumed: b.newestSnapshot(w.t)})
	return s
}

// newestSnapshot is what a resume continues from.
func (b *bench) newestSnapshot(t testing.TB) *rundir.Resumed {
	t.Helper()
	snap, err := recorder.NewestSnapshot(vfs.OS(), b.run(), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return &rundir.Resumed{Generation: snap.Meta.Generation, Step: snap.Meta.Step, SnapshotSHA256: snap.SHA256}
}

// needStrace skips the test where no faults can be injected into system calls.
func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("NOT CHECKED: strace is not installed: no faults can be injected into system calls")
	}
	if err := exec.Command("strace", "-qq", "-o", "/dev/null", "true").Run(); err != nil {
		t.Skipf("NOT CHECKED: strace cannot trace here (%v): no faults can be injected into system calls", err)
	}
}

// killRecorder records some of the ring. It takes strace.
func (b *bench) killRecorder(w *world) {
	w.t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:signal=KILL:when=6",
		w.bin, "record", b.ring(), "--dir", b.runs(), "--key-file", b.key())
	cmd.Env = append(slices.Clone(w.env), recorderSettings...)
	out, err := cmd.CombinedOutput()
	if _, statErr := os.Stat(b.ring()); err == nil || statErr != nil {
		w.t.Fatalf("the recorder was to be killed: %v, %v\n%s", err, statErr, out)
	}
}

func (b *bench) options() recorder.Options {
	return recorder.Options{Runs: b.runs(), KeyFile: b.key(), Snapshot: recorder.SnapshotOptions{Retention: snapshot.Retention{KeepLast: keepLast}}}
}

// verdict is what these tests read of usp verify --json.
type verdict struct {
	Exit  int
	Notes []string
	Files struct {
		Telemetry, Digests int
		Leftovers          []string
	}
	Completeness struct {
		Closed                  bool
		Stored, Lost, Snapshots uint64
		DigestsMissing          uint64 `json:"digests_missing"`
		Generations             []generationVerdict
	}
	text string
}

type generationVerdict struct {
	Emitted, Stored, Lost uint64
	EmittedKnown          bool `json:"emitted_known"`
	LostRanges            []struct {
		From, To uint64
		Reason   string
	} `json:"lost_ranges"`
}

// lostOnlyTo wants that what was lost was lost for one reason.
func (g *generationVerdict) lostOnlyTo(reason string) error {
	sum := uint64(0)
	for _, l := range g.LostRanges {
		if l.Reason != reason {
			return fmt.Errorf("lost records [%d, %d) to %s", l.From, l.To, l.Reason)
		}
		sum += l.To - l.From
	}
	if sum != g.Lost {
		return fmt.Errorf("the lost ranges hold %d records, %d are said to be lost", sum, g.Lost)
	}
	return nil
}

// leftBehind names what only a kill at a certain moment leaves.
func (v *verdict) leftBehind() (kinds []string) {
	for _, name := range v.Files.Leftovers {
		dir := filepath.Dir(name)
		switch {
		case strings.Contains(name, ".tmp-") && dir == rundir.SnapshotDir:
			kinds = append(kinds, "a snapshot half written")
		case strings.Contains(name, ".tmp-") && dir == ".":
			kinds = append(kinds, "a manifest or head half written")
		case strings.Contains(name, ".tmp-"):
			kinds = append(kinds, "a segment half made")
		case strings.HasSuffix(name, rundir.OrphanSuffix):
			kinds = append(kinds, "a snapshot that was set aside")
		}
	}
	for _, note := range v.Notes {
		switch {
		case strings.Contains(note, "in no log entry"):
			kinds = append(kinds, "a snapshot that was not logged")
		case strings.Contains(note, "was pruned in the log, but is still there"):
			kinds = append(kinds, "a snapshot pruned in the log only")
		}
	}
	return kinds
}

// verify asks usp verify for its judgement of a run directory.
func verify(dir string) (verdict, error) {
	var out, errw bytes.Buffer
	code := cli.Main([]string{"verify", dir, "--json"}, nil, &out, &errw)
	v := verdict{text: out.String() + errw.String()}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil && code != 10 {
		return v, fmt.Errorf("verify exits with %d: %w\n%s", code, err, v.text)
	}
	v.Exit = code
	return v, nil
}

// balanced wants that of every generation each record is stored or accounted for.
func (v *verdict) balanced() error {
	for i, g := range v.Completeness.Generations {
		if g.EmittedKnown && g.Stored+g.Lost != g.Emitted {
			return fmt.Errorf("generation %d: stored %d + lost %d, emitted %d\n%s", i, g.Stored, g.Lost, g.Emitted, v.text)
		}
	}
	return nil
}

// judge verifies what a recorder has left, has another one finish it, and counts. With storage, records may have been
// refused by storage; otherwise nothing may be missing.
func (b *bench) judge(storage bool) error {
	v, err := verify(b.run())
	if err != nil {
		return err
	}
	if v.Exit != 0 && v.Exit != 21 && v.Exit != 10 {
		return fmt.Errorf("verify exits with %d\n%s", v.Exit, v.text)
	}
	if _, err := os.Stat(b.ring()); err == nil {
		if err := b.finish(); err != nil {
			return fmt.Errorf("the next recorder: %w", err)
		}
	}
	if v, err = verify(b.run()); err != nil {
		return err
	}
	c := v.Completeness
	if v.Exit != 0 || !c.Closed || len(c.Generations) != b.stage.generations || c.DigestsMissing > 0 ||
		c.Snapshots < keepLast || c.Snapshots > keepLast && !storage { // one that cannot be looked at is rather kept
		return fmt.Errorf("in the end verify exits with %d\n%s", v.Exit, v.text)
	}
	for i, g := range c.Generations {
		if !g.EmittedKnown || g.Emitted != stageRecords || g.Stored+g.Lost != stageRecords || !storage && g.Lost > 0 {
			return fmt.Errorf("in the end generation %d is %+v\n%s", i, g, v.text)
		}
		if err := g.lostOnlyTo("storage"); err != nil {
			return fmt.Errorf("generation %d: %w", i, err)
		}
	}
	return nil
}

// finish is the next recorder.
func (b *bench) finish() error {
	r, err := recorder.Attach(b.ring(), b.options())
	if finished := (*recorder.FinishedError)(nil); errors.As(err, &finished) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = r.Run(context.Background())
	return err
}

// checkBusy wants that what a recorder without a fault has done includes what the faults are to hit.
func (b *bench) checkBusy(t testing.TB) {
	t.Helper()
	v, err := verify(b.run())
	if err != nil {
		t.Fatal(err)
	}
	taken, err := filepath.Glob(filepath.Join(b.run(), "snapshots", "*.snap"))
	if err != nil || len(taken) != keepLast || v.Files.Telemetry < 2 || v.Files.Digests < 2 {
		t.Errorf("%s: %d snapshots, %d and %d segments (%v): too little happens in this run", b.stage.name, len(taken), v.Files.Telemetry, v.Files.Digests, err)
	}
}
