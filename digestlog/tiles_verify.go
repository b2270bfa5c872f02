package digestlog

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// TilesOptions says what [VerifyTiles] reads.
type TilesOptions struct {
	FS        vfs.FS           // nil: the real file system
	Dir       string           // of the export
	Verifiers note.Verifiers   // keys that may have signed the checkpoint
	Each      func(Item) error // called for every readable entry, in order; an error ends the verification with it

	// Steps, if not nil, is called for STEP entries in the place of Each. They are not decoded, which takes less time.
	Steps func(*StepEntry) error
}

// VerifyTiles reads an exported log and verifies it as [Verify] does a log in its files: it recomputes the root from the entry bundles with a
// library that neither the writer nor the export uses, compares it with the signed one in the checkpoint, and compares every hash tile
// with the bundles. In the report, Files counts the tiles, and a file that a [Fault] names is a path below the directory, with slashes. The
// error is for what kept the export from being read, such as a missing checkpoint (fs.ErrNotExist).
func VerifyTiles(o TilesOptions) (Report, error) {
	t, err := OpenTiles(o.FS, o.Dir)
	malformed := errors.Is(err, ErrHead)
	if err != nil && !malformed {
		return Report{}, err
	}
	v := tilesCheck{tiles: t}
	v.opt = VerifyOptions{FS: orOS(o.FS), Dir: o.Dir, HeadPath: filepath.Join(o.Dir, HeadName), Verifiers: o.Verifiers, Each: o.Each, Steps: o.Steps}
	v.whole, v.replay = true, true
	v.hashes.finish = v.compare
	if err := v.begin(); err != nil {
		return Report{}, err
	}
	if malformed {
		return v.Report, nil // without a size there is nothing to read
	}
	if v.RunID = t.Head.RunID(); v.RunID == "" {
		v.add(&Fault{Class: ClassNotOurs, File: HeadName, Err: fmt.Errorf("the checkpoint is of %q, which is not the log of a run", t.Head.Origin)})
	}
	v.tree.note()
	err = v.entries()
	if err = errors.Join(v.settle(), err); err != nil {
		return Report{}, err
	}
	v.finish(&walker{files: v.files, sealed: true, next: t.Size()})
	return v.Report, nil
}

type tilesCheck struct {
	verification
	tiles   *Tiles
	hashes  tileTree
	files   int
	encoder Encoder   // for its hash
	entry   StepEntry // reused for each
}

func (v *tilesCheck) entries() error {
	for it, err := range v.tiles.Spans() {
		f, final := asFault(err)
		if final {
			return err
		}
		if it.Raw == nil {
			v.add(f)
			v.whole = v.whole && f.From == f.To
			continue
		}
		if it.Offset == 0 {
			v.files++
		}
		leaf := v.encoder.hash(it.Raw)
		v.leaf(&leaf)
		if !v.take(&it, f) {
			return v.err
		}
		if v.whole {
			if err := v.hashes.add(leaf); err != nil {
				return err
			}
		}
	}
	if !v.whole {
		return nil
	}
	_, err := v.hashes.end()
	return err
}

// asFault is the fault that an error is; final says that it is another error.
func asFault(err error) (f *Fault, final bool) {
	if err == nil {
		return nil, false
	}
	final = !errors.As(err, &f)
	return f, final
}

// take hands an entry on, decoded where somebody wants it so.
func (v *tilesCheck) take(s *Span, f *Fault) bool {
	if s.Run.Count == 0 {
		return v.item(s.Item, f)
	}
	if v.opt.Steps != nil || v.opt.Each == nil {
		v.entry = StepEntry{Index: s.Index, Generation: s.Run.Generation, Step: s.Run.FirstStep, Seq: s.Run.FirstSeq, Raw: s.Raw}
		return v.step(&v.entry)
	}
	it := s.Item
	it.Entry, _ = ParseEntry(s.Raw) // that it is a STEP entry is known
	return v.item(it, nil)
}

// compare holds a hash tile of the export against what the bundles make.
func (v *tilesCheck) compare(level int, n uint64, hashes []byte) error {
	v.files++
	got, err := v.tiles.hashTile(level, n)
	var f *Fault
	if errors.As(err, &f) {
		v.add(f)
		return nil
	}
	if err != nil {
		return err
	}
	for i := range got {
		if got[i] != hashes[i] {
			f := v.tiles.fault(ClassCorrupt, level, n, tilePath(level, n, len(hashes)/tlog.HashSize), i, errTile)
			under := uint64(1) << (level * tileHeight)
			f.From += uint64(i/tlog.HashSize) * under
			f.To = f.From + under
			v.add(f)
			return nil
		}
	}
	return nil
}

var errTile = errors.New("the hash tile and the entry bundles do not belong together")
