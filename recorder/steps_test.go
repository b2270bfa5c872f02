package recorder_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
)

// block cuts a block out of an entry.
func block(t *testing.T, e *digestlog.Entry, tag digestlog.Tag) []byte {
	t.Helper()
	b, err := digestlog.FindBlock(e.Ext, tag)
	check(t, err)
	return b
}

func planOf(t *testing.T, fsys vfs.FS) *record.Plan {
	t.Helper()
	p, err := record.ParsePlan(block(t, &entries(t, fsys, digestlog.KindOpen)[0], digestlog.TagPlan))
	check(t, err)
	return p
}

// What is in an entry is what its first entry plans, and what the vectors give.
func TestStepEntries(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), options(m))
	p.emit(5)
	check(t, p.Finish(true))
	x.finish()
	plan := planOf(t, m)
	want := &record.Plan{
		Every: 1, Levels: record.DefaultLevels(), Floor: record.DefaultFloor,
		Digests: []record.Planned{{Name: "rho", Type: record.Float64, Len: 4, Ladder: true, Simplex: true}, {Name: "cost", Type: record.Float64, Len: 1, Ladder: true}},
		Flags:   []record.Planned{{Name: "flags", Type: record.Uint64, Len: 1}},
	}
	if diff := cmp.Diff(want, plan); diff != "" {
		t.Error(diff)
	}
	open := entries(t, m, digestlog.KindOpen)[0]
	if env := string(block(t, &open, digestlog.TagEnvironment)); env != "goarch=test\n" {
		t.Errorf("the environment in the log is %q", env)
	}
	prober := record.NewProber(testSchema(t), plan, record.PublicAuditKey())
	for _, e := range entries(t, m, digestlog.KindStep) {
		payload := p.payload(e.Step)
		if got := block(t, &e, digestlog.TagLadder); !cmp.Equal(got, prober.AppendLadders(nil, payload)) {
			t.Errorf("step %d: ladders %x", e.Step, got)
		}
		if got := block(t, &e, digestlog.TagInvariants); !cmp.Equal(got, prober.AppendInvariants(nil, payload)) {
			t.Errorf("step %d: invariants %x", e.Step, got)
		}
	}
}

// A recorder that takes a generation up keeps its plan, whatever its own settings say, and leaves ladders out rather than make them
// with another key.
func TestTakeUpKeepsPlan(t *testing.T) {
	const secret = "sixteen bytes and more"
	for _, c := range []struct {
		name          string
		first, second func(o *recorder.Options)
		ladders       int // steps with one, of 20
	}{
		{"other levels", func(o *recorder.Options) { o.DigestLevels = []int{6, 22} }, func(*recorder.Options) {}, 20},
		{"no ladder", func(o *recorder.Options) { o.DigestLevels = []int{} }, func(*recorder.Options) {}, 0},
		{"the same key", func(o *recorder.Options) { o.AuditKeyFile = "/key" }, func(o *recorder.Options) { o.AuditKeyFile = "/key" }, 20},
		{"without the key", func(o *recorder.Options) { o.AuditKeyFile = "/key" }, func(*recorder.Options) {}, 10},
		{"another key", func(o *recorder.Options) { o.AuditKeyFile = "/key" }, func(o *recorder.Options) { o.AuditKeyFile = "/other" }, 10},
		{"a key where there was none", func(*recorder.Options) {}, func(o *recorder.Options) { o.AuditKeyFile = "/key" }, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := vfs.NewMem()
			for name, text := range map[string]string{"/key": secret, "/other": secret + "!"} {
				check(t, vfs.Create(m, name, 0o600, func(f vfs.File) error { _, err := io.WriteString(f, text); return err }))
			}
			p := newProducer(t, ringConfig{})
			o := options(m)
			c.first(&o)
			x := start(t, p.Path(), o)
			p.emit(10)
			p.waitFor(0)
			x.cancel()
			if _, err := x.wait(); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			plan := planOf(t, m)
			o = options(m)
			c.second(&o)
			p.emit(10)
			check(t, p.Finish(true))
			_, err := runToEnd(t, p.Path(), o)
			check(t, err)
			verifyOK(t, m)
			got := 0
			for _, e := range entries(t, m, digestlog.KindStep) {
				if b := block(t, &e, digestlog.TagLadder); len(b) > 0 {
					if got++; len(b) != plan.LadderSize() {
						t.Errorf("step %d has ladders of %d bytes, the plan says %d", e.Step, len(b), plan.LadderSize())
					}
				}
			}
			if n := len(entries(t, m, digestlog.KindStep)); n != 20 || got != c.ladders {
				t.Errorf("%d of %d steps have a ladder, want %d of 20", got, n, c.ladders)
			}
		})
	}
}

// A key that cannot be used is an error before anything is made, and is not told.
func TestAuditKeyErrors(t *testing.T) {
	for _, c := range []struct {
		text string
		mode fs.FileMode
		want string
	}{
		{"", 0, "at least 16 random bytes"},
		{"too short", 0o600, "holds 9 bytes, want at least 16"},
		{"long enough, but everybody's", 0o644, "chmod 600"},
	} {
		m := vfs.NewMem()
		if c.mode != 0 {
			check(t, vfs.Create(m, "/key", c.mode, func(f vfs.File) error { _, err := io.WriteString(f, c.text); return err }))
		}
		p := newProducer(t, ringConfig{})
		o := options(m)
		o.AuditKeyFile = "/key"
		_, err := recorder.Attach(p.Path(), o)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.text != "" && strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: %v, want an error saying %q", c.text, err, c.want)
		}
		if _, err := m.Stat("/runs"); err == nil {
			t.Errorf("%q: something was made", c.text)
		}
		check(t, p.Close(true))
	}
	o := options(vfs.NewMem())
	o.DigestLevels = []int{22, 6}
	p := newProducer(t, ringConfig{})
	if _, err := recorder.Attach(p.Path(), o); !errors.Is(err, record.ErrPlan) {
		t.Errorf("levels that fall: %v", err)
	}
}

// Whoever closes a generation that was left by its recorder counts by the interval that it was begun with, not by his own.
func TestRecoverKeepsInterval(t *testing.T) {
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
	p.die(t)
	_, err := recorder.Recover(t.Context(), runDir, t.TempDir(), options(m))
	check(t, err)
	if events := entries(t, m, digestlog.KindEvent); len(events) > 0 {
		t.Errorf("digests are said to be missing: %+v", events)
	}
	if rep := verifyOK(t, m); rep.Completeness.DigestsMissing != 0 || rep.Completeness.Digests != 6 {
		t.Errorf("%s", describe(rep))
	}
}
