package vfs_test

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

func TestInjectRules(t *testing.T) {
	tests := []struct {
		name string
		rule vfs.Rule
		want []int // numbers of the writes to "a" and then "b" that fail, of 4 each, from 0
	}{
		{"first", vfs.Rule{Op: vfs.OpWrite}, []int{0}},
		{"third", vfs.Rule{Op: vfs.OpWrite, Nth: 3}, []int{2}},
		{"sticky", vfs.Rule{Op: vfs.OpWrite, Nth: 7, Sticky: true}, []int{6, 7}},
		{"path", vfs.Rule{Op: vfs.OpWrite, Path: "b*", Nth: 2}, []int{5}},
		{"whole path", vfs.Rule{Op: vfs.OpWrite, Path: "./b", Nth: 2}, []int{5}},
		{"other kind", vfs.Rule{Op: vfs.OpRead | vfs.OpSync}, nil},
		{"sync too", vfs.Rule{Op: vfs.OpAnySync | vfs.OpWrite, Nth: 2}, []int{1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := vfs.Inject(vfs.NewMem(), test.rule)
			var failed []int
			for i, name := range []string{"./a", "./b"} {
				f, err := in.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
				check(t, err)
				for j := range 4 {
					if _, err := f.Write([]byte("1234")); errors.Is(err, syscall.EIO) {
						failed = append(failed, 4*i+j)
					}
				}
				check(t, f.Close())
			}
			if !slices.Equal(failed, test.want) {
				t.Errorf("failed %v, want %v", failed, test.want)
			}
			if got := in.Calls(vfs.OpWrite); got != 8 {
				t.Errorf("counted %d writes", got)
			}
			if got := len(in.Fired()); got != len(test.want) {
				t.Errorf("fired %d", got)
			}
		})
	}
}

func TestInjectShortWrite(t *testing.T) {
	m := vfs.NewMem()
	in := vfs.Inject(m, vfs.Rule{Op: vfs.OpWrite, Err: syscall.ENOSPC, Short: true})
	f, err := in.OpenFile("a", os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	n, err := f.Write([]byte("123456"))
	if n != 3 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%d, %v", n, err)
	}
	check(t, content(m, "a", "123"))
}

// A sync that fails once and then succeeds has not written what it was first asked to write.
func TestInjectSyncLies(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpSync, vfs.OpDatasync} {
		m := vfs.NewMem()
		put(t, m, "a", "old", true)
		check(t, m.SyncDir("."))
		in := vfs.Inject(m, vfs.Rule{Op: kind})
		f, err := in.OpenFile("a", os.O_RDWR, 0)
		check(t, err)
		_, err = f.WriteAt([]byte("new"), 0)
		check(t, err)
		sync := f.Sync
		if kind == vfs.OpDatasync {
			sync = f.Datasync
		}
		check(t, errorIs(sync(), syscall.EIO))
		check(t, sync())
		check(t, content(m, "a", "new")) // the cache shows it
		check(t, content(m.Crash(nil, vfs.DropAll), "a", "old"))
		check(t, vfs.DropCache(f))
		check(t, content(m, "a", "old"))
	}
}

func TestInjectDirectorySync(t *testing.T) {
	in := vfs.Inject(vfs.NewMem(), vfs.Rule{Op: vfs.OpSyncDir, Sticky: true})
	check(t, errorIs(in.SyncDir("."), syscall.EIO))
	d, err := in.OpenFile(".", os.O_RDONLY, 0)
	check(t, err)
	check(t, errorIs(d.Sync(), syscall.EIO))
	in.Clear()
	check(t, d.Sync())
}
