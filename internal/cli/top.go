package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/tui"
)

const topLong = `Show all runs while they are recorded: steps and their rate, losses, records held in
memory, snapshots, how far behind each destination is, the newest values, and flags
that are not 0.

On a terminal it is redrawn until q is pressed:

  j k, arrows    choose a run, or scroll        g G   first, last
  enter          one run with all its values    esc   all runs

Elsewhere it prints one table and ends, or with --watch one after the other. The rate
is that between two looks, and so is missing of a run that was looked at once.`

type topFlags struct {
	watch    bool
	interval time.Duration
}

func (a *app) topCommand() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use: "top", Short: "Show all runs while they are recorded", Long: topLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.top(cmd.Context(), f) },
	}
	cmd.Flags().BoolVarP(&f.watch, "watch", "w", false, "print again and again, also where there is no terminal")
	cmd.Flags().DurationVar(&f.interval, "interval", time.Second, "`time` between two looks")
	return cmd
}

// secondLook is how long after the first look a table that is printed once looks again, to know the rates.
const secondLook = 300 * time.Millisecond

func (a *app) top(ctx context.Context, f topFlags) error {
	if f.interval < 50*time.Millisecond {
		return usageError(fmt.Errorf("--interval %v: want 50ms or more", f.interval))
	}
	w := &watcher{app: a}
	defer w.close()
	if !a.json && !f.watch && isTerminal(a.stdout) && a.inTerminal() {
		return tui.Show(ctx, tui.Options{Look: w.look, Interval: f.interval, In: a.in, Out: a.stdout, Env: a.env})
	}
	view, err := w.look()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(view.Runs, func(r tui.Run) bool { return r.Status == tui.Recording }) {
		if err := pause(ctx, secondLook); err != nil {
			return err
		}
		if view, err = w.look(); err != nil {
			return err
		}
	}
	for {
		if err := a.printTop(view, f.watch); err != nil || !f.watch {
			return err
		}
		if err := pause(ctx, f.interval); err != nil {
			return err
		}
		if view, err = w.look(); err != nil {
			return err
		}
	}
}

// pause waits, or returns why it must not.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// printTop prints one view.
func (a *app) printTop(v tui.View, again bool) error {
	switch {
	case a.json:
		return a.printJSON(v, !again)
	case len(v.Runs) == 0:
		_, err := fmt.Fprintf(a.out, "no runs in %s; begin with: usp run\n", v.Dir)
		return err
	case again:
		if _, err := fmt.Fprintf(a.out, "%s\n", v.Time.Format(time.RFC3339)); err != nil {
			return err
		}
	}
	width := 0 // lines of any length
	if isTerminal(a.stdout) {
		width = a.width()
	}
	return tui.Print(a.out, v, width)
}
