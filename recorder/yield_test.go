package recorder

import (
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"
)

func TestYielder(t *testing.T) {
	type look struct {
		after   time.Duration // since the last look; where it is longer than tardy+1, others were between, 25 ms apart
		presses bool
		want    bool // low afterwards
	}
	const ms = time.Millisecond
	refused := errors.New("not now")
	tests := []struct {
		name   string
		errs   []error // of the calls, in order; then none
		looks  []look
		called []bool
	}{
		{"low from the first look", nil, []look{{0, false, true}, {25 * ms, false, true}}, []bool{true}},
		{"raised at once, lowered when nothing has pressed for a while", nil,
			[]look{{0, false, true}, {25 * ms, true, false}, {25 * ms, true, false}, {calm - 2*ms, false, false}, {2 * ms, false, true}}, []bool{true, false, true}},
		{"presses from the start", nil, []look{{0, true, false}, {calm - 2*ms, false, false}, {2 * ms, false, true}}, []bool{true}},
		{"what presses again starts the time anew", nil,
			[]look{{0, true, false}, {calm - ms, true, false}, {calm - 2*ms, false, false}, {2 * ms, false, true}}, []bool{true}},
		{"tried again at the next look", []error{refused, nil, refused, refused},
			[]look{{0, false, false}, {25 * ms, false, true}, {25 * ms, true, true}, {25 * ms, true, true}, {25 * ms, true, false}}, []bool{true, true, false, false, false}},
		{"one late look, as after a stop", nil, []look{{0, false, true}, {tardy + 1, false, true}, {25 * ms, false, true}, {tardy + 1, false, true}}, []bool{true}},
		{"looks come late where others take all there is", nil,
			[]look{{0, false, true}, {tardy + 1, false, true}, {tardy + 1, false, false}, {calm, false, false}, {25 * ms, true, false}, {sated - calm - 26*ms, false, false}, {ms, false, true}}, []bool{true, false, true}},
		{"raised at the next look, if it still is to be", []error{nil, refused}, []look{{0, false, true}, {25 * ms, true, true}, {25 * ms, false, false}, {calm, false, true}}, []bool{true, false, false, true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var called []bool
			y := yielder{set: func(low bool) (before bool, err error) {
				called = append(called, low)
				if n := len(called); n <= len(test.errs) {
					err = test.errs[n-1]
				}
				return !low, err
			}}
			now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
			for i, l := range test.looks {
				for ; l.after > tardy+1; l.after -= 25 * ms { // others, at which nothing presses
					now = now.Add(25 * ms)
					y.look(now, false)
				}
				now = now.Add(l.after)
				if y.look(now, l.presses); y.low != l.want {
					t.Errorf("look %d: low %v, want %v", i, y.low, l.want)
				}
			}
			if !slices.Equal(called, test.called) {
				t.Errorf("called with %v, want %v", called, test.called)
			}
		})
	}
	var none yielder
	none.look(time.Now(), false)
	none.look(time.Now(), true)
}

// TestYielderRaised: where somebody else has raised it, it is too late when it is low, and stays as it is for long.
func TestYielderRaised(t *testing.T) {
	is := false
	y := yielder{set: func(low bool) (before bool, err error) {
		before, is = is, low
		return before, nil
	}}
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	y.look(now, false)
	if is = false; !y.low {
		t.Fatal("not low in the beginning")
	}
	raised := now.Add(time.Millisecond)
	y.look(raised, true)
	for now = raised; is == false && now.Before(raised.Add(time.Minute)); now = now.Add(25 * time.Millisecond) {
		y.look(now, false)
	}
	if after := now.Sub(raised); after < sated || after > sated+50*time.Millisecond {
		t.Errorf("low again after %v, want %v", after, sated)
	}
}

// TestYielderRaisedUnnoticed: where somebody else has raised it and nothing presses any more, it is low again after a while.
func TestYielderRaisedUnnoticed(t *testing.T) {
	is, calls := true, 0
	y := yielder{low: true, set: func(low bool) (before bool, err error) { // as one that takes over
		before, is = is, low
		calls++
		return before, nil
	}}
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	now := begin
	look := func(d time.Duration) {
		for end := now.Add(d); now.Before(end); now = now.Add(25 * time.Millisecond) {
			y.look(now, false)
		}
	}
	look(time.Second)
	is = false
	look(sated - 2*time.Second)
	if is || calls != 1 {
		t.Errorf("low again after %v, %d calls; want none but the first", now.Sub(begin), calls)
	}
	look(time.Second + 50*time.Millisecond)
	if !is || calls != 2 || !y.low {
		t.Errorf("low %v after %v, %d calls", is, now.Sub(begin), calls)
	}
}

func TestSnapshotLate(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var r Recorder
	if r.snapshotLate(now) {
		t.Error("late where none is written")
	}
	r.stats.saving.Store(now.UnixNano())
	if r.snapshotLate(now.Add(late)) {
		t.Error("late before its time")
	}
	if !r.snapshotLate(now.Add(late + 1)) {
		t.Error("not late after its time")
	}
}

// A recorder that gives way keeps to one processor, but for saving a snapshot, and is told so when that changes alone.
func TestNarrower(t *testing.T) {
	new(narrower).look(true, false)
	var asked []bool
	n := narrower{set: func(on bool) { asked = append(asked, on) }}
	for i, c := range []struct {
		low, saving bool
		want        []bool
	}{
		{false, false, nil}, {true, true, nil}, {true, false, []bool{true}}, {true, false, nil}, {true, true, []bool{false}},
		{false, true, nil}, {true, false, []bool{true}}, {false, false, []bool{false}},
	} {
		asked = nil
		if n.look(c.low, c.saving); !slices.Equal(asked, c.want) {
			t.Errorf("look %d: asked for %v, want %v", i, asked, c.want)
		}
	}
}

func TestOneProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	narrow := oneProcessor()
	for _, on := range []bool{true, true, false, true, false} {
		narrow(on)
		if got, want := runtime.GOMAXPROCS(0), map[bool]int{true: 1, false: 3}[on]; got != want {
			t.Errorf("%v: %d processors, want %d", on, got, want)
		}
	}
}

// TestSettler: it is called while the recorder gives way, when it has been there for a while, until nothing is left.
func TestSettler(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	calls := 0
	s := settler{more: func() bool { calls++; return calls < 3 }, from: began.Add(settles)}
	for _, look := range []struct {
		after time.Duration
		low   bool
		calls int
	}{
		{0, true, 0}, {settles - 1, true, 0}, {settles, false, 0}, {settles, true, 1}, {settles + 1, false, 1},
		{2 * settles, true, 2}, {2 * settles, true, 3}, {3 * settles, true, 3}, {4 * settles, true, 3},
	} {
		if s.look(began.Add(look.after), look.low); calls != look.calls {
			t.Errorf("after %v, low %v: %d calls, want %d", look.after, look.low, calls, look.calls)
		}
	}
	(&settler{}).look(began, true) // has none
}
