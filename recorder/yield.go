package recorder

import "time"

const (
	calm  = time.Second            // how long nothing presses before the priority is lowered
	sated = 10 * time.Second       // how long it is not, where the machine has no processor for who is low
	tardy = 100 * time.Millisecond // between two looks: four times the longest pause
	late  = time.Second            // a snapshot that takes longer presses

	settles = 3 * time.Second // after which a recorder is taken to stay: one that is killed again and again has enough to do
)

// yielder gives the step loop the precedence on a processor that both want, as long as nothing presses: a recorder that is
// woken late has the ring to make up for it. Where there are many records at one look, it has not enough.
type yielder struct {
	set    func(low bool) (before bool, err error) // nil: it cannot be had
	low    bool
	late   bool      // the last look came late
	looked time.Time // the last look
	until  time.Time // not before then is it lowered
	said   time.Time // when it was lowered last
}

// look is told at each look at the ring whether something presses. Two looks in a row that come late do: others leave no
// processor to who is low. One alone may follow a stop of the process.
func (y *yielder) look(now time.Time, presses bool) {
	if y.set == nil {
		return
	}
	late := !y.looked.IsZero() && now.Sub(y.looked) > tardy
	if late && y.late {
		y.until = now.Add(sated)
	} else if presses && y.until.Before(now.Add(calm)) {
		y.until = now.Add(calm)
	}
	y.late, y.looked = late, now
	y.change(!now.Before(y.until))
}

// change lowers or raises the priority, where it is not so. What fails is tried again at the next look. Where somebody
// else has raised it, this recorder was too late: it has no processor when it is low. If it has not noticed why, such as a
// snapshot that it has taken since, it is lowered again after a while.
func (y *yielder) change(low bool) {
	if y.low == low && !(low && y.looked.Sub(y.said) >= sated) {
		return
	}
	before, err := y.set(low)
	if err != nil {
		return
	}
	y.low, y.said = low, y.looked
	if !low && !before {
		y.until = y.looked.Add(sated)
	}
}

// narrower has the process on one processor while it gives way and saves no snapshot, which is hashed while it is written.
type narrower struct {
	set func(on bool) // nil: nothing
	on  bool
}

// look is told at each look at the ring how it is.
func (n *narrower) look(low, saving bool) {
	if on := low && !saving; n.set != nil && n.on != on {
		n.on = on
		n.set(on)
	}
}

// settler makes a recorder that stays cheaper, a little at each look, while it gives way.
type settler struct {
	more func() bool // nil: nothing is left
	from time.Time
}

func (s *settler) look(now time.Time, low bool) {
	if s.more != nil && low && !now.Before(s.from) && !s.more() {
		s.more = nil
	}
}

// snapshotLate says whether the persister has been at work on one for long.
func (r *Recorder) snapshotLate(now time.Time) bool {
	began := r.stats.saving.Load()
	return began != 0 && now.UnixNano()-began > int64(late)
}
