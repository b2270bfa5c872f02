package web

import (
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// TestFleetLosses has lost records be drawn where their steps must have been.
func TestFleetLosses(t *testing.T) {
	schema, err := record.NewSchema("x", record.Field{Name: "a", Class: record.Metric, Type: record.Uint64, Len: 1})
	if err != nil {
		t.Fatal(err)
	}
	part := func(losses []fleet.Loss, steps ...uint64) fleet.Part {
		p := fleet.Part{Schema: schema, Width: 3, Losses: losses}
		for _, s := range steps {
			p.Words = append(p.Words, s, 0, 10*s)
		}
		return p
	}
	for _, tt := range []struct {
		name  string
		parts []fleet.Part
		want  string // of steps 1 to 9
	}{
		{"none", []fleet.Part{part(nil, 1, 2, 3)}, "rrr......"},
		{"between", []fleet.Part{part([]fleet.Loss{{Before: 2, N: 2}}, 1, 2, 5)}, "rrLLr...."},
		{"more steps than records", []fleet.Part{part([]fleet.Loss{{Before: 2, N: 1}}, 1, 2, 6)}, "rrLLLr..."},
		{"over parts", []fleet.Part{part(nil, 1, 2), part([]fleet.Loss{{Before: 0, N: 1}}, 4)}, "rrLr....."},
		{"at the end", []fleet.Part{part([]fleet.Loss{{Before: 2, N: 3}}, 1, 2)}, "rrLLL...."},
		{"before all", []fleet.Part{part([]fleet.Loss{{Before: 0, N: 3}}, 4)}, "...r....."},
		{"more than there can be", []fleet.Part{part([]fleet.Loss{{Before: 1, N: math.MaxUint64}}, 1)}, "r........"},
		{"and a record behind them", []fleet.Part{part([]fleet.Loss{{Before: 1, N: math.MaxUint64}}, 1, 3)}, "rLr......"},
		{"to the end of all steps", []fleet.Part{part([]fleet.Loss{{Before: 1, N: math.MaxUint64 - 5}}, 1, 3)}, "rLLLLLLLL"},
		{"of no width", []fleet.Part{{Width: 0, Words: []uint64{1, 2}, Losses: []fleet.Loss{{N: 1}}}}, "........."},
		{"without a schema", []fleet.Part{{Width: 2, Words: []uint64{1, 0, 3, 0}, Losses: []fleet.Loss{{Before: 1, N: 1}}}}, ".L......."},
	} {
		g := newFixedGrid([]Element{{"a", 0}}, 1, 9, 9)
		var at loser
		for _, p := range tt.parts {
			at.take(p, g)
		}
		var got strings.Builder
		for i := range 9 {
			switch s := &g.Series[0][i]; {
			case g.Lost[i] > 0:
				got.WriteByte('L')
			case s.Count > 0 && s.Mean == float64(10*(i+1)):
				got.WriteByte('r')
			default:
				got.WriteByte('.')
			}
		}
		if got.String() != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got.String(), tt.want)
		}
	}
}

// TestFleetFilter wants what is asked for to be what is read, and bounded.
func TestFleetFilter(t *testing.T) {
	run := &fleet.Run{ID: "20261129T000000-abcde", Host: "Rack-7", Program: "usp run", Schema: "usp.predictor.v2", State: fleet.Silent}
	for q, want := range map[string]bool{
		"": true, "q=": true, "q=RACK": true, "q=+abc+": true, "q=predictor": true, "q=usp+run&state=silent": true, "state=clean": false, "q=nobody": false,
		"q=rack&state=recording": false, "state=%3Cb%3E": false,
	} {
		v, err := url.ParseQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		f := filterOf(v)
		if got := f.takes(run); got != want {
			t.Errorf("%q takes the run: %v", q, got)
		}
		again, err := url.ParseQuery(strings.TrimPrefix(f.query(3), "?"))
		if err != nil {
			t.Fatal(err)
		}
		if g := filterOf(again); g.Text != f.Text || g.State != f.State || g.Page != 3 {
			t.Errorf("%q becomes %+v", q, g)
		}
	}
	for text, want := range map[string]int{"": 1, "0": 1, "-5": 1, "x": 1, "7": 7, "99999999999999999999": 1, "9999999": 1_000_000} {
		if f := filterOf(url.Values{"page": {text}, "q": {strings.Repeat("ü", 1000)}}); f.Page != want || len(f.Text) > 1000 {
			t.Errorf("page %q is %d", text, f.Page)
		}
	}
}

// TestFleetNotRead has a stream that was never read: the pages say so, and the server is not ready.
func TestFleetNotRead(t *testing.T) {
	f, err := fleet.New(fleet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Look(t.Context()); err == nil {
		t.Fatal("no address was connected to")
	}
	s, err := New(Options{FS: vfs.NewMem(), Fleet: f})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/fleet": 200, "/fleet/run/x": 404, "/fleet/events/x": 404, "/fleet/run/x?from=%zz": 400, "/fleet/events/x?from=%zz": 400, "/readyz": 503} {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Host = "localhost"
		w, seen := httptest.NewRecorder(), want == 200 || want == 503
		s.Handler().ServeHTTP(w, r)
		if w.Code != want || seen && !strings.Contains(w.Body.String(), "not read") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	without, err := New(Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/fleet", nil)
	r.Host = "localhost"
	w := httptest.NewRecorder()
	without.Handler().ServeHTTP(w, r)
	if w.Code != 404 {
		t.Errorf("without a fleet: %d", w.Code)
	}
}

// TestLag has a destination fall behind and come after, by a clock of its own.
func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		at := func(after time.Duration, frames, next uint64, want string) {
			t.Helper()
			time.Sleep(after)
			s.stored("r", frames)
			if got := s.lag("r", next, frames); got != want {
				t.Errorf("%d of %d frames: %q, want %q", next, frames, got, want)
			}
		}
		at(0, 10, 3, "at least 0 s") // how long they are there nobody has seen
		at(5*time.Second, 10, 3, "at least 5 s")
		at(time.Second, 20, 3, "at least 6 s")
		at(time.Second, 20, 10, "1 s") // the frames from 10 on came a second ago
		at(2*time.Second, 30, 10, "3 s")
		at(2*time.Second, 30, 20, "2 s")
		at(0, 30, 30, "0 s")
		at(0, 30, 40, "0 s")
		at(time.Second, 5, 1, "at least 0 s") // a run of that name that begins anew
		for i := range uint64(10 * mostEnds) {
			time.Sleep(time.Second)
			s.stored("r", 6+i)
		}
		if n := len(s.ends["r"]); n > mostEnds {
			t.Errorf("%d looks are remembered", n)
		}
		end := uint64(5 + 10*mostEnds)
		if got := s.lag("r", end-100, end); got != "99 s" && got != "98 s" && got != "97 s" && got != "96 s" {
			t.Errorf("a hundred frames behind, one a second: %s", got)
		}
	})
}
