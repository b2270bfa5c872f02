package score

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/usp-project/usp/predictor"
)

// story feeds flags, one step each from step 1, and returns the events as text. After cut steps the board is saved and
// another one goes on with what was saved.
func story(t *testing.T, flags []uint64, cut int) (string, *Board) {
	t.Helper()
	b := New(2)
	for i, f := range flags {
		if i == cut {
			state, _ := b.AppendBinary(nil)
			b = New(2)
			if err := b.UnmarshalBinary(state); err != nil {
				t.Fatal(err)
			}
		}
		b.Add(0, &predictor.Output{Step: uint64(i + 1), Time: int64(10 * i), Weights: []float64{.5, .5}, Flags: f})
	}
	var text []string
	for _, e := range b.Events {
		if e.Time != int64(10*(e.Step-1)) {
			t.Errorf("step %d has time %d", e.Step, e.Time)
		}
		text = append(text, strings.Join(strings.Fields(fmt.Sprint(e.Step, " ", e.Name, " ", e.Phase, " ", e.Chart)), " "))
	}
	return strings.Join(text, ", "), b
}

// TestEvents wants each flag to be named when it is raised, one that stays also when it falls, warm-up and grace never,
// whether or not the board was saved in between.
func TestEvents(t *testing.T) {
	const (
		warm, grace, up, down    = predictor.FlagWarmUp, predictor.FlagGrace, predictor.FlagAlarmUp, predictor.FlagAlarmDown
		outlier, degraded, stale = predictor.FlagOutlier, predictor.FlagDegraded, predictor.FlagStale
	)
	for _, tt := range []struct {
		name  string
		flags []uint64
		want  string
	}{
		{"calm", []uint64{warm, warm, 0, 0}, ""},
		{"alarm of the errors", []uint64{0, up | grace, grace, grace, 0}, "2 alarm+ errors"},
		{"alarms of the level", []uint64{0, down, up}, "2 alarm- level, 3 alarm+ level"},
		{"variance", []uint64{0, predictor.FlagAlarmVariance, predictor.FlagAlarmVariance | grace}, "2 alarm-variance, 3 alarm-variance"},
		{"an outlier", []uint64{0, outlier | degraded, predictor.FlagDropped}, "2 outlier, 2 degraded begin, 3 dropped, 3 degraded end"},
		{"a shift", []uint64{outlier | degraded, outlier | degraded, predictor.FlagShift | grace, grace}, "1 outlier, 1 degraded begin, 2 outlier, 3 shift, 3 degraded end"},
		{"stale to the end", []uint64{0, stale | degraded, stale | degraded, 0, stale | degraded}, "2 degraded begin, 2 stale begin, 4 degraded end, 4 stale end, 5 degraded begin, 5 stale begin"},
		{"others", []uint64{predictor.FlagFrozen, predictor.FlagEmergency, predictor.FlagSaturated}, "1 frozen begin, 2 frozen end, 2 emergency begin, 3 saturated, 3 emergency end"},
	} {
		for cut := range len(tt.flags) + 1 {
			if got, _ := story(t, tt.flags, cut); got != tt.want {
				t.Errorf("%s, saved after step %d: %s, want %s", tt.name, cut, got, tt.want)
			}
		}
	}
}

// Every flag but warm-up and grace is an event.
func TestNoFlagIsForgotten(t *testing.T) {
	for bit := uint64(1); len(predictor.FlagNames(bit)) > 0; bit <<= 1 {
		got, _ := story(t, []uint64{0, bit}, -1)
		if want := bit&(predictor.FlagWarmUp|predictor.FlagGrace) == 0; strings.Contains(got, predictor.FlagNames(bit)[0]) != want {
			t.Errorf("%v: events %q", predictor.FlagNames(bit), got)
		}
	}
}

// FuzzState wants a state that is accepted to be written again as it was, and one that is not to be an error.
func FuzzState(f *testing.F) {
	for _, flags := range [][]uint64{nil, {predictor.FlagOutlier, predictor.FlagStale, 0, predictor.FlagAlarmUp}} {
		b := New(2)
		for i, flag := range flags {
			b.Add(float64(i), &predictor.Output{Step: uint64(i + 1), Time: int64(-i), HasPrior: i > 0, Weights: []float64{.5, .5}, PriorExperts: []float64{1, 2}, Flags: flag})
		}
		state, _ := b.AppendBinary(nil)
		f.Add(state)
		f.Add(state[:len(state)-3])
		f.Add(append(state[:len(state)-1:len(state)-1], 200))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		b := New(2)
		if b.UnmarshalBinary(state) != nil {
			return
		}
		if again, _ := b.AppendBinary(nil); !bytes.Equal(again, state) {
			t.Errorf("%x became %x", state, again)
		}
		b.Alarms()
		b.EventCounts()
	})
}

// Many events of one kind neither grow the memory without end nor hide those of another, and are counted.
func TestManyEvents(t *testing.T) {
	var flags []uint64
	for range 3 * MaxEvents {
		flags = append(flags, predictor.FlagOutlier|predictor.FlagDegraded, predictor.FlagAlarmUp)
	}
	flags = append(flags, predictor.FlagAlarmDown|predictor.FlagGrace)
	_, b := story(t, flags, 2*MaxEvents+7)
	want := map[string]uint64{"outlier": 3 * MaxEvents, "degraded": 3 * MaxEvents, "alarm+": 3 * MaxEvents, "alarm-": 1}
	if got := b.EventCounts(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	alarms, n := b.Alarms()
	if n != 3*MaxEvents+1 || len(alarms) != MaxEvents+1 || len(b.Events) != 4*MaxEvents+1 {
		t.Fatalf("%d of %d alarms and %d events kept", len(alarms), n, len(b.Events))
	}
	if got, want := alarms[MaxEvents], (Alarm{6*MaxEvents + 1, 60 * MaxEvents, false, ChartErrors}); got != want {
		t.Errorf("the last alarm is %+v, want %+v", got, want)
	}
	state, _ := b.AppendBinary(nil)
	state[len(state)-1] = 200
	if New(2).UnmarshalBinary(state) == nil {
		t.Error("an event of no known kind was accepted")
	}
}
