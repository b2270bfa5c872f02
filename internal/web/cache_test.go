package web

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/pyramid"
	"github.com/usp-project/usp/internal/vfs"
)

// long writes a run of seven segments, all but the last of that many records, and ends it.
func long(t testing.TB, fsys vfs.FS, id string, each uint64) {
	f := newFixture(t, fsys, "/runs", id, lossSchema(t), setLoss)
	for i := range uint64(6) {
		f.emit(i*each+1, (i+1)*each)
		f.roll()
	}
	f.emit(6*each+1, 6*each+100)
	f.end()
}

// running is a server that listens, and works in the background, until the test ends.
func running(t *testing.T, o Options) (s *Server, url string) {
	t.Helper()
	s = newServer(t, o)
	s.atOnce = 1
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	url = "http://" + l.Addr().String()
	for _, err := http.Get(url + "/healthz"); err != nil; _, err = http.Get(url + "/healthz") {
		time.Sleep(time.Millisecond)
	}
	return s, url
}

func cacheOn(t testing.TB, fsys vfs.FS) *pyramid.Cache {
	t.Helper()
	c, err := pyramid.OpenCache(pyramid.CacheOptions{Dir: "/cache", FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// finished follows a run until its stream ends, and returns what the page says of its progress, the first time and the last.
func finished(t *testing.T, url, id string) (first, last string) {
	t.Helper()
	_, next := follow(t, url, "/events/"+id)
	for {
		e, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if e.name == "end" {
			return first, last
		}
		var parts map[string]string
		if err := json.Unmarshal([]byte(e.data), &parts); err != nil {
			t.Fatal(err)
		}
		if text, changed := parts["progress"]; changed {
			if last = text; first == "" {
				first = text
			}
		}
	}
}

// TestBackground: the page of a long run without aggregates is there at once and says what it lacks; its stream fills it in while
// they are made, and ends when it is whole. The next server has them.
func TestBackground(t *testing.T) {
	mem := vfs.NewMem()
	long(t, mem, id, 21_000) // enough that not all records are read for a page
	stored := thousands(126_100) + " stored, 1 to 126100"
	held, let := make(chan struct{}), make(chan struct{})
	s, url := running(t, Options{FS: mem, Cache: cacheOn(t, mem), Interval: 5 * time.Millisecond, Yield: func() { close(held); <-let }})
	<-held // nothing is made yet
	body := get(t, s, "/run/"+id).Body.String()
	contains(t, body, "The run is being prepared for drawing: 0 of 7 segments are done.", "drawn from a part of its records until then", stored, "data-events=")
	body = get(t, s, "/run/"+id+"?from=100&until=300").Body.String()
	contains(t, body, "0 of 7 segments", "The charts of this range have all of its records")
	body = get(t, s, "/compare?a="+id+"&b="+id).Body.String()
	contains(t, body, "Until then the charts are drawn from a part of the records")
	close(let)
	if first, last := finished(t, url, id); last != "" && !strings.Contains(first, "prepared") {
		t.Errorf("progress was %q, at last %q", first, last)
	}
	body = get(t, s, "/run/"+id).Body.String()
	if strings.Contains(body, "prepared") || strings.Contains(body, "data-events") {
		t.Errorf("the page of a run that is whole: %.2000s", body)
	}
	contains(t, body, stored)
	if _, err := mem.Stat("/runs/" + id + "/sinks"); err == nil {
		t.Error("the run directory was changed")
	}

	ops := vfs.Inject(mem)
	var made atomic.Int64
	ops.SetHook(func(op vfs.Op) {
		if op.Kind&(vfs.OpRename|vfs.OpCreate) != 0 && strings.HasSuffix(op.Name, ".pyr") {
			made.Add(1)
		}
	})
	s, _ = running(t, Options{FS: ops, Cache: cacheOn(t, ops)})
	if body := get(t, s, "/run/"+id).Body.String(); strings.Contains(body, "prepared") || made.Load() > 0 {
		t.Errorf("another server makes %d files again: %.1000s", made.Load(), body)
	}
}

// TestBackgroundWithout: where aggregates cannot be kept the run is read in the background, and the page says why it takes long.
func TestBackgroundWithout(t *testing.T) {
	for name, c := range map[string]struct {
		fault string
		cache func(mem vfs.FS) *pyramid.Cache
		said  string
	}{
		"none wanted": {"", func(vfs.FS) *pyramid.Cache { return nil }, ""},
		"cannot be":   {"they cannot be kept: the log says why", func(vfs.FS) *pyramid.Cache { return nil }, "they cannot be kept: the log says why"},
		"became so": {"", func(mem vfs.FS) *pyramid.Cache {
			in := vfs.Inject(mem)
			k := cacheOn(t, in)
			in.Add(vfs.Rule{Op: vfs.OpCreate, Sticky: true, Err: syscall.EROFS})
			return k
		}, "they cannot be kept: the log of usp serve says why"},
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewMem()
			long(t, mem, id, 9000)
			var log bytes.Buffer
			held, let := make(chan struct{}), make(chan struct{})
			s, url := running(t, Options{
				FS: mem, Cache: c.cache(mem), CacheFault: c.fault, Interval: 5 * time.Millisecond, Yield: func() { close(held); <-let },
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
			<-held
			contains(t, get(t, s, "/run/"+id).Body.String(), "The run is being prepared for drawing: 0 of 7 segments are done.")
			close(let)
			finished(t, url, id)
			body := get(t, s, "/run/"+id).Body.String()
			if strings.Contains(body, "prepared") || !strings.Contains(body, thousands(54_100)+" stored") || strings.Contains(body, "This run has no aggregates") != (c.said != "") {
				t.Errorf("%.2000s", body)
			}
			contains(t, body, c.said)
			slow := OpenSegments(mem, "/runs/"+id, time.Now)
			want, err := slow.Range(t.Context(), lossElements, 1, 54_100, columns)
			if err != nil {
				t.Fatal(err)
			}
			d := s.opened[0].data
			got, err := d.Range(t.Context(), lossElements, 1, 54_100, columns)
			if err != nil || got.Sampled || got.Columns != want.Columns || !same(got.Series[0][7], want.Series[0][7]) {
				t.Errorf("%v: %+v, want %+v", err, got, want)
			}
		})
	}
}

// TestBackgroundOrder: the run that was asked for last is done first, and one that is under way is left for it.
func TestBackgroundOrder(t *testing.T) {
	mem := vfs.NewMem()
	ids := []string{"20261129T000000-aaaaa", "20261129T000001-bbbbb"}
	for _, id := range ids {
		long(t, mem, id, 9000)
	}
	b := newBackground(nil)
	b.running = true
	k := cacheOn(t, mem)
	var ps []*pyramids
	for _, id := range ids {
		p := newPyramids(mem, "/runs/"+id, time.Now)
		p.cache, p.back, p.atOnce = k, b, 1
		defer p.Close()
		if _, err := p.Extent(t.Context()); err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if b.take() != ps[1] {
		t.Error("the one asked for last is not the first")
	}
	b.want(ps[1])
	if !b.others(ps[0]) || b.others(ps[1]) {
		t.Error("who was asked for last is not known")
	}
	if !ps[0].work(t.Context()) { // it makes way
		t.Error("nothing could be done")
	}
	ps[0].read, ps[1].read = time.Time{}, time.Time{}
	if e, err := ps[0].Extent(t.Context()); err != nil || e.Progress.Done != 0 || !e.Progress.Going {
		t.Errorf("%+v, %v", e.Progress, err)
	}
	if b.take() != ps[0] || b.take() != ps[1] || b.take() != nil {
		t.Error("the one that made way does not ask again")
	}
	ps[0].work(t.Context())
	if x := ps[0].progress(7, 7); !x.Going { // by who asked before it was done: the end is yet to be seen
		t.Errorf("what was made and not looked at yet is %+v", x)
	}
	if e, err := ps[0].Extent(t.Context()); err != nil || e.Progress != (Progress{}) || b.take() != nil {
		t.Errorf("%+v, %v", e.Progress, err)
	}
}

// TestBackgroundReplaced: another run in the place of one that is looked at is shown, and nothing of the old one is.
func TestBackgroundReplaced(t *testing.T) {
	mem := vfs.NewMem()
	long(t, mem, id, 9000)
	other := vfs.NewMem()
	f := newFixture(t, other, "/runs", id, lossSchema(t), setLoss)
	f.emit(1, 500)
	f.end()
	b := newBackground(nil)
	b.running = true
	p := newPyramids(mem, "/runs/"+id, time.Now)
	p.back, p.atOnce = b, 1
	defer p.Close()
	if _, err := p.Extent(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.work(t.Context())
	p.read = time.Time{}
	if e, err := p.Extent(t.Context()); err != nil || e.Records != 54_100 || !p.whole {
		t.Fatalf("%+v, %v", e, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p.fsys, p.slow.fsys = other, other
	if e, err := p.Extent(t.Context()); err != nil || e.Records != 500 || p.whole {
		t.Errorf("%+v, %v", e, err)
	}
}
