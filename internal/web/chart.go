package web

import (
	"fmt"
	"html/template"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/usp-project/usp/internal/plot"
)

// chart is one picture of a run over a range of steps. Colours are classes of the style sheet, so that it is readable on
// light and dark ground.
type chart struct {
	ID, Title, Unit string
	From, Until     uint64 // steps at its ends
	Lines           []line
	Marks           []mark
	Strips          []strip // in place of lines
	Stacked         bool    // lines are areas on each other
	Table           *Table  // whose columns the lines have
	Small           bool
}

// line is a series, with the class of its colour.
type line struct {
	Name   string
	Class  string
	Values []Summary
	table  *Table // of its own; nil: the chart's
}

// mark is something at a step, such as an alarm.
type mark struct {
	At   uint64
	Text string
}

// strip is where a flag is set.
type strip struct {
	Name string
	Set  []bool // in each column
}

// Lengths in the units of the picture, which is scaled to the page.
const (
	wide, high           = 960, 240
	smallWide, smallHigh = 400, 160
	marginLeft           = 60
	marginRight          = 14
	marginTop            = 16
	marginBottom         = 26
	stripHeight          = 18
	unit                 = 10 // coordinates are computed in tenths
)

// frame is where in the picture values go.
type frame struct {
	*chart
	b      strings.Builder
	w, h   int // of the picture
	x, y   int // of the plot
	pw, ph int
	lo, hi float64
}

// SVG draws the chart.
func (c *chart) SVG() template.HTML {
	f := &frame{chart: c, w: wide, h: high, x: marginLeft, y: marginTop}
	if c.Small {
		f.w, f.h = smallWide, smallHigh
	}
	if len(c.Strips) > 0 {
		f.x = 130
		f.h = marginTop + marginBottom + stripHeight*len(c.Strips)
	}
	f.pw, f.ph = f.w-f.x-marginRight, f.h-f.y-marginBottom
	fmt.Fprintf(&f.b, `<svg viewBox="0 0 %d %d" role="img" aria-labelledby="%[3]s-title %[3]s-desc" data-from="%d" data-until="%d" data-left="%d" data-plot="%d" data-wide="%d">`,
		f.w, f.h, c.ID, c.From, c.Until, f.x, f.pw, f.w)
	fmt.Fprintf(&f.b, `<title id="%[1]s-title">%[2]s</title><desc id="%[1]s-desc">%[3]s</desc>`, c.ID, esc(c.Title), esc(c.Describe()))
	f.losses()
	f.steps()
	if len(c.Strips) > 0 {
		f.strips()
	} else {
		f.values()
	}
	f.b.WriteString("</svg>")
	return template.HTML(f.b.String())
}

func esc(s string) string { return template.HTMLEscapeString(s) }

// stepX is where a step lies, in tenths.
func (f *frame) stepX(step uint64) int {
	step = max(f.From, min(step, f.Until))
	if f.From == f.Until {
		return unit * (f.x + f.pw/2)
	}
	hi, lo := bits.Mul64(step-f.From, uint64(unit*f.pw))
	at, _ := bits.Div64(hi, lo, f.Until-f.From)
	return unit*f.x + int(at)
}

// columnX is where a column's value is drawn: in its middle.
func (f *frame) columnX(t *Table, i int) int { return f.stepX(t.Step(i) + (t.Width-1)/2) }

// valueY is where a value lies, in tenths.
func (f *frame) valueY(v float64) int {
	v = max(f.lo, min(v, f.hi))
	return unit*(f.y+f.ph) - int(math.Round((v-f.lo)/(f.hi-f.lo)*float64(unit*f.ph)))
}

// tenths writes a coordinate.
func tenths(v int) string {
	if v%unit == 0 {
		return strconv.Itoa(v / unit)
	}
	return strconv.FormatFloat(float64(v)/unit, 'f', 1, 64)
}

func (f *frame) rect(class string, x, y, w, h int) {
	fmt.Fprintf(&f.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"/>`, class, tenths(x), tenths(y), tenths(w), tenths(h))
}

func (f *frame) text(class string, x, y int, s string) {
	fmt.Fprintf(&f.b, `<text class="%s" x="%s" y="%s">%s</text>`, class, tenths(x), tenths(y), esc(s))
}

// runs calls put with the columns of each stretch in which is says yes.
func runs(columns int, is func(i int) bool, put func(from, to int)) {
	for i := 0; i < columns; i++ {
		if !is(i) {
			continue
		}
		from := i
		for i+1 < columns && is(i+1) {
			i++
		}
		put(from, i)
	}
}

// losses draws bands where records were lost.
func (f *frame) losses() {
	if f.Table == nil {
		return
	}
	runs(f.Table.Columns, func(i int) bool { return f.Table.Lost[i] > 0 }, func(from, to int) {
		x, end := f.stepX(f.Table.Step(from)), f.stepX(f.Table.End(to))
		f.rect("lost", x, unit*f.y, max(end-x, 2*unit), unit*f.ph)
	})
}

// steps draws the axis of steps.
func (f *frame) steps() {
	n := 8
	if f.Small {
		n = 4
	}
	bottom := unit * (f.y + f.ph)
	for _, t := range plot.StepTicks(f.From, f.Until, n) {
		x := f.stepX(t.Step)
		fmt.Fprintf(&f.b, `<path class="grid" d="M%s %sV%s"/>`, tenths(x), tenths(unit*f.y), tenths(bottom))
		f.text("tick mid", x, bottom+unit*17, t.Text)
	}
	fmt.Fprintf(&f.b, `<path class="axis" d="M%d %sH%d"/>`, f.x, tenths(bottom), f.x+f.pw)
}

func (l *line) of(c *chart) *Table {
	if l.table != nil {
		return l.table
	}
	return c.Table
}

// values draws lines or areas with their axis.
func (f *frame) values() {
	if !f.bounds() {
		f.text("none mid", unit*(f.x+f.pw/2), unit*(f.y+f.ph/2), "no values in this range")
		return
	}
	n := 4
	if f.Small {
		n = 3
	}
	for _, t := range plot.ValueTicks(f.lo, f.hi, n) {
		y := f.valueY(t.At)
		fmt.Fprintf(&f.b, `<path class="grid" d="M%d %sH%d"/>`, f.x, tenths(y), f.x+f.pw)
		f.text("tick end", unit*(f.x-6), y+unit*4, t.Text)
	}
	if f.Stacked {
		f.stack()
		return
	}
	for i := range f.Lines {
		f.band(&f.Lines[i])
	}
	for i := range f.Lines {
		f.line(&f.Lines[i])
	}
	for _, m := range f.Marks {
		x := f.stepX(m.At)
		top := unit * f.y
		fmt.Fprintf(&f.b, `<path class="alarm" d="M%s %sV%s"/><path class="alarmtip" d="M%s %sh12l-6 10z"><title>%s</title></path>`,
			tenths(x), tenths(top), tenths(top+unit*f.ph), tenths(x-6*unit), tenths(top-10*unit), esc(fmt.Sprintf("%s at step %d", m.Text, m.At)))
	}
}

// bounds is the range of all values; false if there are none.
func (f *frame) bounds() bool {
	f.lo, f.hi = math.Inf(1), math.Inf(-1)
	see := func(lo, hi float64) { f.lo, f.hi = min(f.lo, lo), max(f.hi, hi) }
	if f.Stacked {
		for i := range f.Table.Columns {
			sum := 0.0
			for _, l := range f.Lines {
				sum += max(0, l.Values[i].Mean)
			}
			if sum > 0 {
				see(0, sum)
			}
		}
	} else {
		for _, l := range f.Lines {
			for i := range l.Values {
				if s := &l.Values[i]; s.Count > 0 {
					see(s.Min, s.Max)
				}
			}
		}
	}
	if f.lo > f.hi {
		return false
	}
	f.lo, f.hi = max(f.lo, -math.MaxFloat64/4), min(f.hi, math.MaxFloat64/4) // their difference must be finite
	if f.lo >= f.hi {
		f.lo, f.hi = f.lo-0.5, f.lo+0.5
		if f.lo >= f.hi { // far from zero, where adding a half changes nothing
			f.lo, f.hi = min(0, f.lo), max(0, f.lo)
		}
	}
	return true
}

// pieces calls put with the columns of a line that belong together: where records are lost, or values are no numbers,
// it is broken.
func (f *frame) pieces(l *line, put func(columns []int)) {
	t := l.of(f.chart)
	var piece []int
	flush := func() {
		if len(piece) > 0 {
			put(piece)
		}
		piece = nil
	}
	for i := range l.Values {
		s := &l.Values[i]
		if t.Lost[i] > 0 && s.Count == 0 || s.Count == 0 && s.Last-s.Last != 0 {
			flush()
		}
		if s.Count > 0 {
			piece = append(piece, i)
		}
	}
	flush()
}

// band draws the range of the values that a column stands for.
func (f *frame) band(l *line) {
	t := l.of(f.chart)
	if t.Width == 1 {
		return
	}
	f.pieces(l, func(columns []int) {
		if len(columns) < 2 {
			return
		}
		fmt.Fprintf(&f.b, `<path class="band %s" d="`, l.Class)
		for k, i := range columns {
			fmt.Fprintf(&f.b, "%s%s %s", moveOrLine(k), tenths(f.columnX(t, i)), tenths(f.valueY(l.Values[i].Max)))
		}
		for k := len(columns) - 1; k >= 0; k-- {
			i := columns[k]
			fmt.Fprintf(&f.b, "L%s %s", tenths(f.columnX(t, i)), tenths(f.valueY(l.Values[i].Min)))
		}
		f.b.WriteString(`z"/>`)
	})
}

func (f *frame) line(l *line) {
	t := l.of(f.chart)
	fmt.Fprintf(&f.b, `<path class="line %s" d="`, l.Class)
	f.pieces(l, func(columns []int) {
		for k, i := range columns {
			fmt.Fprintf(&f.b, "%s%s %s", moveOrLine(k), tenths(f.columnX(t, i)), tenths(f.valueY(l.Values[i].Mean)))
		}
		if len(columns) == 1 {
			f.b.WriteString("h0.1")
		}
	})
	f.b.WriteString(`"/>`)
}

func moveOrLine(k int) string {
	if k == 0 {
		return "M"
	}
	return "L"
}

// stack draws the means as areas on each other.
func (f *frame) stack() {
	base := make([]float64, f.Table.Columns)
	for i := range f.Lines {
		l := &f.Lines[i]
		fmt.Fprintf(&f.b, `<path class="area %s" d="`, l.Class)
		f.pieces(l, func(columns []int) {
			for k, j := range columns {
				fmt.Fprintf(&f.b, "%s%s %s", moveOrLine(k), tenths(f.columnX(f.Table, j)), tenths(f.valueY(base[j]+max(0, l.Values[j].Mean))))
			}
			for k := len(columns) - 1; k >= 0; k-- {
				fmt.Fprintf(&f.b, "L%s %s", tenths(f.columnX(f.Table, columns[k])), tenths(f.valueY(base[columns[k]])))
			}
			f.b.WriteString("z")
		})
		f.b.WriteString(`"/>`)
		for j := range base {
			base[j] += max(0, l.Values[j].Mean)
		}
	}
}

// strips draws a row for each flag.
func (f *frame) strips() {
	for n, s := range f.Strips {
		y := unit * (f.y + n*stripHeight)
		f.text("tick end", unit*(f.x-6), y+unit*13, s.Name)
		f.rect("track", unit*f.x, y+unit*3, unit*f.pw, unit*(stripHeight-6))
		runs(len(s.Set), func(i int) bool { return s.Set[i] }, func(from, to int) {
			x, end := f.stepX(f.Table.Step(from)), f.stepX(f.Table.End(to))
			f.rect("set", x, y+unit*3, max(end-x, 2*unit), unit*(stripHeight-6))
		})
	}
}

// Describe says in words what the chart shows.
func (c *chart) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Steps %d to %d.", c.From, c.Until)
	for _, l := range c.Lines {
		var all Summary
		for i := range l.Values {
			all.join(&l.Values[i])
		}
		if all.Count == 0 {
			fmt.Fprintf(&b, " %s: no values.", l.Name)
			continue
		}
		fmt.Fprintf(&b, " %s: least %s, greatest %s, mean %s, last %s.", l.Name, short(all.Min), short(all.Max), short(all.Mean), short(all.Last))
	}
	for _, s := range c.Strips {
		var where []string
		runs(len(s.Set), func(i int) bool { return s.Set[i] }, func(from, to int) {
			where = append(where, c.Table.span(from, to))
		})
		fmt.Fprintf(&b, " %s: %s.", s.Name, list(where, 8))
	}
	var marks []string
	for _, m := range c.Marks {
		marks = append(marks, fmt.Sprintf("%s at step %d", m.Text, m.At))
	}
	if len(marks) > 0 {
		fmt.Fprintf(&b, " Alarms: %s.", list(marks, 8))
	}
	var lost []string
	if c.Table != nil {
		runs(c.Table.Columns, func(i int) bool { return c.Table.Lost[i] > 0 }, func(from, to int) {
			lost = append(lost, c.Table.span(from, to))
		})
	}
	if len(lost) > 0 {
		fmt.Fprintf(&b, " Records lost in: %s.", list(lost, 8))
	}
	return b.String()
}

// span names the steps of columns.
func (t *Table) span(from, to int) string {
	if t.Step(from) == t.End(to) {
		return fmt.Sprintf("step %d", t.Step(from))
	}
	return fmt.Sprintf("steps %d to %d", t.Step(from), t.End(to))
}

// list joins texts, and says how many are left out.
func list(texts []string, most int) string {
	if len(texts) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(texts[:most], ", "), len(texts)-most)
	}
	return strings.Join(texts, ", ")
}

// dataRow is a line of the table that says what a chart shows.
type dataRow struct {
	Steps string
	Cells []string
}

const mostRows = 24

// Head is the head of the table: a column to each line, with the range beside the mean where a row stands for more than a step.
func (c *chart) Head() []string {
	names := []string{}
	for _, l := range c.Lines {
		names = append(names, l.Name)
	}
	for _, s := range c.Strips {
		names = append(names, s.Name)
	}
	return names
}

// Rows are what a chart shows, in a few numbers.
func (c *chart) Rows() (rows []dataRow) {
	if c.Table == nil {
		return nil
	}
	by := (c.Table.Columns + mostRows - 1) / mostRows
	for at := 0; at < c.Table.Columns; at += by {
		end := min(at+by, c.Table.Columns)
		row, some := dataRow{Steps: strings.TrimPrefix(strings.TrimPrefix(c.Table.span(at, end-1), "steps "), "step ")}, false
		for _, l := range c.Lines {
			var all Summary
			t := l.of(c)
			for i := range l.Values {
				if step := t.Step(i); step >= c.Table.Step(at) && step <= c.Table.End(end-1) {
					all.join(&l.Values[i])
				}
			}
			some = some || all.Count > 0
			row.Cells = append(row.Cells, all.text())
		}
		for _, s := range c.Strips {
			set := false
			for _, is := range s.Set[at:end] {
				set = set || is
			}
			some = true
			row.Cells = append(row.Cells, map[bool]string{true: "set", false: "–"}[set])
		}
		if some {
			rows = append(rows, row)
		}
	}
	return rows
}

func (s *Summary) text() string {
	switch {
	case s.Count == 0:
		return "–"
	case s.Min == s.Max:
		return short(s.Mean)
	}
	return fmt.Sprintf("%s (%s to %s)", short(s.Mean), short(s.Min), short(s.Max))
}

// Legend says which colour is which; nothing if there is only one.
func (c *chart) Legend() []line {
	var all []line
	if len(c.Lines) > 1 {
		all = append(all, c.Lines...)
	}
	if len(c.Marks) > 0 {
		name := "alarm"
		if c.Marks[0].Text == firstDivergent {
			name = firstDivergent
		}
		all = append(all, line{Name: name, Class: "bad"})
	}
	if c.Table != nil && slices.ContainsFunc(c.Table.Lost, func(n uint64) bool { return n > 0 }) {
		all = append(all, line{Name: "records lost", Class: "lostswatch"})
	}
	return all
}
