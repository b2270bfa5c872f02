//go:build unix

package ring

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func stageText(p *Producer, step uint64, text string) bool {
	return p.Stage(step, 7, len(text), func(b []byte) { copy(b, text) })
}

func TestStageAndTake(t *testing.T) {
	p := mustCreate(t, Config{StagingAreas: 3, StagingCapacity: 10, Generation: 4, StagingCRC: true})
	c := mustOpen(t, p.Path())
	if _, ok := c.Staged(); ok {
		t.Error("a state before any was staged")
	}
	emitN(p, 5)
	for i, text := range []string{"first", "", "0123456789"} {
		if !stageText(p, uint64(i+100), text) {
			t.Fatalf("%q not staged", text)
		}
	}
	if stageText(p, 103, "fourth") || stageText(p, 104, "fifth") || p.Drops() != 2 || c.Drops() != 2 {
		t.Errorf("drops %d, the consumer reads %d, want 2", p.Drops(), c.Drops())
	}
	for i, text := range []string{"first", "", "0123456789"} {
		s, ok := c.Staged()
		if !ok {
			t.Fatalf("%q not there", text)
		}
		if string(s.Bytes()) != text || s.Step != uint64(i+100) || s.Seq != 5 || s.Generation != 4 || s.Reason != 7 || s.Ticket != uint64(i) {
			t.Errorf("got %+v %q, want %q", s, s.Bytes(), text)
		}
		if i == 0 { // a freed area takes the next state, which comes last
			if err := s.Release(); err != nil {
				t.Fatal(err)
			}
			if err := s.Release(); !errors.Is(err, ErrClosed) {
				t.Errorf("second release: %v", err)
			}
			if !stageText(p, 103, "fourth") {
				t.Error("no area after a release")
			}
		}
	}
	if s, ok := c.Staged(); !ok || string(s.Bytes()) != "fourth" {
		t.Error("the fourth is not there")
	}
	if stageText(p, 1, "0123456789a") || p.Drops() != 3 {
		t.Error("a state beyond the capacity was staged, or not counted")
	}
}

// TestUntaken: one that looks on sees the oldest state that nobody has taken, and leaves it for the consumer.
func TestUntaken(t *testing.T) {
	p := mustCreate(t, Config{StagingAreas: 3, StagingCapacity: 10, StagingCRC: true})
	c, other := mustOpen(t, p.Path()), mustOpen(t, p.Path())
	want := func(ticket uint64, ok bool, when string) {
		t.Helper()
		if got, there := other.Untaken(); got != ticket || there != ok {
			t.Errorf("%s: ticket %d, %v; want %d, %v", when, got, there, ticket, ok)
		}
	}
	take := func() *Staged {
		t.Helper()
		s, ok := c.Staged()
		if !ok {
			t.Fatal("no state")
		}
		return s
	}
	want(0, false, "nothing staged")
	stageText(p, 1, "first")
	stageText(p, 2, "second")
	want(0, true, "two staged")
	want(0, true, "again")
	first := take()
	want(1, true, "the first is taken")
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	stageText(p, 3, "third") // in the area of the first
	want(1, true, "a later one in an earlier area")
	take()
	want(2, true, "the second is taken")
	take()
	want(0, false, "all are taken")
	p.Stage(4, 0, 1, func([]byte) { want(0, false, "being filled") })
	want(3, true, "filled")
	if other.Discarded() != 0 {
		t.Error("who looks on has discarded a state")
	}
}

func TestStageFillPanics(t *testing.T) {
	p := mustCreate(t, Config{StagingAreas: 1, StagingCapacity: 10})
	c := mustOpen(t, p.Path())
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		p.Stage(0, 0, 1, func([]byte) { panic("no") })
	}()
	if _, ok := c.Staged(); ok {
		t.Error("a state that was never filled")
	}
	if !stageText(p, 0, "again") {
		t.Error("the area was not freed")
	}
}

// TestStagedSurvivesConsumer: what a consumer took and did not release is there for the next.
func TestStagedSurvivesConsumer(t *testing.T) {
	p := mustCreate(t, Config{StagingAreas: 1, StagingCapacity: 10})
	stageText(p, 1, "state")
	c := mustOpen(t, p.Path())
	if _, ok := c.Staged(); !ok {
		t.Fatal("no state")
	}
	if _, ok := c.Staged(); ok {
		t.Error("one state given out twice")
	}
	c.Close()
	if s, ok := mustOpen(t, p.Path()).Staged(); !ok || string(s.Bytes()) != "state" {
		t.Error("the state was lost with its consumer")
	}
}

func TestStagedDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage    func(t *testing.T, path string)
		discarded uint64
	}{
		"content": {func(t *testing.T, path string) { patch(t, path, areaHeaderLen, []byte{'x'}) }, 1},
		"length":  {func(t *testing.T, path string) { patch(t, path, areaLength+7, []byte{0xff}) }, 1},
		"header":  {func(t *testing.T, path string) { patch(t, path, areaRunID, []byte{0xff}) }, 0},
		"short":   {func(t *testing.T, path string) { truncate(t, path, 4096) }, 0},
		"gone":    {func(t *testing.T, path string) { remove(t, path) }, 0},
		"a link":  {func(t *testing.T, path string) { remove(t, path); symlink(t, path+"x", path) }, 0},
	} {
		p := mustCreate(t, Config{StagingAreas: 2, StagingCapacity: 10, StagingCRC: true})
		stageText(p, 1, "first")
		stageText(p, 2, "second")
		c.damage(t, p.Path()+".stage0")
		r := mustOpen(t, p.Path())
		if s, ok := r.Staged(); !ok || string(s.Bytes()) != "second" {
			t.Errorf("%s damaged: the other state is not found", name)
		}
		if _, ok := r.Staged(); ok || r.Discarded() != c.discarded || r.Err() != nil {
			t.Errorf("%s damaged: discarded %d, want %d; error %v", name, r.Discarded(), c.discarded, r.Err())
		}
	}
}

func patch(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func truncate(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// TestStageConcurrently: every staged state arrives once, whole, in order; every
// other request is counted.
func TestStageConcurrently(t *testing.T) {
	const requests, size = 20000, 1 << 10
	p := mustCreate(t, Config{StagingCapacity: size, StagingCRC: true})
	c := mustOpen(t, p.Path())
	var done atomic.Bool
	var wg sync.WaitGroup
	var steps []uint64
	wg.Go(func() {
		for {
			last := done.Load()
			s, ok := c.Staged()
			if !ok {
				if last {
					return
				}
				continue
			}
			if want := bytes.Repeat([]byte{byte(s.Step)}, size); !bytes.Equal(s.Bytes(), want) {
				t.Errorf("state of step %d is mixed up", s.Step)
			}
			steps = append(steps, s.Step)
			if err := s.Release(); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range uint64(requests) {
		p.Stage(i, 0, size, func(b []byte) {
			for j := range b {
				b[j] = byte(i)
			}
		})
	}
	done.Store(true)
	wg.Wait()
	if uint64(len(steps))+p.Drops() != requests || c.Discarded() != 0 {
		t.Errorf("%d arrived + %d dropped != %d; %d discarded", len(steps), p.Drops(), requests, c.Discarded())
	}
	if !slices.IsSorted(steps) {
		t.Error("states came out of order")
	}
}
