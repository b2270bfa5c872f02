package recorder

import "time"

const (
	calm = time.Second // how long nothing presses before the priority is lowered
	late = time.Second // a snapshot that takes longer presses
)

// yielder gives the step loop the precedence on a processor that both want, as long as nothing presses: a recorder that is
// woken late has the ring to make up for it. Where there are many records at one look, it has not enough.
type yielder struct {
	set     func(low bool) error // nil: it cannot be had
	low     bool
	pressed time.Time // when something did, the last time
}

// look is told at each look at the ring whether something presses.
func (y *yielder) look(now time.Time, presses bool) {
	switch {
	case y.set == nil:
	case presses:
		y.pressed = now
		y.change(false)
	case now.Sub(y.pressed) >= calm:
		y.change(true)
	}
}

// change lowers or raises the priority, where it is not so. What fails is tried again at the next look.
func (y *yielder) change(low bool) {
	if y.low != low && y.set(low) == nil {
		y.low = low
	}
}

// snapshotLate says whether the persister has been at work on one for long.
func (r *Recorder) snapshotLate(now time.Time) bool {
	began := r.stats.saving.Load()
	return began != 0 && now.UnixNano()-began > int64(late)
}
