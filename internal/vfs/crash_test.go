package vfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// after returns every content of a file that crashes of the same moment leave, "" for no file, with how often each came up.
func after(t *testing.T, m *vfs.Mem, name string, p vfs.Policy) map[string]int {
	t.Helper()
	seen := map[string]int{}
	rng := rand.New(rand.NewPCG(8, 1))
	for range 400 {
		b, err := vfs.ReadFile(m.Crash(rng, p), name, limit)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		seen[string(b)]++
	}
	return seen
}

// Each unsynced write has a fate of its own: a later one may be there without an earlier one. So do a truncation and the
// space that was reserved.
func TestCrashWritesAreIndependent(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "f", "aabbcc", true)
	check(t, m.SyncDir("."))
	f, err := m.OpenFile("f", os.O_RDWR, 0)
	check(t, err)
	for i, s := range []string{"AA", "BB"} {
		_, err := f.WriteAt([]byte(s), int64(2*i))
		check(t, err)
	}
	check(t, f.Truncate(5))
	check(t, f.Preallocate(7))
	check(t, f.Close())
	seen := after(t, m, "f", vfs.Mixed)
	for _, first := range []string{"aa", "AA"} {
		for _, second := range []string{"bb", "BB"} {
			for _, rest := range []string{"cc", "c", "cc\x00", "c\x00\x00"} {
				if seen[first+second+rest] == 0 {
					t.Errorf("never %q: %v", first+second+rest, seen)
				}
				delete(seen, first+second+rest)
			}
		}
	}
	if len(seen) > 0 {
		t.Errorf("what cannot be is there: %v", seen)
	}
}

// A torn write is torn where sectors or blocks of the disk end, not where the write begins.
func TestCrashTearsAtSectors(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "f", strings.Repeat("o", 9000), true)
	check(t, m.SyncDir("."))
	f, err := m.OpenFile("f", os.O_RDWR, 0)
	check(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("n", 8000)), 300)
	check(t, err)
	check(t, f.Close())
	torn := map[string]bool{}
	for s := range after(t, m, "f", vfs.Mixed) {
		all4k := true
		for at := 1; at < len(s); at++ {
			if s[at] == s[at-1] || at == 300 || at == 8300 {
				continue
			}
			if at%512 != 0 {
				t.Fatalf("torn at byte %d", at)
			}
			all4k = all4k && at%4096 == 0
			torn["anywhere"] = true
		}
		torn["blocks"] = torn["blocks"] || all4k && s[4095] != s[4096]
		torn["sectors"] = torn["sectors"] || !all4k
	}
	if !torn["blocks"] || !torn["sectors"] {
		t.Errorf("torn at %v", torn)
	}
}

// A name is lost with its unsynced directory, its data synced or not, and a name that was removed comes back.
func TestCrashLosesNames(t *testing.T) {
	for what, change := range map[string]func(m *vfs.Mem) error{
		"created": func(m *vfs.Mem) error { put(t, m, "d/new", "x", true); return nil },
		"linked":  func(m *vfs.Mem) error { return m.Link("d/old", "d/new") },
		"renamed": func(m *vfs.Mem) error { return m.Rename("d/old", "d/new") },
		"made":    func(m *vfs.Mem) error { return m.Mkdir("d/new", 0o700) },
		"removed": func(m *vfs.Mem) error { return m.Remove("d/old") },
	} {
		m := vfs.NewMem()
		check(t, m.Mkdir("d", 0o700))
		check(t, m.SyncDir("."))
		put(t, m, "d/old", "x", true)
		check(t, m.SyncDir("d"))
		check(t, change(m))
		names := func(m *vfs.Mem) string {
			list, err := m.ReadDir("d")
			check(t, err)
			return fmt.Sprint(list)
		}
		now := names(m)
		seen := map[string]bool{}
		rng := rand.New(rand.NewPCG(9, 1))
		for range 50 {
			seen[names(m.Crash(rng, vfs.Mixed))] = true
		}
		if !seen["[- old]"] || !seen[now] || len(seen) != 2 {
			t.Errorf("%s: %v, now it is %s", what, seen, now)
		}
		check(t, m.SyncDir("d"))
		if got := names(m.Crash(nil, vfs.DropAll)); got != now {
			t.Errorf("%s and synced: %s, want %s", what, got, now)
		}
	}
}

// Each error is injected as the kernel would give it, once or for good.
func TestInjectErrors(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		for _, want := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
			m := vfs.NewMem()
			in := vfs.Inject(m, vfs.Rule{Op: vfs.OpMutates, Nth: 2, Sticky: sticky, Err: want})
			for i, op := range []func() error{
				func() error { return in.Mkdir("a", 0o700) },
				func() error { return in.Mkdir("b", 0o700) },
				func() error { return in.Rename("a", "c") },
				func() error { return in.SyncDir(".") },
			} {
				err := op()
				fails := i == 1 || sticky && i > 1
				var path *fs.PathError
				if fails && (!errors.Is(err, want) || !errors.As(err, &path)) || !fails && err != nil {
					t.Errorf("%v, sticky %v, operation %d: %v", want, sticky, i, err)
				}
			}
			if _, err := in.ReadDir("."); err != nil {
				t.Errorf("reading is no change: %v", err)
			}
		}
	}
}
