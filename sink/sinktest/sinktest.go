package sinktest

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// Row is one record as the destination has it.
type Row struct {
	Generation uint32
	Seq, Step  uint64
}

// A Destination is what a sink writes to, and how to look at it. A new one is empty.
type Destination struct {
	// Open makes a sink for it, as a new process does. Several are open one after the other, and those of killed
	// processes are never closed.
	Open func() sink.Sink

	// Rows reads everything that is there, in the order of the destination. What is not there for good yet may be
	// missing. nil: the destination keeps the newest record only, which Newest tells.
	Rows   func(t *testing.T) []Row
	Newest func(t *testing.T) (Row, bool)

	// Lost reads how many records the destination has been told to be lost; nil: it does not say.
	Lost func(t *testing.T) uint64

	// Fault breaks the destination, or mends it. nil: it cannot be away, since the sink itself or the run directory holds it.
	Fault func(t *testing.T, how Fault)
	// Blocks says that a call to a Silent destination waits however long it takes, as one to a file system does.
	Blocks bool

	// Late says that what a killed process had under way can come there when the next one has begun, which gets an error then and begins
	// anew.
	Late bool

	// Held is all that is there, names and values, uncompressed. nil: it is in the run directory.
	Held func(t *testing.T) [][]byte
}

// Test runs every test on new destinations.
func Test(t *testing.T, open func(t *testing.T) Destination) {
	t.Run("Straight", func(t *testing.T) { straight(t, open(t)) })
	t.Run("Killed", func(t *testing.T) { killed(t, open(t)) })
	t.Run("Redelivered", func(t *testing.T) { redelivered(t, open(t)) })
	t.Run("LostCursor", func(t *testing.T) { lostCursor(t, open(t)) })
	t.Run("Following", func(t *testing.T) { following(t, open(t)) })
	t.Run("Hasty", func(t *testing.T) { hasty(t, open(t)) })
	t.Run("Away", func(t *testing.T) { faulty(t, open(t), Away) })
	t.Run("Silent", func(t *testing.T) { faulty(t, open(t), Silent) })
	t.Run("Secretive", func(t *testing.T) { secretive(t, open(t)) })
}

// history is a run with losses, two segments in its first generation, and a rewind.
func history(t *testing.T) *Recording {
	t.Helper()
	r := Record(t)
	r.Emit(50)
	r.Lose(7)
	r.Emit(9000) // more than a batch
	r.Roll()
	r.Emit(100)
	r.Rewind(9020)
	r.Emit(300)
	r.Roll()
	return r
}

const historyLost = 7

// want reads the rows of a run directory.
func want(t *testing.T, r *Recording) (rows []Row) {
	t.Helper()
	f := sink.Follow(r.fsys, r.Dir, 0)
	defer f.Close()
	for {
		b, err := f.Next()
		if err != nil {
			return rows
		}
		for i := range b.Records() {
			rows = append(rows, Row{b.Generation, b.Seq[i], b.Row(i)[0]})
		}
	}
}

// check wants that the destination has the rows, each once, in order.
func check(t *testing.T, d Destination, rows []Row) {
	t.Helper()
	if d.Rows == nil {
		if got, ok := d.Newest(t); !ok || got != rows[len(rows)-1] {
			t.Errorf("the newest record is %+v (%v), want %+v", got, ok, rows[len(rows)-1])
		}
		return
	}
	got := d.Rows(t)
	if len(got) != len(rows) {
		t.Errorf("%d records at the destination, want %d", len(got), len(rows))
	}
	for i := range min(len(got), len(rows)) {
		if got[i] != rows[i] {
			t.Fatalf("record %d is %+v, want %+v", i, got[i], rows[i])
		}
	}
}

func options(r *Recording) sink.Options {
	return sink.Options{
		Dir: r.Dir, Name: "test", SyncEvery: time.Millisecond,
		Pace: sink.Pace{Poll: time.Millisecond, RetryFirst: time.Millisecond, RetryLongest: 20 * time.Millisecond, Patience: time.Minute}, // for ever would hide why
	}
}

func straight(t *testing.T, d Destination) {
	r := history(t)
	if err := sink.Bring(t.Context(), options(r), d.Open()); err != nil {
		t.Fatal(err)
	}
	check(t, d, want(t, r))
	if d.Lost != nil {
		if n := d.Lost(t); n != historyLost {
			t.Errorf("%d records lost, want %d", n, historyLost)
		}
	}
	s, err := sink.ReadStatus(r.fsys, r.Dir, "test")
	if err != nil || s.Next != r.Frames() || s.Fault != "" || s.Records != uint64(len(want(t, r))) {
		t.Errorf("the cursor is %+v, %v; want all of %d frames", s, err, r.Frames())
	}
}

// feeder brings a run to a sink by hand, so that it can be left at any moment.
type feeder struct {
	t     *testing.T
	r     *Recording
	at    sink.Cursor // with which it began
	late  bool        // Destination.Late
	sink  sink.Sink
	f     *sink.Follower
	tries int // that have failed
}

func feed(t *testing.T, r *Recording, d Destination, at sink.Cursor) *feeder {
	t.Helper()
	f := &feeder{t: t, r: r, at: at, late: d.Late, sink: d.Open()}
	f.begin()
	t.Cleanup(func() { f.f.Close() })
	return f
}

func (f *feeder) begin() {
	f.t.Helper()
	from, err := f.sink.Begin(f.t.Context(), sink.Run{ID: f.r.Dir.ID(), Schema: f.r.Schema}, f.at)
	if err != nil {
		f.t.Fatal(err)
	}
	f.f = sink.Follow(f.r.fsys, f.r.Dir, from.Next)
}

// again begins anew, as sink.Bring does after a failure, and writes what was written so far, where something can have come late.
func (f *feeder) again(err error) {
	f.t.Helper()
	if f.tries++; f.tries > 3 || !f.late {
		f.t.Fatal(err)
	}
	end := f.f.Position()
	_ = f.f.Close() // only read
	for f.begin(); f.f.Position() < end; {
		f.write(1)
	}
}

// write brings so many batches; false: there are no more.
func (f *feeder) write(n int) bool {
	f.t.Helper()
	for range n {
		b, err := f.f.Next()
		if err != nil {
			return false
		}
		if err := f.sink.Write(f.t.Context(), b); err != nil {
			f.again(err)
		}
	}
	return true
}

func (f *feeder) sync() sink.Cursor {
	f.t.Helper()
	at, err := f.sink.Sync(f.t.Context())
	for err != nil {
		f.again(err)
		at, err = f.sink.Sync(f.t.Context())
	}
	return sink.Cursor{Next: at.Next, State: slices.Clone(at.State)}
}

// killed leaves the sink after every number of batches, with a cursor that is as old as the last sync, or one older.
func killed(t *testing.T, d Destination) {
	r := history(t)
	var at sink.Cursor
	for batches := 0; ; batches++ {
		f := feed(t, r, d, at)
		before := at
		f.write(batches / 2)
		if batches%3 > 0 {
			at = f.sync()
		}
		if batches%4 == 3 {
			at = before // the kill came between sync and saving
		}
		if !f.write(1) || batches > 20 {
			break
		}
	}
	saved := feed(t, r, d, at) // and one that ends well
	for saved.write(1) {
	}
	if at = saved.sync(); at.Next != r.Frames() {
		t.Errorf("synced up to frame %d, want %d", at.Next, r.Frames())
	}
	if err := saved.sink.Close(); err != nil {
		t.Error(err)
	}
	check(t, d, want(t, r))
}

// redelivered begins at a cursor that the destination has left behind long ago.
func redelivered(t *testing.T, d Destination) {
	r := history(t)
	f := feed(t, r, d, sink.Cursor{})
	f.write(1)
	old := f.sync()
	for f.write(1) {
	}
	f.sync()
	if err := f.sink.Close(); err != nil {
		t.Error(err)
	}
	f = feed(t, r, d, old)
	for f.write(1) {
	}
	f.sync()
	if err := f.sink.Close(); err != nil {
		t.Error(err)
	}
	check(t, d, want(t, r))
}

// lostCursor begins from nothing at a destination that has everything.
func lostCursor(t *testing.T, d Destination) {
	r := history(t)
	for range 2 {
		f := feed(t, r, d, sink.Cursor{})
		for f.write(1) {
		}
		f.sync()
		if err := f.sink.Close(); err != nil {
			t.Error(err)
		}
	}
	check(t, d, want(t, r))
}

// Until is sink.Pace.Follow for a run that is recorded until end is called.
func Until() (follow func() bool, end func()) {
	var over atomic.Bool
	return func() bool { return !over.Load() }, func() { over.Store(true) }
}

// following brings a run while it is recorded, with a process that is ended politely in the middle.
func following(t *testing.T, d Destination) {
	r := Record(t)
	r.Emit(10)
	o := options(r)
	follow, end := Until()
	o.Follow = follow
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sink.Bring(ctx, o, d.Open()) }()
	for range 10 {
		r.Emit(20)
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("ended with %v", err)
	}
	go func() { done <- sink.Bring(t.Context(), o, d.Open()) }()
	for range 5 {
		r.Emit(20)
		r.Lose(1)
		r.Roll()
		time.Sleep(time.Millisecond)
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	check(t, d, want(t, r))
}

// hasty calls with contexts that have ended already, or are about to: nothing hangs, and nothing is doubled by it.
func hasty(t *testing.T, d Destination) {
	r := history(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	s := d.Open()
	at, err := s.Begin(ended, sink.Run{ID: r.Dir.ID(), Schema: r.Schema}, sink.Cursor{})
	if err == nil {
		f := sink.Follow(r.fsys, r.Dir, at.Next)
		defer f.Close()
		if b, err := f.Next(); err == nil && s.Write(ended, b) == nil {
			_, _ = s.Sync(ended) // an error is as good as none
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a call took %v after its context had ended", took)
	}
	if err := s.Close(); err != nil {
		t.Log(err)
	}
	if err := sink.Bring(t.Context(), options(r), d.Open()); err != nil {
		t.Fatal(err)
	}
	check(t, d, want(t, r))
}

// Float is element j of field i of a row as a number.
func Float(s *record.Schema, row []uint64, i, j int) float64 {
	f := record.Frame{Words: row}
	if t := s.Field(i).Type; t == record.Float64 || t == record.Float32 {
		return f.Float64(s, i, j)
	} else if t == record.Int64 {
		return float64(int64(f.Uint64(s, i, j)))
	}
	return float64(f.Uint64(s, i, j))
}
