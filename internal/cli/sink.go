package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/sink"
)

const sinkLong = `Bring a run's telemetry to the destinations that are configured: those of the sections
parquet, prometheus, otlp, tensorboard and jetstream that name one, and its snapshots
to snapshot.remote.

A recorder starts this command beside itself. By hand it brings what was left when a
destination was away, from where each one's cursor stands; nothing comes there twice.
--follow goes on while the run is recorded. --status only says how far each one is.`

type sinkFlags struct {
	follow bool
	status bool
	only   []string
}

func (a *app) sinkCommand() *cobra.Command {
	var f sinkFlags
	cmd := &cobra.Command{
		Use: "sink RUN", Short: "Bring a run's telemetry to the configured destinations", Long: sinkLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.sink(cmd.Context(), args[0], f) },
	}
	cmd.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on while the run is recorded")
	cmd.Flags().BoolVar(&f.status, "status", false, "say how far each destination has the run, and change nothing")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "bring it to these `sinks` only")
	return cmd
}

// sinkReport is what usp sink prints of one destination.
type sinkReport struct {
	Sink    string    `json:"sink"`
	To      string    `json:"to,omitempty"`
	Frames  uint64    `json:"frames"` // that are there for good
	Of      uint64    `json:"of"`     // that the run has
	Records uint64    `json:"records"`
	Updated time.Time `json:"updated,omitzero"`
	Fault   string    `json:"fault,omitempty"`
	Since   time.Time `json:"since,omitzero"` // of the fault

	Remote *remote.Status `json:"remote,omitempty"` // of the one that gets snapshots and no frames
}

func (a *app) sink(ctx context.Context, run string, f sinkFlags) error {
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	if f.status {
		return a.sinkStatus(dir)
	}
	chosen, err := a.chosen(f.only)
	if err != nil {
		return err
	}
	if !f.follow {
		chosen = slices.DeleteFunc(chosen, func(d destination) bool { return d.live })
	}
	if len(chosen) == 0 {
		return usageError(errors.New("no destination is configured: name one in usp.toml, such as dir in the section [parquet], or in the environment, such as USP_PARQUET_DIR; usp config show lists them"))
	}
	if f.follow {
		priority.LowerSelf()
	}
	lock, err := a.lockSinks(ctx, dir, f.follow)
	if err != nil {
		return err
	}
	defer lock()
	failed := make([]error, len(chosen))
	var wg sync.WaitGroup
	for i, d := range chosen {
		wg.Go(func() { failed[i] = a.bring(ctx, dir, d, f) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	reports, err := a.sinkReports(dir, chosen...)
	if err == nil {
		err = a.printSinks(reports)
	}
	if err != nil {
		return err
	}
	return sinkError(dir, errors.Join(failed...))
}

// sinkError gives an error of a sink its exit code.
func sinkError(dir rundir.Dir, err error) error {
	if errors.Is(err, sink.ErrPatience) {
		return withCode(exitUnreachable, fmt.Errorf("%w\nwhen it is back, usp sink %s brings the rest", err, pathArg(dir.Path())))
	}
	return err
}

// chosen are the destinations that are configured, or of those the ones that are named.
func (a *app) chosen(only []string) ([]destination, error) {
	var list []destination
	var names []string
	for _, d := range destinations() {
		if d.at(&a.cfg.Config) == "" {
			continue
		}
		names = append(names, d.name)
		if len(only) == 0 || slices.Contains(only, d.name) {
			list = append(list, d)
		}
	}
	for _, name := range only {
		if !slices.Contains(names, name) {
			return nil, usageError(fmt.Errorf("--only %s: configured are %s", name, cmp.Or(strings.Join(names, ", "), "none")))
		}
	}
	return list, nil
}

// lockSinks makes sure that one process alone moves the cursors of a run. Who follows waits for the other one, which may
// be that of a recorder which was killed and is just catching up.
func (a *app) lockSinks(ctx context.Context, dir rundir.Dir, wait bool) (unlock func(), err error) {
	if err := vfs.MkdirAll(a.fs, dir.Sinks(), 0o700); err != nil {
		return nil, err
	}
	for {
		l, err := a.fs.Lock(dir.Sinks())
		switch {
		case err == nil:
			return func() { _ = l.Close() }, nil // a lock alone
		case !errors.Is(err, vfs.ErrLocked) || !wait || !rundir.Locked(a.fs, dir):
			if errors.Is(err, vfs.ErrLocked) {
				err = withCode(exitLocked, fmt.Errorf("another process brings run %s to its destinations: usp sink --status %s", dir.ID(), pathArg(dir.Path())))
			}
			return nil, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// bring brings the run to one destination.
func (a *app) bring(ctx context.Context, dir rundir.Dir, d destination, f sinkFlags) error {
	if d.open == nil {
		return a.sendRemote(ctx, dir, f)
	}
	s, err := d.open(a, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	c := &a.cfg.Config.Sinks
	return sink.Bring(ctx, sink.Options{
		Dir: dir, Name: d.name, SyncEvery: time.Duration(c.SyncInterval), Timeout: time.Duration(c.Timeout), Pace: a.pace(dir, f),
	}, s)
}

// pace is how a run is followed, and how what fails is tried again.
func (a *app) pace(dir rundir.Dir, f sinkFlags) sink.Pace {
	p := sink.Pace{Patience: time.Duration(a.cfg.Sinks.Patience), FS: a.fs, Logger: a.logger(), Now: a.now}
	if f.follow {
		p.Follow = func() bool { return rundir.Locked(a.fs, dir) }
	}
	return p
}

func (a *app) sinkStatus(dir rundir.Dir) error {
	reports, err := a.sinkReports(dir)
	if err != nil {
		return err
	}
	if len(reports) == 0 && !a.json {
		fmt.Fprintf(a.out, "run %s was brought nowhere\n", dir.ID())
	}
	return a.printSinks(reports)
}

// sinkReports say how far each destination is that was brought something, the given ones or all.
func (a *app) sinkReports(dir rundir.Dir, only ...destination) ([]sinkReport, error) {
	var reports []sinkReport
	if s, err := a.remoteReport(dir); err == nil && s != nil && (len(only) == 0 || slices.ContainsFunc(only, func(d destination) bool { return d.name == remote.Name })) {
		reports = append(reports, sinkReport{Sink: remote.Name, To: s.To, Updated: s.Updated, Fault: s.Fault, Since: s.Since, Remote: s})
	} else if err != nil {
		return nil, err
	}
	all, err := sink.Statuses(a.fs, dir)
	if err != nil || len(all) == 0 {
		return reports, err
	}
	end, unreadable := sink.End(a.fs, dir) // then it is the end of what can be read
	places := map[string]string{}
	for _, d := range destinations() {
		places[d.name] = d.at(&a.cfg.Config)
	}
	for _, s := range all {
		if len(only) > 0 && !slices.ContainsFunc(only, func(d destination) bool { return d.name == s.Name }) {
			continue
		}
		if s.Fault == "" && unreadable != nil {
			s.Fault, s.Since = unreadable.Error(), s.Updated
		}
		reports = append(reports, sinkReport{
			Sink: s.Name, To: places[s.Name], Frames: s.Next, Of: max(end, s.Next), Records: s.Records, Updated: s.Updated, Fault: s.Fault, Since: s.Since,
		})
	}
	return reports, nil
}

func (a *app) printSinks(reports []sinkReport) error {
	for _, r := range reports {
		if !a.json {
			fmt.Fprintf(a.out, "%-12s %s\n", r.Sink, r.text())
		} else if err := a.printJSON(r, false); err != nil {
			return err
		}
	}
	return nil
}

// text is the report on one line, but for the sink's name.
func (r *sinkReport) text() string {
	if r.Remote != nil {
		return remoteText(r.Remote)
	}
	text := fmt.Sprintf("all %d frames", r.Of)
	if r.Frames < r.Of {
		text = fmt.Sprintf("%d of %d frames, %d behind", r.Frames, r.Of, r.Of-r.Frames)
	}
	if r.To != "" {
		text += ", at " + r.To
	}
	if r.Fault != "" {
		text += fmt.Sprintf("; since %s: %s", r.Since.Format(time.RFC3339), r.Fault)
	}
	return text
}

// companion is the command line of the process that brings a run to its destinations beside its recorder, if there are any.
func (a *app) companion() (c recorder.CompanionOptions, err error) {
	chosen, err := a.chosen(nil)
	if err != nil || len(chosen) == 0 {
		return c, err
	}
	self, err := os.Executable()
	if err != nil {
		return c, fmt.Errorf("where is this program? %w", err)
	}
	c.Command = []string{self, "sink", "--follow", "--quiet"}
	if a.configFile != "" {
		c.Command = append(c.Command, "--config", a.configFile)
	}
	c.Wait = time.Duration(a.cfg.Sinks.Patience) + 5*time.Second
	return c, nil
}
