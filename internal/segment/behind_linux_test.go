package segment_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// cached returns how many bytes of a file before end the kernel has in memory.
func cached(t *testing.T, path string, end int64) int {
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, int(end), unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	defer func() { check(t, unix.Munmap(m)) }()
	page := os.Getpagesize()
	in := make([]byte, (len(m)+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, b := range in {
		n += int(b&1) * page
	}
	return n
}

// Of a file that grows slowly the kernel keeps next to nothing, as it is written directly, and of what somebody has read since a MiB; where that
// cannot be, what the last sync has written. Of one that grows quickly it keeps all. In each there is what was appended.
func TestWhatIsDurableIsNotKept(t *testing.T) {
	for _, c := range []struct {
		name         string
		frame, syncs int
		read         bool
		least, most  int // bytes
	}{
		{"slow", 128 << 10, 50, false, 0, 3 * os.Getpagesize()},
		{"slow and read", 128 << 10, 50, true, 128 << 10, 128<<10 + 1<<20 + 3*os.Getpagesize()},
		{"quick", 1 << 20, 40, false, 30 << 20, 48 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			where := filepath.Join(t.TempDir(), "telemetry")
			check(t, vfs.MkdirAll(vfs.OS(), where, 0o700))
			var st unix.Statfs_t
			check(t, unix.Statfs(where, &st))
			if st.Type == unix.TMPFS_MAGIC {
				t.Skip("NOT CHECKED: the file system for temporary files is in memory")
			}
			w, err := segment.Create(where, 0, segment.Options{Kind: segment.KindTelemetry, Size: 48 << 20})
			check(t, err)
			f, err := vfs.OS().OpenFile(w.Path(), os.O_RDWR, 0)
			check(t, err)
			defer f.Close()
			if segment.DirectMemory(w) == 0 && !c.read {
				t.Log("NOT CHECKED: a file that is written directly: the file system for temporary files does not offer it")
				c.most += 128 << 10
			}
			frame := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, c.frame/2) }
			for i := range c.syncs {
				check(t, w.Append(frame(i)))
				check(t, w.Append(frame(i)))
				check(t, w.Sync())
				if c.read {
					_, end := w.Synced()
					_, err := f.ReadAt(make([]byte, c.frame), end-int64(c.frame))
					check(t, err)
				}
			}
			if n := cached(t, w.Path(), w.Size()); n < c.least || n > c.most {
				t.Errorf("%d bytes of %d are in memory, want %d to %d", n, c.frame*c.syncs, c.least, c.most)
			}
			_, err = w.Seal()
			check(t, err)
			n := 0
			for f, err := range segment.Frames(vfs.OS(), where) {
				check(t, err)
				if !bytes.Equal(f.Data, frame(n/2)) {
					t.Fatalf("frame %d is not what was appended", n)
				}
				n++
			}
			if n != 2*c.syncs {
				t.Errorf("%d frames of %d", n, 2*c.syncs)
			}
		})
	}
}
