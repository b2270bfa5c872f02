package recorder_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// TestFaults makes each operation of a run fail once, and then, with the fault gone, wants a run without any loss.
func TestFaults(t *testing.T) {
	t.Parallel()
	stride := slice
	switch {
	case torture:
		stride = 1
	case testing.Short(), raceEnabled:
		stride = 37
	}
	once := vfs.Rule{}
	dir := t.TempDir()
	for n := 1; survivesFault(t, dir, once, n); n += stride {
	}
	if !torture {
		return
	}
	for _, rule := range []vfs.Rule{
		{Sticky: true}, // the disk is gone until the next recorder
		{Op: vfs.OpWrite, Short: true, Err: syscall.ENOSPC}, // half a write
		{Op: vfs.OpAnySync}, // data lost, the next sync is told success
		{Op: vfs.OpWrite | vfs.OpCreate, Sticky: true, Err: syscall.ENOSPC},
	} {
		for n := 1; survivesFault(t, dir, rule, n); n++ {
		}
	}
}

// survivesFault is false when there is no n-th operation.
func survivesFault(t *testing.T, dir string, rule vfs.Rule, n int) bool {
	t.Helper()
	const steps, staged = 60, 3
	disk := vfs.NewMem()
	p := newProducer(t, ringConfig{dir: dir, areas: staged})
	for range staged {
		p.emit(steps / staged)
		p.stage()
	}
	check(t, p.Close(true))
	rule.Nth = n
	in := vfs.Inject(disk, rule)
	_, err := boundedRun(t, p.Path(), options(in))
	fired := in.Fired()
	if len(fired) == 0 {
		check(t, err)
		return false
	}
	if err != nil {
		named := false
		for _, op := range fired {
			named = named || strings.Contains(err.Error(), filepath.Base(op.Name))
		}
		if !named || !errors.Is(err, syscall.EIO) && rule.Err == nil {
			t.Fatalf("after a fault in %v the error is %v", fired, err)
		}
	}
	in.Clear()
	if err != nil {
		sum, err := boundedRun(t, p.Path(), options(in))
		if err != nil {
			t.Fatalf("fault in %v: the next recorder: %v", fired, err)
		}
		if sum.Emitted != steps || sum.Stored != steps || sum.Digests != steps || sum.Snapshots != staged {
			t.Fatalf("fault in %v: %+v", fired, sum)
		}
	}
	noRing(t, p.Path())
	rep := verifyOK(t, disk.Crash(nil, vfs.DropAll))
	if g := rep.Completeness.Generations[0]; g.Stored != steps || g.Digests != steps || g.DigestsMissing > 0 || rep.Completeness.Snapshots != 2 {
		t.Fatalf("fault in %v: %s", fired, describe(rep))
	}
	return true
}

// boundedRun is runToEnd for what might hang.
func boundedRun(t *testing.T, path string, o recorder.Options) (sum recorder.Summary, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		sum, err = runToEnd(t, path, o)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the recorder hangs")
	}
	return sum, err
}

// A fault shows in the ring at once, also when nothing comes from the producer any more, and is over when storage is well.
func TestFaultWhileIdle(t *testing.T) {
	in := vfs.Inject(vfs.NewMem())
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), options(in))
	in.Add(vfs.Rule{Op: vfs.OpDatasync, Path: "/runs/*/telemetry/*", Sticky: true})
	p.emit(1)
	p.until(func(c ring.ConsumerState) bool { return c.Fault == syscall.EIO && c.Held == 1 })
	in.Clear()
	p.until(func(c ring.ConsumerState) bool { return c.Fault == 0 && c.Held == 0 && c.Stored == 1 })
	check(t, p.Finish(true))
	if sum := x.finish(); sum.Stored != 1 || sum.Lost != 0 {
		t.Fatalf("%+v", sum)
	}
}

// telemetryOnly picks the sync of a telemetry batch: a recorder that dies behind it has not logged the batch.
func telemetryOnly(op vfs.Op) bool {
	return op.Kind == vfs.OpDatasync && strings.Contains(op.Name, rundir.TelemetryDir)
}

// Digests that a dead recorder owed are taken from the ring, as far as it still has them, and else noted as missing.
func TestOwedDigests(t *testing.T) {
	for _, c := range []struct {
		name    string
		emit    int // while there is no recorder
		missing uint64
	}{
		{"all there", 20, 0},
		{"some overwritten", 64 - 10, 10},
		{"all overwritten", 200, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := vfs.NewMem()
			p := newProducer(t, ringConfig{})
			p.emit(20)
			x := start(t, p.Path(), frozen(options(dieAfter(m, telemetryOnly))))
			p.waitDrained()
			x.cancel()
			if _, err := x.wait(); !errors.Is(err, syscall.EIO) {
				t.Fatalf("the recorder was to die behind the telemetry: %v", err)
			}
			p.emit(c.emit)
			_, path := p.die(t)
			sum, err := runToEnd(t, path, options(m))
			check(t, err)
			rep := verifyOK(t, m)
			g := rep.Completeness.Generations[0]
			balanced(t, sum, g, uint64(20+c.emit))
			if g.DigestsMissing != c.missing || g.Digests+c.missing != g.Stored || sum.Digests != g.Digests {
				t.Fatalf("%+v\n%+v", sum, g)
			}
			var noted []digestlog.Entry
			for _, e := range entries(t, m, digestlog.KindEvent) {
				if e.Code == digestlog.EventDigestsMissing {
					noted = append(noted, e)
				}
			}
			if c.missing == 0 && len(noted) > 0 || c.missing > 0 && (len(noted) != 1 || noted[0].Seq != c.missing-1) {
				t.Fatalf("noted as missing: %+v", noted)
			}
		})
	}
}

// frozen stops the clock, so that nothing is committed before it must be.
func frozen(o recorder.Options) recorder.Options {
	o.Now = func() time.Time { return time.Date(2026, 11, 22, 20, 18, 33, 0, time.UTC) }
	o.CommitBytes, o.SegmentSize = 16<<10, 64<<10
	return o
}

// A record that was given up as lost stays lost, although the ring of the dead producer can deliver it after all.
func TestOwedDigestOfLostRecord(t *testing.T) {
	for range 50 { // the recorder may keep up with the producer, or be overrun twice
		m := vfs.NewMem()
		p := newProducer(t, ringConfig{slots: 16})
		x := start(t, p.Path(), frozen(options(dieAfter(m, telemetryOnly))))
		p.emit(10)
		p.waitDrained()
		p.emit(30)
		p.waitDrained()
		x.cancel()
		if _, err := x.wait(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("the recorder was to die behind the telemetry: %v", err)
		}
		lost := slices.DeleteFunc(frames(t, m), func(f record.Frame) bool { return f.Kind != record.KindLost })
		_, path := p.die(t)
		if len(lost) != 1 || lost[0].To <= 40-16 {
			continue // nothing that was given up is still in the ring
		}
		sum, err := runToEnd(t, path, options(m))
		check(t, err)
		rep := verifyOK(t, m)
		balanced(t, sum, rep.Completeness.Generations[0], 40)
		if n := len(entries(t, m, digestlog.KindLost)); n != 1 {
			t.Fatalf("%d LOST entries", n)
		}
		return
	}
	t.Fatal("in 50 runs the recorder was never overrun as it should be")
}

// A recorder dies while it pays what another owed, between LOST entries and digests: each is logged once.
func TestOwedTwice(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	p.emit(20)
	_, path := p.die(t)
	tearRecord(t, path, 20)
	if _, err := runToEnd(t, copyRing(t, path, t.TempDir()), frozen(options(dieAfter(m, telemetryOnly)))); err == nil {
		t.Fatal("the recorder was to die behind the telemetry")
	}
	for n := 1; ; n++ { // the second one dies later each time
		disk := m.Crash(nil, vfs.KeepAll)
		in := vfs.Inject(disk, vfs.Rule{Op: vfs.OpMutates, Nth: n, Sticky: true})
		again := copyRing(t, path, t.TempDir())
		_, err := runToEnd(t, again, options(in))
		if len(in.Fired()) == 0 {
			check(t, err)
			return
		}
		if err != nil {
			_, err = runToEnd(t, again, options(disk))
		}
		check(t, err)
		g := verifyOK(t, disk).Completeness.Generations[0]
		if l, d := len(entries(t, disk, digestlog.KindLost)), len(entries(t, disk, digestlog.KindStep)); l != 1 || d != 20 || g.DigestsMissing > 0 {
			t.Fatalf("%d LOST and %d STEP entries", l, d)
		}
	}
}

// What is published as synced is synced: not while the telemetry, and not while the log is being written.
func TestSyncedPromise(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	at, cont := make(chan string), make(chan bool)
	done := make(chan struct{})
	defer close(done)
	o := frozen(options(m))
	o.CommitBytes = 4 << 10 // less than ten records take in memory
	x := start(t, p.Path(), o)
	m.SetHook(func(op vfs.Op) {
		if op.Kind != vfs.OpDatasync {
			return
		}
		select {
		case at <- op.Name:
		case <-done:
		}
		select {
		case <-cont:
		case <-done:
		}
	})
	p.emit(10)
	for _, dir := range []string{rundir.TelemetryDir, rundir.DigestDir} {
		if name := <-at; !strings.Contains(name, dir) {
			t.Fatalf("%s is synced, %s was to be", name, dir)
		}
		p.emit(1) // the drainer is seen to go on
		p.waitDrained()
		if c := p.Consumer(); c.Synced != 0 || c.Stored != 0 {
			t.Fatalf("published too early: %+v", c)
		}
		if dir == rundir.DigestDir {
			m.SetHook(nil)
		}
		cont <- true
	}
	check(t, p.Close(true))
	x.finish()
	verifyOK(t, m)
}

// A snapshot is published behind the records before it, also when nothing else asks for a commit.
func TestSnapshotAfterRecords(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	start(t, p.Path(), frozen(options(m)))
	p.emit(10)
	p.stage()
	p.until(func(c ring.ConsumerState) bool { return c.Snapshots == 1 })
	rep := verify(t, m.Crash(nil, vfs.DropAll))
	if rep.Verdict != audit.CrashTail || rep.Completeness.Stored != 10 || rep.Completeness.Snapshots != 1 {
		t.Fatalf("%v\n%s", rep.Verdict, describe(rep))
	}
}

// A recorder that takes a generation up says how far it got, and keeps the digest interval that it was begun with.
func TestTakeUp(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	o := options(m)
	o.DigestInterval = 3
	x := start(t, p.Path(), o)
	p.emit(20)
	p.waitFor(0)
	x.cancel()
	if _, err := x.wait(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r, err := recorder.Attach(p.Path(), options(m))
	check(t, err)
	if c := p.Consumer(); c.Stored != 20 || c.Synced != 20 || c.Position != 20 {
		t.Fatalf("published on taking up: %+v", c)
	}
	p.emit(10)
	check(t, p.Close(true))
	sum, err := r.Run(t.Context())
	check(t, err)
	if rep := verifyOK(t, m); sum.Digests != 10 || rep.Completeness.DigestsMissing != 0 {
		t.Fatalf("%+v\n%s", sum, describe(rep))
	}
}
