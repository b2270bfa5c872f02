package digestlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

var update = flag.Bool("update", false, "write the vectors again")

const vectorsDir = "../testdata/vectors/digestlog"

// A vector is one line of index.json. What a reader must find out is in the fields behind Note.
type vector struct {
	File   string `json:"file"` // an entry's bytes, or the directory of a log: digests/*.seg and checkpoint
	Kind   string `json:"kind"` // entry, outline, log, tiles, proof, growth, rfc6962
	Class  string `json:"class"`
	Note   string `json:"note"`
	Leaf   string `json:"leaf,omitempty"`   // entry, proof: RFC 6962 leaf hash
	Size   uint64 `json:"size,omitempty"`   // log, tiles: entries from the first on without a hole; outline: entries of its file; proof, growth: of the head
	Root   string `json:"root,omitempty"`   // log, tiles: root over them; proof, growth: of the head
	Head   uint64 `json:"head,omitempty"`   // log, tiles: size of the signed head, if it is this log's
	Closed bool   `json:"closed,omitempty"` // log, tiles: END, sealed, and signed to the end
	Index  uint64 `json:"index,omitempty"`  // proof: of the entry
	From   string `json:"from,omitempty"`   // growth: file of the earlier head
}

type vectorIndex struct {
	Format  string   `json:"format"`
	Key     string   `json:"key"`    // verifier key of the heads
	RunID   string   `json:"run_id"` // of the logs
	Vectors []vector `json:"vectors"`
}

// vectorClass maps what Verify finds to the classes that all formats share.
func vectorClass(r Report) string {
	shared := map[Class]string{
		ClassNotOurs: "not-ours", ClassWrongKey: "not-ours", ClassTooNew: "too-new", ClassCorrupt: "corrupt", ClassHead: "corrupt",
		ClassMismatch: "digest-mismatch", ClassMissing: "digest-mismatch",
	}
	for _, class := range []string{"not-ours", "too-new", "corrupt", "digest-mismatch"} {
		for _, f := range r.Faults {
			if shared[f.Class] == class {
				return class
			}
		}
	}
	if r.Has(ClassTorn) {
		return "torn-tail"
	}
	return "ok"
}

func entryClass(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrEntryVersion), errors.Is(err, ErrUnknownKind):
		return "too-new"
	case errors.Is(err, ErrEntry):
		return "corrupt"
	}
	return err.Error()
}

// buildVectors makes all files and the index anew; the same each time.
func buildVectors(t *testing.T) (map[string][]byte, vectorIndex) {
	files := map[string][]byte{}
	_, _, vkey := testKey(t, 1)
	index := vectorIndex{Format: "digestlog", Key: vkey, RunID: testRun}
	addEntry := func(name, note string, b []byte) {
		file := "entry-" + name + ".bin"
		files[file] = b
		leaf := tlog.RecordHash(b)
		_, err := ParseEntry(b)
		index.Vectors = append(index.Vectors, vector{File: file, Kind: "entry", Class: entryClass(err), Note: note, Leaf: hex.EncodeToString(leaf[:])})
	}
	for _, e := range sampleEntries() {
		addEntry(strings.ToLower(e.Kind.String()), "one of each kind", e.Append(nil))
	}
	sample := sampleEntries()[KindLost-1]
	lost := sample.Append(nil)
	with := func(at int, v byte) []byte {
		b := bytes.Clone(lost)
		b[at] = v
		return b
	}
	addEntry("version", "version 2", with(0, 2))
	addEntry("kind", "kind 99: a leaf like any other", with(1, 99))
	addEntry("cut", "one byte too few", lost[:len(lost)-1])
	addEntry("long", "one byte too many", append(bytes.Clone(lost), 0))
	addEntry("empty-range", "a lost range that ends where it begins", with(entryHeader+8, 4))

	for _, o := range vectorOutlines() {
		files[o.File] = o.bytes
		if class := outlineClass(outlineError(o.bytes, o.Size)); class != o.Class {
			t.Errorf("%s is %s, want %s", o.File, class, o.Class)
		}
		index.Vectors = append(index.Vectors, o.vector)
	}
	for _, l := range vectorLogs(t) {
		for path, b := range runFiles(t, l.m) {
			files["log-"+l.name+"/"+path] = b
		}
		r := mustVerify(t, l.m)
		v := vector{File: "log-" + l.name, Kind: "log", Class: vectorClass(r), Note: l.note, Size: r.Size, Root: hex.EncodeToString(r.Root[:]), Closed: r.Closed()}
		if r.Head != nil {
			v.Head = r.Head.Size
		}
		if v.Class != l.class {
			t.Errorf("log-%s is %s (%v), want %s", l.name, v.Class, r.Faults, l.class)
		}
		index.Vectors = append(index.Vectors, v)
	}
	addTilesVectors(t, files, &index)
	addProofVectors(t, files, &index)
	index.Vectors = append(index.Vectors, vector{File: "rfc6962.json", Kind: "rfc6962", Class: "ok", Note: "leaves and roots of the Certificate Transparency tests; not made here"})
	return files, index
}

func outlineClass(err error) string {
	switch {
	case err == nil, errors.Is(err, errOutlineCut):
		return "ok"
	case errors.Is(err, errOutlineNew):
		return "too-new"
	}
	return "corrupt"
}

type vectorOutline struct {
	vector
	bytes []byte
}

// vectorOutlines are outlines of a file with an entry of each kind, then 7 steps in two runs, and what is wrong with one. Those of version 1 have
// no stretches; in those of version 2 the first run is two stretches, as the leaf hash of its third entry begins with 0, and the second is one. The
// STEP entry among the others is a stretch of its own.
func vectorOutlines() []vectorOutline {
	var o outliner
	plain := outliner{plain: true}
	for _, e := range sampleEntries() {
		o.Add(0, e.Append(nil))
		plain.Add(0, e.Append(nil))
	}
	for _, e := range []*Entry{step(3), step(4), edgeStep(6), step(8), step(2), step(3), step(4)} {
		o.Add(0, e.Append(nil))
		plain.Add(0, e.Append(nil))
	}
	all := append(plainOutlines(plain.Index(), plain.entries), stretchOutlines(o.Index())...)
	for i := range all {
		v := &all[i]
		v.File, v.Kind, v.Size = "outline-"+v.File+".bin", "outline", o.entries
	}
	return all
}

func poked(b []byte, at int, v byte) []byte {
	b = bytes.Clone(b)
	b[at] = v
	return b
}

func plainOutlines(good []byte, entries uint64) []vectorOutline {
	n := len(good)
	cut := []byte{outlinePlain, outlineCut, 15: 0}
	binary.LittleEndian.PutUint64(cut[8:], entries)
	apart := poked(good, n-2*itemStepsLen+5, 2) // the first run of two goes on in a third
	apart = slices.Insert(apart, n-itemStepsLen, (&Steps{0, 2, 9, 9, 10, 10}).append(nil)...)
	apart[4]++
	return []vectorOutline{
		{vector{File: "whole", Class: "ok", Note: "version 1: one entry of each kind and two runs of STEP entries"}, good},
		{vector{File: "cut-off", Class: "ok", Note: "it would have been too long: the file must be read"}, cut},
		{vector{File: "newer", Class: "too-new", Note: "version 3"}, poked(good, 0, 3)},
		{vector{File: "flags", Class: "corrupt", Note: "a flag that version 1 has not"}, poked(good, 1, 2)},
		{vector{File: "count", Class: "corrupt", Note: "one entry more than the file has"}, poked(good, 8, good[8]+1)},
		{vector{File: "short", Class: "corrupt", Note: "one byte too few"}, good[:n-1]},
		{vector{File: "long", Class: "corrupt", Note: "one byte too many"}, append(bytes.Clone(good), 0)},
		{vector{File: "run-of-none", Class: "corrupt", Note: "a run of no entries"}, poked(good, n-itemStepsLen+5, 0)},
		{vector{File: "run-too-long", Class: "corrupt", Note: "a run of more entries than steps"}, poked(good, n-itemStepsLen+5, 4)},
		{vector{File: "apart", Class: "corrupt", Note: "two runs that are one"}, apart},
	}
}

func stretchOutlines(good []byte) []vectorOutline {
	n := len(good)
	at := func(i int) int { return n - (4-i)*stretchLen } // where stretch i is
	count := at(0) - stretchesLen
	bare := poked(good[:count], 1, outlineBare)
	cut := poked(poked(good[:outlineHeader], 1, outlineCut), 4, 0)
	joined := poked(poked(slices.Delete(bytes.Clone(good), at(3), n), count, 3), at(2), 5)
	fewer := poked(slices.Delete(bytes.Clone(good), at(2), at(3)), count, 3)
	more := poked(append(bytes.Clone(good), good[at(3):]...), count, 5)
	return []vectorOutline{
		{vector{File: "stretches", Class: "ok", Note: "the same entries in version 2: four stretches, two of them in one run"}, good},
		{vector{File: "stretches-cut-off", Class: "ok", Note: "version 2 that would have been too long: the file must be read"}, cut},
		{vector{File: "stretches-flags", Class: "corrupt", Note: "an unknown flag"}, poked(good, 1, 4)},
		{vector{File: "stretches-bare", Class: "corrupt", Note: "no stretches although there is room for them"}, bare},
		{vector{File: "stretches-short", Class: "corrupt", Note: "one byte too few"}, good[:n-1]},
		{vector{File: "stretches-long", Class: "corrupt", Note: "one byte too many"}, append(bytes.Clone(good), 0)},
		{vector{File: "stretches-fewer", Class: "corrupt", Note: "entries without a stretch"}, fewer},
		{vector{File: "stretches-more", Class: "corrupt", Note: "a stretch without entries"}, more},
		{vector{File: "stretch-of-none", Class: "corrupt", Note: "a stretch of no entries"}, poked(good, at(2), 0)},
		{vector{File: "stretch-too-long", Class: "corrupt", Note: "a stretch of more than 4096 entries"}, poked(good, at(3)+1, 0x10)},
		{vector{File: "stretch-over", Class: "corrupt", Note: "a stretch that goes on where steps fall"}, joined},
		{vector{File: "stretch-first", Class: "corrupt", Note: "another first step than its run has"}, poked(good, at(1)+4, 2)},
		{vector{File: "stretch-last", Class: "corrupt", Note: "a last step too close to that of its run for the entries between"}, poked(good, at(1)+12, 7)},
		{vector{File: "stretch-end", Class: "corrupt", Note: "another last step than its run has"}, poked(good, at(3)+12, 5)},
	}
}

type vectorLog struct {
	name, class, note string
	m                 *vfs.Mem
}

func vectorLogs(t *testing.T) []vectorLog {
	whole := closedLog(t, 30, 5<<10)
	infos, err := segment.List(whole, testDir)
	must(t, err)
	damaged := func(change func(m *vfs.Mem)) *vfs.Mem {
		m := whole.Crash(nil, vfs.KeepAll)
		change(m)
		return m
	}
	poke := func(path string, at int64, b ...byte) func(m *vfs.Mem) {
		return func(m *vfs.Mem) { edit(t, m, path, func(f vfs.File) error { _, err := f.WriteAt(b, at); return err }) }
	}
	last := infos[len(infos)-1]
	active := vfs.NewMem()
	o := testOptions(t, active)
	o.SegmentSize = 5 << 10
	l := mustOpen(t, o)
	mustAppend(t, l, step(0), step(1))
	must(t, l.Sync())
	_, err = l.SignHead()
	must(t, err)
	mustAppend(t, l, step(2))
	must(t, l.Sync())
	torn := active.Crash(nil, vfs.KeepAll)
	poke(testDir+"/"+segment.FileName(0), 4096+400, 0xff, 0xfe)(torn)

	poisoned := vfs.NewMem()
	in := vfs.Inject(poisoned)
	o.FS = in
	l = mustOpen(t, o)
	mustAppend(t, l, step(0))
	must(t, l.Sync())
	in.Add(vfs.Rule{Op: vfs.OpDatasync, Path: "*.seg"})
	mustAppend(t, l, &Entry{Kind: KindEnd, Status: StatusFailed})
	must(t, l.Close())

	foreign := vfs.NewMem()
	o.FS, o.RunID = foreign, "20261122T201833-other"
	l = mustOpen(t, o)
	mustAppend(t, l, step(0))
	must(t, l.Close())

	return []vectorLog{
		{"closed", "ok", "several files, sealed, signed to the end", whole},
		{"plain", "ok", "two files with outlines of version 1", resealed(t, &changed{outliner: outliner{plain: true}})},
		{"active", "ok", "never sealed, the last entry not signed", active},
		{"poisoned", "ok", "the first file was given up at entry 1: entries 1 and on are in the second", poisoned},
		{"torn", "torn-tail", "bytes behind the last batch that were never acknowledged", torn},
		{"flipped", "corrupt", "one bit of entry 0 in the first file", damaged(poke(infos[0].Path, 4096+60, 0x40))},
		{"no-footer", "corrupt", "the last file is cut before its footer", damaged(func(m *vfs.Mem) { truncate(t, m, last.Path, last.Size-40) })},
		{"no-last-file", "digest-mismatch", "the last file is not there", damaged(func(m *vfs.Mem) { must(t, m.Remove(last.Path)) })},
		{"other-head", "not-ours", "the head of another run", damaged(func(m *vfs.Mem) { swap(t, m, foreign, testHead) })},
		{"forged-head", "corrupt", "the size in the head was changed", damaged(func(m *vfs.Mem) {
			b, err := vfs.ReadFile(m, testHead, 1000)
			must(t, err)
			must(t, vfs.Replace(m, testHead, bytes.Replace(b, []byte("\n30\n"), []byte("\n29\n"), 1), 0o644))
		})},
		{"rewritten", "digest-mismatch", "the head of another history of the same size", rewritten(t, whole)},
	}
}

// rewritten is a log with one digest changed and all checksums right, under the head of the one it came from.
func rewritten(t *testing.T, from *vfs.Mem) *vfs.Mem {
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.SegmentSize, o.Signer = 5<<10, nil
	l := mustOpen(t, o)
	for it, err := range Entries(from, testDir) {
		must(t, err)
		if it.Index == 7 {
			it.Entry.Digests[0][0] ^= 1
		}
		mustAppend(t, l, &it.Entry)
	}
	must(t, l.Close())
	swap(t, m, from, testHead)
	return m
}

// runFiles returns the files of a run by their path in it.
func runFiles(t *testing.T, m *vfs.Mem) map[string][]byte {
	files := map[string][]byte{}
	for _, dir := range []string{"", "digests/"} {
		list, err := m.ReadDir("/run/" + dir)
		must(t, err)
		for _, d := range list {
			if !d.IsDir() {
				b, err := vfs.ReadFile(m, "/run/"+dir+d.Name(), 1<<20)
				must(t, err)
				files[dir+d.Name()] = b
			}
		}
	}
	return files
}

func TestVectors(t *testing.T) {
	files, index := buildVectors(t)
	text, err := json.MarshalIndent(index, "", "  ")
	must(t, err)
	files["index.json"] = append(text, '\n')
	if *update {
		for path, b := range files {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(vectorsDir, path)), 0o755))
			must(t, os.WriteFile(filepath.Join(vectorsDir, path), b, 0o644))
		}
	}
	var found []string
	must(t, filepath.WalkDir(vectorsDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "rfc6962.json" {
			rel, _ := filepath.Rel(vectorsDir, path)
			found = append(found, filepath.ToSlash(rel))
		}
		return err
	}))
	slices.Sort(found)
	if want := slices.Sorted(maps.Keys(files)); !slices.Equal(found, want) {
		t.Errorf("files are\n%v, want\n%v; run the test with -update", found, want)
	}
	for _, path := range found {
		b, err := os.ReadFile(filepath.Join(vectorsDir, path))
		must(t, err)
		if want, ok := files[path]; ok && !bytes.Equal(b, want) {
			t.Errorf("%s is not what is built today; if the format was meant to change, run the test with -update", path)
		}
	}
}

// TestVectorsRead reads the files as they are in the repository, with nothing but the index.
func TestVectorsRead(t *testing.T) {
	b, err := os.ReadFile(vectorsDir + "/index.json")
	must(t, err)
	var index vectorIndex
	must(t, json.Unmarshal(b, &index))
	verifier, err := note.NewVerifier(index.Key)
	must(t, err)
	for _, v := range index.Vectors {
		path := filepath.Join(vectorsDir, v.File)
		switch v.Kind {
		case "entry":
			b, err := os.ReadFile(path)
			must(t, err)
			leaf := tlog.RecordHash(b)
			if _, err := ParseEntry(b); entryClass(err) != v.Class || hex.EncodeToString(leaf[:]) != v.Leaf {
				t.Errorf("%s: %v, want %s", v.File, err, v.Class)
			}
		case "outline":
			b, err := os.ReadFile(path)
			must(t, err)
			if err := outlineError(b, v.Size); outlineClass(err) != v.Class {
				t.Errorf("%s: %v, want %s", v.File, err, v.Class)
			}
		case "tiles", "proof", "growth":
			readProofVector(t, &v, note.VerifierList(verifier))
		case "log":
			r, err := Verify(nil, filepath.Join(path, "digests"), filepath.Join(path, "checkpoint"), note.VerifierList(verifier))
			must(t, err)
			if vectorClass(r) != v.Class || r.Size != v.Size || hex.EncodeToString(r.Root[:]) != v.Root || r.Closed() != v.Closed || r.RunID != index.RunID {
				t.Errorf("%s: %s, %d entries, closed %v, root %x: want %+v", v.File, vectorClass(r), r.Size, r.Closed(), r.Root, v)
			}
		}
	}
}
