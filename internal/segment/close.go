package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/usp-project/usp/internal/vfs"
)

// Seal syncs what is pending and the index, ends the file with a footer, cuts off the rest of the preallocated
// space, syncs again, makes the file read-only and closes it. A segment that never held a frame is removed
// instead, so that its successor can have its name: Count and Size are then 0. Any error poisons the Writer.
func (w *Writer) Seal() (Sealed, error) {
	index := w.appendIndex()
	if err := w.Sync(); err != nil {
		return Sealed{}, errors.Join(err, w.release())
	}
	if w.next == w.base {
		return w.drop()
	}
	footer := w.sum.footer(w.tag, w.synced, w.next, index)
	s := Sealed{Name: filepath.Base(w.path), Base: w.base, Count: w.next - w.base, Size: w.synced + batchHeader}
	err := finish(w.fs, w.f, w.path, footer, w.synced)
	if err = errors.Join(err, w.release()); err != nil {
		return Sealed{}, w.poison(err)
	}
	if w.sumUp(footer); w.hash != nil {
		w.hash.Sum(s.SHA256[:0])
	}
	w.err = fmt.Errorf("segment %s: %w", w.path, ErrClosed)
	return s, nil
}

// appendIndex puts the index batch behind the frames, so that the next Sync makes it durable with them, and
// returns its length; 0 if there is none. The footer can then promise it like any batch.
func (w *Writer) appendIndex() int {
	if w.err != nil || w.idx == nil || w.next == w.base {
		return 0
	}
	index := indexBytes(w.idx)
	if len(index) == 0 {
		return 0
	}
	w.closeBatch()
	b := w.sum.index(w.tag, w.Size(), w.synced, w.next, index)
	w.buf = append(w.buf, b...)
	return len(b)
}

// drop removes a segment without frames.
func (w *Writer) drop() (Sealed, error) {
	if err := errors.Join(w.release(), remove(w.fs, w.path)); err != nil {
		return Sealed{}, w.poison(err)
	}
	w.err = fmt.Errorf("segment %s: %w", w.path, ErrClosed)
	return Sealed{Name: filepath.Base(w.path), Base: w.base}, nil
}

// remove takes a file away durably.
func remove(fsys vfs.FS, path string) error {
	if err := fsys.Remove(path); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// finish ends the file durably with footer at off, and makes it read-only: the mode is synced with the footer, so that no loss of power leaves a
// sealed file that can be written.
func finish(fsys vfs.FS, f vfs.File, path string, footer []byte, off int64) error {
	if _, err := f.WriteAt(footer, off); err != nil {
		return err
	}
	if err := f.Truncate(off + int64(len(footer))); err != nil {
		return err
	}
	if err := protect(fsys, path); err != nil {
		return err
	}
	return f.Sync()
}

// protect takes the write permission away. It guards against accidents only, the footer is what makes a
// file sealed, so a file system without permissions is no error.
func protect(fsys vfs.FS, path string) error {
	err := fsys.Chmod(path, 0o444)
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		return nil
	}
	return err
}

// Close syncs what is pending and closes the file without sealing it; Repair seals it later. A poisoned
// Writer only closes and returns the error that poisoned it.
func (w *Writer) Close() error {
	if errors.Is(w.err, ErrClosed) {
		return w.err
	}
	err := w.Sync()
	if err == nil {
		w.err = fmt.Errorf("segment %s: %w", w.path, ErrClosed)
	}
	return errors.Join(err, w.release())
}

// Abort closes the file and writes nothing: what is pending is lost unless the caller takes it from
// Unsynced. It is how a poisoned Writer is left.
func (w *Writer) Abort() error {
	if w.err == nil {
		w.err = fmt.Errorf("segment %s: %w", w.path, ErrClosed)
	}
	return w.release()
}

// release closes the file, once.
func (w *Writer) release() error {
	if w.f == nil {
		return nil
	}
	err := errors.Join(w.direct.close(), w.f.Close())
	w.f = nil
	return err
}

// Continue leaves a poisoned Writer for a new segment, as Successor does, and appends what Unsynced
// returns to it. On an error it may be called again when the fault has ended.
func (w *Writer) Continue(o Options) (*Writer, error) {
	next, err := w.Successor(o)
	if err != nil {
		return nil, err
	}
	for _, frame := range w.Unsynced() {
		if err := next.Append(frame); err != nil {
			return nil, errors.Join(err, next.Abort())
		}
	}
	return next, nil
}

// Successor leaves a poisoned Writer for a new segment, which begins at the first frame that is not
// durable in the old one; what to put there is the caller's to decide. On an error it may be called again
// when the fault has ended. Where nothing in the old file was ever synced, it is moved out of the way to
// NAME.torn, as the new one gets its name; otherwise Repair seals it, without the frames from the new
// one's first on.
func (w *Writer) Successor(o Options) (*Writer, error) {
	if w.Err() == nil {
		return nil, fmt.Errorf("segment %s: nothing to continue: it is not poisoned", w.path)
	}
	_ = w.release() // what Close reports about a poisoned file changes nothing
	next, err := Prepare(filepath.Dir(w.path), w.syncNext, o)
	if err != nil {
		return nil, fmt.Errorf("continue segment %s: %w", w.path, err)
	}
	if w.syncNext == w.base {
		err = moveAside(w.fs, w.path)
	}
	var out *Writer
	if err == nil {
		out, err = next.Place()
	}
	if err != nil {
		_ = next.Discard() // best effort: it is a temporary file
		return nil, fmt.Errorf("continue segment %s: %w", w.path, err)
	}
	return out, nil
}

// Durable reports whether the segment holds any frame that was acknowledged.
func (w *Writer) Durable() bool { return w.syncNext > w.base }

// moveAside renames a file of which nothing was acknowledged; that it is gone already is no error.
func moveAside(fsys vfs.FS, path string) error {
	for name := range tornNames(path) {
		_, err := fsys.Stat(name)
		if err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := fsys.Rename(path, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return fsys.SyncDir(filepath.Dir(path))
	}
	return errTooManyTorn(path)
}
