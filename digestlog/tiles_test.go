package digestlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

const testTiles = "/out/run.tiles"

// bigLog is a signed log of n STEP entries.
func bigLog(t testing.TB, n int) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.SegmentSize = 1 << 20
	l := mustOpen(t, o)
	for i := range n {
		mustAppend(t, l, step(i))
		if i%10_000 == 0 {
			must(t, l.Sync())
		}
	}
	must(t, l.Close())
	return m
}

func exportOptions(t testing.TB, m vfs.FS) ExportOptions {
	_, verifiers, _ := testKey(t, 1)
	return ExportOptions{FS: m, Dir: testDir, HeadPath: testHead, Verifiers: verifiers, To: testTiles}
}

func mustExport(t testing.TB, m vfs.FS) Export {
	t.Helper()
	x, err := ExportTiles(exportOptions(t, m))
	must(t, err)
	return x
}

func verifyTiles(t testing.TB, m vfs.FS) Report {
	t.Helper()
	_, verifiers, _ := testKey(t, 1)
	r, err := VerifyTiles(TilesOptions{FS: m, Dir: testTiles, Verifiers: verifiers})
	must(t, err)
	return r
}

// modTiles reads an export as golang.org/x/mod's client of a tiled log does.
type modTiles struct{ fsys vfs.FS }

func (modTiles) Height() int { return 8 }

func (r modTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	list := make([][]byte, len(tiles))
	for i, tile := range tiles {
		name := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		b, err := vfs.ReadFile(r.fsys, path.Join(testTiles, name), 1<<20)
		if err != nil {
			return nil, err
		}
		list[i] = b
	}
	return list, nil
}

func (modTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func TestExportTiles(t *testing.T) {
	sizes := []int{1, 2, 255, 256, 257, 511, 512, 1000}
	if !testing.Short() {
		sizes = append(sizes, 256*256, 256*256+300)
	}
	for _, size := range sizes {
		m := bigLog(t, size)
		x := mustExport(t, m)
		r := verifyTiles(t, m)
		if r.Err() != nil || len(r.Faults) > 0 || r.Size != uint64(size) || r.Entries != r.Size || r.Root != x.Head.Root || r.RunID != testRun || r.Files != x.Files-1 {
			t.Fatalf("size %d: %v, %d entries of %d, root %x", size, r.Faults, r.Size, size, r.Root)
		}
		sameEntries(t, m, uint64(size))
		tree := tlog.Tree{N: int64(size), Hash: x.Head.Root}
		reader := tlog.TileHashReader(tree, modTiles{m})
		at := int64(size) - 1
		p, err := tlog.ProveRecord(int64(size), at, reader)
		must(t, err)
		must(t, tlog.CheckRecord(p, tree.N, tree.Hash, at, tlog.RecordHash(step(int(at)).Append(nil))))
	}
}

// sameEntries holds the entries of an export against those of its log.
func sameEntries(t *testing.T, m vfs.FS, size uint64) {
	t.Helper()
	var raws [][]byte
	for it, err := range Entries(m, testDir) {
		must(t, err)
		raws = append(raws, bytes.Clone(it.Raw))
	}
	n := uint64(0)
	for it, err := range TileEntries(m, testTiles) {
		must(t, err)
		if it.Index != n || !bytes.Equal(it.Raw, raws[n]) || it.Entry.Kind == 0 {
			t.Fatalf("entry %d is %+v", n, it)
		}
		n++
	}
	if n != size {
		t.Fatalf("%d entries, want %d", n, size)
	}
}

func TestTilePath(t *testing.T) {
	for _, tt := range []struct {
		level int
		n     uint64
		width int
		want  string
	}{
		{0, 0, 256, "tile/0/000"},
		{1, 999, 255, "tile/1/999.p/255"},
		{entriesTile, 1234067, 256, "tile/entries/x001/x234/067"},
		{2, 1000, 1, "tile/2/x001/000.p/1"},
	} {
		if got := tilePath(tt.level, tt.n, tt.width); got != tt.want {
			t.Errorf("tile %d of level %d is %s, want %s", tt.n, tt.level, got, tt.want)
		}
	}
}

func TestTilesSubtree(t *testing.T) {
	m := bigLog(t, 1000)
	mustExport(t, m)
	x, err := OpenTiles(m, testTiles)
	must(t, err)
	var tree tallTree
	for i := range 1000 {
		tree.add(t, step(i).Append(nil))
	}
	for level, n := range map[int]uint64{0: 1000, 1: 3} {
		for i := range n {
			got, err := x.Subtree(level, i)
			must(t, err)
			list, err := tree.ReadHashes([]int64{tlog.StoredHashIndex(level*8, int64(i))})
			must(t, err)
			if want := list[0]; got != [32]byte(want) {
				t.Fatalf("subtree %d of level %d is %x, want %v", i, level, got, want)
			}
		}
		if _, err := x.Subtree(level, n); err == nil {
			t.Errorf("subtree %d of level %d of a tree of 1000 is no error", n, level)
		}
	}
}

// TestExportPrefix: what was appended behind the signed head is not exported.
func TestExportPrefix(t *testing.T) {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	for i := range 300 {
		mustAppend(t, l, step(i))
	}
	must(t, l.Sync())
	_, err := l.SignHead()
	must(t, err)
	for i := range 300 {
		mustAppend(t, l, step(300+i))
	}
	must(t, l.Sync())
	if x := mustExport(t, m); x.Head.Size != 300 {
		t.Errorf("exported %d entries, want 300", x.Head.Size)
	}
	if r := verifyTiles(t, m); r.Err() != nil || r.Size != 300 {
		t.Errorf("%v, %d entries, want 300", r.Faults, r.Size)
	}
}

// TestTilesUnknownKind: an entry of a later version is a leaf like any other.
func TestTilesUnknownKind(t *testing.T) {
	m := unknownKindLog(t)
	if x := mustExport(t, m); x.Unknown != 1 || x.Head.Size != 3 {
		t.Errorf("%d unknown entries of %d, want 1 of 3", x.Unknown, x.Head.Size)
	}
	r := verifyTiles(t, m)
	if r.Err() != nil || !r.Has(ClassUnknown) || r.Size != 3 {
		t.Errorf("%v, %d entries, want one unknown of 3", r.Faults, r.Size)
	}
}

func TestExportRefuses(t *testing.T) {
	good := closedLog(t, 30, 5<<10)
	_, other, _ := testKey(t, 2)
	for _, tt := range []struct {
		name   string
		change func(m *vfs.Mem, o *ExportOptions)
		want   error
		class  Class
	}{
		{"something is there", func(m *vfs.Mem, _ *ExportOptions) { must(t, vfs.MkdirAll(m, testTiles+"/x", 0o755)) }, fs.ErrExist, ""},
		{"no head", func(m *vfs.Mem, _ *ExportOptions) { must(t, m.Remove(testHead)) }, fs.ErrNotExist, ""},
		{"another key", func(_ *vfs.Mem, o *ExportOptions) { o.Verifiers = other }, ErrWrongKey, ""},
		{"another root", func(m *vfs.Mem, _ *ExportOptions) { swap(t, m, resigned(t, 30), testHead) }, ErrHeadMismatch, ""},
		{"too short", func(m *vfs.Mem, _ *ExportOptions) { swap(t, m, resigned(t, 31), testHead) }, ErrRollback, ""},
		{"damage", func(m *vfs.Mem, _ *ExportOptions) {
			edit(t, m, testDir+"/00000000000000000000.seg", func(f vfs.File) error { _, err := f.WriteAt([]byte{0xff}, 4096+60); return err })
		}, nil, ClassCorrupt},
	} {
		m := good.Crash(nil, vfs.KeepAll)
		o := exportOptions(t, m)
		tt.change(m, &o)
		_, err := ExportTiles(o)
		var f *Fault
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || tt.class != "" && (!errors.As(err, &f) || f.Class != tt.class) {
			t.Errorf("%s: %v, want %v %s", tt.name, err, tt.want, tt.class)
		}
		if _, err := m.Stat(testTiles + "/" + HeadName); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a checkpoint was written", tt.name)
		}
		if list, _ := m.ReadDir("/out"); len(list) > 1 {
			t.Errorf("%s: left %v behind", tt.name, list)
		}
	}
}

// resigned is a log of n other entries; its head is signed with the same key.
func resigned(t *testing.T, n int) *vfs.Mem {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	for i := range n {
		mustAppend(t, l, step(i+1000))
	}
	must(t, l.Close())
	return m
}

// TestVerifyTilesDamage: what is changed in an export is found, in the class and the file that it is in.
func TestVerifyTilesDamage(t *testing.T) {
	good := bigLog(t, 600)
	mustExport(t, good)
	flip := func(file string, at int64) func(*vfs.Mem) {
		return func(m *vfs.Mem) {
			edit(t, m, testTiles+"/"+file, func(f vfs.File) error {
				b := make([]byte, 1)
				if _, err := f.ReadAt(b, at); err != nil {
					return err
				}
				b[0] ^= 0x10
				_, err := f.WriteAt(b, at)
				return err
			})
		}
	}
	cut := func(file string, size int64) func(*vfs.Mem) {
		return func(m *vfs.Mem) { truncate(t, m, testTiles+"/"+file, size) }
	}
	remove := func(file string) func(*vfs.Mem) {
		return func(m *vfs.Mem) { must(t, m.Remove(testTiles+"/"+file)) }
	}
	signer, _, _ := testKey(t, 1)
	nobody, err := signHead(signer, "", 600, mustVerify(t, good).Root)
	must(t, err)
	for _, tt := range []struct {
		name   string
		change func(m *vfs.Mem)
		class  Class
		file   string
		from   uint64
	}{
		{"an entry", flip("tile/entries/001", 150), ClassMismatch, "", 0},
		{"an entry and its tile", flip("tile/entries/001", 150), ClassCorrupt, "tile/0/001", 257},
		{"a length", flip("tile/entries/000", 0), ClassCorrupt, "tile/entries/000", 0},
		{"a leaf's hash", flip("tile/0/001", 32*7+3), ClassCorrupt, "tile/0/001", 256 + 7},
		{"a subtree's hash", flip("tile/1/000.p/2", 32), ClassCorrupt, "tile/1/000.p/2", 256},
		{"a hash of a partial tile", flip("tile/0/002.p/88", 0), ClassCorrupt, "tile/0/002.p/88", 512},
		{"a cut tile", cut("tile/0/001", 8191), ClassCorrupt, "tile/0/001", 256},
		{"a cut bundle", cut("tile/entries/001", 500), ClassCorrupt, "tile/entries/001", 256 + 5},
		{"a longer bundle", func(m *vfs.Mem) {
			edit(t, m, testTiles+"/tile/entries/002.p/88", func(f vfs.File) error { _, err := f.WriteAt([]byte{0}, 88*100); return err })
		}, ClassCorrupt, "tile/entries/002.p/88", 600},
		{"no tile", remove("tile/0/000"), ClassMissing, "tile/0/000", 0},
		{"no bundle", remove("tile/entries/002.p/88"), ClassMissing, "tile/entries/002.p/88", 512},
		{"the root", flip("checkpoint", int64(len(originPrefix+testRun)+8)), ClassHead, "", 0},
		{"no head", func(m *vfs.Mem) { must(t, vfs.Replace(m, testTiles+"/checkpoint", []byte("x\n"), 0o644)) }, ClassHead, "", 0},
		{"a log of something else", func(m *vfs.Mem) {
			must(t, vfs.Replace(m, testTiles+"/checkpoint", nobody.Note, 0o644))
		}, ClassNotOurs, "checkpoint", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := good.Crash(nil, vfs.KeepAll)
			tt.change(m)
			r := verifyTiles(t, m)
			if r.Err() == nil || !hasFault(&r, tt.class, tt.file, tt.from) {
				t.Errorf("found %v, want %s: %s, entry %d", r.Faults, tt.class, tt.file, tt.from)
			}
		})
	}
	r, err := VerifyTiles(TilesOptions{FS: good, Dir: testTiles, Verifiers: note.VerifierList()})
	if err != nil || !r.Has(ClassWrongKey) || r.Err() == nil {
		t.Errorf("with no key: %v, %v, want wrong-key", r.Faults, err)
	}
	if _, err := VerifyTiles(TilesOptions{FS: good, Dir: testDir}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is no export: %v, want fs.ErrNotExist", err)
	}
}

func hasFault(r *Report, class Class, file string, from uint64) bool {
	for _, f := range r.Faults {
		if f.Class == class && f.File == file && f.From == from {
			return true
		}
	}
	return false
}

// TestTilesOfGrownLog: where a partial tile gave way to the full one, the old checkpoint still verifies.
func TestTilesOfGrownLog(t *testing.T) {
	m := bigLog(t, 600)
	mustExport(t, m)
	var tree tileTree
	tree.finish = func(level int, n uint64, hashes []byte) error {
		if level == 0 && n == 2 {
			must(t, vfs.Replace(m, testTiles+"/tile/0/002", hashes, 0o644))
		}
		return nil
	}
	var bundle []byte
	for i := range 768 {
		raw := step(i).Append(nil)
		must(t, tree.add(tlog.RecordHash(raw)))
		if i >= 512 {
			bundle = append(append(bundle, byte(len(raw)>>8), byte(len(raw))), raw...)
		}
	}
	must(t, vfs.Replace(m, testTiles+"/tile/entries/002", bundle, 0o644))
	must(t, m.Remove(testTiles+"/tile/0/002.p/88"))
	must(t, m.Remove(testTiles+"/tile/entries/002.p/88"))
	if r := verifyTiles(t, m); r.Err() != nil || r.Size != 600 {
		t.Errorf("%v, %d entries, want 600", r.Faults, r.Size)
	}
}

// TestExportCrash: after a crash at any moment the export is not there or it is whole, and the next one removes what is left.
func TestExportCrash(t *testing.T) {
	m := closedLog(t, 300, 64<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	policies := []vfs.Policy{vfs.DropAll, vfs.KeepAll, vfs.Mixed}
	checked, whole := 0, 0
	live := m.Crash(nil, vfs.KeepAll)
	live.SetHook(func(op vfs.Op) {
		if op.Kind&vfs.OpMutates == 0 {
			return
		}
		for _, p := range policies {
			after := live.Crash(rng, p)
			if _, err := after.Stat(testTiles); err == nil {
				whole++
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			} else {
				mustExport(t, after)
			}
			if r := verifyTiles(t, after); r.Err() != nil || !r.Closed() {
				t.Fatalf("crash at %v: %v", op, r.Faults)
			}
			if list, err := after.ReadDir("/out"); err != nil || len(list) != 1 {
				t.Fatalf("crash at %v: left %v (%v)", op, list, err)
			}
			checked++
		}
	})
	mustExport(t, live)
	live.SetHook(nil)
	for _, p := range policies {
		if r := verifyTiles(t, live.Crash(rng, p)); !r.Closed() {
			t.Errorf("an export that was reported is not whole after a crash: %v", r.Faults)
		}
	}
	if checked < 60 || whole == 0 {
		t.Errorf("%d crashes, %d of them with an export", checked, whole)
	}
}

// TestExportFaults: an operation that fails is reported, and nothing is left.
func TestExportFaults(t *testing.T) {
	m := closedLog(t, 300, 64<<10)
	counter := vfs.Inject(m.Crash(nil, vfs.KeepAll))
	mustExport(t, counter)
	for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpMkdir, vfs.OpWrite, vfs.OpSync, vfs.OpSyncDir, vfs.OpRename} {
		for nth := range counter.Calls(kind) {
			t.Run(fmt.Sprint(kind, nth), func(t *testing.T) {
				after := m.Crash(nil, vfs.KeepAll)
				in := vfs.Inject(after, vfs.Rule{Op: kind, Nth: nth + 1})
				_, err := ExportTiles(exportOptions(t, in))
				if len(in.Fired()) != 1 || err == nil {
					t.Fatalf("%v, fired %v", err, in.Fired())
				}
				if list, _ := after.ReadDir("/out"); len(list) > 0 {
					t.Errorf("left %v behind", list)
				}
				in.Clear()
				mustExport(t, in)
			})
		}
	}
}

// TestExportDurable: of an export of more files than are synced together, a loss of power takes nothing.
func TestExportDurable(t *testing.T) {
	m := bigLog(t, (syncBehind+3)*tileWidth/2)
	if x := mustExport(t, m); x.Files <= syncBehind {
		t.Fatalf("%d files, want more than %d", x.Files, syncBehind)
	}
	if r := verifyTiles(t, m.Crash(nil, vfs.DropAll)); r.Err() != nil || len(r.Faults) > 0 {
		t.Errorf("after a loss of power: %v", r.Faults)
	}
}
