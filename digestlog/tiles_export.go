package digestlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// ExportOptions says what [ExportTiles] reads and where it writes.
type ExportOptions struct {
	FS        vfs.FS         // nil: the real file system
	Dir       string         // the log's directory
	HeadPath  string         // file of the signed head
	Verifiers note.Verifiers // keys that may have signed it
	To        string         // the directory to make; it must not be there, or be empty
}

// An Export is what [ExportTiles] wrote.
type Export struct {
	Head    SignedTreeHead
	Files   int
	Bytes   int64
	Unknown uint64 // entries of a newer version or kind: exported as the leaves they are
}

// ExportTiles writes the entries that the signed head covers as C2SP tlog-tiles: checkpoint, hash tiles and entry bundles, which other people's
// tools can check and which hold nothing but the log. It reads the log once, in memory that does not grow with it.
//
// Nothing appears at o.To before everything is there, synced, and comes to the signed root: it writes into a directory beside (see
// [vfs.IsTemp]), and removes that after an error, or those of exports that were killed. An error wraps fs.ErrExist if there is
// something at o.To, fs.ErrNotExist if nothing was signed, [ErrRollback] if entries are missing at the end, [ErrHeadMismatch] if the root is
// not the signed one, and is a [*Fault] or wraps what [ReadHead] says if log or head are damaged.
func ExportTiles(o ExportOptions) (x Export, err error) {
	o.FS = orOS(o.FS)
	if x.Head, err = ReadHead(o.FS, o.HeadPath, o.Verifiers); err != nil {
		return x, err
	}
	if err := checkFree(o.FS, o.To); err != nil {
		return x, fmt.Errorf("digestlog: export: %w", err)
	}
	temp, lock, err := tempDir(o.FS, o.To)
	if err != nil {
		return x, fmt.Errorf("digestlog: export: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	w := tileWriter{Export: x, fsys: o.FS, dir: temp}
	w.tree.finish = w.hashTile
	if err = w.fill(o.Dir); err == nil {
		err = w.place(o.To)
	}
	if err != nil {
		w.abandon()
	}
	return w.Export, err
}

// checkFree refuses a target with something in it.
func checkFree(fsys vfs.FS, dir string) error {
	list, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(list) > 0 {
		err = &fs.PathError{Op: "export", Path: dir, Err: fs.ErrExist}
	}
	return err
}

// tempDir makes the directory to write into, and locks it: one that is there and not locked was left behind.
func tempDir(fsys vfs.FS, target string) (dir string, lock io.Closer, err error) {
	parent, base := filepath.Split(filepath.Clean(target))
	if err := vfs.MkdirAll(fsys, filepath.Clean(parent+"."), dirMode); err != nil {
		return "", nil, err
	}
	for i := range 100 {
		dir = filepath.Join(parent, fmt.Sprintf(".%s.tmp-%d", base, i))
		if lock, err := fsys.Lock(dir); err == nil {
			err = errors.Join(removeTree(fsys, dir), lock.Close())
			if err != nil {
				return "", nil, err
			}
		}
		if err := fsys.Mkdir(dir, dirMode); errors.Is(err, fs.ErrExist) {
			continue // another export to the same place goes on
		} else if err != nil {
			return "", nil, err
		}
		if lock, err := fsys.Lock(dir); err == nil {
			return dir, lock, nil
		}
	}
	return "", nil, fmt.Errorf("%s and those before it are in use; wait for the other exports", dir)
}

// removeTree removes a directory and what is in it.
func removeTree(fsys vfs.FS, dir string) error {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = removeTree(fsys, path)
		} else {
			err = fsys.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return fsys.Remove(dir)
}

// A tileWriter writes the files of an export.
type tileWriter struct {
	Export
	fsys   vfs.FS
	dir    string
	made   string // the directory that was made or written to last
	tree   tileTree
	bundle []byte     // the open bundle
	behind []vfs.File // written and not synced yet
}

// syncBehind is how many files wait to be synced together. One fsync of many costs about as much as one: they share a commit of the file system's journal.
const syncBehind = 64

// fill writes everything, the checkpoint last.
func (w *tileWriter) fill(log string) error {
	if w.Head.Size > 0 {
		if err := w.entries(log); err != nil {
			return err
		}
	}
	root, err := w.tree.end()
	if err != nil {
		return err
	}
	if root != w.Head.Root {
		return fmt.Errorf("%w: root of the first %d entries is %x, the signed one %x", ErrHeadMismatch, w.Head.Size, root, w.Head.Root)
	}
	if err := w.write(HeadName, w.Head.Note); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	return syncTree(w.fsys, w.dir)
}

func (w *tileWriter) entries(log string) error {
	for it, err := range Entries(w.fsys, log) {
		var f *Fault
		switch {
		case errors.As(err, &f) && f.Class == ClassUnknown:
			w.Unknown++
		case errors.As(err, &f) && f.Benign():
			continue
		case err != nil:
			return err
		}
		if err := w.entry(it.Raw); err != nil {
			return err
		}
		if w.tree.size == w.Head.Size {
			return w.endBundle()
		}
	}
	return fmt.Errorf("%w: the head covers %d entries, the log has %d", ErrRollback, w.Head.Size, w.tree.size)
}

func (w *tileWriter) entry(raw []byte) error {
	w.bundle = binary.BigEndian.AppendUint16(w.bundle, uint16(len(raw)))
	w.bundle = append(w.bundle, raw...)
	if err := w.tree.add(tlog.RecordHash(raw)); err != nil {
		return err
	}
	if w.tree.size%tileWidth == 0 {
		return w.endBundle()
	}
	return nil
}

// endBundle writes the open bundle, if there is one.
func (w *tileWriter) endBundle() error {
	if len(w.bundle) == 0 {
		return nil
	}
	n := (w.tree.size - 1) / tileWidth
	err := w.write(tilePath(entriesTile, n, tileAt(entriesTile, n, w.tree.size)), w.bundle)
	w.bundle = w.bundle[:0]
	return err
}

func (w *tileWriter) hashTile(level int, n uint64, hashes []byte) error {
	return w.write(tilePath(level, n, len(hashes)/tlog.HashSize), hashes)
}

// write makes one file. It is synced with others, and its directory at the end.
func (w *tileWriter) write(path string, b []byte) error {
	path = filepath.Join(w.dir, filepath.FromSlash(path))
	if dir := filepath.Dir(path); dir != w.made {
		if err := makeDirs(w.fsys, dir); err != nil {
			return fmt.Errorf("digestlog: export: %w", err)
		}
		w.made = dir
	}
	f, err := w.fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, headMode)
	if err != nil {
		return fmt.Errorf("digestlog: export: %w", err)
	}
	w.behind = append(w.behind, f)
	if _, err = f.Write(b); err == nil {
		err = vfs.StartWriteback(f, 0, int64(len(b)))
	}
	if err != nil {
		return fmt.Errorf("digestlog: export: %w", err)
	}
	w.Files++
	w.Bytes += int64(len(b))
	if len(w.behind) == syncBehind {
		return w.sync()
	}
	return nil
}

// sync syncs and closes what was written.
func (w *tileWriter) sync() error {
	for i, f := range w.behind {
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			w.behind = w.behind[i+1:]
			return fmt.Errorf("digestlog: export: %w", err)
		}
	}
	w.behind = w.behind[:0]
	return nil
}

// abandon closes what was written and removes the directory. It is for after an error, and does what it can: the next export removes what is left.
func (w *tileWriter) abandon() {
	for _, f := range w.behind {
		_ = f.Close()
	}
	_ = removeTree(w.fsys, w.dir)
}

// makeDirs makes a directory and those above it that are missing; they are synced with everything else.
func makeDirs(fsys vfs.FS, dir string) error {
	err := fsys.Mkdir(dir, dirMode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDirs(fsys, filepath.Dir(dir)); err != nil {
			return err
		}
		err = fsys.Mkdir(dir, dirMode)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// syncTree syncs a directory and those in it.
func syncTree(fsys vfs.FS, dir string) error {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("digestlog: export: %w", err)
	}
	for _, e := range list {
		if e.IsDir() {
			if err := syncTree(fsys, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := fsys.SyncDir(dir); err != nil {
		return fmt.Errorf("digestlog: export: %w", err)
	}
	return nil
}

// place gives the export its name, durably. The parent is open from before the change until it is synced, so that no error of it is lost.
func (w *tileWriter) place(target string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("digestlog: export: %w", err)
		}
	}()
	parent, err := w.fsys.OpenFile(filepath.Dir(filepath.Clean(target)), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	// An empty directory makes room; one that is not empty any more refuses to.
	if err := w.fsys.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.fsys.Rename(w.dir, target); err != nil {
		return err
	}
	if err := parent.Sync(); err != nil {
		_ = w.fsys.Rename(target, w.dir) // back to where it is removed, best effort
		return err
	}
	return nil
}
