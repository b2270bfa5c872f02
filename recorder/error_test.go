package recorder_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	mathrand "math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// badRing makes a ring that is not as newProducer makes it.
func badRing(t *testing.T, change func(*ring.Config)) string {
	t.Helper()
	s := testSchema(t)
	c := ring.Config{Path: filepath.Join(t.TempDir(), "bad.ring"), RunID: runID, Schema: s.Text(), PayloadLen: 8 * s.Words(), Slots: 16}
	change(&c)
	p, err := ring.Create(c)
	check(t, err)
	t.Cleanup(func() { p.Close(false) })
	return c.Path
}

func TestAttachRefusesRing(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*ring.Config)
		says   string
	}{
		{"payload length", func(c *ring.Config) { c.PayloadLen += 8 }, "payload of 80 bytes, its schema \"test.v1\" needs 72"},
		{"schema", func(c *ring.Config) { c.Schema = []byte("usp-schema v9\n") }, "schema"},
		{"meta", func(c *ring.Config) { c.Meta = []byte("{]") }, "not the JSON object"},
		{"meta of another kind", func(c *ring.Config) { c.Meta = []byte(`{"resumed": 5}`) }, "not the JSON object"},
		{"generation 0 resumed", func(c *ring.Config) { c.Meta = []byte(`{"resumed":{"step":1}}`) }, "generation 0 cannot be resumed"},
		{"path as run id", func(c *ring.Config) { c.RunID = "../elsewhere" }, `"../elsewhere" cannot be a run id`},
		{"no run id", func(c *ring.Config) { c.RunID = "" }, `"" cannot be a run id`},
		{"generation out of order", func(c *ring.Config) { c.Generation = 1 }, "generation 0 has no end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := vfs.NewMem()
			_, err := recorder.Attach(badRing(t, c.change), options(m))
			wantText(t, err, c.says)
			if entriesIfAny(m) != nil || exists(m, "/elsewhere") || exists(m, "/runs/telemetry") {
				t.Fatal("something was written")
			}
		})
	}
	_, err := recorder.Attach(filepath.Join(t.TempDir(), "none.ring"), options(vfs.NewMem()))
	wantErr(t, err, os.ErrNotExist)
}

// A ring of a run that there is must fit it.
func TestAttachRefusesRun(t *testing.T) {
	m := runWithSnapshots(t, 2)
	for _, c := range []struct {
		name   string
		change func(*ring.Config)
		says   string
	}{
		{"generation out of order", func(c *ring.Config) { c.Generation = 2 }, "generation 1 has no end"},
		{"unknown snapshot", func(c *ring.Config) {
			c.Generation = 1
			c.Meta = []byte(`{"resumed":{"generation":0,"step":20,"snapshot_sha256":"` + rundir.Hash{1}.String() + `"}}`)
		}, "which the run's log does not have"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := recorder.Attach(badRing(t, c.change), options(m))
			wantText(t, err, c.says)
		})
	}
	verifyOK(t, m)

	// Generation 1 is interrupted and then found with another schema.
	other, err := record.NewSchema("other.v1", record.Field{Name: "x", Class: record.Metric})
	check(t, err)
	p := newProducer(t, ringConfig{generation: 1, resumed: newest(t, m)})
	x := start(t, p.Path(), options(m))
	x.cancel()
	x.wait()
	_, err = recorder.Attach(badRing(t, func(c *ring.Config) {
		c.Generation, c.Schema, c.PayloadLen = 1, other.Text(), 8*other.Words()
	}), options(m))
	wantText(t, err, "another schema")
}

func TestAttachLocked(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), options(m))
	_, err := recorder.Attach(p.Path(), options(m))
	wantErr(t, err, vfs.ErrLocked, runID)
	p.emit(5)
	check(t, p.Close(true))
	if sum := x.finish(); sum.Stored != 5 {
		t.Fatalf("the first recorder was disturbed: %+v", sum)
	}
	verifyOK(t, m)
}

func TestAttachKey(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	p.emit(5)
	x := start(t, p.Path(), options(m))
	x.cancel()
	x.wait()
	check(t, m.Chmod(keyFile, 0o644))
	_, err := recorder.Attach(p.Path(), options(m))
	wantErr(t, err, digestlog.ErrKeyMode, keyFile)
	check(t, m.Chmod(keyFile, 0o600))
	check(t, m.Rename(keyFile, "/key"))
	_, err = recorder.Attach(p.Path(), options(m))
	wantErr(t, err, digestlog.ErrWrongKey)
	check(t, m.Rename("/key", keyFile))
	check(t, p.Close(true))
	_, err = runToEnd(t, p.Path(), options(m))
	check(t, err)
	verifyOK(t, m)
}

// A recorder was killed behind the END entry and before it removed the ring.
func TestFinished(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	p.emit(30)
	p.stage()
	_, left := p.die(t)
	watcher, err := ring.Open(left)
	check(t, err)
	defer watcher.Close()
	check(t, p.Close(true))
	sum, err := runToEnd(t, p.Path(), options(m))
	check(t, err)

	_, err = recorder.Attach(left, options(m))
	var finished *recorder.FinishedError
	if !errors.As(err, &finished) || finished.Summary != sum {
		t.Fatalf("%v: %+v, want %+v", err, finished, sum)
	}
	wantText(t, err, "generation 0", runID, "closed already")
	noRing(t, left)
	if c := watcher.Published(); c.Phase != ring.ConsumerDone || c.Stored != 30 || c.Synced != 30 || c.Snapshots != 1 {
		t.Fatalf("the producer was told %+v", c)
	}
	verifyOK(t, m)
}

// An Attach that cannot begin a run leaves nothing of it, or, killed while it tidies up, nothing that looks damaged.
func TestDiscard(t *testing.T) {
	p := newProducer(t, ringConfig{})
	check(t, p.Close(true))
	for n := 1; ; n++ {
		m := vfs.NewMem()
		in := vfs.Inject(m, vfs.Rule{Op: vfs.OpMutates, Nth: n})
		rng := mathrand.New(mathrand.NewPCG(uint64(n), 0))
		m.SetHook(func(vfs.Op) {
			for _, policy := range policies {
				if left := verify(t, m.Crash(rng, policy)); left.Verdict == audit.Failed {
					t.Errorf("fault %d, %v", n, describe(left))
				}
			}
		})
		r, err := recorder.Attach(p.Path(), options(in))
		m.SetHook(nil)
		if err == nil { // without a fault, or with one that storage gets over
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := r.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if len(in.Fired()) == 0 {
				return
			}
			continue
		}
		if !exists(m, runDir) {
			continue
		}
		if rep := verify(t, m); rep.Files.Bytes > 0 || len(rep.Files.Leftovers) > 0 { // directories are made before it is locked
			t.Fatalf("after a fault in %v there is %+v: %v", in.Fired(), rep.Files, err)
		}
	}
}

// The one who comes too late to a run must leave it alone, also when it saw no directory yet.
func TestDiscardNothingOfOthers(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	p.emit(5)
	_, late := p.die(t)
	check(t, p.Close(true))
	in := vfs.Inject(m)
	first := true
	in.SetHook(func(op vfs.Op) {
		if first && op.Kind == vfs.OpLock { // another one records all of it first
			first = false
			_, err := runToEnd(t, p.Path(), options(m))
			check(t, err)
		}
	})
	_, err := recorder.Attach(late, options(in))
	var finished *recorder.FinishedError
	if !errors.As(err, &finished) {
		t.Fatalf("got %v", err)
	}
	verifyOK(t, m)
}

// A log that jumps to a far generation is refused, not allocated for.
func TestHostileGeneration(t *testing.T) {
	m := vfs.NewMem()
	l, err := digestlog.Open(rundir.At(runDir).Digests(), digestlog.Options{FS: m, RunID: runID})
	check(t, err)
	_, err = l.Append(&digestlog.Entry{Kind: digestlog.KindOpen, Generation: 1 << 31})
	check(t, err)
	check(t, l.Close())
	_, err = recorder.LastStep(m, runDir)
	wantText(t, err, "entry 0", "generation 2147483648")
}

func TestProcess(t *testing.T) {
	defer signal.Reset()
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	p.emit(5)
	run := func(path string) (int, string, string) {
		var out, errs bytes.Buffer
		code := recorder.Process(path, options(m), &out, &errs)
		return code, out.String(), errs.String()
	}
	x := start(t, p.Path(), options(m))
	if code, _, errs := run(p.Path()); code != 11 || errs == "" {
		t.Fatalf("locked: exit %d, %q", code, errs)
	}
	x.cancel()
	x.wait()
	_, left := p.die(t)
	check(t, p.Close(true))
	for _, path := range []string{p.Path(), left} { // the second finds the generation closed
		code, out, errs := run(path)
		var sum recorder.Summary
		check(t, json.Unmarshal([]byte(out), &sum))
		if code != 0 || sum.Stored != 5 || errs != "" {
			t.Fatalf("exit %d, %+v, %q", code, sum, errs)
		}
	}
	if code, _, errs := run(p.Path()); code != 1 || errs == "" {
		t.Fatalf("no ring: exit %d, %q", code, errs)
	}
}

func TestSigningKeyFile(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "/config")
	t.Setenv("HOME", "/home/u")
	path, err := recorder.Options{}.SigningKeyFile()
	check(t, err)
	if filepath.Base(path) != "signing.key" || filepath.Base(filepath.Dir(path)) != "usp" {
		t.Fatal(path)
	}
	if path, err = (recorder.Options{KeyFile: "/k"}).SigningKeyFile(); err != nil || path != "/k" {
		t.Fatal(path, err)
	}
}
