package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
)

// ErrAhead is wrapped by the error for a destination that has more of the run than the run directory: the machine lost
// what was not on stable storage yet, or the directory is an older copy.
var ErrAhead = errors.New("sink: the destination is ahead of the run directory")

// ErrTimeout is wrapped by the error of a call that has not come back in time.
var ErrTimeout = errors.New("sink: no answer in time")

// ErrPatience is wrapped by the error for a destination that has taken nothing for Options.Patience.
var ErrPatience = errors.New("sink: the destination takes nothing")

// Options say how a sink is run. The zero value of each field but Dir and Name is replaced by its default.
type Options struct {
	Dir  rundir.Dir
	Name string // of the cursor file

	SyncEvery time.Duration // longest time from Write to Sync; default 1 s
	Timeout   time.Duration // of each call of the sink; default 30 s

	Pace
}

func (o Options) withDefaults() Options {
	o.Pace = o.Pace.WithDefaults(100*time.Millisecond, 200*time.Millisecond)
	orDefault(&o.SyncEvery, time.Second)
	orDefault(&o.Timeout, 30*time.Second)
	return o
}

// runner brings one run to one sink.
type runner struct {
	opts   Options
	sink   Sink
	status Status

	follower *Follower // nil: the sink is to be begun
	unsynced bool      // something was written since the last Sync
	synced   time.Time // when that was

	tries Tries
}

// Bring brings the records of a run to a sink, from its cursor on, until the destination has for good what can be had: all of
// a run that has ended, but for the frames of a segment that is not sealed where the sink takes only whole ones. What
// fails is tried again, later and later; the recorder notices nothing of it. It returns when all is done, when ctx ends
// (with its error, the cursor saved as far as it is known), or with an error that no retry mends. It closes the sink.
func Bring(ctx context.Context, o Options, s Sink) error {
	r := &runner{opts: o.withDefaults(), sink: s}
	var err error
	if r.status, err = ReadStatus(r.opts.FS, o.Dir, o.Name); err != nil {
		return err
	}
	defer r.close()
	for {
		done, err := r.work(ctx)
		switch {
		case done, ctx.Err() != nil:
			return errors.Join(ctx.Err(), r.leave(ctx))
		case err == nil:
			r.tries.Well(ctx, &r.opts.Pace)
			continue
		}
		r.fault(err)
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrAhead) {
			return fmt.Errorf("%s: %w", o.Name, err)
		}
		r.abandon()
		if err := r.tries.Failed(ctx, &r.opts.Pace, err); err != nil {
			return fmt.Errorf("%s: %w", o.Name, err)
		}
	}
}

// work brings what there is. done: there will not be more.
func (r *runner) work(ctx context.Context) (done bool, err error) {
	if r.follower == nil {
		if err := r.begin(ctx); err != nil {
			return false, err
		}
	}
	more := r.opts.Recorded() // asked before the end is looked for, so that nothing comes in unseen
	for ctx.Err() == nil {
		b, err := r.follower.Next()
		if errors.Is(err, io.EOF) {
			if err := r.sync(ctx, !more || r.trails()); err != nil {
				return false, err
			}
			return !more, nil
		}
		if err != nil {
			return false, err
		}
		if err := r.call(ctx, "write", func(ctx context.Context) error { return r.sink.Write(ctx, b) }); err != nil {
			return false, err
		}
		r.status.Records += uint64(b.Records())
		r.unsynced = true
		if err := r.sync(ctx, false); err != nil {
			return false, err
		}
	}
	return false, nil
}

// trails says whether it is time to bring what the sink has beside frames.
func (r *runner) trails() bool {
	t, ok := r.sink.(Trailing)
	return ok && r.opts.Now().Sub(r.synced) >= r.opts.SyncEvery && t.Trails()
}

// begin opens the sink and the segments at the place it wants.
func (r *runner) begin(ctx context.Context) error {
	line, err := audit.Open(r.opts.FS, r.opts.Dir.Path())
	if err != nil {
		return err
	}
	newest := line.Manifests[len(line.Manifests)-1].Generation
	run := Run{ID: line.RunID, Schema: line.Schema(newest)}
	from := r.status.Cursor()
	err = r.call(ctx, "open", func(ctx context.Context) (err error) {
		from, err = r.sink.Begin(ctx, run, from)
		return err
	})
	if err != nil {
		return err
	}
	end, err := End(r.opts.FS, r.opts.Dir)
	if err != nil {
		return err
	}
	if from.Next > end {
		return fmt.Errorf("%w: it has the frames before %d, and the run ends at %d", ErrAhead, from.Next, end)
	}
	r.follower = Follow(r.opts.FS, r.opts.Dir, from.Next)
	r.follower.Damaged = func(err error) {
		r.opts.Logger.Warn("telemetry that cannot be read is left out; usp verify says more", "run", run.ID, "sink", r.opts.Name, "err", err)
	}
	r.synced, r.unsynced = r.opts.Now(), false
	return r.reached(from, false)
}

// sync makes what was written durable, if it is time or has to be, and saves the cursor. The end of a run is told to the
// sink by a last Sync though no frame has come since: there may be more of a run than its frames. After a fault it is time
// at once, since that alone says whether the destination is well.
func (r *runner) sync(ctx context.Context, now bool) error {
	if !now && r.status.Fault == "" && (!r.unsynced || r.opts.Now().Sub(r.synced) < r.opts.SyncEvery) {
		return nil
	}
	var at Cursor
	err := r.call(ctx, "sync", func(ctx context.Context) (err error) {
		at, err = r.sink.Sync(ctx)
		return err
	})
	if err != nil {
		return err
	}
	r.unsynced, r.synced = at.Next < r.follower.Position() && !now, r.opts.Now()
	return r.reached(at, true)
}

// reached saves a cursor that the sink vouches for. Where the destination is known to be well, that ends its fault: to begin
// says nothing, since not every sink asks its destination then.
func (r *runner) reached(at Cursor, well bool) error {
	if len(at.State) > maxState {
		return fmt.Errorf("%w: a state of %d bytes for the cursor, want at most %d", ErrRefused, len(at.State), maxState)
	}
	s := &r.status
	well = well && s.Fault != ""
	if !well && s.Next == at.Next && bytes.Equal(s.State, at.State) && !s.Updated.IsZero() {
		return nil
	}
	if well {
		r.opts.Logger.Warn("the destination takes records again", "sink", s.Name, "tries", s.Tries, "after", r.opts.Now().Sub(s.Since).Round(time.Millisecond))
	}
	if at.Next > s.Next {
		r.tries.Progress()
	}
	s.Next, s.State, s.Updated = at.Next, at.State, r.opts.Now().UTC()
	if well {
		s.Fault, s.Since, s.Tries = "", time.Time{}, 0
	}
	return s.write(r.opts.FS, r.opts.Dir)
}

// call gives the sink a limited time.
func (r *runner) call(ctx context.Context, what string, do func(context.Context) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, r.opts.Timeout, ErrTimeout)
	defer cancel()
	defer r.watch(what)()
	err := do(limited)
	if err == nil {
		return nil
	}
	if ctx.Err() == nil && context.Cause(limited) == ErrTimeout {
		return fmt.Errorf("%s: %w (%v): %w", what, ErrTimeout, r.opts.Timeout, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// watch notes a call that does not even come back when its time is over: a file system that is away holds who asks it. The status
// is this call's alone until the returned function has returned.
func (r *runner) watch(what string) (end func()) {
	told := make(chan struct{})
	late := time.AfterFunc(2*r.opts.Timeout, func() {
		defer close(told)
		r.fault(fmt.Errorf("%s: %w (%v), and it does not come back", what, ErrTimeout, 2*r.opts.Timeout))
	})
	return func() {
		if !late.Stop() {
			<-told
		}
	}
}

// fault notes what is wrong, once aloud, and in the cursor file for who looks.
func (r *runner) fault(err error) {
	s := &r.status
	said := s.Fault != ""
	if !said {
		s.Since = r.opts.Now().UTC()
	}
	s.Fault, s.Tries, s.Updated = err.Error(), s.Tries+1, r.opts.Now().UTC()
	if !said {
		r.opts.Logger.Warn("the destination takes nothing; recording goes on, and it is tried again", "sink", s.Name, "err", err)
	}
	if err := s.write(r.opts.FS, r.opts.Dir); err != nil {
		r.opts.Logger.Warn("the cursor cannot be saved", "sink", s.Name, "err", err)
	}
}

// abandon lets go of the sink after a failure: it is begun anew where its cursor stands.
func (r *runner) abandon() {
	if r.follower != nil {
		_ = r.follower.Close() // only read
		r.follower = nil
	}
}

// leave saves how far the destination is when the caller wants no more.
func (r *runner) leave(ctx context.Context) error {
	if r.follower == nil || !r.unsynced {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(r.opts.Timeout, 3*time.Second))
	defer cancel()
	return r.sync(ctx, true)
}

func (r *runner) close() {
	r.abandon()
	if err := r.sink.Close(); err != nil {
		r.opts.Logger.Warn("close the destination", "sink", r.opts.Name, "err", err)
	}
}
