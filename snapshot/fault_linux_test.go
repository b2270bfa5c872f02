package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/vfs"
)

// TestStateTakenAway: the state lies in a file that another process cuts off while it is hashed and written. That is a
// panic in the caller's goroutine, which can be caught there, and not the end of the process.
func TestStateTakenAway(t *testing.T) {
	const size = 32 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "shared"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	caught := func() (r any) {
		defer func() { r = recover() }()
		h := newHasher(false)
		defer h.abandon()
		h.write(m)
		h.stop()
		return nil
	}()
	var fault interface{ Addr() uintptr }
	if err, ok := caught.(error); !ok || !errors.As(err, &fault) {
		t.Errorf("the hasher came to %v, want a memory fault", caught)
	}
	caught = func() (r any) {
		defer func() {
			if x := recover(); x != nil {
				r = x
			}
		}()
		_, err := Write(t.TempDir(), Meta{RunID: "r", Step: 1}, []Section{{Name: "s", Data: m}}, Options{FS: vfs.OS()})
		return err
	}()
	if caught == nil {
		t.Error("a snapshot of memory that is gone was written")
	}
}
