package recorder

import (
	"testing"
	"time"
)

// TestKeeper: three quarters of the ring stay in it, and less where the producer is quick: before the next look it must not come
// round to what is left.
func TestKeeper(t *testing.T) {
	for _, c := range []struct{ grown, keep uint64 }{{0, 768}, {1, 768}, {64, 768}, {65, 764}, {128, 512}, {256, 0}, {5000, 0}} {
		k := keeper{slots: 1024, produced: 9000}
		if got := k.keep(9000 + c.grown); got != c.keep || k.produced != 9000+c.grown {
			t.Errorf("%d more: keeps %d, want %d", c.grown, got, c.keep)
		}
	}
	k := keeper{slots: 1024}
	k.keep(200) // a burst
	for look := range 2000 {
		switch got := k.keep(200); {
		case look < 30 && got > 1024-4*100:
			t.Fatalf("%d looks after a burst of 200 it keeps %d", look, got)
		case look == 1999 && got != 768:
			t.Fatalf("long after it it keeps %d", got)
		}
	}
	k = keeper{slots: 64}
	k.keep(16)
	for range 16 { // in a small ring too
		k.keep(16)
	}
	if got := k.keep(17); got != 48 {
		t.Errorf("of 64 slots it keeps %d", got)
	}
	for _, slots := range []uint64{1, 2, 4} {
		k := keeper{slots: slots}
		if got := k.keep(1); got > slots/4*3 {
			t.Errorf("%d slots: keeps %d", slots, got)
		}
	}
}

// While storage takes nothing and the writer has all batches, the drainer neither waits for it nor asks again at once.
func TestAccepts(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	r := &Recorder{made: batches, work: make(chan work, batches), free: make(chan *batch, batches)}
	r.opts = Options{CommitInterval: time.Minute, Now: func() time.Time { return began.Add(time.Hour) }}
	b := &batch{ends: []int{1}, began: began}
	want := func(accepts bool, when string) {
		t.Helper()
		if due := r.untilDue(b) <= 0; r.accepts() != accepts || due != accepts {
			t.Errorf("%s: accepts %v, due %v, want %v", when, r.accepts(), due, accepts)
		}
	}
	want(true, "storage is well")
	r.stats.fault.Store(5)
	want(false, "no batch is free")
	r.made--
	want(true, "one can be made")
	r.made++
	r.free <- b
	want(true, "one is free")
	for range batches {
		r.work <- work{}
	}
	want(false, "the writer has as many as it may")
}
