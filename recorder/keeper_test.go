package recorder

import (
	"testing"
	"time"
)

// TestKeeper: three quarters of the ring stay in it, and less where the producer is quick: what is free lasts half a second.
func TestKeeper(t *testing.T) {
	const ms = time.Millisecond
	began := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		grown uint64
		took  time.Duration
		keep  uint64
	}{
		{0, 25 * ms, 768}, {12, 25 * ms, 768}, {13, 25 * ms, 764}, {25, 25 * ms, 524}, {52, 25 * ms, 0}, {5000, 25 * ms, 0}, {52, 250 * ms, 768},
		{1, ms, 524}, {1, 0, 524}, {1, -ms, 524}, {3, 0, 0}, {1 << 40, 25 * ms, 0},
	} {
		k := Keeper{slots: 1024, produced: 9000, looked: began}
		if got := k.Keep(9000+c.grown, began.Add(c.took)); got != c.keep || k.produced != 9000+c.grown {
			t.Errorf("%d more in %v: keeps %d, want %d", c.grown, c.took, got, c.keep)
		}
	}
	for _, slots := range []uint64{64, 1024, 1 << 20} {
		k := Keeper{slots: slots}
		if got := k.Keep(1<<40, began); got != slots/4*3 {
			t.Errorf("%d slots: before it knows the pace it keeps %d", slots, got)
		}
		k.Keep(1<<40+slots, began.Add(ms)) // a burst
		for look := range 2000 {
			switch got := k.Keep(1<<40+slots, began.Add(time.Duration(look)*25*ms)); {
			case look < 10 && got > slots/4:
				t.Fatalf("%d slots, %d looks after a burst: keeps %d", slots, look, got)
			case look == 1999 && got != slots/4*3:
				t.Fatalf("%d slots, long after a burst: keeps %d", slots, got)
			}
		}
	}
	for _, slots := range []uint64{1, 2, 4} {
		k := Keeper{slots: slots}
		if got := k.Keep(1, began); got > slots/4*3 {
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
