package sink

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// Pace says how who brings something of a run elsewhere goes on while it is recorded, and tries again where that fails. It is a
// part of [Options], and of the options of package remote. Each field has a working zero value.
type Pace struct {
	Follow       func() bool   // whether the run is still recorded; nil: what is there is brought, and no more
	Poll         time.Duration // between two looks for more; default 100 ms, of package remote 500 ms
	RetryFirst   time.Duration // wait after the first failure, doubled after each; default 200 ms, of package remote 500 ms
	RetryLongest time.Duration // default 30 s
	Patience     time.Duration // how long a destination of a run that is not recorded any more may take nothing; 0: for ever

	FS     vfs.FS           // default vfs.OS()
	Logger *slog.Logger     // default discards
	Now    func() time.Time // default time.Now
}

// WithDefaults replaces what is not set.
func (p Pace) WithDefaults(poll, retryFirst time.Duration) Pace {
	orDefault(&p.Poll, poll)
	orDefault(&p.RetryFirst, retryFirst)
	orDefault(&p.RetryLongest, 30*time.Second)
	if p.FS == nil {
		p.FS = vfs.OS()
	}
	if p.Logger == nil {
		p.Logger = slog.New(slog.DiscardHandler)
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	return p
}

func orDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Recorded says whether there can still be more of the run.
func (p *Pace) Recorded() bool { return p.Follow != nil && p.Follow() }

// Tries waits between one try and the next, as a Pace wants. Its zero value begins.
type Tries struct {
	wait      time.Duration // after the next failure; 0: the first
	impatient time.Time     // since when a run that has ended gets nothing to its destination; zero: it does
}

// Well is for who has looked for more without a failure: it waits until the next look.
func (t *Tries) Well(ctx context.Context, p *Pace) {
	t.wait = 0
	sleep(ctx, p.Poll)
}

// Progress says that the destination has taken something.
func (t *Tries) Progress() { t.impatient = time.Time{} }

// Failed waits until the next try. Where the run has ended and patience with it, it returns err at once, with [ErrPatience].
func (t *Tries) Failed(ctx context.Context, p *Pace, err error) error {
	if p.Patience > 0 && !p.Recorded() {
		if t.impatient.IsZero() {
			t.impatient = p.Now()
		}
		if p.Now().Sub(t.impatient) >= p.Patience {
			return fmt.Errorf("%w for %v: %w", ErrPatience, p.Patience, err)
		}
	}
	orDefault(&t.wait, p.RetryFirst)
	sleep(ctx, t.wait)
	t.wait = min(2*t.wait, p.RetryLongest)
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
