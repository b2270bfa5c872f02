package recorder_test

import (
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// troubled starts a recorder, records something and makes its storage fail.
func troubled(t *testing.T, disk *vfs.Mem, slots int, change func(*recorder.Options)) (*vfs.Injector, *producer, *running) {
	t.Helper()
	in := vfs.Inject(disk)
	o := options(in)
	change(&o)
	p := newProducer(t, ringConfig{slots: slots})
	x := start(t, p.Path(), o)
	p.emit(20)
	p.waitFor(0)
	in.Add(vfs.Rule{Op: vfs.OpMutates, Sticky: true})
	p.emit(1)
	p.until(func(c ring.ConsumerState) bool { return c.Fault == syscall.EIO })
	return in, p, x
}

// TestTroubleHangs: a try to store that does not come back keeps nothing from leaving a ring that is nearly full.
func TestTroubleHangs(t *testing.T) {
	const slots = 128
	disk := vfs.NewMem()
	in, p, x := troubled(t, disk, slots, func(o *recorder.Options) {
		o.SegmentSize, o.CommitBytes, o.HoldBytes = 4<<20, 1<<20, 4<<20
	})
	hangs, goOn := make(chan struct{}), make(chan struct{})
	hang := sync.OnceFunc(func() { close(hangs); <-goOn })
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	disk.SetHook(func(vfs.Op) { hang() })
	<-hangs
	for range 10 * slots {
		p.emit(1)
		p.waitDrained()
	}
	release()
	in.Clear()
	check(t, p.Finish(true))
	sum := x.finish()
	balanced(t, sum, verifyOK(t, disk).Completeness.Generations[0], p.Position())
	if sum.Lost > 0 {
		t.Errorf("%+v: memory had room for all", sum)
	}
}

// TestTroubleEndsSlowly: what comes while a slow disk takes all that is held is taken out of the ring.
func TestTroubleEndsSlowly(t *testing.T) {
	const slots = 128
	disk := vfs.NewMem()
	in, p, x := troubled(t, disk, slots, func(o *recorder.Options) {
		o.SegmentSize, o.CommitBytes, o.HoldBytes = 64<<10, 16<<10, 4<<20 // a commit takes more than comes meanwhile
	})
	for range 400 {
		p.emit(2)
		p.waitDrained()
	}
	var slow atomic.Int64
	disk.SetHook(func(op vfs.Op) {
		if op.Kind == vfs.OpDatasync && slow.Add(1) <= 400 {
			time.Sleep(time.Millisecond) // what this disk takes for it
		}
	})
	in.Clear()
	for seen := int64(0); seen < 400; {
		if now := slow.Load(); now > seen {
			seen = now
			p.emit(8)
		}
		time.Sleep(100 * time.Microsecond)
	}
	check(t, p.Finish(true))
	sum := x.finish()
	balanced(t, sum, verifyOK(t, disk).Completeness.Generations[0], p.Position())
	if sum.Lost > 0 {
		t.Errorf("%+v: memory had room for all", sum)
	}
}

// TestTroubleAtTheEnd: a run that ends while memory is full keeps what its ring had, if storage is well in time.
func TestTroubleAtTheEnd(t *testing.T) {
	const slots = 64
	disk := vfs.NewMem()
	in, p, x := troubled(t, disk, slots, func(o *recorder.Options) { o.HoldBytes, o.Patience = 64<<10, 20*time.Second })
	for range 400 {
		p.emit(1)
		p.waitDrained()
	}
	check(t, p.Finish(true))
	p.until(func(c ring.ConsumerState) bool { return c.Position == p.Position() })
	in.Clear()
	sum := x.finish()
	balanced(t, sum, verifyOK(t, disk).Completeness.Generations[0], p.Position())
	last := frames(t, disk)
	if f := last[len(last)-1]; sum.Lost == 0 || f.Seq+1 != p.Position() || f.To != 0 {
		t.Errorf("%+v; the last is %+v", sum, f)
	}
}
