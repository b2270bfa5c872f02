//go:build linux || darwin

package vfs

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errAlignment is what a kernel says as well.
const errAlignment = unix.EINVAL

// aligned reports whether p at off is what a DirectFile takes.
func aligned(p []byte, off int64) bool {
	return (uintptr(unsafe.Pointer(unsafe.SliceData(p)))|uintptr(len(p))|uintptr(off))&(DirectBlock-1) == 0
}

// Aligned returns memory of n bytes that begins at a multiple of [DirectBlock].
func Aligned(n int) []byte {
	b := make([]byte, n+DirectBlock)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (DirectBlock - 1))
	return b[skip : skip+n : skip+n]
}

// openDirect implements director. A file that was renamed meanwhile is not taken for f.
func (f osFile) openDirect(size int64) (DirectFile, error) {
	if !directly(f) {
		return nil, noDirect(f)
	}
	d, err := os.OpenFile(f.Name(), os.O_WRONLY|directFlag|unix.O_NONBLOCK, 0) // no waiting for who reads a pipe that has the name now
	if err != nil {
		return nil, err
	}
	was, err := f.File.Stat()
	if err == nil {
		is, serr := d.Stat()
		switch err = serr; {
		case err != nil:
		case !os.SameFile(was, is):
			err = fmt.Errorf("open %s directly: it is another file now", f.Name())
		case is.Size() < size:
			err = noDirect(f)
		}
	}
	if err != nil {
		_ = d.Close() // nothing was written
		return nil, err
	}
	return d, nil
}
