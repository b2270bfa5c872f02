package pyramid

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// TestCrash ends the machine before each operation that changes the disk: what Sync said is there for good, a range is what it is, and a new sink
// makes the same files as one that was never ended.
func TestCrash(t *testing.T) {
	f := segments(t)
	defer f.close()
	rows := f.effective()
	d := feed(f, 0)
	d.write(100)
	d.close()
	want := f.files()
	for name := range want {
		check(t, f.fs.Remove(directory(f.dir)+"/"+name))
	}
	check(t, f.fs.Remove(directory(f.dir)))
	check(t, f.fs.SyncDir(f.dir.Sinks()))
	m := f.fs.(*vfs.Mem)
	synced, crashes := uint64(0), 0
	m.SetHook(func(op vfs.Op) {
		if op.Kind&vfs.OpMutates == 0 {
			return
		}
		for seed, policy := range []vfs.Policy{vfs.DropAll, vfs.KeepAll, vfs.Mixed, vfs.Mixed, vfs.Garbage} {
			after := *f
			after.fs = m.Crash(rand.New(rand.NewPCG(uint64(op.N), uint64(seed))), policy)
			crashes++
			q := after.open(defaultLeaf)
			compare(t, q, &after, rows, Field{Name: "loss"}, 0, math.MaxUint64, 3)
			check(t, q.Close())
			d := feed(&after, 0)
			if at := d.in.Position(); at < synced {
				t.Errorf("crash %d before %v: begins at frame %d, %d was synced", policy, op, at, synced)
			}
			d.write(100)
			d.close()
			if got := after.files(); !maps.Equal(got, want) {
				t.Errorf("crash %d before %v: %d files that are not the %d wanted", policy, op, len(got), len(want))
			}
		}
	})
	d = feed(f, 0)
	for range 20 {
		d.write(1)
		at, err := d.sink.Sync(t.Context())
		check(t, err)
		synced = at.Next
	}
	m.SetHook(nil)
	d.close()
	if synced != f.ordinal || crashes < 100 {
		t.Errorf("synced %d of %d frames, %d crashes", synced, f.ordinal, crashes)
	}
}

// TestFaults fails each operation once: the error is told, and the sink that is begun again makes what one without faults does.
func TestFaults(t *testing.T) {
	f := segments(t)
	defer f.close()
	d := feed(f, 0)
	d.write(100)
	d.close()
	want := f.files()
	for nth := 1; ; nth++ {
		for name := range want {
			check(t, f.fs.Remove(directory(f.dir)+"/"+name))
		}
		in := vfs.Inject(f.fs, vfs.Rule{Op: vfs.OpMutates, Nth: nth, Err: syscall.ENOSPC})
		s := NewSink(in, f.dir)
		err := bring(f, s)
		if len(in.Fired()) == 0 {
			check(t, err)
			if nth < 15 {
				t.Errorf("only %d operations", nth)
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) && err != nil {
			t.Errorf("%v failed and the error is %v", in.Fired(), err)
		}
		if err == nil && in.Fired()[0].Kind != vfs.OpClose {
			t.Errorf("%v failed without an error", in.Fired())
		}
		check(t, bring(f, s))
		sameFiles(t, f.files(), want)
	}
}

// bring gives a sink all that there is.
func bring(f *fixture, s *Sink) error {
	at, err := s.Begin(f.ctx(), sink.Run{ID: runID, Schema: f.schema}, sink.Cursor{})
	if err != nil {
		return err
	}
	in := sink.Follow(f.fs, f.dir, at.Next)
	defer in.Close()
	for {
		b, err := in.Next()
		if err != nil {
			return nil // the end
		}
		if err := s.Write(f.ctx(), b); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
}
