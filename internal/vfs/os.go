//go:build linux || darwin

package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OS returns the file system of the host.
func OS() FS { return osFS{} }

type osFS struct{}

// OpenFile does not wait for somebody to write into a named pipe that lies where a file is looked for: such a pipe is empty.
func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		flag |= unix.O_NONBLOCK
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Mkdir(name string, perm fs.FileMode) error  { return os.Mkdir(name, perm) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) Rename(oldname, newname string) error       { return os.Rename(oldname, newname) }
func (osFS) Link(oldname, newname string) error         { return os.Link(oldname, newname) }
func (osFS) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (osFS) Chmod(name string, mode fs.FileMode) error  { return os.Chmod(name, mode) }

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (osFS) Free(name string) (uint64, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &st) }); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil // the types of the fields differ between systems
}

// Lock uses flock(2): it belongs to the open file, so the kernel drops it on any death of the process,
// and unlike an fcntl lock no other close in this process can drop it.
func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	err = control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was done with it
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
}

type osFile struct{ *os.File }

// piece is how many bytes are handed to the system, or asked of it, at once. Many kernels take no processor from a system
// call before its end, and who has precedence over this process would wait while they copy all of it.
const piece = 16 << 10

func (f osFile) Write(p []byte) (int, error) { return inPieces(p, f.File.Write) }

func (f osFile) WriteAt(p []byte, off int64) (int, error) {
	return inPieces(p, func(p []byte) (int, error) {
		n, err := f.File.WriteAt(p, off)
		off += int64(n)
		return n, err
	})
}

func (f osFile) ReadAt(p []byte, off int64) (int, error) {
	return inPieces(p, func(p []byte) (int, error) {
		n, err := f.File.ReadAt(p, off)
		off += int64(n)
		return n, err
	})
}

// inPieces does with a piece of p at a time what call does, which does all of what it is given or returns an error.
func inPieces(p []byte, call func([]byte) (int, error)) (n int, err error) {
	for {
		m, err := call(p[n:min(n+piece, len(p))])
		if n += m; err != nil || n == len(p) {
			return n, err
		}
	}
}

func (f osFile) Datasync() error { return f.do("fdatasync", datasync) }

func (f osFile) Preallocate(size int64) error {
	err := f.do("fallocate", func(fd int) error { return preallocate(fd, size) })
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

func (f osFile) dropCache(off, n int64) error {
	return f.do("fadvise", func(fd int) error { return dropCache(fd, off, n) })
}

func (f osFile) startWriteback(off, n int64) error {
	err := f.do("sync_file_range", func(fd int) error { return startWriteback(fd, off, n) })
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESPIPE) {
		return nil // not known here; the sync does all of the work then
	}
	return err
}

func (f osFile) nextData(off int64) (next int64, err error) {
	err = f.do("lseek", func(fd int) (err error) {
		next, err = nextData(fd, off)
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
		return off, nil // not known here
	}
	return next, err
}

func (f osFile) do(op string, call func(fd int) error) error {
	if err := control(f.File, call); err != nil {
		return &fs.PathError{Op: op, Path: f.Name(), Err: err}
	}
	return nil
}

// control runs call on the descriptor while it cannot be closed, without putting it in blocking mode.
func control(f *os.File, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	if err := conn.Control(func(fd uintptr) { cerr = retry(func() error { return call(int(fd)) }) }); err != nil {
		return err
	}
	return cerr
}

// retry repeats a call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
