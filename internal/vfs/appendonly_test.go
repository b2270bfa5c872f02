package vfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// TestAppendOnly holds the memory to what the system does, where the system lets us.
func TestAppendOnly(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"memory": vfs.NewMem(), "system": vfs.OS(), "injector": vfs.Inject(vfs.NewMem())} {
		t.Run(name, func(t *testing.T) {
			dir := "/dir"
			if name == "system" {
				dir = filepath.Join(t.TempDir(), "dir")
			}
			path, other := dir+"/file", dir+"/other"
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(fsys.Mkdir(dir, 0o755))
			open, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
			check(err)
			check(open.Preallocate(4096))
			if err := vfs.SetAppendOnly(fsys, path, true); name == "system" && (errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission)) {
				t.Skipf("here it cannot be set: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			defer vfs.SetAppendOnly(fsys, path, false)
			check(vfs.SetAppendOnly(fsys, path, true)) // again
			if _, err := open.WriteAt([]byte("x"), 10); err != nil {
				t.Errorf("the one who has it open: %v", err)
			}
			check(open.Sync())
			denied := map[string]error{
				"cut":    open.Truncate(5),
				"remove": fsys.Remove(path),
				"rename": fsys.Rename(path, other),
				"link":   fsys.Link(path, other),
				"chmod":  fsys.Chmod(path, 0o600),
			}
			_, denied["open"] = fsys.OpenFile(path, os.O_RDWR, 0)
			_, denied["open and cut"] = fsys.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0)
			check(vfs.Replace(fsys, other, []byte("y"), 0o644))
			denied["replace"] = fsys.Rename(other, path)
			for what, err := range denied {
				if !errors.Is(err, fs.ErrPermission) {
					t.Errorf("%s: %v", what, err)
				}
			}
			w, err := fsys.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			check(err)
			_, err = w.Write([]byte("z"))
			check(errors.Join(err, w.Close()))
			check(vfs.SetAppendOnly(fsys, path, false))
			check(open.Truncate(5))
			check(open.Close())
			check(fsys.Chmod(path, 0o600))
			check(fsys.Remove(path))
			if err := vfs.SetAppendOnly(fsys, path, true); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no file: %v", err)
			}
		})
	}
	if err := vfs.SetAppendOnly(struct{ vfs.FS }{vfs.NewMem()}, "/x", true); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("another file system: %v", err)
	}
}
