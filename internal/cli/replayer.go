package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// replayer computes a run again in this process, over the same input, and holds what comes out against the log and
// against the states in the snapshots. It only reads the run directory.
type replayer struct {
	app       *app
	dir       rundir.Dir
	meta      *producerMeta
	line      *audit.Timeline
	source    *source
	snapshots []recorder.Logged // on the effective timeline, oldest first; those that were passed are gone
	predictor *predictor.Predictor
	digester  *record.Digester
	values    *record.Values
	out       predictor.Output
	sums      [][32]byte

	identities []age.Identity
	end        uint64                                        // the last step to compute; 0: the last one with a digest in the log
	each       func(out *predictor.Output, payload []uint64) // called after each step that was computed; may be nil
	through    bool                                          // go on to the end behind the first difference

	from    uint64 // the step of the snapshot that the replay began with; 0 for the first row
	reached uint64 // the last step whose digests were held against the log, from on
	digests uint64 // steps whose digests came out the same, up to the first difference
	states  uint64 // snapshots whose state is the one reached, to the bit
	locked  uint64 // snapshots that were met, but not compared: no key
	first   *divergence
}

// divergence is the first thing in which a replay differs from what was recorded.
type divergence struct {
	Step     uint64 `json:"step"`
	Field    string `json:"field,omitempty"`    // whose digest in the log is another
	Snapshot string `json:"snapshot,omitempty"` // or the file that holds another state
	Section  string `json:"section,omitempty"`
}

func (d *divergence) String() string {
	if d.Snapshot != "" {
		return fmt.Sprintf("snapshot %s: section %s is not the state that the same input gives now", d.Snapshot, d.Section)
	}
	return fmt.Sprintf("step %d: the digest of %s in the log is not what the same input gives now", d.Step, d.Field)
}

// shortInputError says that the input ends before the log does.
type shortInputError struct{ logged, rows uint64 }

func (e *shortInputError) Error() string {
	return fmt.Sprintf("the log has step %d, the input ends with step %d", e.logged, e.rows)
}

// newReplayer stands before the first row of the input with that name. The caller closes its source.
func (a *app) newReplayer(dir rundir.Dir, meta *producerMeta, name string) (*replayer, error) {
	p := &replayer{app: a, dir: dir, meta: meta}
	var err error
	if p.snapshots, err = recorder.EffectiveSnapshots(a.fs, dir.Path()); err != nil {
		return nil, err
	}
	if p.line, err = audit.Open(a.fs, dir.Path()); err != nil {
		return nil, err
	}
	if p.predictor, err = predictor.New(meta.Predictor); err != nil {
		return nil, err
	}
	_, weights := p.line.Schema(p.line.Manifests[0].Generation).Index(fieldWeights)
	schema := telemetrySchema(p.predictor, weights)
	p.values, p.digester = record.NewValues(schema), record.NewDigester(schema)
	if p.source, err = openSource(name, meta.Input.columns(), a.in); err != nil {
		return nil, err
	}
	if err := p.source.checkPrefix(meta.Input); err != nil {
		p.source.close()
		return nil, err
	}
	return p, nil
}

// beginAt puts predictor and input where a snapshot is. Nothing has changed if its key is missing.
func (p *replayer) beginAt(s recorder.Logged) error {
	sections, err := p.load(s)
	if err != nil {
		return err
	}
	if p.predictor, err = predictor.Restore(p.meta.Predictor, sections); err != nil {
		return fmt.Errorf("snapshot %s: %w", s.Name, err)
	}
	var at input.Prefix
	if err := json.Unmarshal(sections[sectionInput], &at); err != nil {
		return fmt.Errorf("snapshot %s: section %s: %w", s.Name, sectionInput, err)
	}
	if err := p.source.reader.Resume(at); err != nil {
		return err
	}
	p.from, p.reached = s.Step, s.Step
	p.snapshots = slices.DeleteFunc(p.snapshots, func(o recorder.Logged) bool { return o.Step <= s.Step })
	return nil
}

// load reads a snapshot. A *loadError says that it is not what the log names.
func (p *replayer) load(s recorder.Logged) (map[string][]byte, error) {
	_, sections, err := snapshot.LoadWith(p.app.fs, filepath.Join(p.dir.Snapshots(), s.Name), &s.SHA256, snapshot.LoadOptions{Identities: p.identities})
	if err != nil && !keyMissing(err) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, snapshot.ErrVersion) {
		err = &loadError{s.Step, err}
	}
	return sectionMap(sections), err
}

// loadError says that a snapshot is damaged or gone.
type loadError struct {
	step uint64
	err  error
}

func (e *loadError) Error() string {
	return fmt.Sprintf("snapshot of step %d: %v; usp verify says what else is damaged", e.step, e.err)
}

func (e *loadError) Unwrap() error { return e.err }

// run steps through the input up to the end. The first thing that differs ends it, unless it is to go through.
func (p *replayer) run(ctx context.Context) error {
	next, stop := iter.Pull2(p.line.Digests())
	defer stop()
	item, more, err := following(next, p.from)
	for err == nil && (p.end == 0 && more || p.predictor.Steps() < p.end) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.step(ctx, max(p.end, item.Entry.Step)); err != nil {
			return err
		}
		step := p.predictor.Steps()
		payload := p.values.Payload(p.out.Step, p.out.Time)
		if more && item.Entry.Step == step {
			p.hold(&item, payload)
			item, more, err = following(next, step)
		}
		if p.first == nil && err == nil {
			err = p.meet()
		}
		if p.each != nil {
			p.each(&p.out, payload)
		}
		if p.first != nil && !p.through {
			break
		}
	}
	return err
}

// following returns the first entry behind a step.
func following(next func() (digestlog.Item, error, bool), step uint64) (digestlog.Item, bool, error) {
	for {
		item, err, ok := next()
		if !ok || err != nil || item.Entry.Step > step {
			return item, ok, err
		}
	}
}

// step computes one step; logged is one that the log has.
func (p *replayer) step(ctx context.Context, logged uint64) error {
	obs, err := p.source.next(ctx)
	if errors.Is(err, io.EOF) {
		return &shortInputError{logged, p.predictor.Steps()}
	}
	if err != nil {
		return err
	}
	if err := p.predictor.Step(observation(obs), &p.out); err != nil {
		return err
	}
	predictor.Fill(p.values, &p.out)
	return nil
}

// hold compares the digests of a step with those in the log.
func (p *replayer) hold(item *digestlog.Item, payload []uint64) {
	if p.first != nil {
		return
	}
	p.reached = item.Entry.Step
	p.sums, _ = p.digester.Append(p.sums[:0], payload)
	for i, name := range p.values.Schema().DigestFields() {
		if i >= len(item.Entry.Digests) || item.Entry.Digests[i] != p.sums[i] {
			p.first = &divergence{Step: item.Entry.Step, Field: name}
			return
		}
	}
	p.digests++
}

// meet compares the state with each snapshot of this step.
func (p *replayer) meet() error {
	for len(p.snapshots) > 0 && p.snapshots[0].Step <= p.predictor.Steps() {
		s := p.snapshots[0]
		p.snapshots = p.snapshots[1:]
		sections, err := p.load(s)
		if keyMissing(err) {
			p.locked++
			continue
		}
		if err != nil {
			return err
		}
		p.predictor.State(func(name string, data []byte) {
			if !slices.Equal(sections[name], data) && p.first == nil {
				p.first = &divergence{Step: s.Step, Snapshot: s.Name, Section: name}
			}
		})
		if p.first != nil {
			return nil
		}
		p.states++
	}
	return nil
}
