package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
)

const compareLong = `Hold the digests of two runs against each other, step by step, without moving any
state: identical (exit 0), or the first divergent step and the field (exit 22).
Runs without a digest field or a step in common cannot be compared (exit 2).

Each run counts as if it had never been interrupted: of each step the newest
generation that has it. Neither run is verified; usp verify does that.`

func (a *app) compareCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compare A B", Short: "Say whether two runs computed the same, and where they part", Long: compareLong, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.compare(cmd.Context(), args[0], args[1]) },
	}
}

func (a *app) compare(ctx context.Context, runA, runB string) error {
	dirA, err := a.resolve(runA)
	if err != nil {
		return err
	}
	dirB, err := a.resolve(runB)
	if err != nil {
		return err
	}
	var c *audit.Comparison
	err = a.steady(dirA, func() error {
		return a.steady(dirB, func() error {
			var err error
			c, err = audit.Compare(ctx, a.fs, dirA.Path(), dirB.Path())
			return err
		})
	})
	if err != nil {
		return err
	}
	c.Notes = append(c.Notes, a.differentSettings(dirA, dirB)...)
	if a.json {
		if err := a.printJSON(c, true); err != nil {
			return err
		}
	} else {
		a.printComparison(c)
	}
	if c.Exit != exitOK {
		return withCode(c.Exit, nil)
	}
	return nil
}

// differentSettings says how two runs of usp run were told to predict differently: then they must diverge.
func (a *app) differentSettings(dirA, dirB rundir.Dir) []string {
	ma, errA := readProducerMeta(a.fs, dirA)
	mb, errB := readProducerMeta(a.fs, dirB)
	if errA != nil || errB != nil || ma.Predictor == mb.Predictor {
		return nil
	}
	if ma.Predictor.Season != mb.Predictor.Season {
		return []string{fmt.Sprintf("the predictions have different settings: season %d in A and %d in B", ma.Predictor.Season, mb.Predictor.Season)}
	}
	return []string{"the predictions have different settings; the manifests list them"}
}

func (a *app) printComparison(c *audit.Comparison) {
	w := a.out
	switch c.Verdict {
	case audit.Identical:
		fmt.Fprintf(w, "identical: %d common steps, every digest the same\n", c.Common)
	case audit.Diverged:
		fmt.Fprintf(w, "diverged: first divergent step %d, field %s\n", c.First.Step, c.First.Field)
		fmt.Fprintf(w, "  A %s  (generation %d)%s\n  B %s  (generation %d)%s\n",
			c.First.A, c.First.GenerationA, nonfinite(c.First.NonfiniteA), c.First.B, c.First.GenerationB, nonfinite(c.First.NonfiniteB))
	default:
		fmt.Fprintf(w, "cannot be compared: %s\n", c.Reason)
	}
	a.printSide("A", &c.A)
	a.printSide("B", &c.B)
	for _, f := range c.Fields {
		if f.Differ > 0 {
			fmt.Fprintf(w, "  field %s: differs in %d of %d steps, first in step %d\n", f.Name, f.Differ, f.Compared, f.FirstStep)
		}
	}
	for _, n := range c.Notes {
		fmt.Fprintf(w, "  note: %s\n", n)
	}
}

func (a *app) printSide(name string, s *audit.Side) {
	fmt.Fprintf(a.out, "  %s %s: %d steps with digests, %d to %d", name, s.RunID, s.Steps, s.FirstStep, s.LastStep)
	if s.Only > 0 {
		fmt.Fprintf(a.out, "; %d of them not in the other, first %d", s.Only, s.FirstOnly)
	}
	fmt.Fprintln(a.out)
}

func nonfinite(yes bool) string {
	if yes {
		return "  holds NaN or infinity"
	}
	return ""
}
