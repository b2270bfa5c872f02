package cli

import (
	"fmt"
	"math"
	"strings"

	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/plot"
	"github.com/usp-project/usp/internal/rundir"
)

// printStep prints a step that differs.
func (a *app) printStep(s compare.Step) error {
	if a.json {
		return a.printJSON(s, false)
	}
	for _, f := range s.Fields {
		bits := "?"
		if f.Bits != nil {
			bits = fmt.Sprint(*f.Bits)
		}
		if _, err := fmt.Fprintf(a.out, "%d\t%s\t%s\n", s.Step, f.Field, bits); err != nil {
			return err
		}
	}
	for _, name := range s.Other {
		if _, err := fmt.Fprintf(a.out, "%d\t%s\t-\n", s.Step, name); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printComparison(c *compare.Comparison, f compareFlags) {
	a.printVerdict(c, f)
	a.printSide("A", &c.A)
	a.printSide("B", &c.B)
	if d := c.First; d != nil {
		fmt.Fprintf(a.out, "  digest of step %d in A %s  (generation %d)%s\n", d.Step, d.A, d.GenerationA, nonfinite(d.NonfiniteA))
		fmt.Fprintf(a.out, "  digest of step %d in B %s  (generation %d)%s\n", d.Step, d.B, d.GenerationB, nonfinite(d.NonfiniteB))
	}
	for i := range c.Fields {
		a.printField(&c.Fields[i])
	}
	for _, o := range c.Others {
		if o.Differ > 0 {
			fmt.Fprintf(a.out, "  %s: differs in %d of %d steps, first in step %d: %s in A, %s in B\n", o.Name, o.Differ, o.Compared, *o.FirstStep, o.A, o.B)
		}
	}
	for _, n := range c.Notes {
		fmt.Fprintf(a.out, "  note: %s\n", n)
	}
	a.printEnvironment(c)
	a.printGrowth(c)
	a.printWayBack(c)
}

func (a *app) printVerdict(c *compare.Comparison, f compareFlags) {
	w := a.out
	switch c.Verdict {
	case compare.Identical:
		fmt.Fprintf(w, "identical: %d common steps, every digest the same\n", c.Common)
		return
	case compare.Incomparable:
		fmt.Fprintf(w, "cannot be compared: %s\n", c.Reason)
		return
	case compare.Agree:
		fmt.Fprintf(w, "agree to %d bits: first divergent step %d, field %s", *c.Bits, c.First.Step, c.First.Field)
	default:
		fmt.Fprintf(w, "parted: first divergent step %d, field %s", c.First.Step, c.First.Field)
	}
	fmt.Fprintf(w, "; %d of %d common steps differ\n", c.Differ, c.Common)
	if c.Reason != "" {
		fmt.Fprintf(w, "  %s\n", c.Reason)
	}
	if f.minBits > 0 && c.Below != nil {
		fmt.Fprintf(w, "  fewer than %d bits from step %d on\n", f.minBits, *c.Below)
	}
}

func (a *app) printSide(name string, s *compare.Side) {
	kind := ""
	if s.Tiles {
		kind = " (exported)"
	}
	fmt.Fprintf(a.out, "  %s %s%s: ", name, s.RunID, kind)
	if s.Steps == 0 {
		fmt.Fprintln(a.out, "no step with digests")
		return
	}
	fmt.Fprintf(a.out, "%s with digests, %d to %d", count(s.Steps, "step"), s.FirstStep, s.LastStep)
	if s.Only > 0 {
		fmt.Fprintf(a.out, "; %d of them not in the other, first %d", s.Only, s.FirstOnly)
	}
	fmt.Fprintln(a.out)
}

func (a *app) printField(f *compare.Field) {
	if f.Differ == 0 {
		return
	}
	fmt.Fprintf(a.out, "  field %s: differs in %d of %d steps, first in step %d", f.Name, f.Differ, f.Compared, *f.FirstStep)
	switch {
	case f.Bits == nil:
	case *f.Bits == 0:
		fmt.Fprintf(a.out, "; fewer bits than the lowest level tells, from step %d on", *f.BitsAt)
	default:
		fmt.Fprintf(a.out, "; agrees to %d bits, least in step %d", *f.Bits, *f.BitsAt)
	}
	fmt.Fprintln(a.out)
}

func nonfinite(yes bool) string {
	if yes {
		return "  holds NaN or infinity"
	}
	return ""
}

// shownDifferences is how many differences of the environment are printed; --json has all.
const shownDifferences = 12

func (a *app) printEnvironment(c *compare.Comparison) {
	for i, d := range c.Environment {
		if i == shownDifferences {
			fmt.Fprintf(a.out, "  and %d more differences of the environment; --json lists them\n", len(c.Environment)-i)
			return
		}
		va, vb := d.A, d.B
		if d.OnlyB {
			va = "(not given)"
		}
		if d.OnlyA {
			vb = "(not given)"
		}
		fmt.Fprintf(a.out, "  environment: %s is %s in A, %s in B\n", d.Key, va, vb)
	}
}

// printGrowth draws how the agreement of each field that differs changes over the steps.
func (a *app) printGrowth(c *compare.Comparison) {
	for i := range c.Fields {
		f := &c.Fields[i]
		if f.Differ == 0 || f.Unknown == f.Differ || len(f.Growth) < 2 {
			continue
		}
		first, last := f.Growth[0].From, f.Growth[len(f.Growth)-1].To
		o := plot.Options{
			Title: fmt.Sprintf("%s: bits of agreement (%d: identical)", f.Name, compare.Exact), Width: a.width(),
			First: fmt.Sprintf("step %d", first), Last: fmt.Sprintf("step %d", last), Marks: []float64{0, compare.Exact},
		}
		fmt.Fprintf(a.out, "\n%s", plot.Line(evenly(f.Growth, 2*a.width()), o))
	}
}

// evenly samples buckets at so many steps with the same distance; nothing known is a gap.
func evenly(buckets []compare.Bucket, n int) []float64 {
	first, last := buckets[0].From, buckets[len(buckets)-1].To
	out, at := make([]float64, 0, n), 0
	for i := range n {
		step := first + uint64(float64(last-first)*float64(i)/float64(n-1))
		for at+1 < len(buckets) && buckets[at+1].From <= step {
			at++
		}
		value := math.NaN()
		if b := buckets[at]; b.Max >= 0 {
			value = float64(b.Min)
		}
		out = append(out, value)
	}
	return out
}

// printWayBack says how the way to the first divergent step can be computed again.
func (a *app) printWayBack(c *compare.Comparison) {
	if c.First == nil {
		return
	}
	printed := false
	for _, side := range []struct {
		name string
		*compare.Side
	}{{"A", &c.A}, {"B", &c.B}} {
		if side.Tiles {
			continue
		}
		from, command := a.wayBack(side.Side, c.First.Step)
		if command == "" {
			continue
		}
		if !printed {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintf(a.out, "  from %s, %s can be computed again:\n    %s\n", from, side.name, command)
		printed = true
	}
}

// wayBack says from where a side can be computed again up to a step, and the command for it: of a program of its own, which alone can
// compute it, the one that hands it the state; "" if there is none.
func (a *app) wayBack(s *compare.Side, step uint64) (from, command string) {
	from = "the first row (no intact snapshot lies before it)"
	if s.Nearest != nil {
		from = fmt.Sprintf("the snapshot of step %d (%s)", s.Nearest.Step, s.Nearest.Name)
	}
	if _, err := readProducerMeta(a.fs, rundir.At(s.Path)); err == nil {
		return from, fmt.Sprintf("usp replay %s --from %d --to %d", quoteArg(s.Path), step, step)
	}
	if s.Nearest == nil {
		return "", ""
	}
	return from + ", by the program that made it", fmt.Sprintf("usp snapshot load %s --step %d --to FILE", quoteArg(s.Path), s.Nearest.Step)
}

// quoteArg makes a path one word of a shell.
func quoteArg(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// shortVerdict is the verdict, with how far the sides agree.
func shortVerdict(c *compare.Comparison) string {
	if c.Verdict == compare.Agree {
		return fmt.Sprintf("agree to %d bits", *c.Bits)
	}
	return string(c.Verdict)
}

// drawAgreement writes the agreement over the steps into a file.
func (a *app) drawAgreement(path string, c *compare.Comparison) error {
	fig := plot.Figure{
		Title: fmt.Sprintf("%s and %s: %s", c.A.RunID, c.B.RunID, shortVerdict(c)), XLabel: "step", YLabel: fmt.Sprintf("bits of agreement (%d: identical)", compare.Exact),
		YMin: 0, YMax: compare.Exact,
	}
	for i := range c.Fields {
		f := &c.Fields[i]
		s := plot.Series{Name: f.Name}
		if f.Differ == 0 && f.Compared > 0 {
			s.Points = []plot.Point{{Step: c.A.FirstStep, Y: compare.Exact}, {Step: max(c.A.FirstStep+1, c.A.LastStep), Y: compare.Exact}}
		}
		for _, b := range f.Growth {
			p := plot.Point{Step: b.From, Y: float64(b.Min), Min: float64(b.Min), Max: float64(b.Max)}
			if b.Max < 0 {
				p = plot.Point{Step: b.From, Y: math.NaN()}
			}
			s.Points = append(s.Points, p)
		}
		fig.Series = append(fig.Series, s)
	}
	if c.First != nil {
		fig.Verticals = []plot.Mark{{At: float64(c.First.Step), Label: fmt.Sprintf("first divergent step %d", c.First.Step)}}
	}
	return a.drawFigure(path, fig)
}
