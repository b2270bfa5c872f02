//go:build unix

package ring

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the test vectors")

const vectorDir = "../testdata/vectors/ring"

// vectorIndex is index.json.
type vectorIndex struct {
	Format     string   `json:"format"`
	Provenance string   `json:"provenance"`
	Files      []vector `json:"files"`
}

// vector is what a reader must find in one file, once its producer is gone.
type vector struct {
	Name       string         `json:"name"`
	Class      string         `json:"class"` // ok | not-ours | too-new | corrupt | torn-tail | digest-mismatch
	Note       string         `json:"note"`
	SHA256     string         `json:"sha256"`
	RunID      string         `json:"run_id,omitempty"`
	Generation uint32         `json:"generation,omitempty"`
	Schema     string         `json:"schema,omitempty"`
	Meta       string         `json:"meta,omitempty"`
	PayloadLen int            `json:"payload_len,omitempty"`
	Slots      int            `json:"slots,omitempty"`
	State      string         `json:"state,omitempty"`
	Produced   uint64         `json:"produced,omitempty"`
	Records    []vectorRecord `json:"records,omitempty"`
	Lost       []vectorLoss   `json:"lost,omitempty"`
	Staged     []vectorStaged `json:"staged,omitempty"`
	Discarded  uint64         `json:"discarded,omitempty"` // staging areas given up

	content []byte
	areas   [][]byte
}

type vectorRecord struct {
	Seq     uint64 `json:"seq"`
	Payload string `json:"payload"` // bytes, hexadecimal
}

type vectorLoss struct {
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	Reason string `json:"reason"`
}

type vectorStaged struct {
	Step       uint64 `json:"step"`
	Seq        uint64 `json:"seq"`
	Generation uint32 `json:"generation"`
	Reason     uint32 `json:"reason"`
	Content    string `json:"content"`
}

// vectorRing makes a ring with a fixed clock, process and boot, lets work do
// something with it, and returns the files.
func vectorRing(t testing.TB, cfg Config, words int, work func(*Producer)) vector {
	t.Helper()
	cfg.Path = filepath.Join(t.TempDir(), "v")
	cfg.PayloadLen = 8 * words
	var boot [16]byte
	for i := range boot {
		boot[i] = byte(i)
	}
	start := time.Date(2026, 11, 22, 20, 18, 33, 123456789, time.UTC)
	p, err := createRing(cfg, start, 4242, boot)
	if err != nil {
		t.Fatal(err)
	}
	work(p)
	if p.words > 0 {
		if err := p.release(); err != nil { // gone without a word, as if killed
			t.Fatal(err)
		}
	}
	v := vector{
		RunID: cfg.RunID, Generation: cfg.Generation, Schema: string(cfg.Schema), Meta: string(cfg.Meta),
		PayloadLen: cfg.PayloadLen, Slots: cfg.Slots, Class: "ok",
	}
	for _, name := range []string{"", ".stage0", ".stage1"} {
		b, err := os.ReadFile(cfg.Path + name)
		switch {
		case name == "":
			v.content = b
		case err == nil:
			v.areas = append(v.areas, b)
			continue
		case errors.Is(err, os.ErrNotExist):
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// with fills in what a reader must find.
func (v vector) with(name, note, state string, words int, lost []vectorLoss, seqs ...uint64) vector {
	v.Name, v.Note, v.State, v.Lost = name, note, state, lost
	w := make([]uint64, words)
	for _, seq := range seqs {
		v.Records = append(v.Records, vectorRecord{seq, hex.EncodeToString(payloadBytes(fill(w, seq)))})
		v.Produced = max(v.Produced, seq+1)
	}
	for _, l := range lost {
		v.Produced = max(v.Produced, l.To)
	}
	return v
}

// broken is a copy of v's file with a change that no reader may accept.
func (v vector) broken(name, class, note string, change func([]byte) []byte) vector {
	return vector{Name: name, Class: class, Note: note, content: change(bytes.Clone(v.content))}
}

func seqs(from, to uint64) (s []uint64) {
	for ; from < to; from++ {
		s = append(s, from)
	}
	return s
}

func makeVectors(t *testing.T) []vector {
	le := binary.LittleEndian
	small := Config{RunID: "20261122T201833-9f3kq", Slots: 8, Schema: []byte("usp-schema v1\nname vector\n"), Meta: []byte(`{"client":"vector"}`)}
	emit := func(n int, end func(*Producer)) func(*Producer) {
		return func(p *Producer) { emitN(p, n); end(p) }
	}
	closed := func(p *Producer) {
		if err := p.Close(true); err != nil {
			t.Fatal(err)
		}
	}
	killed := func(*Producer) {}
	plain := vectorRing(t, small, 3, emit(6, closed))
	four, second := small, small
	four.Slots = 4
	second.Generation, second.Schema, second.Meta = 3, nil, nil
	slot := func(p *Producer, n int64) int64 { return p.header.headerLen() + n*int64(p.header.SlotSize) }
	vs := []vector{
		plain.with("plain.ring", "six records of three words, closed", "closed", 3, nil, seqs(0, 6)...),
		vectorRing(t, second, 26, emit(8, func(p *Producer) {
			if err := p.Close(false); err != nil {
				t.Fatal(err)
			}
		})).with("wide.ring", "a full ring of 26 words, generation 3, no texts, failed", "failed", 26, nil, seqs(0, 8)...),
		vectorRing(t, small, 1, killed).with("empty.ring", "the producer died before its first record", "open", 1, nil),
		vectorRing(t, four, 3, emit(11, closed)).with("lapped.ring", "eleven records through four slots", "closed", 3,
			[]vectorLoss{{0, 7, "overrun"}}, seqs(7, 11)...),
		vectorRing(t, four, 3, emit(2, func(p *Producer) {
			store(p.ring.at(slot(p, 2)), 2*2+1)
			store(p.ring.at(slot(p, 2)+slotHeaderLen), 0xdead)
		})).with("torn.ring", "the producer died while it wrote record 2", "open", 3, []vectorLoss{{2, 3, "torn"}}, 0, 1),
		vectorRing(t, small, 3, emit(5, func(p *Producer) { store(p.ring.at(offPosition), 4) })).with("ahead.ring",
			"the producer died after record 4 was complete and before its position said so", "open", 3, nil, seqs(0, 5)...),
		vectorRing(t, small, 3, emit(5, func(p *Producer) { p.ring.b[slot(p, 3)+slotHeaderLen+9] ^= 0x10 })).with("flipped.ring",
			"one bit of record 3 is wrong: the record is lost, the ring is not", "open", 3, []vectorLoss{{3, 4, "torn"}}, 0, 1, 2, 4),
		stagedVector(t, small),
		{Name: "text.ring", Class: "not-ours", Note: "a text file", content: []byte("nothing to see here\n")},
		{Name: "none.ring", Class: "not-ours", Note: "an empty file", content: []byte{}},
		plain.broken("newer.ring", "too-new", "version 2", func(b []byte) []byte { le.PutUint32(b[offVersion:], 2); reseal(b); return b }),
		plain.broken("swapped.ring", "corrupt", "endian mark of a big-endian host", func(b []byte) []byte { le.PutUint32(b[offEndian:], 0x04030201); return b }),
		plain.broken("header.ring", "corrupt", "one bit of the slot count, CRC as before", func(b []byte) []byte { b[offSlotCount] ^= 0x18; return b }),
		plain.broken("cut.ring", "corrupt", "the last slot is missing", func(b []byte) []byte { return b[:len(b)-64] }),
		plain.broken("schema.ring", "digest-mismatch", "a schema that the digest is not of, CRC made right", func(b []byte) []byte { b[offText] ^= 1; reseal(b); return b }),
	}
	vs[4].Class = "torn-tail"
	return vs
}

// stagedVector has a state in one area and half a state in the other.
func stagedVector(t testing.TB, cfg Config) vector {
	cfg.StagingCapacity, cfg.StagingCRC = 64, true
	v := vectorRing(t, cfg, 3, func(p *Producer) {
		emitN(p, 2)
		if !p.Stage(41, 9, 11, func(b []byte) { copy(b, "whole state") }) {
			t.Fatal("not staged")
		}
		store(p.areas[1].m.at(areaState), areaFilling)
		copy(p.areas[1].m.b[areaHeaderLen:], "half a st")
	}).with("staged.ring", "the producer died while it filled the second staging area", "open", 3, nil, 0, 1)
	v.Staged = []vectorStaged{{Step: 41, Seq: 2, Reason: 9, Content: hex.EncodeToString([]byte("whole state"))}}
	v.Discarded = 1
	return v
}

func TestVectors(t *testing.T) {
	made := vectorIndex{
		Format:     "doc/format/ring.md",
		Provenance: "go test ./ring -run Vectors -update; start 2026-11-22T20:18:33.123456789Z, pid 4242, boot id 00 01 .. 0f; word i of record n is (n+1)*0x9e3779b97f4a7c15 xor i<<32",
		Files:      makeVectors(t),
	}
	files := map[string][]byte{}
	for i := range made.Files {
		v := &made.Files[i]
		v.SHA256 = fmt.Sprintf("%x", sha256.Sum256(v.content))
		files[v.Name] = v.content
		for k, b := range v.areas {
			files[areaPath(v.Name, k)] = b
		}
	}
	index, err := json.MarshalIndent(made, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	files["index.json"] = append(index, '\n')
	for name, b := range files {
		path := filepath.Join(vectorDir, name)
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if stored, err := os.ReadFile(path); err != nil || !bytes.Equal(stored, b) {
			t.Errorf("%s is not what the producer makes today (%v): a change of format needs a new version", name, err)
		}
	}
	if entries, err := os.ReadDir(vectorDir); err != nil || len(entries) != len(files) {
		t.Errorf("%d files stored, %d made: %v", len(entries), len(files), err)
	}
	for _, v := range made.Files {
		checkVector(t, v)
	}
}

// checkVector reads a stored vector, which stays as it is: Open wants to write.
func checkVector(t *testing.T, want vector) {
	t.Helper()
	path := filepath.Join(t.TempDir(), want.Name)
	for _, suffix := range []string{"", ".stage0", ".stage1"} {
		b, err := os.ReadFile(filepath.Join(vectorDir, want.Name+suffix))
		if err != nil {
			continue // not every ring has staging areas
		}
		if err := os.WriteFile(path+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(path)
	if class := classOf(err); class != "ok" {
		if class != want.Class {
			t.Errorf("%s: class %s (%v), want %s", want.Name, class, err, want.Class)
		}
		return
	}
	defer c.Close()
	h := c.Header()
	got := vector{
		Name: want.Name, Class: "ok", Note: want.Note, SHA256: want.SHA256, RunID: h.RunID, Generation: h.Generation,
		Schema: string(h.Schema), Meta: string(h.Meta), PayloadLen: h.PayloadLen, Slots: h.Slots, State: c.State().String(),
	}
	if alive, err := c.ProducerAlive(); err != nil || alive {
		t.Fatalf("%s: alive %v %v", want.Name, alive, err)
	}
	w := make([]uint64, h.Words())
	for st := Got; st != Empty; {
		var seq uint64
		switch seq, st = c.Next(w); st {
		case Got:
			got.Records = append(got.Records, vectorRecord{seq, hex.EncodeToString(payloadBytes(w))})
		case Lost:
			from, to, reason := c.LostRange()
			got.Lost = append(got.Lost, vectorLoss{from, to, reason.String()})
			if reason == Torn && to == c.Produced() {
				got.Class = "torn-tail"
			}
		case Failed:
			t.Fatal(c.Err())
		}
	}
	got.Produced = c.Produced()
	for s, ok := c.Staged(); ok; s, ok = c.Staged() {
		got.Staged = append(got.Staged, vectorStaged{s.Step, s.Seq, s.Generation, s.Reason, hex.EncodeToString(s.Bytes())})
	}
	got.Discarded = c.Discarded()
	if diff := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool {
		return p.Last().String() == ".content" || p.Last().String() == ".areas"
	}, cmp.Ignore()), cmp.AllowUnexported(vector{})); diff != "" {
		t.Errorf("%s: %s", want.Name, diff)
	}
}

func classOf(err error) string {
	for class, of := range map[string]error{
		"not-ours": ErrNotRing, "too-new": ErrVersion, "corrupt": ErrCorrupt, "digest-mismatch": ErrDigest,
	} {
		if errors.Is(err, of) {
			return class
		}
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}
