package recorder

import (
	"context"
	"sync"
	"time"

	"github.com/usp-project/usp/digestlog"
)

// Committed says how far signed heads got to a place outside of the run directory.
type Committed struct {
	Place    string `json:"place"`           // path of the anchor, or address of the witness
	Size     uint64 `json:"size"`            // log entries under the newest head there; 0: none by this recorder
	Failures uint64 `json:"failures"`        // heads that did not get there; a later one makes up for it
	Fault    string `json:"fault,omitempty"` // why the newest head is not there
}

// outlet brings signed heads to a place outside of the run directory, in a goroutine of its own, so that the writer
// never waits for it: the newest head replaces one that has not been brought there yet. What fails is said once,
// counted, and tried again with the next head.
type outlet struct {
	name  string
	place string
	put   func(ctx context.Context, h *digestlog.SignedTreeHead) error
	every time.Duration // shortest time between two heads, the last excepted

	next chan *digestlog.SignedTreeHead // room for one; filled by the writer, emptied by work
	last chan struct{}                  // closed: what is in next is the last one
	done chan struct{}                  // closed: work has returned; nil: it was not begun
	stop context.CancelFunc

	mu    sync.Mutex // guards state; also held by work for no longer than that
	state Committed
}

func newOutlet(name, place string, every time.Duration, put func(context.Context, *digestlog.SignedTreeHead) error) *outlet {
	return &outlet{
		name: name, place: place, put: put, every: every, state: Committed{Place: place},
		next: make(chan *digestlog.SignedTreeHead, 1), last: make(chan struct{}),
	}
}

// offer hands over a head, in place of one that waits. Only the writer calls it.
func (o *outlet) offer(h *digestlog.SignedTreeHead) {
	for {
		select {
		case o.next <- h:
			return
		default:
		}
		select {
		case <-o.next:
		default: // work has just taken it
		}
	}
}

// begin starts the goroutine of an outlet, once.
func (r *Recorder) beginOutlet(o *outlet) {
	if o.done != nil {
		return
	}
	var ctx context.Context
	ctx, o.stop = context.WithCancel(context.Background())
	o.done = make(chan struct{})
	go func() {
		defer close(o.done)
		r.workOutlet(ctx, o)
	}()
}

// workOutlet brings one head after the other until the last one, or until ctx ends.
func (r *Recorder) workOutlet(ctx context.Context, o *outlet) {
	for {
		select {
		case h := <-o.next:
			r.bring(ctx, o, h)
		case <-o.last:
			select {
			case h := <-o.next:
				r.bring(ctx, o, h)
			default:
			}
			return
		case <-ctx.Done():
			return
		}
		if o.every <= 0 {
			continue
		}
		pause := time.NewTimer(o.every)
		select {
		case <-pause.C:
		case <-o.last:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// bring tries one head.
func (r *Recorder) bring(ctx context.Context, o *outlet, h *digestlog.SignedTreeHead) {
	before := o.committed()
	if before.Size == h.Size && before.Fault == "" { // it is there; a log is never signed empty
		return
	}
	err := o.put(ctx, h)
	after := before
	if err == nil {
		after.Size, after.Fault = h.Size, ""
	} else {
		after.Failures++
		after.Fault = err.Error()
	}
	o.mu.Lock()
	o.state = after
	o.mu.Unlock()
	switch {
	case err != nil && after.Fault != before.Fault:
		r.logger().Warn("the signed head did not get to the "+o.name+"; recording goes on, and the next head is tried",
			"run", r.header.RunID, o.name, o.place, "err", err)
	case err == nil && before.Fault != "":
		r.logger().Warn("signed heads get to the "+o.name+" again", "run", r.header.RunID, o.name, o.place, "failures", after.Failures)
	}
}

func (o *outlet) committed() Committed {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state
}

// commitHead hands a signed head to every outlet.
func (r *Recorder) commitHead(h *digestlog.SignedTreeHead) {
	for _, o := range r.outlets {
		o.offer(h)
	}
}

// signHead signs the tree and hands the head on.
func (r *Recorder) signHead() error {
	h, err := r.log.SignHead()
	if err == nil {
		r.commitHead(&h)
	}
	return err
}

// closeOutlets brings the last head to every outlet, which has Options.CommitTimeout for it. An outlet that hangs is left
// alone: it does nothing any more but wait for its place.
func (r *Recorder) closeOutlets() {
	deadline := time.NewTimer(r.opts.CommitTimeout)
	defer deadline.Stop()
	for _, o := range r.outlets {
		r.beginOutlet(o)
		close(o.last)
	}
	expired := false
	for _, o := range r.outlets {
		if !expired {
			select {
			case <-o.done:
			case <-deadline.C:
				expired = true
			}
		}
		o.stop()
		select {
		case <-o.done:
			continue
		default:
		}
		o.mu.Lock()
		o.state.Failures++
		o.state.Fault = "no answer within " + r.opts.CommitTimeout.String()
		o.mu.Unlock()
		r.logger().Warn("the last signed head did not get to the "+o.name+" in time", "run", r.header.RunID, o.name, o.place, "timeout", r.opts.CommitTimeout)
	}
	r.ended, r.outlets = r.outlets, nil
}

// dropOutlets stops the outlets of a recorder that leaves the run to another. One that hangs is waited for only a moment.
func (r *Recorder) dropOutlets() {
	if len(r.outlets) == 0 {
		return
	}
	moment := time.NewTimer(time.Second)
	defer moment.Stop()
	for _, o := range r.outlets {
		if o.done == nil {
			continue
		}
		o.stop()
		select {
		case <-o.done:
		case <-moment.C:
		}
	}
	r.outlets = nil
}

// committedTo is the state of the outlet of that name; nil if there is none.
func (r *Recorder) committedTo(name string) *Committed {
	for _, list := range [][]*outlet{r.outlets, r.ended} {
		for _, o := range list {
			if o.name == name {
				c := o.committed()
				return &c
			}
		}
	}
	return nil
}
