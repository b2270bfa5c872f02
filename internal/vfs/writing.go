package vfs

import (
	"fmt"
	"io/fs"
)

// Writing is a file that is written over some time and gets its name when it is whole, in place of what has it then.
// Place or Discard ends it.
type Writing struct {
	fs         FS
	f          File
	name, temp string
}

// Begin begins the file name. After a crash it is a temporary file, see [IsTemp].
func Begin(fsys FS, name string, perm fs.FileMode) (*Writing, error) {
	f, temp, err := createTemp(fsys, name, perm)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	return &Writing{fs: fsys, f: f, name: name, temp: temp}, nil
}

// Write appends to it.
func (w *Writing) Write(p []byte) (int, error) { return w.f.Write(p) }

// Place syncs it and gives it its name, as [Replace] does. After an error it can only be discarded.
func (w *Writing) Place() error {
	err := w.f.Sync()
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = inSyncedDir(w.fs, w.name, func() error { return w.fs.Rename(w.temp, w.name) }, func() {})
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", w.name, err)
	}
	return nil
}

// Discard removes it. After Place it finds nothing and says nothing.
func (w *Writing) Discard() error {
	_ = w.f.Close() // what was written is not wanted; it may be closed
	d := Draft{fs: w.fs, name: w.name, temp: w.temp}
	return d.Discard()
}
