package recorder_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
	"github.com/usp-project/usp/internal/witness/witnesstest"
	"github.com/usp-project/usp/recorder"
)

const origin = "usp/" + runID

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// watched is a witness on the loopback that trusts the key of the runs on a disk.
type watched struct {
	*witnesstest.Witness
	url string
	key note.Verifier
	opt recorder.WitnessOptions
}

func newWatched(t testing.TB, fsys vfs.FS) *watched {
	t.Helper()
	s, err := witness.NewSigner("witness.example/w1", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), func() time.Time { return noon })
	check(t, err)
	w := &watched{Witness: witnesstest.New(s), key: s}
	w.trust(t, fsys)
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	w.url = server.URL
	w.opt = recorder.WitnessOptions{URL: server.URL, Keys: []string{s.VerifierKey()}, Interval: time.Nanosecond, Timeout: 10 * time.Second}
	return w
}

// trust makes the witness know the key of a disk.
func (w *watched) trust(t testing.TB, fsys vfs.FS) {
	t.Helper()
	_, vkey, err := digestlog.LoadOrCreateKey(fsys, keyFile, nil)
	check(t, err)
	v, err := note.NewVerifier(vkey)
	check(t, err)
	w.Trust("usp/", v)
}

func (w *watched) options(fsys vfs.FS) recorder.Options {
	o := options(fsys)
	o.Witness = w.opt
	return o
}

// witnessed wants the cosigned head to verify and to be in the log, and returns its size.
func (w *watched) witnessed(t testing.TB, fsys vfs.FS) uint64 {
	t.Helper()
	rep, err := audit.Verify(t.Context(), fsys, runDir, audit.Options{Witnesses: []audit.Witness{{Key: w.key, Required: true}}})
	check(t, err)
	if rep.Verdict != audit.OK && rep.Verdict != audit.CrashTail || len(rep.Integrity.Witnessed) != 1 || rep.Integrity.Kept[0].Result != audit.Contained {
		t.Fatalf("%v, %+v\n%s", rep.Verdict, rep.Integrity.Kept, describe(rep))
	}
	got := rep.Integrity.Witnessed[0]
	if got.Name != "witness.example/w1" || !got.Time.Equal(noon) {
		t.Fatalf("%+v", got)
	}
	return got.Size
}

// emitUntil lets heads be signed until the witness has done something.
func emitUntil(p *producer, done func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			p.t.Fatal("the witness waits for something that does not come")
		}
		p.emit(1)
		p.waitFor(0)
	}
}

func TestWitness(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	w := newWatched(t, m)
	p := newProducer(t, ringConfig{})
	o := w.options(m)
	o.HeadInterval = time.Nanosecond
	x := start(t, p.Path(), o)
	for i := range 10 {
		p.emit(3)
		p.waitFor(0)
		if i > 5 { // more than one head, each proven to contain the one before
			size := w.Latest(origin).Size
			emitUntil(p, func() bool { return w.Latest(origin).Size > size })
		}
	}
	check(t, p.Close(true))
	sum := x.finish()
	n := entryCount(t, m)
	if size := w.witnessed(t, m.Crash(nil, vfs.DropAll)); size != n || w.Latest(origin).Size != n {
		t.Errorf("%d entries are witnessed, the witness has seen %d, there are %d", size, w.Latest(origin).Size, n)
	}
	if c := sum.Witness; c == nil || c.Place != w.url || c.Size != n || c.Failures != 0 || c.Fault != "" {
		t.Errorf("summary %+v", c)
	}
	verifyOK(t, m)
	// A further generation, by a recorder that knows only what lies in the run.
	last, err := recorder.Recover(t.Context(), runDir, t.TempDir(), w.options(m))
	check(t, err)
	before := w.Requests()
	recordAnchored(t, w.options(m), ringConfig{generation: last.Generation + 1, resumed: &rundir.Resumed{}}, 20)
	if size := w.witnessed(t, m); size != entryCount(t, m) || w.Requests()-before > 6 {
		t.Errorf("%d of %d entries, %d requests", size, entryCount(t, m), w.Requests()-before)
	}
}

// TestWitnessFails: a witness that fails changes nothing about the run. It is said once, and counted.
func TestWitnessFails(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	w := newWatched(t, m)
	w.Fail(http.StatusInternalServerError)
	o := w.options(m)
	o.HeadInterval = time.Nanosecond
	var said bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&said, nil))
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), o)
	emitUntil(p, func() bool { return w.Requests() >= 3 })
	w.Fail(0)
	emitUntil(p, func() bool { return w.Latest(origin).Size > 0 })
	w.Fail(http.StatusServiceUnavailable)
	check(t, p.Close(true))
	sum := x.finish()
	if c := sum.Witness; c.Failures < 3 || !strings.Contains(c.Fault, "status 503") || c.Size == 0 {
		t.Errorf("summary %+v", c)
	}
	if n := strings.Count(said.String(), "did not get to the witness"); n != 2 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
	if sum.Lost != 0 || sum.Stored != p.step {
		t.Errorf("%+v", sum)
	}
	verifyOK(t, m)
	if size := w.witnessed(t, m); size >= entryCount(t, m) {
		t.Errorf("%d entries are witnessed", size)
	}
}

// TestWitnessHangs: the run does not wait for a witness longer than it was told to.
func TestWitnessHangs(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	w := newWatched(t, m)
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	o := w.options(m)
	o.Witness.URL, o.Witness.Timeout, o.CommitTimeout = server.URL, 5*time.Millisecond, 10*time.Second
	sum := recordAnchored(t, o, ringConfig{}, 20)
	if c := sum.Witness; c.Size != 0 || c.Failures == 0 || !strings.Contains(c.Fault, "deadline exceeded") {
		t.Errorf("summary %+v", c)
	}
	verifyOK(t, m)
}

// TestWitnessFindsAttacks: a recorder that goes on with a log that was put back or written again is told so by the witness, though nothing on its own disk
// could tell.
func TestWitnessFindsAttacks(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	w := newWatched(t, m)
	recordAnchored(t, w.options(m), ringConfig{}, 20)
	older := m.Crash(nil, vfs.KeepAll)
	last, err := recorder.Recover(t.Context(), runDir, t.TempDir(), w.options(m))
	check(t, err)
	recordAnchored(t, w.options(m), ringConfig{generation: last.Generation + 1, resumed: &rundir.Resumed{}}, 100)

	o := w.options(older)
	sum := recordAnchored(t, o, ringConfig{generation: 1, resumed: &rundir.Resumed{}}, 3)
	if c := sum.Witness; !strings.Contains(c.Fault, witness.ErrAhead.Error()) {
		t.Errorf("rolled back: %+v", c)
	}
	other := vfs.NewMem()
	copyFile(t, m, other, keyFile)
	check(t, other.Chmod(keyFile, 0o600))
	sum = recordAnchored(t, w.options(other), ringConfig{after: 5, slots: 1024}, 400)
	if c := sum.Witness; !strings.Contains(c.Fault, witness.ErrProof.Error()) {
		t.Errorf("written again: %+v", c)
	}
	// The cosigned head, where it was left, finds both without asking anybody.
	for name, disk := range map[string]*vfs.Mem{"rolled-back": older, "rewritten": other} {
		copyFile(t, m, disk, rundir.At(runDir).Cosigned())
		rep, err := audit.Verify(t.Context(), disk, runDir, audit.Options{Witnesses: []audit.Witness{{Key: w.key}}})
		check(t, err)
		if rep.Verdict != audit.Failed || rep.Integrity.Kept[0].Result != name || rep.Integrity.Problems[0].Class != name {
			t.Errorf("%s: %v, %+v", name, rep.Verdict, rep.Integrity)
		}
	}
}

// TestWitnessOptions: what is wrong with the settings is said before anything is recorded.
func TestWitnessOptions(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	w := newWatched(t, m)
	p := newProducer(t, ringConfig{})
	for _, opt := range []recorder.WitnessOptions{{URL: "nowhere", Keys: w.opt.Keys}, {URL: w.url}, {URL: w.url, Keys: []string{"x"}}} {
		o := options(m)
		o.Witness = opt
		if _, err := recorder.Attach(p.Path(), o); err == nil || !strings.Contains(err.Error(), "witness") {
			t.Errorf("%+v: %v", opt, err)
		}
		if exists(m, runDir) {
			t.Error("a run directory was left")
		}
	}
}

// TestWitnessCrash lets the machine die before every change of the disk: what is cosigned is always in the log.
func TestWitnessCrash(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	w := newWatched(t, m)
	var mu sync.Mutex
	var disks []*vfs.Mem
	m.SetHook(func(op vfs.Op) {
		if op.Kind&vfs.OpMutates != 0 && strings.Contains(op.Name, "checkpoint") {
			mu.Lock()
			defer mu.Unlock()
			disks = append(disks, m.Crash(nil, vfs.DropAll), m.Crash(nil, vfs.KeepAll))
		}
	})
	recordAnchored(t, w.options(m), ringConfig{}, 40)
	m.SetHook(nil)
	cosigned := 0
	for i, disk := range disks {
		if !exists(disk, rundir.At(runDir).Cosigned()) {
			continue
		}
		if _, err := vfs.ReadFile(disk, rundir.At(runDir).Cosigned(), 1<<16); err != nil {
			t.Fatal(err)
		}
		cosigned++
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w.witnessed(t, disk)
			if _, err := recorder.Recover(t.Context(), runDir, t.TempDir(), w.options(disk)); err != nil {
				t.Errorf("Recover: %v", err)
			}
			if left := names(t, disk, runDir); strings.Contains(strings.Join(left, " "), ".tmp-") {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if cosigned < 2 {
		t.Errorf("only %d of %d crashes behind the first cosignature", cosigned, len(disks))
	}
}
