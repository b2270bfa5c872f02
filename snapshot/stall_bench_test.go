//go:build unix

package snapshot_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// BenchmarkStall is what a snapshot costs the step loop, by what a copy of the
// same state costs to memory of the same kind (a file in memory, mapped and
// shared) and to memory of the program's own. All of it was written to before.
func BenchmarkStall(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "usp-test-")
	if err != nil {
		b.Skipf("no directory in memory: %v", err)
	}
	defer os.RemoveAll(dir)
	for _, n := range sizes() {
		for _, sections := range []int{1, 16} {
			b.Run(fmt.Sprintf("size=%d/sections=%d", n, sections), func(b *testing.B) { benchStall(b, dir, n, sections) })
		}
	}
}

func benchStall(b *testing.B, dir string, n, sections int) {
	state := noise(n)
	var parts []snapshot.Section
	for i := range sections {
		part := state[i*n/sections : (i+1)*n/sections]
		parts = append(parts, snapshot.Section{Name: fmt.Sprintf("part.%d", i), Data: part})
	}
	size := snapshot.SectionsSize(parts)
	path := filepath.Join(dir, "ring")
	p, err := ring.Create(ring.Config{Path: path, PayloadLen: 8, Slots: 64, StagingAreas: 1, StagingCapacity: int64(size)})
	if err != nil {
		b.Fatal(err)
	}
	c, err := ring.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := errors.Join(p.Close(true), c.Remove(), c.Close()); err != nil {
			b.Error(err)
		}
	}()
	shared, heap := sharedMemory(b, filepath.Join(dir, "shared"), n), make([]byte, n)
	copy(shared, state)
	copy(heap, state)
	staged := false
	compare(b, func() error {
		s, ok := c.Staged()
		if ok != staged {
			return fmt.Errorf("staged: %v", ok)
		}
		if staged = false; ok {
			return s.Release()
		}
		return nil
	}, contender{"shared-copy", func() error {
		copy(shared, state)
		return nil
	}}, contender{"heap-copy", func() error {
		copy(heap, state)
		return nil
	}}, contender{"ours", func() error {
		staged = p.Stage(1, 0, size, func(dst []byte) { snapshot.AppendSections(dst[:0], parts) })
		if !staged {
			return errors.New("dropped")
		}
		return nil
	}})
}

// sharedMemory is n bytes of a file in memory, as a staging area is.
func sharedMemory(b *testing.B, path string, n int) []byte {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n)); err != nil {
		b.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(unix.Munmap(m), os.Remove(path)); err != nil {
			b.Error(err)
		}
	})
	return m
}
