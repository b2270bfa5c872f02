package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
)

var update = flag.Bool("update", false, "write the test vectors anew")

const vectorDir = "../testdata/vectors/snapshot"

// vector is one line of index.json.
type vector struct {
	File     string          `json:"file"`
	Kind     string          `json:"kind"`               // snapshot, or sections for the container of staging areas
	Class    string          `json:"class"`              // ok, not-ours, too-new, corrupt, torn-tail, digest-mismatch, encrypted, wrong-key
	Identity string          `json:"identity,omitempty"` // file with the age identity to load it with
	Note     string          `json:"note"`
	SHA256   string          `json:"sha256,omitempty"` // that the digest log would hold
	Offset   *int64          `json:"offset,omitempty"` // where the damage is reported
	Step     uint64          `json:"step,omitempty"`
	Sections []vectorSection `json:"sections,omitempty"`
	Base     string          `json:"base,omitempty"` // file beside it that it refers to, if that is there
	data     []byte
	base     []byte
	loose    bool // the bytes are chance, or the encoder's own affair
}

type vectorSection struct {
	Name   string `json:"name"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
}

// vectorState is small, has every kind of section and is plain to build in any
// language: f64 holds 1/(i+1) as little-endian binary64, zip repeats a line.
func vectorState() []Section {
	var f64 []byte
	for _, w := range []uint64{0x3ff0000000000000, 0x3fe0000000000000, 0x3fd5555555555555, 0x3fd0000000000000} {
		for i := range 8 {
			f64 = append(f64, byte(w>>(8*i)))
		}
	}
	return []Section{{"f64", f64}, {"zip", bytes.Repeat([]byte("one line\n"), 40)}, {"empty", nil}}
}

func buildVectors(t *testing.T) []vector {
	t.Helper()
	state := vectorState()
	m := Meta{
		RunID: "20261122T201833-9f3kq", Generation: 1, Step: 7, Seq: 8, TreeSize: 9, Reason: 1,
		Schema: sha256.Sum256([]byte("usp-schema v1\n")), TreeRoot: sha256.Sum256(nil), Created: time.Unix(1795378713, 0),
	}
	build := func(codec Codec, s []Section, to ...age.Recipient) []byte {
		mem := vfs.NewMem()
		info, err := Write("/", m, s, Options{FS: mem, Codec: codec, Recipients: to})
		if err != nil {
			t.Fatal(err)
		}
		b, err := vfs.ReadFile(mem, "/"+info.Name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain := build(None, state)
	change := func(at int, v byte, seal bool) []byte {
		b := bytes.Clone(plain)
		b[at] ^= v
		if seal {
			reseal(b)
		}
		return b
	}
	pos := func(n int) *int64 { v := int64(n); return &v }
	container := AppendSections(nil, state)
	badTable := bytes.Clone(container)
	badTable[40] ^= 1
	end := len(plain) - footerLen
	sealed := vectorFile(t, "sealed.snap", func() []byte { return build(Zstd, state, vectorKey(t, "identity.txt").Recipient()) })
	flip := func(at int) []byte { // a bit of what is encrypted, all checksums right
		b := bytes.Clone(sealed)
		b[at] ^= 1
		recheck(b)
		reseal(b)
		return b
	}
	return append([]vector{
		{File: "plain.snap", Kind: "snapshot", Class: "ok", Note: "codec none", data: plain},
		{File: "none.snap", Kind: "snapshot", Class: "ok", Note: "no section at all", data: build(None, nil)},
		{File: "zstd.snap", Kind: "snapshot", Class: "ok", Note: "codec zstd; zip is compressed, f64 is stored as it is", data: build(Zstd, state), loose: true},
		{File: "other.snap", Kind: "snapshot", Class: "not-ours", Note: "magic differs", data: change(0, 1, true)},
		{File: "version.snap", Kind: "snapshot", Class: "too-new", Note: "version 3, checksums right", data: change(8, 2, true)},
		{File: "flags.snap", Kind: "snapshot", Class: "too-new", Note: "header flag 2, checksums right", data: change(16, 2, true)},
		{File: "header.snap", Kind: "snapshot", Class: "corrupt", Note: "a bit of the step", Offset: pos(0), data: change(64, 1, false)},
		{File: "chunk.snap", Kind: "snapshot", Class: "corrupt", Note: "a bit of section zip", Offset: pos(320), data: change(330, 1, false)},
		{File: "padding.snap", Kind: "snapshot", Class: "corrupt", Note: "a byte between sections, checksums right", Offset: pos(300), data: change(300, 1, true)},
		{File: "index.snap", Kind: "snapshot", Class: "corrupt", Note: "a bit of the index", Offset: pos(704), data: change(710, 1, false)},
		{File: "footer.snap", Kind: "snapshot", Class: "corrupt", Note: "a bit of the SHA-256 in the footer", Offset: pos(end), data: change(end+sumOffset, 1, false)},
		{File: "sum.snap", Kind: "snapshot", Class: "corrupt", Note: "another SHA-256 in the footer, its checksum right", Offset: pos(end + sumOffset), data: otherSum(plain)},
		{File: "cut.snap", Kind: "snapshot", Class: "torn-tail", Note: "the last 100 bytes are missing", Offset: pos(end - 100), data: plain[:len(plain)-100]},
		{File: "exchanged.snap", Kind: "snapshot", Class: "digest-mismatch", Note: "whole, but not the file with that SHA-256", SHA256: hex.EncodeToString(make([]byte, 32)), data: plain},
		{File: "sealed.snap", Kind: "snapshot", Class: "ok", Note: "encrypted, codec zstd", Identity: "identity.txt", data: sealed, loose: true},
		{File: "sealed.snap", Kind: "snapshot", Class: "encrypted", Note: "no identity is given", data: sealed},
		{File: "sealed.snap", Kind: "snapshot", Class: "wrong-key", Note: "the identity of somebody else", Identity: "stranger.txt", data: sealed},
		{File: "sealed-chunk.snap", Kind: "snapshot", Class: "corrupt", Note: "a bit of the encrypted state, all checksums right", Identity: "identity.txt", Offset: pos(256), data: flip(256 + 200 + 10)},
		{File: "staged.bin", Kind: "sections", Class: "ok", Note: "the same state as a container", data: container},
		{File: "staged-name.bin", Kind: "sections", Class: "corrupt", Note: "a bit of the table", data: badTable},
	}, keptVectors(m, sealed)...)
}

// keptVectors refer to a snapshot of the step before for the section zip.
func keptVectors(m Meta, sealed []byte) []vector {
	at := func(step uint64, run string) Meta {
		n := m
		n.Step, n.Seq, n.RunID = step, step+1, run
		return n
	}
	const index = headerLen + alignment // of a file that holds f64 only
	zip := int64(index + entryLen + chunkLen)
	pos := func(n int64) *int64 { return &n }
	whole := assemble(at(6, m.RunID), nil, vectorState()...)
	damaged := bytes.Clone(whole)
	damaged[330] ^= 1
	other := assemble(at(6, "another-run"), nil, vectorState()...)
	chain := assemble(at(6, m.RunID), fileBase(5, whole), vectorState()...)
	good := assemble(at(7, m.RunID), fileBase(6, whole), vectorState()...)
	noBases := bytes.Clone(good)
	noBases[16] = 0
	reseal(noBases)
	both := bytes.Clone(sealed)
	both[16] |= flagBases
	reseal(both)
	kept := func(dir, class, note string, offset *int64, data, base []byte) vector {
		return vector{File: dir + "/" + FileName(7, 1), Kind: "snapshot", Class: class, Note: note, Offset: offset, Base: dir + "/" + FileName(6, 1), data: data, base: base}
	}
	return []vector{
		kept("kept", "ok", "zip is kept in the base", nil, good, whole),
		kept("kept-missing", "corrupt", "the base is not there", pos(zip), good, nil),
		kept("kept-damaged", "corrupt", "a bit of section zip in the base", pos(zip), good, damaged),
		kept("kept-other-run", "corrupt", "the base is of another run", pos(zip), assemble(at(7, m.RunID), fileBase(6, other), vectorState()...), other),
		kept("kept-chain", "corrupt", "the base refers to another file for zip", pos(zip), assemble(at(7, m.RunID), fileBase(6, chain), vectorState()...), chain),
		{File: "kept-newer.snap", Kind: "snapshot", Class: "corrupt", Note: "the base is not older", Offset: pos(index), data: assemble(at(7, m.RunID), fileBase(7, whole), vectorState()...)},
		{File: "kept-no-bases.snap", Kind: "snapshot", Class: "corrupt", Note: "zip is kept elsewhere, but the header says that there are no bases", Offset: pos(zip + 92), data: noBases},
		{File: "kept-sealed.snap", Kind: "snapshot", Class: "corrupt", Note: "an encrypted snapshot with bases", Identity: "identity.txt", Offset: pos(16), data: both},
	}
}

// fileBase is the row of a base.
func fileBase(step uint64, b []byte) *base {
	return &base{step: step, generation: 1, size: int64(len(b)), sum: sha256.Sum256(b)}
}

// assemble lays a file out by hand. The writer keeps large sections only; here zip
// is kept in a base that has it where plain.snap has it.
func assemble(m Meta, in *base, sections ...Section) []byte {
	var entries []entry
	var bases []base
	var flags uint32
	if in != nil {
		flags, bases = flagBases, []base{*in}
	}
	b := appendHeader(nil, m, None, flags)
	for _, s := range sections {
		e := entry{name: s.Name, offset: int64(len(b)), raw: int64(len(s.Data)), stored: int64(len(s.Data))}
		if in != nil && s.Name == "zip" {
			e.offset, e.flags, e.sum = headerLen+alignment, flagRawSum|flagKept, sha256.Sum256(s.Data)
			entries = append(entries, e)
			continue
		}
		if len(s.Data) > 0 {
			e.chunks = []chunk{{stored: uint32(len(s.Data)), crc: crc(s.Data)}}
		}
		entries = append(entries, e)
		b = append(b, s.Data...)
		b = appendZeros(b, int(aligned(int64(len(b))))-len(b))
	}
	at := len(b)
	b = appendIndex(b, entries, bases)
	b = appendFooter(b, footer{sections: uint32(len(entries)), indexOffset: int64(at), indexLen: int64(len(b) - at), total: int64(len(b) + footerLen)})
	reseal(b)
	return b
}

// vectorFile is the file of an earlier run: encryption never gives the same bytes
// twice. Remove the file to have another one with -update.
func vectorFile(t *testing.T, name string, build func() []byte) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectorDir, name))
	if errors.Is(err, fs.ErrNotExist) && *update {
		return build()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectorKey reads a throw-away identity of the vectors, which is no secret and has no mode.
func vectorKey(t *testing.T, name string) *age.X25519Identity {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectorDir, name))
	if err != nil {
		t.Fatal(err)
	}
	ids, err := parseIdentities(b)
	if err != nil || len(ids) != 1 {
		t.Fatalf("%s: %d identities, %v", name, len(ids), err)
	}
	return ids[0].(*age.X25519Identity)
}

// otherSum has a footer that is consistent but names another file.
func otherSum(plain []byte) []byte {
	b := bytes.Clone(plain)
	sealFooter(b[len(b)-footerLen:], [32]byte{1})
	return b
}

// TestVectors reads the vectors as any reader must and checks that this program
// still writes the same bytes. Compressed bytes are the encoder's own affair.
func TestVectors(t *testing.T) {
	built := buildVectors(t)
	for i := range built {
		v := &built[i]
		if v.Class == "ok" {
			if v.Kind == "snapshot" {
				sum := sha256.Sum256(v.data)
				v.SHA256, v.Step = hex.EncodeToString(sum[:]), 7
			}
			if v.File != "none.snap" {
				for _, s := range vectorState() {
					sum := sha256.Sum256(s.Data)
					v.Sections = append(v.Sections, vectorSection{s.Name, len(s.Data), hex.EncodeToString(sum[:])})
				}
			}
		}
	}
	if *update {
		writeVectors(t, built)
	}
	var index struct {
		Format  string   `json:"format"`
		Vectors []vector `json:"vectors"`
	}
	b, err := os.ReadFile(filepath.Join(vectorDir, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil || len(index.Vectors) != len(built) {
		t.Fatalf("%d vectors, want %d: %v", len(index.Vectors), len(built), err)
	}
	for i, v := range index.Vectors {
		t.Run(v.File, func(t *testing.T) { checkVector(t, v, built[i]) })
	}
}

func writeVectors(t *testing.T, built []vector) {
	t.Helper()
	b, err := json.MarshalIndent(map[string]any{"format": "snapshot", "vectors": built}, "", "  ")
	if err == nil {
		err = os.MkdirAll(vectorDir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(vectorDir, "index.json"), append(b, '\n'), 0o644)
	}
	for _, v := range built {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(filepath.Join(vectorDir, v.File)), 0o755), os.WriteFile(filepath.Join(vectorDir, v.File), v.data, 0o644))
		if v.base != nil {
			err = errors.Join(err, os.WriteFile(filepath.Join(vectorDir, v.Base), v.base, 0o644))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func checkVector(t *testing.T, v, built vector) {
	data, err := os.ReadFile(filepath.Join(vectorDir, v.File))
	if err != nil {
		t.Fatal(err)
	}
	if !built.loose && !bytes.Equal(data, built.data) {
		t.Error("this program writes other bytes; if the format changed on purpose, run with -update")
	}
	if built.base != nil {
		if data, err := os.ReadFile(filepath.Join(vectorDir, v.Base)); err != nil || !bytes.Equal(data, built.base) {
			t.Errorf("the base is another one: %v", err)
		}
	}
	var sections []Section
	if v.Kind == "sections" {
		sections, err = ParseSections(data)
	} else {
		var want *[32]byte
		if v.SHA256 != "" {
			want = new([32]byte)
			if _, derr := hex.Decode(want[:], []byte(v.SHA256)); derr != nil {
				t.Fatal(derr)
			}
		}
		var o LoadOptions
		if v.Identity != "" {
			o.Identities = []age.Identity{vectorKey(t, v.Identity)}
		}
		_, sections, err = LoadWith(vfs.OS(), filepath.Join(vectorDir, v.File), want, o)
	}
	var corrupt *CorruptError
	class := "ok"
	switch {
	case errors.Is(err, ErrNotSnapshot):
		class = "not-ours"
	case errors.Is(err, ErrVersion):
		class = "too-new"
	case errors.Is(err, ErrTruncated):
		class = "torn-tail"
	case errors.Is(err, ErrMismatch):
		class = "digest-mismatch"
	case errors.Is(err, ErrEncrypted):
		class = "encrypted"
	case errors.Is(err, ErrWrongIdentity):
		class = "wrong-key"
	case err != nil:
		class = "corrupt"
	}
	if class != v.Class {
		t.Errorf("class %s (%v), want %s", class, err, v.Class)
	}
	if errors.As(err, &corrupt) && (v.Offset == nil || *v.Offset != corrupt.Offset) {
		t.Errorf("damage reported at %d, the index says otherwise", corrupt.Offset)
	}
	if len(sections) != len(v.Sections) {
		t.Fatalf("%d sections, want %d", len(sections), len(v.Sections))
	}
	for i, s := range sections {
		sum := sha256.Sum256(s.Data)
		if got := (vectorSection{s.Name, len(s.Data), hex.EncodeToString(sum[:])}); got != v.Sections[i] {
			t.Errorf("section %+v, want %+v", got, v.Sections[i])
		}
	}
}
