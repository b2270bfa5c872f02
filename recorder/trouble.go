package recorder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

const (
	retryFirst   = 50 * time.Millisecond // between two tries to write to storage that failed; doubles
	retryLongest = time.Second
	remindEvery  = time.Minute // between two messages about the same trouble
	maxSpans     = 64          // lost ranges of one written-off batch; further ones are merged, so that they fit a segment's reserve
	smallSegment = 64 << 10    // preallocated size of a segment that is begun out of the reserve
	reserveSize  = 256 << 10   // bytes of the reserve file: two small segments and the head
)

// trouble is what the writer knows of storage that takes nothing. While it lasts the newest records stay in the ring, see
// Keeper. What has to leave it is held in memory, and when that is full the sequence numbers of what follows become lost
// ranges: what is held first stays, as memory that is used in turns is memory that a processor has to wait for.
type trouble struct {
	err       error // why; nil: storage is well
	since     time.Time
	said      time.Time // when the last message was written
	held      []work    // in ring order; the oldest batch may be stored in part
	bytes     int       // of the batches in held
	full      bool      // a batch found no room; until half of it is free again none does, so that what is lost is one range
	lost      uint64    // records written off
	pause     time.Duration
	next      *time.Timer // when to try again
	patience  *time.Timer // when a run that has ended gives up; nil: it goes on
	headSaid  time.Time
	headFault string
}

// on says whether storage takes nothing.
func (t *trouble) on() bool { return t.err != nil }

// wake fires when storage is to be tried again.
func (t *trouble) wake() <-chan time.Time {
	if !t.on() {
		return nil
	}
	return t.next.C
}

// giveUp fires when the end of the run has waited long enough.
func (t *trouble) giveUp() <-chan time.Time {
	if t.patience == nil {
		return nil
	}
	return t.patience.C
}

// arm starts the wait of a run that has ended, once.
func (t *trouble) arm(d time.Duration) {
	if t.patience == nil {
		t.patience = time.NewTimer(d)
	}
}

// isStorage says whether an error is one of the file system: of that kind it may be over in a moment.
func isStorage(err error) bool {
	if err == nil {
		return false // at once: what follows allocates
	}
	var path *fs.PathError
	var link *os.LinkError
	var errno syscall.Errno
	return errors.As(err, &path) || errors.As(err, &link) || errors.As(err, &errno)
}

// begin notes that storage takes nothing.
func (r *Recorder) begin(err error) {
	t := &r.trouble
	now := r.opts.Now()
	t.err, t.since, t.said, t.lost, t.pause = err, now, now, 0, retryFirst
	t.next = time.NewTimer(t.pause)
	r.stats.fault.Store(uint64(errno(err)))
	r.logger().Error("storage takes nothing; records stay in the ring, then in memory, and are then written off until it does",
		"run", r.header.RunID, "err", err, "hold_bytes", r.opts.HoldBytes)
}

// errno is the number for the ring.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) && e != 0 {
		return e
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return syscall.EACCES
	}
	return syscall.EIO
}

// hold keeps an item, or that it is lost, until storage is well. The drainer gets another batch in its place, and of
// snapshots the oldest is given up when no area would be left for the producer's next, if there can be one.
func (r *Recorder) hold(w work) {
	t := &r.trouble
	if w.staged != nil {
		t.held = append(t.held, w)
		n := 0
		for _, h := range t.held {
			if h.staged != nil {
				n++
			}
		}
		if r.tooManyWait(n) {
			i := slices.IndexFunc(t.held, func(h work) bool { return h.staged != nil })
			r.giveUpSnapshot(t.held[i].staged)
			t.held = slices.Delete(t.held, i, i+1)
		}
		return
	}
	spare := w.batch
	t.full = t.full || t.bytes+w.batch.size() > r.opts.HoldBytes
	if w.batch.written || !t.full {
		t.held = append(t.held, w)
		t.bytes += w.batch.size()
		spare = w.batch.like() // what is held takes no more memory than it has bytes
	} else {
		r.writeOff(w.batch)
	}
	select {
	case r.free <- spare:
	default: // this one was held before
	}
	r.countHeld()
	r.remind()
}

// writeOff turns a batch of which nothing is stored yet into lost ranges, which come after all that is held.
func (r *Recorder) writeOff(b *batch) {
	t := &r.trouble
	off := t.newest()
	if off == nil || off.written || len(off.spans) == 0 {
		off = &batch{first: b.first}
		t.held = append(t.held, work{batch: off})
	}
	t.lost -= off.lostStorage() + b.lostStorage()
	off.takeOver(b)
	t.lost += off.lostStorage()
}

// newest returns the batch that was held last, or nil.
func (t *trouble) newest() *batch {
	for _, w := range slices.Backward(t.held) {
		if w.batch != nil {
			return w.batch
		}
	}
	return nil
}

// span is a range of sequence numbers that are lost.
type span struct {
	from, to uint64
	reason   record.LostReason
}

// takeOver adds what b held as lost ranges: its records to storage, what was lost in it before for its own reason.
func (b *batch) takeOver(from *batch) {
	b.next = from.next
	if len(from.spans) > 0 { // it was written off before
		for _, s := range from.spans {
			b.addSpan(s)
		}
		return
	}
	at := from.first
	for _, s := range from.ranges {
		b.addSpan(span{at, s.from, record.LostStorage})
		b.addSpan(s)
		at = s.to
	}
	b.addSpan(span{at, from.next, record.LostStorage})
}

func (b *batch) addSpan(s span) {
	if s.from >= s.to {
		return
	}
	if n := len(b.spans); n > 0 {
		last := &b.spans[n-1]
		if last.reason == s.reason {
			last.to = s.to
			return
		}
		if n == maxSpans { // of two reasons the one that could have been helped
			last.to, last.reason = s.to, record.LostStorage
			return
		}
	}
	b.spans = append(b.spans, s)
}

// lostStorage counts the records of a written-off batch that storage did not take.
func (b *batch) lostStorage() (n uint64) {
	if b == nil {
		return 0
	}
	for _, s := range b.spans {
		if s.reason == record.LostStorage {
			n += s.to - s.from
		}
	}
	return n
}

// fillSpans makes frames and entries of the lost ranges of a written-off batch.
func (b *batch) fillSpans(r *Recorder) error {
	if len(b.spans) == 0 || b.written {
		return nil
	}
	b.entries.Reset()
	b.frames, b.ends, b.ranges, b.lost = b.frames[:0], b.ends[:0], b.ranges[:0], 0
	var c digestlog.Encoder // the drainer has its own
	for _, s := range b.spans {
		if err := r.addLost(&c, b, s); err != nil {
			return err
		}
	}
	return nil
}

// retry tries to store what is held, the oldest first.
func (r *Recorder) retry() error {
	t := &r.trouble
	err := r.present()
	for err == nil && len(t.held) > 0 {
		size := t.held[0].heldBytes() // before it is the drainer's again
		if err = r.place(t.held[0]); err == nil {
			t.bytes -= size
			t.full = t.full && t.bytes > r.opts.HoldBytes/2
			t.held = t.held[1:]
			r.takeWaiting()
		}
	}
	r.countHeld()
	if err == nil {
		err = r.syncLog() // of the calls that wait
	}
	if err == nil {
		return r.relieved()
	}
	if !isStorage(err) {
		return err
	}
	t.err = err
	r.stats.fault.Store(uint64(errno(err)))
	t.pause = min(2*t.pause, retryLongest)
	t.next.Reset(t.pause)
	r.remind()
	return nil
}

// takeWaiting holds what waits to be stored: the drainer must not wait until all that is held is stored, for which the free
// part of the ring may not last.
func (r *Recorder) takeWaiting() {
	for {
		select {
		case w, ok := <-r.work:
			if ok {
				r.hold(w)
				continue
			}
		default:
		}
		return
	}
}

// relieved ends the trouble: everything held is stored. The auditor is told how long it was and what it cost.
func (r *Recorder) relieved() error {
	t := &r.trouble
	took := r.opts.Now().Sub(t.since).Round(time.Millisecond)
	why, lost := t.err, t.lost
	t.next.Stop()
	if t.patience != nil {
		t.patience.Stop()
	}
	*t = trouble{headSaid: t.headSaid, headFault: t.headFault}
	r.stats.fault.Store(0)
	r.stats.gaveUp.Store(false)
	r.logger().Warn("storage takes records again", "run", r.header.RunID, "after", took, "lost", lost)
	r.sealLeft()
	err := r.append(&digestlog.Entry{
		Kind: digestlog.KindEvent, Generation: r.generation, Seq: r.stats.synced.Load(), Code: digestlog.EventStorage,
		Text: digestlog.CleanText(fmt.Sprintf("nothing could be written for %v (%v); %d records lost", took, errno(why), lost)),
	})
	if err == nil {
		err = r.syncLog()
	}
	if isStorage(err) { // it was not over
		r.begin(err)
		return nil
	}
	return err
}

// lastResort ends a run of which the drainer has taken all and whose storage has not come back, which is looked at once
// more: what is held is written off, and the lost ranges and the end go into the space that was reserved for them.
func (r *Recorder) lastResort() error {
	t := &r.trouble
	if err := r.retry(); err != nil || !t.on() {
		return err
	}
	if err := r.present(); err != nil {
		return fmt.Errorf("the run cannot be closed: %w", err)
	}
	if err := r.removeReserve(); err != nil {
		r.logger().Warn("the reserve cannot be given back", "err", err)
	}
	r.reserveOpen = true
	r.log.UseReserve()
	held := t.held
	t.held = nil
	for _, w := range held {
		if w.staged != nil || w.batch.written {
			t.held = append(t.held, w)
		} else {
			r.writeOff(w.batch)
		}
	}
	for _, w := range t.held {
		if w.staged != nil {
			r.endWithout(w.staged.Step, 1)
			continue
		}
		if err := r.store(w.batch); err != nil {
			return fmt.Errorf("the run cannot be closed: %w", err)
		}
	}
	t.held, t.bytes = nil, 0
	r.countHeld()
	if err := r.syncLog(); err != nil {
		return fmt.Errorf("the run cannot be closed: %w", err)
	}
	return r.relieved()
}

// present reports whether the files being written are where the run directory has them: a directory that was removed or
// moved away takes writes as if nothing had happened.
func (r *Recorder) present() error {
	names := []string{r.dir.Manifest(r.generation)}
	if w := r.telemetry; w != nil && w.Err() == nil {
		names = append(names, w.Path())
	}
	for _, name := range names {
		if _, err := r.fs().Stat(name); err != nil {
			return fmt.Errorf("the run directory is not there any more: %w", err)
		}
	}
	return nil
}

func (r *Recorder) countHeld() {
	n := uint64(0)
	for _, w := range r.trouble.held {
		if b := w.batch; b != nil && len(b.spans) == 0 {
			n += b.stored
		}
	}
	r.stats.held.Store(n)
}

// heldBytes is what a held item counts for in Options.HoldBytes.
func (w work) heldBytes() int {
	if w.batch == nil || len(w.batch.spans) > 0 {
		return 0
	}
	return w.batch.size()
}

// remind repeats the message about trouble now and then.
func (r *Recorder) remind() {
	t := &r.trouble
	if now := r.opts.Now(); now.Sub(t.said) >= remindEvery {
		t.said = now
		r.logger().Error("storage still takes nothing", "run", r.header.RunID, "for", now.Sub(t.since).Round(time.Second),
			"err", t.err, "held", r.stats.held.Load(), "lost", t.lost)
	}
}

// sayLate reports a head that could not be written, once for each fault and minute.
func (r *Recorder) sayLate(err error) {
	t := &r.trouble
	now, what := r.opts.Now(), errno(err).Error()
	if what == t.headFault && now.Sub(t.headSaid) < remindEvery {
		return
	}
	t.headFault, t.headSaid = what, now
	r.logger().Warn("the signed head is late: it cannot be written", "run", r.header.RunID, "err", err)
}

// segmentReserve is the space that a telemetry segment of that size keeps for lost ranges and its footer.
func segmentReserve(size int64) int64 { return min(64<<10, size/16) }

// minSegment is the least size of a segment, where the disk has no space for more: one batch must fit.
func (o *Options) minSegment() int64 { return min(o.SegmentSize, 2*int64(o.CommitBytes)+256<<10) }

// logReserve is the space that a file of the log keeps: for the entries of a batch whose telemetry is written, and the end.
func (o *Options) logReserve() int64 { return int64(o.CommitBytes) + 64<<10 }

// makeReserve takes the space of the reserve file, to be given back for the end of the run when there is none. Without it a full disk may lack room for the end, which is no reason
// not to begin.
func (r *Recorder) makeReserve() {
	path := r.dir.Reserve()
	if _, err := r.fs().Stat(path); err == nil {
		return
	}
	err := vfs.Create(r.fs(), path, 0o600, func(f vfs.File) error { return f.Preallocate(reserveSize) })
	if err != nil {
		r.logger().Warn("no space could be reserved for the end of the run", "file", filepath.Base(path), "err", err)
	}
}

// removeReserve gives the space back.
func (r *Recorder) removeReserve() error {
	if err := r.fs().Remove(r.dir.Reserve()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give the reserve back: %w", err)
	}
	return nil
}
