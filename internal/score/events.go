package score

import (
	"encoding/binary"
	"errors"

	"github.com/usp-project/usp/predictor"
)

// MaxEvents is how many events of one kind are kept with step and time; beyond them they are only counted.
const MaxEvents = 200

// The phases of a flag that stays, and the charts that raise the flags of an alarm of the mean.
const (
	Begin = "begin"
	End   = "end"

	ChartErrors = "errors" // values run away from their forecasts
	ChartLevel  = "level"  // values run away from the level that they had
)

// Event is a flag that the predictor raised for one step, or the beginning or end of one that stays. What follows from the
// others, warm-up and grace, is none.
type Event struct {
	Step  uint64 `json:"step"`
	Time  int64  `json:"time"`            // of the observation, nanoseconds since the Unix epoch
	Name  string `json:"name"`            // of the flag, as in predictor.FlagNames
	Phase string `json:"phase,omitempty"` // Begin or End, of a flag that stays
	Chart string `json:"chart,omitempty"` // of alarm+ and alarm-: ChartErrors or ChartLevel

	kind uint8
}

// kind is one row of what can happen.
type kind struct {
	flag         uint64
	phase, chart string
}

// kinds has every event; the place in it is what the state holds.
var kinds = [...]kind{
	{predictor.FlagAlarmUp, "", ChartErrors},
	{predictor.FlagAlarmUp, "", ChartLevel},
	{predictor.FlagAlarmDown, "", ChartErrors},
	{predictor.FlagAlarmDown, "", ChartLevel},
	{predictor.FlagAlarmVariance, "", ""},
	{predictor.FlagOutlier, "", ""},
	{predictor.FlagShift, "", ""},
	{predictor.FlagDropped, "", ""},
	{predictor.FlagSaturated, "", ""},
	{predictor.FlagFrozen, Begin, ""},
	{predictor.FlagFrozen, End, ""},
	{predictor.FlagDegraded, Begin, ""},
	{predictor.FlagDegraded, End, ""},
	{predictor.FlagStale, Begin, ""},
	{predictor.FlagStale, End, ""},
	{predictor.FlagEmergency, Begin, ""},
	{predictor.FlagEmergency, End, ""},
	{predictor.FlagNotConverged, "", ""},
}

// names has the name of each kind's flag.
var names = func() (list [len(kinds)]string) {
	for i, k := range kinds {
		list[i] = predictor.FlagNames(k.flag)[0]
	}
	return list
}()

// happens says whether a step with these flags, behind one with those before, is such an event. Of the two charts of the
// mean only that of the errors begins a grace time with its alarm.
func (k *kind) happens(before, flags uint64) bool {
	switch {
	case k.phase == Begin:
		return flags&^before&k.flag != 0
	case k.phase == End:
		return before&^flags&k.flag != 0
	case k.chart != "":
		return flags&k.flag != 0 && (flags&predictor.FlagGrace != 0) == (k.chart == ChartErrors)
	}
	return flags&k.flag != 0
}

// watch takes in the flags of a step.
func (b *Board) watch(out *predictor.Output) {
	before := b.Flags
	b.Flags = out.Flags
	const quiet = predictor.FlagWarmUp | predictor.FlagGrace
	if (before|out.Flags)&^quiet == 0 {
		return // nearly always
	}
	for i := range kinds {
		if kinds[i].happens(before, out.Flags) {
			if b.Happened[i]++; b.Happened[i] <= MaxEvents {
				b.Events = append(b.Events, newEvent(out.Step, out.Time, i))
			}
		}
	}
}

func newEvent(step uint64, time int64, place int) Event {
	return Event{Step: step, Time: time, Name: names[place], Phase: kinds[place].phase, Chart: kinds[place].chart, kind: uint8(place)}
}

// EventCounts returns how often each event happened, by the name of the flag; of one that stays, how often it began.
func (b *Board) EventCounts() map[string]uint64 {
	counts := map[string]uint64{}
	for i, n := range b.Happened {
		if n > 0 && kinds[i].phase != End {
			counts[names[i]] += n
		}
	}
	return counts
}

// Alarm is a change of the mean that one of the charts reported.
type Alarm struct {
	Step  uint64 `json:"step"`
	Time  int64  `json:"time"` // nanoseconds since the Unix epoch
	Up    bool   `json:"up"`
	Chart string `json:"chart"` // ChartErrors or ChartLevel
}

// Alarms returns those of the events that are alarms of the mean, and how many there were in all.
func (b *Board) Alarms() (list []Alarm, n uint64) {
	list = []Alarm{}
	for _, e := range b.Events {
		if e.Chart != "" {
			list = append(list, Alarm{e.Step, e.Time, kinds[e.kind].flag == predictor.FlagAlarmUp, e.Chart})
		}
	}
	for i, k := range kinds {
		if k.chart != "" {
			n += b.Happened[i]
		}
	}
	return list, n
}

const eventSize = 17 // bytes

// kept is how many events a board has whose kinds happened so often.
func (b *Board) kept() (n uint64) {
	for _, h := range b.Happened {
		n += min(h, MaxEvents)
	}
	return n
}

func (b *Board) appendEvents(to []byte) []byte {
	for _, e := range b.Events {
		to = binary.LittleEndian.AppendUint64(to, e.Step)
		to = binary.LittleEndian.AppendUint64(to, uint64(e.Time))
		to = append(to, e.kind)
	}
	return to
}

// restoreEvents takes what appendEvents wrote.
func (b *Board) restoreEvents(from []byte) error {
	b.Events = b.Events[:0]
	for ; len(from) >= eventSize; from = from[eventSize:] {
		place := int(from[16])
		if place >= len(kinds) {
			return errors.New("scores of experts: an event of no known kind")
		}
		b.Events = append(b.Events, newEvent(binary.LittleEndian.Uint64(from), int64(binary.LittleEndian.Uint64(from[8:])), place))
	}
	return nil
}
