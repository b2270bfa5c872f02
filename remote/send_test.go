package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/snapshot"
)

// TestSend brings snapshots, small and in parts, and does so once.
func TestSend(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	a, b := l.snapshot(1, 100), l.snapshot(2, 5000)
	l.sign()
	check(t, Send(t.Context(), l.options(s)))
	s.holds(t, l, a, b)
	if st := status(t, l); st.Sent != 2 || st.Waiting != 0 || st.Newest != b || st.Step != 2 || st.To != "s3://bucket/fleet" || st.Fault != "" {
		t.Errorf("status %+v", st)
	}

	s.calls = nil
	check(t, Send(t.Context(), l.options(s)))
	for _, c := range s.calls {
		if strings.HasPrefix(c, "put") || strings.HasPrefix(c, "part") || strings.HasPrefix(c, "begin") {
			t.Errorf("brought twice: %s", c)
		}
	}
	if st := status(t, l); st.Sent != 2 {
		t.Errorf("status %+v", st)
	}
}

// TestOrder wants what a snapshot rests on there before it, and its proof last.
func TestOrder(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	l.reuse = &snapshot.Reuse{}
	stays := make([]byte, 100<<10)
	a, b := l.snapshot(1, 10, stays...), l.snapshot(2, 10, stays...)
	l.sign()
	o := l.options(s)
	o.Part = 1 << 20
	check(t, Send(t.Context(), o))
	s.holds(t, l, a, b)
	var puts []string
	for _, c := range s.calls {
		if key, ok := strings.CutPrefix(c, "put fleet/"+testRun+"/"); ok {
			puts = append(puts, key)
		}
	}
	if want := []string{"manifest.json", "manifest.proof.json", "snapshots/" + a, "snapshots/" + a + ".json", "snapshots/" + b, "snapshots/" + b + ".json"}; !slices.Equal(puts, want) {
		t.Errorf("in the order %v, want %v", puts, want)
	}

	// A base that is lost there is brought again before what refers to it.
	delete(s.objects, "fleet/"+testRun+"/snapshots/"+a)
	delete(s.objects, "fleet/"+testRun+"/snapshots/"+a+".json")
	delete(s.objects, "fleet/"+testRun+"/snapshots/"+b+".json")
	check(t, l.fs.Remove(statusFile(l.dir)))
	check(t, Send(t.Context(), o))
	s.holds(t, l, a, b)
}

// TestUnsigned leaves alone what no signed head covers.
func TestUnsigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newLocal(t, testRun), newMemStore()
		a := l.snapshot(1, 100)
		l.sign()
		b := l.snapshot(2, 100)
		ctx, cancel := context.WithCancel(t.Context())
		o := l.options(s)
		o.Follow = func() bool { return true }
		done := make(chan error)
		go func() { done <- Send(ctx, o) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		s.holds(t, l, a)
		l.sign()
		time.Sleep(time.Minute)
		synctest.Wait()
		s.holds(t, l, a, b)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestLate looks again where a file was there before its entry.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newLocal(t, testRun), newMemStore()
		ctx, cancel := context.WithCancel(t.Context())
		o := l.options(s)
		o.Follow = func() bool { return true }
		done := make(chan error)
		go func() { done <- Send(ctx, o) }()
		pause := func() {
			time.Sleep(5 * time.Second) // ten looks
			synctest.Wait()
		}
		pause()
		info := l.write(1, 100)
		pause()
		if len(s.objects) > 0 {
			t.Errorf("%d objects of a snapshot without an entry", len(s.objects))
		}
		a := l.logged(info)
		l.sign()
		pause()
		s.holds(t, l, a)
		l.generation = 1
		to := &rundir.Resumed{Generation: 0, Step: 1, SnapshotSHA256: l.sums[a]}
		sum := l.manifest(to)
		pause()
		l.opened(sum, to)
		pause()
		if _, ok := s.objects["fleet/"+testRun+"/manifest-0001.json"]; !ok {
			t.Error("the manifest of the second generation never came")
		}
		s.holds(t, l, a)
		calls := len(s.calls)
		pause()
		if len(s.calls) > calls {
			t.Errorf("asked for nothing: %v", s.calls[calls:])
		}
		cancel()
		<-done
	})
}

var errAway = fmt.Errorf("%w: test", ErrUnreachable)

// TestOutage has the store away for an hour while snapshots are taken and pruned, and the process killed in the middle: what still is here comes, once,
// and what retention took meanwhile is counted.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newLocal(t, testRun), newMemStore()
		var ended atomic.Bool
		o := l.options(s)
		o.Follow = func() bool { return !ended.Load() }
		o.Patience = 5 * time.Second
		away := time.Now().Add(time.Hour)
		s.before = func(context.Context, string, string) error {
			if time.Now().Before(away) {
				return errAway
			}
			return nil
		}
		ctx, kill := context.WithCancel(t.Context())
		defer kill()
		done := make(chan error)
		go func() { done <- Send(ctx, o) }()
		var names []string
		for i := range 60 {
			names = append(names, l.snapshot(uint64(i+1), 2000))
			l.sign()
			if i >= 5 {
				l.prune(names[i-5])
			}
			time.Sleep(time.Minute)
			if i == 30 {
				if st := status(t, l); st.Waiting == 0 || !strings.Contains(st.Fault, "does not answer") || st.Tries < 10 || st.Oldest.IsZero() {
					t.Errorf("in the middle: %+v", st)
				}
				kill()
				<-done
				go func() { done <- Send(t.Context(), o) }()
			}
		}
		time.Sleep(time.Minute) // the longest pause is shorter
		synctest.Wait()
		s.holds(t, l, names[55:]...)
		st := status(t, l)
		if st.Sent != 5 || st.Missed != 55 || st.Waiting != 0 || st.Fault != "" || st.Tries != 0 {
			t.Errorf("behind it: %+v", st)
		}
		begun := 0
		for _, c := range s.calls {
			if strings.HasPrefix(c, "begin") && !strings.HasPrefix(c, "begin fleet/"+testRun+"/snapshots/"+names[55]) {
				begun++
			}
		}
		if begun != 4 {
			t.Errorf("the other four were begun %d times", begun)
		}
		ended.Store(true)
		check(t, <-done)
	})
}

// TestPatience gives a store that takes nothing some time when the run has ended, and no more.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newLocal(t, testRun), newMemStore()
		l.snapshot(1, 100)
		l.sign()
		s.before = func(context.Context, string, string) error { return errAway }
		o := l.options(s)
		o.Patience = 5 * time.Second
		began := time.Now()
		err := Send(t.Context(), o)
		if !errors.Is(err, sink.ErrPatience) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
		if d := time.Since(began); d < 5*time.Second || d > 15*time.Second {
			t.Errorf("after %v", d)
		}
		for _, class := range []error{ErrDenied, ErrNotFound} {
			s.before = func(context.Context, string, string) error { return fmt.Errorf("%w: test", class) }
			if err := Send(t.Context(), o); !errors.Is(err, class) || errors.Is(err, sink.ErrPatience) {
				t.Errorf("%v: %v", class, err)
			}
		}
	})
}

// TestInterrupted cuts the sending off at every single call, before it is done and behind it, in the same process and in another one: in the end all is there,
// once, and nothing else.
func TestInterrupted(t *testing.T) {
	prepare := func() (*local, *memStore, []string) {
		l := newLocal(t, testRun)
		names := []string{l.snapshot(1, 3000), l.snapshot(2, 100), l.snapshot(3, 5000)}
		l.sign()
		return l, newMemStore(), names
	}
	l, s, _ := prepare()
	check(t, Send(t.Context(), l.options(s)))
	calls := len(s.calls)
	if calls < 20 {
		t.Fatalf("only %d calls", calls)
	}
	cut := 0
	for n := range calls {
		for _, behind := range []bool{false, true} {
			for _, killed := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					l, s, names := prepare()
					ctx, kill := context.WithCancel(t.Context())
					defer kill()
					count, failed := 0, 0
					fail := func() error {
						if count++; count != n+1 {
							return nil
						}
						failed++
						if killed {
							kill()
						}
						return errAway
					}
					if behind {
						s.after = func(string, string) error { return fail() }
					} else {
						s.before = func(context.Context, string, string) error { return fail() }
					}
					err := Send(ctx, l.options(s))
					if failed == 0 && behind {
						check(t, err)
						return // what was not there was asked for, and that call is not counted
					}
					cut++
					if killed {
						if !errors.Is(err, context.Canceled) {
							t.Fatalf("call %d: %v", n, err)
						}
						err = Send(t.Context(), l.options(s))
					}
					check(t, err)
					if failed != 1 {
						t.Errorf("call %d failed %d times", n, failed)
					}
					s.holds(t, l, names...)
					if st := status(t, l); st.Sent != 3 || st.Missed != 0 || st.Waiting != 0 || st.Fault != "" {
						t.Errorf("call %d: %+v", n, st)
					}
				})
			}
		}
	}
}

// TestParts goes on behind the last part that arrived.
func TestParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newLocal(t, testRun), newMemStore()
		a := l.snapshot(1, 8<<10)
		l.sign()
		failed := false
		s.before = func(_ context.Context, call, _ string) error {
			if call == "part5" && !failed {
				failed = true
				return errAway
			}
			return nil
		}
		check(t, Send(t.Context(), l.options(s)))
		s.holds(t, l, a)
		counts := map[string]int{}
		for _, c := range s.calls {
			word, _, _ := strings.Cut(c, " ")
			counts[word]++
		}
		if counts["begin"] != 1 || counts["part1"] != 1 || counts["part4"] != 1 || counts["part5"] != 2 {
			t.Errorf("%v", counts)
		}
	})
}

// TestPartSize keeps within what S3 takes.
func TestPartSize(t *testing.T) {
	for _, tt := range [][3]int64{{16 << 20, 1, 16 << 20}, {16 << 20, 100 << 30, 16 << 20}, {16 << 20, 16<<20*10_000 + 1, 16<<20 + 1}, {5 << 20, 1 << 40, 109951163}} {
		if got := partSize(tt[0], tt[1]); got != tt[2] || got*maxParts < tt[1] {
			t.Errorf("%d bytes in parts of %d, want %d", tt[1], got, tt[2])
		}
	}
}

// TestForgotten begins anew where the store has given up an upload, as it does when one takes days.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newLocal(t, testRun), newMemStore()
		a := l.snapshot(1, 8<<10)
		l.sign()
		forgot := false
		s.before = func(_ context.Context, call, _ string) error {
			if call == "part5" && !forgot {
				forgot = true
				clear(s.uploads)
			}
			return nil
		}
		check(t, Send(t.Context(), l.options(s)))
		s.holds(t, l, a)
		if !forgot {
			t.Error("nothing was given up")
		}
	})
}

// TestLocalDamage never sends what is not what the log names, and says so.
func TestLocalDamage(t *testing.T) {
	for _, size := range []int{100, 5000} {
		l, s := newLocal(t, testRun), newMemStore()
		a, b, c := l.snapshot(1, 100), l.snapshot(2, size), l.snapshot(3, 100)
		l.sign()
		path := l.dir.Snapshot(b)
		data, err := vfs.ReadFile(l.fs, path, 1<<20)
		check(t, err)
		data[len(data)/2] ^= 1
		check(t, vfs.Replace(l.fs, path, data, 0o600))
		err = Send(t.Context(), l.options(s))
		if !errors.Is(err, ErrLocal) || !strings.Contains(err.Error(), b) {
			t.Errorf("size %d: %v", size, err)
		}
		s.holds(t, l, a, c)
		if st := status(t, l); st.Sent != 2 || st.Refused != 1 || !strings.Contains(st.Fault, b) {
			t.Errorf("size %d: %+v", size, st)
		}
	}
}

// TestDamagedBase sends nothing that refers to what cannot be sent.
func TestDamagedBase(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	l.reuse = &snapshot.Reuse{Limit: 1}
	stays := make([]byte, 100<<10)
	a, b, c := l.snapshot(1, 10, stays...), l.snapshot(2, 10, stays...), l.snapshot(3, 10, stays...)
	l.sign()
	data, err := vfs.ReadFile(l.fs, l.dir.Snapshot(a), 1<<20)
	check(t, err)
	data[len(data)/2] ^= 1
	check(t, vfs.Replace(l.fs, l.dir.Snapshot(a), data, 0o600))
	o := l.options(s)
	o.Part = 1 << 20
	if err := Send(t.Context(), o); !errors.Is(err, ErrLocal) || !strings.Contains(err.Error(), a+", which it refers to") {
		t.Error(err)
	}
	s.holds(t, l, c)
	if st := status(t, l); st.Refused != 2 || st.Sent != 1 || !strings.Contains(st.Fault, b) && !strings.Contains(st.Fault, a) {
		t.Errorf("%+v", st)
	}
}

// TestRetention keeps there what the rules keep, and what that refers to.
func TestRetention(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	l.reuse = &snapshot.Reuse{Limit: 3}
	stays := make([]byte, 100<<10)
	var names []string
	for i := range 7 { // whole: 1 and 5
		names = append(names, l.snapshot(uint64(i+1), 10, stays...))
	}
	l.sign()
	o := l.options(s)
	o.Part, o.Retention = 1<<20, snapshot.Retention{KeepLast: 2}
	check(t, Send(t.Context(), o))
	want := []string{names[3], names[4], names[5], names[6]} // 5 is needed by 6 and 7; 4 and 1 are what shares no file with them
	want = append([]string{names[0]}, want...)
	s.holds(t, l, want...)
	if st := status(t, l); st.Sent != 7 || st.Pruned != 2 {
		t.Errorf("%+v", st)
	}
	s.calls = nil
	for _, n := range names[:5] { // what was pruned here long ago still is on the timeline there
		l.prune(n)
	}
	o.Retention = snapshot.Retention{KeepLast: 1}
	names = append(names, l.snapshot(8, 10, stays...), l.snapshot(9, 10, stays...), l.snapshot(10, 10, stays...))
	l.sign()
	check(t, Send(t.Context(), o))
	if got := s.names(); slices.Contains(got, names[0]) || slices.Contains(got, names[3]) {
		t.Errorf("there still are %v", got)
	}
	s.holds(t, l, s.names()...)
}

// TestRetentionLocked removes nothing that the store would keep anyway.
func TestRetentionLocked(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	names := []string{l.snapshot(1, 10), l.snapshot(2, 10), l.snapshot(3, 10)}
	l.sign()
	o := l.options(s)
	o.Retention, o.LockFor = snapshot.Retention{KeepLast: 1}, time.Hour
	check(t, Send(t.Context(), o))
	s.holds(t, l, names...)
	o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	check(t, Send(t.Context(), o))
	s.holds(t, l, names[1:]...)
}

// TestRewind sends nothing that a resume went back behind, and brings the manifests of each generation.
func TestRewind(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	a, b := l.snapshot(10, 10), l.snapshot(20, 10)
	l.sign()
	check(t, Send(t.Context(), l.options(s)))
	c := l.snapshot(30, 10)
	l.generation = 1
	l.open(&rundir.Resumed{Generation: 0, Step: 10, SnapshotSHA256: l.sums[a]})
	check(t, Send(t.Context(), l.options(s)))
	if st := status(t, l); st.Missed != 1 || st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
	r, err := Open(t.Context(), s, Address{"bucket", "fleet"}, testRun, l.keys())
	check(t, err)
	if len(r.Manifests) != 2 || len(r.Snapshots) != 2 || r.Snapshots[0].Name != a || !r.Snapshots[0].Current || r.Snapshots[1].Name != b || r.Snapshots[1].Current {
		t.Errorf("%d manifests, first %+v", len(r.Manifests), r.Snapshots[0])
	}
	d := l.snapshot(15, 10)
	l.sign()
	check(t, Send(t.Context(), l.options(s)))
	r, err = Open(t.Context(), s, Address{"bucket", "fleet"}, testRun, l.keys())
	check(t, err)
	if r.Snapshots[0].Name != d || r.Snapshots[1].Name != a || slices.Contains(s.names(), c) {
		t.Errorf("first %v, then %v", r.Snapshots[0].Name, r.Snapshots[1].Name)
	}
	names, err := r.Prune(t.Context(), snapshot.Retention{KeepLast: 1}, 0, time.Now(), false)
	check(t, err)
	if len(names) != 0 { // two stay, and what was abandoned is evidence
		t.Errorf("removed %v", names)
	}
}

// TestConflict refuses to mix two runs of one name, whichever object tells.
func TestConflict(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	l.snapshot(1, 10)
	l.sign()
	check(t, Send(t.Context(), l.options(s)))
	other := newLocal(t, testRun)
	other.snapshot(1, 10)
	other.sign()
	before := len(s.objects)
	if err := Send(t.Context(), other.options(s)); !errors.Is(err, ErrConflict) {
		t.Errorf("%v", err)
	}
	alone := newMemStore() // with nothing but the manifests
	for key, o := range s.objects {
		if !strings.Contains(key, "snapshots/") {
			alone.objects[key] = o
		}
	}
	if err := Send(t.Context(), other.options(alone)); !errors.Is(err, ErrConflict) || len(alone.objects) != 2 {
		t.Errorf("%v, %d objects", err, len(alone.objects))
	}
	delete(s.objects, "fleet/"+testRun+"/manifest.proof.json")
	if err := Send(t.Context(), other.options(s)); !errors.Is(err, ErrConflict) {
		t.Errorf("%v", err)
	}
	if len(s.objects) != before-1 {
		t.Errorf("%d objects, were %d", len(s.objects), before-1)
	}
	check(t, Send(t.Context(), l.options(s))) // the first run puts its manifests back
	s.holds(t, l, s.names()...)
}

// TestHeals brings again what somebody has damaged or removed there, as long as it is here.
func TestHeals(t *testing.T) {
	l := newLocal(t, testRun)
	a, b := l.snapshot(1, 10), l.snapshot(2, 10)
	l.sign()
	base := "fleet/" + testRun + "/"
	for what, damage := range map[string]func(*memStore){
		"proof":    func(s *memStore) { s.objects[base+"snapshots/"+a+".json"] = memObject{data: []byte("{")} },
		"no proof": func(s *memStore) { delete(s.objects, base+"snapshots/"+a+".json") },
		"short": func(s *memStore) {
			o := s.objects[base+"snapshots/"+a]
			o.data = o.data[1:]
			s.objects[base+"snapshots/"+a] = o
		},
		"gone":           func(s *memStore) { delete(s.objects, base+"snapshots/"+a) },
		"manifest":       func(s *memStore) { s.objects[base+"manifest.json"] = memObject{data: []byte("{}")} },
		"no manifest":    func(s *memStore) { delete(s.objects, base+"manifest.json") },
		"manifest proof": func(s *memStore) { s.objects[base+"manifest.proof.json"] = memObject{data: []byte("{}")} },
		"all manifests":  func(s *memStore) { delete(s.objects, base+"manifest.proof.json") },
	} {
		s := newMemStore()
		if err := l.fs.Remove(statusFile(l.dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		check(t, Send(t.Context(), l.options(s)))
		damage(s)
		check(t, Send(t.Context(), l.options(s)))
		s.holds(t, l, a, b)
		if st := status(t, l); st.Sent != 2 {
			t.Errorf("%s: %+v", what, st)
		}
	}
}
