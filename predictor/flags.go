package predictor

import "math/bits"

// The regime flags, bits of Output.Flags. Each has the one meaning given here. Those marked (event) stand for the
// step that carries them alone; the others are raised and stay until the condition named is over.
const (
	// FlagWarmUp: fewer than Config.WarmUp forecasts have been scored, so no alarm is raised, no outlier is
	// quarantined, and the interval rests on an assumption. Cleared when that many have been.
	FlagWarmUp uint64 = 1 << iota
	// FlagAlarmUp (event): the upper CUSUM exceeded its threshold: values run above their forecasts, or, by the slow chart,
	// above the level they had since the last change, which forecasts that follow them would hide.
	FlagAlarmUp
	// FlagAlarmDown (event): the lower CUSUM exceeded its threshold: values run below their forecasts or their level.
	FlagAlarmDown
	// FlagGrace: an alarm of the CUSUM on forecast errors or a confirmed shift lies at most Config.Grace steps back; no alarm is raised, and both
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
	// makes likely. Cleared by the second change of the value. (To ask instead for a variance above a tenth of the historic one,
	// as the earlier project did, would hold a signal back for ever that comes to life calmer than it was.)
	FlagFrozen
	// FlagDegraded: the weights were carried over unchanged in this step: it carries FlagOutlier, FlagFrozen or FlagStale.
	FlagDegraded
	// FlagSaturated (event): the value lay beyond ±MaxMagnitude and was taken as that bound.
	FlagSaturated
	// FlagAlarmVariance (event): the variance chart exceeded its threshold: errors are larger than they long were, to
	// whichever side. For Config.Grace steps no other is raised by that chart. Nothing else follows from it.
	FlagAlarmVariance
	// FlagStale: the observation arrived more than Config.StaleAfter sampling periods after its time, or as long after the
	// observation before. The weights stay, all else learns. Cleared by an observation below 0.8 of that.
	FlagStale
	// FlagEmergency: the Hölder exponent of the cumulated errors is below Config.HolderMin and three standard errors below its own
	// mean: each error takes back the one before. From the next step on, as long as it lasts, rough-path experts have at least
	// half of the weight, and the loss is Huber's. Cleared by an exponent Config.HolderHysteresis above the limit, or less than
	// one standard error below its mean.
	FlagEmergency
	// FlagNotConverged (event): the duality gap of this step of the weights is 10⁻¹⁰ or more of its primal value (or of 1, if that is
	// less), so its plan and weights are not those of the minimum. They are weights all the same, and are used.
	FlagNotConverged

	flagEnd
)

var flagNames = [...]string{"warm-up", "alarm+", "alarm-", "grace", "outlier", "shift", "dropped", "frozen", "degraded", "saturated",
	"alarm-variance", "stale", "emergency", "not-converged"}

// FlagNames returns the names of the flags set in b, lowest bit first; nil for none. A bit without a meaning has no name.
func FlagNames(b uint64) []string {
	var names []string
	for b &= flagEnd - 1; b != 0; b &= b - 1 {
		names = append(names, flagNames[bits.TrailingZeros64(b)])
	}
	return names
}
