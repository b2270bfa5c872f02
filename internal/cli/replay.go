package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
)

const replayLong = `Compute a run of usp run again on this machine, over the same input, and hold the
digests of each step against its log: reproduced (exit 0), or the first step and
field in which this machine comes to something else (exit 22). Nothing is written.

Without --from the run is computed from its first row. With it, the state is loaded
from the newest snapshot before that step; the steps between are computed and held
against the log too. Snapshots that are passed on the way must hold the state that
was reached. One that is damaged ends the replay (exit 20). Where the keys of all
snapshots before --from are missing it begins at the first row, and says so.

--show prints the metric and flag fields of each step between --from and --to as this
machine computes them: rounded in the table, exact with --json. Behind the first
difference it goes on to --to. Fields that are only hashed are never shown.`

// replayFlags are the flags of usp replay.
type replayFlags struct {
	from, to uint64
	input    string
	show     bool
}

// replayReport is usp replay --json, and with --show its last line.
type replayReport struct {
	Type      string      `json:"type"` // summary
	RunID     string      `json:"run_id"`
	RunDir    string      `json:"run_dir"`
	Verdict   string      `json:"verdict"`                           // reproduced or differs
	Snapshot  string      `json:"snapshot,omitempty"`                // that it began with; none: at the first row
	FromStep  uint64      `json:"from_step"`                         // of that snapshot
	ToStep    uint64      `json:"to_step"`                           // the last one held against the log
	Digests   uint64      `json:"digests"`                           // steps whose digests came out the same
	Snapshots uint64      `json:"snapshots"`                         // states that were met and are the same, to the bit
	Locked    uint64      `json:"snapshots_not_decrypted,omitempty"` // met, but not compared: no key
	First     *divergence `json:"first_divergent,omitempty"`
	Notes     []string    `json:"notes,omitempty"`
	Exit      int         `json:"exit_code"`
}

func (a *app) replayCommand() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use: "replay RUN", Short: "Compute a run again and say whether this machine comes to the same", Long: replayLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.replay(cmd.Context(), args[0], f) },
	}
	cmd.Flags().Uint64Var(&f.from, "from", 0, "the first `step` that matters (default: the first of the run)")
	cmd.Flags().Uint64Var(&f.to, "to", 0, "the last `step` to compute (default: the last of the run)")
	cmd.Flags().StringVar(&f.input, "input", "", "`file` with the run's input, if it is not where it was; - for standard input")
	cmd.Flags().BoolVar(&f.show, "show", false, "print metrics and flags of each step as computed here")
	a.identityFlag(cmd)
	a.setting(cmd, false, "progress", "", "run.progress", "progress on standard error: auto, plain, json, none")
	return cmd
}

func (a *app) replay(ctx context.Context, run string, f replayFlags) error {
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	p, err := a.replayable(dir, &f)
	if err != nil {
		return err
	}
	defer p.source.close()
	r := &replayReport{Type: "summary", RunID: dir.ID(), RunDir: dir.Path(), Verdict: "reproduced"}
	if made := p.meta.Version; made != version() {
		r.Notes = append(r.Notes, fmt.Sprintf("the run was computed by usp %s, this is %s", made, version()))
	}
	if err := p.beginBefore(f.from, r); err != nil {
		return damaged(err)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(a.err, "usp: note: %s\n", n)
	}
	show := a.watch(p, &f)
	err = p.run(ctx)
	show.end()
	var short *shortInputError
	if errors.As(err, &short) {
		return usageError(fmt.Errorf("%s: %w; the replay needs all of the run's input", p.source.name, err))
	}
	if err != nil {
		return damaged(err)
	}
	r.FromStep, r.ToStep, r.Digests, r.Snapshots, r.Locked, r.First = p.from, p.reached, p.digests, p.states, p.locked, p.first
	if r.First != nil {
		r.Verdict, r.Exit = "differs", exitDiverge
	}
	if a.json {
		err = a.printJSON(r, !f.show)
	} else {
		a.printReplayReport(r)
	}
	if err == nil && r.Exit != exitOK {
		return withCode(r.Exit, nil)
	}
	return err
}

// replayable finds what a replay needs, and refuses what cannot be replayed. It sets f.to to the last step to compute.
func (a *app) replayable(dir rundir.Dir, f *replayFlags) (*replayer, error) {
	meta, err := readProducerMeta(a.fs, dir)
	if errors.Is(err, rundir.ErrNotFound) {
		return nil, err
	} else if err != nil {
		return nil, usageError(fmt.Errorf("only runs of usp run can be replayed: %w", err))
	}
	last, err := recorder.LastStep(a.fs, dir.Path())
	if err != nil {
		return nil, damaged(err)
	}
	switch {
	case f.to > 0 && f.to < f.from:
		return nil, usageError(fmt.Errorf("--from %d comes after --to %d", f.from, f.to))
	case last.Step == 0:
		return nil, usageError(fmt.Errorf("run %s has no step to replay", dir.ID()))
	case f.from > last.Step:
		return nil, usageError(fmt.Errorf("--from %d: the run ends with step %d", f.from, last.Step))
	case f.to == 0 || f.to > last.Step:
		f.to = last.Step
	}
	var args []string
	if f.input != "" {
		args = []string{f.input}
	}
	name, err := locate(args, meta.Input, filepath.Dir(dir.Path()), "--input FILE")
	if err != nil {
		return nil, err
	}
	p, err := a.newReplayer(dir, &meta, name)
	if err != nil {
		return nil, damaged(err)
	}
	p.end, p.through = f.to, f.show
	if p.identities, err = a.identities(); err != nil {
		p.source.close()
		return nil, err
	}
	return p, nil
}

// damaged gives what is wrong with the files of a run its exit code.
func damaged(err error) error {
	var (
		fault *digestlog.Fault
		load  *loadError
	)
	if errors.As(err, &fault) || errors.As(err, &load) {
		return withCode(exitFailed, err)
	}
	return err
}

// beginBefore starts at the newest snapshot before a step, or at the first row if there is none that can be read.
func (p *replayer) beginBefore(step uint64, r *replayReport) error {
	locked := 0
	for i := len(p.snapshots) - 1; i >= 0; i-- {
		s := p.snapshots[i]
		if s.Step >= step {
			continue
		}
		err := p.beginAt(s)
		if err == nil {
			r.Snapshot = s.Name
			break
		}
		if !keyMissing(err) {
			return err
		}
		locked++
	}
	switch {
	case locked > 0 && r.Snapshot == "":
		r.Notes = append(r.Notes, fmt.Sprintf("no key for %s before step %d; beginning at the first row: give the key with --identity FILE", count(uint64(locked), "encrypted snapshot"), step))
	case locked > 0:
		r.Notes = append(r.Notes, fmt.Sprintf("no key for %s before step %d; beginning at the one of step %d", count(uint64(locked), "encrypted snapshot"), step, p.from))
	case step > 1 && r.Snapshot == "":
		r.Notes = append(r.Notes, fmt.Sprintf("the run has no snapshot before step %d; beginning at the first row", step))
	}
	return nil
}

// watch has progress shown, and with --show the steps printed, while the replay runs.
func (a *app) watch(p *replayer, f *replayFlags) *progress {
	mode := a.cfg.Run.Progress
	if a.quiet || f.show && isTerminal(a.stdout) && isTerminal(a.err) {
		mode = "none" // a line that is drawn over would be torn apart by the table
	}
	bar := newProgress(a.err, mode, f.to, a.now)
	t := &stepTable{app: a, schema: p.values.Schema()}
	p.each = func(out *predictor.Output, payload []uint64) {
		if f.show && out.Step >= f.from {
			t.print(payload)
		}
		bar.step(out)
	}
	return bar
}

func (a *app) printReplayReport(r *replayReport) {
	w := a.out
	began := "the first row"
	if r.Snapshot != "" {
		began = fmt.Sprintf("snapshot %s", r.Snapshot)
	}
	if r.First == nil {
		fmt.Fprintf(w, "reproduced: %s with the same digests", count(r.Digests, "step"))
		if r.Digests > 0 {
			fmt.Fprintf(w, ", up to step %d", r.ToStep)
		}
		fmt.Fprintf(w, "; %s with the same state\n", count(r.Snapshots, "snapshot"))
	} else {
		fmt.Fprintf(w, "differs: %v\n", r.First)
		fmt.Fprintf(w, "  before it %s with the same digests, %s with the same state\n", count(r.Digests, "step"), count(r.Snapshots, "snapshot"))
	}
	fmt.Fprintf(w, "  run %s, from %s\n", r.RunID, began)
	if r.Locked > 0 {
		fmt.Fprintf(w, "  note: %s on the way not compared; to compare, give the key: --identity FILE\n", count(r.Locked, "encrypted snapshot"))
	}
}

// stepTable prints the persisted fields of steps, one step a line.
type stepTable struct {
	app    *app
	schema *record.Schema
	begun  bool
	frame  record.Frame
}

// shownStep is one line with --json. What JSON has no number for is text.
type shownStep struct {
	Type   string         `json:"type"` // step
	Step   uint64         `json:"step"`
	Time   time.Time      `json:"time"`
	Fields map[string]any `json:"fields"`
	Flags  []string       `json:"flag_names"`
}

// print takes of a record only the words that a recorder would store: the others are nobody's to see.
func (t *stepTable) print(payload []uint64) {
	t.frame.Words = append(t.frame.Words[:0], payload[:t.schema.StoredWords()]...)
	s := shownStep{Type: "step", Step: t.frame.Step(), Time: time.Unix(0, t.frame.Time()).UTC(), Fields: map[string]any{}, Flags: []string{}}
	names, row := []string{fmt.Sprintf("%8s", "step"), fmt.Sprintf("%-20s", "time")}, []string{fmt.Sprintf("%8d", s.Step), fmt.Sprintf("%-20s", s.Time.Format(time.RFC3339))}
	for i, f := range t.schema.Fields() {
		if f.Class == record.Digest {
			continue
		}
		text := ""
		switch {
		case f.Class == record.Flag:
			word := t.frame.Uint64(t.schema, i, 0)
			s.Fields[f.Name], s.Flags = word, append(s.Flags, predictor.FlagNames(word)...)
			if text = strings.Join(s.Flags, ","); text == "" {
				text = "-"
			}
		case f.Type == record.Uint64:
			word := t.frame.Uint64(t.schema, i, 0)
			s.Fields[f.Name], text = word, strconv.FormatUint(word, 10)
		case f.Len > 1:
			s.Fields[f.Name], text = t.vector(i, f.Len)
		default:
			x := t.frame.Float64(t.schema, i, 0)
			s.Fields[f.Name], text = jsonNumber(x), strconv.FormatFloat(x, 'g', 6, 64)
		}
		width := max(len(f.Name), 12)
		names, row = append(names, fmt.Sprintf("%*s", width, f.Name)), append(row, fmt.Sprintf("%*s", width, text))
	}
	if t.app.json {
		t.app.printJSON(s, false) // an error of standard output is found at the end
		return
	}
	if !t.begun {
		fmt.Fprintln(t.app.out, strings.Join(names, "  "))
		t.begun = true
	}
	fmt.Fprintln(t.app.out, strings.Join(row, "  "))
}

// vector is a field of several numbers, as JSON and as text.
func (t *stepTable) vector(field, n int) (list []any, text string) {
	var short []string
	for j := range n {
		x := t.frame.Float64(t.schema, field, j)
		list, short = append(list, jsonNumber(x)), append(short, strconv.FormatFloat(x, 'g', 3, 64))
	}
	return list, strings.Join(short, ",")
}

// jsonNumber is x, or text if x is not finite.
func jsonNumber(x float64) any {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	return x
}
