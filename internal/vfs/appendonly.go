package vfs

import (
	"errors"
	"io/fs"
)

// attributer is a file system that can make a file append-only.
type attributer interface {
	setAppendOnly(name string, on bool) error
}

// SetAppendOnly makes the file name append-only, or ordinary again. An append-only file cannot be opened for anything but appending, cut,
// renamed, linked, removed, or have its permission bits changed, by anybody; who has it open for writing can go on. On Linux it is the
// attribute of chattr +a, and changing it takes the right CAP_LINUX_IMMUTABLE: the error then wraps [fs.ErrPermission]. Where a file system
// has no such thing it wraps [errors.ErrUnsupported]. A file that is as it should be is no error, and takes no right.
func SetAppendOnly(fsys FS, name string, on bool) error {
	if a, ok := fsys.(attributer); ok {
		return a.setAppendOnly(name, on)
	}
	if !on {
		return nil
	}
	return &fs.PathError{Op: "chattr", Path: name, Err: errors.ErrUnsupported}
}

// setAppendOnly implements attributer. It counts as [OpChmod].
func (in *Injector) setAppendOnly(name string, on bool) error {
	return in.pass(OpChmod, "chattr", name, func() error { return SetAppendOnly(in.fs, name, on) })
}

// setAppendOnly implements attributer. The attribute is durable after Sync on the file, as permission bits are.
func (m *Mem) setAppendOnly(name string, on bool) error {
	m.begin(OpChmod, name)
	defer m.mu.Unlock()
	n, err := m.find(name)
	if err != nil {
		return &fs.PathError{Op: "chattr", Path: name, Err: err}
	}
	n.appendOnly = on
	return nil
}
