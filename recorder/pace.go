package recorder

import (
	"context"
	"time"
)

// The waits between two looks at the ring.
const (
	shortestPause = 50 * time.Microsecond
	longestPause  = 25 * time.Millisecond
	soonestSlot   = 400 * time.Nanosecond // of a producer that a recorder can follow; to a quicker one the ring is lost in any case
)

// pace waits between two looks at the ring, the longer the fewer records the last one found: each look wakes a
// processor that the step loop may be computing on, and a record may as well wait in the ring as in the batch. A ring
// that is more than 1/32 full halves the wait, and above 1/8 there is none.
type pace struct {
	d, longest time.Duration
	busy, full int         // records found at once that shorten it
	timer      *time.Timer // nil before the first wait
}

// begins is how long a recorder is taken to be beginning. It may have taken over from one that died, and finds what came meanwhile.
const begins = time.Second

// Behind returns how many records wait in a ring of so many slots when its recorder, which has been at work for so long, does not keep up.
// A 32nd of the ring is no sign of that in its beginning, nor a reason for ordinary priority: that stays for a while.
func Behind(slots int, age time.Duration) int {
	if age < begins {
		return max(1, slots/4)
	}
	return max(1, slots/32)
}

// newPace is for a ring of so many slots, and records that are to be durable within so long. A producer that the recorder
// can follow must not overrun an empty ring within the longest wait; for a small ring that cannot be had, and the wait
// is 1 ms. Two looks at least share a commit interval.
func newPace(slots int, commit time.Duration) *pace {
	most := max(min(commit/2, longestPause), shortestPause)
	longest := min(max(time.Duration(min(slots, 1<<20))*soonestSlot, time.Millisecond), most)
	return &pace{longest: longest, busy: Behind(slots, begins), full: max(1, slots/8)}
}

// slowest reports whether the wait has reached its longest.
func (p *pace) slowest() bool { return p.d == p.longest }

// next returns how long to wait after a look that found n items.
func (p *pace) next(n int) time.Duration {
	switch {
	case n >= p.full:
		p.d = 0
		return 0
	case n >= p.busy:
		p.d /= 2
	default:
		p.d *= 2
	}
	p.d = min(max(p.d, shortestPause), p.longest)
	return p.d
}

// wait waits after a look that found n items, at most so long.
func (p *pace) wait(ctx, failed context.Context, n int, most time.Duration) {
	d := min(p.next(n), most)
	if d <= 0 {
		return
	}
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	defer p.timer.Stop()
	select {
	case <-p.timer.C:
	case <-ctx.Done():
	case <-failed.Done():
	}
}
