package cli

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/snapshot"
)

// replay is what usp verify --deep adds to the report: the run computed again.
type replay struct {
	FromStep  uint64 `json:"from_step"` // of the oldest snapshot on the effective timeline; 0 without one
	ToStep    uint64 `json:"to_step"`
	Digests   uint64 `json:"digests"`                           // steps whose digests were computed again and compared
	Snapshots uint64 `json:"snapshots"`                         // states that the replay met and found equal, to the bit
	Locked    uint64 `json:"snapshots_not_decrypted,omitempty"` // met, but not compared: no key
	Problem   string `json:"problem,omitempty"`
	Skipped   string `json:"skipped,omitempty"` // why there was none
}

// loadable tries to make a predictor of a snapshot's state; the audit calls it for every snapshot of usp run.
func loadable(meta *producerMeta) func(snapshot.Meta, []snapshot.Section) error {
	return func(_ snapshot.Meta, sections []snapshot.Section) error {
		_, err := predictor.Restore(meta.Predictor, sectionMap(sections))
		return err
	}
}

func sectionMap(sections []snapshot.Section) map[string][]byte {
	m := make(map[string][]byte, len(sections))
	for _, s := range sections {
		m[s.Name] = s.Data
	}
	return m
}

// replayRun computes a run again, from its oldest snapshot to its end, over the same input: every digest must come out
// the same, and every later snapshot must hold the state that the replay has reached. f.input overrides where the
// manifest says that the input is. Where the oldest snapshot is encrypted and its key is not there, the replay begins at
// the first row.
func (a *app) replayRun(ctx context.Context, dir rundir.Dir, meta *producerMeta, f verifyFlags) (*replay, error) {
	var args []string
	if f.input != "" {
		args = []string{f.input}
	}
	name, err := locate(args, meta.Input, filepath.Dir(dir.Path()), "--input FILE")
	if err != nil && f.input == "" {
		return &replay{Skipped: err.Error()}, nil
	} else if err != nil {
		return nil, err
	}
	p, err := a.newReplayer(dir, meta, name)
	if err != nil {
		return nil, err
	}
	defer p.source.close()
	p.identities = f.identities
	if err := p.beginAtOldest(); err != nil {
		return nil, err
	}
	err = p.run(ctx)
	r := &replay{FromStep: p.from, ToStep: p.reached, Digests: p.digests, Snapshots: p.states, Locked: p.locked}
	var short *shortInputError
	switch {
	case errors.As(err, &short):
		r.Problem, err = short.Error(), nil
	case p.first != nil:
		r.Problem = p.first.String()
	}
	return r, err
}

// beginAtOldest starts at the oldest snapshot that can be read, so that all others are met.
func (p *replayer) beginAtOldest() error {
	if len(p.snapshots) == 0 {
		return nil
	}
	err := p.beginAt(p.snapshots[0])
	if keyMissing(err) {
		return nil
	}
	return err
}
