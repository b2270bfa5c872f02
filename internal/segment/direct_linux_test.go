package segment_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

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
	ends := []func(*segment.Writer) error{
		func(w *segment.Writer) error { _, err := w.Seal(); return err }, (*segment.Writer).Close, (*segment.Writer).Abort,
	}
	for i, size := range []int64{-1, 5000, 64 << 10, 64 << 10, 64 << 10} {
		end := ends[i%len(ends)]
		w, err := segment.Create(where, base, segment.Options{Kind: segment.KindTelemetry, Size: size})
		check(t, err)
		if size > 4096 && segment.DirectMemory(w) == 0 {
			t.Log("NOT CHECKED: a file that is written directly: the file system for temporary files does not offer it")
		}
		for range 6 {
			check(t, w.Append(make([]byte, 3000)))
			check(t, w.Sync())
			info, err := os.Stat(w.Path())
			check(t, err)
			if want := max(size, w.Size()); info.Size() != want {
				t.Errorf("preallocated %d: the file has %d bytes, want %d", size, info.Size(), want)
			}
		}
		base += 6
		check(t, end(w))
	}
	if now := open(); now != before {
		t.Errorf("%d files are open, %d were before", now, before)
	}
}

// What is written directly and what goes through the cache follow each other in a file, whatever their sizes.
func TestMixed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		m := vfs.NewMem()
		fsys, where := vfs.FS(m), dir
		if rapid.Bool().Draw(t, "host") {
			temp, err := os.MkdirTemp("", "usp-segment-")
			check(err)
			defer os.RemoveAll(temp)
			fsys, where = vfs.OS(), filepath.Join(temp, "telemetry")
		}
		check(vfs.MkdirAll(fsys, where, 0o700))
		room := rapid.SampledFrom([]int64{-1, 300_000, 2 << 20}).Draw(t, "room")
		w, err := segment.Create(where, 0, segment.Options{FS: fsys, Kind: segment.KindTelemetry, Size: room})
		check(err)
		directly := segment.DirectMemory(w) > 0
		var want [][]byte
		for _, n := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 100, 3000, 4064, 4096, 20_000, 257 << 10, 300_000}), 1, 12).Draw(t, "frames") {
			frame := bytes.Repeat([]byte{byte(len(want) + 1)}, n)
			check(w.Append(frame))
			want = append(want, frame)
			if rapid.Bool().Draw(t, "flush") {
				check(w.Flush())
			}
			if rapid.Bool().Draw(t, "sync") {
				check(w.Sync())
			}
		}
		check(w.Sync())
		if now := segment.DirectMemory(w) > 0; now != directly {
			t.Fatalf("it is written directly: %v, at first: %v", now, directly) // a write to a wrong place was refused
		}
		if fsys == vfs.FS(m) && rapid.Bool().Draw(t, "crash") {
			fsys = m.Crash(nil, vfs.DropAll)
		} else {
			_, err = w.Seal()
			check(err)
		}
		n := 0
		for f, err := range segment.Frames(fsys, where) {
			check(err)
			if n == len(want) || !bytes.Equal(f.Data, want[n]) {
				t.Fatalf("frame %d is not what was appended", n)
			}
			n++
		}
		if n != len(want) {
			t.Fatalf("%d frames of %d", n, len(want))
		}
	})
}
