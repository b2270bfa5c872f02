package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	tempMark  = ".tmp-"
	tempTries = 1000 // leftovers of so many crashes under one name mean that something else is wrong
)

// IsTemp reports whether the base name of name is one that [Replace] and [Create] give to temporary
// files (".NAME.tmp-N"). Such a file that is older than the process is the leftover of a crash.
func IsTemp(name string) bool {
	base := filepath.Base(name)
	i := strings.LastIndex(base, tempMark)
	if i < 2 || base[0] != '.' {
		return false
	}
	digits := base[i+len(tempMark):]
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}

// RemoveTemps removes the temporary files in dir, for good, and returns their names. The caller must hold the lock
// that keeps other writers out of dir.
func RemoveTemps(fsys FS, dir string) (removed []string, err error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("remove temporary files: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() || !IsTemp(e.Name()) {
			continue
		}
		if err := fsys.Remove(filepath.Join(dir, e.Name())); err != nil {
			return removed, fmt.Errorf("remove temporary files: %w", err)
		}
		removed = append(removed, e.Name())
	}
	if len(removed) > 0 {
		if err := fsys.SyncDir(dir); err != nil {
			return removed, fmt.Errorf("remove temporary files: %w", err)
		}
	}
	return removed, nil
}

// Replace makes data the content of name, durably and at once: after a crash at any moment name holds
// either what it held before or all of data. When Replace returns nil it holds data for good.
// If the error comes from the last step, the sync of the directory, name already shows the new content
// but may fall back to the old one on a loss of power.
func Replace(fsys FS, name string, data []byte, perm fs.FileMode) error {
	write := func(f File) error {
		_, err := f.Write(data)
		return err
	}
	temp, err := writeTemp(fsys, name, perm, write)
	if err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	err = inSyncedDir(fsys, name, func() error { return fsys.Rename(temp, name) }, func() {})
	if err != nil {
		_ = fsys.Remove(temp) // best effort, and nothing where it has its name already
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return nil
}

// Create makes a new file with what write puts into it. After a crash at any moment the file is not
// there or it is complete. If name is there already, that is an error which wraps [fs.ErrExist], and
// the file is left as it is.
func Create(fsys FS, name string, perm fs.FileMode, write func(File) error) error {
	d, err := Prepare(fsys, name, perm, write)
	if err != nil {
		return err
	}
	if err := d.Place(); err != nil {
		_ = d.Discard() // best effort: the error that matters is the one returned
		return err
	}
	return nil
}

// Draft is a file that is complete and synced and has no name yet: what could fail for want of space
// has been done. Prepare and Place together are Create.
type Draft struct {
	fs         FS
	name, temp string
}

// Prepare makes a draft of the file name with what write puts into it. After a crash it is a temporary
// file, see [IsTemp].
func Prepare(fsys FS, name string, perm fs.FileMode, write func(File) error) (*Draft, error) {
	temp, err := writeTemp(fsys, name, perm, write)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	return &Draft{fs: fsys, name: name, temp: temp}, nil
}

// Place gives the draft its name, durably and only if the name is free (else the error wraps
// [fs.ErrExist], and the draft can be placed again when it is). After an error there is no new file of
// that name.
func (d *Draft) Place() error {
	err := inSyncedDir(d.fs, d.name, func() error { return linkExclusive(d.fs, d.temp, d.name) }, func() {
		// Back to a draft, best effort: a caller who tries again would find the name taken.
		_ = d.fs.Rename(d.name, d.temp)
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", d.name, err)
	}
	return nil
}

// Discard removes a draft that is not to be placed, for good: no crash brings it back. After Place it finds nothing and says nothing.
func (d *Draft) Discard() error {
	err := d.fs.Remove(d.temp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.fs.SyncDir(filepath.Dir(d.temp))
	}
	if err != nil {
		return fmt.Errorf("discard draft: %w", err)
	}
	return nil
}

// linkExclusive gives temp its final name and takes the temporary one away.
func linkExclusive(fsys FS, temp, name string) error {
	err := fsys.Link(temp, name)
	switch {
	case err == nil:
		if err := fsys.Remove(temp); err != nil {
			_ = fsys.Remove(name) // best effort, so that an error leaves no file
			return err
		}
		return nil
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOTSUP), errors.Is(err, syscall.ENOSYS):
		// A file system without hard links. Rename would replace, so look first; the window between
		// the two calls is closed by the lock that every writer of a directory holds.
		if _, serr := fsys.Stat(name); serr == nil {
			return &os.LinkError{Op: "link", Old: temp, New: name, Err: syscall.EEXIST}
		} else if !errors.Is(serr, fs.ErrNotExist) {
			return serr
		}
		return fsys.Rename(temp, name)
	}
	return err
}

// inSyncedDir makes a change in the directory of name and syncs it; undo is for when only that, or closing the directory, fails. The
// directory stays open from before the change until it is synced: the kernel reports an I/O error of a
// directory only to those who had it open, and forgets it when the inode is evicted.
func inSyncedDir(fsys FS, name string, change func() error, undo func()) error {
	dir, err := fsys.OpenFile(filepath.Dir(name), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		_ = dir.Close() // nothing was changed
		return err
	}
	err = dir.Sync()
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		undo()
	}
	return err
}

// writeTemp makes a synced and closed temporary file beside name.
func writeTemp(fsys FS, name string, perm fs.FileMode, write func(File) error) (temp string, err error) {
	f, temp, err := createTemp(fsys, name, perm)
	if err != nil {
		return "", err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = fsys.Remove(temp)
		return "", err
	}
	return temp, nil
}

// createTemp opens a new file beside name. Names are counted, not random: a test then sees the same
// operations each time, and O_EXCL settles a race between two processes.
func createTemp(fsys FS, name string, perm fs.FileMode) (f File, temp string, err error) {
	dir, base := filepath.Split(name)
	for i := range tempTries {
		temp = fmt.Sprintf("%s.%s%s%d", dir, base, tempMark, i)
		f, err = fsys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if !errors.Is(err, fs.ErrExist) {
			return f, temp, err
		}
	}
	return nil, "", fmt.Errorf("%d temporary files of %s are in the way; remove them", tempTries, base)
}

// MkdirAll makes the directory name and the missing ones above it, each durable before the next is made.
// It also syncs the parent of the deepest directory it finds, which an earlier process may have made and
// not lived to sync. A file in the way is an error that wraps ENOTDIR.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	if err := mkdirAll(fsys, filepath.Clean(name), perm); err != nil {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	return nil
}

func mkdirAll(fsys FS, name string, perm fs.FileMode) error {
	info, err := fsys.Stat(name)
	parent := filepath.Dir(name)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		if parent == name {
			return nil
		}
		// Somebody else's directory may not be readable to us; then it is not ours to sync either.
		if err := fsys.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) || parent == name {
		return err
	}
	if err := mkdirAll(fsys, parent, perm); err != nil {
		return err
	}
	dir, err := fsys.OpenFile(parent, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	err = fsys.Mkdir(name, perm)
	if errors.Is(err, fs.ErrExist) {
		err = nil // made by another process since we looked; sync it all the same
	}
	if err == nil {
		err = dir.Sync()
	}
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	return err
}
