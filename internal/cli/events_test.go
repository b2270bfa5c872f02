package cli

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/predictor"
)

// dueSteps feeds flags, one step each from step 1, and returns the steps that are due. After cut steps the watch is saved
// and another one goes on with what was saved.
func dueSteps(t testing.TB, flags []uint64, spacing uint64, cut int) (steps []uint64) {
	t.Helper()
	w := new(eventWatch)
	for i, f := range flags {
		if i == cut {
			saved := w.state()
			w = new(eventWatch)
			if err := w.restore(saved); err != nil {
				t.Fatal(err)
			}
		}
		if step := uint64(i + 1); w.due(step, f, spacing) {
			steps = append(steps, step)
		}
	}
	return steps
}

func TestEvents(t *testing.T) {
	const (
		up, down, degraded = predictor.FlagAlarmUp, predictor.FlagAlarmDown, predictor.FlagDegraded
		other              = predictor.FlagWarmUp | predictor.FlagGrace | predictor.FlagOutlier
	)
	for _, tt := range []struct {
		name  string
		flags []uint64
		want  []uint64
	}{
		{"calm", []uint64{0, other, 0, other}, nil},
		{"an alarm", []uint64{0, other | up, other, other}, []uint64{2}},
		{"degraded mode is entered once", []uint64{0, degraded, degraded, degraded, degraded, degraded, degraded, degraded, 0}, []uint64{2}},
		{"from the first step on", []uint64{degraded, degraded}, []uint64{1}},
		{"both at once", []uint64{0, degraded | down, degraded}, []uint64{2}},
		{"an alarm soon after degraded mode", []uint64{0, degraded, degraded, down}, []uint64{2, 4}},
		{"flapping: the first, then one per spacing", []uint64{degraded, 0, degraded, 0, degraded, 0, degraded, 0, degraded, 0, degraded}, []uint64{1, 7}},
		{"alarms in a row", []uint64{up, up, down, up, up, up, up}, []uint64{1, 6}},
	} {
		for cut := range len(tt.flags) + 1 {
			if got := dueSteps(t, tt.flags, 5, cut); !slices.Equal(got, tt.want) {
				t.Errorf("%s, interrupted after step %d: due at %v, want %v", tt.name, cut, got, tt.want)
			}
		}
	}
	if err := new(eventWatch).restore([]byte("{")); err == nil {
		t.Error("a damaged section was accepted")
	}
	if err := new(eventWatch).restore(nil); err != nil {
		t.Errorf("a snapshot without the section: %v", err)
	}
}

// However the flags run: an interruption changes nothing, no two snapshots of a kind are closer than the spacing, and an
// event without a snapshot has one of its kind in the steps before it.
func TestEventsProperties(t *testing.T) {
	const alarms = predictor.FlagAlarmUp | predictor.FlagAlarmDown
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]uint64{alarms, predictor.FlagDegraded}).Draw(t, "kind")
		flags := rapid.SliceOf(rapid.SampledFrom([]uint64{0, predictor.FlagGrace, predictor.FlagAlarmUp & kind, kind})).Draw(t, "flags")
		spacing := rapid.Uint64Range(1, 20).Draw(t, "spacing")
		cut := rapid.IntRange(0, len(flags)).Draw(t, "cut")
		var w eventWatch
		var steps []uint64
		for i, f := range flags {
			step := uint64(i + 1)
			happens := f&kind&alarms != 0 || kind == predictor.FlagDegraded && f&kind != 0 && (i == 0 || flags[i-1]&kind == 0)
			near := len(steps) > 0 && step-steps[len(steps)-1] < spacing
			if got := w.due(step, f, spacing); got != (happens && !near) {
				t.Fatalf("step %d: due %v, an event %v, near the last %v", step, got, happens, near)
			} else if got {
				steps = append(steps, step)
			}
		}
		w = eventWatch{}
		var again []uint64
		for i, f := range flags {
			if i == cut {
				saved := w.state()
				w = eventWatch{}
				if err := w.restore(saved); err != nil {
					t.Fatal(err)
				}
			}
			if w.due(uint64(i+1), f, spacing) {
				again = append(again, uint64(i+1))
			}
		}
		if !slices.Equal(steps, again) {
			t.Fatalf("interrupted after step %d: %v, else %v", cut, again, steps)
		}
	})
}

func TestReasons(t *testing.T) {
	for code, want := range map[uint32]string{1: "cadence", 2: "final", 3: "event", 0: "code 0", 77: "code 77"} {
		if got := reasonText(code); got != want {
			t.Errorf("reason %d is %q, want %q", code, got, want)
		}
	}
}

func TestDroppedText(t *testing.T) {
	for _, tt := range []struct {
		n, events uint64
		want      string
	}{{0, 0, ""}, {3, 0, " (3 more dropped: the recorder was busy)"}, {3, 1, " (3 more dropped, 1 of them for an alarm or degraded mode: the recorder was busy)"}} {
		if got := dropped(tt.n, tt.events); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
