package pyramid

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// later is the sink of a run whose directory is known only when it is begun.
type later struct {
	*Sink
	find func() rundir.Dir
}

func (l *later) Begin(ctx context.Context, run sink.Run, at sink.Cursor) (sink.Cursor, error) {
	l.Sink = NewSink(vfs.OS(), l.find())
	return l.Sink.Begin(ctx, run, at)
}

// TestConformance runs the suite of all sinks. The files have no sequence numbers, but each below the newest is of a record that
// is counted or lost.
func TestConformance(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Destination {
		beside := filepath.Dir(t.TempDir())
		find := func() rundir.Dir {
			runs, err := filepath.Glob(filepath.Join(beside, "*", "*-s1nk5"))
			if err != nil || len(runs) != 1 {
				t.Fatalf("%v, %v", runs, err)
			}
			return rundir.At(runs[0])
		}
		parts := func(t *testing.T) []*part {
			q, err := Open(t.Context(), QueryOptions{Dir: find()})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			return q.parts
		}
		return sinktest.Destination{
			Open: func() sink.Sink { return &later{NewSink(vfs.OS(), ""), find} },
			Newest: func(t *testing.T) (r sinktest.Row, ok bool) {
				for _, p := range parts(t) {
					if p.path == "" {
						return r, false
					}
					if p.generation > r.Generation || !ok {
						r = sinktest.Row{Generation: p.generation, Seq: math.MaxUint64}
					}
					r.Step, r.Seq, ok = p.last, r.Seq+p.records+p.leftOut+p.lost, true
				}
				r.Seq -= behind(find())
				return r, ok
			},
			Lost: func(t *testing.T) (n uint64) {
				for _, p := range parts(t) {
					n += p.lost
				}
				return n
			},
		}
	})
}

// behind is how many records were lost behind the last that is stored.
func behind(dir rundir.Dir) (n uint64) {
	f := sink.Follow(vfs.OS(), dir, 0)
	defer f.Close()
	for {
		b, err := f.Next()
		if err != nil {
			return n
		}
		if b.Records() > 0 {
			n = 0
		}
		for _, l := range b.Losses {
			if l.Before == b.Records() {
				n += l.To - l.From
			}
		}
	}
}

// TestFollowed brings a run with the runner, at once and while it is recorded and asked for.
func TestFollowed(t *testing.T) {
	t.Run("whole", func(t *testing.T) { whole(t, sinktest.Record(t)) })
	t.Run("following", func(t *testing.T) { following(t, sinktest.Record(t)) })
}

func whole(t *testing.T, r *sinktest.Recording) {
	r.Emit(50)
	r.Lose(7)
	r.Emit(9000)
	r.Roll()
	r.Emit(100)
	r.Roll()
	o := sink.Options{Dir: r.Dir, Name: Name}
	for range 2 { // the second finds all done
		if err := sink.Bring(t.Context(), o, NewSink(vfs.OS(), r.Dir)); err != nil {
			t.Fatal(err)
		}
		s, err := sink.ReadStatus(vfs.OS(), r.Dir, Name)
		if err != nil || s.Next != r.Frames() || s.Records != 9150 {
			t.Errorf("the cursor is %+v, %v; want frame %d", s, err, r.Frames())
		}
	}
	want(t, r, 9150, 7)
}

func want(t *testing.T, r *sinktest.Recording, records, lost uint64) {
	t.Helper()
	q, err := Open(t.Context(), QueryOptions{Dir: r.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if e := q.Extent(); e.Records != records || e.Lost != lost || e.FromStep != 1 || e.ToStep != records+lost {
		t.Errorf("%+v, want %d records and %d lost", e, records, lost)
	}
	for _, columns := range []int{1, 10, 5000} {
		cs, err := q.Range(t.Context(), Field{Name: "loss"}, 0, math.MaxUint64, columns)
		if err != nil {
			t.Fatal(err)
		}
		n, l := uint64(0), uint64(0)
		for _, c := range cs {
			n, l = n+c.Count, l+c.Lost
		}
		if n != records || l != lost {
			t.Errorf("%d columns have %d records and %d lost", len(cs), n, l)
		}
	}
}

// following brings and asks while the run is recorded.
func following(t *testing.T, r *sinktest.Recording) {
	r.Emit(10)
	follow, end := sinktest.Until()
	o := sink.Options{Dir: r.Dir, Name: Name, SyncEvery: 1, Pace: sink.Pace{Poll: 1, Follow: follow}}
	q, err := Open(t.Context(), QueryOptions{Dir: r.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	done, asked := make(chan error, 1), make(chan error, 4)
	go func() { done <- sink.Bring(t.Context(), o, NewSink(vfs.OS(), r.Dir)) }()
	for i := range 4 {
		go func() { asked <- ask(t.Context(), q, i, follow) }()
	}
	for range 30 {
		r.Emit(700)
		r.Lose(1)
		r.Roll()
	}
	r.Emit(5)
	end()
	for range 4 {
		if err := <-asked; err != nil {
			t.Error(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want(t, r, 21015, 30)
}

// ask asks until the run has ended: steps only grow, and none is missing in what was told.
func ask(ctx context.Context, q *Query, i int, recorded func() bool) error {
	newest := uint64(0)
	for {
		if !recorded() {
			return nil
		}
		if i%2 == 0 {
			if err := q.Refresh(ctx); err != nil {
				return err
			}
		}
		cs, err := q.Range(ctx, Field{Name: "count"}, 0, math.MaxUint64, 7)
		if err != nil {
			return err
		}
		n, to := uint64(0), uint64(0)
		for _, c := range cs {
			n, to = n+c.Count+c.Lost, c.UntilStep
		}
		if len(cs) > 0 && (n < to || n > to+1 || to < newest) { // a loss behind the last record may be among them
			return fmt.Errorf("%d records up to step %d, after step %d was seen", n, to, newest)
		}
		newest = to
	}
}
