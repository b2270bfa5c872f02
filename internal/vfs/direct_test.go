package vfs_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// directly opens f for being written directly, and skips where that is not offered.
func directly(t *testing.T, f vfs.File, size int64) vfs.DirectFile {
	d, err := vfs.OpenDirect(f, size)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("NOT CHECKED: %v", err)
	}
	check(t, err)
	return d
}

// What is written directly is in the file, whoever reads it, beside what is written otherwise; and only whole blocks are taken.
func TestDirect(t *testing.T) {
	for name, fsys := range fileSystems(t) {
		t.Run(name, func(t *testing.T) {
			f, err := fsys.OpenFile("/f", os.O_RDWR|os.O_CREATE, 0o600)
			check(t, err)
			check(t, f.Preallocate(16*vfs.DirectBlock))
			d := directly(t, f, 16*vfs.DirectBlock)
			if _, err := vfs.OpenDirect(f, 16*vfs.DirectBlock+1); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("a file that is smaller was opened: %v", err)
			}
			want := make([]byte, 16*vfs.DirectBlock)
			blocks := vfs.Aligned(3 * vfs.DirectBlock)
			for i := range blocks {
				blocks[i] = byte(1 + i%251)
			}
			for _, at := range []int64{5, 1, 2, 9} {
				n, err := d.WriteAt(blocks, at*vfs.DirectBlock)
				check(t, err)
				if n != len(blocks) {
					t.Errorf("%d bytes of %d", n, len(blocks))
				}
				copy(want[at*vfs.DirectBlock:], blocks)
				_, err = f.WriteAt([]byte("beside"), at*vfs.DirectBlock-3)
				check(t, err)
				copy(want[at*vfs.DirectBlock-3:], "beside")
				got := make([]byte, len(want))
				_, err = f.ReadAt(got, 0)
				check(t, err)
				if !bytes.Equal(got, want) {
					t.Fatalf("after blocks at %d the file is not what was written", at)
				}
			}
			for _, c := range []struct{ len, off int }{{len(blocks), 1}, {100, 0}} {
				if _, err := d.WriteAt(blocks[:c.len], int64(c.off)); !errors.Is(err, syscall.EINVAL) {
					t.Errorf("%d bytes at %d: error %v, want EINVAL", c.len, c.off, err)
				}
			}
			check(t, d.Close())
			check(t, f.Close())
			if _, err := vfs.OpenDirect(f, 0); name != "mem" && err == nil {
				t.Error("a closed file was opened")
			}
		})
	}
}

// On stable storage it is when the file was synced, and not before.
func TestDirectIsNotDurable(t *testing.T) {
	m := vfs.NewMem()
	f, err := m.OpenFile("/f", os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	check(t, f.Preallocate(2*vfs.DirectBlock))
	check(t, f.Sync())
	check(t, m.SyncDir("/"))
	blocks := vfs.Aligned(vfs.DirectBlock)
	blocks[0] = 1
	_, err = directly(t, f, 0).WriteAt(blocks, 0)
	check(t, err)
	for _, synced := range []bool{false, true} {
		data, err := vfs.ReadFile(m.Crash(nil, vfs.DropAll), "/f", 1<<20)
		check(t, err)
		if got := data[0] == 1; got != synced {
			t.Errorf("synced %v, and there after the crash: %v", synced, got)
		}
		check(t, f.Datasync())
	}
}

// What the Injector is told to fail fails, a part of it written in whole blocks.
func TestDirectFails(t *testing.T) {
	in := vfs.Inject(vfs.NewMem(), vfs.Rule{Op: vfs.OpWrite, Err: syscall.ENOSPC, Short: true})
	f, err := in.OpenFile("/f", os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	d := directly(t, f, 0)
	n, err := d.WriteAt(vfs.Aligned(3*vfs.DirectBlock), 0)
	if !errors.Is(err, syscall.ENOSPC) || n != vfs.DirectBlock {
		t.Errorf("%d bytes, %v; want a block and ENOSPC", n, err)
	}
}

// A name that is another file's by now is not written to, and a file system that only pretends is not asked.
func TestDirectIsTheSameFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	f, err := vfs.OS().OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	defer f.Close()
	check(t, directly(t, f, 0).Close())
	check(t, os.Rename(name, name+"2"))
	if _, err := vfs.OpenDirect(f, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want: it does not exist", err)
	}
	check(t, os.WriteFile(name, nil, 0o600))
	if _, err := vfs.OpenDirect(f, 0); err == nil {
		t.Error("another file was opened")
	}
}

// Of a torn write random bytes lie where it brought something new, and where it only repeats what is durable that stays.
func TestGarbageSparesWhatIsRepeated(t *testing.T) {
	m := vfs.NewMem()
	f, err := m.OpenFile("/f", os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	check(t, m.SyncDir("/"))
	durable := bytes.Repeat([]byte("durable"), 100) // more than a sector
	_, err = f.WriteAt(durable, 0)
	check(t, err)
	check(t, f.Sync())
	whole := append(bytes.Clone(durable), bytes.Repeat([]byte("new"), 500)...)
	_, err = f.WriteAt(whole, 0)
	check(t, err)
	torn := 0
	for seed := range uint64(100) {
		got, err := vfs.ReadFile(m.Crash(rand.New(rand.NewPCG(5, seed)), vfs.Garbage), "/f", 1<<20)
		check(t, err)
		if !bytes.HasPrefix(got, durable) {
			t.Fatalf("seed %d: what was durable is not there", seed)
		}
		if len(bytes.Trim(got[len(durable):], "new\x00")) > 0 {
			torn++
		}
	}
	if torn < 10 {
		t.Errorf("only %d of 100 crashes left random bytes", torn)
	}
}
