//go:build unix

package ring

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestStatesAndCounters(t *testing.T) {
	p := mustCreate(t, Config{})
	c := mustOpen(t, p.Path())
	want := ConsumerState{Phase: ConsumerAttached, Position: 1, Stored: 2, Lost: 3, Synced: 4, Snapshots: 5, PID: 6}
	c.Publish(want)
	if p.Consumer() != want || c.Published() != want {
		t.Errorf("published %+v, producer reads %+v, want %+v", c.Published(), p.Consumer(), want)
	}
	p.Beat()
	p.Beat()
	if c.Heartbeat() != 2 || c.State() != StateOpen {
		t.Errorf("heartbeat %d, state %v", c.Heartbeat(), c.State())
	}
	alive, err := c.ProducerAlive()
	if err != nil || !alive {
		t.Errorf("alive: %v %v", alive, err)
	}
	if err := c.Remove(); !errors.Is(err, ErrAlive) {
		t.Errorf("remove under a live producer: %v", err)
	}
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	if alive, err = c.ProducerAlive(); err != nil || alive || c.State() != StateFailed {
		t.Errorf("after close: alive %v %v, state %v", alive, err, c.State())
	}
	if err := p.Close(true); !errors.Is(err, ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	p.Beat()
	if p.Consumer() != (ConsumerState{}) || p.Stage(0, 0, 0, nil) {
		t.Error("a closed producer does something")
	}
}

// TestFinish: the lock is given up and the consumer may remove the ring, while
// the producer still reads how far the consumer is.
func TestFinish(t *testing.T) {
	p := mustCreate(t, Config{StagingCapacity: 8})
	c := mustOpen(t, p.Path())
	emitN(p, 3)
	if err := p.Finish(true); err != nil {
		t.Fatal(err)
	}
	if alive, err := c.ProducerAlive(); err != nil || alive || c.State() != StateClosed {
		t.Errorf("after finish: alive %v %v, state %v", alive, err, c.State())
	}
	if got := drain(t, c); len(got.Got) != 3 {
		t.Errorf("drained %+v", got)
	}
	c.Publish(ConsumerState{Phase: ConsumerDone, Stored: 3})
	if err := c.Remove(); err != nil {
		t.Error(err)
	}
	if s := p.Consumer(); s.Phase != ConsumerDone || s.Stored != 3 || p.Position() != 3 {
		t.Errorf("the producer reads %+v", s)
	}
	if err := p.Finish(true); !errors.Is(err, ErrClosed) {
		t.Errorf("second finish: %v", err)
	}
	if p.Stage(0, 0, 0, nil) {
		t.Error("staged after finish")
	}
	if err := p.Close(true); err != nil {
		t.Error(err)
	}
}

func TestRemove(t *testing.T) {
	p := mustCreate(t, Config{StagingCapacity: 16})
	dir := filepath.Dir(p.Path())
	if err := os.WriteFile(filepath.Join(dir, "other"), bytes.Repeat([]byte("x"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if rings, err := List(dir); err != nil || !slices.Equal(rings, []string{p.Path()}) {
		t.Errorf("list: %v %v", rings, err)
	}
	c := mustOpen(t, p.Path())
	p.Close(true)
	moved := p.Path() + ".moved"
	if err := os.Rename(p.Path(), moved); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove of a ring that was moved: %v", err)
	}
	successor := mustCreate(t, Config{Path: p.Path(), StagingCapacity: 16})
	if err := c.Remove(); err == nil || !strings.Contains(err.Error(), "left alone") {
		t.Errorf("remove with another ring in place: %v", err)
	}
	successor.Close(true)
	if err := mustOpen(t, p.Path()).Remove(); err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 { // "other" and the one that was moved
		t.Errorf("left: %v %v", names, err)
	}
	if rings, err := List(filepath.Join(dir, "none")); err != nil || rings != nil {
		t.Errorf("list of no directory: %v %v", rings, err)
	}
}

func TestMisuse(t *testing.T) {
	p := mustCreate(t, Config{})
	c := mustOpen(t, p.Path())
	panics := func(name, want string, f func()) {
		t.Helper()
		defer func() {
			if s, ok := recover().(string); !ok || !strings.Contains(s, want) {
				t.Errorf("%s: panic %q, want one about %q", name, s, want)
			}
		}()
		f()
	}
	panics("short emit", "2 words", func() { p.Emit(make([]uint64, 2)) })
	panics("short read", "2 words", func() { c.Next(make([]uint64, 2)) })
	if p.Position() != 0 {
		t.Error("a refused emit took a number")
	}
	p.Close(true)
	panics("emit after close", "closed", func() { p.Emit(make([]uint64, 3)) })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, st := c.Next(make([]uint64, 3)); st != Failed || !errors.Is(c.Err(), ErrClosed) {
		t.Errorf("read after close: %v %v", st, c.Err())
	}
	if _, err := c.ProducerAlive(); !errors.Is(err, ErrClosed) {
		t.Errorf("alive after close: %v", err)
	}
	if _, ok := c.Staged(); ok || c.Produced() != 0 || c.Published() != (ConsumerState{}) || !errors.Is(c.Close(), ErrClosed) {
		t.Error("a closed consumer does something")
	}
	c.Publish(ConsumerState{})
}
