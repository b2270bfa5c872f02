package usp

import (
	"time"

	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// liftInterval is how often a recorder is looked at. It is a part of the patience that the end of a run has with one that makes
// no progress.
const liftInterval = 250 * time.Millisecond

// lifter raises the priority of a recorder that has lowered it and is left too little by others to notice that it does not keep
// up any more, that a state waits to be saved, or that the run has ended.
type lifter struct {
	ring   *ring.Consumer // looks only; the producer is for the goroutine that emits
	kept   recorder.Keeper
	pid    int       // of the recorder that was looked at last
	since  time.Time // when it was looked at first
	staged uint64    // 1 + the ticket of the state that nobody had taken at the last look; 0: there was none
	tick   *time.Ticker
}

// newLifter returns nil where a recorder cannot be raised, or its ring not looked at.
func newLifter(path string) *lifter {
	if !priority.Sessions() {
		return nil
	}
	c, err := ring.Open(path)
	if err != nil { // such as one that a recorder has finished with and removed
		return nil
	}
	return &lifter{ring: c, kept: recorder.NewKeeper(c.Header().Slots), tick: time.NewTicker(liftInterval)}
}

// when returns the channel of the times to look, one that never sends for nil.
func (l *lifter) when() <-chan time.Time {
	if l == nil {
		return nil
	}
	return l.tick.C
}

// look raises the recorder that runs as the given process, if it needs that now. An error passes with the next look.
func (l *lifter) look(pid int, now time.Time) {
	if l.needs(pid, now) {
		_ = priority.RaiseSession(pid)
	}
}

// begun lowers the recorder that has begun to take over as the given process, unless it would be raised at once: the loop is at work, and does
// not wait for it. Where nobody can raise it, it lowers itself when it can.
func (l *lifter) begun(pid int, now time.Time) {
	if l != nil && !l.needs(pid, now) {
		_ = priority.LowerSession(pid)
	}
}

// needs says whether the recorder has more to do than it seems to notice.
func (l *lifter) needs(pid int, now time.Time) bool {
	state, seen, produced := l.ring.State(), l.ring.Published(), l.ring.Produced()
	kept := l.kept.Keep(produced, now)
	if pid != l.pid {
		l.pid, l.since = pid, now
	}
	behind := uint64(recorder.Behind(l.ring.Header().Slots, now.Sub(l.since)))
	if seen.Fault != 0 && seen.PID == pid { // its storage takes nothing
		behind += kept
	}
	return l.untaken() || state == ring.StateClosed || state == ring.StateFailed || produced >= seen.Position+behind
}

// untaken says whether the oldest staged state waits since the last look at least: one recorder looks ten times meanwhile.
func (l *lifter) untaken() bool {
	before := l.staged
	l.staged = 0
	if ticket, ok := l.ring.Untaken(); ok {
		l.staged = 1 + ticket
	}
	return l.staged != 0 && l.staged == before
}

func (l *lifter) close() {
	if l != nil {
		l.tick.Stop()
		_ = l.ring.Close()
	}
}
