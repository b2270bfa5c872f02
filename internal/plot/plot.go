// Package plot draws a series of numbers as a small chart of text, for a
// terminal, a log or a bug report. Each column shows the least and the greatest
// of the values that fall into it, so that no spike is lost however long the
// series. The same input gives the same text everywhere. SVG and PNG draw a
// figure of several series for a file, under the same promises.
package plot

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Options says how a chart looks. The zero value is 72 columns wide and 6 rows
// high, in braille.
type Options struct {
	Title  string    // above the chart; empty: no such line
	Width  int       // columns of the whole chart, labels included; least 20, default 72
	Height int       // rows of the plot itself; default 6
	ASCII  bool      // no character outside ASCII, for terminals without UTF-8
	Marks  []float64 // levels drawn as dotted lines and taken into the range, such as a threshold
	First  string    // label below the left end
	Last   string    // label below the right end
}

const (
	defaultWidth  = 72
	leastWidth    = 20
	defaultHeight = 6
)

// Line draws the series from left to right, from oldest to newest. Values that
// are not finite are gaps. The text ends in a line break; its lines have no
// trailing spaces.
func Line(series []float64, o Options) string {
	if o.Width == 0 {
		o.Width = defaultWidth
	}
	if o.Height <= 0 {
		o.Height = defaultHeight
	}
	o.Width = max(o.Width, leastWidth)
	var b strings.Builder
	if o.Title != "" {
		b.WriteString(o.Title + "\n")
	}
	lo, hi, ok := bounds(series, o.Marks)
	if !ok {
		b.WriteString("(no finite value)\n")
		return b.String()
	}
	top, bottom := number(hi), number(lo)
	margin := max(len(top), len(bottom))
	c := newCanvas(o.Width-margin-2, o.Height, o.ASCII)
	scale := func(x float64) int {
		if hi == lo {
			return c.rows / 2
		}
		return int(math.Round(share(x, lo, hi) * float64(c.rows-1)))
	}
	for _, m := range o.Marks {
		if finite(m) {
			c.mark(scale(m))
		}
	}
	c.draw(series, scale)

	axis, tick, corner, rule := "│", "┤", "└", "─"
	if o.ASCII {
		axis, tick, corner, rule = "|", "+", "+", "-"
	}
	for i, line := range c.lines() {
		label, side := "", axis
		switch {
		case i == 0 && hi != lo:
			label, side = top, tick
		case i == o.Height-1 && hi != lo, hi == lo && i == (o.Height-1)/2:
			label, side = bottom, tick
		}
		b.WriteString(strings.TrimRight(strings.Repeat(" ", margin-len(label))+label+" "+side+line, " ") + "\n")
	}
	b.WriteString(strings.Repeat(" ", margin+1) + corner + strings.Repeat(rule, c.columns) + "\n")
	if ends := ends(o.First, o.Last, c.columns); ends != "" {
		b.WriteString(strings.Repeat(" ", margin+2) + ends + "\n")
	}
	return b.String()
}

// Sparkline draws the series in one line of at most width characters, the mean
// of each column as the height of a block. Gaps are spaces.
func Sparkline(series []float64, width int, ascii bool) string {
	lo, hi, ok := bounds(series, nil)
	if !ok || width <= 0 {
		return ""
	}
	return blocks(columnMeans(series, width), lo, hi, ascii)
}

// Row is one line of Rows.
type Row struct {
	Name   string
	Values []float64
	Note   string // behind the line
}

// Rows draws series below each other, a line each, all on one scale that begins at zero and ends at the greatest mean of a
// column, which is written behind the title. Each column shows the mean of the values in it; gaps are spaces. Of the
// options, Height and Marks do not count. The series should be equally long.
func Rows(rows []Row, o Options) string {
	if o.Width == 0 {
		o.Width = defaultWidth
	}
	o.Width = max(o.Width, leastWidth)
	name, note, most := 0, 0, 0
	for _, r := range rows {
		name, note, most = max(name, utf8.RuneCountInString(r.Name)), max(note, utf8.RuneCountInString(r.Note)), max(most, len(r.Values))
	}
	name = min(name, o.Width/4)
	columns := min(max(4, o.Width-name-note-4), most)
	lines, top := make([][]float64, len(rows)), 0.0
	for i, r := range rows {
		lines[i] = columnMeans(r.Values, columns)
		for _, x := range lines[i] {
			if finite(x) {
				top = max(top, x)
			}
		}
	}
	var b strings.Builder
	if o.Title != "" {
		b.WriteString(o.Title + ": 0 to " + number(top) + "\n")
	}
	for i, r := range rows {
		line := blocks(lines[i], 0, top, o.ASCII)
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-*s %s%s %s", name, cut(r.Name, name), line, strings.Repeat(" ", columns-len(lines[i])), r.Note), " ") + "\n")
	}
	if ends := ends(o.First, o.Last, columns); ends != "" {
		b.WriteString(strings.Repeat(" ", name+3) + ends + "\n")
	}
	return b.String()
}

// columnMeans are the means of the finite values in each column, NaN where there is none.
func columnMeans(series []float64, width int) []float64 {
	means := make([]float64, min(width, len(series)))
	for col := range means {
		from, to := span(col, len(means), len(series))
		n := 0
		for _, x := range series[from:to] {
			if finite(x) {
				n++
				means[col] += x/float64(n) - means[col]/float64(n) // a running mean cannot overflow as a sum can
			}
		}
		if n == 0 {
			means[col] = math.NaN()
		}
	}
	return means
}

// blocks draws means as the heights of blocks.
func blocks(means []float64, lo, hi float64, ascii bool) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	if ascii {
		levels = []rune("_.-=+*#@")
	}
	var b strings.Builder
	for _, mean := range means {
		switch {
		case !finite(mean):
			b.WriteByte(' ')
		case hi == lo:
			b.WriteRune(levels[len(levels)/2])
		default:
			at := int(share(mean, lo, hi) * float64(len(levels)))
			b.WriteRune(levels[min(at, len(levels)-1)])
		}
	}
	return b.String()
}

// span returns the values that column col of width columns stands for.
func span(col, width, n int) (from, to int) {
	from = col * n / width
	return from, max(from+1, (col+1)*n/width)
}

// bounds returns the range of the finite values.
func bounds(series, marks []float64) (lo, hi float64, ok bool) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, x := range series {
		if finite(x) {
			lo, hi, ok = min(lo, x), max(hi, x), true
		}
	}
	if !ok {
		return 0, 0, false
	}
	for _, x := range marks {
		if finite(x) {
			lo, hi = min(lo, x), max(hi, x)
		}
	}
	return lo, hi, true
}

// share says where between lo and hi, which differ, x lies: from 0 to 1.
func share(x, lo, hi float64) float64 {
	if !finite(hi - lo) { // the difference of two finite numbers may not be finite
		x, lo, hi = x/2, lo/2, hi/2
	}
	return max(0, min((x-lo)/(hi-lo), 1))
}

func finite(x float64) bool { return x-x == 0 }

// number writes a label with four significant digits, in at most 10 characters.
func number(x float64) string {
	size := math.Abs(x)
	switch {
	case x == 0:
		return "0" // and not -0
	case size < 1e-3 || size >= 1e7:
		return strconv.FormatFloat(x, 'g', 4, 64)
	case size >= 1e3:
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	text := strconv.FormatFloat(x, 'f', 3-int(math.Floor(math.Log10(size))), 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// ends places two labels at the two ends of a line, cutting what does not fit.
func ends(first, last string, width int) string {
	first, last = cut(first, width), cut(last, width)
	gap := width - utf8.RuneCountInString(first) - utf8.RuneCountInString(last)
	if last == "" || gap < 1 {
		return first
	}
	return first + strings.Repeat(" ", gap) + last
}

func cut(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:width])
	}
	return s
}
