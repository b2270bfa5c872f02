package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/score"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

// runFlags are the flags of usp run that are not settings.
type runFlags struct {
	resume    string
	key       string // of the log that a remote snapshot is from
	forecasts string
}

const runLong = `Predict a series one step ahead and record every step.

INPUT is a CSV file with a header line, "-" for CSV on standard input (each line is
predicted as it arrives), or example:NAME for a shipped series (sunspots, nile,
co2, unemployment, gdp). Without INPUT it is example:sunspots.

The columns are "time" (RFC 3339 date or date-time, or nanoseconds) and "value", or
those named by --time-column and --value-column. Where --arrival-column names one, it
says when each row arrived, and what arrives late is stale.

The recorder runs as a process of its own; the prediction never waits for it.
--resume continues a run that was killed or interrupted behind its newest snapshot;
its input is the one it was started with unless INPUT says where it is now.

--resume s3://BUCKET/PREFIX/RUN, or /latest, continues from the remote copy of its
snapshots (snapshot.remote), as a new run. --key KEY says whose they must be.`

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run [INPUT]", Short: "Predict a series and record every step", Long: runLong, Args: cobra.MaximumNArgs(1),
		Example: "  usp run\n  usp run prices.csv --value-column close --forecasts out.csv\n  tail -f prices.csv | usp run -\n  usp run --resume latest",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), args, f)
		},
	}
	cmd.Flags().StringVar(&f.resume, "resume", "", "continue `RUN`, which may be s3://BUCKET/PREFIX/RUN, behind its newest snapshot")
	cmd.Flags().StringVar(&f.key, "key", "", "with --resume s3://…: verifier `key` that must have signed the run")
	cmd.Flags().StringVar(&f.forecasts, "forecasts", "", "write time, forecast, interval and quantiles of every step to `FILE` (CSV; - for standard output)")
	a.setting(cmd, false, "time-column", "", "run.time_column", "`column` of the input with the times")
	a.setting(cmd, false, "value-column", "", "run.value_column", "`column` of the input with the values")
	a.setting(cmd, false, "arrival-column", "", "run.arrival_column", "`column` of the input with the times of arrival (default: none, rows arrive at their times)")
	a.setting(cmd, false, "season", "", "predictor.season", "observations in one period (0: find one)")
	a.setting(cmd, false, "digest-interval", "", "digest.interval", "log the digests of every `n`-th step")
	a.setting(cmd, false, "anchor", "", "anchor.dir", "`directory` for a second copy of each run's newest signed head")
	a.setting(cmd, false, "snapshot-interval", "", "snapshot.interval", "save the state every `n` steps")
	a.identityFlag(cmd)
	a.setting(cmd, false, "progress", "", "run.progress", "progress on standard error: auto, plain, json, none")
	return cmd
}

// usprun is the name of the program in the manifests of usp run.
const usprun = "usp run"

// producerMeta is what the manifest says of usp run: enough to run the same prediction again over the same input. It
// holds no value of the input.
type producerMeta struct {
	Program          string           `json:"program"`
	Version          string           `json:"version"`
	Experts          []expertMeta     `json:"experts,omitempty"` // in the order of the weights
	Input            inputMeta        `json:"input"`
	Predictor        predictor.Config `json:"predictor"`
	SnapshotInterval uint64           `json:"snapshot_interval"`
	EventSpacing     uint64           `json:"snapshot_event_spacing,omitempty"` // 0: no snapshots for events
	Continues        *continued       `json:"continues,omitempty"`              // the run that this one goes on with, from a remote snapshot
}

// expertMeta names an expert, so that its part in a run can be told without the predictor that it belonged to.
type expertMeta struct {
	Name   string `json:"name"`
	Family string `json:"family"` // a letter, see predictor.Family
}

func expertsOf(p *predictor.Predictor) []expertMeta {
	names, families := p.Experts(), p.Families()
	list := make([]expertMeta, len(names))
	for i := range list {
		list[i] = expertMeta{names[i], families[i].String()}
	}
	return list
}

// fieldWeights is the field with the weights of the experts, in runs that were begun with telemetry.weights = true.
const fieldWeights = "weights"

// telemetrySchema is the schema of a run's records. Whether it has weights is settled when the run begins.
func telemetrySchema(p *predictor.Predictor, weights bool) *record.Schema {
	if weights {
		return predictor.SchemaWithWeights(len(p.Experts()))
	}
	return predictor.Schema(len(p.Experts()))
}

// Sections of a snapshot of usp run, beside the predictor's.
const (
	sectionInput  = "input"
	sectionScores = "scores"
	sectionEvents = "events"
)

// session is one execution of usp run.
type session struct {
	app   *app
	flags runFlags
	meta  producerMeta

	source    *source
	predictor *predictor.Predictor
	weights   bool // the records hold the experts' weights
	run       *usp.Run
	values    *record.Values
	out       predictor.Output
	scores    scores
	board     *score.Board // see experts
	emits     latencies
	forecasts *forecastWriter
	progress  *progress

	identities []age.Identity // for encrypted snapshots, of a resume
	resumed    *resumedFrom   // nil for a new run
	rejections []rejection    // snapshots that a resume did not load

	from     uint64 // step before the first one of this generation
	saved    uint64 // step of the last snapshot handed over
	started  time.Time
	rejected uint64 // snapshot requests that were not taken

	events        eventWatch
	eventsDropped uint64 // those of rejected that were for an event

	saturated bool // the user was told that values are out of range
	sections  []usp.Section
	buffers   map[string][]byte
}

func (a *app) run(ctx context.Context, args []string, f runFlags) error {
	s := &session{app: a, flags: f, started: a.now(), buffers: map[string][]byte{}}
	defer s.close()
	var err error
	if f.key != "" && !remote.IsAddress(f.resume) {
		return usageError(errors.New("--key is for --resume s3://BUCKET/PREFIX/RUN; a run directory has its own"))
	}
	if f.resume != "" {
		err = s.resume(ctx, args)
	} else {
		err = s.begin(ctx, args)
	}
	if errors.Is(err, errComplete) {
		return nil
	}
	if err != nil {
		return err
	}
	loopErr := s.loop(ctx)
	return s.end(ctx, loopErr)
}

// begin opens the input and starts a new run. A fault in the input that can be known beforehand is found before anything
// is created.
func (s *session) begin(ctx context.Context, args []string) error {
	a := s.app
	name := "example:sunspots"
	if len(args) > 0 {
		name = args[0]
	}
	var err error
	if s.source, err = openSource(name, a.columns(), a.in); err != nil {
		return err
	}
	cfg := a.cfg.PredictorConfig()
	if cfg.Season == 0 {
		cfg.Season = s.source.season
	}
	if s.predictor, err = predictor.New(cfg); err != nil {
		return usageError(err)
	}
	s.weights = a.cfg.Telemetry.Weights
	s.meta = producerMeta{
		Program: usprun, Version: version(), Experts: expertsOf(s.predictor), Input: s.source.meta, Predictor: cfg, SnapshotInterval: a.cfg.Snapshot.Interval,
	}
	if a.cfg.Snapshot.OnEvents {
		s.meta.EventSpacing = a.cfg.Snapshot.EventSpacing
	}
	if s.source.meta.Kind != kindStdin {
		s.source.meta.relativeTo(a.cfg.Run.Dir)
		s.meta.Input = s.source.meta
	} else if err := s.source.peek(); err != nil {
		return err
	}
	if err := s.startRun(ctx); err != nil {
		return err
	}
	return s.beginForecasts()
}

// startRun opens what the run writes beside its directory, and begins it.
func (s *session) startRun(ctx context.Context) error {
	if err := s.openOutputs(); err != nil {
		return err
	}
	opts, err := s.options()
	if err != nil {
		return err
	}
	s.run, err = usp.Start(ctx, opts)
	return err
}

// beginForecasts puts the forecasts where the predictor is.
func (s *session) beginForecasts() error {
	if s.forecasts == nil {
		return nil
	}
	kept, err := s.forecasts.keepThrough(s.from)
	if err != nil {
		_, failErr := s.run.Fail()
		return errors.Join(fmt.Errorf("forecasts: %w", err), failErr)
	}
	if kept < s.from {
		fmt.Fprintf(s.app.err, "usp: warning: %s lacks the forecasts of steps %d to %d; a new run gives all\n", s.forecasts.name, kept+1, s.from)
	}
	return nil
}

// options are those of the library, from the settings.
func (s *session) options() (usp.Options, error) {
	a := s.app
	rec, err := a.recorderOptions()
	if err != nil {
		return usp.Options{}, err
	}
	command, err := recorderCommand()
	if err != nil {
		return usp.Options{}, err
	}
	schema := telemetrySchema(s.predictor, s.weights)
	s.values = record.NewValues(schema)
	capacity := int64(a.cfg.Ring.StagingCapacity)
	if capacity == 0 {
		capacity = int64(snapshot.SectionsSize(s.state()))*2 + 1<<16
	}
	return usp.Options{
		Schema: schema, Recorder: rec, Producer: s.meta, Command: command,
		Ring: usp.RingOptions{
			Dir: a.cfg.Ring.Dir, Slots: a.cfg.Ring.Slots, StagingAreas: a.cfg.Ring.StagingAreas, StagingCapacity: capacity,
		},
		DrainTimeout: time.Duration(a.cfg.Recorder.DrainTimeout), Stderr: a.err, Logger: a.logger(), Now: a.now,
	}, nil
}

func (s *session) openOutputs() error {
	var err error
	if s.flags.forecasts == "-" && s.app.json {
		return usageError(errors.New("--forecasts - and --json both want standard output; name a file for the forecasts"))
	}
	if s.flags.forecasts != "" {
		if s.forecasts, err = newForecastWriter(s.flags.forecasts, s.app.out, s.source.info); err != nil {
			return err
		}
		if s.flags.resume != "" {
			if err := s.forecasts.checkColumns(); err != nil {
				return err
			}
		}
	}
	s.progress = s.app.progress(s.source.rows)
	return nil
}

// loop is the step loop: observe, learn, forecast, emit. It stops at the end of the input, at an error of it, or when
// ctx ends.
func (s *session) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		obs, err := s.source.next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.step(obs); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (s *session) step(obs input.Observation) error {
	out := &s.out
	law, hasLaw := s.predictor.Law()
	if err := s.predictor.Step(observation(obs), out); err != nil {
		return fmt.Errorf("%s:%d: %w", s.source.name, obs.Line, err)
	}
	s.scores.add(obs.Value, out.Prior, out.PriorLower, out.PriorUpper, out.HasPrior)
	if hasLaw {
		s.experts().AddLaw(obs.Value, &law)
	}
	s.experts().Add(obs.Value, out)
	if out.Flags&predictor.FlagSaturated != 0 && !s.saturated {
		s.saturated = true
		fmt.Fprintf(s.app.err, "usp: warning: %s:%d: values beyond ±%g are taken as that; scale the series\n", s.source.name, obs.Line, predictor.MaxMagnitude)
	}
	predictor.Fill(s.values, out)
	t := time.Now()
	s.run.Emit(out.Step, out.Time, s.values)
	s.emits.add(time.Since(t))
	if s.forecasts != nil {
		stood := &law
		if !hasLaw {
			stood = nil
		}
		if err := s.forecasts.write(out, stood); err != nil {
			return err
		}
	}
	if reason, due := s.due(); due {
		if err := s.flushForecasts(); err != nil {
			return err
		}
		s.snapshot(reason)
	}
	s.progress.step(out)
	return nil
}

// due says whether, and why, the state is saved after this step.
func (s *session) due() (reason uint32, due bool) {
	event := s.meta.EventSpacing > 0 && s.events.due(s.out.Step, s.out.Flags, s.meta.EventSpacing)
	switch n := s.meta.SnapshotInterval; {
	case event:
		return usp.ReasonEvent, true
	case n > 0 && s.out.Step%n == 0:
		return usp.ReasonCadence, true
	}
	return 0, false
}

// flushForecasts hands the table to the system before a state is saved that goes on behind it.
func (s *session) flushForecasts() error {
	if s.forecasts == nil {
		return nil
	}
	return s.forecasts.flush()
}

// state is everything a resumed run needs: the predictor's sections, where the input was, the scores so far.
func (s *session) state() []usp.Section {
	s.sections = s.sections[:0]
	s.predictor.State(func(name string, data []byte) {
		b := append(s.buffers[name][:0], data...)
		s.buffers[name] = b
		s.sections = append(s.sections, usp.Section{Name: name, Data: b})
	})
	consumed, err := json.Marshal(s.source.consumed())
	if err != nil { // three numbers and a digest
		panic("usp run: input position: " + err.Error())
	}
	scores, _ := s.experts().AppendBinary(s.scores.state()) // never an error
	return append(s.sections, usp.Section{Name: sectionInput, Data: consumed}, usp.Section{Name: sectionScores, Data: scores},
		usp.Section{Name: sectionEvents, Data: s.events.state()})
}

// experts is the board of the experts' scores, made when the predictor is known.
func (s *session) experts() *score.Board {
	if s.board == nil {
		s.board = score.New(len(s.predictor.Experts()))
	}
	return s.board
}

func (s *session) snapshot(reason uint32) {
	if s.run.Snapshot(s.out.Step, reason, s.state()...) {
		s.saved = s.out.Step
		return
	}
	s.rejected++
	if reason == usp.ReasonEvent {
		s.eventsDropped++
	}
}

func (s *session) close() {
	if s.source != nil {
		s.source.close()
	}
	if s.forecasts != nil {
		s.forecasts.close()
	}
}
