package sink_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// table is a destination in memory. What was written is there for good when it was synced, and its rows are cut back to
// the length in the cursor's state when a process begins, so that none is there twice.
type table struct {
	mu     sync.Mutex // held through each call, but while it hangs
	rows   []sinktest.Row
	synced int
	lost   uint64

	refuse error                             // of each call, if set
	hang   bool                              // calls wait for their context
	on     func(what string, b *sink.Batch)  // called at each
	begin  func(at sink.Cursor) *sink.Cursor // overrides Begin's answer
}

type tableSink struct {
	t    *table
	next uint64
	lost uint64
}

type tableState struct {
	Rows int
	Lost uint64
}

func (s *tableSink) may(ctx context.Context, what string, b *sink.Batch) error {
	if s.t.on != nil {
		s.t.on(what, b)
	}
	if s.t.hang {
		s.t.mu.Unlock()
		<-ctx.Done()
		s.t.mu.Lock()
		return ctx.Err()
	}
	return s.t.refuse
}

// set changes it, or looks at it, between two calls.
func (t *table) set(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

func (s *tableSink) Begin(ctx context.Context, _ sink.Run, at sink.Cursor) (sink.Cursor, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if err := s.may(ctx, "begin", nil); err != nil {
		return at, err
	}
	if s.t.begin != nil {
		at = *s.t.begin(at)
	}
	var state tableState
	if at.State != nil {
		if err := json.Unmarshal(at.State, &state); err != nil {
			return at, err
		}
	}
	s.next, s.lost = at.Next, state.Lost
	s.t.rows = s.t.rows[:min(state.Rows, len(s.t.rows))]
	return at, nil
}

func (s *tableSink) Write(ctx context.Context, b *sink.Batch) error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if err := s.may(ctx, "write", b); err != nil {
		return err
	}
	for i := range b.Records() {
		s.t.rows = append(s.t.rows, sinktest.Row{Generation: b.Generation, Seq: b.Seq[i], Step: b.Row(i)[0]})
	}
	for _, l := range b.Losses {
		s.lost += l.To - l.From
	}
	s.next = b.Next
	return nil
}

func (s *tableSink) Sync(ctx context.Context) (sink.Cursor, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if err := s.may(ctx, "sync", nil); err != nil {
		return sink.Cursor{}, err
	}
	s.t.synced, s.t.lost = len(s.t.rows), s.lost
	state, err := json.Marshal(tableState{s.t.synced, s.t.lost})
	return sink.Cursor{Next: s.next, State: state}, err
}

func (s *tableSink) Close() error { return nil }

func (t *table) open() sink.Sink { return &tableSink{t: t} }

func TestConformance(t *testing.T) {
	sinktest.Test(t, func(*testing.T) sinktest.Destination {
		d := &table{}
		return sinktest.Destination{
			Open: d.open,
			Rows: func(*testing.T) []sinktest.Row { return d.rows[:d.synced] },
			Lost: func(*testing.T) uint64 { return d.lost },
			Fault: func(_ *testing.T, how sinktest.Fault) {
				d.set(func() {
					d.refuse = nil
					if d.hang = how == sinktest.Silent; how == sinktest.Away {
						d.refuse = errors.New("connection refused")
					}
				})
			},
			Held: func(*testing.T) [][]byte { return [][]byte{fmt.Append(nil, "no field, and so no loss: ", d.rows)} },
		}
	})
}

func options(r *sinktest.Recording) sink.Options { return sink.Options{Dir: r.Dir, Name: "table"} }

func status(t *testing.T, r *sinktest.Recording) sink.Status {
	t.Helper()
	s, err := sink.ReadStatus(vfs.OS(), r.Dir, "table")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDown has a destination that takes nothing for an hour while the run goes on: the fault is in the status, said once,
// and all comes there afterwards.
func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := sinktest.Record(t)
		d := &table{refuse: errors.New("connection refused")}
		var ended atomic.Bool
		o := options(r)
		o.Follow = func() bool { return !ended.Load() }
		done := make(chan error, 1)
		go func() { done <- sink.Bring(t.Context(), o, d.open()) }()
		for range 60 {
			r.Emit(10)
			time.Sleep(time.Minute)
		}
		s := status(t, r)
		if s.Fault != "open: connection refused" || s.Next != 0 || s.Tries < 100 || s.Tries > 150 {
			t.Errorf("after an hour the status is %+v", s)
		}
		d.set(func() { d.refuse = nil })
		time.Sleep(time.Minute)
		var rows int
		d.set(func() { rows = d.synced })
		if s = status(t, r); s.Fault != "" || s.Next != 600 || s.Tries != 0 || rows != 600 {
			t.Errorf("a minute later it is %+v, with %d rows", s, rows)
		}
		ended.Store(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFaultLasts has a destination that nobody asks at the beginning, and that takes nothing: the fault lasts from the first
// try to the last, and is said once.
func TestFaultLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := sinktest.Record(t)
		r.Emit(100)
		d := &table{}
		well := time.Now().Add(10 * time.Minute)
		d.on = func(what string, _ *sink.Batch) {
			if d.refuse = nil; what == "sync" && time.Now().Before(well) {
				d.refuse = errors.New("disk full")
			}
		}
		var said strings.Builder
		o := options(r)
		o.Logger = slog.New(slog.NewTextHandler(&said, nil))
		began := time.Now()
		ended := began.Add(12 * time.Minute)
		o.Follow = func() bool { return time.Now().Before(ended) }
		done := make(chan error, 1)
		go func() { done <- sink.Bring(t.Context(), o, d.open()) }()
		time.Sleep(9 * time.Minute)
		if s := status(t, r); s.Fault != "sync: disk full" || s.Tries < 15 || s.Since.Sub(began) > time.Minute || s.Next != 0 {
			t.Errorf("after nine minutes the status is %+v", s)
		}
		time.Sleep(2 * time.Minute)
		if s := status(t, r); s.Fault != "" || s.Tries != 0 || s.Next != 100 {
			t.Errorf("when all is well it is %+v", s)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if nothing, again := strings.Count(said.String(), "takes nothing"), strings.Count(said.String(), "takes records again"); nothing != 1 || again != 1 {
			t.Errorf("it said %d times that nothing is taken, and %d times that records are, want 1 and 1:\n%s", nothing, again, said.String())
		}
	})
}

// TestHangs has a destination that accepts and never answers: each call ends in time.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := sinktest.Record(t)
		r.Emit(100)
		d := &table{}
		d.on = func(what string, _ *sink.Batch) {
			d.hang = what == "write" && time.Since(time.Date(2000, 1, 1, 0, 5, 0, 0, time.UTC)) < 0
		}
		began := time.Now()
		if err := sink.Bring(t.Context(), options(r), d.open()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 5*time.Minute || took > 7*time.Minute || d.synced != 100 {
			t.Errorf("took %v for %d rows", took, d.synced)
		}
	})
}

// TestPatience gives up a destination that opens and takes nothing, once the run is not recorded any more, and only then.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := sinktest.Record(t)
		r.Emit(100)
		d := &table{}
		d.on = func(what string, _ *sink.Batch) {
			if d.refuse = nil; what == "write" {
				d.refuse = errors.New("disk full")
			}
		}
		o := options(r)
		o.Patience = 5 * time.Second
		began := time.Now()
		o.Follow = func() bool { return time.Since(began) < time.Hour }
		err := sink.Bring(t.Context(), o, d.open())
		took := time.Since(began) - time.Hour
		if !errors.Is(err, sink.ErrPatience) || !strings.Contains(err.Error(), "disk full") || took < 5*time.Second || took > 70*time.Second {
			t.Errorf("%v after the end: %v", took, err)
		}
	})
}

func TestCancelled(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(100)
	d := &table{}
	ctx, cancel := context.WithCancel(t.Context())
	d.on = func(what string, _ *sink.Batch) {
		if what == "write" {
			cancel()
		}
	}
	if err := sink.Bring(ctx, options(r), d.open()); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if s := status(t, r); s.Next != 100 {
		t.Errorf("what had been written before is not in the cursor: %+v", s)
	}
}

func TestRefusals(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(10)
	tests := []struct {
		name string
		d    *table
		want error
		text string
	}{
		{"refused", &table{refuse: errors.Join(sink.ErrRefused, errors.New("another run's"))}, sink.ErrRefused, "table: open: sink: refused"},
		{"ahead", &table{begin: func(sink.Cursor) *sink.Cursor { return &sink.Cursor{Next: 11} }}, sink.ErrAhead, "it has the frames before 11, and the run ends at 10"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := sink.Bring(t.Context(), options(r), test.d.open())
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %q", err, test.text)
			}
			if s := status(t, r); s.Fault == "" || !strings.Contains(strings.ReplaceAll(err.Error(), "\n", " "), s.Fault) {
				t.Errorf("the status says %+v", s)
			}
		})
	}
}

func TestDamagedCursor(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(10)
	if err := sink.Bring(t.Context(), options(r), (&table{}).open()); err != nil {
		t.Fatal(err)
	}
	all, err := sink.Statuses(vfs.OS(), r.Dir)
	if err != nil || len(all) != 1 || all[0].Name != "table" || all[0].Next != 10 {
		t.Errorf("statuses %+v, %v", all, err)
	}
	if err := os.WriteFile(r.Dir.Sink("table"), []byte(`{"sink":"other"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sink.Bring(t.Context(), options(r), (&table{}).open()); err == nil || !strings.Contains(err.Error(), "remove it, and table gets the run once more") {
		t.Errorf("got %v", err)
	}
}

// batches reads what a follower has for the moment.
func batches(t *testing.T, f *sink.Follower) (steps []uint64, ends []uint64) {
	t.Helper()
	for {
		b, err := f.Next()
		if errors.Is(err, io.EOF) {
			return steps, ends
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Records() {
			steps = append(steps, b.Row(i)[0])
		}
		if b.End {
			ends = append(ends, b.Segment)
		}
	}
}

func TestFollower(t *testing.T) {
	r := sinktest.Record(t)
	f := sink.Follow(vfs.OS(), r.Dir, 0)
	defer f.Close()
	expect := func(what string, wantSteps, wantEnds []uint64) {
		t.Helper()
		steps, ends := batches(t, f)
		if !slices.Equal(steps, wantSteps) || !slices.Equal(ends, wantEnds) || f.Position() != r.Frames() {
			t.Errorf("%s: steps %v and ends %v at %d, want %v and %v at %d", what, steps, ends, f.Position(), wantSteps, wantEnds, r.Frames())
		}
	}
	expect("nothing yet", nil, nil)
	r.Emit(2)
	expect("first", []uint64{1, 2}, nil)
	expect("again", nil, nil)
	r.Emit(1)
	r.Roll()
	expect("sealed", []uint64{3}, []uint64{0})
	expect("sealed, again", nil, nil)
	r.Emit(1)
	r.Roll()
	r.Rewind(2)
	r.Emit(2)
	expect("two segments", []uint64{4, 3, 4}, []uint64{3})
	r.Roll()
	expect("the end alone", nil, []uint64{4})
	for from, want := range map[uint64][]uint64{0: {0, 3, 4}, 1: {0, 3, 4}, 3: {3, 4}, 4: {4}, 5: {4}, 6: nil} {
		g := sink.Follow(vfs.OS(), r.Dir, from)
		steps, ends := batches(t, g)
		if !slices.Equal(ends, want) || uint64(len(steps)) != 6-from {
			t.Errorf("from %d: steps %v, ends %v; want the ends %v", from, steps, ends, want)
		}
		g.Close()
	}
	if end, err := sink.End(vfs.OS(), r.Dir); err != nil || end != 6 {
		t.Errorf("the end is %d, %v", end, err)
	}
}

// TestFollowerPastDamage leaves out what cannot be read, and says so.
func TestFollowerPastDamage(t *testing.T) {
	r := sinktest.Record(t)
	for range 4 {
		r.Emit(10)
	}
	r.Roll()
	r.Emit(5)
	path := filepath.Join(r.Dir.Telemetry(), segment.FileName(0))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[4096+(len(b)-4096)/2] ^= 1 // behind the header
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600)); err != nil {
		t.Fatal(err)
	}
	f := sink.Follow(vfs.OS(), r.Dir, 0)
	defer f.Close()
	var damage []error
	f.Damaged = func(err error) { damage = append(damage, err) }
	steps, ends := batches(t, f)
	var corrupt *segment.CorruptError
	if len(damage) != 1 || !errors.As(damage[0], &corrupt) || len(steps) != 35 || !slices.Equal(ends, []uint64{0}) || f.Position() != 45 {
		t.Errorf("damage %v, %d steps, ends %v, position %d", damage, len(steps), ends, f.Position())
	}
}

// newSegment is an empty one.
func newSegment(t *testing.T, r *sinktest.Recording, base uint64) *segment.Writer {
	t.Helper()
	meta := record.StreamMeta{Schema: r.Schema}
	w, err := segment.Create(r.Dir.Telemetry(), base, segment.Options{Kind: segment.KindTelemetry, RunID: r.Dir.ID(), Meta: meta.Append(nil), Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() }) // it may be closed
	return w
}

func store(t *testing.T, r *sinktest.Recording, w *segment.Writer, steps ...uint64) {
	t.Helper()
	for _, step := range steps {
		if err := w.Append(record.AppendRecord(nil, 0, step-1, sinktest.Payload(r.Schema, step)[:r.Schema.StoredWords()])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestFollowerPastPoison reads a segment that failed while it was synced: what the next one holds again comes once, also
// where the next one was not there yet when it was read.
func TestFollowerPastPoison(t *testing.T) {
	for _, early := range []bool{false, true} {
		r := sinktest.Record(t)
		f := sink.Follow(vfs.OS(), r.Dir, 0)
		defer f.Close()
		store(t, r, newSegment(t, r, 0), 1, 2, 3, 4, 5)
		var first []uint64
		if early {
			first, _ = batches(t, f)
		}
		want := []uint64{1, 2, 3, 4, 5, 6}
		if !early {
			want = []uint64{1, 2, 3, 14, 15, 16} // what was given up in the old one is not read
		}
		store(t, r, newSegment(t, r, 3), want[3:]...)
		rest, ends := batches(t, f)
		if steps := append(first, rest...); !slices.Equal(steps, want) || !slices.Equal(ends, []uint64{0}) {
			t.Errorf("early %v: steps %v, ends %v", early, steps, ends)
		}
	}
}

// TestFollowerOfSegmentMadeAnew looks at a segment that a recorder makes, removes since it stored nothing, and the next
// one makes again.
func TestFollowerOfSegmentMadeAnew(t *testing.T) {
	r := sinktest.Record(t)
	f := sink.Follow(vfs.OS(), r.Dir, 0)
	defer f.Close()
	w := newSegment(t, r, 0)
	if steps, _ := batches(t, f); steps != nil {
		t.Errorf("steps %v of nothing", steps)
	}
	if err := errors.Join(w.Close(), os.Remove(w.Path())); err != nil {
		t.Fatal(err)
	}
	store(t, r, newSegment(t, r, 0), 1, 2)
	if steps, _ := batches(t, f); !slices.Equal(steps, []uint64{1, 2}) {
		t.Errorf("steps %v", steps)
	}
}
