package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

// continued says of which run another one is the continuation, in the manifest of the latter.
type continued struct {
	RunID      string      `json:"run_id"`
	Generation uint32      `json:"generation"`
	Step       uint64      `json:"step"`
	Snapshot   string      `json:"snapshot"`
	SHA256     rundir.Hash `json:"sha256"`
	Signer     string      `json:"signer"` // verifier key of that run's log
	Trust      string      `json:"trust"`  // whose that key is: given, own, or manifest
}

// resumeRemote goes on behind the newest snapshot in a remote store that verifies, in a run directory of its own: another machine may still have the run, and
// two logs of one run could not be told apart. The new run begins with that state as its first snapshot.
func (s *session) resumeRemote(ctx context.Context, args []string) error {
	a := s.app
	var err error
	if s.identities, err = a.identities(); err != nil {
		return err
	}
	r, trust, err := a.remoteRun(ctx, s.flags.resume, s.flags.key)
	if err != nil {
		return err
	}
	first := r.Manifests[0]
	if s.meta, err = producerMetaOf(first); err != nil {
		return usageError(err)
	}
	if err := s.takeSchema(first); err != nil {
		return err
	}
	name, err := locate(args, s.meta.Input, a.cfg.Run.Dir, "usp run --resume "+quoteArg(s.flags.resume)+" INPUT")
	if err != nil {
		return err
	}
	state, found, err := s.fetchState(ctx, r)
	if err != nil {
		return a.needsKey(err)
	}
	if s.source, err = openSource(name, s.meta.Input.columns(), a.in); err != nil {
		return err
	}
	if err := s.checkState(state); err != nil {
		return err
	}
	if s.source.rows > 0 && state.Step >= s.source.rows {
		return s.nothingLeft(r, state)
	}
	a.noteRunsOwn()
	if s.source.meta.Kind != kindStdin {
		s.source.meta.relativeTo(a.cfg.Run.Dir)
	}
	s.meta.Input, s.meta.Version = s.source.meta, version()
	s.meta.Continues = &continued{
		RunID: r.ID, Generation: found.Generation, Step: found.Step, Snapshot: found.Name, SHA256: found.SHA256, Signer: first.Signer, Trust: trust,
	}
	if s.predictor, err = predictor.New(s.meta.Predictor); err != nil {
		return err
	}
	s.meta.Experts = expertsOf(s.predictor)
	if err := s.startRun(ctx); err != nil {
		return err
	}
	if err := s.restore(state); err != nil {
		_, failErr := s.run.Fail()
		return errors.Join(err, failErr)
	}
	s.resumed.RunID, s.resumed.From = r.ID, r.Address.OfRun(r.ID)
	if !a.quiet {
		fmt.Fprintf(a.err, "usp: continuing run %s behind step %d as run %s, checked with %s\n", r.ID, found.Step, s.run.ID(), trustText(trust))
	}
	s.snapshot(usp.ReasonCadence) // so that this run can be resumed and computed again from its own directory
	return s.beginForecasts()
}

// nothingLeft says that a run has predicted all rows of its input. No run is begun for that.
func (s *session) nothingLeft(r *remote.Run, state *usp.State) error {
	fmt.Fprintf(s.app.err, "usp: run %s is complete: %d of %d rows were predicted; nothing to resume\n", r.ID, state.Step, s.source.rows)
	if s.app.json {
		return errors.Join(s.app.printJSON(map[string]any{"run_id": r.ID, "from": r.Address.OfRun(r.ID), "steps": state.Step, "complete": true}, false), errComplete)
	}
	return errComplete
}

// fetchState has the newest snapshot that verifies.
func (s *session) fetchState(ctx context.Context, r *remote.Run) (state *usp.State, found *remote.Snapshot, err error) {
	dir, remove, err := s.app.fetchDir()
	if err != nil {
		return nil, nil, err
	}
	defer remove()
	state = &usp.State{}
	found, s.rejections, err = s.app.tryEach(ctx, r, nil, dir, func(path string, f *remote.Snapshot) error {
		m, sections, err := snapshot.LoadWith(s.app.fs, path, &f.SHA256, snapshot.LoadOptions{Identities: s.identities})
		if err == nil && (m.RunID != r.ID || m.Step != f.Step || m.Generation != f.Generation) {
			err = fmt.Errorf("%w: it is of run %s, step %d", snapshot.ErrMismatch, m.RunID, m.Step)
		}
		state.Step, state.Generation, state.Snapshot, state.Sections = m.Step, m.Generation, f.Name, sections
		return err
	})
	return state, found, err
}

// checkState refuses an input whose consumed prefix is not that of the snapshot.
func (s *session) checkState(state *usp.State) error {
	want := s.meta.Input
	var at input.Prefix
	if err := json.Unmarshal(sectionMap(state.Sections)[sectionInput], &at); err != nil {
		return fmt.Errorf("snapshot %s: section %s: %w", state.Snapshot, sectionInput, err)
	}
	want.Rows, want.Size, want.SHA256 = at.Rows, at.Bytes, at.SHA256
	return s.source.checkPrefix(want)
}
