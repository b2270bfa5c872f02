package recorder

import (
	"math"
	"time"
)

// ahead is for how long the free part of a ring is to last at the producer's pace: a recorder that gives way may find no processor
// for about as long before the loop's side raises it.
const ahead = 500 * time.Millisecond

// Keeper tells how many records a recorder leaves in the ring while storage takes nothing. There they outlive its process,
// and take no memory that was not used for a while, which is what a step loop that has to share a machine with a recorder
// waits for most. It is looked at all the time, for the producer's pace.
type Keeper struct {
	slots    uint64
	produced uint64 // at the last look
	looked   time.Time
	free     uint64 // slots that are to be free, the most of late
}

// NewKeeper is for a ring of so many slots.
func NewKeeper(slots int) Keeper { return Keeper{slots: uint64(slots)} }

// Keep returns how many of the newest records stay in the ring, of which so many were produced by now: three quarters of the
// slots, and less where the producer was so quick of late that the rest would be overrun ahead.
func (k *Keeper) Keep(produced uint64, now time.Time) uint64 {
	grown, took := min(produced-k.produced, k.slots), max(now.Sub(k.looked), time.Millisecond)
	k.produced, k.looked = produced, now
	k.free = max(min(grown*uint64(ahead)/uint64(took), k.slots), k.free*63/64)
	return min(k.slots/4*3, k.slots-k.free)
}

// takeUntil returns the sequence number before which records are taken from the ring at this look. A snapshot that is
// waited for comes after all records before it, and the end of a run, or of this recorder, after all.
func (r *Recorder) takeUntil(k *Keeper, now time.Time, end bool) uint64 {
	produced := max(r.ring.Produced(), r.next)
	kept := min(k.Keep(produced, now), produced)
	if end || r.stats.fault.Load() == 0 {
		return math.MaxUint64
	}
	if r.waiting != nil {
		return max(produced-kept, r.waiting.Seq)
	}
	return produced - kept
}
