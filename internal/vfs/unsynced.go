package vfs

import "io/fs"

// Unsynced is a file system on which nothing is ever synced, for benchmarks whose files may be lost: what they make is not what they measure.
func Unsynced(fsys FS) FS { return unsynced{fsys} }

type unsynced struct{ FS }

type unsyncedFile struct{ File }

func (u unsynced) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

func (unsynced) SyncDir(string) error { return nil }
func (unsyncedFile) Sync() error      { return nil }
func (unsyncedFile) Datasync() error  { return nil }
