// Package vfs is the seam under everything that touches disk. Code above it takes an [FS] and never
// imports os for files, so that a test can put a memory file system that loses unsynced data ([Mem])
// or one that fails at a chosen call ([Injector]) in the place of the real one ([OS]).
//
// The durable steps live here once and are used everywhere: [Replace], [Create] and [MkdirAll] return
// only when their result survives a loss of power, that is after the file and then its directory were
// synced. On an error they leave the old state (or none) behind, never half of the new one, and no
// temporary file.
//
// Names are paths of the host ([path/filepath]). A failed Sync must never be retried on the same file:
// kernels mark the pages clean although they were not written, and the second call then succeeds.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ErrLocked is wrapped by the error of [FS.Lock] when another process, or another holder in this one,
// has the lock.
var ErrLocked = errors.New("locked by another process")

// ErrTooLarge is wrapped by the error of [ReadFile] when the file is larger than the caller allows.
var ErrTooLarge = errors.New("file is too large")

// FS is the set of file system operations that storage code may use.
// Errors are of type *[fs.PathError] or *[os.LinkError], so errors.Is finds fs.ErrNotExist and errno values.
type FS interface {
	// OpenFile opens a file, or a directory for reading and Sync, with the flags of [os.OpenFile].
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir makes one directory; it is durable only after the parent was synced.
	Mkdir(name string, perm fs.FileMode) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Rename moves oldname to newname, replacing a file there.
	Rename(oldname, newname string) error
	// Link makes newname a second name of the file oldname; fs.ErrExist if newname is there.
	Link(oldname, newname string) error
	// Stat describes a file, following symbolic links.
	Stat(name string) (fs.FileInfo, error)
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Chmod sets the permission bits.
	Chmod(name string, mode fs.FileMode) error
	// SyncDir makes the entries of a directory durable: open, fsync, close.
	SyncDir(name string) error
	// Free returns the bytes still available to this user on the file system that holds name.
	Free(name string) (uint64, error)
	// Lock takes an exclusive lock on an existing file or directory without waiting. The lock lives
	// until it is closed or the process ends, however it ends. ErrLocked if it is held.
	Lock(name string) (io.Closer, error)
}

// File is an open file. Write and WriteAt either write everything or return an error.
type File interface {
	io.Reader
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Name returns the name given to OpenFile.
	Name() string
	Stat() (fs.FileInfo, error)
	// Sync puts data and metadata on stable storage. After an error the file is not to be trusted
	// for what was written since the last success, whatever a second call says.
	Sync() error
	// Datasync is Sync without the metadata that is not needed to read the data back.
	Datasync() error
	// Truncate sets the size in bytes; growth reads as zeros.
	Truncate(size int64) error
	// Preallocate reserves space for the first size bytes and extends the file to it with zeros.
	// Where the file system cannot do so, nothing happens and the error is nil; a full disk is an error.
	Preallocate(size int64) error
}

// cacheDropper is a file that can forget its clean cached pages.
type cacheDropper interface {
	dropCache(off, n int64) error // n = 0: to the end
}

// DropCache asks the kernel to forget the cached clean pages of f, so that the next read comes from the
// device. After a failed fsync the cache may show bytes that never reached the disk; recovery code
// calls this before it reads. It is advice: file systems without it succeed silently.
func DropCache(f File) error {
	if d, ok := f.(cacheDropper); ok {
		return d.dropCache(0, 0)
	}
	return nil
}

// DropBehind asks the kernel to forget the cached clean pages of n bytes of f at off, for who writes much that is not read soon: the
// memory serves for what is written next, and not at the cost of what others have in the cache. It is advice, as DropCache is.
func DropBehind(f File, off, n int64) error {
	if d, ok := f.(cacheDropper); ok && n > 0 {
		return d.dropCache(off, n)
	}
	return nil
}

// writebackStarter is a file that can begin to write dirty pages before it is asked to sync.
type writebackStarter interface {
	startWriteback(off, n int64) error
}

// StartWriteback asks the kernel to begin writing n bytes of f at off to the device and does not wait for
// it, so that a later Sync finds less to do. It promises nothing: only Sync makes data durable and only
// Sync reports an error of the device. File systems without it succeed silently.
func StartWriteback(f File, off, n int64) error {
	if w, ok := f.(writebackStarter); ok && n > 0 {
		return w.startWriteback(off, n)
	}
	return nil
}

// dataFinder is a file that knows where nothing was ever written.
type dataFinder interface {
	nextData(off int64) (int64, error)
}

// NextData returns an offset, off or behind it, before which f reads as zeros from off on, so that a reader of what was
// preallocated need not read all of it; io.EOF where that is so up to the end. It may move the position of Read and Write, and
// drop what is cached behind off: it is for who uses ReadAt and has read what there is. File systems that do not know return off.
func NextData(f File, off int64) (int64, error) {
	if d, ok := f.(dataFinder); ok {
		return d.nextData(off)
	}
	return off, nil
}

// ReadFile reads a whole file of at most limit bytes; a larger one is an error that wraps [ErrTooLarge],
// so that a hostile file cannot exhaust memory.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			data, err = nil, cerr
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("read %s: %w (%d bytes, limit %d)", name, ErrTooLarge, info.Size(), limit)
	}
	data = make([]byte, 0, info.Size()+1)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := f.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("read %s: %w (limit %d)", name, ErrTooLarge, limit)
		}
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
