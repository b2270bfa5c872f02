package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"

	"filippo.io/age"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
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
	name, err := locate(args, meta.Input, filepath.Dir(dir.Path()))
	if err != nil && f.input == "" {
		return &replay{Skipped: err.Error()}, nil
	} else if err != nil {
		return nil, err
	}
	src, err := openSource(name, input.Options{TimeColumn: meta.Input.TimeColumn, ValueColumn: meta.Input.ValueColumn}, a.in)
	if err != nil {
		return nil, err
	}
	defer src.close()
	if err := src.checkPrefix(meta.Input); err != nil {
		return nil, err
	}
	found, err := recorder.EffectiveSnapshots(a.fs, dir.Path())
	if err != nil {
		return nil, err
	}
	line, err := audit.Open(a.fs, dir.Path())
	if err != nil {
		return nil, err
	}
	p := &replayer{app: a, dir: dir, meta: meta, source: src, snapshots: found, identities: f.identities}
	if err := p.begin(); err != nil {
		return nil, err
	}
	return &p.replay, p.run(ctx, line)
}

// replayer computes a run again.
type replayer struct {
	replay
	app       *app
	dir       rundir.Dir
	meta      *producerMeta
	source    *source
	snapshots []recorder.Logged // on the effective timeline, oldest first
	predictor *predictor.Predictor
	digester  *record.Digester
	values    *record.Values
	out       predictor.Output
	sums      [][32]byte

	identities []age.Identity
}

// begin puts predictor and input where the oldest snapshot is, or at the start.
func (p *replayer) begin() error {
	var err error
	if p.predictor, err = predictor.New(p.meta.Predictor); err != nil {
		return err
	}
	if len(p.snapshots) > 0 {
		first := p.snapshots[0]
		sections, err := p.load(first)
		if keyMissing(err) {
			return p.prepare()
		}
		if err != nil {
			return err
		}
		p.snapshots = p.snapshots[1:]
		if p.predictor, err = predictor.Restore(p.meta.Predictor, sections); err != nil {
			return err
		}
		var at input.Prefix
		if err := json.Unmarshal(sections[sectionInput], &at); err != nil {
			return fmt.Errorf("snapshot %s: section %s: %w", first.Name, sectionInput, err)
		}
		if err := p.source.reader.Resume(at); err != nil {
			return err
		}
		p.FromStep = first.Step
	}
	return p.prepare()
}

// prepare makes what a step needs.
func (p *replayer) prepare() error {
	p.ToStep = p.FromStep
	schema := predictor.Schema(len(p.predictor.Experts()))
	p.values, p.digester = record.NewValues(schema), record.NewDigester(schema)
	return nil
}

func (p *replayer) load(s recorder.Logged) (map[string][]byte, error) {
	_, sections, err := snapshot.LoadWith(p.app.fs, filepath.Join(p.dir.Snapshots(), s.Name), &s.SHA256, snapshot.LoadOptions{Identities: p.identities})
	return sectionMap(sections), err
}

// run steps through the input as far as the log goes. The first thing that differs is the problem, and the end.
func (p *replayer) run(ctx context.Context, line *audit.Timeline) error {
	next, stop := iter.Pull2(line.Digests())
	defer stop()
	for {
		item, err, ok := next()
		if !ok {
			return nil
		}
		if err != nil {
			return err
		}
		if item.Entry.Step <= p.FromStep {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if done, err := p.stepTo(ctx, &item); done || err != nil {
			return err
		}
	}
}

// stepTo computes up to the step of a log entry and compares.
func (p *replayer) stepTo(ctx context.Context, item *digestlog.Item) (done bool, err error) {
	for p.predictor.Steps() < item.Entry.Step {
		obs, err := p.source.next(ctx)
		if errors.Is(err, io.EOF) {
			p.Problem = fmt.Sprintf("the log has step %d, the input ends with step %d", item.Entry.Step, p.predictor.Steps())
			return true, nil
		}
		if err != nil {
			return true, err
		}
		if err := p.predictor.Step(predictor.Observation{Time: obs.Time, Value: obs.Value}, &p.out); err != nil {
			return true, err
		}
		if done, err := p.meet(); done || err != nil {
			return done, err
		}
	}
	p.ToStep = item.Entry.Step
	predictor.Fill(p.values, &p.out)
	p.sums, _ = p.digester.Append(p.sums[:0], p.values.Payload(p.out.Step, p.out.Time))
	for i, name := range p.values.Schema().DigestFields() {
		if i >= len(item.Entry.Digests) || item.Entry.Digests[i] != p.sums[i] {
			p.Problem = fmt.Sprintf("step %d: the digest of %s in the log is not what the same input gives now", item.Entry.Step, name)
			return true, nil
		}
	}
	p.Digests++
	return false, nil
}

// meet compares the state with the snapshot of this step, if there is one.
func (p *replayer) meet() (done bool, err error) {
	if len(p.snapshots) == 0 || p.snapshots[0].Step != p.predictor.Steps() {
		return false, nil
	}
	s := p.snapshots[0]
	p.snapshots = p.snapshots[1:]
	sections, err := p.load(s)
	if keyMissing(err) {
		p.Locked++
		return false, nil
	}
	if err != nil {
		return true, err
	}
	p.predictor.State(func(name string, data []byte) {
		if !slices.Equal(sections[name], data) && p.Problem == "" {
			p.Problem = fmt.Sprintf("snapshot %s: section %s is not the state that the same input gives now", s.Name, name)
		}
	})
	p.Snapshots++
	return p.Problem != "", nil
}
