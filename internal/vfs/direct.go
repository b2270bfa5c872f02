package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// DirectBlock is what an offset, a length and an address are multiples of where a [DirectFile] is written. It is a block of the file systems
// that usp runs on; a smaller one, where a device has it, would be rewritten in a whole one.
const DirectBlock = 4096

// DirectFile writes to a file past the kernel's cache: from the caller's memory to the device, with no copy, and no page of the cache, in
// between. It may lie in the device's own cache until the file is synced. Who reads the file by other means finds it at once.
type DirectFile interface {
	io.WriterAt // everything or an error, of whole blocks of DirectBlock bytes from memory aligned to one
	io.Closer
}

// director is a file that can be opened a second time as a DirectFile.
type director interface {
	openDirect(size int64) (DirectFile, error)
}

// OpenDirect opens f, which has the name that it was opened by, for being written directly as well, within its first size bytes. The error
// wraps [errors.ErrUnsupported] where the system or the file system does not offer that, or not for blocks of this size; and
// where the file is smaller, as it is after [File.Preallocate] on a file system that cannot do that.
func OpenDirect(f File, size int64) (DirectFile, error) {
	if d, ok := f.(director); ok {
		return d.openDirect(size)
	}
	return nil, noDirect(f)
}

func noDirect(f File) error {
	return &fs.PathError{Op: "open directly", Path: f.Name(), Err: errors.ErrUnsupported}
}

// openDirect implements director. That it is opened is no operation of its own, what is written is an OpWrite.
func (f *injectFile) openDirect(size int64) (DirectFile, error) {
	d, err := OpenDirect(f.File, size)
	if err != nil {
		return nil, err
	}
	return &injectDirect{DirectFile: d, of: f}, nil
}

// injectDirect is what an Injector gives.
type injectDirect struct {
	DirectFile
	of *injectFile
}

func (d *injectDirect) WriteAt(p []byte, off int64) (int, error) {
	return d.of.write(p, func(part []byte) (int, error) {
		if len(part) < len(p) {
			part = part[:len(part)&^(DirectBlock-1)]
		}
		return d.DirectFile.WriteAt(part, off)
	})
}

// openDirect implements director.
func (f *memFile) openDirect(size int64) (DirectFile, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.n.data.size < size {
		return nil, noDirect(f)
	}
	return memDirect{f}, nil
}

// memDirect writes as any handle on a Mem does, but takes whole blocks alone.
type memDirect struct{ f *memFile }

func (d memDirect) WriteAt(p []byte, off int64) (int, error) {
	if !aligned(p, off) {
		return 0, d.f.fail("write directly", errAlignment)
	}
	return d.f.WriteAt(p, off)
}

// Close leaves the file that it is a second handle of open.
func (memDirect) Close() error { return nil }
