package recorder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// messages is a logger's output, for one who counts it.
type messages struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (m *messages) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.buf.Write(p)
}

func (m *messages) count(part string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Count(m.buf.String(), part)
}

func (m *messages) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.buf.String()
}

// lostFrames counts the records in the lost ranges of the telemetry, by reason.
func lostFrames(t testing.TB, fsys vfs.FS) map[record.LostReason]uint64 {
	t.Helper()
	lost := map[record.LostReason]uint64{}
	for _, f := range frames(t, fsys) {
		if f.Kind == record.KindLost {
			lost[f.Reason] += f.To - f.Seq
		}
	}
	return lost
}

// fault is a way in which storage stops taking anything, and how that ends.
type fault struct {
	name  string
	errno syscall.Errno
	begin func(*vfs.Mem, *vfs.Injector)
	end   func(*vfs.Mem, *vfs.Injector)
}

func faults() []fault {
	dir := rundir.At(runDir)
	clear := func(_ *vfs.Mem, in *vfs.Injector) { in.Clear() }
	rule := func(r vfs.Rule) func(*vfs.Mem, *vfs.Injector) {
		r.Sticky = true
		return func(_ *vfs.Mem, in *vfs.Injector) { in.Add(r) }
	}
	return []fault{
		{"disk full", syscall.ENOSPC, func(m *vfs.Mem, _ *vfs.Injector) { fill(m) }, func(m *vfs.Mem, _ *vfs.Injector) { m.SetCapacity(0) }},
		{"nothing can be written", syscall.EIO, rule(vfs.Rule{Op: vfs.OpMutates}), clear},
		{"read-only", syscall.EROFS, rule(vfs.Rule{Op: vfs.OpMutates, Err: syscall.EROFS}), clear},
		{"half writes", syscall.ENOSPC, rule(vfs.Rule{Op: vfs.OpWrite, Err: syscall.ENOSPC, Short: true}), clear},
		{"no sync of telemetry", syscall.EIO, rule(vfs.Rule{Op: vfs.OpDatasync, Path: dir.Telemetry() + "/*"}), clear},
		{"no sync of the log", syscall.EIO, rule(vfs.Rule{Op: vfs.OpDatasync, Path: dir.Digests() + "/*"}), clear},
		{"no permission", syscall.EACCES, rule(vfs.Rule{Op: vfs.OpOpen | vfs.OpCreate | vfs.OpWrite, Err: syscall.EACCES}), clear},
		{"directory moved away", syscall.ENOENT,
			func(m *vfs.Mem, _ *vfs.Injector) { mustRename(m, runDir, runDir+".away") },
			func(m *vfs.Mem, _ *vfs.Injector) { mustRename(m, runDir+".away", runDir) }},
	}
}

// fill takes all the space that is left; what is reserved or given back can be used again.
func fill(m *vfs.Mem) {
	const huge = 1 << 40
	m.SetCapacity(huge)
	free, err := m.Free("/")
	if err != nil {
		panic(err)
	}
	m.SetCapacity(huge - int64(free))
}

func mustRename(m *vfs.Mem, from, to string) {
	if err := m.Rename(from, to); err != nil {
		panic(err)
	}
}

// TestTrouble: whatever happens to storage in the middle of a run, the recorder goes on draining, says so once, accounts
// for every record, and records again when it is over.
func TestTrouble(t *testing.T) {
	for _, f := range faults() {
		for _, hold := range []int{1 << 10, 1 << 20} {
			t.Run(fmt.Sprintf("%s, %d held", f.name, hold), func(t *testing.T) { testTrouble(t, f, hold) })
		}
	}
}

func testTrouble(t *testing.T, f fault, hold int) {
	disk := vfs.NewMem()
	in := vfs.Inject(disk)
	said := &messages{}
	o := options(in)
	o.HoldBytes = hold
	o.Logger = slog.New(slog.NewTextHandler(said, nil))
	p := newProducer(t, ringConfig{slots: 512, areas: 2})
	x := start(t, p.Path(), o)
	p.emit(50)
	p.stage()
	p.waitFor(1)
	f.begin(disk, in)
	for range 20 {
		p.emit(20)
		p.stage()
		p.waitDrained() // nothing is overrun: what is lost then is lost to storage
	}
	p.until(func(c ring.ConsumerState) bool { return c.Fault == f.errno })
	f.end(disk, in)
	p.until(func(c ring.ConsumerState) bool { return c.Fault == 0 && c.Synced == p.Position() })
	stored := p.Consumer().Stored
	p.emit(50)
	p.waitFor(0)
	if got := p.Consumer().Stored; got != stored+50 {
		t.Fatalf("of 50 records behind the fault %d were stored", got-stored)
	}
	p.until(func(ring.ConsumerState) bool { return p.CanStage() })
	p.stage()
	check(t, p.Finish(true))
	sum := x.finish()
	noRing(t, p.Path())

	rep := verifyOK(t, disk.Crash(nil, vfs.DropAll))
	g := rep.Completeness.Generations[0]
	balanced(t, sum, g, 500)
	lost := lostFrames(t, disk)
	if lost[record.LostStorage] != sum.Lost || sum.LostStorage != sum.Lost || g.DigestsMissing > 0 {
		t.Fatalf("lost %v, summary %+v, %s", lost, sum, describe(rep))
	}
	if held := hold > 500*200; held != (sum.Lost == 0) {
		t.Fatalf("%d bytes were to be held, %d records were lost", hold, sum.Lost)
	}
	if n := said.count("storage takes nothing"); n != 1 {
		t.Errorf("the beginning was said %d times:\n%s", n, said)
	}
	if n := said.count("storage takes records again"); n != 1 {
		t.Errorf("the end was said %d times:\n%s", n, said)
	}
	if n := said.count("level="); n > 8 { // where snapshots and heads fail on their own, that has a beginning and an end too
		t.Errorf("%d errors were reported:\n%s", n, said)
	}
	told := 0
	for _, e := range entries(t, disk, digestlog.KindEvent) {
		if e.Code == digestlog.EventStorage {
			told++
		}
	}
	if told != 1 {
		t.Errorf("%d EVENT entries tell of the fault", told)
	}
	found, err := recorder.NewestSnapshot(disk, runDir, func(err error) { t.Error(err) })
	check(t, err)
	if found.Meta.Step != 500 {
		t.Errorf("the newest snapshot is of step %d", found.Meta.Step)
	}
}

// Of the snapshots that are asked for while storage takes nothing as many are held as leave the producer an area.
func TestTroubleHoldsSnapshots(t *testing.T) {
	for _, c := range []struct{ asked, stored int }{{3, 3}, {5, 3}} {
		disk := vfs.NewMem()
		in := vfs.Inject(disk)
		p := newProducer(t, ringConfig{areas: 4, slots: 512})
		x := start(t, p.Path(), options(in))
		p.emit(10)
		p.waitFor(0)
		in.Add(vfs.Rule{Op: vfs.OpMutates, Sticky: true})
		p.emit(10)
		p.until(func(c ring.ConsumerState) bool { return c.Fault == syscall.EIO })
		for range c.asked {
			p.emit(1)
			p.until(func(ring.ConsumerState) bool { return p.CanStage() })
			if !p.stage() {
				t.Fatal("no area is free")
			}
			p.waitDrained()
		}
		p.until(func(s ring.ConsumerState) bool { return s.Unsaved == uint64(c.asked-c.stored) })
		in.Clear()
		check(t, p.Finish(true))
		sum := x.finish()
		if sum.Snapshots != uint64(c.stored) || sum.Unsaved != uint64(c.asked-c.stored) || sum.Lost > 0 {
			t.Errorf("%d asked for, %+v", c.asked, sum)
		}
		verifyOK(t, disk)
	}
}

// A file that a failed try left under a snapshot's name is set aside: nothing vouches for it.
func TestSnapshotNameTaken(t *testing.T) {
	disk := vfs.NewMem()
	p := newProducer(t, ringConfig{areas: 2})
	x := start(t, p.Path(), options(disk))
	p.emit(10)
	p.waitFor(0)
	path := rundir.At(runDir).Snapshot(snapshot.FileName(10, 0))
	check(t, vfs.Replace(disk, path, []byte("half"), 0o600))
	p.stage()
	p.waitFor(1)
	check(t, p.Finish(true))
	if sum := x.finish(); sum.Snapshots != 1 || sum.Unsaved != 0 || !exists(disk, path+rundir.OrphanSuffix) {
		t.Errorf("%+v", sum)
	}
	verifyOK(t, disk)
}

// One failed look at the run directory is no trouble: nothing is held, nothing given up.
func TestOneFailedLook(t *testing.T) {
	disk := vfs.NewMem()
	in := vfs.Inject(disk)
	said := &messages{}
	o := options(in)
	o.Logger = slog.New(slog.NewTextHandler(said, nil))
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), o)
	in.Add(vfs.Rule{Op: vfs.OpStat, Path: rundir.ManifestFile})
	for len(in.Fired()) == 0 {
		p.emit(1)
		p.waitFor(0)
	}
	p.emit(5)
	p.waitFor(0)
	check(t, p.Finish(true))
	x.finish()
	if said.String() != "" {
		t.Errorf("said:\n%s", said)
	}
}

// TestTroubleToTheEnd: on a disk that stays full the run is closed all the same, out of the reserve, and nothing is
// unaccounted for.
func TestTroubleToTheEnd(t *testing.T) {
	for _, records := range []int{10, 400} {
		t.Run(fmt.Sprint(records), func(t *testing.T) {
			disk := vfs.NewMem()
			o := options(disk)
			o.HoldBytes = 8 << 10
			p := newProducer(t, ringConfig{slots: 512, areas: 1})
			x := start(t, p.Path(), o)
			p.emit(50)
			p.stage()
			p.waitFor(1)
			fill(disk)
			for n := records; n > 0; n -= 10 {
				p.emit(10)
				p.waitDrained()
			}
			p.stage()
			check(t, p.Finish(true))
			sum := x.finish()
			noRing(t, p.Path())
			rep := verifyOK(t, disk.Crash(nil, vfs.DropAll))
			balanced(t, sum, rep.Completeness.Generations[0], uint64(50+records))
			if got := lostFrames(t, disk)[record.LostStorage]; got != sum.Lost || sum.Unsaved != 1 || sum.Snapshots != 1 || records > 100 && sum.Lost == 0 {
				t.Fatalf("%d in frames, %+v", got, sum)
			}
			if exists(disk, rundir.At(runDir).Reserve()) {
				t.Error("the reserve is still there")
			}
		})
	}
}

// TestTroubleForGood: where nothing can be written at all the recorder ends with an error when its patience is over, says
// what it is, and the next one brings the run to its end with what the ring still has.
func TestTroubleForGood(t *testing.T) {
	for _, f := range faults() {
		if f.name == "disk full" {
			continue // that one ends well
		}
		t.Run(f.name, func(t *testing.T) {
			disk := vfs.NewMem()
			in := vfs.Inject(disk)
			o := options(in)
			p := newProducer(t, ringConfig{slots: 64, areas: 1})
			x := start(t, p.Path(), o)
			p.emit(20)
			p.waitFor(0)
			f.begin(disk, in)
			p.emit(20)
			p.waitDrained()
			p.stage()
			check(t, p.Finish(true))
			sum, err := x.wait()
			if !errors.Is(err, f.errno) {
				t.Fatalf("%+v, %v", sum, err)
			}
			f.end(disk, in)
			sum, err = runToEnd(t, p.Path(), o)
			check(t, err)
			rep := verifyOK(t, disk.Crash(nil, vfs.DropAll))
			balanced(t, sum, rep.Completeness.Generations[0], 40)
			if sum.Lost > 0 || sum.Snapshots != 1 {
				t.Fatalf("%+v: the ring had everything", sum)
			}
		})
	}
}

// A recorder that is told to stop does not wait for storage; the next one finds in the ring what it could not store.
func TestDetachInTrouble(t *testing.T) {
	disk := vfs.NewMem()
	in := vfs.Inject(disk)
	o := options(in)
	p := newProducer(t, ringConfig{areas: 1})
	x := start(t, p.Path(), o)
	p.emit(20)
	p.waitFor(0)
	in.Add(vfs.Rule{Op: vfs.OpMutates, Sticky: true})
	p.emit(20)
	p.stage()
	p.waitDrained()
	x.cancel()
	if _, err := x.wait(); !errors.Is(err, context.Canceled) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	in.Clear()
	x = start(t, p.Path(), o)
	p.waitFor(1)
	check(t, p.Finish(true))
	if sum := x.finish(); sum.Stored != 40 || sum.Lost != 0 {
		t.Fatalf("%+v", sum)
	}
	verifyOK(t, disk)
}

// TestCrashInTrouble lets the machine die at every operation of a life in which the disk fills up twice: once in the
// middle, and once for the rest of the second generation.
func TestCrashInTrouble(t *testing.T) {
	l := &life{t: t, disk: vfs.NewMem(), seed: 7, dir: t.TempDir(), staged: map[uint32][]uint64{}, promises: map[uint32]promise{}}
	l.disk.SetHook(l.picture)
	l.troubled(0, &rundir.Resumed{}, true)
	if _, err := recorder.Recover(t.Context(), runDir, l.dir, options(l.disk)); err != nil {
		t.Fatal(err)
	}
	l.troubled(1, newest(t, l.disk), false)
	l.disk.SetHook(nil)
	rep := verifyOK(t, l.disk)
	for _, g := range rep.Completeness.Generations {
		if g.Lost == 0 || g.Stored == 0 {
			t.Fatalf("this run has too little trouble: %s", describe(rep))
		}
	}
	t.Logf("%d moments", len(l.moments))
	stride := slice
	switch {
	case torture:
		stride = 1
	case testing.Short(), raceEnabled:
		stride = 37
	}
	dir := t.TempDir()
	for i := 0; i < len(l.moments); i += stride {
		m := &l.moments[i]
		m.disk.SetCapacity(0) // somebody has made room
		l.survive(t, m, i, dir)
	}
}

// troubled is a generation whose disk is full for a while, or from some moment on.
func (l *life) troubled(g uint32, resumed *rundir.Resumed, over bool) {
	t := l.t
	c := ringConfig{dir: l.dir, generation: g, slots: 256, after: resumed.Step, areas: 1}
	if g > 0 {
		c.resumed = resumed
	}
	p := newProducer(t, c)
	l.mu.Lock()
	l.p = p
	l.mu.Unlock()
	o := options(l.disk)
	o.HoldBytes = 2 << 10
	x := start(t, p.Path(), o)
	l.turn(func(p *producer) { p.emit(10) })
	l.turn(func(p *producer) {
		if p.stage() {
			l.staged[g] = append(l.staged[g], p.step)
		}
	})
	p.waitFor(1)
	fill(l.disk)
	for range 6 {
		l.turn(func(p *producer) { p.emit(10) })
		p.waitDrained()
	}
	p.until(func(c ring.ConsumerState) bool { return c.Fault == syscall.ENOSPC })
	if over {
		l.disk.SetCapacity(0)
		p.until(func(c ring.ConsumerState) bool { return c.Fault == 0 })
		l.turn(func(p *producer) { p.emit(10) })
		p.waitFor(0)
	}
	check(t, p.Finish(true))
	sum := x.finish()
	l.turn(func(p *producer) {
		l.promises[g] = promise{synced: sum.Emitted, snapshots: sum.Snapshots, emitted: sum.Emitted, clean: true}
	})
	l.disk.SetCapacity(0)
}
