package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/rundir"
)

const compareLong = `Hold the digest logs of two runs against each other, step by step, without moving any
state. A and B are runs, or directories that usp export --to tiles made. The verdict is

  identical     every digest of every common step is the same (exit 0)
  agree         not so, but all agree to b bits at least (exit 22; 0 if b is --min-bits or more)
  parted        they agree to fewer bits than the digests can tell, or flags differ, or weights
                do not sum to 1 in one of them (exit 22)
  incomparable  other fields, or no step in common (exit 2)

with the first divergent step and field, how the agreement changes over the steps, what the
producers were run with, and where to compute the way there again. How far two fields agree is
known from digests of rounded values beside the exact ones (settings digest.levels and
digest.audit_key_file); it is never said to be more than it is.

Each run counts as if it had never been interrupted: of each step the newest generation that has
it. Of runs the index is checked against the signed head, and stretches that it says are equal are
not read; exports are checked against the root in their checkpoint. Who signed is not asked. So where
somebody could have changed the files, usp verify both first. A log that is damaged or contradicts itself is not
compared (exit 20).`

type compareFlags struct {
	minBits  int
	from, to uint64
	fields   []string
	plot     string
	steps    bool
}

func (a *app) compareCommand() *cobra.Command {
	var f compareFlags
	cmd := &cobra.Command{
		Use: "compare A B", Short: "Say where, how far and why two runs part", Long: compareLong, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.compare(cmd.Context(), args[0], args[1], f) },
	}
	cmd.Flags().IntVar(&f.minBits, "min-bits", 0, "exit 0 if all agree to `b` bits or more")
	cmd.Flags().Uint64Var(&f.from, "from", 0, "leave out the steps before `step`")
	cmd.Flags().Uint64Var(&f.to, "to", 0, "leave out the steps after `step` (default: none)")
	cmd.Flags().StringSliceVar(&f.fields, "field", nil, "compare these digest fields only, `name`,…")
	cmd.Flags().StringVar(&f.plot, "plot", "", "also draw the agreement over the steps into `file`.svg or .png")
	cmd.Flags().BoolVar(&f.steps, "steps", false, "print every step that differs first, a line each: step, field, bits")
	return cmd
}

func (f *compareFlags) check() error {
	switch {
	case f.minBits < 0 || f.minBits > compare.Exact:
		return fmt.Errorf("--min-bits is %d; want 0 to %d", f.minBits, compare.Exact)
	case f.to > 0 && f.to < f.from:
		return fmt.Errorf("--to %d is before --from %d", f.to, f.from)
	}
	return checkFigure(f.plot)
}

func (a *app) compare(ctx context.Context, runA, runB string, f compareFlags) error {
	if err := f.check(); err != nil {
		return usageError(err)
	}
	dirA, err := a.resolveLog(runA)
	if err != nil {
		return err
	}
	dirB, err := a.resolveLog(runB)
	if err != nil {
		return err
	}
	o := compare.Options{From: f.from, To: f.to, Fields: f.fields, MinBits: f.minBits}
	if f.steps {
		o.Each = a.printStep
	}
	var c *compare.Comparison
	err = a.steady(dirA, func() error {
		return a.steady(dirB, func() error {
			if err := both(func() error { return a.checkIndex(ctx, dirA) }, func() error { return a.checkIndex(ctx, dirB) }); err != nil {
				return err
			}
			var err error
			c, err = compare.Compare(ctx, a.fs, dirA.Path(), dirB.Path(), o)
			return err
		})
	})
	if err != nil {
		return damagedLog(err)
	}
	c.Notes = append(c.Notes, a.differentRuns(dirA, dirB)...)
	for i, dir := range []rundir.Dir{dirA, dirB} {
		if _, err := a.fs.Stat(dir.Head()); errors.Is(err, fs.ErrNotExist) {
			c.Notes = append(c.Notes, fmt.Sprintf("nothing of %c was signed, or its head was taken away: nothing says that its log is whole", "AB"[i]))
		}
	}
	if a.json {
		err = a.printJSON(c, !f.steps)
	} else {
		a.printComparison(c, f)
	}
	if err == nil && f.plot != "" {
		if err = a.drawAgreement(f.plot, c); err == nil && !a.json {
			fmt.Fprintf(a.out, "\n  drawn in %s\n", display(f.plot))
		}
	}
	if err == nil && c.Exit != exitOK {
		err = withCode(c.Exit, nil)
	}
	return err
}

// both does two things beside each other, and returns the first's error before the second's.
func both(first, second func() error) error {
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { err = second() })
	if err := first(); err != nil {
		wg.Wait()
		return err
	}
	wg.Wait()
	return err
}

// resolveLog finds a run, or the directory of an export.
func (a *app) resolveLog(arg string) (rundir.Dir, error) {
	if a.isTiles(arg) {
		return rundir.At(arg), nil
	}
	return a.resolve(arg)
}

// checkIndex refuses a run whose log is not what its head has signed, as far as the index tells: a log that was cut short would seem to
// agree with every run that it is the beginning of.
func (a *app) checkIndex(ctx context.Context, dir rundir.Dir) error {
	if a.isTiles(dir.Path()) {
		return a.checkTiles(ctx, dir.Path())
	}
	r, err := audit.Verify(ctx, a.fs, dir.Path(), audit.Options{Index: true})
	if err != nil {
		return err
	}
	for i := range r.Integrity.Problems {
		// One without a file is of the log as a whole: it is shorter than its head, or another.
		if p := &r.Integrity.Problems[i]; p.File == "" || strings.HasPrefix(p.File, rundir.DigestDir) || p.File == rundir.HeadFile {
			return withCode(exitFailed, fmt.Errorf("%s cannot be compared: %v; usp verify tells all of it", dir.ID(), p))
		}
	}
	return nil
}

// checkTiles refuses an export whose entries and tiles do not lead to the root in its checkpoint. Whose that is, it does not ask.
func (a *app) checkTiles(ctx context.Context, dir string) error {
	refuse := func(err error) error {
		return withCode(exitFailed, fmt.Errorf("%s cannot be compared: %w; usp verify tells all of it", dir, err))
	}
	t, err := digestlog.OpenTiles(a.fs, dir)
	if errors.Is(err, digestlog.ErrHead) || errors.Is(err, fs.ErrNotExist) {
		return refuse(err)
	} else if err != nil {
		return err
	}
	r, err := digestlog.VerifyTiles(digestlog.TilesOptions{FS: a.fs, Dir: dir, Verifiers: note.VerifierList(), Steps: func(*digestlog.StepEntry) error { return ctx.Err() }})
	if err != nil {
		return err
	}
	for _, f := range r.Faults {
		if !f.Benign() && f.Class != digestlog.ClassWrongKey {
			return refuse(f)
		}
	}
	if r.Size != t.Size() || r.Root != t.Head.Root {
		return refuse(digestlog.ErrHeadMismatch)
	}
	return nil
}

// damagedLog gives the error of a log that is damaged, or that no recorder writes, its exit code.
func damagedLog(err error) error {
	var f *digestlog.Fault
	switch {
	case errors.As(err, &f):
		return withCode(exitFailed, fmt.Errorf("%w; usp verify tells all of it", err))
	case errors.Is(err, compare.ErrContradiction):
		return withCode(exitFailed, err)
	}
	return err
}

// differentRuns says how two runs of usp run were told to predict something else, or differently: then they must diverge.
func (a *app) differentRuns(dirA, dirB rundir.Dir) (notes []string) {
	ma, errA := readProducerMeta(a.fs, dirA)
	mb, errB := readProducerMeta(a.fs, dirB)
	if errA != nil || errB != nil {
		return nil
	}
	if x, y := &ma.Input, &mb.Input; x.SHA256 != y.SHA256 && x.SHA256 != (input.Sum{}) && y.SHA256 != (input.Sum{}) {
		notes = append(notes, fmt.Sprintf("the inputs are not the same: %s, %s in A and %s, %s in B", x, count(x.Rows, "row"), y, count(y.Rows, "row")))
	}
	if x, y := ma.Input.ValueColumn, mb.Input.ValueColumn; x != y && ma.Input.SHA256 == mb.Input.SHA256 {
		notes = append(notes, fmt.Sprintf("the inputs are not the same: column %q in A and %q in B", x, y))
	}
	if x, y := ma.Input.ArrivalColumn, mb.Input.ArrivalColumn; x != y && ma.Input.SHA256 == mb.Input.SHA256 {
		notes = append(notes, fmt.Sprintf("the inputs are not the same: times of arrival from %s in A and %s in B", columnText(x), columnText(y)))
	}
	switch {
	case ma.Predictor == mb.Predictor:
	case ma.Predictor.Season != mb.Predictor.Season:
		notes = append(notes, fmt.Sprintf("the predictions have different settings: season %d in A and %d in B", ma.Predictor.Season, mb.Predictor.Season))
	default:
		notes = append(notes, "the predictions have different settings; the manifests list them")
	}
	return notes
}

func columnText(name string) string {
	if name == "" {
		return "no column"
	}
	return fmt.Sprintf("column %q", name)
}
