package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/remote"
)

// errComplete says that there was nothing to resume, and that the user was told so.
var errComplete = errors.New("the run is complete")

// resume continues a run: same prediction settings, same columns, same input, from the newest snapshot that verifies.
func (s *session) resume(ctx context.Context, args []string) error {
	a := s.app
	if remote.IsAddress(s.flags.resume) {
		return s.resumeRemote(ctx, args)
	}
	dir, err := a.resolve(s.flags.resume)
	if err != nil {
		return err
	}
	if err := s.readMeta(dir); err != nil {
		return err
	}
	runs := filepath.Dir(string(dir))
	name, err := locate(args, s.meta.Input, runs, "usp run --resume RUN INPUT")
	if err != nil {
		return err
	}
	if s.source, err = openSource(name, s.meta.Input.columns(), a.in); err != nil {
		return err
	}
	if s.identities, err = a.identities(); err != nil {
		return err
	}
	if err := s.checkConsumed(dir); err != nil {
		return err
	}
	a.noteRunsOwn()
	s.source.meta.relativeTo(runs)
	s.meta.Input, s.meta.Version = s.source.meta, version()
	if s.predictor, err = predictor.New(s.meta.Predictor); err != nil {
		return err
	}
	s.meta.Experts = expertsOf(s.predictor)
	if done, err := s.alreadyComplete(ctx, dir); done || err != nil {
		return err
	}
	if err := s.openOutputs(); err != nil {
		return err
	}
	opts, err := s.options()
	if err != nil {
		return err
	}
	opts.Recorder.Runs, opts.Identities = runs, s.identities
	run, state, err := usp.Resume(ctx, string(dir), opts)
	if err != nil {
		return a.needsKey(err)
	}
	s.run = run
	if err := s.restore(state); err != nil {
		_, failErr := run.Fail()
		return errors.Join(err, failErr)
	}
	return s.beginForecasts()
}

// noteRunsOwn says that a run goes on as it was begun, where flags say something else.
func (a *app) noteRunsOwn() {
	if slices.ContainsFunc(a.settings, func(set config.Setting) bool {
		return strings.HasPrefix(set.Key, "predictor.") || strings.HasSuffix(set.Key, "_column") || set.Key == "digest.interval"
	}) {
		fmt.Fprintf(a.err, "usp: note: what enters the prediction (season, columns, digest interval) is the run's, whatever flags say\n")
	}
}

func (s *session) readMeta(dir rundir.Dir) error {
	m, _, err := rundir.ReadManifest(s.app.fs, dir, 0)
	if err != nil {
		return err
	}
	if s.meta, err = readProducerMeta(s.app.fs, dir); err != nil {
		return usageError(err)
	}
	return s.takeSchema(m)
}

// takeSchema has the run go on with the fields and on the steps of the one it continues.
func (s *session) takeSchema(m *rundir.Manifest) error {
	schema, err := m.ParsedSchema()
	if err != nil {
		return err
	}
	// Digests must fall on the same steps in every generation, and records have the same fields, whatever the settings
	// say today.
	cfg := s.app.cfg
	cfg.Digest.Interval = max(m.DigestEvery, 1)
	_, s.weights = schema.Index(fieldWeights)
	if s.weights != cfg.Telemetry.Weights && cfg.Origin("telemetry.weights").Source != config.FromDefault {
		fmt.Fprintf(s.app.err, "usp: note: telemetry.weights is %t, but the run was begun with %t and goes on so\n", cfg.Telemetry.Weights, s.weights)
	}
	return nil
}

// checkConsumed refuses an input whose consumed prefix, that of the snapshot the run will continue from, is not the run's;
// rows behind it may be others. Without a snapshot the whole prefix in the manifest counts.
func (s *session) checkConsumed(dir rundir.Dir) error {
	want := s.meta.Input
	var rejected []error
	found, err := recorder.NewestSnapshot(s.app.fs, dir.Path(), func(err error) { rejected = append(rejected, err) }, s.identities...)
	if err == nil {
		s.app.warnUnencrypted(dir, found.Name)
		var at input.Prefix
		if err := json.Unmarshal(sectionMap(found.Sections)[sectionInput], &at); err != nil {
			return fmt.Errorf("snapshot %s: section %s: %w", found.Name, sectionInput, err)
		}
		want.Rows, want.Size, want.SHA256 = at.Rows, at.Bytes, at.SHA256
	} else if !errors.Is(err, recorder.ErrNoSnapshot) {
		for _, r := range rejected { // else the resume itself says it
			fmt.Fprintf(s.app.err, "usp: warning: %v\n", r)
		}
		return s.app.needsKey(err)
	}
	return s.source.checkPrefix(want)
}

// readProducerMeta reads what usp run put into the manifest of generation 0.
func readProducerMeta(fsys vfs.FS, dir rundir.Dir) (meta producerMeta, err error) {
	m, _, err := rundir.ReadManifest(fsys, dir, 0)
	if err != nil {
		return meta, err
	}
	return producerMetaOf(m)
}

func producerMetaOf(m *rundir.Manifest) (meta producerMeta, err error) {
	if err := json.Unmarshal(m.Producer, &meta); err != nil || meta.Program != usprun {
		return meta, fmt.Errorf("run %s was not made by usp run; only the program that made it can go on with it or compute it again", m.RunID)
	}
	return meta, nil
}

// resumeCommand is what goes on with a run, said in the words of a command line, that m says was made by usp run; "" for one of another
// program, which alone can.
func resumeCommand(run string, m producerMeta) string {
	switch {
	case m.Program != usprun:
		return ""
	case m.Input.Kind == kindStdin:
		return "usp run --resume " + run + " -"
	}
	return "usp run --resume " + run
}

// alreadyComplete reports whether the run ended well and its input has no further rows.
func (s *session) alreadyComplete(ctx context.Context, dir rundir.Dir) (bool, error) {
	state, err := recorder.LastStep(s.app.fs, string(dir))
	last := state.Step
	if err != nil || state.Status != digestlog.StatusClean || s.source.rows == 0 || last < s.source.rows {
		return false, err
	}
	if ctx.Err() != nil {
		return true, context.Cause(ctx)
	}
	opts, err := s.app.recorderOptions()
	if err != nil {
		return true, err
	}
	// Its recorder may have died between the last entry and the signed head.
	if _, err := recorder.Recover(ctx, dir.Path(), s.app.cfg.Ring.Dir, opts); err != nil {
		return true, err
	}
	fmt.Fprintf(s.app.err, "usp: run %s is complete: %d of %d rows were predicted; nothing to resume\n", dir.ID(), last, s.source.rows)
	if s.app.json {
		return true, errors.Join(s.app.printJSON(map[string]any{"run_id": dir.ID(), "run_dir": string(dir), "steps": last, "complete": true}, false), errComplete)
	}
	return true, errComplete
}

// sayRejected names each snapshot that was not loaded, why, and what is tried in its place.
func (s *session) sayRejected(state *usp.State) {
	var list []*recorder.RejectedError
	for _, err := range state.Rejected {
		var r *recorder.RejectedError
		if errors.As(err, &r) {
			list = append(list, r)
		}
	}
	for i, r := range list {
		next := "starting cold, at the first row"
		switch {
		case i+1 < len(list):
			next = fmt.Sprintf("trying the one of step %d", list[i+1].Step)
		case state.Snapshot != "":
			next = fmt.Sprintf("trying the one of step %d", state.Step)
		}
		fmt.Fprintf(s.app.err, "usp: warning: %v; %s\n", r, next)
		s.rejections = append(s.rejections, rejection{Snapshot: r.Name, Step: r.Step, Generation: r.Generation, Reason: r.Err.Error()})
	}
}

// restore puts predictor, input and scores where the snapshot left them.
func (s *session) restore(state *usp.State) error {
	s.sayRejected(state)
	s.resumed = &resumedFrom{Step: state.Step, Generation: state.Generation, Snapshot: state.Snapshot}
	if state.Snapshot == "" {
		fmt.Fprintf(s.app.err, "usp: run %s has no snapshot that can be loaded; starting cold, at its first row\n", s.run.ID())
		return nil
	}
	sections := sectionMap(state.Sections)
	var err error
	if s.predictor, err = predictor.Restore(s.meta.Predictor, sections); err != nil {
		return fmt.Errorf("snapshot %s: %w", state.Snapshot, err)
	}
	var at input.Prefix
	if err := json.Unmarshal(sections[sectionInput], &at); err != nil {
		return fmt.Errorf("snapshot %s: section %s: %w", state.Snapshot, sectionInput, err)
	}
	if err := s.restoreScores(sections[sectionScores]); err != nil {
		return fmt.Errorf("snapshot %s: %w", state.Snapshot, err)
	}
	if err := s.events.restore(sections[sectionEvents]); err != nil {
		return fmt.Errorf("snapshot %s: %w", state.Snapshot, err)
	}
	if s.predictor.Steps() != state.Step || at.Rows != state.Step {
		return fmt.Errorf("snapshot %s is of step %d, but holds a predictor after step %d and an input after row %d", state.Snapshot, state.Step, s.predictor.Steps(), at.Rows)
	}
	if err := s.source.reader.Resume(at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s.from, s.saved = state.Step, state.Step
	s.out.Step = state.Step
	s.values = record.NewValues(s.values.Schema())
	return nil
}
