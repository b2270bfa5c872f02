package digestlog

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// smallLogs are closed logs to be damaged: one file, and several.
func smallLogs(t *testing.T) map[string]*vfs.Mem {
	logs := map[string]*vfs.Mem{"one file": closedLog(t, 9, 64<<10), "three files": closedLog(t, 20, 5<<10)}
	for name, m := range logs {
		if r := mustVerify(t, m); !r.Closed() || len(r.Faults) > 0 {
			t.Fatalf("%s is not whole: %v", name, r.Faults)
		}
	}
	return logs
}

// A memoVerifier checks a signature it has just checked without the arithmetic, which is most of the time of verifying a small log.
type memoVerifier struct {
	note.Verifier
	msg, sig []byte
}

func (v *memoVerifier) Verify(msg, sig []byte) bool {
	if bytes.Equal(msg, v.msg) && bytes.Equal(sig, v.sig) {
		return true
	}
	if !v.Verifier.Verify(msg, sig) {
		return false
	}
	v.msg, v.sig = bytes.Clone(msg), bytes.Clone(sig)
	return true
}

func quickVerifiers(t *testing.T) note.Verifiers {
	_, _, vkey := testKey(t, 1)
	v, err := note.NewVerifier(vkey)
	must(t, err)
	return note.VerifierList(&memoVerifier{Verifier: v})
}

// quickVerify is mustVerify for many calls.
func quickVerify(t *testing.T) func(m *vfs.Mem) Report {
	verifiers := quickVerifiers(t)
	return func(m *vfs.Mem) Report {
		r, err := Verify(m, testDir, testHead, verifiers)
		must(t, err)
		return r
	}
}

// TestFlipEveryByte: no byte of a closed log can change without Verify naming the file.
func TestFlipEveryByte(t *testing.T) {
	verify := quickVerify(t)
	for name, full := range smallLogs(t) {
		infos, err := segment.List(full, testDir)
		must(t, err)
		for _, info := range infos {
			m, f := eachByte(t, full, info, func(m *vfs.Mem, f vfs.File, at int64, was byte) {
				for _, bad := range []byte{was ^ 1<<(at%8), was ^ 0xff} {
					if bad == was^0xff && at > 512 && at < 4096 {
						continue // the zeros at the end of a header are all alike
					}
					write(t, f, at, bad)
					r := verify(m)
					if r.Err() == nil || r.Closed() || !names(r, info.Name) {
						t.Errorf("%s: %s offset %d, %#02x for %#02x: %v", name, info.Name, at, bad, was, r.Faults)
					}
				}
			})
			must(t, f.Close())
			if r := mustVerify(t, m); !r.Closed() {
				t.Fatalf("%s: not whole after everything was put back: %v", name, r.Faults)
			}
		}
	}
}

// eachByte calls try for the bytes of a file of a copy of full, one after the other, and puts each back. It returns copy and file.
func eachByte(t *testing.T, full *vfs.Mem, info segment.Info, try func(m *vfs.Mem, f vfs.File, at int64, was byte)) (*vfs.Mem, vfs.File) {
	t.Helper()
	m := full.Crash(nil, vfs.KeepAll)
	must(t, m.Chmod(info.Path, 0o644))
	f, err := m.OpenFile(info.Path, 2, 0)
	must(t, err)
	b := make([]byte, 1)
	for at := range info.Size {
		if !sample(at) {
			continue
		}
		_, err := f.ReadAt(b, at)
		must(t, err)
		try(m, f, at, b[0])
		write(t, f, at, b[0])
	}
	return m, f
}

// sample picks a part of what a loop tries, for the short form of a test: the one under the race detector.
func sample(i int64) bool { return !testing.Short() || i%11 == 0 }

func write(t *testing.T, f vfs.File, at int64, b byte) {
	if _, err := f.WriteAt([]byte{b}, at); err != nil {
		t.Fatal(err)
	}
}

// names reports whether a fault that is not benign names the file.
func names(r Report, file string) bool {
	for _, f := range r.Faults {
		if !f.Benign() && f.File == file {
			return true
		}
	}
	// A last file that is cut or damaged at its end shows in what the head covers.
	return r.Has(ClassMissing) && r.Has(ClassTorn)
}

// TestTruncateEveryLength: no file of a closed log can be cut without Verify finding it.
func TestTruncateEveryLength(t *testing.T) {
	verify := quickVerify(t)
	for name, full := range smallLogs(t) {
		infos, err := segment.List(full, testDir)
		must(t, err)
		for _, info := range infos {
			m := full.Crash(nil, vfs.KeepAll)
			must(t, m.Chmod(info.Path, 0o644))
			f, err := m.OpenFile(info.Path, 2, 0)
			must(t, err)
			for size := info.Size - 1; size >= 0; size-- {
				if !sample(size) {
					continue
				}
				must(t, f.Truncate(size))
				if r := verify(m); r.Err() == nil || r.Closed() {
					t.Errorf("%s: %s cut to %d of %d bytes: %v", name, info.Name, size, info.Size, r.Faults)
				}
			}
			must(t, f.Close())
		}
	}
}

// TestTruncateActive: every prefix of a file that was never sealed is a torn tail or missing entries, never a wrong log.
func TestTruncateActive(t *testing.T) {
	verify := quickVerify(t)
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	for i := range 8 {
		mustAppend(t, l, step(i))
		must(t, l.Sync())
		if i == 3 {
			_, err := l.SignHead()
			must(t, err)
		}
	}
	must(t, l.Abort())
	path := testDir + "/" + segment.FileName(0)
	f, err := m.OpenFile(path, 2, 0)
	must(t, err)
	for size := int64(8 << 10); size >= 4096; size-- {
		must(t, f.Truncate(size))
		r := verify(m)
		if lost := r.Size < 4; lost != (r.Err() != nil) || lost != r.Has(ClassMissing) {
			t.Errorf("cut to %d: %d entries, %v", size, r.Size, r.Faults)
		}
	}
	must(t, f.Close())
}

// TestDropFrames rewrites a log without its last entries, with all checksums right: only the head can tell.
func TestDropFrames(t *testing.T) {
	full := closedLog(t, 12, 64<<10)
	for keep := range 12 {
		m := vfs.NewMem()
		l := mustOpen(t, Options{FS: m, RunID: testRun, SegmentSize: 64 << 10})
		for it, err := range Entries(full, testDir) {
			must(t, err)
			if it.Index < uint64(keep) {
				mustAppend(t, l, &it.Entry)
			}
		}
		must(t, l.Close())
		if r := mustVerify(t, m); r.Err() != nil {
			t.Fatalf("a prefix is a valid log, but: %v", r.Err())
		}
		swap(t, m, full, testHead)
		r := mustVerify(t, m)
		if !r.Has(ClassMissing) || !errors.Is(r.Err(), ErrRollback) || r.Has(ClassCorrupt) {
			t.Errorf("%d of 12 entries kept: %v", keep, r.Faults)
		}
	}
}

// TestRemoveEachFile: a file that is not there leaves a gap that is named.
func TestRemoveEachFile(t *testing.T) {
	full := closedLog(t, 60, 5<<10)
	infos, err := segment.List(full, testDir)
	must(t, err)
	for i, info := range infos {
		m := full.Crash(nil, vfs.KeepAll)
		must(t, m.Remove(info.Path))
		r := mustVerify(t, m)
		var missing *Fault
		for _, f := range r.Faults {
			if f.Class == ClassMissing {
				missing = f
			}
		}
		// Named is the file in which the entries would have to go on, or else the one before which they would have to be.
		place := map[bool]string{true: infos[1].Name, false: infos[max(0, i-1)].Name}[i == 0]
		if missing == nil || missing.From != info.Base || missing.File != place || r.Err() == nil {
			t.Errorf("file %d of %d removed: %v", i, len(infos), r.Faults)
		}
		if _, err := Open(testDir, testOptions(t, m)); i < len(infos)-1 && err == nil {
			// Open replays only the end, so it may not see it; it must when the end is concerned.
			continue
		} else if err == nil {
			t.Error("a log without its last file was opened")
		}
	}
}

// TestSwappedFrames: two entries exchanged inside a file whose checksums are right again.
func TestSwappedFrames(t *testing.T) {
	full := closedLog(t, 12, 64<<10)
	m := vfs.NewMem()
	l := mustOpen(t, Options{FS: m, RunID: testRun, SegmentSize: 64 << 10})
	var entries []Entry
	for it, err := range Entries(full, testDir) {
		must(t, err)
		entries = append(entries, it.Entry)
	}
	entries[4], entries[5] = entries[5], entries[4]
	for i := range entries {
		mustAppend(t, l, &entries[i])
	}
	must(t, l.Close())
	swap(t, m, full, testHead)
	if r := mustVerify(t, m); !r.Has(ClassMismatch) || r.Has(ClassCorrupt) || r.Has(ClassMissing) {
		t.Errorf("two entries exchanged: %v", r.Faults)
	}
}

// TestUnknownKind: an entry of a later version is a warning; the rest is verified.
func TestUnknownKind(t *testing.T) {
	m := vfs.NewMem()
	var tree frontier
	w := rawSegment(t, m, 0, causeStart, &tree)
	future, newer, good := step(1).Append(nil), step(1).Append(nil), step(2).Append(nil)
	future[1], newer[0] = 99, 2
	for _, b := range [][]byte{future, newer, good} {
		must(t, w.Append(b))
	}
	_, err := w.Seal()
	must(t, err)
	r := mustVerify(t, m)
	if r.Err() != nil || !r.Has(ClassUnknown) || r.Size != 3 || r.Kinds[KindStep] != 1 {
		t.Errorf("%v, %+v", r.Err(), r)
	}
	l := mustOpen(t, testOptions(t, m))
	mustAppend(t, l, step(3))
	must(t, l.Close())
	if r := mustVerify(t, m); r.Err() != nil || r.Size != 4 || r.Root != l.Root() {
		t.Errorf("%v, %+v", r.Err(), r)
	}
}

// TestMalformedEntry: a good frame around a bad entry is damage at a place.
func TestMalformedEntry(t *testing.T) {
	m := vfs.NewMem()
	var tree frontier
	w := rawSegment(t, m, 0, causeStart, &tree)
	must(t, w.Append(step(0).Append(nil)))
	must(t, w.Append([]byte("\x01\x02 not an entry")))
	_, err := w.Seal()
	must(t, err)
	r := mustVerify(t, m)
	if !r.Has(ClassCorrupt) || !errors.Is(r.Err(), ErrEntry) || r.Faults[len(r.Faults)-1].From != 1 {
		t.Errorf("%v", r.Faults)
	}
	if _, err := Open(testDir, testOptions(t, m)); !errors.Is(err, ErrEntry) {
		t.Errorf("Open: %v, want ErrEntry", err)
	}
}

// TestWrongTreeState: a file whose header claims another tree than the entries before it make.
func TestWrongTreeState(t *testing.T) {
	m := vfs.NewMem()
	var tree, wrong frontier
	w := rawSegment(t, m, 0, causeStart, &tree)
	must(t, w.Append(step(0).Append(nil)))
	_, err := w.Seal()
	must(t, err)
	wrong.add([32]byte{1})
	w = rawSegment(t, m, 1, causeRoll, &wrong)
	must(t, w.Append(step(1).Append(nil)))
	_, err = w.Seal()
	must(t, err)
	r := mustVerify(t, m)
	if !errors.Is(r.Err(), errTreeState) || r.Faults[len(r.Faults)-1].File != segment.FileName(1) {
		t.Errorf("%v", r.Faults)
	}
	signer, _, _ := testKey(t, 1)
	h, err := signHead(signer, testRun, 0, tree.root()) // so Open has to begin at the first file
	must(t, err)
	must(t, vfs.Replace(m, testHead, h.Note, 0o644))
	if _, err := Open(testDir, testOptions(t, m)); !errors.Is(err, errTreeState) {
		t.Errorf("Open: %v, want %v", err, errTreeState)
	}
}

// TestOverlap: a file may begin before the end of the one before only if it says that that one was given up.
func TestOverlap(t *testing.T) {
	for c, want := range map[cause]error{causeRoll: errOverlap, causePoisoned: nil} {
		m := vfs.NewMem()
		var tree frontier
		w := rawSegment(t, m, 0, causeStart, &tree)
		must(t, w.Append(step(0).Append(nil)))
		must(t, w.Append(step(1).Append(nil)))
		_, err := w.Seal()
		must(t, err)
		tree.add(tlog.RecordHash(step(0).Append(nil)))
		w = rawSegment(t, m, 1, c, &tree)
		must(t, w.Append(step(5).Append(nil)))
		_, err = w.Seal()
		must(t, err)
		if r := mustVerify(t, m); !errors.Is(r.Err(), want) || r.Size != 2 {
			t.Errorf("cause %d: %v, want %v", c, r.Faults, want)
		}
	}
}

func rawSegment(t *testing.T, m *vfs.Mem, base uint64, c cause, tree *frontier) *segment.Writer {
	t.Helper()
	must(t, vfs.MkdirAll(m, testDir, 0o755))
	w, err := segment.Create(testDir, base, segment.Options{
		FS: m, Kind: segment.KindDigests, RunID: testRun, Meta: appendMeta(nil, c, tree), Size: -1,
	})
	must(t, err)
	return w
}

// TestFlipHead: no bit of a head can change without an error of the right class.
func TestFlipHead(t *testing.T) {
	signer, verifiers, _ := testKey(t, 1)
	h, err := signHead(signer, testRun, 123456, sum(9))
	must(t, err)
	if got, err := ParseHead(h.Note, verifiers); err != nil || got.Size != 123456 || got.Root != sum(9) || got.RunID() != testRun {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range h.Note {
		for bit := range 8 {
			b := bytes.Clone(h.Note)
			b[i] ^= 1 << bit
			_, err := ParseHead(b, verifiers)
			if !errors.Is(err, ErrHead) && !errors.Is(err, ErrSignature) && !errors.Is(err, ErrWrongKey) {
				t.Errorf("byte %d %q, bit %d: %v", i, h.Note[i], bit, err)
			}
		}
	}
	for n := range h.Note {
		if _, err := ParseHead(h.Note[:n], verifiers); err == nil {
			t.Errorf("first %d of %d bytes were accepted", n, len(h.Note))
		}
	}
}

func TestHeadErrors(t *testing.T) {
	signer, verifiers, _ := testKey(t, 1)
	_, others, _ := testKey(t, 2)
	root := sum(9)
	b64 := base64.StdEncoding.EncodeToString(root[:])
	sign := func(text string) []byte {
		b, err := note.Sign(&note.Note{Text: text}, signer)
		must(t, err)
		return b
	}
	good := fmt.Sprintf("usp/x\n7\n%s\n", b64)
	twice := sign(good)
	line := twice[bytes.LastIndexByte(twice[:len(twice)-1], '\n')+1:]
	tests := []struct {
		name      string
		head      []byte
		verifiers note.Verifiers
		want      error
	}{
		{"good", sign(good), verifiers, nil},
		{"extension line", sign(good + "more\n"), verifiers, nil},
		{"another key", sign(good), others, ErrWrongKey},
		{"no keys", sign(good), nil, ErrWrongKey},
		{"repeated signature", append(twice, line...), verifiers, ErrHead},
		{"no text", nil, verifiers, ErrHead},
		{"no root", sign("usp/x\n7\n"), verifiers, ErrHead},
		{"leading zero", sign("usp/x\n07\n" + b64 + "\n"), verifiers, ErrHead},
		{"negative", sign("usp/x\n-7\n" + b64 + "\n"), verifiers, ErrHead},
		{"huge", sign("usp/x\n9223372036854775807\n" + b64 + "\n"), verifiers, ErrHead},
		{"short root", sign("usp/x\n7\nAAAA\n"), verifiers, ErrHead},
		{"loose base64", sign("usp/x\n7\n" + strings.TrimSuffix(b64, "k=") + "l=\n"), verifiers, ErrHead},
		{"no origin", sign("\n7\n" + b64 + "\n"), verifiers, ErrHead},
	}
	for _, tt := range tests {
		if _, err := ParseHead(tt.head, tt.verifiers); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// TestWrongKey: an intact log under a head that none of the given keys has signed.
func TestWrongKey(t *testing.T) {
	m := closedLog(t, 9, 64<<10)
	_, others, _ := testKey(t, 2)
	r, err := Verify(m, testDir, testHead, others)
	must(t, err)
	if !r.Has(ClassWrongKey) || !errors.Is(r.Err(), ErrWrongKey) || r.Size != 9 || r.Head != nil {
		t.Errorf("%v", r.Faults)
	}
	o := testOptions(t, m)
	o.Verifiers = others
	if _, err := Open(testDir, o); !errors.Is(err, ErrWrongKey) {
		t.Errorf("Open: %v, want ErrWrongKey", err)
	}
	must(t, vfs.Replace(m, testHead, make([]byte, maxHeadFile+1), 0o644))
	if r := mustVerify(t, m); !r.Has(ClassHead) {
		t.Errorf("a head of %d bytes: %v", maxHeadFile+1, r.Faults)
	}
}

func FuzzParseHead(f *testing.F) {
	signer, verifiers, _ := testKey(f, 1)
	for _, size := range []uint64{0, 1, 1 << 40} {
		h, err := signHead(signer, testRun, size, sum(1))
		must(f, err)
		f.Add(h.Note)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := ParseHead(b, verifiers); err == nil && !bytes.Equal(h.Note, b) {
			t.Fatal("the note is not what was read")
		}
		if h, err := peekHead(b); err == nil {
			text := fmt.Sprintf("%s\n%d\n%s\n", h.Origin, h.Size, base64.StdEncoding.EncodeToString(h.Root[:]))
			if !bytes.HasPrefix(b, []byte(text)) {
				t.Fatalf("head says %q, the text is %q", b, text)
			}
		}
	})
}
