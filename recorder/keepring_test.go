package recorder_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// troubled is a run whose storage fails after its first records.
type troubled struct {
	*producer
	disk *vfs.Mem
	in   *vfs.Injector
	x    *running
	asks atomic.Uint64 // for the time
}

func newTroubled(t *testing.T, slots int, change func(*recorder.Options)) *troubled {
	t.Helper()
	disk := vfs.NewMem()
	in := vfs.Inject(disk)
	o := options(in)
	change(&o)
	r := &troubled{disk: disk, in: in}
	now := o.Now()
	o.Now = func() time.Time { return now.Add(time.Duration(r.asks.Add(1)) * 100 * time.Millisecond) }
	p := newProducer(t, ringConfig{slots: slots})
	r.producer, r.x = p, start(t, p.Path(), o)
	p.emit(20)
	p.waitFor(0)
	in.Add(vfs.Rule{Op: vfs.OpMutates, Sticky: true})
	p.emit(1)
	p.until(func(c ring.ConsumerState) bool { return c.Fault == syscall.EIO })
	return r
}

// looks waits for some looks of the recorder at the ring. It asks for the time twice at each, and now and then otherwise.
func (r *troubled) looks(n uint64) {
	r.t.Helper()
	until := r.asks.Load() + 3*n
	r.until(func(ring.ConsumerState) bool { return r.asks.Load() >= until })
}

// emitSlowly emits n records, so many at once, and leaves the recorder time to take out of the ring what it does.
func (r *troubled) emitSlowly(n, each int) {
	r.t.Helper()
	for range n / each {
		r.emit(each)
		r.waitDrained()
		r.looks(3)
	}
}

// finish ends the run, whose storage is well or is so soon, and returns what came of it, with every record accounted for.
func (r *troubled) finish(t *testing.T) recorder.Summary {
	t.Helper()
	check(t, r.Finish(true))
	return r.finished(t)
}

func (r *troubled) finished(t *testing.T) recorder.Summary {
	t.Helper()
	sum := r.x.finish()
	balanced(t, sum, verifyOK(t, r.disk).Completeness.Generations[0], r.Position())
	return sum
}

// TestTroubleKeepsInRing: while storage takes nothing records stay in the ring up to three quarters of it, then in memory up
// to what that may hold, and only what comes between is lost.
func TestTroubleKeepsInRing(t *testing.T) {
	const slots, each = 512, 8
	r := newTroubled(t, slots, func(o *recorder.Options) { o.HoldBytes = 8 << 10 })
	taken := r.Consumer().Position
	for r.Position()-taken < slots*3/4 {
		r.emit(each)
		r.looks(3)
	}
	if got := r.Consumer().Position; got != taken {
		t.Fatalf("%d records were taken out of a ring with room", got-taken)
	}
	r.emitSlowly(4*slots, each)
	r.in.Clear()
	r.until(func(c ring.ConsumerState) bool { return c.Fault == 0 && c.Synced == r.Position() })
	r.finish(t)
	if f := r.lostOnce(t, slots/2); f.Seq < taken+8 {
		t.Errorf("memory had room for more than %d records: %+v", f.Seq-taken, f)
	}
}

// TestTroubleHangs: a try to store that does not come back keeps nothing from leaving a ring that is nearly full.
func TestTroubleHangs(t *testing.T) {
	const slots = 128
	r := newTroubled(t, slots, func(o *recorder.Options) { o.SegmentSize, o.CommitBytes, o.HoldBytes = 4<<20, 1<<20, 4<<20 })
	hangs, goOn := make(chan struct{}), make(chan struct{})
	hang := sync.OnceFunc(func() { close(hangs); <-goOn })
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	r.disk.SetHook(func(vfs.Op) { hang() })
	<-hangs
	r.emitSlowly(10*slots, 4)
	release()
	r.in.Clear()
	if sum := r.finish(t); sum.Lost > 0 {
		t.Errorf("%+v: memory had room for all", sum)
	}
}

// TestTroubleEndsSlowly: what comes while a slow disk takes all that is held is taken out of the ring.
func TestTroubleEndsSlowly(t *testing.T) {
	r := newTroubled(t, 128, func(o *recorder.Options) {
		o.SegmentSize, o.CommitBytes, o.HoldBytes = 64<<10, 16<<10, 4<<20 // a commit takes more than comes meanwhile
	})
	r.emitSlowly(800, 2)
	var slow atomic.Int64
	r.disk.SetHook(func(op vfs.Op) {
		if op.Kind == vfs.OpDatasync && slow.Add(1) <= 400 {
			time.Sleep(time.Millisecond) // what this disk takes for it
		}
	})
	r.in.Clear()
	emitted := 0
	for seen := int64(0); seen < 400; {
		if now := slow.Load(); now > seen && r.Position()-r.Consumer().Position < 112 { // a busy machine lets the drainer wait too
			seen = now
			r.emit(8)
			emitted += 8
		} else if now >= 400 {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	if emitted < 1000 {
		t.Errorf("in 400 writes to the disk no more than %d records were taken out of the ring", emitted)
	}
	if sum := r.finish(t); sum.Lost > 0 {
		t.Errorf("%+v: memory had room for all", sum)
	}
}

// TestTroubleAtTheEnd: a run that ends while memory is full keeps what its ring has, if storage is well in time.
func TestTroubleAtTheEnd(t *testing.T) {
	const slots = 64
	r := newTroubled(t, slots, func(o *recorder.Options) { o.HoldBytes, o.Patience = 4<<10, 20*time.Second })
	r.emitSlowly(400, 2)
	check(t, r.Finish(true))
	r.looks(10)
	r.in.Clear()
	sum := r.finished(t)
	r.lostOnce(t, slots*3/4)
	if sum.LostStorage != sum.Lost {
		t.Errorf("%+v", sum)
	}
}

// lostOnce returns the one range of records that is lost, to storage. None of the newest may be.
func (r *troubled) lostOnce(t *testing.T, newest uint64) record.Frame {
	t.Helper()
	var lost []record.Frame
	for _, f := range frames(t, r.disk) {
		if f.Kind == record.KindLost {
			lost = append(lost, f)
		}
	}
	if len(lost) != 1 || lost[0].Reason != record.LostStorage || lost[0].To > r.Position()-newest {
		t.Fatalf("of %d records, of which the newest %d should be there, lost: %+v", r.Position(), newest, lost)
	}
	return lost[0]
}

// TestTroublePatience: a run that has ended waits for storage with what is in the ring, and no longer than its patience lasts.
func TestTroublePatience(t *testing.T) {
	const slots = 64
	r := newTroubled(t, slots, func(o *recorder.Options) { o.Patience = 300 * time.Millisecond })
	r.emitSlowly(200, 2)
	taken := r.Consumer().Position
	check(t, r.Finish(true))
	r.looks(10)
	if got := r.Consumer().Position; got != taken {
		t.Errorf("%d records were taken out of the ring of a run that has ended", got-taken)
	}
	asked := r.asks.Load()
	if sum, err := r.x.wait(); !errors.Is(err, syscall.EIO) || r.Consumer().Position != r.Position() {
		t.Errorf("%+v, %v, %d of %d are taken", sum, err, r.Consumer().Position, r.Position())
	}
	if looks := (r.asks.Load() - asked) / 2; looks > 10_000 {
		t.Errorf("it looked %d times meanwhile", looks)
	}
	r.in.Clear()
	r.x = start(t, r.producer.Path(), options(r.disk))
	if sum := r.finished(t); sum.Emitted-sum.Lost < slots*3/4 {
		t.Errorf("%+v: the ring had more", sum)
	}
}

// TestTroubleStopped: a recorder that is asked to stop while storage takes nothing and memory is full leaves what is in the
// ring to the next.
func TestTroubleStopped(t *testing.T) {
	const slots = 64
	r := newTroubled(t, slots, func(o *recorder.Options) { o.HoldBytes = 4 << 10 })
	r.emitSlowly(400, 2)
	taken := r.Consumer().Position
	r.x.cancel()
	if _, err := r.x.wait(); !errors.Is(err, context.Canceled) || !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if got := r.Consumer().Position; got != taken {
		t.Errorf("%d records were taken out of the ring", got-taken)
	}
	r.in.Clear()
	r.x = start(t, r.producer.Path(), options(r.disk))
	r.finish(t)
}

// TestTroubleOverWhenStopped: a recorder that is asked to stop as storage gets well stores what it has left in the ring too.
func TestTroubleOverWhenStopped(t *testing.T) {
	r := newTroubled(t, 512, func(o *recorder.Options) { o.SegmentSize, o.CommitBytes = 4<<20, 1<<20 })
	r.emitSlowly(300, 4)
	r.in.Clear()
	r.x.cancel()
	if _, err := r.x.wait(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got := r.Consumer().Stored; got != r.Position() {
		t.Errorf("%d of %d are stored", got, r.Position())
	}
	check(t, r.Close(true))
}
