package pyramid

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

var update = flag.Bool("update", false, "write the test vectors anew")

const vectorDir = "../../testdata/vectors/pyramid"

// vector is one file and what a reader must find in it.
type vector struct {
	Name    string        `json:"name"`
	Class   string        `json:"class"` // ok | not-ours | too-new | corrupt
	Note    string        `json:"note"`
	Offset  int64         `json:"corrupt_at,omitempty"`
	Header  *vectorHeader `json:"header,omitempty"`
	Levels  []vectorLevel `json:"levels,omitempty"` // the lowest first; a level with a damaged block is cut short
	Damaged []string      `json:"damaged,omitempty"`

	data []byte
}

type vectorHeader struct {
	RunID      string `json:"run_id"`
	Base       uint64 `json:"base"`
	Next       uint64 `json:"next"`
	Generation uint32 `json:"generation"`
	Leaf       uint32 `json:"leaf"`
	Leaves     uint32 `json:"leaves"`
	Records    uint64 `json:"records"`
	LeftOut    uint64 `json:"left_out"`
	Lost       uint64 `json:"lost"`
	Unread     uint64 `json:"unread"`
	First      uint64 `json:"first"`
	Last       uint64 `json:"last"`
	Schema     string `json:"schema"`
}

// vectorLevel has of each aggregate first, last, time, ordinal, lost, count and unread, and of each element min, max, sum, last (hexadecimal
// words) and nans.
type vectorLevel struct {
	Stretches []string   `json:"stretches"`
	Elements  [][]string `json:"elements"`
}

// rawFrame is a record, or a loss where words is nil.
type rawFrame struct {
	words []uint64
	lost  uint64
}

// rawFrames are those of the vectors: every kind of field and every odd value.
func rawFrames(records int) (frames []rawFrame) {
	inf, nan := math.Inf(1), uint64(0x7ff8000000000001)
	odd := []uint64{math.Float64bits(1.5), 1 << 63, 0, nan, math.Float64bits(-inf), math.Float64bits(inf), 1, math.Float64bits(-1e300)}
	for i := range uint64(records) {
		if i%11 == 10 {
			frames = append(frames, rawFrame{lost: i})
		}
		w := math.Float64bits(float64(i) / 3)
		if i < 20 {
			w = odd[i%8]
		} else if i >= 40 && i < 44 {
			w = nan // an aggregate of no numbers
		}
		frames = append(frames, rawFrame{words: []uint64{100 + 2*i, 1_700_000_000_000_000_000 + i, w, uint64(-int64(i) + 3), i << 60, 1 << (i % 5) & 0b10010}})
	}
	return append(frames, rawFrame{lost: 9})
}

func vectorSchema() *record.Schema {
	s, err := record.NewSchema("vector", record.Field{Name: "x", Class: record.Metric}, record.Field{Name: "i", Class: record.Metric, Type: record.Int64},
		record.Field{Name: "u", Class: record.Metric, Type: record.Uint64}, record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "rho", Class: record.Digest, Len: 2})
	if err != nil {
		panic(err)
	}
	return s
}

// rawPyramid builds a file from doc/format/pyramid.md, one level after the other from the frames themselves, without the package's encoder.
func rawPyramid(frames []rawFrame, leaf int) []byte {
	type bucket struct {
		ordinal, lost uint64
		rows          [][]uint64
	}
	text := vectorSchema().Text()
	header := make([]byte, (136+len(text)+7)/8*8+8)
	records, lost, first, last := uint64(0), uint64(0), uint64(0), uint64(0)
	var leaves []bucket
	wait, ordinal, waiting := uint64(0), uint64(0), false
	for i, f := range frames {
		if f.words == nil {
			if !waiting {
				ordinal, waiting = 1000+uint64(i), true
			}
			wait += f.lost
			lost += f.lost
			continue
		}
		if !waiting {
			ordinal = 1000 + uint64(i)
		}
		if records == 0 {
			first = f.words[0]
		}
		if records%uint64(leaf) == 0 {
			leaves = append(leaves, bucket{ordinal: ordinal})
		}
		b := &leaves[len(leaves)-1]
		b.rows, b.lost = append(b.rows, f.words), b.lost+wait
		wait, waiting, last = 0, false, f.words[0]
		records++
	}
	if len(leaves) == 0 {
		leaves = []bucket{{ordinal: 1000}}
	}
	leaves[len(leaves)-1].lost += wait
	copy(header, "USPPYRA1")
	put32 := func(at int, n int) { le.PutUint32(header[at:], uint32(n)) }
	put32(8, 1)
	put32(12, len(header))
	copy(header[16:], runID)
	le.PutUint64(header[48:], 1000)
	le.PutUint64(header[56:], 1000+uint64(len(frames)))
	for i, n := range []int{3, leaf, 16, 4, len(leaves), len(text)} {
		put32(64+4*i, n)
	}
	for i, n := range []uint64{records, 0, lost, 0, first, last} {
		le.PutUint64(header[88+8*i:], n)
	}
	copy(header[136:], text)
	tag := crc32.Checksum(header[:len(header)-8], castagnoli)
	put32(len(header)-8, int(tag))
	var levels [][]bucket
	for l := leaves; ; {
		levels = append([][]bucket{l}, levels...)
		if len(l) == 1 {
			break
		}
		var up []bucket
		for i, b := range l {
			if i%16 == 0 {
				up = append(up, bucket{ordinal: b.ordinal})
			}
			u := &up[len(up)-1]
			u.rows, u.lost = append(u.rows, b.rows...), u.lost+b.lost
		}
		l = up
	}
	out, number := header, uint32(0)
	block := func(payload []byte) {
		sum := crc32.Checksum(append(le.AppendUint32(le.AppendUint32(nil, tag), number), payload...), castagnoli)
		out = le.AppendUint32(append(out, payload...), sum)
		out = append(out, make([]byte, (8-len(out)%8)%8)...)
		number++
	}
	for _, l := range levels {
		var p []byte
		for _, b := range l {
			var from, to, time uint64
			if n := len(b.rows); n > 0 {
				from, to, time = b.rows[0][0], b.rows[n-1][0], b.rows[0][1]
			}
			for _, n := range []uint64{from, to, time, b.ordinal, b.lost} {
				p = le.AppendUint64(p, n)
			}
			p = le.AppendUint32(le.AppendUint32(p, uint32(len(b.rows))), 0)
		}
		block(p)
		for e := range 4 {
			var columns [4][]byte
			var nans []byte
			for _, b := range l {
				words, n := rawAggregate(e, b.rows)
				for i, w := range words {
					columns[i] = le.AppendUint64(columns[i], w)
				}
				nans = le.AppendUint32(nans, n)
			}
			block(append(bytes.Join(columns[:], nil), nans...))
		}
	}
	return out
}

// rawAggregate is min, max, sum and last of an element: a float, a signed and an unsigned integer, flags.
func rawAggregate(e int, rows [][]uint64) (words [4]uint64, nans uint32) {
	lo, hi := math.Inf(1), math.Inf(-1)
	var and, or uint64 = math.MaxUint64, 0
	ilo, ihi := int64(math.MaxInt64), int64(math.MinInt64)
	ulo, uhi := uint64(math.MaxUint64), uint64(0)
	sum, set := 0.0, 0.0
	for _, r := range rows {
		w := r[2+e]
		words[3] = w
		x := math.Float64frombits(w)
		switch e {
		case 0:
			if x != x {
				nans++
				continue
			}
			if less(x, lo) {
				lo = x
			}
			if less(hi, x) {
				hi = x
			}
		case 1:
			ilo, ihi, x = min(ilo, int64(w)), max(ihi, int64(w)), float64(int64(w))
		case 2:
			ulo, uhi, x = min(ulo, w), max(uhi, w), float64(w)
		case 3:
			and, or = and&w, or|w
			if w != 0 {
				set++
			}
		}
		sum += x
	}
	switch e {
	case 0:
		words[0], words[1], words[2] = math.Float64bits(lo), math.Float64bits(hi), record.Canonical(sum)
	case 1:
		words[0], words[1], words[2] = uint64(ilo), uint64(ihi), math.Float64bits(sum)
	case 2:
		words[0], words[1], words[2] = ulo, uhi, math.Float64bits(sum)
	case 3:
		words[0], words[1], words[2] = and, or, math.Float64bits(set)
	}
	return words, nans
}

func vectors() []vector {
	whole := rawPyramid(rawFrames(70), 4)
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 4
		return b
	}
	resign := func(at int, v byte) []byte {
		b := bytes.Clone(whole)
		b[at] = v
		n := le.Uint32(b[12:])
		le.PutUint32(b[n-8:], crc32.Checksum(b[:n-8], castagnoli))
		return b
	}
	n := int(le.Uint32(whole[12:]))
	return []vector{
		{Name: "three-levels.pyr", Class: "ok", Note: "70 records by 4: 18 aggregates, 2, and 1", data: whole},
		{Name: "one-level.pyr", Class: "ok", Note: "3 records by 256", data: rawPyramid(rawFrames(3), 256)},
		{Name: "losses.pyr", Class: "ok", Note: "a segment without records: one aggregate of nothing", data: rawPyramid(rawFrames(0), 256)},
		{Name: "not-ours.pyr", Class: "not-ours", Note: "another magic", data: append([]byte("USPSEGM1"), whole[8:]...)},
		{Name: "too-new.pyr", Class: "too-new", Note: "version 2 with a right checksum", data: resign(8, 2)},
		{Name: "header-flipped.pyr", Class: "corrupt", Note: "one bit of the version", data: flip(8)},
		{Name: "header-cut.pyr", Class: "corrupt", Note: "100 bytes", data: whole[:100]},
		{Name: "elements.pyr", Class: "corrupt", Note: "5 elements with a right checksum, the schema has 4", data: resign(76, 5)},
		{Name: "leaves.pyr", Class: "corrupt", Note: "19 aggregates of 70 records by 4, with a right checksum", data: resign(80, 19)},
		{Name: "steps.pyr", Class: "corrupt", Note: "70 records in fewer steps, with a right checksum", data: resign(128, 101)},
		{Name: "padding.pyr", Class: "corrupt", Note: "a byte behind the run id, with a right checksum", data: resign(47, 1)},
		{Name: "cut.pyr", Class: "corrupt", Note: "8 bytes are missing at the end", data: whole[:len(whole)-8]},
		{Name: "longer.pyr", Class: "corrupt", Note: "8 bytes too many", data: append(bytes.Clone(whole), make([]byte, 8)...)},
		{Name: "stretches-flipped.pyr", Class: "ok", Note: "one bit in the block of the highest level; the others can be read", data: flip(n + 1)},
		{Name: "element-flipped.pyr", Class: "ok", Note: "one bit in the last block", data: flip(len(whole) - 40)},
	}
}

// describe fills in what a reader finds.
func (v *vector) describe(t *testing.T) {
	m := vfs.NewMem()
	h, err := m.OpenFile("/f", os.O_CREATE|os.O_WRONLY, 0o600)
	check(t, err)
	_, err = h.Write(v.data)
	check(t, errors.Join(err, h.Close()))
	class := "ok"
	p, err := open(m, "/f", nil)
	var corrupt *CorruptError
	switch {
	case err == nil:
		defer p.close()
		v.Header = &vectorHeader{p.runID, p.base, p.next, p.generation, p.leaf, p.leaves, p.records, p.leftOut, p.lost, p.unread, p.first, p.last, string(p.schema.Text())}
		v.levels(t, p)
	case errors.Is(err, ErrNotPyramid):
		class = "not-ours"
	case errors.Is(err, ErrVersion):
		class = "too-new"
	case errors.As(err, &corrupt):
		class, v.Offset = "corrupt", corrupt.Offset
	default:
		t.Fatal(err)
	}
	if class != v.Class {
		t.Errorf("%s: found to be %s, want %s", v.Name, class, v.Class)
	}
}

func (v *vector) levels(t *testing.T, p *file) {
	for l := range p.levels() {
		var level vectorLevel
		ss, err := p.stretches(l)
		v.damage(t, err, l, -1)
		for _, s := range ss {
			level.Stretches = append(level.Stretches, fmt.Sprint(s.first, s.last, s.time, s.ordinal, s.lost, s.count, s.unread))
		}
		for e := range p.kinds {
			as, err := p.aggregates(l, e)
			v.damage(t, err, l, e)
			var texts []string
			for _, a := range as {
				texts = append(texts, fmt.Sprintf("%016x %016x %016x %016x %d", a.min, a.max, math.Float64bits(a.sum), a.last, a.nans))
			}
			level.Elements = append(level.Elements, texts)
		}
		v.Levels = append(v.Levels, level)
	}
	if err := p.check(); (err == nil) != (len(v.Damaged) == 0) {
		t.Errorf("%s: a check of all says %v", v.Name, err)
	}
}

func (v *vector) damage(t *testing.T, err error, l, e int) {
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		v.Damaged = append(v.Damaged, fmt.Sprintf("level %d, element %d, offset %d", l, e, corrupt.Offset))
	} else if err != nil {
		t.Error(err)
	}
}

func TestVectors(t *testing.T) {
	index := struct {
		Format  string   `json:"format"`
		Version int      `json:"version"`
		Origin  string   `json:"origin"`
		Files   []vector `json:"files"`
	}{"pyramid", version, "built from doc/format/pyramid.md by internal/pyramid/vectors_test.go, without the package's own encoder; go test ./internal/pyramid -run Vectors -update", nil}
	files := map[string][]byte{}
	for _, v := range vectors() {
		v.describe(t)
		index.Files = append(index.Files, v)
		files[v.Name] = v.data
	}
	text, err := json.MarshalIndent(index, "", "  ")
	check(t, err)
	files["index.json"] = append(text, '\n')
	if *update {
		check(t, os.MkdirAll(vectorDir, 0o755))
		for name, data := range files {
			check(t, os.WriteFile(filepath.Join(vectorDir, name), data, 0o644))
		}
	}
	list, err := os.ReadDir(vectorDir)
	check(t, err)
	if len(list) != len(files) {
		t.Errorf("%s holds %d files, want %d", vectorDir, len(list), len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(vectorDir, name))
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from what the test builds; if that is meant, run with -update\n%s", name, cmp.Diff(string(got), string(want)))
		}
	}
}

// batchOf is the frames as a follower gives them.
func batchOf(frames []rawFrame) *sink.Batch {
	b := &sink.Batch{First: 1000, Next: 1000 + uint64(len(frames)), Segment: 1000, End: true, Generation: 3, Schema: vectorSchema()}
	seq := uint64(0)
	for _, f := range frames {
		if f.words == nil {
			b.Losses = append(b.Losses, sink.Loss{From: seq, To: seq + f.lost, Reason: record.LostOverrun, Before: len(b.Seq)})
			seq += f.lost
			continue
		}
		b.Seq, b.Words = append(b.Seq, seq), append(b.Words, f.words...)
		seq++
	}
	return b
}

// TestEncode: the package makes the same bytes as the vectors' own encoder, but for sums, which depend on their order.
func TestEncode(t *testing.T) {
	for _, c := range []struct{ records, leaf int }{{0, 256}, {3, 256}, {4, 4}, {5, 4}, {16, 1}, {17, 1}} {
		b := batchOf(rawFrames(c.records))
		z := newBuilder(b, uint32(c.leaf))
		check(t, z.add(b))
		got, err := z.encode(runID)
		check(t, err)
		if want := rawPyramid(rawFrames(c.records), c.leaf); !bytes.Equal(got, want) {
			t.Errorf("%d records by %d: %d bytes that are not the %d wanted", c.records, c.leaf, len(got), len(want))
		}
	}
}

// FuzzOpen gives any bytes to the reader: it does not panic, and what it takes is what the encoder writes.
func FuzzOpen(f *testing.F) {
	for _, v := range vectors() {
		f.Add(v.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if n := 12; len(data) > n+4 && le.Uint32(data[n:]) < uint32(len(data)) && le.Uint32(data[n:]) > fixedLen { // what is behind the checksum is looked at too
			n = int(le.Uint32(data[n:]))
			le.PutUint32(data[n-8:], crc32.Checksum(data[:n-8], castagnoli))
		}
		m := vfs.NewMem()
		h, err := m.OpenFile("/f", os.O_CREATE|os.O_WRONLY, 0o600)
		check(t, err)
		_, err = h.Write(data)
		check(t, errors.Join(err, h.Close()))
		p, err := open(m, "/f", nil)
		if err != nil {
			if c := new(CorruptError); !errors.As(err, &c) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrNotPyramid) {
				t.Fatal(err)
			}
			return
		}
		defer p.close()
		again := p.header
		if !bytes.Equal(again.append(nil), data[:p.len]) || again.size() != int64(len(data)) {
			t.Fatalf("a header that is not what it says: %+v", p.header)
		}
		bad := 0
		for l := range p.levels() {
			if _, err := p.stretches(l); err != nil {
				bad++
			}
			for e := range p.kinds {
				if _, err := p.aggregates(l, e); err != nil {
					bad++
				}
			}
		}
		if err := p.check(); (err != nil) != (bad > 0) {
			t.Fatalf("%d bad blocks, and a check of all says %v", bad, err)
		}
	})
}
