package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/recorder"
)

// runSummary is the last line of usp run --json.
type runSummary struct {
	Type       string    `json:"type"`
	RunID      string    `json:"run_id"`
	RunDir     string    `json:"run_dir"`
	Generation uint32    `json:"generation"`
	Complete   bool      `json:"complete"` // the recorder stored everything and closed the run
	FromStep   uint64    `json:"from_step"`
	Steps      uint64    `json:"steps"` // of the whole series so far
	Emitted    uint64    `json:"emitted"`
	Stored     uint64    `json:"stored"`
	Lost       uint64    `json:"lost"`
	LostToDisk uint64    `json:"lost_storage"` // of those lost: storage did not take them
	Digests    uint64    `json:"digests"`
	Snapshots  uint64    `json:"snapshots"`
	Unsaved    uint64    `json:"snapshots_unsaved"`                 // storage did not take them
	Dropped    uint64    `json:"snapshots_dropped"`                 // requests while every staging area was busy
	EventsLost uint64    `json:"event_snapshots_dropped,omitempty"` // those of them that were for an event
	RMSE       float64   `json:"rmse"`
	RMSENaive  float64   `json:"rmse_naive"`
	MAE        float64   `json:"mae"`
	MASE       undefined `json:"mase"`  // null if the naive forecast makes no error
	Skill      undefined `json:"skill"` // likewise
	Coverage   float64   `json:"coverage"`
	hindsight
	Next      float64 `json:"next_forecast"`
	NextLower float64 `json:"next_lower"`
	NextUpper float64 `json:"next_upper"`
	Seconds   float64 `json:"seconds"`
	EmitP50   int64   `json:"emit_ns_p50"`
	EmitP99   int64   `json:"emit_ns_p99"`
	EmitMax   int64   `json:"emit_ns_max"`

	Anchor  *recorder.Committed `json:"anchor,omitempty"`  // where the last signed head was copied to
	Witness *recorder.Committed `json:"witness,omitempty"` // who cosigned it

	ResumedFrom *resumedFrom `json:"resumed_from,omitempty"`
	Rejected    []rejection  `json:"rejected,omitempty"` // newer snapshots that were not loaded
}

// resumedFrom is where a resumed run continued: behind the step of a snapshot, or, without one, at the first row.
type resumedFrom struct {
	Step       uint64 `json:"step"`
	Generation uint32 `json:"generation"`
	Snapshot   string `json:"snapshot"`         // file name; empty for a cold start
	RunID      string `json:"run_id,omitempty"` // of another run than this one: it was continued from a remote store
	From       string `json:"from,omitempty"`   // address of that run
}

// rejection is a snapshot that a resume did not load.
type rejection struct {
	Snapshot   string `json:"snapshot"`
	Step       uint64 `json:"step"`
	Generation uint32 `json:"generation"`
	Reason     string `json:"reason"`
}

// end takes the last snapshot, closes the run and says what it amounted to. cause is why the loop ended; nil at the end
// of the input.
func (s *session) end(ctx context.Context, cause error) error {
	s.progress.end()
	var sig signalError
	interrupted := errors.As(cause, &sig) || errors.Is(cause, syscall.EPIPE)
	flushErr := s.flushForecasts()
	// The last state goes into a snapshot of its own, so that a resume continues exactly here.
	if s.out.Step > s.saved && !s.run.SnapshotLast(s.out.Step, s.state()...) {
		s.rejected++
	}
	finish := s.run.Close
	if cause != nil && !interrupted {
		finish = s.run.Fail
	}
	sum, err := finish()
	incomplete := errors.Is(err, usp.ErrIncomplete)
	if err != nil && !incomplete {
		return errors.Join(cause, err)
	}
	if flushErr != nil {
		return errors.Join(cause, flushErr)
	}
	report := s.report(sum, !incomplete)
	if s.app.json {
		if perr := s.app.printJSON(report, false); perr != nil {
			return errors.Join(cause, perr)
		}
	} else {
		s.print(report, interrupted)
	}
	if incomplete {
		return errors.Join(cause, err)
	}
	return cause
}

func (s *session) report(sum usp.Summary, complete bool) runSummary {
	return runSummary{
		Type: "summary", RunID: sum.RunID, RunDir: sum.Dir, Generation: sum.Generation, Complete: complete, FromStep: s.from, Steps: s.out.Step,
		Emitted: sum.Emitted, Stored: sum.Stored, Lost: sum.Lost, LostToDisk: sum.LostStorage, Unsaved: sum.Unsaved, Digests: sum.Digests, Snapshots: sum.Snapshots, Dropped: s.rejected, EventsLost: s.eventsDropped,
		RMSE: s.scores.rmse(), RMSENaive: s.scores.rmseNaive(), MAE: s.scores.mae(), MASE: undefined(s.scores.mase()), Skill: undefined(s.scores.skill()), Coverage: s.scores.coverage(),
		hindsight: judge(s.experts(), s.predictor.Experts()),
		Next:      finite(s.out.Forecast), NextLower: finite(s.out.Lower), NextUpper: finite(s.out.Upper),
		Seconds: s.app.now().Sub(s.started).Seconds(),
		EmitP50: s.emits.quantile(.5).Nanoseconds(), EmitP99: s.emits.quantile(.99).Nanoseconds(), EmitMax: s.emits.max.Nanoseconds(),
		ResumedFrom: s.resumed, Rejected: s.rejections, Anchor: sum.Anchor, Witness: sum.Witness,
	}
}

func (s *session) print(r runSummary, interrupted bool) {
	w := s.app.out
	if s.forecasts != nil && s.forecasts.name == "-" {
		w = s.app.err // standard output is the table of forecasts
	}
	verb := "predicted"
	if interrupted {
		verb = "interrupted after"
	}
	fmt.Fprintf(w, "%s: %s %s in %s\n", s.source.name, verb, count(r.Steps, "step"), seconds(r.Seconds))
	if s.scores.N == 0 {
		fmt.Fprintln(w, "  accuracy   not scored: there was no forecast to hold against an observation")
	} else {
		fmt.Fprintf(w, "  accuracy   RMSE %.6g, naive %.6g (%s); MAE %.6g%s; %.0f %% interval held %.1f %%\n",
			r.RMSE, r.RMSENaive, skillText(r), r.MAE, maseText(r.MASE), 100*s.predictor.Config().Coverage, 100*r.Coverage)
		fmt.Fprintf(w, "  hindsight  RMSE of %s %.6g, best mixture %.6g, mean of the experts %.6g, BOA %.6g, ML-Poly %.6g\n", r.BestExpert, r.BestRMSE, r.ConvexRMSE, r.UniformRMSE, r.BOARMSE, r.MLPolyRMSE)
		if r.RMSE >= r.RMSENaive {
			fmt.Fprintf(w, "             %s\n", nothingBetter(r))
		}
		fmt.Fprintf(w, "  weights    turnover %.4g%s; %s\n", r.Turnover, crpsText(r.CRPS), alarmText(r.Alarms, r.AlarmCount))
		for i, line := range eventTexts(&r.hindsight) {
			fmt.Fprintf(w, "  %-10s %s\n", []string{"events", ""}[min(i, 1)], line)
		}
	}
	fmt.Fprintf(w, "  next       %.6g in [%.6g, %.6g]\n", r.Next, r.NextLower, r.NextUpper)
	fmt.Fprintf(w, "  recorded   %d emitted, %d stored, %d lost%s; %s, %s%s\n",
		r.Emitted, r.Stored, r.Lost, lostText(r.LostToDisk), count(r.Digests, "digest"), count(r.Snapshots, "snapshot"), dropped(r.Dropped, r.EventsLost))
	fmt.Fprintf(w, "  emit       p50 %d ns, p99 %d ns, max %d ns\n", r.EmitP50, r.EmitP99, r.EmitMax)
	printCommitted(w, "anchor", r.Anchor)
	printCommitted(w, "witness", r.Witness)
	fmt.Fprintf(w, "  run        %s\n", display(r.RunDir))
	if s.app.quiet {
		return
	}
	dir := s.app.dirFlag()
	var next []string
	switch {
	case interrupted:
		next = append(next, resumeCommand(r.RunID+dir, s.meta))
	case !r.Complete:
		next = append(next, "usp verify "+r.RunID+dir+"   (again, when the recorder has gone on)", "usp record "+r.RunID+dir+"   (if it is gone)")
	}
	next = append(next, "usp show latest"+dir, "usp verify latest"+dir, "usp compare "+r.RunID+" OTHER-RUN"+dir)
	fmt.Fprintf(w, "next: %s\n", strings.Join(next, "\n      "))
}

// skillText says how the forecasts did against the naive one, and does not make up a number where there is none.
func skillText(r runSummary) string {
	switch {
	case r.RMSE == r.RMSENaive, math.Abs(float64(r.Skill)) < 0.0005: // 0.0 % is no difference
		return "as good as naive"
	case r.Skill > 0:
		return fmt.Sprintf("%.1f %% better", 100*r.Skill)
	case r.RMSENaive == 0:
		return "not better: naive makes no error"
	}
	return fmt.Sprintf("not better: %.1f %% worse", -100*r.Skill)
}

// lostText says what part of the loss was the disk's.
func lostText(toStorage uint64) string {
	if toStorage == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d of them because storage took nothing)", toStorage)
}

func maseText(mase undefined) string {
	if math.IsNaN(float64(mase)) {
		return ""
	}
	return fmt.Sprintf(", MASE %.3f", float64(mase))
}

// undefined is a number that may not be one: null in JSON.
type undefined float64

// MarshalJSON writes the number, or null for NaN and the infinities.
func (u undefined) MarshalJSON() ([]byte, error) {
	if x := float64(u); !math.IsNaN(x) && !math.IsInf(x, 0) {
		return json.Marshal(x)
	}
	return []byte("null"), nil
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func dropped(n, events uint64) string {
	switch {
	case n == 0:
		return ""
	case events == 0:
		return fmt.Sprintf(" (%d more dropped: the recorder was busy)", n)
	}
	return fmt.Sprintf(" (%d more dropped, %d of them for an alarm or degraded mode: the recorder was busy)", n, events)
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}
