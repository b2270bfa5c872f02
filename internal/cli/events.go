package cli

import (
	"encoding/json"
	"fmt"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/predictor"
)

// What is worth a snapshot at once. An event is, in each step that carries it; a level is in the step that raises it. Each
// row is limited on its own, so that no series of outliers hides an alarm.
var eventKinds = [...]struct{ event, level uint64 }{
	{event: predictor.FlagAlarmUp | predictor.FlagAlarmDown},
	{level: predictor.FlagDegraded},
}

// eventWatch finds the steps whose state is saved for an event. It is part of the saved state: after a resume it goes on as
// if there had been no interruption.
//
// A signal that flaps in and out of degraded mode would otherwise fill every staging area, and push the snapshots of calmer
// times out of the retention. So of each kind at most one is due in any spacing steps: the first one of a burst, and the
// next that begins when the spacing is over.
type eventWatch struct {
	Flags uint64                  `json:"flags"` // of the last step
	Last  [len(eventKinds)]uint64 `json:"last"`  // step of the last one that was due, of each kind; 0: none
}

// due takes in a step and reports whether it is one.
func (w *eventWatch) due(step, flags, spacing uint64) bool {
	due := false
	for i, kind := range eventKinds {
		happens := flags&kind.event != 0 || flags&^w.Flags&kind.level != 0
		if happens && (w.Last[i] == 0 || step-w.Last[i] >= spacing) {
			w.Last[i], due = step, true
		}
	}
	w.Flags = flags
	return due
}

func (w *eventWatch) state() []byte {
	b, err := json.Marshal(w)
	if err != nil { // numbers only
		panic("usp run: events: " + err.Error())
	}
	return b
}

// restore takes the section of a snapshot. One from before there were events has none.
func (w *eventWatch) restore(b []byte) error {
	if b == nil {
		return nil
	}
	if err := json.Unmarshal(b, w); err != nil {
		return fmt.Errorf("section %s: %w", sectionEvents, err)
	}
	return nil
}

// reasonText names why a snapshot was taken. Programs may have codes of their own.
func reasonText(code uint32) string {
	switch code {
	case usp.ReasonCadence:
		return "cadence"
	case usp.ReasonFinal:
		return "final"
	case usp.ReasonEvent:
		return "event"
	}
	return fmt.Sprintf("code %d", code)
}
