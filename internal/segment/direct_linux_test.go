package segment_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// What is written directly makes no file longer than it is, and leaves nothing open.
func TestDirectlyLeavesNothing(t *testing.T) {
	where := filepath.Join(t.TempDir(), "telemetry")
	check(t, vfs.MkdirAll(vfs.OS(), where, 0o700))
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return len(list)
	}
	before, base := open(), uint64(0)
	for _, size := range []int64{-1, 5000, 64 << 10} {
		w, err := segment.Create(where, base, segment.Options{Kind: segment.KindTelemetry, Size: size})
		check(t, err)
		for range 6 {
			check(t, w.Append(make([]byte, 3000)))
			check(t, w.Sync())
			info, err := os.Stat(w.Path())
			check(t, err)
			if want := max(size, w.Size()); info.Size() != want {
				t.Errorf("preallocated %d: the file has %d bytes, want %d", size, info.Size(), want)
			}
		}
		s, err := w.Seal()
		check(t, err)
		base += s.Count
	}
	if now := open(); now != before {
		t.Errorf("%d files are open, %d were before", now, before)
	}
}
