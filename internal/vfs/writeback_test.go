package vfs_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// TestStartWriteback wants the advice to be taken by every kind of file, to change no byte, and to
// count for nothing after a crash.
func TestStartWriteback(t *testing.T) {
	mem := vfs.NewMem()
	for name, fsys := range map[string]vfs.FS{"os": below{vfs.OS(), t.TempDir()}, "mem": mem, "inject": vfs.Inject(below{vfs.OS(), t.TempDir()})} {
		f, err := fsys.OpenFile("/f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		check(t, err)
		want := bytes.Repeat([]byte("data"), 5000)
		_, err = f.Write(want)
		check(t, err)
		for _, r := range [][2]int64{{0, 4096}, {4096, 100}, {0, 0}, {1 << 40, 1}} {
			if err := vfs.StartWriteback(f, r[0], r[1]); err != nil {
				t.Errorf("%s: %d bytes at %d: %v", name, r[1], r[0], err)
			}
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the content changed: %v", name, err)
		}
		check(t, f.Close())
		if err := vfs.StartWriteback(f, 0, 1); name != "mem" && err == nil {
			t.Errorf("%s: no error on a closed file", name)
		}
	}
	if _, err := mem.Crash(nil, vfs.DropAll).Stat("/f"); err == nil {
		t.Error("a file that was never synced is there after the crash that drops all")
	}
}
