package recorder_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

func TestRun(t *testing.T) {
	const steps, every = 400, 40
	for _, interval := range []uint64{1, 3} {
		t.Run(fmt.Sprint("digest interval ", interval), func(t *testing.T) {
			m := vfs.NewMem()
			p := newProducer(t, ringConfig{})
			o := options(m)
			o.DigestInterval = interval
			o.Rand = rand.NewChaCha8([32]byte{7})
			x := start(t, p.Path(), o)
			for i := range uint64(steps / every) {
				p.emit(every)
				if !p.stage() {
					t.Fatal("no free staging area")
				}
				p.waitFor(i + 1)
			}
			check(t, p.Close(true))
			sum := x.finish()
			want := recorder.Summary{
				RunID: runID, Dir: runDir, Emitted: steps, Stored: steps, Digests: steps / interval, Snapshots: steps / every, Status: digestlog.StatusClean,
			}
			if sum != want {
				t.Fatalf("summary\n got %+v\nwant %+v", sum, want)
			}
			noRing(t, p.Path())
			rep := verifyOK(t, m)
			balanced(t, sum, rep.Completeness.Generations[0], steps)
			if c := rep.Completeness; c.Digests != steps/interval || c.DigestsMissing != 0 || c.Snapshots != 2 {
				t.Fatalf("the judge counts %+v", c)
			}
			if rep.Files.Telemetry < 4 || rep.Files.Digests < 4 || len(rep.Files.Leftovers) > 0 {
				t.Fatalf("segments did not roll, or something was left: %+v", rep.Files)
			}
			equal(t, "snapshots kept", names(t, m, rundir.At(runDir).Snapshots()), snapshots(steps-every, steps))
			if n := len(entries(t, m, digestlog.KindPrune)); n != steps/every-2 {
				t.Fatalf("%d PRUNE entries", n)
			}
			man, _, err := rundir.ReadManifest(m, runDir, 0)
			check(t, err)
			if !strings.HasPrefix(man.Signer, "usp-0e42+") { // the key that this generator makes
				t.Fatalf("signed by %s", man.Signer)
			}
			if man.DigestEvery != interval || man.USP != "test" || !strings.Contains(string(man.Producer), `"name": "test"`) {
				t.Fatalf("manifest %+v", man)
			}
		})
	}
}

// The end of a generation is what the producer says, or, when it says nothing, its death.
func TestRunStatus(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*producer) string // returns the ring's path
		want digestlog.Status
	}{
		{"clean", func(p *producer) string { check(t, p.Close(true)); return p.Path() }, digestlog.StatusClean},
		{"failed", func(p *producer) string { check(t, p.Close(false)); return p.Path() }, digestlog.StatusFailed},
		{"crashed", func(p *producer) string { _, path := p.die(t); return path }, digestlog.StatusCrashed},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := vfs.NewMem()
			p := newProducer(t, ringConfig{})
			p.emit(10)
			path := c.end(p)
			sum, err := runToEnd(t, path, options(m))
			check(t, err)
			if sum.Status != c.want {
				t.Fatalf("status %v", sum.Status)
			}
			rep := verifyOK(t, m)
			balanced(t, sum, rep.Completeness.Generations[0], 10)
		})
	}
}

// A generation without any record leaves a closed run without telemetry.
func TestRunWithoutRecords(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	check(t, p.Close(true))
	sum, err := runToEnd(t, p.Path(), options(m))
	check(t, err)
	rep := verifyOK(t, m)
	balanced(t, sum, rep.Completeness.Generations[0], 0)
	equal(t, "telemetry", names(t, m, rundir.At(runDir).Telemetry()), nil)

	// The same behind one with records: the next generation continues the stream at the same ordinal.
	resume(t, m, func(p *producer) { p.emit(0) }, 1)
	resume(t, m, func(p *producer) { p.emit(25) }, 2)
	for _, e := range entries(t, m, digestlog.KindSeal) {
		if e.Count == 0 {
			t.Fatalf("sealed without a record: %+v", e)
		}
	}
	rep = verifyOK(t, m)
	if n := len(rep.Completeness.Generations); n != 3 || rep.Completeness.Stored != 25 {
		t.Fatalf("%d generations: %s", n, describe(rep))
	}
}

// resume begins a generation behind the newest snapshot, or cold, and brings it to its end.
func resume(t testing.TB, fsys vfs.FS, body func(*producer), generation uint32) recorder.Summary {
	t.Helper()
	resumed := newest(t, fsys)
	p := newProducer(t, ringConfig{generation: generation, resumed: resumed, after: resumed.Step})
	x := start(t, p.Path(), options(fsys))
	body(p)
	check(t, p.Close(true))
	return x.finish()
}

// newest is what a resume would continue from.
func newest(t testing.TB, fsys vfs.FS) *rundir.Resumed {
	t.Helper()
	found, err := recorder.NewestSnapshot(fsys, runDir, func(err error) { t.Log("rejected:", err) })
	if err == recorder.ErrNoSnapshot {
		return &rundir.Resumed{}
	}
	check(t, err)
	return &rundir.Resumed{Generation: found.Meta.Generation, Step: found.Meta.Step, SnapshotSHA256: found.SHA256}
}

// Records that the ring could not deliver are lost ranges, in-band and in the log, and the rest is stored.
func TestLostRanges(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{slots: 16})
	p.emit(100) // 84 of them are gone before anybody looks
	x := start(t, p.Path(), options(m))
	p.waitFor(0)
	for range 20 { // more than a ring at once: whatever the recorder gets of it
		p.emit(50)
	}
	p.waitFor(0)
	check(t, p.Close(true))
	sum := x.finish()
	rep := verifyOK(t, m)
	g := rep.Completeness.Generations[0]
	balanced(t, sum, g, 1100)
	if sum.Lost < 84 || sum.Lost == 1100 || g.LostRanges[0].From != 0 || g.LostRanges[0].Reason != "overrun" {
		t.Fatalf("lost %d: %+v", sum.Lost, g.LostRanges)
	}
	var logged, inBand uint64
	for _, e := range entries(t, m, digestlog.KindLost) {
		logged += e.To - e.From
	}
	for _, f := range frames(t, m) {
		if f.Kind == record.KindLost {
			inBand += f.To - f.Seq
		}
	}
	if logged != sum.Lost || inBand != sum.Lost {
		t.Fatalf("lost %d, in the log %d, in the telemetry %d", sum.Lost, logged, inBand)
	}
	if rep.Completeness.DigestsMissing != 0 || sum.Digests != sum.Stored {
		t.Fatalf("%d digests of %d stored records", sum.Digests, sum.Stored)
	}
}

// A record that its producer died in is lost, and counts as emitted, also with the recorder after the one that met it.
func TestTornRecord(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	p.emit(10)
	_, path := p.die(t)
	tearRecord(t, path, 10)
	sealed := func(op vfs.Op) bool { return op.Kind == vfs.OpChmod && strings.Contains(op.Name, rundir.TelemetryDir) }
	if _, err := runToEnd(t, path, options(dieAfter(m, sealed))); err == nil {
		t.Fatal("the recorder was to die before the END entry")
	}
	sum, err := runToEnd(t, path, options(m))
	check(t, err)
	rep := verifyOK(t, m)
	g := rep.Completeness.Generations[0]
	balanced(t, sum, g, 11)
	if len(g.LostRanges) != 1 || g.LostRanges[0].Reason != "torn" {
		t.Fatalf("%+v", g)
	}
}

// A digest of many fields is larger than its record: the log's bound on what waits must not stop the recorder.
func TestManyDigests(t *testing.T) {
	m := vfs.NewMem()
	fields := []record.Field{{Name: "loss", Class: record.Metric}}
	for i := range 32 {
		fields = append(fields, record.Field{Name: fmt.Sprintf("d%d", i), Class: record.Digest})
	}
	schema, err := record.NewSchema("wide.v1", fields...)
	check(t, err)
	const steps = 17 << 10
	path := t.TempDir() + "/wide.ring"
	p, err := ring.Create(ring.Config{Path: path, RunID: runID, Schema: schema.Text(), PayloadLen: 8 * schema.Words(), Slots: 32 << 10})
	check(t, err)
	v := record.NewValues(schema)
	for step := range uint64(steps) {
		p.Emit(v.Payload(step+1, int64(step)))
	}
	check(t, p.Close(true))
	o := options(m)
	o.CommitBytes, o.SegmentSize = 64<<20, 64<<20
	sum, err := runToEnd(t, path, o)
	check(t, err)
	if sum.Digests != steps {
		t.Fatalf("%+v", sum)
	}
	verifyOK(t, m)
}

// A staged container that is malformed is dropped; so is a second request for a step. The run goes on.
func TestMalformedSnapshot(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{areas: 5})
	x := start(t, p.Path(), options(m))
	stage := func(size int, fill func(dst []byte)) {
		t.Helper()
		p.emit(5)
		if !p.Stage(p.step, 0, size, fill) {
			t.Fatal("no free staging area")
		}
		p.waitFor(0)
	}
	twice := []snapshot.Section{{Name: "a"}, {Name: "a"}}
	stage(100, func(dst []byte) { copy(dst, "no container") })
	stage(0, func([]byte) {})
	stage(snapshot.SectionsSize(twice), func(dst []byte) { snapshot.AppendSections(dst[:0], twice) })
	p.emit(5)
	if first, second := p.stage(), p.stage(); !first || !second {
		t.Fatal("no free staging area")
	}
	p.waitFor(1)
	check(t, p.Close(true))
	sum := x.finish()
	if sum.Snapshots != 1 || sum.Stored != 20 {
		t.Fatalf("%+v", sum)
	}
	verifyOK(t, m)
	equal(t, "snapshots", names(t, m, rundir.At(runDir).Snapshots()), snapshots(20))
}

// A snapshot that somebody removes behind the recorder's back is none to prune, and no reason to stop.
func TestPruneMissingSnapshot(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), options(m))
	for i := range uint64(3) {
		p.emit(5)
		p.stage()
		p.waitFor(i + 1)
		if i == 0 {
			check(t, m.Remove(rundir.At(runDir).Snapshot(snapshot.FileName(5, 0))))
		}
	}
	check(t, p.Close(true))
	x.finish()
	verifyOK(t, m)
}
