package digestlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// proofClass maps what checking a proof says to the classes that all formats share.
func proofClass(v *Proven, err error) string {
	switch {
	case err == nil && v.Unknown == nil:
		return "ok"
	case err == nil:
		return "too-new"
	case errors.Is(err, ErrWrongKey):
		return "not-ours"
	case errors.Is(err, ErrUnproven):
		return "digest-mismatch"
	case errors.Is(err, ErrProof), errors.Is(err, ErrSignature), errors.Is(err, ErrHead), errors.Is(err, ErrEntry):
		return "corrupt"
	}
	return err.Error()
}

// treeFiles returns the files below a directory by their path in it.
func treeFiles(t *testing.T, m *vfs.Mem, dir, prefix string, files map[string][]byte) {
	list, err := m.ReadDir(dir)
	must(t, err)
	for _, d := range list {
		if d.IsDir() {
			treeFiles(t, m, dir+"/"+d.Name(), prefix+d.Name()+"/", files)
			continue
		}
		b, err := vfs.ReadFile(m, dir+"/"+d.Name(), 1<<20)
		must(t, err)
		files[prefix+d.Name()] = b
	}
}

// addTilesVectors adds exports that are whole and exports that are not.
func addTilesVectors(t *testing.T, files map[string][]byte, index *vectorIndex) {
	small, large := closedLog(t, 30, 5<<10), closedLog(t, 257, 64<<10)
	unknown := unknownKindLog(t)
	for _, m := range []*vfs.Mem{small, large, unknown} {
		mustExport(t, m)
	}
	poke := func(path string, at int64) func(m *vfs.Mem) {
		return func(m *vfs.Mem) {
			edit(t, m, testTiles+"/"+path, func(f vfs.File) error { _, err := f.WriteAt([]byte{0xee}, at); return err })
		}
	}
	for _, v := range []struct {
		name, class, note string
		from              *vfs.Mem
		change            func(m *vfs.Mem)
	}{
		{"whole", "ok", "the export of log-closed: partial tiles only", small, nil},
		{"full", "ok", "257 entries: full tiles, and a tile of level 1", large, nil},
		{"kind", "ok", "an entry of kind 99: a leaf like any other", unknown, nil},
		{"flipped-entry", "corrupt", "a digest in the bundle was changed: neither tile nor root fit", small, poke("tile/entries/000.p/30", 300)},
		{"flipped-tile", "corrupt", "a hash tile was changed: the root is right all the same", small, poke("tile/0/000.p/30", 70)},
		{"cut", "corrupt", "the bundle ends in an entry", small, func(m *vfs.Mem) { truncate(t, m, testTiles+"/tile/entries/000.p/30", 1000) }},
		{"no-bundle", "digest-mismatch", "the bundle is not there", small, func(m *vfs.Mem) { must(t, m.Remove(testTiles+"/tile/entries/000.p/30")) }},
		{"rewritten", "digest-mismatch", "the head of another history of the same size", small, func(m *vfs.Mem) {
			must(t, vfs.Replace(m, testTiles+"/"+HeadName, headNote(t, resigned(t, 30)), 0o644))
		}},
	} {
		m := v.from.Crash(nil, vfs.KeepAll)
		if v.change != nil {
			v.change(m)
		}
		treeFiles(t, m, testTiles, "tiles-"+v.name+"/", files)
		r := verifyTiles(t, m)
		x := vector{File: "tiles-" + v.name, Kind: "tiles", Class: vectorClass(r), Note: v.note, Size: r.Size, Root: hex.EncodeToString(r.Root[:]), Closed: r.Closed()}
		if r.Head != nil {
			x.Head = r.Head.Size
		}
		if x.Class != v.class {
			t.Errorf("tiles-%s is %s (%v), want %s", v.name, x.Class, r.Faults, v.class)
		}
		index.Vectors = append(index.Vectors, x)
	}
}

// unknownKindLog is a signed log of three entries, the second of kind 99.
func unknownKindLog(t *testing.T) *vfs.Mem {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	mustAppend(t, l, step(0))
	raw := step(1).Append(nil)
	raw[1] = 99
	_, err := l.AppendEncoded(&Encoded{raw: raw, ends: []int{len(raw)}, leaves: []tlog.Hash{tlog.RecordHash(raw)}}, 0)
	must(t, err)
	mustAppend(t, l, step(2))
	must(t, l.Close())
	return m
}

func headNote(t *testing.T, m *vfs.Mem) []byte {
	b, err := vfs.ReadFile(m, testHead, maxHeadFile)
	must(t, err)
	return b
}

// addProofVectors adds proofs that hold and proofs that do not.
func addProofVectors(t *testing.T, files map[string][]byte, index *vectorIndex) {
	m, heads := headsOf(t, 20)
	other, _, _ := testKey(t, 2)
	witness, _, _ := testKey(t, 3)
	_, verifiers, _ := testKey(t, 1)
	head := &heads[20]
	signed, err := note.Open(head.Note, verifiers)
	must(t, err)
	cosigned, err := note.Sign(signed, witness)
	must(t, err)
	stranger, err := note.Sign(&note.Note{Text: signed.Text}, other)
	must(t, err)
	p, err := Prove(m, testDir, head, 11)
	must(t, err)
	g, err := ProveGrowth(m, testDir, head, 11)
	must(t, err)
	unknown := unknownKindLog(t)
	h, err := ReadHead(unknown, testHead, verifiers)
	must(t, err)
	newer, err := Prove(unknown, testDir, &h, 1)
	must(t, err)
	inclusion := func(change func(p *Proof)) []byte {
		q := *p
		q.Entry, q.Hashes = bytes.Clone(p.Entry), append([]tlog.Hash(nil), p.Hashes...)
		change(&q)
		return q.Append(nil)
	}
	growth := func(change func(p *GrowthProof)) []byte {
		q := *g
		q.Hashes = append([]tlog.Hash(nil), g.Hashes...)
		change(&q)
		return q.Append(nil)
	}
	files["head-11"] = heads[11].Note
	files["head-10"] = heads[10].Note
	for _, v := range []struct {
		name, class, note, from string
		b                       []byte
	}{
		{"proof-whole", "ok", "entry 11 of 20", "", p.Append(nil)},
		{"proof-cosigned", "ok", "another key has signed the head too", "", inclusion(func(p *Proof) { p.Head = cosigned })},
		{"proof-kind", "too-new", "an entry of kind 99: proven, and not understood", "", newer.Append(nil)},
		{"proof-entry", "digest-mismatch", "a digest in the entry was changed", "", inclusion(func(p *Proof) { p.Entry[40] ^= 1 })},
		{"proof-index", "digest-mismatch", "the proof of another entry", "", inclusion(func(p *Proof) { p.Index = 10 })},
		{"proof-hash", "digest-mismatch", "a hash was changed", "", inclusion(func(p *Proof) { p.Hashes[2][0] ^= 1 })},
		{"proof-head", "digest-mismatch", "an earlier head of the same log", "", inclusion(func(p *Proof) { p.Head = heads[19].Note })},
		{"proof-key", "not-ours", "signed with another key", "", inclusion(func(p *Proof) { p.Head = stranger })},
		{"proof-forged", "corrupt", "the size in the head was changed", "", inclusion(func(p *Proof) { p.Head = bytes.Replace(head.Note, []byte("\n20\n"), []byte("\n19\n"), 1) })},
		{"proof-form", "corrupt", "an index with a leading zero", "", []byte(strings.Replace(string(p.Append(nil)), "index 11", "index 011", 1))},
		{"growth-whole", "ok", "from 11 entries to 20", "head-11", g.Append(nil)},
		{"growth-other", "digest-mismatch", "held against the head of 10 entries", "head-10", g.Append(nil)},
		{"growth-hash", "digest-mismatch", "a hash was changed", "head-11", growth(func(p *GrowthProof) { p.Hashes[1][0] ^= 1 })},
		{"growth-form", "corrupt", "a hash of 31 bytes", "head-11", bytes.Replace(g.Append(nil), []byte("=\n"), []byte("\n"), 1)},
	} {
		file := v.name + ".tlog-proof"
		if v.from != "" {
			file = v.name + ".txt"
		}
		files[file] = v.b
		x := vector{File: file, Kind: "proof", Note: v.note, From: v.from}
		if v.from != "" {
			x.Kind = "growth"
		}
		shown, err := checkVector(v.b, files[v.from], verifiers)
		if x.Class = proofClass(&shown, err); x.Class != v.class {
			t.Errorf("%s is %s (%v), want %s", v.name, x.Class, err, v.class)
		}
		if err == nil {
			x.Size, x.Root, x.Index = shown.Head.Size, hex.EncodeToString(shown.Head.Root[:]), shown.Index
		}
		if shown.Raw != nil {
			leaf := tlog.RecordHash(shown.Raw)
			x.Leaf = hex.EncodeToString(leaf[:])
		}
		index.Vectors = append(index.Vectors, x)
	}
}

// checkVector checks either kind of proof; earlier is the head that growth is held against, or nil.
func checkVector(b, earlier []byte, keys note.Verifiers) (Proven, error) {
	if earlier == nil {
		p, err := ParseProof(b)
		if err != nil {
			return Proven{}, err
		}
		return p.Verify(keys)
	}
	p, err := ParseGrowthProof(b)
	if err != nil {
		return Proven{}, err
	}
	h, err := ParseHead(earlier, keys)
	if err != nil {
		return Proven{}, err
	}
	return p.Verify(&h, keys)
}

// readProofVector reads one vector of an export or a proof as it is in the repository.
func readProofVector(t *testing.T, v *vector, keys note.Verifiers) {
	path := filepath.Join(vectorsDir, v.File)
	if v.Kind == "tiles" {
		r, err := VerifyTiles(TilesOptions{Dir: path, Verifiers: keys})
		must(t, err)
		if vectorClass(r) != v.Class || r.Size != v.Size || hex.EncodeToString(r.Root[:]) != v.Root || r.Closed() != v.Closed {
			t.Errorf("%s: %s, %d entries, closed %v, root %x: want %+v", v.File, vectorClass(r), r.Size, r.Closed(), r.Root, v)
		}
		return
	}
	b, err := os.ReadFile(path)
	must(t, err)
	var earlier []byte
	if v.Kind == "growth" {
		earlier, err = os.ReadFile(filepath.Join(vectorsDir, v.From))
		must(t, err)
	}
	shown, err := checkVector(b, earlier, keys)
	if proofClass(&shown, err) != v.Class || shown.Head.Size != v.Size || shown.Index != v.Index {
		t.Errorf("%s: %s (%v), want %+v", v.File, proofClass(&shown, err), err, v)
	}
	if leaf := tlog.RecordHash(shown.Raw); v.Leaf != "" && hex.EncodeToString(leaf[:]) != v.Leaf {
		t.Errorf("%s: leaf %v, want %s", v.File, leaf, v.Leaf)
	}
}
