package segment_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

var update = flag.Bool("update", false, "write the test vectors anew")

const vectorDir = "../../testdata/vectors/segment"

// vectorIndex is index.json.
type vectorIndex struct {
	Format  string   `json:"format"`
	Version int      `json:"version"`
	Origin  string   `json:"origin"`
	Files   []vector `json:"files"`
}

// vector is one file and what a reader must find in it.
type vector struct {
	Name   string        `json:"name"`
	Class  string        `json:"class"` // ok | not-ours | too-new | corrupt | torn-tail | digest-mismatch
	Note   string        `json:"note"`
	Header bool          `json:"header"` // the header is good
	Base   uint64        `json:"base,omitempty"`
	RunID  string        `json:"run_id,omitempty"`
	Meta   string        `json:"meta,omitempty"`
	Sealed bool          `json:"sealed"`
	Ranges [][2]int64    `json:"corrupt,omitempty"`     // damaged ranges: first byte, one past the last
	Torn   int64         `json:"torn_at,omitempty"`     // offset of a torn tail
	SHA256 string        `json:"seal_sha256,omitempty"` // as put on record when the file was sealed
	Index  string        `json:"index,omitempty"`       // of a sealed file; hexadecimal
	Frames []vectorFrame `json:"frames,omitempty"`

	data []byte
}

type vectorFrame struct {
	Ordinal uint64 `json:"ordinal"`
	Offset  int64  `json:"offset"` // of the length
	Data    string `json:"data"`   // hexadecimal
}

// vectors builds the files. What index.json says of each is found by reading, and is then kept: a
// change of either shows as a difference.
func vectors() []vector {
	meta := "usp-schema v1\nname example\nfield cusum_pos metric f64 1 -\n"
	three := func(n int) *raw {
		r := newRaw(100, meta, n)
		for range 3 {
			r.batch(2, r.len(), nil)
		}
		return r
	}
	sealed := three(4096)
	sealed.batch(0, sealed.len(), nil)
	sum := sha256.Sum256(sealed.data)
	cut := func(r *raw, n int) []byte { return r.data[:n] }
	last := three(4096)
	changed := newRaw(100, strings.Replace(meta, "example", "exemple", 1), 4096)
	for range 3 {
		changed.batch(2, changed.len(), nil)
	}
	changed.batch(0, changed.len(), nil)
	long := newRaw(1<<40, strings.Repeat("m", 4000), 8192).batch(2, 8192, nil)
	newer := newRaw(100, meta, 4096)
	newer.data[8] = 3
	first := newRaw(100, meta, 4096)
	first.data[8] = 1
	first.sign().batch(2, first.len(), nil)
	first.batch(0, first.len(), nil)
	early := newRaw(100, meta, 4096)
	early.data[8] = 1
	early.sign().batch(2, early.len(), nil).seal("an index")
	indexed := three(4096)
	indexEnd := indexed.seal("opaque to the segment").len() - 40
	unfinished := three(4096)
	unfinished = cutTo(unfinished.seal("opaque to the segment"), indexEnd).zeros(128)
	astray := three(4096).seal("opaque to the segment")
	astray.data = astray.data[:indexEnd]
	astray.batch(0, indexEnd, nil)
	hole := newRaw(100, meta, 4096).batch(2, 4096, nil)
	end := hole.len()
	hole.batch(2, end, nil)
	clear(hole.data[end:])
	hole.batch(2, end, nil)
	gap := newRaw(100, meta, 4096).batch(2, 4096, nil)
	gap.next = 104
	gap.batch(2, gap.len(), nil)
	return []vector{
		{Name: "sealed.seg", Class: "ok", Note: "three batches and the footer", SHA256: hex.EncodeToString(sum[:]), data: sealed.data},
		{Name: "active.seg", Class: "ok", Note: "three batches and preallocated zeros", data: three(4096).zeros(512).data},
		{Name: "empty.seg", Class: "ok", Note: "header and preallocated zeros", data: newRaw(0, "", 4096).zeros(256).data},
		{Name: "indexed.seg", Class: "ok", Note: "an index and the footer that points to it", data: indexed.data},
		{Name: "index-unfinished.seg", Class: "ok", Note: "an index and no footer: a seal that was interrupted, to be made again", data: unfinished.data},
		{Name: "version-1.seg", Class: "ok", Note: "version 1, sealed", data: first.data},
		{Name: "long-header.seg", Class: "ok", Note: "meta of 4000 bytes makes a header of 8192", data: long.data},
		{Name: "not-ours.seg", Class: "not-ours", Note: "another magic", data: append([]byte("USPSNAP1"), make([]byte, 4088)...)},
		{Name: "too-new.seg", Class: "too-new", Note: "version 3 with a right checksum", data: newer.sign().data},
		{Name: "header-flipped.seg", Class: "corrupt", Note: "one bit of the version", data: flip(three(4096), 8).data},
		{Name: "header-cut.seg", Class: "corrupt", Note: "1000 bytes", data: cut(sealed, 1000)},
		{Name: "payload-flipped.seg", Class: "corrupt", Note: "one bit in the payload of the second batch", data: flip(three(4096), sealed.at[1]+60).data},
		{Name: "batch-header-flipped.seg", Class: "corrupt", Note: "one bit in the header of the first batch", data: flip(three(4096), sealed.at[0]+20).data},
		{Name: "index-flipped.seg", Class: "corrupt", Note: "one bit of the index", data: flip(three(4096).seal("opaque to the segment"), indexEnd-12).data},
		{Name: "index-astray.seg", Class: "corrupt", Note: "an index and a footer that does not point to it", data: astray.data},
		{Name: "index-version-1.seg", Class: "corrupt", Note: "an index in a file of version 1, which has none; the footer is none either", data: early.batch(1, early.len(), nil).data},
		{Name: "ordinals-missing.seg", Class: "corrupt", Note: "frames 102 and 103 are in no batch", data: gap.data},
		{Name: "trailing.seg", Class: "corrupt", Note: "data behind the footer", data: append(bytes.Clone(sealed.data), "more"...)},
		{Name: "torn-tail.seg", Class: "torn-tail", Note: "the last batch is cut off", data: append(cut(last, last.len()-24), make([]byte, 280)...)},
		{Name: "torn-hole.seg", Class: "torn-tail", Note: "a batch did not reach the disk, the next did; neither was acknowledged", data: hole.data},
		{Name: "footer-cut.seg", Class: "torn-tail", Note: "half a footer", data: cut(sealed, len(sealed.data)-20)},
		{Name: "changed.seg", Class: "digest-mismatch", Note: "well formed, but not what was sealed", SHA256: hex.EncodeToString(sum[:]), data: changed.data},
	}
}

func cutTo(r *raw, n int) *raw {
	r.data = r.data[:n]
	return r
}

// describe reads the file as the vector says and fills in what is found.
func (v *vector) describe(t *testing.T) {
	m := newFS(t)
	path := write(t, m, v.data)
	class := "ok"
	r, err := segment.Open(m, path)
	if err == nil {
		defer r.Close()
		h := r.Header()
		v.Header, v.Base, v.RunID, v.Meta = true, h.Base, h.RunID, string(h.Meta)
		class = v.frames(t, r)
		v.Sealed = r.Sealed()
		v.ends(t, m, path)
	} else {
		class = v.openError(t, err)
	}
	if sum := sha256.Sum256(v.data); class == "ok" && v.SHA256 != "" && v.SHA256 != hex.EncodeToString(sum[:]) {
		class = "digest-mismatch"
	}
	if class != v.Class {
		t.Errorf("%s: found to be %s, want %s", v.Name, class, v.Class)
	}
}

// ends looks at the file with ReadEnds, which must agree with the Reader.
func (v *vector) ends(t *testing.T, m vfs.FS, path string) {
	e, err := segment.ReadEnds(m, path)
	var corrupt *segment.CorruptError
	if err != nil && !errors.As(err, &corrupt) || err != nil && v.Ranges == nil {
		t.Errorf("%s: %v", v.Name, err)
	}
	if e.Sealed && !v.Sealed {
		t.Errorf("%s: sealed, so its ends say", v.Name)
	}
	v.Index = hex.EncodeToString(e.Index)
}

func (v *vector) openError(t *testing.T, err error) string {
	var corrupt *segment.CorruptError
	switch {
	case errors.Is(err, segment.ErrNotSegment):
		return "not-ours"
	case errors.Is(err, segment.ErrVersion):
		return "too-new"
	case errors.As(err, &corrupt):
		v.Ranges = [][2]int64{{corrupt.Offset, corrupt.End}}
		return "corrupt"
	}
	t.Fatal(err)
	return ""
}

func (v *vector) frames(t *testing.T, r *segment.Reader) string {
	class := "ok"
	for {
		data, ordinal, err := r.Next()
		var corrupt *segment.CorruptError
		var torn *segment.TornError
		switch {
		case err == nil:
			v.Frames = append(v.Frames, vectorFrame{ordinal, r.Position(), hex.EncodeToString(data)})
		case errors.As(err, &corrupt):
			v.Ranges = append(v.Ranges, [2]int64{corrupt.Offset, corrupt.End})
			class = "corrupt"
		case errors.As(err, &torn):
			v.Torn = torn.Offset
			return "torn-tail"
		default:
			if err != io.EOF {
				t.Fatal(err)
			}
			return class
		}
	}
}

func TestVectors(t *testing.T) {
	index := vectorIndex{
		Format: "segment", Version: segment.Version,
		Origin: "built from doc/format/segment.md by internal/segment/raw_test.go, without the package's own encoder; " +
			"go test ./internal/segment -run Vectors -update",
	}
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
	list, err := vfs.OS().ReadDir(vectorDir)
	check(t, err)
	if len(list) != len(files) {
		t.Errorf("%s holds %d files, want %d", vectorDir, len(list), len(files))
	}
	for name, want := range files {
		got, err := vfs.ReadFile(vfs.OS(), filepath.Join(vectorDir, name), 1<<20)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from what the test builds; if that is meant, run with -update\n%s", name, cmp.Diff(string(got), string(want)))
		}
	}
}

// The example of the format page is what the vector holds.
func TestFormatPageExample(t *testing.T) {
	page, err := os.ReadFile("../../doc/format/segment.md")
	check(t, err)
	file, err := os.ReadFile(filepath.Join(vectorDir, "sealed.seg"))
	check(t, err)
	next := 0x11d0
	for line := range strings.Lines(string(page)) {
		address, rest, ok := strings.Cut(line, ": ")
		at, err := strconv.ParseInt(address, 16, 64)
		if !ok || len(address) != 8 || err != nil {
			continue
		}
		text, _, _ := strings.Cut(strings.TrimSpace(rest), "  ")
		data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		check(t, err)
		if int(at) != next || !bytes.Equal(file[at:int(at)+len(data)], data) {
			t.Errorf("the page has %s, the file %x", strings.TrimSpace(line), file[next:next+len(data)])
		}
		next = int(at) + len(data)
	}
	if next != 0x1238 {
		t.Errorf("the example ends at %#x", next)
	}
}
