package digestlog

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
)

// headsOf returns a log in which a head of every size was signed, and these heads.
func headsOf(t testing.TB, n int) (*vfs.Mem, []SignedTreeHead) {
	t.Helper()
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.SegmentSize = 5 << 10
	l := mustOpen(t, o)
	heads := make([]SignedTreeHead, 1, n+1)
	empty, err := signHead(o.Signer, testRun, 0, new(frontier).root())
	must(t, err)
	heads[0] = empty
	for i := range n {
		mustAppend(t, l, step(i))
		must(t, l.Sync())
		h, err := l.SignHead()
		must(t, err)
		heads = append(heads, h)
	}
	must(t, l.Close())
	return m, heads
}

// TestProof proves every entry in logs of several sizes, and reads and verifies the proof's text.
func TestProof(t *testing.T) {
	m, heads := headsOf(t, 80)
	_, verifiers, _ := testKey(t, 1)
	for _, size := range []int{1, 2, 3, 7, 8, 9, 40, 64, 65, 80} {
		for index := range uint64(size) {
			made, err := Prove(m, testDir, &heads[size], index)
			must(t, err)
			p, err := ParseProof(made.Append(nil))
			must(t, err)
			v, err := p.Verify(verifiers)
			must(t, err)
			if v.Index != index || v.Entry.Step != index || v.Head.Size != uint64(size) || len(v.Signers) != 1 || v.Unknown != nil {
				t.Fatalf("entry %d of %d: proven %+v", index, size, v)
			}
			must(t, tlog.CheckRecord(p.Hashes, int64(size), heads[size].Root, int64(index), tlog.RecordHash(p.Entry)))
		}
		if _, err := Prove(m, testDir, &heads[size], uint64(size)); !errors.Is(err, ErrNotSigned) {
			t.Errorf("entry %d of %d: %v, want ErrNotSigned", size, size, err)
		}
	}
}

func TestGrowthProofText(t *testing.T) {
	m, heads := headsOf(t, 40)
	_, verifiers, _ := testKey(t, 1)
	for from := range heads {
		for to := from; to < len(heads); to++ {
			made, err := ProveGrowth(m, testDir, &heads[to], uint64(from))
			must(t, err)
			text := made.Append(nil)
			if !IsGrowthProof(text) {
				t.Fatalf("not recognised: %s", text)
			}
			p, err := ParseGrowthProof(text)
			must(t, err)
			if v, err := p.Verify(&heads[from], verifiers); err != nil || v.From != uint64(from) || v.Head.Size != uint64(to) {
				t.Fatalf("from %d to %d: %+v, %v", from, to, v, err)
			}
			wrong := heads[from]
			wrong.Root[3] ^= 1
			if _, err := p.Verify(&wrong, verifiers); !errors.Is(err, ErrUnproven) {
				t.Fatalf("from %d to %d with another root: %v, want ErrUnproven", from, to, err)
			}
			if from > 0 {
				if _, err := p.Verify(&heads[from-1], verifiers); !errors.Is(err, ErrUnproven) {
					t.Fatalf("from %d to %d with another size: %v, want ErrUnproven", from, to, err)
				}
			}
		}
	}
	if _, err := ProveGrowth(m, testDir, &heads[3], 4); !errors.Is(err, ErrNotSigned) {
		t.Errorf("growth behind the head: %v, want ErrNotSigned", err)
	}
	other := heads[3]
	other.Origin += "x"
	p, err := ProveGrowth(m, testDir, &heads[5], 3)
	must(t, err)
	if _, err := p.Verify(&other, verifiers); !errors.Is(err, ErrUnproven) {
		t.Errorf("an earlier head of another run: %v, want ErrUnproven", err)
	}
}

// TestProofTampered changes the text of a proof everywhere: no change passes.
func TestProofTampered(t *testing.T) {
	m, heads := headsOf(t, 20)
	_, verifiers, _ := testKey(t, 1)
	inclusion, err := Prove(m, testDir, &heads[20], 11)
	must(t, err)
	growth, err := ProveGrowth(m, testDir, &heads[20], 11)
	must(t, err)
	check := func(b []byte) error {
		if IsGrowthProof(b) {
			p, err := ParseGrowthProof(b)
			if err == nil {
				_, err = p.Verify(&heads[11], verifiers)
			}
			return err
		}
		p, err := ParseProof(b)
		if err == nil {
			_, err = p.Verify(verifiers)
		}
		return err
	}
	for _, text := range [][]byte{inclusion.Append(nil), growth.Append(nil)} {
		must(t, check(text))
		for i := range text {
			for _, bit := range []byte{1, 2, 0x20} {
				b := bytes.Clone(text)
				b[i] ^= bit
				if check(b) == nil {
					t.Fatalf("byte %d changed from %q to %q and nothing was found in\n%s", i, text[i], b[i], b)
				}
			}
			if check(text[:i]) == nil {
				t.Fatalf("cut at byte %d and nothing was found", i)
			}
		}
	}
}

func TestProofErrors(t *testing.T) {
	m, heads := headsOf(t, 20)
	_, verifiers, _ := testKey(t, 1)
	_, others, _ := testKey(t, 2)
	p, err := Prove(m, testDir, &heads[20], 11)
	must(t, err)
	if _, err := p.Verify(others); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with another key: %v, want ErrWrongKey", err)
	}
	if _, err := p.Verify(nil); !errors.Is(err, ErrWrongKey) {
		t.Errorf("without a key: %v, want ErrWrongKey", err)
	}
	without := *p
	without.Entry = nil
	q, err := ParseProof(without.Append(nil))
	must(t, err)
	if _, err := q.Verify(verifiers); !errors.Is(err, ErrProof) {
		t.Errorf("without the entry: %v, want ErrProof", err)
	}
	elsewhere := *p
	elsewhere.Head = heads[19].Note
	if _, err := elsewhere.Verify(verifiers); !errors.Is(err, ErrUnproven) {
		t.Errorf("with another head: %v, want ErrUnproven", err)
	}
	if _, err := Prove(resigned(t, 20), testDir, &heads[20], 11); !errors.Is(err, ErrHeadMismatch) {
		t.Errorf("of another log: %v, want ErrHeadMismatch", err)
	}
	if _, err := Prove(resigned(t, 19), testDir, &heads[20], 11); !errors.Is(err, ErrRollback) {
		t.Errorf("of a shorter log: %v, want ErrRollback", err)
	}
	text := string(p.Append(nil))
	hash := strings.Split(text, "\n")[3] + "\n"
	for name, b := range map[string]string{
		"nothing":             "",
		"another version":     strings.Replace(text, "@v1", "@v2", 1),
		"no index":            strings.Replace(text, "index 11\n", "", 1),
		"leading zero":        strings.Replace(text, "index 11", "index 011", 1),
		"behind the log":      strings.Replace(text, "index 11", "index 20", 1),
		"empty extra":         "c2sp.org/tlog-proof@v1\nextra \n" + text[strings.Index(text, "index"):],
		"two extras":          strings.Replace(text, "extra", "extra AAAA\nextra", 1),
		"carriage return":     strings.Replace(text, "index 11\n", "index 11\r\n", 1),
		"line end in a hash":  strings.Replace(text, hash, hash[:20]+"\r"+hash[20:], 1),
		"too many hashes":     strings.Replace(text, hash, strings.Repeat(hash, 64), 1),
		"more than the tree":  strings.Replace(text, hash, strings.Repeat(hash, 8), 1),
		"no head":             text[:strings.Index(text, "\n\n")+2],
		"a longer file":       text + strings.Repeat(" ", MaxProofFile),
		"growth":              string((&GrowthProof{From: 3, Head: heads[5].Note}).Append(nil)),
		"a short hash":        strings.Replace(text, hash, "AAAA\n", 1),
		"another empty line":  strings.Replace(text, "index 11\n", "index 11\n\n", 1),
		"space behind a line": strings.Replace(text, "index 11\n", "index 11 \n", 1),
	} {
		if _, err := ParseProof([]byte(b)); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v, want ErrProof", name, err)
		}
	}
}

// TestProofCosigned: what others have signed stays in the proof and is told apart.
func TestProofCosigned(t *testing.T) {
	m, heads := headsOf(t, 5)
	_, verifiers, vkey := testKey(t, 1)
	witness, _, wkey := testKey(t, 2)
	n, err := note.Open(heads[5].Note, verifiers)
	must(t, err)
	cosigned, err := note.Sign(n, witness)
	must(t, err)
	h := heads[5]
	h.Note = cosigned
	p, err := Prove(m, testDir, &h, 2)
	must(t, err)
	v, err := p.Verify(verifiers)
	must(t, err)
	if len(v.Signers) != 1 || len(v.Unverified) != 1 || !strings.HasPrefix(wkey, v.Unverified[0]) {
		t.Errorf("signed by %v and %v", v.Signers, v.Unverified)
	}
	own, err := note.NewVerifier(vkey)
	must(t, err)
	other, err := note.NewVerifier(wkey)
	must(t, err)
	if v, err = p.Verify(note.VerifierList(own, other)); err != nil || len(v.Signers) != 2 || len(v.Unverified) != 0 {
		t.Errorf("signed by %v and %v, %v", v.Signers, v.Unverified, err)
	}
}

// TestProofUnknownKind: an entry of a later version is proven as the leaf that it is.
func TestProofUnknownKind(t *testing.T) {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	raw := step(1).Append(nil)
	raw[1] = 99
	_, err := l.AppendEncoded(&Encoded{raw: raw, ends: []int{len(raw)}, leaves: []tlog.Hash{tlog.RecordHash(raw)}}, 0)
	must(t, err)
	must(t, l.Sync())
	h, err := l.SignHead()
	must(t, err)
	p, err := Prove(m, testDir, &h, 0)
	must(t, err)
	_, verifiers, _ := testKey(t, 1)
	if v, err := p.Verify(verifiers); err != nil || !errors.Is(v.Unknown, ErrUnknownKind) || v.Entry.Kind != 99 {
		t.Errorf("%+v, %v, want the entry and ErrUnknownKind", v, err)
	}
}

// TestProofProperty: any head over any log, any entry.
func TestProofProperty(t *testing.T) {
	m, heads := headsOf(t, 300)
	_, verifiers, _ := testKey(t, 1)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 300).Draw(t, "size")
		index := rapid.IntRange(0, size-1).Draw(t, "index")
		p, err := Prove(m, testDir, &heads[size], uint64(index))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Verify(verifiers); err != nil {
			t.Fatal(err)
		}
		at := rapid.IntRange(0, 300).Draw(t, "another index")
		if at == index {
			return
		}
		if p.Index = uint64(at); p.holds(&heads[size]) == nil {
			t.Fatalf("the proof of entry %d of %d holds for entry %d", index, size, at)
		}
	})
}

func FuzzProof(f *testing.F) {
	m, heads := headsOf(f, 20)
	for _, index := range []uint64{0, 7, 19} {
		p, err := Prove(m, testDir, &heads[20], index)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p.Append(nil))
		g, err := ProveGrowth(m, testDir, &heads[20], index)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(g.Append(nil))
	}
	_, verifiers, _ := testKey(f, 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		g, gerr := ParseGrowthProof(b)
		switch {
		case err == nil && gerr == nil:
			t.Fatal("both kinds of proof")
		case err == nil:
			if !bytes.Equal(p.Append(nil), b) {
				t.Fatalf("reads\n%s\nwrites\n%s", b, p.Append(nil))
			}
			if v, err := p.Verify(verifiers); err == nil && v.Head.Root != heads[20].Root {
				t.Fatal("a head that was never signed")
			}
		case gerr == nil:
			if !bytes.Equal(g.Append(nil), b) {
				t.Fatalf("reads\n%s\nwrites\n%s", b, g.Append(nil))
			}
			_, _ = g.Verify(&heads[7], verifiers)
		case !errors.Is(err, ErrProof) || !errors.Is(gerr, ErrProof):
			t.Fatalf("%v, %v: want ErrProof", err, gerr)
		}
	})
}
