package recorder

import (
	"runtime"
	"testing"

	"github.com/usp-project/usp/digestlog"
)

// What takes the place of a batch that is held has room for as much, and not for much more.
func TestBatchLike(t *testing.T) {
	var c digestlog.Encoder
	fill := func(b *batch) {
		for i := range 400 {
			b.frames = append(b.frames, make([]byte, 100)...)
			b.ends = append(b.ends, len(b.frames))
			e := lostEntry(1, uint64(i), uint64(i+1), 1)
			if err := c.Append(&b.entries, &e); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := newBatch(0)
	fill(b)
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	var like *batch
	if n, size := allocated(func() { like = b.like() }), uint64(b.size()); n < size || n > size*5/4+4<<10 {
		t.Errorf("%d bytes of memory for a batch of %d", n, size)
	}
	again := allocated(func() { b.reset(); fill(b) }) // what it takes where there is room
	if n := allocated(func() { fill(like) }); n > again+4<<10 {
		t.Errorf("filling it allocates %d bytes more than filling the one that it is like", n-again)
	}
}
