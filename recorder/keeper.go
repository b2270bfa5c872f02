package recorder

import "math"

// keeper leaves records in the ring while storage takes nothing. There they outlive this process, and take no memory that
// was not used for a while, which is what a step loop that has to share a machine with a recorder waits for most.
type keeper struct {
	slots    uint64
	produced uint64 // at the last look
	grown    uint64 // by so many at once, the most of late
}

// keep returns how many of the newest records stay in the ring, of which so many were produced: three quarters of the
// slots, and less where the producer was so quick in the last seconds that it might overrun them before the next looks.
func (k *keeper) keep(produced uint64) uint64 {
	k.grown = max(min(produced-k.produced, k.slots/4), k.grown*63/64)
	k.produced = produced
	return min(k.slots/4*3, k.slots-4*k.grown)
}

// takeUntil returns the sequence number before which records are taken from the ring at this look. A snapshot that is
// waited for comes after all records before it, and the end of a run, or of this recorder, after all.
func (r *Recorder) takeUntil(k *keeper, end bool) uint64 {
	produced := max(r.ring.Produced(), r.next)
	kept := min(k.keep(produced), produced)
	if end || r.stats.fault.Load() == 0 {
		return math.MaxUint64
	}
	if r.waiting != nil {
		return max(produced-kept, r.waiting.Seq)
	}
	return produced - kept
}
