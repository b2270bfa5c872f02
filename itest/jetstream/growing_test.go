package jetstream_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestResumed has the program resume a run, twice, whose manifests thus name one key three times: what came since is brought
// behind what the stream has, and is found to be what was signed.
func TestResumed(t *testing.T) {
	s := serve(t, server.Options{})
	dir, usp := program(t, s.ClientURL(), "USP_SINKS_PATIENCE=1s")
	input := func(rows int) {
		t.Helper()
		text := "time,value\n"
		for i := range rows {
			text += fmt.Sprintf("%d,%d\n", 1_000_000_000*(i+1), i*i%17)
		}
		if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	input(20)
	usp(0, "20 stored", "run", "in.csv")
	for i, rows := range []int{30, 50} {
		input(rows)
		usp(0, "stored", "run", "--resume", "latest")
		usp(0, fmt.Sprintf("all %d frames", rows), "sink", "latest", "--status")
		usp(0, fmt.Sprintf("%d of %d frames", rows, rows), "verify", "latest", "--stream")
		usp(0, fmt.Sprintf("%d signed heads", i+2), "verify", "latest", "--stream")
	}
	v := look(t, newFleet(t, fleet.Options{Stream: jetstream.Options{URL: s.ClientURL()}}))
	if len(v.Runs) != 1 || v.Runs[0].Stored != 50 || v.Runs[0].Generation != 2 || v.Runs[0].State != "clean" {
		t.Errorf("the fleet is %+v", v.Runs)
	}
}

// growing is a recording with a log. grow makes the log longer by some entries and a signed head.
type growing struct {
	*sinktest.Recording
	t    *testing.T
	log  *digestlog.Log
	step uint64
}

// grows begins a recording whose log is signed with the key in a file.
func grows(t *testing.T, keyFile string) *growing {
	t.Helper()
	r := sinktest.Record(t)
	g := &growing{Recording: r, t: t, log: logged(t, r, keyFile)}
	t.Cleanup(func() { g.log.Close() })
	return g
}

func (g *growing) grow(n int) {
	g.t.Helper()
	for range n {
		g.step++
		if _, err := g.log.Append(&digestlog.Entry{Kind: digestlog.KindStep, Step: g.step, Seq: g.step, Digests: make([][32]byte, 2)}); err != nil {
			g.t.Fatal(err)
		}
	}
	if err := g.log.Sync(); err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.log.SignHead(); err != nil {
		g.t.Fatal(err)
	}
}

// emit grows by some entries, and by a record.
func (g *growing) emit(n int) {
	g.t.Helper()
	g.grow(n)
	g.Emit(1)
}

// bring brings all of it to a stream.
func (g *growing) bring(to jetstream.Options) {
	g.t.Helper()
	if err := sink.Bring(g.t.Context(), bringing(g.Recording), jetstream.New(to)); err != nil {
		g.t.Fatal(err)
	}
}

// TestHeadByHead has one sink follow a log that grows slowly: each time it has read to the end of what there was, and a
// segment ends on the way.
func TestHeadByHead(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	g := grows(t, filepath.Join(t.TempDir(), "keys", "key"))
	r := g.Recording
	to.Dir = r.Dir
	k := jetstream.New(to)
	defer k.Close()
	g.emit(1)
	from, err := k.Begin(t.Context(), sink.Run{ID: runID, Schema: r.Schema}, sink.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	f := sink.Follow(vfs.OS(), r.Dir, from.Next)
	defer f.Close()
	steps := []int{1, 1, 2, 1, 1000, 1, 1}
	for i, n := range steps {
		g.emit(n)
		b, err := f.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Sync(t.Context()); err != nil {
			t.Fatalf("head %d: %v", i+1, err)
		}
	}
	if segments, err := fs.Glob(os.DirFS(r.Dir.Digests()), "*"); err != nil || len(segments) < 2 {
		t.Fatalf("the log has the segments %v, %v; the test is to have several", segments, err)
	}
	if report := same(t, to, r); report.Heads != len(steps) || report.Signed != g.log.Size() {
		t.Errorf("%d heads, the newest over %d entries; want %d over %d", report.Heads, report.Signed, len(steps), g.log.Size())
	}
}

// later is a file system on which something happens when a file has just been opened, once.
type later struct {
	vfs.FS
	path string
	then func()
}

func (l *later) OpenFile(path string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := l.FS.OpenFile(path, flag, perm)
	if path == l.path && l.then != nil {
		then := l.then
		l.then = nil
		then()
	}
	return f, err
}

// TestCheckedWhileItGrows has a head be signed and brought while a stream is checked, when the one before was just read from
// the run directory: that is no older copy.
func TestCheckedWhileItGrows(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	g := grows(t, filepath.Join(t.TempDir(), "keys", "key"))
	r := g.Recording
	to.Dir = r.Dir
	more := func() {
		t.Helper()
		g.emit(5)
		g.bring(to)
	}
	more()
	fsys := &later{FS: vfs.OS(), path: r.Dir.Head(), then: more}
	report, err := jetstream.Check(t.Context(), connect(t, to).JS, "usp", runID, jetstream.Against{Dir: r.Dir, FS: fsys})
	if err != nil || !report.OK() || report.Heads != 2 || report.Mine != g.log.Size() || fsys.then != nil {
		t.Errorf("%+v, %v", report, err)
	}

	// One that was put back is found as ever.
	old, err := os.ReadFile(r.Dir.Head())
	if err != nil {
		t.Fatal(err)
	}
	more()
	if err := errors.Join(os.Chmod(r.Dir.Head(), 0o600), os.WriteFile(r.Dir.Head(), old, 0o600)); err != nil {
		t.Fatal(err)
	}
	report, err = jetstream.Check(t.Context(), connect(t, to).JS, "usp", runID, jetstream.Against{Dir: r.Dir})
	if err != nil || len(report.Problems) != 1 || report.Problems[0].Class != jetstream.Absent {
		t.Errorf("a run directory with an older head: %+v, %v", report, err)
	}
}

// TestLateHead has a head be signed after the records that it is about were brought, with no record behind them: it comes there.
func TestLateHead(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	g := grows(t, filepath.Join(t.TempDir(), "keys", "key"))
	to.Dir = g.Dir
	g.Emit(1)
	o := bringing(g.Recording)
	follow, end := sinktest.Until()
	o.Follow = follow
	done := make(chan error, 1)
	go func() { done <- sink.Bring(t.Context(), o, jetstream.New(to)) }()
	arrives := func(what string, is func(v fleet.Run) bool) {
		t.Helper()
		for range 1000 {
			f := newFleet(t, fleet.Options{Stream: to})
			if f.Look(t.Context()) == nil {
				if v := f.View(); len(v.Runs) == 1 && is(v.Runs[0]) {
					return
				}
			}
			f.Close()
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%s did not come", what)
	}
	arrives("the record", func(v fleet.Run) bool { return v.Stored == 1 })
	for i := range 3 {
		g.grow(1)
		arrives(fmt.Sprintf("head %d", i+1), func(v fleet.Run) bool { return v.Head.Size == g.log.Size() })
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
