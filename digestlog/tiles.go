package digestlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// What C2SP tlog-tiles fixes.
const (
	tileWidth    = 256      // hashes of a full tile, entries of a full bundle
	tileHeight   = 8        // levels of the tree that a tile spans
	bundlePrefix = 2        // bytes of the length before each entry of a bundle
	entriesTile  = -1       // the "level" of entry bundles
	tileLevels   = 62/8 + 1 // of the largest tree
)

// maxBundle bounds what is read of one bundle.
const maxBundle = tileWidth * (bundlePrefix + MaxEntrySize)

// tilePath returns the path of tile n of a level below the directory of the export, with slashes. width is that of a partial tile, or tileWidth.
func tilePath(level int, n uint64, width int) string {
	group := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		group = fmt.Sprintf("x%03d/%s", n%1000, group)
	}
	kind := "entries"
	if level != entriesTile {
		kind = strconv.Itoa(level)
	}
	path := "tile/" + kind + "/" + group
	if width < tileWidth {
		path += ".p/" + strconv.Itoa(width)
	}
	return path
}

// tileAt returns how many hashes tile n of a level has in a tree of that size; 0 if there is no such tile.
func tileAt(level int, n, size uint64) int {
	hashes := size
	if level > 0 {
		hashes >>= level * tileHeight
	}
	if n > hashes/tileWidth {
		return 0
	}
	return int(min(tileWidth, hashes-n*tileWidth))
}

// A tileTree makes the hash tiles of a tree out of its leaf hashes, in the order in which they are complete: full ones as it grows, the
// partial ones at its end. It holds one tile of each level.
type tileTree struct {
	size   uint64
	open   [tileLevels][]byte
	finish func(level int, n uint64, hashes []byte) error // a tile is complete; hashes is valid during the call
}

// add appends a leaf hash.
func (x *tileTree) add(leaf tlog.Hash) error {
	x.size++
	for level := range x.open {
		x.open[level] = append(x.open[level], leaf[:]...)
		if len(x.open[level]) < tileWidth*tlog.HashSize {
			return nil
		}
		full := x.open[level]
		if err := x.finish(level, x.size>>((level+1)*tileHeight)-1, full); err != nil {
			return err
		}
		x.open[level] = full[:0]
		leaf = tileRoot(full)
	}
	return nil
}

// end completes the partial tiles and returns the root of the tree, which it takes from nothing but the tiles.
func (x *tileTree) end() (root [32]byte, err error) {
	var f frontier
	for level := len(x.open) - 1; level >= 0; level-- {
		hashes := x.open[level]
		if len(hashes) == 0 {
			continue
		}
		if err := x.finish(level, x.size>>((level+1)*tileHeight), hashes); err != nil {
			return root, err
		}
		for ; len(hashes) > 0; hashes = hashes[tlog.HashSize:] {
			f.joinSubtree(tlog.Hash(hashes[:tlog.HashSize]), level*tileHeight)
		}
	}
	return f.root(), nil
}

// tileRoot returns the root of the subtree over a full tile.
func tileRoot(hashes []byte) tlog.Hash {
	var f frontier
	for ; len(hashes) > 0; hashes = hashes[tlog.HashSize:] {
		f.add(tlog.Hash(hashes[:tlog.HashSize]))
	}
	return f.nodes[0]
}

// Tiles are the exported tiles of a log. They are for one goroutine.
type Tiles struct {
	Head SignedTreeHead // as it is in the export: nobody has checked who signed it; for that there is [VerifyTiles]

	fsys  vfs.FS
	dir   string
	cache [tileLevels]struct {
		n      uint64
		hashes []byte
	}
}

// OpenTiles opens the export in dir. A nil fsys is the real file system. An error that wraps [ErrHead] says that the checkpoint is none, one that
// wraps fs.ErrNotExist that dir is no export.
func OpenTiles(fsys vfs.FS, dir string) (*Tiles, error) {
	t := &Tiles{fsys: orOS(fsys), dir: dir}
	path := filepath.Join(dir, HeadName)
	b, err := vfs.ReadFile(t.fsys, path, maxHeadFile)
	if err != nil {
		return nil, fmt.Errorf("digestlog: read head: %w", err)
	}
	if t.Head, err = peekHead(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// Size returns the number of entries that the checkpoint covers.
func (t *Tiles) Size() uint64 { return t.Head.Size }

// Subtree returns hash n of a tile level: of level 0 the hash of leaf n, of level 1 the root over the entries [256n, 256(n+1)), and so
// on. It is what the tile says; a tile that is missing or has another length is a [*Fault].
func (t *Tiles) Subtree(level int, n uint64) (hash [32]byte, err error) {
	if level < 0 || level >= tileLevels || n >= t.Size()>>(level*tileHeight) {
		return hash, fmt.Errorf("digestlog: no subtree %d of level %d in a tree of %d entries", n, level, t.Size())
	}
	c := &t.cache[level]
	if c.hashes == nil || c.n != n/tileWidth {
		c.hashes, err = t.hashTile(level, n/tileWidth)
		if c.n = n / tileWidth; err != nil {
			return hash, err
		}
	}
	copy(hash[:], c.hashes[n%tileWidth*tlog.HashSize:])
	return hash, nil
}

// hashTile reads the tile n of a level, as wide as the size of the tree says.
func (t *Tiles) hashTile(level int, n uint64) ([]byte, error) {
	width := tileAt(level, n, t.Size())
	b, file, full, err := t.read(level, n, width)
	if err != nil {
		return nil, err
	}
	want := width * tlog.HashSize
	if full {
		want = tileWidth * tlog.HashSize
	}
	if len(b) != want {
		return nil, t.fault(ClassCorrupt, level, n, file, min(len(b), want), fmt.Errorf("the tile has %d bytes, want %d", len(b), want))
	}
	return b[:width*tlog.HashSize], nil
}

// read reads a tile or bundle. A log that has grown since may have dropped a partial one for the full one, which then begins with it.
func (t *Tiles) read(level int, n uint64, width int) (b []byte, file string, full bool, err error) {
	limit := int64(tileWidth * tlog.HashSize)
	if level == entriesTile {
		limit = maxBundle
	}
	for _, w := range []int{width, tileWidth} {
		file = tilePath(level, n, w)
		b, err = vfs.ReadFile(t.fsys, filepath.Join(t.dir, filepath.FromSlash(file)), limit)
		if err == nil {
			return b, file, w == tileWidth, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	file = tilePath(level, n, width)
	switch {
	case errors.Is(err, vfs.ErrTooLarge):
		err = t.fault(ClassCorrupt, level, n, file, 0, err)
	case errors.Is(err, fs.ErrNotExist):
		err = t.fault(ClassMissing, level, n, file, 0, errNoTile)
	default:
		err = fmt.Errorf("digestlog: read tile: %w", err)
	}
	return nil, file, false, err
}

var errNoTile = errors.New("the file is not there; export the log again")

// fault is about a tile and the entries under it.
func (t *Tiles) fault(class Class, level int, n uint64, file string, offset int, err error) *Fault {
	height := tileHeight * (max(level, 0) + 1)
	return &Fault{Class: class, File: file, Offset: int64(offset), From: n << height, To: min((n+1)<<height, t.Size()), Err: err}
}

// TileEntries returns the entries of an export in dir, as [Entries] does of a log: up to the size in its checkpoint, with only one bundle at a time
// in memory. It checks the form of the bundles and not the tree; for that there is [VerifyTiles].
//
// An error that is a [*Fault] does not end the sequence: what can be read behind the damage follows. In an [Item] the file is the bundle's path
// below dir, with slashes, and the offset is that of the entry's length.
func TileEntries(fsys vfs.FS, dir string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		t, err := OpenTiles(fsys, dir)
		if err != nil {
			yield(Item{}, err)
			return
		}
		t.Entries(0)(yield)
	}
}

// Entries is [TileEntries] from the entry with index from on, for who knows that those before it need not be read. It reads the whole bundle that has
// this entry.
func (t *Tiles) Entries(from uint64) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		each := func(index uint64, raw []byte, file string, offset int64) bool {
			if index < from {
				return true
			}
			it := Item{Index: index, Raw: raw, File: file, Offset: offset}
			var f *Fault
			if it.Entry, f = parseItem(&it); f != nil {
				return yield(it, f)
			}
			return yield(it, nil)
		}
		t.bundles(from/tileWidth, each, func(err error) bool { return yield(Item{}, err) })
	}
}

// Spans returns what [Tiles.Entries] does, but STEP entries as runs of one that are not decoded: their bytes are in the Item.
func (t *Tiles) Spans() iter.Seq2[Span, error] {
	return func(yield func(Span, error) bool) {
		each := func(index uint64, raw []byte, file string, offset int64) bool {
			s := Span{Item: Item{Index: index, Raw: raw, File: file, Offset: offset}}
			if run, ok := stepOf(raw); ok {
				s.Run = run
				return yield(s, nil)
			}
			it := s.Item
			e, f := parseItem(&it)
			if s.Entry = e; f != nil {
				return yield(s, f)
			}
			return yield(s, nil)
		}
		t.bundles(0, each, func(err error) bool { return yield(Span{}, err) })
	}
}

// bundles reads the bundles from number n on. What is wrong is passed to failed, and ends it if it is no [*Fault] or failed says so.
func (t *Tiles) bundles(n uint64, each func(index uint64, raw []byte, file string, offset int64) bool, failed func(error) bool) {
	gone := 0 // bundles in a row that are not there
	for ; n*tileWidth < t.Size(); n++ {
		there, more := t.bundle(n, each, failed)
		if !more {
			return
		}
		if gone++; there {
			gone = 0
		}
		// The size may be anybody's word: what is nowhere is not looked for until the end of time.
		if next := (n + 1) * tileWidth; gone == maxGone && next < t.Size() {
			failed(&Fault{Class: ClassMissing, From: next, To: t.Size(), Err: errManyGone})
			return
		}
	}
}

// maxGone is how many bundles in a row may be missing before the rest is taken to be missing too.
const maxGone = 1000

var errManyGone = errors.New("the bundles before it are not there; the rest was not looked for")

// bundle yields the entries of one bundle. there: it has some; more: neither did yield say that it is over, nor was there an error that is the last.
func (t *Tiles) bundle(n uint64, each func(index uint64, raw []byte, file string, offset int64) bool, failed func(error) bool) (there, more bool) {
	width := tileAt(entriesTile, n, t.Size())
	b, file, full, err := t.read(entriesTile, n, width)
	if err != nil {
		var f *Fault
		return false, failed(err) && errors.As(err, &f)
	}
	at := 0
	for i := range width {
		index := n*tileWidth + uint64(i)
		raw := nextInBundle(b[at:])
		if raw == nil {
			f := t.fault(ClassCorrupt, entriesTile, n, file, at, fmt.Errorf("the bundle ends in entry %d", index))
			f.From = index
			return true, failed(f)
		}
		offset := int64(at)
		at += bundlePrefix + len(raw)
		if !each(index, raw, file, offset) {
			return true, false
		}
	}
	// Of a full bundle in the place of a partial one the rest is not ours to read.
	if at < len(b) && (width == tileWidth || !full) {
		f := t.fault(ClassCorrupt, entriesTile, n, file, at, fmt.Errorf("the bundle has %d bytes behind its last entry", len(b)-at))
		f.From = f.To
		return true, failed(f)
	}
	return true, true
}

// nextInBundle returns the first entry of what is left of a bundle; nil if there is not a whole one.
func nextInBundle(b []byte) []byte {
	if len(b) < bundlePrefix {
		return nil
	}
	end := bundlePrefix + int(binary.BigEndian.Uint16(b))
	if end > len(b) {
		return nil
	}
	return b[bundlePrefix:end:end]
}

// parseItem decodes an item's entry; the fault says why it could not.
func parseItem(it *Item) (Entry, *Fault) {
	e, err := ParseEntry(it.Raw)
	if err == nil {
		return e, nil
	}
	f := &Fault{Class: ClassUnknown, File: it.File, Offset: it.Offset, From: it.Index, To: it.Index + 1, Err: err}
	if errors.Is(err, ErrEntry) {
		f.Class = ClassCorrupt
	}
	return e, f
}
