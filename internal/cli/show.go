package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/plot"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
)

const showLong = `Show what a run did: when and where, how much was recorded, and plots of its
telemetry. For usp run these are the scale of the forecast error, CUSUM against
its threshold, and the entropy of the weights; for other programs the first three
metrics, or those named by --fields.

Of usp run there is also a leaderboard: how large the errors of each expert alone
would have been, and those of all of them weighted. The sums it is made of are saved
in snapshots; the newest one that can be loaded counts.

Which weight the experts had at each step is shown of runs that recorded it, those
that were begun with telemetry.weights = true; --plot draws it into a file.

A run counts as if it had never been interrupted.`

func (a *app) showCommand() *cobra.Command {
	var f showFlags
	cmd := &cobra.Command{
		Use: "show RUN", Short: "Show what a run did, with plots and the experts' leaderboard", Long: showLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.show(cmd.Context(), args[0], f) },
	}
	cmd.Flags().StringSliceVar(&f.fields, "fields", nil, "`fields` to plot, separated by commas")
	cmd.Flags().StringVar(&f.plot, "plot", "", "also draw the weights over the steps into `file`.svg or .png")
	a.identityFlag(cmd)
	return cmd
}

type showFlags struct {
	fields []string
	plot   string
}

// showReport is usp show --json.
type showReport struct {
	RunID       string       `json:"run_id"`
	RunDir      string       `json:"run_dir"`
	Created     time.Time    `json:"created"`
	Status      string       `json:"status"`
	Generations int          `json:"generations"`
	Host        rundir.Host  `json:"host"`
	Schema      string       `json:"schema"`
	Steps       uint64       `json:"steps"` // on the effective timeline
	FirstStep   uint64       `json:"first_step"`
	LastStep    uint64       `json:"last_step"`
	FirstTime   time.Time    `json:"first_time,omitzero"`
	LastTime    time.Time    `json:"last_time,omitzero"`
	Lost        uint64       `json:"lost"`           // over all generations
	Live        *live        `json:"live,omitempty"` // while it is recorded
	Snapshots   int          `json:"snapshots"`
	Anchor      *anchored    `json:"anchor,omitempty"`  // nil: none is configured
	Witness     *anchored    `json:"witness,omitempty"` // the cosigned head; nil: none is there and no witness is configured
	Sinks       []sinkReport `json:"sinks,omitempty"`   // where else it was brought
	Alarms      []uint64     `json:"alarms,omitempty"`  // steps with an alarm flag; of usp run only
	Fields      []showField  `json:"fields"`

	Leaderboard *leaderboard   `json:"leaderboard,omitempty"` // of usp run only
	Unscored    string         `json:"unscored,omitempty"`    // why there is none, and what to do
	Weights     *weightSummary `json:"weights,omitempty"`     // nil: they were not recorded
}

// showField is one persisted field over the run.
type showField struct {
	Name string  `json:"name"`
	Unit string  `json:"unit,omitempty"`
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
	Last float64 `json:"last"`
}

func (a *app) show(ctx context.Context, run string, f showFlags) error {
	if err := checkFigure(f.plot); err != nil {
		return usageError(err)
	}
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	line, err := audit.Open(a.fs, dir.Path())
	if err != nil {
		return err
	}
	var s *showing
	err = a.steady(dir, func() error {
		var err error
		if s, err = newShowing(line, f.fields); err != nil {
			return err
		}
		if f.plot != "" && s.weights == nil {
			return usageError(fmt.Errorf("--plot: run %s has no weights to draw; they are recorded of runs that usp run begins with telemetry.weights = true", s.RunID))
		}
		return errors.Join(s.read(ctx), a.showState(s, dir), a.showExperts(s, dir))
	})
	if err != nil {
		return err
	}
	if s.weights != nil {
		s.Weights = &s.weights.weightSummary
		s.Leaderboard.weigh(s.Weights)
	}
	if a.json {
		err = a.printJSON(&s.showReport, true)
	} else {
		a.printShow(s)
	}
	if err == nil && f.plot != "" {
		if err = a.drawFigure(f.plot, s.weights.figure(s.RunID)); err == nil && !a.json {
			fmt.Fprintf(a.out, "\n  drawn in %s\n", display(f.plot))
		}
	}
	return err
}

// showing gathers what is shown, in memory that does not grow with the run.
type showing struct {
	showReport
	line    *audit.Timeline
	schema  *record.Schema
	flags   int // index of the field "flags" of usp run, or -1
	columns []*column
	plots   []*column
	predict bool
	experts []expertMeta // of a predictor's run
	weights *weightStats // nil: they were not recorded
}

// column is one field's running summary and its samples for the plot.
type column struct {
	name, unit string
	index      int
	samples    samples
	min, max   float64
	sum        float64
	last       float64
	n          uint64
}

func newShowing(line *audit.Timeline, fields []string) (*showing, error) {
	m := line.Manifests[0]
	schema := line.Schema(m.Generation)
	s := &showing{line: line, schema: schema, flags: -1, predict: strings.HasPrefix(schema.Name(), "usp.predictor.")}
	s.RunID, s.RunDir, s.Created, s.Host, s.Schema, s.Generations = m.RunID, line.Dir.Path(), m.Created, m.Host, schema.Name(), len(line.Manifests)
	for i, f := range schema.Fields() {
		if f.Class == record.Flag && f.Name == "flags" && s.predict {
			s.flags = i
		}
		if f.Class == record.Metric && f.Len == 1 && f.Type != record.Uint64 && f.Type != record.Int64 {
			s.columns = append(s.columns, &column{name: f.Name, unit: f.Unit, index: i, min: math.Inf(1), max: math.Inf(-1)})
		}
	}
	if s.predict {
		s.experts = expertNames(m, schema)
		s.weights = newWeightStats(schema, s.experts)
	}
	switch {
	case len(fields) > 0:
	case s.predict:
		fields = []string{"scale", "cusum_pos", "cusum_neg", "entropy"}
	default:
		for _, c := range s.columns[:min(3, len(s.columns))] {
			fields = append(fields, c.name)
		}
	}
	for _, name := range fields {
		i := slices.IndexFunc(s.columns, func(c *column) bool { return c.name == name })
		if i < 0 {
			return nil, usageError(fmt.Errorf("the run has no metric %q; it has %s", name, s.names()))
		}
		s.plots = append(s.plots, s.columns[i])
	}
	return s, nil
}

func (s *showing) names() string {
	var names []string
	for _, c := range s.columns {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

func (s *showing) read(ctx context.Context) error {
	for r, err := range s.line.Records() {
		var corrupt *segment.CorruptError
		if errors.As(err, &corrupt) {
			continue // usp verify is what judges; here is shown what can be read
		}
		if err != nil {
			return err
		}
		if s.Steps%4096 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.add(r.Frame)
	}
	for _, c := range s.columns {
		f := showField{Name: c.name, Unit: c.unit, Last: finite(c.last)}
		if c.n > 0 {
			f.Min, f.Max, f.Mean = c.min, c.max, finite(c.sum/float64(c.n))
		}
		s.Fields = append(s.Fields, f)
	}
	return nil
}

func (s *showing) add(f *record.Frame) {
	at := time.Unix(0, f.Time()).UTC()
	if s.Steps == 0 {
		s.FirstStep, s.FirstTime = f.Step(), at
	}
	s.Steps++
	s.LastStep, s.LastTime = f.Step(), at
	if s.weights != nil {
		s.weights.add(s.schema, f)
	}
	for _, c := range s.columns {
		x := f.Float64(s.schema, c.index, 0)
		c.last = x
		c.samples.add(x)
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			c.min, c.max = min(c.min, x), max(c.max, x)
			c.sum += x
			c.n++
		}
	}
	if s.flags >= 0 && f.Uint64(s.schema, s.flags, 0)&(predictor.FlagAlarmUp|predictor.FlagAlarmDown) != 0 && len(s.Alarms) < 1000 {
		s.Alarms = append(s.Alarms, f.Step())
	}
}

// samples keeps at most maxSamples values of a series of any length: pairs of the least and the greatest of equal
// stretches, merged two by two when there are too many.
type samples struct {
	pairs   [][2]float64
	stretch int // values in a full pair
	filled  int // values in the last pair
}

const maxSamples = 1024

func (s *samples) add(x float64) {
	if s.stretch == 0 {
		s.stretch = 1
	}
	if len(s.pairs) == 0 || s.filled == s.stretch {
		if len(s.pairs) == maxSamples {
			s.halve()
		}
		s.pairs, s.filled = append(s.pairs, [2]float64{x, x}), 1
		return
	}
	last := &s.pairs[len(s.pairs)-1]
	last[0], last[1] = min(last[0], x), max(last[1], x)
	s.filled++
}

func (s *samples) halve() {
	for i := range len(s.pairs) / 2 {
		a, b := s.pairs[2*i], s.pairs[2*i+1]
		s.pairs[i] = [2]float64{min(a[0], b[0]), max(a[1], b[1])}
	}
	s.pairs = s.pairs[:len(s.pairs)/2]
	s.stretch *= 2
	s.filled = s.stretch
}

// series is what is plotted: every value as it is while all are kept, else least and greatest in turn.
func (s *samples) series() []float64 {
	var out []float64
	for _, p := range s.pairs {
		if out = append(out, p[0]); s.stretch > 1 {
			out = append(out, p[1])
		}
	}
	return out
}

// showState adds what the log says.
func (a *app) showState(s *showing, dir rundir.Dir) error {
	last, err := recorder.LastStep(a.fs, dir.Path())
	if err != nil {
		return err
	}
	logged, err := recorder.LoggedSnapshots(a.fs, dir.Path())
	if err != nil {
		return err
	}
	s.Snapshots, s.Lost = len(logged), last.Lost
	s.Anchor = a.anchored(dir, s.line.Manifests[0])
	s.Witness = a.cosigned(dir, s.line.Manifests[0])
	if s.Sinks, err = a.sinkReports(dir); err != nil {
		return err
	}
	end := audit.Glance(a.fs, dir.Path()).End
	switch {
	case end != nil && stoppedShort(s.line.Manifests[len(s.line.Manifests)-1], end):
		s.Status = interrupted
	case last.Status != 0:
		s.Status = last.Status.String()
	case rundir.Locked(a.fs, dir):
		s.Status = "recording"
		s.Live = a.live(dir.ID())
	default:
		s.Status = "open: it can be resumed"
	}
	return nil
}

func (a *app) printShow(s *showing) {
	w := a.out
	fmt.Fprintf(w, "run %s  %s\n", s.RunID, s.Status)
	fmt.Fprintf(w, "  began      %s on %s (%s/%s, %s)\n", s.Created.Format(time.RFC3339), s.Host.Name, s.Host.OS, s.Host.Arch, s.Host.CPU)
	if s.Generations > 1 {
		fmt.Fprintf(w, "  resumed    %s\n", count(uint64(s.Generations-1), "time"))
	}
	if c := producerOf(s.line.Manifests[0]).Continues; c != nil {
		fmt.Fprintf(w, "  continues  run %s behind step %d, from a remote snapshot\n", c.RunID, c.Step)
	}
	fmt.Fprintf(w, "  recorded   %d steps (%d to %d), %d lost, %s kept\n", s.Steps, s.FirstStep, s.LastStep, s.Lost, count(uint64(s.Snapshots), "snapshot"))
	s.Anchor.print(w, "anchor")
	s.Witness.print(w, "witness")
	for _, r := range s.Sinks {
		fmt.Fprintf(w, "  %-10s %s\n", r.Sink, r.text())
	}
	s.Live.print(w)
	if s.Steps > 0 && s.LastTime.After(s.FirstTime) {
		layout := time.DateOnly
		if s.LastTime.Sub(s.FirstTime) < 3*24*time.Hour {
			layout = "2006-01-02T15:04:05Z07:00"
		}
		fmt.Fprintf(w, "  input      %s to %s\n", s.FirstTime.Format(layout), s.LastTime.Format(layout))
	}
	if s.predict {
		fmt.Fprintf(w, "  alarms     %s\n", alarms(s.Alarms))
	}
	if s.Unscored != "" {
		fmt.Fprintf(w, "  experts    no leaderboard: %s\n", s.Unscored)
	}
	if s.predict && s.weights == nil {
		fmt.Fprintf(w, "  weights    not recorded: the run was begun with telemetry.weights = false\n")
	}
	if s.Leaderboard != nil {
		s.Leaderboard.print(w, s.LastStep)
	}
	if s.Steps == 0 {
		return
	}
	if s.weights != nil {
		fmt.Fprintf(w, "\n%s", s.weights.text(a.width()))
	}
	for _, c := range s.plots {
		o := plot.Options{Title: a.plotTitle(c), Width: a.width(), First: fmt.Sprintf("step %d", s.FirstStep), Last: fmt.Sprintf("step %d", s.LastStep)}
		if strings.HasPrefix(c.name, "cusum_") {
			if i := slices.IndexFunc(s.columns, func(c *column) bool { return c.name == "threshold" }); i >= 0 {
				o.Marks = []float64{s.columns[i].last}
			}
		}
		fmt.Fprintf(w, "\n%s", plot.Line(c.samples.series(), o))
	}
}

func (a *app) plotTitle(c *column) string {
	title := map[string]string{
		"scale": "forecast error (running scale)", "cusum_pos": "CUSUM G+ against its threshold",
		"cusum_neg": "CUSUM G- against its threshold", "entropy": "entropy of the weights",
	}[c.name]
	if title == "" {
		title = c.name
	}
	if c.unit != "" {
		title += ", " + c.unit
	}
	return title
}

func alarms(steps []uint64) string {
	if len(steps) == 0 {
		return "none"
	}
	var text []string
	for _, s := range steps[:min(len(steps), 8)] {
		text = append(text, fmt.Sprint(s))
	}
	if len(steps) > 8 {
		text = append(text, fmt.Sprintf("… (%d in all)", len(steps)))
	}
	return "at steps " + strings.Join(text, ", ")
}
