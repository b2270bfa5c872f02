package recorder_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// TestYields: a recorder that keeps up gives way. It does not where it finds many records at once, while a snapshot takes long, and at the end.
func TestYields(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{areas: 1})
	o := options(m)
	var looks atomic.Int64
	o.Now = func() time.Time { return time.Unix(1_800_000_000, 1e6*looks.Add(1)) } // a second passes in 1000 looks
	changes := make(chan bool, 100)
	o.Yield = func(low bool) (before bool, err error) { changes <- low; return !low, nil }
	var narrow []bool // of the drainer alone until it has ended
	o.Narrow = func(on bool) { narrow = append(narrow, on) }
	want := func(low bool, when string) {
		t.Helper()
		select {
		case got := <-changes:
			if got != low {
				t.Fatalf("%s: lowered %v, want %v", when, got, low)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: its priority stays as it was", when)
		}
	}
	x := start(t, p.Path(), o)
	want(true, "from the beginning")
	p.emit(40)
	want(false, "many records at once")
	want(true, "nothing to do")
	written := make(chan struct{})
	release := sync.OnceFunc(func() { close(written) })
	defer release()
	m.SetHook(func(op vfs.Op) {
		if strings.Contains(op.Name, "/snapshots/") {
			<-written
		}
	})
	p.emit(1)
	if !p.stage() {
		t.Fatal("no free staging area")
	}
	want(false, "a snapshot that takes long")
	release()
	want(true, "it is written")
	check(t, p.Close(true))
	x.finish()
	want(false, "the end")
	if want := []bool{true, false, true, false, true, false}; !slices.Equal(narrow, want) {
		t.Errorf("kept to one processor: %v, want %v", narrow, want)
	}
	if len(changes) > 0 {
		t.Errorf("%d changes more than there was reason for", len(changes))
	}
	verifyOK(t, m)
}

// TestTakesOverLow: the loop waits for the recorder that begins a run, which so does not give way before that, but for none
// that takes over from one that was killed.
func TestTakesOverLow(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	var calls []bool
	o := options(m)
	o.Yield = func(low bool) (before bool, err error) { calls = append(calls, low); return low, nil }
	var narrow []bool
	o.Narrow = func(on bool) { narrow = append(narrow, on) }
	for i, want := range []int{0, 1} {
		calls, narrow = nil, nil
		r, err := recorder.Attach(p.Path(), o)
		check(t, err)
		if low := want > 0; slices.Contains(narrow, true) != low {
			t.Errorf("recorder %d: kept to one processor %v while it opens the run", i, narrow)
		}
		if len(calls) != want || want > 0 && !calls[0] {
			t.Errorf("recorder %d: called with %v while it opens the run, want %d times", i, calls, want)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if _, err := r.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if n := len(calls); n > 0 && calls[n-1] {
			t.Errorf("recorder %d: called with %v: one that is to stop is not low", i, calls)
		}
	}
	check(t, p.Close(true))
}

// TestTakesOverBehind: of a recorder that begins, what came while there was none presses less than of one that has been at work.
func TestTakesOverBehind(t *testing.T) {
	const slots = 256
	for name, c := range map[string]struct {
		waiting int
		raised  bool
	}{
		"an eighth of the ring": {slots / 8, false},
		"just below a quarter":  {slots/4 - 1, false},
		"a quarter":             {slots / 4, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := vfs.NewMem()
			p := newProducer(t, ringConfig{slots: slots})
			o := options(m)
			o.Now = func() time.Time { return time.Unix(1_800_000_000, 0) } // it begins for ever
			first, err := recorder.Attach(p.Path(), o)
			check(t, err)
			ctx, stop := context.WithCancel(t.Context())
			stop()
			if _, err := first.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			p.emit(c.waiting)
			var raised atomic.Bool
			o.Yield = func(low bool) (before bool, err error) {
				if !low {
					raised.Store(true)
				}
				return !low, nil
			}
			x := start(t, p.Path(), o)
			p.until(func(s ring.ConsumerState) bool { return s.Position == uint64(c.waiting) })
			if raised.Load() != c.raised {
				t.Errorf("raised %v, want %v", raised.Load(), c.raised)
			}
			check(t, p.Close(true))
			x.finish()
		})
	}
}

// TestSettles: what makes a recorder cheaper is done once it has given way for a while, until nothing is left of it.
func TestSettles(t *testing.T) {
	p := newProducer(t, ringConfig{})
	o := options(vfs.NewMem())
	var asked atomic.Int64
	o.Now = func() time.Time { return time.Unix(1_800_000_000, 1e7*asked.Add(1)) }
	o.Yield = func(low bool) (before bool, err error) { return low, nil }
	calls := make(chan int64, 10)
	left := 2 // the drainer's alone
	o.Settle = func() bool { calls <- asked.Load(); left--; return left > 0 }
	x := start(t, p.Path(), o)
	for range 2 {
		select {
		case at := <-calls:
			if at < 300 {
				t.Errorf("called %d hundredths of a second after the beginning", at)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it is not called")
		}
	}
	check(t, p.Close(true))
	x.finish()
	if len(calls) > 0 {
		t.Error("called when nothing was left")
	}
}
