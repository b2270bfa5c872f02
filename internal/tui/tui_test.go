package tui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
)

func TestSparkline(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, tt := range []struct {
		values []float64
		width  int
		want   string
	}{
		{nil, 5, ""},
		{[]float64{1, 2}, 0, ""},
		{[]float64{5, 5, 5}, 9, "⣤⡄"},
		{[]float64{0, 1, 2, 3}, 9, "⣠⣾"},
		{[]float64{3, 2, 1, 0}, 9, "⣷⣄"},
		{[]float64{9, 9, 0, 1, 2, 3}, 2, "⣠⣾"}, // only what fits counts
		{[]float64{0, nan, inf, -inf, 3, 0}, 9, "⡀⡇⣇"},
		{[]float64{-math.MaxFloat64, math.MaxFloat64}, 9, "⣸"},
		{[]float64{0, math.SmallestNonzeroFloat64}, 9, "⣸"},
		{[]float64{nan}, 9, "⠀"},
	} {
		if got := Sparkline(tt.values, tt.width); got != tt.want {
			t.Errorf("Sparkline(%v, %d) = %q, want %q", tt.values, tt.width, got, tt.want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 99_999: "99999", 100_000: "100k", 999_499: "999k", 999_500: "1M", 12_345_678: "12.3M", math.MaxUint64: "18.4E",
	} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestNumber wants integers to the last digit, and what is no number in JSON as a string.
func TestNumber(t *testing.T) {
	for n, want := range map[Number]string{
		"18446744073709551615": "18446744073709551615", Float(0.1): "0.1", Float(math.NaN()): `"NaN"`, Float(math.Inf(-1)): `"-Inf"`, Float(1e300): "1e+300",
	} {
		if b, err := json.Marshal(n); err != nil || string(b) != want {
			t.Errorf("%s is written %s, %v; want %s", n, b, err, want)
		}
	}
	for n, want := range map[Number]string{"12345678901": "1.2346e+10", "-0.12345678": "-0.12346", "NaN": "NaN", "7": "7"} {
		if got := n.short(); got != want {
			t.Errorf("%s is shown as %q, want %q", n, got, want)
		}
	}
}

// some is a view with all there can be in it.
func some() View {
	rate, slow := 12_345.6, 0.25
	return View{Time: time.Unix(1.8e9, 0).UTC(), Dir: "runs", Runs: []Run{
		{
			ID: "b", Status: Recording, Generation: 2, Step: 1234, Rate: &rate, Stored: 1200, Lost: 34, Held: 5, Fault: "no space left\x1b[2J on device", Snapshots: 3,
			Sinks:  []Sink{{Name: "parquet"}, {Name: "otlp", Lag: 250_000, Fault: "refused"}},
			Values: []Value{{Name: "alarm", Flag: true, Now: "3"}, {Name: "cusum", Unit: "sd", Now: Float(1.5), History: []float64{0, 1, 2, 3}}, {Name: "quiet", Flag: true, Now: "0"}},
		},
		{ID: "a", Status: "clean", Step: 7, Stored: 7, Rate: &slow},
		{ID: "0", Status: "unreadable", Error: "manifest.json: malformed\nmanifest"},
	}}
}

func TestPrint(t *testing.T) {
	want := `RUN  STATUS      STEP  STEPS/S  LOST  HELD  SNAPSHOTS  SINKS BEHIND           NEWEST              FLAGS
b    recording   1234  12345    34    5!    3          parquet 0, otlp 250k!  cusum 1.5       ⣠⣾  alarm=3
a    clean       7     0.2      0     0     0          -                      -                   -
0    unreadable  0     -        0     0     0          -                      -                   manifest.json: malformed manifest
`
	var b bytes.Buffer
	if err := Print(&b, some(), 0); err != nil || b.String() != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, b.String(), want)
	}
	b.Reset()
	if err := Print(&b, some(), 20); err != nil || !strings.HasPrefix(b.String(), "RUN  STATUS      ST…\n") {
		t.Errorf("cut to 20: %v\n%s", err, b.String())
	}
	if err := Print(failing{}, some(), 0); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("where nobody reads: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestKeys(t *testing.T) {
	for _, tt := range []struct {
		keys string // separated by spaces
		want string // run, and whether it is open
		quit bool
	}{
		{"", "b false", false},
		{"q", "b false", true},
		{"ctrl+c", "b false", true},
		{"j", "a false", false},
		{"down down down", "0 false", false},
		{"down up", "b false", false},
		{"k", "b false", false},
		{"G", "0 false", false},
		{"G g", "b false", false},
		{"end home", "b false", false},
		{"pgdown", "0 false", false},
		{"pgdown pgup", "b false", false},
		{"j enter", "a true", false},
		{"j enter esc", "a false", false},
		{"enter j j esc", "b false", false}, // in one run they scroll
		{"enter x", "b true", false},
		{"l h", "b false", false},
	} {
		m := model{width: 80, height: 10}
		m.take(some(), nil)
		quit := false
		for _, key := range strings.Fields(tt.keys) {
			quit = m.press(key)
		}
		if got := fmt.Sprint(m.at, " ", m.open); got != tt.want || quit != tt.quit {
			t.Errorf("%q: %s, quit %v; want %s, %v", tt.keys, got, quit, tt.want, tt.quit)
		}
	}
}

// TestTake wants the choice to stay with its run, and the last good view to stay after a look that failed.
func TestTake(t *testing.T) {
	m := model{width: 80, height: 10}
	m.press("j")
	m.press("enter") // before anything is there
	m.take(some(), nil)
	m.press("j")
	v := some()
	v.Runs = append([]Run{{ID: "c"}}, v.Runs...)
	if m.take(v, nil); m.at != "a" {
		t.Errorf("after a run more it points at %q, want a", m.at)
	}
	if m.take(View{}, errors.New("no such\x1b directory")); len(m.view.Runs) != 4 || !strings.Contains(m.draw(), "cannot look: no such  directory") {
		t.Errorf("after a look that failed: %d runs\n%s", len(m.view.Runs), m.draw())
	}
	m.press("enter")
	v.Runs = v.Runs[:1]
	if m.take(v, nil); m.at != "c" || m.open || strings.Contains(m.draw(), "cannot look") {
		t.Errorf("after its run is gone it points at %q, open %v", m.at, m.open)
	}
	if m.take(View{}, nil); m.at != "" {
		t.Errorf("without runs it points at %q", m.at)
	}
	m.press("enter")
	m.press("j")
	if m.open {
		t.Error("no run is open")
	}
}

// TestDraw wants a screen that fits, whatever its size, and nothing in it that a text of a run could have brought along.
func TestDraw(t *testing.T) {
	for _, width := range []int{1, 2, 10, 40, 200} {
		for _, height := range []int{1, 5, 12, 60} {
			for _, keys := range []string{"", "j", "enter", "enter G", "G"} {
				m := model{width: width, height: height}
				m.take(some(), nil)
				for _, k := range strings.Fields(keys) {
					m.press(k)
				}
				lines := strings.Split(plain(m.draw()), "\n")
				if want := max(height, 5); len(lines) > want {
					t.Errorf("%d×%d after %q: %d lines", width, height, keys, len(lines))
				}
				for _, l := range lines {
					if n := utf8.RuneCountInString(l); n > max(width, 3) {
						t.Errorf("%d×%d after %q: %d characters in %q", width, height, keys, n, l)
					}
					if strings.ContainsFunc(l, unicode.IsControl) {
						t.Errorf("%d×%d after %q: a control character in %q", width, height, keys, l)
					}
				}
			}
		}
	}
	m := model{width: 60, height: 30}
	m.take(some(), nil)
	if s := plain(m.draw()); !strings.Contains(s, "\n> b ") || !strings.Contains(s, "\n  a ") || !strings.Contains(s, "runs: 3 runs, 1 being recorded") {
		t.Errorf("the table is\n%s", s)
	}
	m.press("enter")
	s := plain(m.draw())
	for _, want := range []string{
		"run b: recording", "1200 stored, 34 lost, 5 held", "takes nothing: no space left [2J on device", "parquet: has all of it", "otlp: 250000 frames behind: refused",
		"cusum sd 1.5         ⣠⣾", "alarm    3",
	} {
		if !strings.Contains(s, want) {
			t.Errorf("the run does not say %q:\n%s", want, s)
		}
	}
}

// TestScroll wants what is pointed at on the screen, and the screen full after it has grown.
func TestScroll(t *testing.T) {
	v := some()
	for i := range 100 {
		v.Runs = append(v.Runs, Run{ID: fmt.Sprintf("run%d", i)})
	}
	for i := range 50 {
		v.Runs[0].Values = append(v.Runs[0].Values, Value{Name: fmt.Sprintf("value%d", i), Now: "1"})
	}
	m := model{width: 80, height: 12}
	m.take(v, nil)
	m.press("G")
	if s := plain(m.draw()); !strings.Contains(s, "\n> run99 ") || !strings.Contains(s, "\n  run93 ") || strings.Contains(s, "run0 ") {
		t.Errorf("at the last run:\n%s", s)
	}
	m.press("g")
	m.press("enter")
	m.press("G")
	if s := plain(m.draw()); !strings.Contains(s, "value49") || strings.Contains(s, "stored") {
		t.Errorf("at the last value:\n%s", s)
	}
	m.press("k")
	if s := plain(m.draw()); !strings.Contains(s, "value48") || strings.Contains(s, "value49") {
		t.Errorf("one above the last value:\n%s", s)
	}
	m.height = 200
	if s := plain(m.draw()); !strings.Contains(s, "stored") || !strings.Contains(s, "value49") {
		t.Errorf("in a large window:\n%s", s)
	}
}

// plain takes the styles out of a text.
func plain(s string) string {
	for _, style := range []string{"\x1b[1m", "\x1b[2m", "\x1b[7m", "\x1b[m"} {
		s = strings.ReplaceAll(s, style, "")
	}
	return s
}

// TestUpdate wants a look after each pause and one at a time, and an end where the first one fails.
func TestUpdate(t *testing.T) {
	looks := 0
	p := &program{options: Options{Interval: time.Millisecond, Look: func() (View, error) { looks++; return some(), nil }}}
	msg := p.Init()()
	if looks != 1 {
		t.Fatalf("%d looks at first", looks)
	}
	_, cmd := p.Update(msg)
	if _, ok := cmd().(tick); !ok || looks != 1 {
		t.Errorf("after a look comes %T; %d looks", cmd(), looks)
	}
	_, cmd = p.Update(tick{})
	if cmd == nil {
		t.Fatal("after a pause nobody looks")
	}
	if _, ok := cmd().(looked); !ok || looks != 2 {
		t.Errorf("after a pause: %d looks", looks)
	}
	if p.Update(looked{err: io.ErrClosedPipe}); p.err != nil || p.model.fault == nil {
		t.Errorf("a later look that fails ends it: %v", p.err)
	}
	p.Update(tea.WindowSizeMsg{Width: 70, Height: 20})
	if p.model.width != 70 || p.model.height != 20 {
		t.Errorf("a window of %d×%d", p.model.width, p.model.height)
	}
	p = &program{}
	_, cmd = p.Update(looked{err: io.ErrClosedPipe})
	if _, ok := cmd().(tea.QuitMsg); !ok || !errors.Is(p.err, io.ErrClosedPipe) {
		t.Errorf("the first look fails: %v", p.err)
	}
}

// TestShow wants the whole of it to end by a key, by its context, and by a first look that fails.
func TestShow(t *testing.T) {
	pipe := func(keys string) io.Reader {
		r, w := io.Pipe()
		go func() {
			for _, k := range keys {
				time.Sleep(100 * time.Millisecond)
				_, _ = w.Write([]byte{byte(k)})
			}
		}()
		return r
	}
	var out bytes.Buffer
	o := Options{In: pipe("j\rq"), Out: &out, Env: []string{"TERM=xterm-256color", "NO_COLOR=1"}, Look: func() (View, error) { return some(), nil }}
	if err := Show(t.Context(), o); err != nil {
		t.Errorf("ended by q: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	o.In = pipe("")
	time.AfterFunc(100*time.Millisecond, func() { cancel(io.ErrClosedPipe) })
	if err := Show(ctx, o); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("ended from outside: %v", err)
	}
	o.In, o.Look = pipe(""), func() (View, error) { return View{}, io.ErrNoProgress }
	if err := Show(t.Context(), o); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("the first look fails: %v", err)
	}
}
