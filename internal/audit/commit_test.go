package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
)

const keptFile = "/elsewhere/head"

// committed is a closed run of several log files, with every head that was signed on the way.
func committed(fsys vfs.FS, n uint64) (heads [][]byte) {
	f := newFixture(fsys)
	f.begin(0, nil)
	for step := uint64(0); step < n; step += 40 {
		f.emit(step, step+40)
		f.commit()
		h, err := f.log.SignHead()
		must(err)
		heads = append(heads, h.Note)
	}
	f.end(digestlog.StatusClean)
	last, err := vfs.ReadFile(fsys, f.dir.Head(), 1<<16)
	must(err)
	return append(heads, last)
}

func verifyKept(t testing.TB, fsys vfs.FS, o audit.Options, heads ...[]byte) *audit.Report {
	t.Helper()
	for _, h := range heads {
		o.Heads = append(o.Heads, audit.KeptHead{Source: audit.KeptByHand, Name: keptFile, Note: h})
	}
	r, err := audit.Verify(context.Background(), fsys, runDir, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestKeptHeadContained: every head that the run ever had is in its log, whichever way that is read.
func TestKeptHeadContained(t *testing.T) {
	mem := vfs.NewMem()
	heads := committed(mem, 400)
	for _, index := range []bool{false, true} {
		r := verifyKept(t, mem, audit.Options{Index: index}, heads...)
		if r.Verdict != audit.OK || len(r.Integrity.Kept) != len(heads) {
			t.Fatalf("index %v: %v, %v", index, r.Verdict, r.Integrity.Problems)
		}
		for i, k := range r.Integrity.Kept {
			if k.Result != audit.Contained || k.Size == 0 || k.Root == "" {
				t.Errorf("index %v: head %d: %+v", index, i, k)
			}
		}
		for _, h := range heads {
			if r := verifyKept(t, mem, audit.Options{Index: index}, h); r.Verdict != audit.OK || r.Integrity.Kept[0].Result != audit.Contained {
				t.Errorf("index %v: alone: %v, %+v", index, r.Verdict, r.Integrity)
			}
		}
	}
}

// TestKeptHeadAttacks: what cannot be seen from inside of the run is found by a head that was kept, and gets its name.
func TestKeptHeadAttacks(t *testing.T) {
	whole := vfs.NewMem()
	heads := committed(whole, 400)
	short := vfs.NewMem()
	committed(short, 200)
	other := vfs.NewMem()
	f := newFixture(other)
	f.value = func(step uint64) float64 { return float64(step) }
	f.begin(0, nil)
	f.emit(0, 600)
	f.commit()
	f.end(digestlog.StatusClean)
	foreign, err := note.Sign(&note.Note{Text: "usp/20261122T201833-aaaaa\n3\n" + string(bytes.Split(heads[0], []byte("\n"))[2]) + "\n"}, f.signer)
	must(err)
	stranger, _, err := digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", rand.NewChaCha8([32]byte{9}))
	must(err)
	text, _, _ := strings.Cut(string(heads[3]), "\n\n")
	strange, err := note.Sign(&note.Note{Text: text + "\n"}, stranger)
	must(err)
	last := heads[len(heads)-1]
	forged := bytes.Clone(last)
	forged[bytes.LastIndexByte(forged, ' ')+10] ^= 1
	empty := vfs.NewMem()
	must(vfs.MkdirAll(empty, runDir, 0o755))
	own, err := note.NewVerifier(f.key)
	must(err)
	for _, tc := range []struct {
		name  string
		fs    vfs.FS
		head  []byte
		want  audit.Verdict
		class string
		keys  note.Verifiers
	}{
		{"older copy", short, last, audit.Failed, audit.RolledBack, nil},
		{"older copy, a head from before", short, heads[2], audit.OK, audit.Contained, nil},
		{"second history, longer", other, last, audit.Failed, audit.Rewritten, nil},
		{"second history, early head", other, heads[0], audit.Failed, audit.Rewritten, nil},
		{"nothing left", empty, last, audit.Failed, audit.RolledBack, note.VerifierList(own)},
		{"another run", whole, foreign, audit.Failed, audit.NotOurs, nil},
		{"another key", whole, strange, audit.WrongKey, "wrong-key", nil},
		{"forged", whole, forged, audit.Failed, audit.Forged, nil},
		{"damaged", whole, last[:20], audit.Failed, audit.Corrupt, nil},
		{"no head at all", whole, nil, audit.Failed, audit.Corrupt, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, index := range []bool{false, true} {
				if alone := verifyKept(t, tc.fs, audit.Options{Index: index}); alone.Verdict == audit.Failed {
					t.Fatalf("found without the head: %v", alone.Integrity.Problems)
				}
				r := verifyKept(t, tc.fs, audit.Options{Index: index}, heads[0][:0:0])
				if r.Verdict != audit.Failed {
					t.Fatalf("an empty head passes: %v", r.Verdict)
				}
				r = verifyKept(t, tc.fs, audit.Options{Index: index, Verifiers: tc.keys}, tc.head)
				if r.Verdict != tc.want || r.Exit != tc.want.ExitCode() || r.Integrity.Kept[0].Result != tc.class {
					t.Errorf("index %v: %v, %+v, %v", index, r.Verdict, r.Integrity.Kept, r.Integrity.Problems)
				}
				if tc.want == audit.Failed && !slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.Class == tc.class && p.File == keptFile }) {
					t.Errorf("index %v: no problem of class %s: %v", index, tc.class, r.Integrity.Problems)
				}
			}
		})
	}
}

// TestKeptHeadOfDamagedLog: where entries cannot be read, a log is damaged and not shorter.
func TestKeptHeadOfDamagedLog(t *testing.T) {
	mem := vfs.NewMem()
	heads := committed(mem, 400)
	var name string
	for _, f := range files(t, mem, runDir) {
		if strings.Contains(f, "/digests/") {
			name = f
			break
		}
	}
	bad := bytes.Clone(read(t, mem, name))
	bad[2000] ^= 1
	r := verifyKept(t, &overlay{FS: mem, name: name, data: bad}, audit.Options{}, heads[len(heads)-1])
	if r.Verdict != audit.Failed || r.Integrity.Kept[0].Result != audit.NotCompared {
		t.Errorf("%v, %+v, %v", r.Verdict, r.Integrity.Kept, r.Integrity.Problems)
	}
	if slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.Class == audit.RolledBack }) {
		t.Errorf("said to be rolled back: %v", r.Integrity.Problems)
	}
}

// TestKeptHeadUnsigned: by the index a log without a head of its own cannot be held against one, and that is said; its length can.
func TestKeptHeadUnsigned(t *testing.T) {
	mem := vfs.NewMem()
	heads := committed(mem, 400)
	must(mem.Remove(runDir + "/checkpoint"))
	r := verifyKept(t, mem, audit.Options{Index: true}, heads[2])
	if r.Verdict != audit.CrashTail || r.Integrity.Kept[0].Result != audit.NotCompared || !strings.Contains(strings.Join(r.Notes, "\n"), "verify without --index") {
		t.Errorf("%v, %+v, %q", r.Verdict, r.Integrity.Kept, r.Notes)
	}
	if r = verifyKept(t, mem, audit.Options{}, heads...); r.Integrity.Kept[2].Result != audit.Contained {
		t.Errorf("%+v", r.Integrity.Kept)
	}
}

// TestWitnesses: who must have cosigned and has not, or wrongly, is named; who should have is noted.
func TestWitnesses(t *testing.T) {
	signer := func(name string, b byte) *witness.Signer {
		s, err := witness.NewSigner(name, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize)), func() time.Time { return created })
		must(err)
		return s
	}
	w1, w2, liar := signer("witness.example/w1", 1), signer("witness.example/w2", 2), signer("witness.example/w1", 3)
	mem := vfs.NewMem()
	heads := committed(mem, 200)
	cosign := func(head []byte, by ...note.Signer) []byte {
		n, err := note.Open(head, nil)
		var unverified *note.UnverifiedNoteError
		if errors.As(err, &unverified) {
			n = unverified.Note
		}
		b, err := note.Sign(n, by...)
		must(err)
		return b
	}
	last := heads[len(heads)-1]
	good := cosign(last, w1)
	forged := bytes.Clone(good)
	at := bytes.LastIndexByte(forged, ' ') + 40
	if forged[at] == 'A' {
		forged[at] = 'B'
	} else {
		forged[at] = 'A'
	}
	size := uint64(0)
	for _, tc := range []struct {
		name     string
		file     []byte // nil: none
		keys     []note.Verifier
		required bool
		want     audit.Verdict
		class    string // of the problem
		note     string
		n        int // witnesses found
	}{
		{"cosigned", good, []note.Verifier{w1}, true, audit.OK, "", "", 1},
		{"by two", cosign(last, w1, w2), []note.Verifier{w1, w2}, true, audit.OK, "", "", 2},
		{"an earlier head", cosign(heads[1], w1), []note.Verifier{w1}, true, audit.OK, "", "", 1},
		{"nobody asks", good, nil, false, audit.OK, "", "give the key of the witness", 0},
		{"by another", good, []note.Verifier{w1, w2}, true, audit.Failed, audit.Unwitnessed, "", 1},
		{"should be by another", good, []note.Verifier{w2}, false, audit.OK, "", "not cosigned by witness.example/w2", 0},
		{"another key of that name", good, []note.Verifier{liar}, true, audit.Failed, audit.Unwitnessed, "", 0},
		{"forged", forged, []note.Verifier{w1}, false, audit.Failed, audit.Forged, "", 0},
		{"not there", nil, []note.Verifier{w1}, true, audit.Failed, audit.Unwitnessed, "", 0},
		{"should be there", nil, []note.Verifier{w1}, false, audit.OK, "", "there is no checkpoint.cosigned", 0},
		{"no head", []byte("nonsense"), []note.Verifier{w1}, false, audit.Failed, audit.Corrupt, "", 0},
		{"too long", bytes.Repeat([]byte("x"), 1<<17), nil, false, audit.Failed, audit.Corrupt, "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fsys := mem.Crash(nil, vfs.KeepAll)
			if tc.file != nil {
				must(vfs.Replace(fsys, runDir+"/checkpoint.cosigned", tc.file, 0o644))
			}
			var o audit.Options
			for _, k := range tc.keys {
				o.Witnesses = append(o.Witnesses, audit.Witness{Key: k, Required: tc.required})
			}
			for _, o.Index = range []bool{false, true} {
				r := verifyKept(t, fsys, o)
				if r.Verdict != tc.want || len(r.Integrity.Witnessed) != tc.n || len(r.Files.Unknown) > 0 {
					t.Errorf("%v, witnessed %+v, problems %v, unknown %v", r.Verdict, r.Integrity.Witnessed, r.Integrity.Problems, r.Files.Unknown)
				}
				if tc.class != "" && !slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.Class == tc.class && p.File == "checkpoint.cosigned" }) {
					t.Errorf("no problem of class %s: %v", tc.class, r.Integrity.Problems)
				}
				if !strings.Contains(strings.Join(r.Notes, "\n"), tc.note) {
					t.Errorf("notes %q do not say %q", r.Notes, tc.note)
				}
				for _, w := range r.Integrity.Witnessed {
					if !w.Time.Equal(created) || w.Size == 0 || w.Size > r.Integrity.LogEntries {
						t.Errorf("%+v", w)
					}
					size = w.Size
				}
			}
		})
	}
	if size == 0 {
		t.Error("nothing was witnessed at all")
	}
}
