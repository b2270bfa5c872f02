package recorder

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
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

// What is written off joins the lost ranges behind which nothing is held, unless these are stored in part; each record counts once.
func TestWriteOff(t *testing.T) {
	held := func(from, to uint64) work { return work{batch: &batch{first: from, next: to}} }
	lost := func(from, to uint64, written bool) work {
		b := &batch{first: from, next: to, written: written}
		b.addSpan(span{from, to, record.LostStorage})
		return work{batch: b}
	}
	snapshot := work{staged: new(ring.Staged)}
	for name, test := range map[string]struct {
		held  []work
		off   work
		lost  uint64 // more than before
		spans []span // of the last batch
		n     int    // held then
	}{
		"none before":         {nil, held(5, 9), 4, []span{{5, 9, record.LostStorage}}, 1},
		"behind held ones":    {[]work{held(1, 5)}, held(5, 9), 4, []span{{5, 9, record.LostStorage}}, 2},
		"behind lost ones":    {[]work{held(0, 1), lost(1, 5, false)}, held(5, 9), 4, []span{{1, 9, record.LostStorage}}, 2},
		"behind a snapshot":   {[]work{lost(1, 5, false), snapshot}, held(5, 9), 4, []span{{1, 9, record.LostStorage}}, 2},
		"behind written ones": {[]work{lost(1, 5, true)}, held(5, 9), 4, []span{{5, 9, record.LostStorage}}, 2},
		"written off before":  {[]work{lost(1, 5, false)}, lost(5, 9, false), 0, []span{{1, 9, record.LostStorage}}, 1},
		"with a loss in itself": {nil, work{batch: &batch{first: 1, next: 9, ranges: []span{{3, 6, record.LostOverrun}}}}, 5,
			[]span{{1, 3, record.LostStorage}, {3, 6, record.LostOverrun}, {6, 9, record.LostStorage}}, 1},
	} {
		r := &Recorder{trouble: trouble{held: test.held, lost: 100}}
		r.writeOff(test.off.batch)
		last := r.trouble.newest()
		if got := r.trouble.lost - 100; got != test.lost || len(r.trouble.held) != test.n || !slices.Equal(last.spans, test.spans) || last.next != 9 || last.first != test.spans[0].from {
			t.Errorf("%s: %d more are lost, %d held, the last %+v", name, got, len(r.trouble.held), last)
		}
	}
}

// When one batch found no room in memory a smaller one finds none either, until half of what may be held is stored.
func TestHoldWhenFull(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	r := &Recorder{free: make(chan *batch, batches)}
	r.opts = Options{HoldBytes: 1000, Now: func() time.Time { return began }}
	r.trouble.said = began
	next := uint64(0)
	hold := func(bytes int) (held bool) {
		b := &batch{first: next, next: next + 1, frames: make([]byte, bytes), stored: 1}
		next++
		r.hold(work{batch: b})
		return r.trouble.newest() == b && len(b.spans) == 0
	}
	for i, c := range []struct {
		bytes int
		held  bool
	}{{600, true}, {500, false}, {10, false}, {1, false}} {
		if held := hold(c.bytes); held != c.held {
			t.Errorf("batch %d, of %d bytes: held %v", i, c.bytes, held)
		}
	}
	if b := r.trouble.newest(); len(r.trouble.held) != 2 || !slices.Equal(b.spans, []span{{1, 4, record.LostStorage}}) {
		t.Errorf("%d are held, the last %+v", len(r.trouble.held), b)
	}
}
