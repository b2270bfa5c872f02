//go:build unix

package ring

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// TestStress runs both ends at full speed over rings of various sizes, with
// payloads that would show any mix of two records, and counts.
func TestStress(t *testing.T) {
	emits := 300_000
	if testing.Short() || raceEnabled {
		emits = 30_000
	}
	for _, c := range []struct{ words, slots, batch int }{
		{1, 2, 1}, {26, 2, 1}, {26, 4, 3}, {5, 64, 16}, {129, 8, 2}, {26, 1 << 12, 64},
	} {
		p := mustCreate(t, Config{PayloadLen: 8 * c.words, Slots: c.slots})
		r := mustOpen(t, p.Path())
		var done atomic.Bool
		var wg sync.WaitGroup
		var got, lost uint64
		wg.Go(func() { got, lost = readAll(t, r, c.batch, &done) })
		w := make([]uint64, c.words)
		for i := range emits {
			p.Emit(fill(w, uint64(i)))
			if i%1000 == 0 {
				runtime.Gosched()
			}
		}
		done.Store(true)
		wg.Wait()
		if got+lost != uint64(emits) || r.Produced() != uint64(emits) {
			t.Errorf("%+v: got %d + lost %d != emitted %d, produced %d", c, got, lost, emits, r.Produced())
		}
		t.Logf("%+v: got %d lost %d", c, got, lost)
	}
}

// readAll reads until there is nothing more after done, and checks number and
// content of everything.
func readAll(t *testing.T, r *Consumer, batch int, done *atomic.Bool) (got, lost uint64) {
	words := r.Header().Words()
	w, want := make([]uint64, batch*words), make([]uint64, words)
	for {
		last, next := done.Load(), got+lost
		first, n, st := r.NextBatch(w)
		if first != next {
			t.Errorf("%v number %d, want %d", st, first, next)
			return got, lost
		}
		for i := range n {
			if rec := w[i*words : (i+1)*words]; !slices.Equal(rec, fill(want, next+uint64(i))) {
				t.Errorf("record %d is %x, want %x", next+uint64(i), rec, want)
				return got, lost
			}
		}
		got += uint64(n)
		switch st {
		case Lost:
			from, to, reason := r.LostRange()
			if from != next || reason != Overrun {
				t.Errorf("lost [%d, %d) %v at %d", from, to, reason, next)
				return got, lost
			}
			lost += to - from
		case Empty:
			if last {
				return got, lost
			}
			runtime.Gosched()
		}
	}
}
