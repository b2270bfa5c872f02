package digestlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// account is what a reader of a log who does not need the digests takes from it, as text: each entry but STEP as it is, each run of STEP
// entries joined.
type account struct {
	lines []string
	run   Steps
	next  uint64
}

func (a *account) add(t testing.TB, s Span) {
	t.Helper()
	if s.Index != a.next {
		t.Fatalf("span at %d, %d is next", s.Index, a.next)
	}
	a.next += s.Entries()
	if s.Run.Count == 0 {
		a.flush()
		a.lines = append(a.lines, fmt.Sprintf("%d %x", s.Index, s.Raw))
		return
	}
	if a.run.joins(&s.Run) {
		a.run.Count, a.run.LastStep, a.run.LastSeq = a.run.Count+s.Run.Count, s.Run.LastStep, s.Run.LastSeq
		return
	}
	a.flush()
	a.run = s.Run
}

func (a *account) flush() {
	if a.run.Count > 0 {
		a.lines = append(a.lines, fmt.Sprintf("%+v", a.run))
	}
	a.run = Steps{}
}

// accounts reads a log both ways and wants the same.
func accounts(t testing.TB, fsys vfs.FS) (entries uint64) {
	t.Helper()
	var want, got account
	for it, err := range Entries(fsys, testDir) {
		if entry(t, err) {
			want.add(t, spanOf(it))
		}
	}
	for s, err := range Outline(fsys, testDir) {
		if entry(t, err) {
			got.add(t, s)
		}
	}
	want.flush()
	got.flush()
	if !slices.Equal(want.lines, got.lines) {
		t.Errorf("the outline is\n%q, the entries are\n%q", got.lines, want.lines)
	}
	return got.next
}

// entry reports whether there is an entry beside the error, which must be nil or benign.
func entry(t testing.TB, err error) bool {
	t.Helper()
	var f *Fault
	if err != nil && !(errors.As(err, &f) && f.Benign()) {
		t.Fatal(err)
	}
	return err == nil || f.Class == ClassUnknown
}

// TestOutline: of any log, over files that are sealed, active and reopened, the outline says what the entries say.
func TestOutline(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := vfs.NewMem()
		o := testOptions(t, m)
		o.SegmentSize = 5 << 10
		l := mustOpen(t, o)
		for i := range rapid.IntRange(1, 60).Draw(rt, "entries") {
			e := genEntry(rt)
			if rapid.IntRange(0, 3).Draw(rt, "usual") > 0 {
				e = *step(i)
				e.Generation = uint32(i / 20)
			}
			mustAppend(t, l, &e)
			switch rapid.IntRange(0, 12).Draw(rt, "then") {
			case 0:
				must(t, l.Close())
				l = mustOpen(t, o)
			case 1:
				must(t, l.Abort())
				l = mustOpen(t, o)
			default:
				must(t, l.Sync())
			}
		}
		if n := accounts(t, m); n != l.Size() {
			rt.Fatalf("%d entries in the outline, %d in the log", n, l.Size())
		}
		must(t, l.Close())
		accounts(t, m)
	})
}

// TestOutlineReadsTheEnds: no byte of an entry is read of a sealed file.
func TestOutlineReadsTheEnds(t *testing.T) {
	var reads []int
	for _, n := range []int{200, 2000} {
		m := closedLog(t, n, int64(n)*50)
		in := vfs.Inject(m)
		for _, err := range Outline(in, testDir) {
			must(t, err)
		}
		infos, err := segment.List(m, testDir)
		must(t, err)
		reads = append(reads, in.Calls(vfs.OpRead)/len(infos))
	}
	if reads[0] != reads[1] || reads[0] > 8 {
		t.Errorf("reads per file: %v", reads)
	}
}

// TestOutlineCutOff: an outline that would be too long is none, and the memory that it takes is bounded.
func TestOutlineCutOff(t *testing.T) {
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.SegmentSize = 8 << 20
	l := mustOpen(t, o)
	for i := range 20_000 {
		mustAppend(t, l, step(2*i), &Entry{Kind: KindLost, Seq: uint64(i), From: uint64(i), To: uint64(i) + 1, Reason: 1})
	}
	must(t, l.Close())
	infos, err := segment.List(m, testDir)
	must(t, err)
	ends, err := segment.ReadEnds(m, infos[0].Path)
	must(t, err)
	if len(ends.Index) != outlineHeader || !errors.Is(outlineError(ends.Index, ends.Next), errOutlineCut) {
		t.Errorf("index %x", ends.Index[:min(len(ends.Index), 32)])
	}
	if n := accounts(t, m); n != 40_000 {
		t.Errorf("%d entries", n)
	}
	if r := mustVerify(t, m); r.Err() != nil {
		t.Error(r.Err())
	}
	var out outliner
	lost := Entry{Kind: KindLost, From: 1, To: 2, Reason: 1}
	for raw := lost.Append(nil); !out.cut; {
		out.Add(0, raw)
		if n := outlineHeader + len(out.out); n < segment.MaxIndex-1000 {
			continue
		}
		if n := len(out.Index()); n > segment.MaxIndex {
			t.Fatalf("an index of %d bytes", n)
		}
	}
}

// TestStepOf: what the outliner takes for a STEP entry is what ParseEntry takes for one.
func TestStepOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEntry(t)
		b := e.Append(nil)
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 0:
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		case 1:
			b = b[:rapid.IntRange(0, len(b)).Draw(t, "cut")]
		case 2:
			b = append(b, 0)
		}
		checkStepOf(t, b)
	})
	long := Entry{Kind: KindStep, Ext: make([]byte, MaxExt)}
	for _, n := range []int{MaxExt, MaxExt + 1} {
		long.Ext = make([]byte, n)
		checkStepOf(t, long.Append(nil))
	}
}

type fataler interface {
	Fatalf(format string, args ...any)
}

func checkStepOf(t fataler, b []byte) {
	s, ok := stepOf(b)
	e, err := ParseEntry(b)
	want := Steps{e.Generation, 1, e.Step, e.Seq, e.Step, e.Seq}
	if isStep := err == nil && e.Kind == KindStep; ok != isStep || ok && s != want {
		t.Fatalf("%x: %+v %v, parsed as %+v, %v", b, s, ok, e, err)
	}
}

func outlineError(b []byte, entries uint64) error {
	_, err := readOutline(b, entries, nil, nil)
	return err
}

// resealed is a log of two files. The outline of the first is what index makes.
func resealed(t *testing.T, index *changed) *vfs.Mem {
	m := vfs.NewMem()
	must(t, vfs.MkdirAll(m, testDir, 0o755))
	var tree frontier
	w, err := segment.Create(testDir, 0, segment.Options{
		FS: m, Kind: segment.KindDigests, RunID: testRun, Meta: appendMeta(nil, causeStart, &tree), Size: -1, Index: index,
	})
	must(t, err)
	for _, e := range []*Entry{{Kind: KindOpen}, step(0), step(1), step(2)} {
		must(t, w.Append(e.Append(nil)))
		tree.add(tlog.RecordHash(e.Append(nil)))
	}
	_, err = w.Seal()
	must(t, err)
	w = rawSegment(t, m, 4, causeRoll, &tree) // so that VerifyIndex does not read the first
	end := Entry{Kind: KindEnd, Status: StatusClean}
	must(t, w.Append(end.Append(nil)))
	tree.add(tlog.RecordHash(end.Append(nil)))
	_, err = w.Seal()
	must(t, err)
	signer, _, _ := testKey(t, 1)
	h, err := signHead(signer, testRun, tree.size, tree.root())
	must(t, err)
	must(t, vfs.Replace(m, testHead, h.Note, headMode))
	return m
}

type changed struct {
	outliner
	change func([]byte) []byte // nil: it stays
}

func (c *changed) Index() []byte {
	b := c.outliner.Index()
	if c.change != nil {
		b = c.change(b)
	}
	return b
}

// TestWrongOutline: an outline with right checksums that is not that of its file is found by whoever reads the file. Who does not believes
// it if it is well formed.
func TestWrongOutline(t *testing.T) {
	poke := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	n := outlineHeader + itemEntryLen + len((&Entry{Kind: KindOpen}).Append(nil))
	for name, test := range map[string]struct {
		change           func([]byte) []byte
		whole, index, ok bool // found by Verify, by VerifyIndex; Outline gives all entries
	}{
		"true":              {func(b []byte) []byte { return b }, false, false, true},
		"none":              {func([]byte) []byte { return nil }, false, false, true},
		"newer":             {poke(0, 9), false, false, true},
		"another last step": {poke(n+1+4+24, 3), true, true, false},
		"another sum":       {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, true, false, true},
		"malformed":         {poke(n, 7), true, true, false},
		"cut off for no reason": {func(b []byte) []byte {
			b[1] = outlineCut
			binary.LittleEndian.PutUint32(b[4:], 0)
			return b[:outlineHeader]
		}, true, true, false},
	} {
		m := resealed(t, &changed{change: test.change})
		if r := mustVerify(t, m); errors.Is(r.Err(), errOutline) != test.whole || (r.Err() != nil) != test.whole {
			t.Errorf("%s: Verify: %v", name, r.Faults)
		}
		r := verifyIndex(t, m)
		if errors.Is(r.Err(), errOutline) != test.index || (r.Err() != nil) != test.index || r.Entries != 5 {
			t.Errorf("%s: VerifyIndex: %v, %d entries", name, r.Faults, r.Entries)
		}
		var faults, entries uint64
		for s, err := range Outline(m, testDir) {
			if err != nil {
				faults++
				continue
			}
			entries += s.Entries()
		}
		if entries != 5 || (faults == 0) != test.ok {
			t.Errorf("%s: Outline: %d entries, %d faults", name, entries, faults)
		}
	}
}

// TestWrongPlainOutline: so it is with one of version 1.
func TestWrongPlainOutline(t *testing.T) {
	n := outlineHeader + itemEntryLen + len((&Entry{Kind: KindOpen}).Append(nil))
	m := resealed(t, &changed{outliner{plain: true}, func(b []byte) []byte { b[n+1+4+24] = 3; return b }})
	if r := mustVerify(t, m); !errors.Is(r.Err(), errOutline) {
		t.Errorf("Verify: %v", r.Faults)
	}
	if r := verifyIndex(t, m); r.Err() != nil || r.Entries != 5 {
		t.Errorf("VerifyIndex: %v, %d entries", r.Faults, r.Entries)
	}
}

func verifyIndex(t testing.TB, fsys vfs.FS) Report {
	t.Helper()
	_, verifiers, _ := testKey(t, 1)
	r, err := VerifyIndex(IndexOptions{FS: fsys, Dir: testDir, HeadPath: testHead, Verifiers: verifiers})
	must(t, err)
	return r
}

// TestVerifyIndex: of whole logs it says what Verify says.
func TestVerifyIndex(t *testing.T) {
	logs := smallLogs(t)
	logs["many files"] = closedLog(t, 300, 5<<10)
	for _, l := range vectorLogs(t) {
		if l.name == "poisoned" || l.name == "active" || l.name == "torn" {
			logs[l.name] = l.m
		}
	}
	for name, m := range logs {
		want, got := mustVerify(t, m), verifyIndex(t, m)
		if got.Err() != nil || got.Size != want.Size || got.Root != want.Root || got.Closed() != want.Closed() || got.Entries != want.Entries ||
			got.Files != want.Files || got.RunID != want.RunID || fmt.Sprint(got.Kinds) != fmt.Sprint(want.Kinds) || len(got.Faults) != len(want.Faults) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	m := logs["many files"].Crash(nil, vfs.KeepAll)
	must(t, m.Remove(testHead))
	if r := verifyIndex(t, m); r.Err() != nil || !r.Has(ClassNoHead) || r.Size != 300 {
		t.Errorf("without a head: %+v", r)
	}
	must(t, m.Remove(testDir+"/"+segment.FileName(0)))
	if r := verifyIndex(t, m); !r.Has(ClassMissing) {
		t.Errorf("without a head and the first file: %+v", r)
	}
}

// TestVerifyIndexFlips: a byte that is changed in a header, an index, a footer, or in an entry from the last file on is found. One of an
// entry before that is not, and that is all that is not.
func TestVerifyIndexFlips(t *testing.T) {
	full := closedLog(t, 40, 5<<10)
	verifiers := quickVerifiers(t)
	infos, err := segment.List(full, testDir)
	must(t, err)
	for i, info := range infos {
		ends, err := segment.ReadEnds(full, info.Path)
		must(t, err)
		frames := info.Size - 40 - 40 - int64((len(ends.Index)+7)&^7)
		m, f := eachByte(t, full, info, func(m *vfs.Mem, f vfs.File, at int64, was byte) {
			write(t, f, at, was^1<<(at%8))
			r, err := VerifyIndex(IndexOptions{FS: m, Dir: testDir, HeadPath: testHead, Verifiers: verifiers})
			must(t, err)
			outside := i < len(infos)-1 && at >= int64(ends.Header.Len) && at < frames
			if (r.Err() == nil) != outside || !outside && !names(r, info.Name) {
				t.Fatalf("%s: byte %d of %d, frames to %d: %v", info.Name, at, info.Size, frames, r.Faults)
			}
		})
		for size := info.Size - 1; size >= 0; size -= 1 + size%7 {
			must(t, f.Truncate(size))
			if r, err := VerifyIndex(IndexOptions{FS: m, Dir: testDir, HeadPath: testHead, Verifiers: verifiers}); err != nil || r.Err() == nil {
				t.Fatalf("%s cut to %d: %v, %v", info.Name, size, r.Faults, err)
			}
		}
		must(t, f.Close())
		must(t, m.Remove(info.Path))
		if r := verifyIndex(t, m); !r.Has(ClassMissing) {
			t.Errorf("%s removed: %v", info.Name, r.Faults)
		}
	}
}

// TestVerifyIndexTrees: the tree in a header that was exchanged, checksums and all, is found where its neighbours have the same subtrees.
func TestVerifyIndexTrees(t *testing.T) {
	m := vfs.NewMem()
	var tree frontier
	signed := frontier{}
	for base := range uint64(6) {
		header := tree.clone()
		if base == 4 {
			header.nodes[0] = tlog.Hash{1}
		}
		w := rawSegment(t, m, base, map[bool]cause{true: causeStart, false: causeRoll}[base == 0], &header)
		raw := step(int(base)).Append(nil)
		must(t, w.Append(raw))
		_, err := w.Seal()
		must(t, err)
		tree.add(tlog.RecordHash(raw))
		signed = tree.clone()
	}
	signer, _, _ := testKey(t, 1)
	h, err := signHead(signer, testRun, signed.size, signed.root())
	must(t, err)
	must(t, vfs.Replace(m, testHead, h.Note, headMode))
	r := verifyIndex(t, m)
	if !errors.Is(r.Err(), errTreeState) || r.Faults[0].File != segment.FileName(5) || len(r.Faults) != 1 {
		t.Errorf("%v", r.Faults)
	}
	for s, err := range Outline(m, testDir) {
		if s.Index == 5 && err != nil {
			t.Error(err)
		}
	}
}

func TestWithin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f frontier
		n := rapid.IntRange(0, 200).Draw(t, "size")
		for i := range n {
			f.add(tlog.Hash{byte(i), byte(i >> 8)})
		}
		later := f.clone()
		for i := range rapid.IntRange(0, 200).Draw(t, "more") {
			later.add(tlog.Hash{byte(n + i), byte((n + i) >> 8), 1})
		}
		if !f.within(&later) {
			t.Fatalf("a tree of %d is said not to grow to %d", f.size, later.size)
		}
		if n == 0 || f.size&later.size>>63 != 0 {
			return
		}
		if top := nthBit(f.size, 0); top == nthBit(later.size, 0) {
			f.nodes[0][5] ^= 1
			if f.within(&later) {
				t.Fatalf("another tree of %d is said to grow to %d", f.size, later.size)
			}
		}
	})
}

// TestOutlineErrors: an error of the file system comes out as what it is, and ends the outline.
func TestOutlineErrors(t *testing.T) {
	m := closedLog(t, 40, 5<<10)
	for nth := 1; ; nth++ {
		in := vfs.Inject(m, vfs.Rule{Nth: nth})
		var last error
		n := uint64(0)
		for s, err := range Outline(in, testDir) {
			if last = err; err == nil {
				n += s.Entries()
			}
		}
		if len(in.Fired()) == 0 {
			if nth < 20 {
				t.Errorf("only %d operations", nth)
			}
			return
		}
		var f *Fault
		if errors.As(last, &f) || last == nil && n != 40 {
			t.Errorf("after %v failed: %d entries, %v", in.Fired(), n, last)
		}
	}
}

func TestOutlineOfNothing(t *testing.T) {
	for _, err := range Outline(vfs.NewMem(), testDir) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

func TestSteps(t *testing.T) {
	for _, s := range []Steps{{}, {Count: 1, LastStep: 1}, {Count: 1, LastSeq: 1}, {Count: 3, LastStep: 1, LastSeq: 5}, {Count: 3, LastStep: 5, LastSeq: 1}, {Count: 2, FirstStep: 1, LastSeq: 4}, {Count: 2, FirstSeq: 1, LastStep: 4}} {
		if s.valid() {
			t.Errorf("%+v is taken for a run", s)
		}
	}
	run := Steps{Generation: 1, Count: 3, FirstStep: 1, FirstSeq: 1, LastStep: 5, LastSeq: 5}
	if !run.valid() || !run.joins(&Steps{1, 1, 6, 6, 6, 6}) {
		t.Errorf("%+v is no run", run)
	}
	for _, s := range []Steps{{2, 1, 6, 6, 6, 6}, {1, 1, 5, 6, 5, 6}, {1, 1, 6, 5, 6, 5}} {
		if run.joins(&s) {
			t.Errorf("%+v goes on with %+v", run, s)
		}
	}
}

// TestOutlineOfOverlap: a file that was given up may be sealed and hold more than counts; its outline does not say where to stop.
func TestOutlineOfOverlap(t *testing.T) {
	m := mkdir(t, vfs.NewMem())
	var tree frontier
	w, err := segment.Create(testDir, 0, segment.Options{
		FS: m, Kind: segment.KindDigests, RunID: testRun, Meta: appendMeta(nil, causeStart, &tree), Size: -1, Index: new(outliner),
	})
	must(t, err)
	for i := range 3 {
		must(t, w.Append(step(i).Append(nil)))
	}
	_, err = w.Seal()
	must(t, err)
	tree.add(tlog.RecordHash(step(0).Append(nil)))
	w = rawSegment(t, m, 1, causePoisoned, &tree)
	must(t, w.Append((&Entry{Kind: KindOpen}).Append(nil)))
	_, err = w.Seal()
	must(t, err)
	if n := accounts(t, m); n != 2 {
		t.Errorf("%d entries", n)
	}
}

// TestVerifyIndexEnd: an END is none when STEP entries follow it that only an outline tells of, and a head over nothing is one.
func TestVerifyIndexEnd(t *testing.T) {
	m := vfs.NewMem()
	o := testOptions(t, m)
	l := mustOpen(t, o)
	h, err := signHead(o.Signer, testRun, 0, l.Root())
	must(t, err)
	must(t, vfs.Replace(m, testHead, h.Note, headMode))
	if r := verifyIndex(t, m); r.Err() != nil || r.Head == nil {
		t.Errorf("of nothing: %+v", r)
	}
	mustAppend(t, l, &Entry{Kind: KindOpen}, &Entry{Kind: KindEnd, Status: StatusClean}, step(1))
	must(t, l.Close())
	l = mustOpen(t, o)
	mustAppend(t, l, &Entry{Kind: KindEvent, Code: EventStorage})
	must(t, l.Close())
	if want, got := mustVerify(t, m), verifyIndex(t, m); want.End != nil || got.End != nil || got.Closed() {
		t.Errorf("end %+v, by the index %+v", want.End, got.End)
	}
	if err := outlineError([]byte{outlineVersion, 8: 1, 15: 0}, 1); !errors.Is(err, errOutlineForm) {
		t.Errorf("an entry without an item: %v", err)
	}
}

// TestRepairedHasOutline: a file that a dead writer left gets its outline when the log is opened again.
func TestRepairedHasOutline(t *testing.T) {
	m := vfs.NewMem()
	o := testOptions(t, m)
	l := mustOpen(t, o)
	mustAppend(t, l, &Entry{Kind: KindOpen}, step(1), step(2), step(3))
	must(t, l.Sync())
	must(t, l.Abort())
	mustOpen(t, o)
	ends, err := segment.ReadEnds(m, testDir+"/"+segment.FileName(0))
	must(t, err)
	var want outliner
	for _, e := range []*Entry{{Kind: KindOpen}, step(1), step(2), step(3)} {
		want.Add(0, e.Append(nil))
	}
	if !bytes.Equal(ends.Index, want.Index()) || want.items != 1 || want.run.Count != 3 {
		t.Errorf("index %x, want %x", ends.Index, want.Index())
	}
}

// TestOutlineOfDamage: a run does not go on behind damage, so that every entry is where it was.
func TestOutlineOfDamage(t *testing.T) {
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.SegmentSize = 64 << 10
	l := mustOpen(t, o)
	for i := range 40 {
		mustAppend(t, l, step(i))
		must(t, l.Sync())
	}
	must(t, l.Abort())
	edit(t, m, testDir+"/"+segment.FileName(0), func(f vfs.File) error { _, err := f.WriteAt([]byte{0xff}, 6000); return err })
	var want, got []uint64
	faults := 0
	for it, err := range Entries(m, testDir) {
		if err == nil {
			want = append(want, it.Index)
		}
	}
	for s, err := range Outline(m, testDir) {
		if err != nil {
			faults++
			continue
		}
		for i := range s.Entries() {
			got = append(got, s.Index+i)
		}
	}
	if !slices.Equal(got, want) || faults != 2 || len(want) < 30 || len(want) == 40 {
		t.Errorf("%d faults, entries %v, want %v", faults, got, want)
	}
}
