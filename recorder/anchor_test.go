package recorder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
)

const (
	anchorDir  = "/anchor/runs"
	anchorFile = anchorDir + "/" + runID + ".checkpoint"
)

// anchoredOptions are options with an anchor, and with append-only files.
func anchoredOptions(fsys vfs.FS) recorder.Options {
	o := options(fsys)
	o.AnchorDir, o.AppendOnly = anchorDir, true
	return o
}

// notAnchor says that an operation is not about the anchor.
func notAnchor(op vfs.Op) bool { return !strings.HasPrefix(op.Name, "/anchor") }

// aboutRun says that an operation is about the run: the root is synced when the directory of the anchor is made.
func aboutRun(op vfs.Op) bool { return op.Name != "/" && notAnchor(op) }

// heldAgainstAnchor wants the log to contain the head in the anchor, if there is one: at no moment may a crash make an honest run look as if it
// had been put back.
func heldAgainstAnchor(t testing.TB, fsys vfs.FS) {
	t.Helper()
	b, err := vfs.ReadFile(fsys, anchorFile, 1<<16)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	check(t, err)
	rep, err := audit.Verify(t.Context(), fsys, runDir, audit.Options{Heads: []audit.KeptHead{{Source: audit.KeptAnchor, Name: anchorFile, Note: b}}})
	check(t, err)
	if len(rep.Integrity.Kept) != 1 || rep.Integrity.Kept[0].Result != audit.Contained {
		t.Fatalf("held against its anchor: %v, %+v\n%s", rep.Verdict, rep.Integrity.Kept, describe(rep))
	}
}

// anchoredLast wants the anchor of a closed run to hold its last head, and nothing else to be beside it.
func anchoredLast(t testing.TB, fsys vfs.FS) {
	t.Helper()
	own, err := vfs.ReadFile(fsys, rundir.At(runDir).Head(), 1<<16)
	check(t, err)
	anchor, err := vfs.ReadFile(fsys, anchorFile, 1<<16)
	if err != nil || !bytes.Equal(own, anchor) {
		t.Fatalf("the anchor holds %q (%v), the run %q", anchor, err, own)
	}
	equal(t, "files of the anchor", names(t, fsys, anchorDir), []string{runID + ".checkpoint"})
}

// record runs a generation of n records to its end.
func recordAnchored(t testing.TB, o recorder.Options, c ringConfig, n int) recorder.Summary {
	t.Helper()
	p := newProducer(t, c)
	p.emit(n)
	check(t, p.Close(true))
	sum, err := runToEnd(t, p.Path(), o)
	check(t, err)
	return sum
}

func TestAnchor(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	sum := recordAnchored(t, anchoredOptions(m), ringConfig{}, 20)
	anchoredLast(t, m.Crash(nil, vfs.DropAll))
	h := entryCount(t, m)
	if c := sum.Anchor; c == nil || c.Place != anchorFile || c.Size != h || c.Failures != 0 || c.Fault != "" {
		t.Errorf("summary %+v, %d entries", c, h)
	}
	verifyOK(t, m)
	if sum := recordAnchored(t, options(vfs.NewMem()), ringConfig{}, 20); sum.Anchor != nil {
		t.Errorf("without an anchor: %+v", sum.Anchor)
	}
}

func entryCount(t testing.TB, fsys vfs.FS) (n uint64) {
	t.Helper()
	for _, err := range digestlog.Entries(fsys, rundir.At(runDir).Digests()) {
		check(t, err)
		n++
	}
	return n
}

// TestAnchorPrune: what removes snapshots later signs a head as well.
func TestAnchorPrune(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	o := anchoredOptions(m)
	p := newProducer(t, ringConfig{areas: 4})
	x := start(t, p.Path(), o)
	for i := range 4 {
		p.emit(3)
		p.stage()
		p.waitFor(uint64(i + 1))
	}
	check(t, p.Close(true))
	x.finish()
	o.Snapshot.Retention.KeepLast = 1
	if _, err := recorder.Prune(runDir, o, false); err != nil {
		t.Fatal(err)
	}
	anchoredLast(t, m)
}

// TestAnchorFails: an anchor that takes nothing changes nothing about the run. It is said once, and counted.
func TestAnchorFails(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	in := vfs.Inject(m, vfs.Rule{Op: vfs.OpCreate, Path: "/anchor/*/*", Sticky: true, Err: syscall.ENOSPC})
	o := anchoredOptions(in)
	var said bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&said, nil))
	o.HeadInterval = time.Nanosecond
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), o)
	for range 10 {
		p.emit(3)
		p.waitFor(0)
	}
	check(t, p.Close(true))
	sum := x.finish()
	if c := sum.Anchor; c.Failures < 2 || c.Size != 0 || !strings.Contains(c.Fault, "no space left") {
		t.Errorf("summary: %+v", c)
	}
	if n := strings.Count(said.String(), "did not get to the anchor"); n != 1 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
	if sum.Stored != 30 || sum.Lost != 0 || exists(m, anchorFile) {
		t.Errorf("%+v", sum)
	}
	verifyOK(t, m)
	// Once it takes heads again, what was missed is made up for, also of a run that is closed.
	if _, err := recorder.Recover(t.Context(), runDir, t.TempDir(), anchoredOptions(m)); err != nil {
		t.Fatal(err)
	}
	anchoredLast(t, m)
}

// hanging is a file system on which nothing below a directory ever returns until it is let go.
type hanging struct {
	vfs.FS
	dir string
	let chan struct{}
}

func (h hanging) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if strings.HasPrefix(name, h.dir) && flag&os.O_CREATE != 0 {
		<-h.let
	}
	return h.FS.OpenFile(name, flag, perm)
}

// TestAnchorHangs: the run does not wait for an anchor longer than it was told to.
func TestAnchorHangs(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	let := make(chan struct{})
	t.Cleanup(func() { close(let) })
	o := anchoredOptions(hanging{m, "/anchor", let})
	o.CommitTimeout = 20 * time.Millisecond
	o.HeadInterval = time.Nanosecond
	p := newProducer(t, ringConfig{})
	x := start(t, p.Path(), o)
	for range 5 {
		p.emit(3)
		p.waitFor(0) // the writer goes on
	}
	check(t, p.Close(true))
	sum := x.finish()
	if c := sum.Anchor; c.Size != 0 || c.Failures == 0 || !strings.Contains(c.Fault, "no answer within 20ms") {
		t.Errorf("summary: %+v", c)
	}
	verifyOK(t, m)
}

// copyFile puts a copy of a file onto another file system.
func copyFile(t testing.TB, from, to vfs.FS, name string) {
	t.Helper()
	b, err := vfs.ReadFile(from, name, 1<<20)
	check(t, err)
	check(t, vfs.MkdirAll(to, filepath.Dir(name), 0o755))
	check(t, vfs.Replace(to, name, b, 0o644))
}

// TestAnchorRefuses: a log that is not the one of the anchor is not continued, whoever wants to: the recorder of a ring, a resume, a prune.
func TestAnchorRefuses(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	recordAnchored(t, anchoredOptions(m), ringConfig{}, 20)
	older := m.Crash(nil, vfs.KeepAll)
	last, err := recorder.Recover(t.Context(), runDir, t.TempDir(), anchoredOptions(m))
	check(t, err)
	recordAnchored(t, anchoredOptions(m), ringConfig{generation: last.Generation + 1, resumed: &rundir.Resumed{}}, 20)
	copyFile(t, m, older, anchorFile) // the run was put back, its anchor was not
	other := vfs.NewMem()
	copyFile(t, m, other, keyFile)
	check(t, other.Chmod(keyFile, 0o600))
	recordAnchored(t, options(other), ringConfig{after: 5}, 60)
	copyFile(t, m, other, anchorFile)
	gone := vfs.NewMem()
	copyFile(t, m, gone, keyFile)
	check(t, gone.Chmod(keyFile, 0o600))
	copyFile(t, m, gone, anchorFile)

	for name, tc := range map[string]struct {
		disk *vfs.Mem
		want error
	}{"rolled back": {older, digestlog.ErrRollback}, "rewritten": {other, digestlog.ErrHeadMismatch}} {
		before := fmt.Sprint(names(t, tc.disk, runDir+"/digests"))
		_, err := recorder.Recover(t.Context(), runDir, t.TempDir(), anchoredOptions(tc.disk))
		wantErr(t, err, tc.want, "the anchor "+anchorFile, "restore it from a newer copy")
		p := newProducer(t, ringConfig{generation: 1, resumed: &rundir.Resumed{}})
		p.emit(3)
		check(t, p.Close(true))
		_, err = runToEnd(t, p.Path(), anchoredOptions(tc.disk))
		wantErr(t, err, tc.want, "the anchor "+anchorFile)
		if after := fmt.Sprint(names(t, tc.disk, runDir+"/digests")); after != before {
			t.Errorf("%s: changed from %s to %s", name, before, after)
		}
		if _, err := recorder.Recover(t.Context(), runDir, t.TempDir(), options(tc.disk)); err != nil {
			t.Errorf("%s: without an anchor it is not found, and yet: %v", name, err)
		}
	}
	// The whole directory is gone, and a recorder is to begin it again.
	p := newProducer(t, ringConfig{})
	_, err = recorder.Attach(p.Path(), anchoredOptions(gone))
	wantErr(t, err, digestlog.ErrRollback, "the anchor "+anchorFile)
	if exists(gone, runDir) {
		t.Error("the directory of the run that was refused is left")
	}
}

// TestAnchorUnfit: an anchor that is damaged or another's vouches for nothing and is not overwritten; one that cannot be read keeps nobody
// from recording.
func TestAnchorUnfit(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	recordAnchored(t, anchoredOptions(m), ringConfig{}, 20)
	good, err := vfs.ReadFile(m, anchorFile, 1<<16)
	check(t, err)
	bad := bytes.Clone(good)
	at := bytes.LastIndexByte(bad, ' ') + 20
	if bad[at] == 'A' { // another letter of base64
		bad[at] = 'B'
	} else {
		bad[at] = 'A'
	}
	stranger := vfs.NewMem()
	recordAnchored(t, anchoredOptions(stranger), ringConfig{}, 20)
	strange, err := vfs.ReadFile(stranger, anchorFile, 1<<16)
	check(t, err)
	for name, tc := range map[string]struct {
		note []byte
		want error
	}{"damaged": {bad, digestlog.ErrSignature}, "empty": {nil, digestlog.ErrHead}, "another key": {strange, digestlog.ErrWrongKey}} {
		disk := m.Crash(nil, vfs.KeepAll)
		check(t, vfs.Replace(disk, anchorFile, tc.note, 0o644))
		_, err := recorder.Recover(t.Context(), runDir, t.TempDir(), anchoredOptions(disk))
		wantErr(t, err, tc.want, "the anchor cannot vouch for the run", anchorFile)
		if after, _ := vfs.ReadFile(disk, anchorFile, 1<<16); !bytes.Equal(after, tc.note) {
			t.Errorf("%s: the anchor was overwritten", name)
		}
	}
	in := vfs.Inject(m, vfs.Rule{Op: vfs.OpOpen, Path: anchorFile, Sticky: true})
	o := anchoredOptions(in)
	var said bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&said, nil))
	if _, err := recorder.Recover(context.Background(), runDir, t.TempDir(), o); err != nil {
		t.Errorf("an anchor that cannot be read: %v", err)
	}
	if !strings.Contains(said.String(), "the anchor cannot be read") {
		t.Errorf("said %q", said.String())
	}
}

// TestAnchorFaults lets every operation on the anchor fail once: the run is whole, and the next head makes up for it.
func TestAnchorFaults(t *testing.T) {
	t.Parallel()
	in := vfs.Inject(vfs.NewMem())
	n := 0
	in.SetHook(func(op vfs.Op) {
		if !notAnchor(op) {
			n++
		}
	})
	recordAnchored(t, anchoredOptions(in), ringConfig{}, 20)
	if n < 8 {
		t.Fatalf("only %d operations on the anchor", n)
	}
	failed := 0
	for nth := 1; nth <= n+4; nth++ {
		m := vfs.NewMem()
		in := vfs.Inject(m)
		k := 0
		in.SetHook(func(op vfs.Op) {
			if !notAnchor(op) {
				if k++; k == nth {
					in.Add(vfs.Rule{Path: op.Name})
				}
			}
		})
		sum := recordAnchored(t, anchoredOptions(in), ringConfig{}, 20)
		failed += len(in.Fired())
		verifyOK(t, m)
		heldAgainstAnchor(t, m)
		if sum.Anchor.Fault == "" {
			anchoredLast(t, m)
		}
	}
	if failed < n/2 { // how many heads get there is a matter of time
		t.Errorf("only %d operations failed, of about %d", failed, n)
	}
}
