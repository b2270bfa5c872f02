package recorder

import (
	"math"
	"time"
)

const (
	// ahead is for how long the free part of a ring is to last at the producer's pace: a recorder that gives way may find no
	// processor for about as long before the loop's side raises it.
	ahead = 500 * time.Millisecond
	// paceWindow is over what the pace is taken. In less than that all are taken as if they were its: a burst is no pace.
	paceWindow = ahead / 2
	// easing is how long a pace that is over counts: half of it after two thirds of that.
	easing = 16 * paceWindow
)

// Keeper tells how many records a recorder leaves in the ring while storage takes nothing. There they outlive its process,
// and take no memory that was not used for a while, which is what a step loop that has to share a machine with a recorder
// waits for most. It is asked all the time, for the producer's pace.
type Keeper struct {
	slots    uint64
	produced uint64 // when the window began
	began    time.Time
	free     uint64 // slots that are to be free, for the quickest window of late
}

// NewKeeper is for a ring of so many slots.
func NewKeeper(slots int) Keeper { return Keeper{slots: uint64(slots)} }

// Keep returns how many of the newest records stay in the ring, of which so many were produced by now: three quarters of the
// slots, and less where the producer was so quick of late that the rest would be overrun ahead.
func (k *Keeper) Keep(produced uint64, now time.Time) uint64 {
	grown, took := min(produced-k.produced, k.slots), now.Sub(k.began)
	free := min(grown*uint64(ahead)/uint64(max(took, paceWindow)), k.slots)
	if took >= paceWindow {
		eased := k.free*uint64(min(took, easing))/uint64(easing) + 1
		k.free = max(free, k.free-min(eased, k.free))
		k.produced, k.began = produced, now
	}
	return min(k.slots/4*3, k.slots-max(free, k.free))
}

// takeUntil returns the sequence number before which records are taken from the ring at this look. While storage takes nothing
// the Keeper says how many stay, but a snapshot that is waited for comes after all that is before it. Where the producer has
// ended nothing is overrun any more, and where this recorder is to stop the next one finds the ring: then all stay.
func (r *Recorder) takeUntil(k *Keeper, now time.Time, stop, ended bool) uint64 {
	produced := max(r.ring.Produced(), r.next)
	kept := min(k.Keep(produced, now), produced)
	switch {
	case r.stats.fault.Load() == 0, ended && !stop && r.stats.gaveUp.Load():
		return math.MaxUint64
	case stop || ended:
		return r.next
	case r.waiting != nil:
		return max(produced-kept, r.waiting.Seq)
	}
	return produced - kept
}
