package web

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/pyramid"
)

// busyFor is the pause where another process is at work on what is wanted.
const busyFor = 250 * time.Millisecond

// background does what a request would wait for too long: it makes the aggregates of runs that have none, one run at a time,
// of the run that was asked for last first.
type background struct {
	yield func() // has the thread that it works on give way to others; nil: nothing
	wake  chan struct{}

	mu      sync.Mutex
	running bool
	wanted  []*pyramids // the last one is next
}

func newBackground(yield func()) *background {
	return &background{yield: yield, wake: make(chan struct{}, 1)}
}

// runs says whether what is wanted is done some time.
func (b *background) runs() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running
}

// want asks for the work of a run.
func (b *background) want(p *pyramids) {
	b.mu.Lock()
	b.wanted = append(slices.DeleteFunc(b.wanted, func(o *pyramids) bool { return o == p }), p)
	b.wanted = b.wanted[max(0, len(b.wanted)-openRuns):] // who is still looked at asks again
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take is what is to be done next; nil: nothing.
func (b *background) take() *pyramids {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.wanted)
	if n == 0 {
		return nil
	}
	p := b.wanted[n-1]
	b.wanted = b.wanted[:n-1]
	return p
}

// others says whether a run other than p was asked for last.
func (b *background) others(p *pyramids) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.wanted)
	return n > 0 && b.wanted[n-1] != p
}

// run works until ctx ends.
func (b *background) run(ctx context.Context) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine, and nobody else gets its priority
	set := func(running bool) { b.mu.Lock(); b.running = running; b.mu.Unlock() }
	set(true)
	defer set(false)
	if b.yield != nil {
		b.yield()
	}
	for ctx.Err() == nil {
		if p := b.take(); p != nil {
			if p.work(ctx) {
				continue
			}
			select {
			case <-time.After(busyFor):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case <-b.wake:
		case <-ctx.Done():
		}
	}
}

// work makes the aggregates of the run; where those cannot be kept, it reads the run once. ready is false where
// nothing could be done now.
func (p *pyramids) work(ctx context.Context) (ready bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	if p.q == nil {
		p.mu.Unlock()
		return true // nobody looks at it any more
	}
	p.cancel = cancel
	run, cached := p.run, p.cache != nil && p.fault == nil
	_, which := p.q.Missing()
	p.mu.Unlock()
	if cached {
		built, err := p.cache.Build(ctx, pyramid.BuildOptions{Dir: p.dir, FS: p.fsys, Stop: func() bool { return p.back.others(p) }})
		switch {
		case ctx.Err() != nil:
			return true
		case errors.Is(err, pyramid.ErrBusy):
			return false
		case err != nil:
			p.log.Warn("the aggregates of a run cannot be kept; it is read instead", "run", p.dir.ID(), "err", err)
			p.settle(run, func() { p.fault = err })
		case built.Left > 0:
			return true // it is wanted again by who still looks at it
		default:
			p.settle(run, func() { p.tried, p.triedAny, p.read = which, true, time.Time{} }) // who asks next looks for what was made
		}
		return true
	}
	if _, err := p.slow.Extent(ctx); err != nil {
		if ctx.Err() == nil {
			p.log.Warn("a run cannot be read", "run", p.dir.ID(), "err", err)
			p.settle(run, func() { p.unreadable = true })
		}
		return true
	}
	p.settle(run, func() { p.whole = true })
	return true
}

// settle notes what came out, if the directory is still that run's.
func (p *pyramids) settle(run [32]byte, note func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == run {
		note()
	}
}
