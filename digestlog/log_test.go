package digestlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

const (
	testRun  = "20261122T201833-9f3kq"
	testDir  = "/run/digests"
	testHead = "/run/checkpoint"
)

// testKey returns a key that is the same in every run of the tests.
func testKey(t testing.TB, b byte) (note.Signer, note.Verifiers, string) {
	t.Helper()
	signer, vkey, err := LoadOrCreateKey(vfs.NewMem(), "/key", bytes.NewReader(bytes.Repeat([]byte{b}, 34)))
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return signer, note.VerifierList(v), vkey
}

func testOptions(t testing.TB, fsys vfs.FS) Options {
	signer, verifiers, _ := testKey(t, 1)
	return Options{
		FS: fsys, RunID: testRun, Signer: signer, Verifiers: verifiers, SegmentSize: 8 << 10,
		Now: func() time.Time { return time.Unix(1_800_000_000, 0) },
	}
}

func step(i int) *Entry {
	return &Entry{Kind: KindStep, Step: uint64(i), Seq: uint64(i), Digests: [][32]byte{sum(byte(i)), sum(byte(i >> 8))}}
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(testDir, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustAppend(t testing.TB, l *Log, entries ...*Entry) {
	t.Helper()
	for _, e := range entries {
		want := l.Next()
		if got, err := l.Append(e); err != nil || got != want {
			t.Fatalf("append: index %d, %v, want %d", got, err, want)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t testing.TB, fsys vfs.FS) Report {
	t.Helper()
	_, verifiers, _ := testKey(t, 1)
	r, err := Verify(fsys, testDir, testHead, verifiers)
	must(t, err)
	return r
}

// closedLog is a log of n entries, the last of which is an END, in files of at most size bytes.
func closedLog(t testing.TB, n int, size int64) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.SegmentSize = size
	l := mustOpen(t, o)
	mustAppend(t, l, &Entry{Kind: KindOpen, Manifest: sum(1), Schema: sum(2)})
	for i := range n - 2 {
		mustAppend(t, l, step(i))
		if i%3 == 0 {
			must(t, l.Sync())
		}
	}
	mustAppend(t, l, &Entry{Kind: KindEnd, Status: StatusClean, Emitted: uint64(n - 2), Stored: uint64(n - 2), EmittedKnown: true})
	must(t, l.Close())
	return m
}

func TestAppendSyncClose(t *testing.T) {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	if _, ok := l.Last(); ok || l.Size() != 0 || l.Root() != [32]byte(tlogEmpty()) {
		t.Error("a new log is not empty")
	}
	mustAppend(t, l, step(0), step(1))
	if l.Size() != 0 || l.Next() != 2 {
		t.Errorf("size %d, next %d before sync, want 0 and 2", l.Size(), l.Next())
	}
	must(t, l.Sync())
	if last, ok := l.Last(); !ok || last.Step != 1 || l.Size() != 2 {
		t.Errorf("size %d, last %+v after sync", l.Size(), last)
	}
	root := l.Root()
	mustAppend(t, l, step(2))
	h, err := l.SignHead()
	must(t, err)
	if h.Size != 2 || h.Root != root || h.Origin != "usp/"+testRun {
		t.Errorf("head %+v covers more than what is synced", h)
	}
	if again, err := l.SignHead(); err != nil || !bytes.Equal(again.Note, h.Note) || l.Stats().Heads != 1 {
		t.Errorf("an unchanged tree was signed again: %v", err)
	}
	must(t, l.Close())
	must(t, l.Close())
	for _, err := range []error{l.Sync(), func() error { _, err := l.Append(step(9)); return err }(), func() error { _, err := l.SignHead(); return err }()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
	}
	r := mustVerify(t, m)
	if r.Err() != nil || r.Size != 3 || !r.Sealed || r.Head == nil || r.Head.Size != 3 || r.Closed() || r.RunID != testRun {
		t.Errorf("report %+v", r)
	}
}

func tlogEmpty() tlog.Hash {
	h, _ := tlog.TreeHash(0, nil)
	return h
}

// TestRollAndReopen checks every root against tlog's own stored-hash algorithm over several files and reopenings.
func TestRollAndReopen(t *testing.T) {
	m := vfs.NewMem()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(idx []int64) (hashes []tlog.Hash, err error) {
		for _, i := range idx {
			hashes = append(hashes, stored[i])
		}
		return hashes, nil
	})
	roots := map[uint64][32]byte{}
	n := 0
	for open := range 5 {
		l := mustOpen(t, testOptions(t, m))
		if l.Size() != uint64(n) {
			t.Fatalf("reopened with %d entries, want %d", l.Size(), n)
		}
		for range 60 {
			e := step(n)
			hashes, err := tlog.StoredHashes(int64(n), e.Append(nil), reader)
			must(t, err)
			stored = append(stored, hashes...)
			mustAppend(t, l, e)
			n++
			if n%7 == 0 || open == 4 {
				must(t, l.Sync())
			}
		}
		must(t, l.Sync())
		want, err := tlog.TreeHash(int64(n), reader)
		must(t, err)
		if l.Root() != [32]byte(want) {
			t.Fatalf("root at %d is %x, want %x", n, l.Root(), want)
		}
		roots[l.Size()] = l.Root()
		must(t, l.Close())
	}
	verifyRoots(t, m, roots)
}

// verifyRoots has Verify compute the roots again, in one pass.
func verifyRoots(t *testing.T, m *vfs.Mem, roots map[uint64][32]byte) {
	_, verifiers, _ := testKey(t, 1)
	sizes := []uint64{0, 1 << 40}
	for size := range roots {
		sizes = append(sizes, size)
	}
	var seen []uint64
	r, err := VerifyWith(VerifyOptions{
		FS: m, Dir: testDir, HeadPath: testHead, Verifiers: verifiers, RootsAt: sizes,
		Each: func(it Item) error { seen = append(seen, it.Index); return nil },
	})
	must(t, err)
	if err := r.Err(); err != nil || r.Files < 6 || r.Entries != 300 || len(seen) != 300 || seen[299] != 299 {
		t.Fatalf("%d files, %d entries, %d seen: %v", r.Files, r.Entries, len(seen), err)
	}
	for size, want := range roots {
		if r.Roots[size] != want {
			t.Errorf("Verify's root at %d is %x, the writer's %x", size, r.Roots[size], want)
		}
	}
	if r.Roots[0] != [32]byte(tlogEmpty()) || len(r.Roots) != len(roots)+1 {
		t.Errorf("roots %x", r.Roots)
	}
	stop := errors.New("stop")
	if _, err := VerifyWith(VerifyOptions{FS: m, Dir: testDir, Each: func(Item) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("error of Each became %v", err)
	}
}

// TestOpenReplaysLastFile counts what is read: the files before the last only give their headers.
func TestOpenReplaysLastFile(t *testing.T) {
	m := closedLog(t, 400, 8<<10)
	infos, err := segment.List(m, testDir)
	must(t, err)
	reads := map[string]int{}
	m.SetHook(func(op vfs.Op) {
		if op.Kind == vfs.OpRead {
			reads[op.Name]++
		}
	})
	l := mustOpen(t, testOptions(t, m))
	m.SetHook(nil)
	if l.Size() != 400 || len(infos) < 4 {
		t.Fatalf("%d entries in %d files", l.Size(), len(infos))
	}
	for i, info := range infos[:len(infos)-1] {
		if reads[info.Path] > 2 {
			t.Errorf("file %d of %d was read %d times, only its header is needed", i, len(infos), reads[info.Path])
		}
	}
}

func TestEntries(t *testing.T) {
	m := closedLog(t, 120, 8<<10)
	var next uint64
	for it, err := range Entries(m, testDir) {
		must(t, err)
		if it.Index != next || !bytes.Equal(it.Entry.Append(nil), it.Raw) {
			t.Fatalf("item %d has index %d", next, it.Index)
		}
		b, err := vfs.ReadFile(m, testDir+"/"+it.File, 1<<20)
		must(t, err)
		if frame := b[it.Offset+4:]; !bytes.HasPrefix(frame, it.Raw) {
			t.Fatalf("entry %d is not at %s offset %d", it.Index, it.File, it.Offset)
		}
		next++
	}
	if next != 120 {
		t.Errorf("%d entries, want 120", next)
	}
	for range Entries(m, testDir) {
		break
	}
	for _, err := range Entries(m, "/nowhere") {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no directory: %v", err)
		}
	}
}

func TestBacklogAndInvalid(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	o.MaxPending = 300
	l := mustOpen(t, o)
	if _, err := l.Append(&Entry{Kind: KindLost}); !errors.Is(err, ErrEntry) {
		t.Errorf("invalid entry: %v", err)
	}
	for i := range 3 {
		mustAppend(t, l, step(i))
	}
	if _, err := l.Append(step(3)); !errors.Is(err, ErrBacklog) {
		t.Errorf("over the limit: %v, want ErrBacklog", err)
	}
	must(t, l.Sync())
	mustAppend(t, l, step(3))
}

func TestOpenRefusesRunID(t *testing.T) {
	for _, id := range []string{"", "a/b", "this-run-id-is-longer-than-32-byte", "new\nline"} {
		if _, err := Open(testDir, Options{FS: vfs.NewMem(), RunID: id}); err == nil {
			t.Errorf("run id %q was accepted", id)
		}
	}
}

func TestNoSigner(t *testing.T) {
	m := vfs.NewMem()
	l := mustOpen(t, Options{FS: m, RunID: testRun})
	mustAppend(t, l, step(0))
	must(t, l.Sync())
	if _, err := l.SignHead(); !errors.Is(err, ErrNoSigner) {
		t.Errorf("got %v, want ErrNoSigner", err)
	}
	must(t, l.Close())
	if r := mustVerify(t, m); r.Err() != nil || !r.Has(ClassNoHead) || r.Size != 1 {
		t.Errorf("report %+v", r)
	}
}

// TestRecovery: Open cuts what was never acknowledged, keeps a copy, and says so.
func TestRecovery(t *testing.T) {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	mustAppend(t, l, step(0), step(1))
	must(t, l.Sync())
	h, err := l.SignHead()
	must(t, err)
	must(t, l.Abort())
	name := segment.FileName(0)
	edit(t, m, testDir+"/"+name, func(f vfs.File) error { _, err := f.WriteAt([]byte("torn"), 4096+600); return err })
	if r := mustVerify(t, m); r.Err() != nil || !r.Has(ClassTorn) || r.Sealed {
		t.Errorf("before: %v", r.Faults)
	}
	l = mustOpen(t, testOptions(t, m))
	r := l.Recovery()
	if r.Entries != 2 || r.File != name || !r.Torn || r.Offset <= 4096 || r.Head == nil || r.Head.Root != h.Root {
		t.Errorf("recovery %+v", r)
	}
	if b, err := vfs.ReadFile(m, testDir+"/"+name+".torn", 1<<20); err != nil || !bytes.Contains(b, []byte("torn")) {
		t.Errorf("the tail was not kept: %v", err)
	}
	must(t, l.Close())
	if r := mustVerify(t, m); r.Err() != nil || r.Has(ClassTorn) || !r.Sealed || r.Size != 2 {
		t.Errorf("after: %v", r.Faults)
	}
	if r := mustOpen(t, testOptions(t, m)).Recovery(); r.File != "" || r.Torn {
		t.Errorf("recovery of a sealed log: %+v", r)
	}
}

// TestRollback: whatever takes entries away from under a signed head is refused, and no file is changed.
func TestRollback(t *testing.T) {
	full := closedLog(t, 100, 8<<10)
	infos, err := segment.List(full, testDir)
	must(t, err)
	last := infos[len(infos)-1].Path
	tests := map[string]func(m *vfs.Mem){
		"last file removed":  func(m *vfs.Mem) { must(t, m.Remove(last)) },
		"all files removed":  func(m *vfs.Mem) { removeAll(t, m) },
		"last file cut":      func(m *vfs.Mem) { truncate(t, m, last, 4096) },
		"last file half cut": func(m *vfs.Mem) { truncate(t, m, last, infos[len(infos)-1].Size-400) },
	}
	for name, damage := range tests {
		m := full.Crash(nil, vfs.KeepAll)
		damage(m)
		before := dump(t, m)
		if _, err := Open(testDir, testOptions(t, m)); !errors.Is(err, ErrRollback) {
			t.Errorf("%s: %v, want ErrRollback", name, err)
		}
		if after := dump(t, m); after != before {
			t.Errorf("%s: Open changed files before it refused:\n%s\nthen\n%s", name, before, after)
		}
		if r := mustVerify(t, m); !r.Has(ClassMissing) || r.Err() == nil {
			t.Errorf("%s: Verify says %v", name, r.Err())
		}
	}
}

// TestHeadMismatch: a log that was rewritten, and a head of another run.
func TestHeadMismatch(t *testing.T) {
	m := closedLog(t, 40, 64<<10)
	other := vfs.NewMem()
	l := mustOpen(t, testOptions(t, other))
	for i := range 45 {
		mustAppend(t, l, step(1000+i))
	}
	must(t, l.Close())
	swap(t, other, m, testHead) // m's head over other's entries
	if _, err := Open(testDir, testOptions(t, other)); !errors.Is(err, ErrHeadMismatch) {
		t.Errorf("rewritten log: %v, want ErrHeadMismatch", err)
	}
	if r := mustVerify(t, other); !r.Has(ClassMismatch) || r.Err() == nil {
		t.Errorf("rewritten log: Verify says %v", r.Err())
	}

	foreign := vfs.NewMem()
	o := testOptions(t, foreign)
	o.RunID = "20261122T201833-other"
	l = mustOpen(t, o)
	for i := range 40 {
		mustAppend(t, l, step(i))
	}
	must(t, l.Close())
	swap(t, m, foreign, testHead)
	if _, err := Open(testDir, testOptions(t, m)); !errors.Is(err, ErrHeadMismatch) {
		t.Errorf("head of another run: %v, want ErrHeadMismatch", err)
	}
	if r := mustVerify(t, m); !r.Has(ClassNotOurs) || r.Err() == nil || r.Head != nil {
		t.Errorf("head of another run: Verify says %v", r.Err())
	}
}

// TestForeignFile: a file of another run among the log's own.
func TestForeignFile(t *testing.T) {
	m := closedLog(t, 20, 64<<10)
	w, err := segment.Create(testDir, 20, segment.Options{FS: m, Kind: segment.KindTelemetry, RunID: testRun, Size: -1})
	must(t, err)
	must(t, w.Append([]byte("x")))
	_, err = w.Seal()
	must(t, err)
	if r := mustVerify(t, m); !r.Has(ClassNotOurs) || r.Err() == nil {
		t.Errorf("telemetry segment in the log: %v", r.Err())
	}
	var f *Fault
	if _, err := Open(testDir, testOptions(t, m)); !errors.As(err, &f) || f.Class != ClassNotOurs {
		t.Errorf("telemetry segment in the log: Open says %v", err)
	}
}

// TestFileOfAnotherRun: the tree does not depend on the run, so only the header tells.
func TestFileOfAnotherRun(t *testing.T) {
	m := vfs.NewMem()
	var tree frontier
	for base, run := range []string{testRun, "20261122T201833-other"} {
		w, err := segment.Create(testDir, uint64(base), segment.Options{
			FS: mkdir(t, m), Kind: segment.KindDigests, RunID: run, Meta: appendMeta(nil, causeRoll, &tree), Size: -1,
		})
		must(t, err)
		raw := step(base).Append(nil)
		must(t, w.Append(raw))
		tree.add(tlog.RecordHash(raw))
		_, err = w.Seal()
		must(t, err)
	}
	if r := mustVerify(t, m); !r.Has(ClassNotOurs) || r.Err() == nil || r.Size != 2 {
		t.Errorf("%v", r.Faults)
	}
	var f *Fault
	if _, err := Open(testDir, testOptions(t, m)); !errors.As(err, &f) || f.Class != ClassNotOurs {
		t.Errorf("Open: %v", err)
	}
}

func mkdir(t *testing.T, m *vfs.Mem) *vfs.Mem {
	t.Helper()
	must(t, vfs.MkdirAll(m, testDir, 0o755))
	return m
}

func removeAll(t *testing.T, m *vfs.Mem) {
	infos, err := segment.List(m, testDir)
	must(t, err)
	for _, info := range infos {
		must(t, m.Remove(info.Path))
	}
}

// edit changes a file's bytes in place, read-only or not.
func edit(t testing.TB, m *vfs.Mem, path string, change func(f vfs.File) error) {
	t.Helper()
	must(t, m.Chmod(path, 0o644))
	f, err := m.OpenFile(path, syscall.O_RDWR, 0)
	must(t, err)
	must(t, change(f))
	must(t, f.Close())
}

func truncate(t testing.TB, m *vfs.Mem, path string, size int64) {
	t.Helper()
	edit(t, m, path, func(f vfs.File) error { return f.Truncate(size) })
}

// swap puts src's file in the place of dst's.
func swap(t *testing.T, dst, src *vfs.Mem, path string) {
	t.Helper()
	b, err := vfs.ReadFile(src, path, 1<<20)
	must(t, err)
	must(t, vfs.Replace(dst, path, b, 0o644))
}

// dump lists all files of the run with their contents' sizes and sums.
func dump(t *testing.T, m *vfs.Mem) string {
	t.Helper()
	var lines []string
	for _, dir := range []string{"/run", testDir} {
		list, err := m.ReadDir(dir)
		must(t, err)
		for _, d := range list {
			if d.IsDir() {
				continue
			}
			b, err := vfs.ReadFile(m, dir+"/"+d.Name(), 1<<24)
			must(t, err)
			lines = append(lines, fmt.Sprintf("%s %d %x", d.Name(), len(b), tlog.RecordHash(b)))
		}
	}
	slices.Sort(lines)
	return fmt.Sprint(lines)
}

// Entries that were encoded elsewhere are the same log as those appended one by one, however they are handed over.
func TestAppendEncoded(t *testing.T) {
	var entries []*Entry
	for i := range 40 {
		entries = append(entries, step(i))
		if i%7 == 0 {
			entries = append(entries, &Entry{Kind: KindLost, Seq: uint64(i), From: uint64(i), To: uint64(i) + 3, Reason: 1})
		}
	}
	one, many := vfs.NewMem(), vfs.NewMem()
	l := mustOpen(t, testOptions(t, one))
	mustAppend(t, l, entries...)
	must(t, l.Close())

	o := testOptions(t, many)
	o.MaxPending = 1000 // about eight entries
	l = mustOpen(t, o)
	var c Encoder
	var x Encoded
	for _, e := range entries {
		must(t, c.Append(&x, e))
	}
	if err := c.Append(&x, &Entry{Kind: KindLost}); !errors.Is(err, ErrEntry) || x.Len() != len(entries) {
		t.Fatalf("an entry that is none: %v, %d entries", err, x.Len())
	}
	backlogs := 0
	for from := 0; from < x.Len(); {
		n, err := l.AppendEncoded(&x, from)
		if from += n; errors.Is(err, ErrBacklog) {
			backlogs++
			err = l.Sync()
		}
		must(t, err)
	}
	if last, _ := l.Last(); last.Seq != entries[len(entries)-1].Seq || backlogs < 3 {
		t.Errorf("the last entry is %+v; %d backlogs", last, backlogs)
	}
	must(t, l.Close())
	a, b := mustVerify(t, one), mustVerify(t, many)
	if a.Err() != nil || b.Err() != nil || a.Root != b.Root || a.Size != b.Size {
		t.Errorf("%d entries, root %x, and %d, %x; %v, %v", a.Size, a.Root, b.Size, b.Root, a.Err(), b.Err())
	}
}
