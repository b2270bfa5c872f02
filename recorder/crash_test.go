package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

var policies = []vfs.Policy{vfs.DropAll, vfs.KeepAll, vfs.Mixed, vfs.Garbage}

// promise is what a recorder had let others know of one generation.
type promise struct {
	synced    uint64 // published
	snapshots uint64 // published: logged ones
	emitted   uint64 // by the producer
	clean     bool   // the summary was returned: the generation is closed
}

// moment is a death of the recorder: what is on disk and in shared memory, and what had been promised before.
type moment struct {
	op       vfs.Op
	policy   vfs.Policy
	disk     *vfs.Mem
	ring     map[string][]byte // files by base name; nil: there is none
	promises map[uint32]promise
	last     uint32
}

// life is a run with everything in it, and a camera at every operation that changes the disk.
type life struct {
	t       testing.TB
	disk    *vfs.Mem
	seed    uint64
	staged  map[uint32][]uint64 // steps of the snapshots asked for
	dir     string              // of the ring
	moments []moment

	mu       sync.Mutex // the producer's turns and the pictures exclude each other
	p        *producer
	promises map[uint32]promise
	before   vfs.OpKind // the operation before
}

func (l *life) picture(op vfs.Op) {
	if op.Kind&vfs.OpMutates == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.look()
	files := map[string][]byte{}
	if l.p != nil {
		paths, _ := filepath.Glob(l.p.Path() + "*")
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				panic(err)
			}
			files[filepath.Base(path)] = b
		}
	}
	was := l.before
	l.before = op.Kind
	for _, policy := range policies {
		if policy == vfs.DropAll && was&vfs.OpAnySync == 0 {
			continue // nothing was added to what is durable
		}
		rng := rand.New(rand.NewPCG(l.seed, uint64(len(l.moments))))
		m := moment{op: op, policy: policy, disk: l.disk.Crash(rng, policy), ring: files, promises: maps.Clone(l.promises)}
		if l.p != nil {
			m.last = l.p.Header().Generation
		}
		l.moments = append(l.moments, m)
	}
}

// look takes note of what the recorder has published.
func (l *life) look() {
	if l.p == nil {
		return
	}
	c, g := l.p.Consumer(), l.p.Header().Generation
	was := l.promises[g]
	if was.clean {
		return
	}
	l.promises[g] = promise{synced: max(was.synced, c.Synced), snapshots: max(was.snapshots, c.Snapshots), emitted: l.p.Position()}
}

func (l *life) turn(f func(p *producer)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.p)
	l.look()
}

// newLife runs two generations, with rolls, losses, snapshots, prunes, a second recorder in the middle and a resume.
func newLife(t testing.TB, seed uint64) *life {
	l := &life{t: t, disk: vfs.NewMem(), seed: seed, dir: t.TempDir(), staged: map[uint32][]uint64{}, promises: map[uint32]promise{}}
	l.disk.SetHook(l.picture)
	l.generation(0, &rundir.Resumed{}, 4, false)
	last, err := recorder.Recover(t.Context(), runDir, l.dir, anchoredOptions(l.disk))
	check(t, err)
	if last.Generation != 0 || last.Status != digestlog.StatusFailed {
		t.Fatalf("Recover found %+v", last)
	}
	l.generation(1, newest(t, l.disk), 3, true)
	l.disk.SetHook(nil)
	rep := verifyOK(t, l.disk)
	if rep.Files.Telemetry < 4 || rep.Files.Digests < 5 || len(entries(t, l.disk, digestlog.KindPrune)) == 0 {
		t.Fatalf("this run does not roll and prune enough to be worth crashing: %s", describe(rep))
	}
	return l
}

func (l *life) generation(g uint32, resumed *rundir.Resumed, bursts int, clean bool) {
	t := l.t
	c := ringConfig{dir: l.dir, generation: g, slots: 32, after: resumed.Step}
	if g > 0 {
		c.resumed = resumed
	}
	p := newProducer(t, c)
	l.mu.Lock()
	l.p = p
	l.mu.Unlock()
	x := start(t, p.Path(), anchoredOptions(l.disk))
	var staged uint64
	for i := range bursts {
		l.turn(func(p *producer) { p.emit(5) })
		if i%2 == 1 {
			l.turn(func(p *producer) {
				if p.stage() {
					staged++
					l.staged[g] = append(l.staged[g], p.step)
				}
				p.emit(3)
			})
		}
		if i == 1 {
			l.turn(func(p *producer) { p.emit(40) }) // more than a ring
			x.cancel()
			if _, err := x.wait(); !errors.Is(err, context.Canceled) {
				t.Fatalf("a cancelled recorder returned %v", err)
			}
			x = start(t, p.Path(), anchoredOptions(l.disk))
		}
		p.waitFor(staged)
	}
	check(t, p.Finish(clean))
	sum := x.finish()
	l.turn(func(p *producer) {
		l.promises[g] = promise{synced: sum.Emitted, snapshots: sum.Snapshots, emitted: sum.Emitted, clean: true}
	})
}

// TestCrash lets the recorder and the machine die before every operation of a life. What is left is never called damaged,
// the next recorder finishes it, exactly, and nothing is missing that was promised.
func TestCrash(t *testing.T) {
	lives, stride := 1, slice
	switch {
	case torture:
		lives, stride = 20, 1
	case testing.Short(), raceEnabled:
		stride = 37
	}
	for seed := range uint64(lives) {
		l := newLife(t, seed)
		t.Logf("life %d: %d moments", seed, len(l.moments))
		const workers = 8
		for w := range workers {
			t.Run(fmt.Sprint("life ", seed, " part ", w), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir() // a ring that was recorded is gone, so one directory will do
				for i := w * stride; i < len(l.moments); i += workers * stride {
					l.survive(t, &l.moments[i], i, dir)
				}
			})
		}
	}
}

func (l *life) survive(t *testing.T, m *moment, i int, dir string) {
	t.Helper()
	defer func() {
		t.Helper()
		if t.Failed() {
			t.Fatalf("before operation %v: policy %d, promises %+v", m.op, m.policy, m.promises)
		}
	}()
	rep := verify(t, m.disk)
	switch rep.Verdict {
	case audit.OK, audit.CrashTail:
	case audit.NotFound:
		if len(m.promises) > 0 && m.promises[0].synced > 0 {
			t.Fatalf("the run is gone")
		}
	default:
		t.Fatalf("after the crash: %v\n%s", rep.Verdict, describe(rep))
	}
	heldAgainstAnchor(t, m.disk)
	// In the short forms each policy meets both cases, at alternating operations.
	there := (i+i/len(policies))%2 == 0
	if there || torture {
		l.ringThere(t, m, m.disk.Crash(nil, vfs.KeepAll), i, dir)
	}
	if !there || torture {
		l.ringGone(t, m, m.disk.Crash(nil, vfs.KeepAll), i, dir)
	}
}

// ringThere: the machine lives, or the disk lost its power alone.
func (l *life) ringThere(t *testing.T, m *moment, disk *vfs.Mem, i int, dir string) {
	t.Helper()
	if len(m.ring) == 0 {
		return
	}
	for name, b := range m.ring {
		check(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	path := filepath.Join(dir, rundir.RingName(runID))
	if i%3 == 0 { // the next one dies too
		disk = dieAgain(t, path, disk, rand.New(rand.NewPCG(l.seed, uint64(i))))
		if _, err := os.Stat(path); err != nil {
			l.keeps(t, m, disk)
			return
		}
	}
	o := anchoredOptions(disk)
	sum, err := runToEnd(t, path, o)
	check(t, err)
	rep := l.keeps(t, m, disk)
	balanced(t, sum, rep.Completeness.Generations[m.last], m.promises[m.last].emitted)
	anchoredLast(t, disk)
	noRing(t, path)
}

// dieAgain lets a recorder that takes up the run die at some operation, with a crash of the disk, and returns that.
func dieAgain(t *testing.T, path string, disk *vfs.Mem, rng *rand.Rand) *vfs.Mem {
	t.Helper()
	in := vfs.Inject(disk, vfs.Rule{Op: vfs.OpMutates, Nth: 1 + rng.IntN(40), Sticky: true})
	if _, err := runToEnd(t, path, anchoredOptions(in)); err == nil && slices.ContainsFunc(in.Fired(), aboutRun) {
		t.Fatalf("the recorder did not notice: %v", in.Fired())
	}
	return disk.Crash(rng, policies[rng.IntN(len(policies))])
}

// ringGone: the machine was started again.
func (l *life) ringGone(t *testing.T, m *moment, disk *vfs.Mem, i int, dir string) {
	t.Helper()
	o := anchoredOptions(disk)
	last, err := recorder.Recover(t.Context(), runDir, dir, o)
	if err != nil {
		if p := m.promises[0]; p.synced > 0 || !errors.Is(err, fs.ErrNotExist) && len(entriesIfAny(disk)) > 0 {
			t.Fatalf("Recover: %v", err)
		}
		return
	}
	l.keeps(t, m, disk)
	anchoredLast(t, disk)
	if i%5 > 0 {
		return
	}
	p := newProducer(t, ringConfig{dir: dir, generation: last.Generation + 1, resumed: newest(t, disk), after: 1000})
	p.emit(5)
	check(t, p.Close(true))
	sum, err := runToEnd(t, p.Path(), o)
	check(t, err)
	rep := verifyOK(t, disk)
	balanced(t, sum, rep.Completeness.Generations[last.Generation+1], 5)
}

func entriesIfAny(disk *vfs.Mem) (n []struct{}) {
	for _, err := range digestlog.Entries(disk, rundir.At(runDir).Digests()) {
		if err == nil {
			n = append(n, struct{}{})
		}
	}
	return n
}

// keeps wants a closed run with everything in it that was promised.
func (l *life) keeps(t *testing.T, m *moment, disk *vfs.Mem) *audit.Report {
	t.Helper()
	dir := rundir.At(runDir)
	for _, d := range []string{dir.Path(), dir.Telemetry(), dir.Digests(), dir.Snapshots()} {
		if left := names(t, disk, d); slices.ContainsFunc(left, vfs.IsTemp) {
			t.Fatalf("left behind in %s: %v", d, left)
		}
	}
	disk = disk.Crash(nil, vfs.DropAll) // nothing of it waits for the disk
	rep := verifyOK(t, disk)
	heldAgainstAnchor(t, disk)
	logged := map[uint32]uint64{}
	for _, e := range entries(t, disk, digestlog.KindSnapshot) {
		logged[e.Generation]++
	}
	missing := map[uint32]bool{}
	for _, e := range entries(t, disk, digestlog.KindEvent) {
		missing[e.Generation] = missing[e.Generation] || e.Code == digestlog.EventDigestsMissing
	}
	for g, p := range m.promises {
		if p.synced == 0 && p.snapshots == 0 {
			continue
		}
		got := rep.Completeness.Generations[g]
		if got.Stored+got.Lost < p.synced || logged[g] < p.snapshots {
			t.Fatalf("generation %d: promised %+v, found %d snapshots and %+v", g, p, logged[g], got)
		}
		if got.DigestsMissing > 0 && !missing[g] {
			t.Fatalf("generation %d: %d digests are missing, and the log does not say so", g, got.DigestsMissing)
		}
		if n := p.snapshots; n > 0 {
			l.hasSnapshot(t, disk, g, l.staged[g][n-1])
		}
	}
	return rep
}

// hasSnapshot wants that a resume would begin with the given snapshot or a newer one.
func (l *life) hasSnapshot(t *testing.T, disk *vfs.Mem, g uint32, step uint64) {
	t.Helper()
	found, err := recorder.NewestSnapshot(disk, runDir, func(err error) { t.Error("rejected:", err) })
	check(t, err)
	if found.Meta.Generation < g || found.Meta.Generation == g && found.Meta.Step < step {
		t.Fatalf("generation %d, step %d was promised, the newest snapshot is %+v", g, step, found.Meta)
	}
	if want := state(found.Meta.Step); string(found.Sections[0].Data) != string(want[0].Data) {
		t.Fatalf("the snapshot of step %d holds %q", found.Meta.Step, found.Sections[0].Data)
	}
}

// A recorder is told to stop at random moments, and another takes its place, again and again.
func TestDetach(t *testing.T) {
	rounds := 30
	if torture {
		rounds = 1000
	}
	rng := rand.New(rand.NewPCG(1, 2))
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{slots: 1 << 15})
	var steps []uint64
	for range rounds {
		x := start(t, p.Path(), options(m))
		for range rng.IntN(8) {
			p.emit(rng.IntN(12))
			if rng.IntN(4) == 0 && p.stage() && p.step > 0 {
				steps = append(steps, p.step)
			}
		}
		x.cancel()
		if _, err := x.wait(); !errors.Is(err, context.Canceled) {
			t.Fatalf("a cancelled recorder returned %v", err)
		}
		if rep := verify(t, m); rep.Verdict != audit.CrashTail {
			t.Fatalf("%v\n%s", rep.Verdict, describe(rep))
		}
	}
	check(t, p.Close(true))
	sum, err := runToEnd(t, p.Path(), options(m))
	check(t, err)
	rep := verifyOK(t, m)
	balanced(t, sum, rep.Completeness.Generations[0], p.step)
	if sum.Lost > 0 || sum.Digests != sum.Stored || rep.Completeness.DigestsMissing > 0 {
		t.Fatalf("%+v", sum)
	}
	logged := map[string]bool{}
	for _, e := range entries(t, m, digestlog.KindSnapshot) {
		logged[e.Name] = true
	}
	for _, step := range steps {
		if !logged[snapshot.FileName(step, 0)] {
			t.Errorf("the snapshot of step %d was taken from the producer and never logged", step)
		}
	}
}
