//go:build unix

package ring

import (
	"errors"
	"fmt"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is a whole file mapped into memory.
type mapping struct {
	path string
	b    []byte
}

func mapFile(fd int, path string, size int64) (mapping, error) {
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return mapping{}, fmt.Errorf("ring: %s: map %d bytes: %w", path, size, err)
	}
	return mapping{path, b}, nil
}

// at returns the address of a byte of the mapping; off must lie inside.
func (m *mapping) at(off int64) unsafe.Pointer { return unsafe.Pointer(&m.b[off]) }

func (m *mapping) unmap() error {
	if m.b == nil {
		return nil
	}
	b := m.b
	m.b = nil
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("ring: %s: unmap: %w", m.path, err)
	}
	return nil
}

// touch makes every page present, so that no first write faults later. The
// file must be all zeros and nobody else's yet.
func (m *mapping) touch() {
	for off := 0; off < len(m.b); off += pageSize {
		m.b[off] = 0
	}
}

// fault turns a recovered panic into an error if it is a memory fault inside
// the mapping, which is what reading a truncated file gives. Any other panic is
// raised again.
func (m *mapping) fault(r any) error {
	e, ok := r.(interface {
		error
		Addr() uintptr
	})
	if ok && len(m.b) > 0 {
		base := uintptr(unsafe.Pointer(unsafe.SliceData(m.b)))
		if off := e.Addr() - base; off < uintptr(roundUp(int64(len(m.b)), pageSize)) {
			return fmt.Errorf("ring: %s: offset %d: memory fault: %w", m.path, off, ErrTruncated)
		}
	}
	panic(r)
}

// guarded runs f, which reads or writes m, and returns an error instead of
// dying of SIGBUS when the file was truncated by someone.
func (m *mapping) guarded(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = m.fault(r)
		}
	}()
	f()
	return nil
}

// retry repeats a system call that a signal interrupted. The call returns a bare errno, so that it is compared at once: a recorder asks for
// the producer's lock, which is held, at each look.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func openFile(path string, flags int, perm uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, perm)
		return err
	})
	return fd, err
}

func flock(fd, how int) error { return retry(func() error { return unix.Flock(fd, how) }) }

// allocate gives the file its size and its pages. A full file system says so
// here; a write to a page that cannot be had later would be a SIGBUS.
func allocate(fd int, size int64) error {
	err := reserve(fd, size)
	if err == nil || !(errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)) {
		return err
	}
	zeros := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Pwrite(fd, zeros[:min(size-off, int64(len(zeros)))], off)
			return err
		})
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// newFile is a file that is built before it gets its name.
type newFile struct {
	fd     int
	path   string // final name
	temp   string // temporary name; "" if it has none
	linked bool
}

// create opens a new file, locked exclusively, of the given size, all zero.
func create(path string, size int64) (*newFile, error) {
	f, err := openHidden(path)
	if err != nil {
		return nil, fmt.Errorf("ring: %s: create: %w", path, err)
	}
	if err := unix.Fchmod(f.fd, 0o600); err != nil {
		f.discard()
		return nil, fmt.Errorf("ring: %s: chmod: %w", path, err)
	}
	if err := flock(f.fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.discard()
		return nil, fmt.Errorf("ring: %s: lock: %w", path, err)
	}
	if err := allocate(f.fd, size); err != nil {
		f.discard()
		return nil, fmt.Errorf("ring: %s: reserve %d bytes: %w: free space there, or make the ring smaller", path, size, err)
	}
	return f, nil
}

// openNamed opens a new file under a temporary name beside the final one.
func openNamed(path string) (*newFile, error) {
	dir, base := splitPath(path)
	for i := 0; ; i++ {
		temp := fmt.Sprintf("%s/.%s.tmp-%d-%d", dir, base, unix.Getpid(), i)
		fd, err := openFile(temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, unix.EEXIST) && i < 1000 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &newFile{fd: fd, temp: temp, path: path}, nil
	}
}

// link gives the file its name, and fails with EEXIST if the name is taken.
func (f *newFile) link() error {
	if err := f.linkAs(f.path); err != nil {
		return err
	}
	f.linked = true
	if f.temp == "" {
		return nil
	}
	err := unix.Unlink(f.temp)
	f.temp = ""
	return err
}

// drop takes away the names of a file that nobody needs after all. Its
// descriptor is left to whoever has it.
func (f *newFile) drop() {
	if f.temp != "" {
		_ = unix.Unlink(f.temp) // best effort, on the way out of another error
	}
	if f.linked {
		_ = unix.Unlink(f.path)
	}
}

// discard drops and closes a file.
func (f *newFile) discard() {
	f.drop()
	_ = unix.Close(f.fd)
}
