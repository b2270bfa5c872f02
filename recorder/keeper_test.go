package recorder

import (
	"testing"
	"time"

	"github.com/usp-project/usp/ring"
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
		{0, 25 * ms, 768}, {1, ms, 768}, {1, 0, 768}, {1, -ms, 768}, // nothing to speak of
		{128, 25 * ms, 768}, {129, ms, 766}, {400, -ms, 224}, {512, 25 * ms, 0}, {5000, 25 * ms, 0}, {1 << 40, 25 * ms, 0}, // at once
		{128, 250 * ms, 768}, {129, 250 * ms, 766}, {256, 500 * ms, 768}, {600, time.Second, 724}, {5000, time.Minute, 768}, // a pace
	} {
		k := Keeper{slots: 1024, produced: 9000, began: began}
		now := began.Add(c.took)
		if got := k.Keep(9000+c.grown, now); got != c.keep || (k.began == now) != (c.took >= 250*ms || c.took == 0) {
			t.Errorf("%d more in %v: keeps %d, want %d; %+v", c.grown, c.took, got, c.keep, k)
		}
	}
	for _, slots := range []uint64{1, 2, 4, 64} {
		k := Keeper{slots: slots}
		if got := k.Keep(1<<40, began); got != slots/4*3 {
			t.Errorf("%d slots: before it knows the pace it keeps %d", slots, got)
		}
	}
}

// A pace that is over counts less and less, and as much whether it is looked at often, as by a recorder, or not, as by its loop.
func TestKeeperEases(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	for _, slots := range []uint64{16, 64, 1024, 1 << 16, 1 << 24} {
		for _, look := range []time.Duration{time.Millisecond, 25 * time.Millisecond, 250 * time.Millisecond} {
			k := Keeper{slots: slots}
			at := func(now time.Duration) uint64 { // the ring is filled once, in a second
				return k.Keep(1<<40+slots*uint64(min(now, time.Second))/uint64(time.Second), began.Add(now))
			}
			for now := time.Duration(0); now <= time.Minute; now += look {
				got, half := at(now), slots/2
				switch {
				case now == time.Second && (got < half-half/8 || got > half+half/8):
					t.Errorf("%d slots, looked at every %v: keeps %d at the pace of half of them", slots, look, got)
				case now == 1500*time.Millisecond && got > slots*5/8, now == 4*time.Second && got < slots*5/8:
					t.Errorf("%d slots, looked at every %v: keeps %d %v later", slots, look, got, now-time.Second)
				case now == time.Minute && got != slots/4*3:
					t.Errorf("%d slots, looked at every %v: keeps %d long after", slots, look, got)
				}
			}
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
		if due := r.untilDue(b) <= 0; r.accepts(1) != accepts || due != accepts {
			t.Errorf("%s: accepts %v, due %v, want %v", when, r.accepts(1), due, accepts)
		}
		r.waiting = &ring.Staged{}
		if _, ok := r.nextStaged(true); !ok {
			t.Errorf("%s: a snapshot must wait at the end", when)
		}
		r.waiting = &ring.Staged{}
		if _, ok := r.nextStaged(false); ok != (accepts && (r.stats.fault.Load() == 0 || len(r.work) < batches-1)) {
			t.Errorf("%s: a snapshot's turn has come: %v", when, ok)
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
	for range batches - 1 {
		r.work <- work{}
	}
	want(true, "it may have one more")
	r.work <- work{}
	want(false, "the writer has as many as it may")
}
