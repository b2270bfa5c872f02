package segment_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// log is a caller as the recorder is one: it rolls, continues after poisoning and knows what was
// acknowledged to it.
type log struct {
	fs       vfs.FS
	burst    uint64 // frames at a time, at least
	room     int64  // of a segment, bytes
	w        *segment.Writer
	directly int                       // bytes of memory for writing so, at most
	appended uint64                    // frames given to Append
	acked    uint64                    // frames that a Sync has covered
	sealed   map[string]segment.Sealed // by path
	poisoned []string                  // paths left behind
	errs     []error
}

func newLog(fsys vfs.FS) *log {
	return &log{fs: fsys, burst: 1, room: 16 << 10, sealed: map[string]segment.Sealed{}}
}

// newLargeLog is of one whose syncs are of 2 to 22 KiB.
func newLargeLog(fsys vfs.FS) *log {
	l := newLog(fsys)
	l.burst, l.room = 20, 128<<10
	return l
}

func (l *log) options() segment.Options {
	o := indexed(l.fs)
	o.Size = l.room
	return o
}

// workload writes a few segments with syncs of different sizes. Errors are noted, and each operation is
// tried again at the next step.
func (l *log) workload(frames uint64) {
	for l.appended < frames {
		if !l.ready() {
			continue
		}
		for range min((l.appended/l.burst%9+1)*l.burst, frames-min(frames, l.w.Next())) {
			if err := l.w.Append(frame(l.w.Next())); err != nil {
				l.note(err)
				break
			}
			l.appended = max(l.appended, l.w.Next())
		}
		if l.appended/l.burst%3 == 0 {
			l.note(l.w.Flush())
			continue
		}
		l.sync()
		if l.w.Size() > l.room*9/16 {
			l.seal()
		}
	}
	for l.acked < frames || l.w != nil {
		if l.ready() {
			l.sync()
			l.seal()
		}
		if len(l.errs) > 1000 {
			return // the fault stays
		}
	}
}

// ready makes sure that there is a writer which takes frames.
func (l *log) ready() bool {
	var err error
	switch {
	case l.w == nil:
		l.w, err = segment.Create(dir, l.acked, l.options())
	case l.w.Err() != nil:
		var next *segment.Writer
		if next, err = l.w.Continue(l.options()); err == nil {
			l.poisoned = append(l.poisoned, l.w.Path())
			l.w = next
		}
	}
	l.note(err)
	if len(l.errs) > 1000 {
		l.appended = 1 << 40
	}
	return err == nil
}

func (l *log) sync() {
	err := l.w.Sync()
	l.note(err)
	l.directly = max(l.directly, segment.DirectMemory(l.w))
	if err == nil {
		l.acked = l.w.Next()
	}
}

func (l *log) seal() {
	if l.w.Err() != nil {
		return
	}
	s, err := l.w.Seal()
	l.note(err)
	if err != nil {
		return
	}
	l.acked = l.w.Next()
	if s.Count > 0 {
		l.sealed[l.w.Path()] = s
	}
	l.w = nil
}

func (l *log) note(err error) {
	if err != nil {
		l.errs = append(l.errs, err)
	}
}

// recovered checks what a restart finds: after Repair of every segment all acknowledged frames are
// there, nothing is corrupt, nothing is invented, and one can go on.
func recovered(fsys vfs.FS, acked, appended uint64, sealed map[string]segment.Sealed) error {
	infos, err := segment.List(fsys, dir)
	if err != nil {
		return err
	}
	for _, info := range infos {
		s, err := segment.RepairIndexed(fsys, info.Path, newSummary)
		if err != nil {
			return err
		}
		if err := checkIndex(fsys, info.Path, s); err != nil {
			return err
		}
		if s.Damaged != 0 {
			return fmt.Errorf("%s: %d damaged ranges", info.Name, s.Damaged)
		}
		if want, ok := sealed[info.Path]; ok && s != want {
			return fmt.Errorf("was sealed as %+v, is %+v", want, s)
		}
		again, err := segment.RepairIndexed(fsys, info.Path, newSummary)
		if s.Torn = 0; s.Count > 0 && (err != nil || again != s) {
			return fmt.Errorf("second repair of %+v: %+v, %v", s, again, err)
		}
	}
	next, err := count(fsys)
	if err != nil {
		return err
	}
	if next < acked || next > appended {
		return fmt.Errorf("%d frames found, %d acknowledged, %d appended", next, acked, appended)
	}
	w, err := segment.Create(dir, next, options(fsys))
	if err != nil {
		return err
	}
	if err := errors.Join(w.Append(frame(next)), w.Close()); err != nil {
		return err
	}
	if got, err := count(fsys); err != nil || got != next+1 {
		return fmt.Errorf("after continuing: %d frames of %d, %v", got, next+1, err)
	}
	return nil
}

// count reads the whole stream, which must begin at 0 and have no hole, and returns its length.
func count(fsys vfs.FS) (next uint64, err error) {
	for f, err := range segment.Frames(fsys, dir) {
		if err != nil {
			return next, err
		}
		if f.Ordinal != next || !bytes.Equal(f.Data, frame(next)) {
			return next, fmt.Errorf("frame %d in the place of %d, or with another content", f.Ordinal, next)
		}
		next++
	}
	return next, nil
}

// crashes returns what crashes of m now may leave.
func crashes(m *vfs.Mem, seeds int) map[string]*vfs.Mem {
	all := map[string]*vfs.Mem{
		"drop": m.Crash(nil, vfs.DropAll),
		"keep": m.Crash(nil, vfs.KeepAll),
	}
	for seed := range seeds {
		all[fmt.Sprint("mixed ", seed)] = m.Crash(rand.New(rand.NewPCG(1, uint64(seed))), vfs.Mixed)
		all[fmt.Sprint("garbage ", seed)] = m.Crash(rand.New(rand.NewPCG(2, uint64(seed))), vfs.Garbage)
	}
	return all
}

func TestCrashAtEveryOp(t *testing.T) {
	t.Run("small", func(t *testing.T) { crashAtEveryOp(t, newLog, 200, 4) })
	t.Run("large", func(t *testing.T) { crashAtEveryOp(t, newLargeLog, 2400, 1) })
}

func crashAtEveryOp(t *testing.T, newLog func(vfs.FS) *log, frames uint64, seeds int) {
	m := newFS(t)
	l := newLog(m)
	points, torn := 0, 0
	m.SetHook(func(op vfs.Op) {
		if op.Kind&vfs.OpMutates == 0 || t.Failed() {
			return // the same state as before the next operation that changes one
		}
		points++
		for name, after := range crashes(m, seeds) {
			if err := recovered(after, l.acked, l.appended+9*l.burst, l.sealed); err != nil {
				t.Errorf("crash (%s) before %v: %v", name, op, err)
			}
			list, err := after.ReadDir(dir)
			check(t, err)
			for _, e := range list {
				if len(e.Name()) > 24 && e.Name()[24:] == ".torn" {
					torn++
				}
			}
		}
	})
	l.workload(frames)
	m.SetHook(nil)
	if len(l.errs) > 0 {
		t.Errorf("errors %v", l.errs)
	}
	if points < 100 || torn < 10 || len(l.sealed) < 3 {
		t.Errorf("the workload is too tame: %d crash points, %d torn tails, %d segments", points, torn, len(l.sealed))
	}
	if l.directly <= vfs.DirectBlock {
		t.Errorf("nothing was written directly, for which there are %d bytes", l.directly)
	}
	check(t, recovered(m, frames, frames, l.sealed))
}

// A crash while a crash is being repaired.
func TestCrashInRepair(t *testing.T) {
	points := 0
	for seed := range uint64(8) {
		m := newFS(t)
		w := create(t, m, 0)
		appendTo(t, w, 12)
		for w.Next() < 60 {
			check(t, w.Append(frame(w.Next())))
			if w.Next()%16 == 0 {
				check(t, w.Flush())
			}
		}
		check(t, w.Flush())
		m = m.Crash(rand.New(rand.NewPCG(3, seed)), vfs.Garbage)
		m.SetHook(func(op vfs.Op) {
			if op.Kind&vfs.OpMutates == 0 {
				return
			}
			points++
			for name, after := range crashes(m, 4) {
				if err := recovered(after, 12, 60, nil); err != nil {
					t.Errorf("seed %d: crash (%s) before %v: %v", seed, name, op, err)
				}
			}
		})
		_, err := segment.RepairIndexed(m, w.Path(), newSummary)
		check(t, err)
		m.SetHook(nil)
		check(t, recovered(m, 12, 60, nil))
	}
	if points < 60 {
		t.Errorf("only %d crash points", points)
	}
}

// TestErrorAtEveryOp makes each operation of the workload fail once, and then it and all after it for a
// while. Every failure must come out as an error, and what was acknowledged be there, also when power
// is lost right after, where a sync that failed once has succeeded the second time.
func TestErrorAtEveryOp(t *testing.T) {
	t.Run("small", func(t *testing.T) { errorAtEveryOp(t, newLog, 60) })
	t.Run("large", func(t *testing.T) { errorAtEveryOp(t, newLargeLog, 1000) })
}

func errorAtEveryOp(t *testing.T, newLog func(vfs.FS) *log, frames uint64) {
	for _, rule := range []vfs.Rule{
		{Err: syscall.EIO}, {Err: syscall.ENOSPC, Short: true}, {Err: syscall.EIO, Sticky: true},
	} {
		for nth := 1; ; nth++ {
			m := newFS(t)
			rule.Nth = nth
			in := vfs.Inject(m, rule)
			if rule.Sticky {
				in.SetHook(func(op vfs.Op) {
					if op.N == nth+12 {
						in.Clear()
					}
				})
			}
			l := newLog(in)
			l.workload(frames)
			if len(in.Fired()) == 0 {
				if nth < 50 {
					t.Errorf("only %d operations", nth)
				}
				break
			}
			what := fmt.Sprintf("after %v failed (%v, sticky %v)", in.Fired()[0], rule.Err, rule.Sticky)
			if len(l.errs) == 0 || !errors.Is(l.errs[0], rule.Err) {
				t.Errorf("%s: errors %v", what, l.errs)
			}
			if l.acked != frames {
				t.Errorf("%s: only %d frames acknowledged: %v", what, l.acked, l.errs[:min(3, len(l.errs))])
			}
			for name, after := range crashes(m, 2) {
				if err := recovered(after, l.acked, frames, l.sealed); err != nil {
					t.Errorf("%s: crash (%s): %v", what, name, err)
				}
			}
			if t.Failed() {
				return
			}
		}
	}
}

func TestPoison(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync} {
		t.Run(kind.String(), func(t *testing.T) {
			m := newFS(t)
			in := vfs.Inject(m)
			w := create(t, in, 0)
			appendTo(t, w, 10)
			in.Add(vfs.Rule{Op: kind})
			for w.Next() < 25 {
				check(t, w.Append(frame(w.Next())))
			}
			first := w.Sync()
			if !errors.Is(first, segment.ErrPoisoned) || !errors.Is(first, syscall.EIO) {
				t.Fatalf("error %v", first)
			}
			calls := in.Calls(vfs.OpMutates)
			_, sealErr := w.Seal()
			for _, err := range []error{w.Append(nil), w.Flush(), w.Sync(), sealErr, w.Close(), w.Err()} {
				if !errors.Is(err, segment.ErrPoisoned) || !errors.Is(err, syscall.EIO) {
					t.Errorf("error %v", err)
				}
			}
			if got := in.Calls(vfs.OpMutates); got != calls {
				t.Errorf("%d more operations on a poisoned file", got-calls)
			}
			if ordinal, _ := w.Synced(); ordinal != 10 || len(unsynced(t, w)) != 15 {
				t.Errorf("synced %d, %d unsynced", ordinal, len(unsynced(t, w)))
			}
			next, err := w.Continue(options(in))
			check(t, err)
			if next.Base() != 10 || next.Next() != 25 {
				t.Errorf("continued at %d, %d", next.Base(), next.Next())
			}
			appendTo(t, next, 30)
			s, err := segment.Repair(m, w.Path())
			check(t, err)
			if s.Count != 10 {
				t.Errorf("the old segment is sealed with %+v", s)
			}
			if got, err := count(m); err != nil || got != 30 {
				t.Errorf("%d frames, %v", got, err)
			}
		})
	}
}

// A file that was said to take what is written directly, and does not, gets it as others do. Nothing is poisoned by that.
func TestNotDirectly(t *testing.T) {
	for _, rule := range []vfs.Rule{{Err: syscall.EINVAL}, {Err: syscall.EINVAL, Short: true}, {Err: syscall.EOPNOTSUPP}} {
		rule.Op = vfs.OpWrite
		in := vfs.Inject(newFS(t))
		l := newLargeLog(in)
		l.ready()
		in.Add(rule)
		for range 400 {
			check(t, l.w.Append(frame(l.w.Next())))
		}
		l.sync()
		if len(in.Fired()) != 1 || len(l.errs) > 0 || l.directly > 0 {
			t.Fatalf("%v: %d calls failed, errors %v, %d bytes for writing directly", rule, len(in.Fired()), l.errs, l.directly)
		}
		l.appended = 400
		l.workload(800)
		check(t, errors.Join(l.errs...))
		if got, err := count(in); err != nil || got != 800 {
			t.Errorf("%v: %d frames of 800, %v", rule, got, err)
		}
	}
}

func TestContinueOnlyWhenPoisoned(t *testing.T) {
	w := create(t, newFS(t), 0)
	if _, err := w.Continue(segment.Options{}); err == nil {
		t.Error("a sound segment is abandoned")
	}
}

// The space is there before the first frame is, so a disk that fills up does not stop the segment.
func TestDiskFull(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	m.SetCapacity(16 << 10)
	for w.Size() < 15<<10 {
		appendTo(t, w, w.Next()+1)
	}
	if _, err := segment.Create(dir, w.Next(), options(m)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v, want ENOSPC", err)
	}
	s, err := w.Seal()
	check(t, err)
	if got, err := count(m); err != nil || got != s.Count {
		t.Errorf("%d frames of %d, %v", got, s.Count, err)
	}
	list, err := m.ReadDir(dir)
	check(t, err)
	if len(list) != 1 {
		t.Errorf("the failed Create left %v", list)
	}
}

// Without later segment and without a crash, frames that were written but never synced are kept.
func TestRepairKeepsWhatIsReadable(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 10)
	for w.Next() < 20 {
		check(t, w.Append(frame(w.Next())))
	}
	check(t, w.Flush())
	check(t, w.Abort())
	s, err := segment.Repair(m, w.Path())
	check(t, err)
	if s.Count != 20 || s.Torn != 0 {
		t.Errorf("%+v", s)
	}
}

// What was never acknowledged and is in the next segment again must not be there twice.
func TestRepairCutsWhatTheNextHolds(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 10)
	for w.Next() < 20 {
		check(t, w.Append(frame(w.Next())))
	}
	check(t, w.Flush())
	check(t, w.Abort())
	next := create(t, m, 10)
	appendTo(t, next, 25)
	_, size := w.Synced()
	check(t, m.Chmod(w.Path(), 0o444)) // is no obstacle
	s, err := segment.Repair(m, w.Path())
	check(t, err)
	if s.Count != 10 || s.Size != size+40 || s.Torn == 0 {
		t.Errorf("%+v", s)
	}
	if got, err := count(m); err != nil || got != 25 {
		t.Errorf("%d frames, %v", got, err)
	}
}

// A process that is killed between footer and sync leaves a file that looks sealed and is not durable.
func TestRepairSyncsASeal(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 10)
	m.SetHook(func(op vfs.Op) {
		if op.Kind == vfs.OpSync {
			panic("killed")
		}
	})
	func() {
		defer func() { _ = recover() }()
		_, _ = w.Seal()
	}()
	m.SetHook(nil)
	s, err := segment.Repair(m, w.Path())
	check(t, err)
	if again, err := segment.Repair(m.Crash(nil, vfs.DropAll), w.Path()); err != nil || again != s {
		t.Errorf("%+v, %v; was %+v", again, err, s)
	}
	if got := readAll(t, m.Crash(nil, vfs.DropAll), w.Path()); !got.Sealed {
		t.Errorf("after a loss of power: %+v", got)
	}
}

// What is read after a failed sync must come from the disk.
func TestRepairDistrustsTheCache(t *testing.T) {
	m := newFS(t)
	in := vfs.Inject(m)
	w := create(t, in, 0)
	appendTo(t, w, 10)
	in.Add(vfs.Rule{Op: vfs.OpDatasync})
	check(t, w.Append(frame(10)))
	if w.Sync() == nil {
		t.Fatal("no error")
	}
	check(t, w.Abort())
	s, err := segment.Repair(m, w.Path())
	check(t, err)
	if s.Count != 10 {
		t.Errorf("%+v", s)
	}
	if got := readAll(t, m.Crash(nil, vfs.DropAll), w.Path()); !slices.Equal(got.Ordinals, seq(0, 10)) || !got.Sealed {
		t.Errorf("%+v", got)
	}
}

func TestReadError(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 50)
	_, err := w.Seal()
	check(t, err)
	for nth := 1; ; nth++ {
		in := vfs.Inject(m, vfs.Rule{Nth: nth})
		err := readOnce(in, w.Path())
		if len(in.Fired()) == 0 {
			check(t, err)
			break
		}
		var corrupt *segment.CorruptError
		if !errors.Is(err, syscall.EIO) || errors.As(err, &corrupt) {
			t.Errorf("after %v failed: %v", in.Fired(), err)
		}
	}
}

func readOnce(fsys vfs.FS, path string) (err error) {
	r, err := segment.Open(fsys, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for {
		if _, _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Where there is no space for a whole segment a smaller one does, if that is allowed.
func TestSmallerWhereSpaceIsShort(t *testing.T) {
	for _, c := range []struct {
		capacity, least, room int64
		err                   error
	}{
		{1 << 20, 8 << 10, 64 << 10, nil},
		{40 << 10, 8 << 10, 32 << 10, nil},
		{10 << 10, 8 << 10, 8 << 10, nil},
		{40 << 10, 0, 0, syscall.ENOSPC},
		{4 << 10, 8 << 10, 0, syscall.ENOSPC},
	} {
		m := vfs.NewMem()
		if err := m.Mkdir("/d", 0o755); err != nil {
			t.Fatal(err)
		}
		m.SetCapacity(c.capacity)
		w, err := segment.Create("/d", 0, segment.Options{FS: m, Kind: segment.KindTelemetry, Size: 64 << 10, MinSize: c.least})
		if !errors.Is(err, c.err) {
			t.Fatalf("%+v: %v", c, err)
		}
		if err == nil && w.Room() != c.room {
			t.Errorf("%+v: room for %d bytes", c, w.Room())
		}
	}
}
