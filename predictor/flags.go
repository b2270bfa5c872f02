package predictor

import "math/bits"

// The regime flags, bits of Output.Flags. Each has the one meaning given here. Those marked (event) stand for the
// step that carries them alone; the others are raised and stay until the condition named is over.
const (
	// FlagWarmUp: fewer than Config.WarmUp forecasts have been scored, so no alarm is raised, no outlier is
	// quarantined, and the interval rests on an assumption. Cleared when that many have been.
	FlagWarmUp uint64 = 1 << iota
	// FlagAlarmUp (event): the upper CUSUM exceeded its threshold: values run above their forecasts.
	FlagAlarmUp
	// FlagAlarmDown (event): the lower CUSUM exceeded its threshold: values run below their forecasts.
	FlagAlarmDown
	// FlagGrace: an alarm or a confirmed shift lies at most Config.Grace steps back; no alarm is raised, and both
	// sums start from zero when the time is over.
	FlagGrace
	// FlagOutlier (event): this observation was put in quarantine. It has taught nothing yet.
	FlagOutlier
	// FlagShift (event): the quarantine ended with this observation and its values were accepted as a new level.
	FlagShift
	// FlagDropped (event): the quarantine ended with this observation, which fits the forecast again; the
	// quarantined values were replaced by their forecasts.
	FlagDropped
	// FlagFrozen: the value has not changed for Config.FreezeSteps observations and for longer than its own history
	// makes likely. Cleared by the second change of the value.
	FlagFrozen
	// FlagDegraded: the weights were carried over unchanged in this step (quarantine or frozen signal).
	FlagDegraded
	// FlagSaturated (event): the value lay beyond ±MaxMagnitude and was taken as that bound.
	FlagSaturated

	flagEnd
)

var flagNames = [...]string{"warm-up", "alarm+", "alarm-", "grace", "outlier", "shift", "dropped", "frozen", "degraded", "saturated"}

// FlagNames returns the names of the flags set in b, lowest bit first; nil for none. A bit without a meaning has no name.
func FlagNames(b uint64) []string {
	var names []string
	for b &= flagEnd - 1; b != 0; b &= b - 1 {
		names = append(names, flagNames[bits.TrailingZeros64(b)])
	}
	return names
}
