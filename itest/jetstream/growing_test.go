package jetstream_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	dir := t.TempDir()
	program := filepath.Join(dir, "usp")
	build := exec.Command("go", "build", "-o", program, "./cmd/usp")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	usp := func(want string, args ...string) {
		t.Helper()
		c := exec.Command(program, args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "USP_JETSTREAM_URL="+s.ClientURL(), "USP_SINKS_PATIENCE=1s")
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("usp %s: %v, want %q:\n%s", strings.Join(args, " "), err, want, out)
		}
	}
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
	usp("20 stored", "run", "in.csv")
	for i, rows := range []int{30, 50} {
		input(rows)
		usp("stored", "run", "--resume", "latest")
		usp(fmt.Sprintf("all %d frames", rows), "sink", "latest", "--status")
		usp(fmt.Sprintf("%d of %d frames", rows, rows), "verify", "latest", "--stream")
		usp(fmt.Sprintf("%d signed heads", i+2), "verify", "latest", "--stream")
	}
	v := look(t, newFleet(t, fleet.Options{Stream: jetstream.Options{URL: s.ClientURL()}}))
	if len(v.Runs) != 1 || v.Runs[0].Stored != 50 || v.Runs[0].Generation != 2 || v.Runs[0].State != "clean" {
		t.Errorf("the fleet is %+v", v.Runs)
	}
}

// grower makes a log grow by some entries and a signed head.
func grower(t *testing.T, l *digestlog.Log, r *sinktest.Recording) func(n int) {
	step := uint64(0)
	return func(n int) {
		t.Helper()
		for range n {
			step++
			if _, err := l.Append(&digestlog.Entry{Kind: digestlog.KindStep, Step: step, Seq: step, Digests: make([][32]byte, 2)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.SignHead(); err != nil {
			t.Fatal(err)
		}
		r.Emit(1)
	}
}

// TestHeadByHead has one sink follow a log that grows slowly: each time it has read to the end of what there was, and a
// segment ends on the way.
func TestHeadByHead(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	r := sinktest.Record(t)
	to.Dir = r.Dir
	l := logged(t, r, filepath.Join(t.TempDir(), "keys", "key"))
	defer l.Close()
	grow := grower(t, l, r)
	k := jetstream.New(to)
	defer k.Close()
	grow(1)
	from, err := k.Begin(t.Context(), sink.Run{ID: runID, Schema: r.Schema}, sink.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	f := sink.Follow(vfs.OS(), r.Dir, from.Next)
	defer f.Close()
	steps := []int{1, 1, 2, 1, 1000, 1, 1}
	for i, n := range steps {
		grow(n)
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
	if report := same(t, to, r); report.Heads != len(steps) || report.Signed != l.Size() {
		t.Errorf("%d heads, the newest over %d entries; want %d over %d", report.Heads, report.Signed, len(steps), l.Size())
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
	r := sinktest.Record(t)
	to.Dir = r.Dir
	l := logged(t, r, filepath.Join(t.TempDir(), "keys", "key"))
	defer l.Close()
	grow := grower(t, l, r)
	bring := func() {
		t.Helper()
		if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
			t.Fatal(err)
		}
	}
	grow(5)
	bring()
	fsys := &later{FS: vfs.OS(), path: r.Dir.Head(), then: func() { grow(5); bring() }}
	report, err := jetstream.Check(t.Context(), connect(t, to).JS, "usp", runID, jetstream.Against{Dir: r.Dir, FS: fsys})
	if err != nil || !report.OK() || report.Heads != 2 || report.Mine != l.Size() || fsys.then != nil {
		t.Errorf("%+v, %v", report, err)
	}

	// One that was put back is found as ever.
	old, err := os.ReadFile(r.Dir.Head())
	if err != nil {
		t.Fatal(err)
	}
	grow(5)
	bring()
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
	r := sinktest.Record(t)
	to.Dir = r.Dir
	l := logged(t, r, filepath.Join(t.TempDir(), "keys", "key"))
	defer l.Close()
	r.Emit(1)
	ended := make(chan struct{})
	o := bringing(r)
	o.Follow = func() bool {
		select {
		case <-ended:
			return false
		default:
			return true
		}
	}
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
		if _, err := l.Append(&digestlog.Entry{Kind: digestlog.KindStep, Step: uint64(i + 1), Seq: uint64(i), Digests: make([][32]byte, 2)}); err != nil {
			t.Fatal(err)
		}
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.SignHead(); err != nil {
			t.Fatal(err)
		}
		arrives(fmt.Sprintf("head %d", i+1), func(v fleet.Run) bool { return v.Head.Size == l.Size() })
	}
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
