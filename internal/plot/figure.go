package plot

import (
	"fmt"
	"math"
	"slices"
)

// Figure is a chart of values per step, for a file.
type Figure struct {
	Title  string
	XLabel string // below the axis of steps
	YLabel string // above the axis of values
	Series []Series

	Verticals   []Mark // dashed lines across the plot at a step
	Horizontals []Mark // and at a value

	// YMin and YMax are the range of values; what lies outside is drawn at the edge. If YMin is not below YMax, the range is
	// that of all values and marks.
	YMin, YMax float64

	// Stacked draws the series as areas on each other, the first at the bottom, in place of lines. They must have the same
	// steps. Each column is the mean of the points in it; values below zero count as zero, and bands are not drawn. Where a
	// value of one is not finite, all have a gap.
	Stacked bool

	Width, Height int // in CSS pixels, at least 320 by 240 and at most 4096; 0: 800 by 450. A PNG has twice as many each way.
}

// Series is one line, with its name in the legend.
type Series struct {
	Name   string
	Points []Point // the steps must grow
}

// Point is the value at a step; it holds until the next one. A value that is not finite is a gap. A point that stands for
// several steps can give the range of their values, which is then shown as a band.
type Point struct {
	Step     uint64
	Y        float64
	Min, Max float64 // no band unless Min < Max
}

// Mark is a line at a step or at a value.
type Mark struct {
	At    float64 // steps above 2⁵³ are rounded
	Label string
}

// All lengths below are in half CSS pixels: the pixels of the PNG. They are whole numbers and all shapes but text are
// rectangles, so that both files are the same on every processor.
const (
	scale      = 2
	pad        = 24
	titleSize  = 32
	textSize   = 24
	row        = 36 // height of a line of text
	leastLabel = 8  // from a label to what it belongs to
	widths     = 4  // of lines
	dash       = 12
)

// palette are colours that people with any of the common kinds of colour blindness can tell apart, each dark enough on
// white. The values are those of Okabe and Ito, without yellow.
var palette = []string{"0072b2", "d55e00", "009e73", "cc79a7", "56b4e9", "e69f00", "000000"}

const (
	inkText = "222222"
	inkAxis = "666666"
	inkGrid = "e4e4e4"
	inkMark = "444444"
	paper   = "ffffff"
)

type rect struct{ x, y, w, h int }

// shape is rectangles of one colour.
type shape struct {
	colour  string
	opacity int // percent
	rects   []rect
}

type label struct {
	x, y   int // of the base line
	anchor anchor
	size   int
	colour string
	text   string
}

type anchor int

const (
	left anchor = iota
	middle
	right
)

// scene is a figure as shapes, from the back to the front, with the labels above all.
type scene struct {
	title         string
	width, height int
	shapes        []shape
	labels        []label
}

// layout is a figure being drawn.
type layout struct {
	scene
	f        *Figure
	font     *font
	plot     rect   // where the values go
	under    []rect // labels inside the plot, below which lines are paled
	from, to uint64
	lo, hi   float64
}

func newScene(f *Figure) (*scene, error) {
	for _, s := range f.Series {
		for i := 1; i < len(s.Points); i++ {
			if s.Points[i].Step <= s.Points[i-1].Step {
				return nil, fmt.Errorf("plot: series %q: step %d comes after step %d", s.Name, s.Points[i].Step, s.Points[i-1].Step)
			}
		}
	}
	if f.Stacked {
		if err := checkStack(f); err != nil {
			return nil, err
		}
	}
	l := &layout{f: f, font: newFont()}
	l.title = f.Title
	l.width, l.height = scale*size(f.Width, 320, 800), scale*size(f.Height, 240, 450)
	l.ranges()
	l.fill(paper, 100, rect{0, 0, l.width, l.height})
	xs, ys := stepTicks(l.from, l.to, (l.width-200)/150), valueTicks(l.lo, l.hi, l.height/100)
	l.frame(ys)
	l.axes(xs, ys)
	if f.Stacked {
		l.stack()
		l.fill(paper, 40, l.grid(ys)...) // the one below is covered
		l.marks()
	} else {
		l.marks()
		for i := range f.Series {
			l.series(i)
		}
	}
	l.fill(paper, 80, l.under...)
	if l.empty() {
		l.text(l.plot.x+l.plot.w/2, l.plot.y+l.plot.h/2, middle, textSize, inkMark, "no values")
	}
	return &l.scene, nil
}

func size(given, least, usual int) int {
	if given == 0 {
		return usual
	}
	return max(least, min(given, 4096))
}

// ranges finds out which steps and values there are.
func (l *layout) ranges() {
	first := true // no step was seen
	see := func(step uint64) {
		if first {
			l.from, l.to, first = step, step, false
		}
		l.from, l.to = min(l.from, step), max(l.to, step)
	}
	var values, marks []float64
	for _, s := range l.f.Series {
		for _, p := range s.Points {
			see(p.Step)
			if l.f.Stacked {
				continue
			}
			values = append(values, p.Y)
			if p.Min < p.Max {
				values = append(values, p.Min, p.Max)
			}
		}
	}
	if l.f.Stacked && len(l.f.Series) > 0 {
		values = append(values, 0)
		heights := make([]float64, len(l.f.Series))
		for at := range l.f.Series[0].Points {
			if sum, ok := l.f.heights(at, heights); ok {
				values = append(values, sum)
			}
		}
	}
	for _, m := range l.f.Verticals {
		if step, ok := m.step(); ok {
			see(step)
		}
	}
	for _, m := range l.f.Horizontals {
		marks = append(marks, m.At)
	}
	l.lo, l.hi = l.f.YMin, l.f.YMax
	if !(l.lo < l.hi) || !finite(l.lo) || !finite(l.hi) {
		l.lo, l.hi, _ = bounds(append(values, marks...), nil)
	}
	l.lo, l.hi = max(l.lo, -math.MaxFloat64/4), min(l.hi, math.MaxFloat64/4) // their difference must be finite
	if l.lo >= l.hi {
		l.lo, l.hi = l.lo-0.5, l.lo+0.5
		if l.lo >= l.hi { // far from zero, where adding a half changes nothing
			l.lo, l.hi = min(0, l.lo), max(0, l.lo)
		}
	}
}

func (m Mark) step() (uint64, bool) {
	if !(m.At >= 0 && m.At < 1<<64) {
		return 0, false
	}
	return uint64(m.At), true
}

func (l *layout) empty() bool {
	return !slices.ContainsFunc(l.f.Series, func(s Series) bool {
		return slices.ContainsFunc(s.Points, func(p Point) bool { return finite(p.Y) || p.Min < p.Max })
	})
}

// frame writes title and legend, and decides where the plot goes.
func (l *layout) frame(ys []tick) {
	y := pad / 2
	if l.f.Title != "" {
		y += row + leastLabel
		l.text(pad, y-leastLabel, left, titleSize, inkText, l.font.fit(titleSize, l.f.Title, l.width-2*pad))
	}
	const swatch = 32
	x := pad
	for i, s := range l.f.Series {
		name := l.font.fit(textSize, s.Name, l.width-2*pad-2*swatch)
		w := swatch + leastLabel + l.font.width(textSize, name)
		if i == 0 || x+w > l.width-pad {
			x, y = pad, y+row
		}
		if l.f.Stacked {
			colour, opacity := stackColour(i)
			l.fill(colour, opacity, rect{x, y - 20, swatch, 22})
		} else {
			l.fill(palette[i%len(palette)], 100, l.pieces(i, rect{x, y - 12, swatch, 6})...)
		}
		l.text(x+swatch+leastLabel, y, left, textSize, inkText, name)
		x += w + swatch
	}
	if l.f.YLabel != "" {
		y += row + leastLabel
		l.text(pad, y, left, textSize, inkMark, l.font.fit(textSize, l.f.YLabel, l.width-2*pad))
	}
	y += row * min(len(l.f.Verticals), 3)
	if l.f.Stacked {
		y += pad / 2 // the top of a stack has a tick, whose label must not touch the legend
	}
	margin := 0
	for _, t := range ys {
		margin = max(margin, l.font.width(textSize, t.text))
	}
	bottom := row + pad/2
	if l.f.XLabel != "" {
		bottom += row
	}
	l.plot = rect{x: pad + margin + 2*leastLabel, y: y + pad/2}
	l.plot.w, l.plot.h = max(8, l.width-l.plot.x-2*pad), max(8, l.height-l.plot.y-bottom) // a legend of many lines may leave nothing
}

// axes draws the grid, the ticks and their labels.
func (l *layout) axes(xs, ys []tick) {
	bottom := l.plot.y + l.plot.h
	for _, t := range ys {
		l.text(l.plot.x-2*leastLabel, l.y(t.at)+textSize/3, right, textSize, inkText, t.text)
	}
	l.fill(inkGrid, 100, l.grid(ys)...)
	axis := []rect{{l.plot.x, bottom, l.plot.w, 2}}
	for _, t := range xs {
		x := l.x(t.step)
		axis = append(axis, rect{x - 1, bottom + 2, 2, leastLabel})
		l.text(x, bottom+row, middle, textSize, inkText, t.text)
	}
	l.fill(inkAxis, 100, axis...)
	if l.f.XLabel != "" {
		l.text(l.plot.x+l.plot.w/2, bottom+2*row, middle, textSize, inkMark, l.font.fit(textSize, l.f.XLabel, l.plot.w))
	}
}

// grid is a line for each tick of the values.
func (l *layout) grid(ys []tick) (lines []rect) {
	for _, t := range ys {
		lines = append(lines, rect{l.plot.x, l.y(t.at) - 1, l.plot.w, 2})
	}
	return lines
}

// marks draws the dashed lines. Labels of steps stand above the plot, those of values inside it at the right.
func (l *layout) marks() {
	rows := min(len(l.f.Verticals), 3)
	for i, m := range l.f.Verticals {
		step, ok := m.step()
		if !ok {
			continue
		}
		x, line := l.x(step), row*(rows-i%3-1)
		top := l.plot.y - line - leastLabel
		var dashes []rect
		for y := top; y < l.plot.y+l.plot.h; y += dash {
			dashes = append(dashes, rect{x - 1, y, 3, min(dash*2/3, l.plot.y+l.plot.h-y)})
		}
		l.fill(inkMark, 100, dashes...)
		text := l.font.fit(textSize, m.Label, l.width-2*pad)
		half := l.font.width(textSize, text) / 2
		l.text(max(pad+half, min(x, l.width-pad-half)), top-leastLabel/2, middle, textSize, inkText, text)
	}
	for _, m := range l.f.Horizontals {
		if !finite(m.At) {
			continue
		}
		y := l.y(m.At)
		var dashes []rect
		for x := l.plot.x; x < l.plot.x+l.plot.w; x += dash {
			dashes = append(dashes, rect{x, y - 1, min(dash*2/3, l.plot.x+l.plot.w-x), 3})
		}
		l.fill(inkMark, 100, dashes...)
		base := y - leastLabel
		if base-textSize < l.plot.y {
			base = y + textSize + leastLabel/2
		}
		text := l.font.fit(textSize, m.Label, l.plot.w)
		width := l.font.width(textSize, text)
		if width > 0 {
			l.under = append(l.under, rect{l.plot.x + l.plot.w - width, base - textSize, width, textSize + 4})
		}
		l.text(l.plot.x+l.plot.w, base, right, textSize, inkText, text)
	}
}

// series draws one line. Where several points share a column, the line covers all of them, so that no spike is lost. The
// first lines are the widest, so that each is seen where they lie on each other.
func (l *layout) series(i int) {
	points := l.f.Series[i].Points
	thick := 4 + 3*min(len(l.f.Series)-1-i, widths-1)
	var line, band []rect
	last, lastOK := 0, false
	for at := 0; at < len(points); {
		x := l.x(points[at].Step)
		ys, bands := reach{}, reach{}
		finiteLast := false
		for ; at < len(points) && l.x(points[at].Step) == x; at++ {
			p := points[at]
			if finiteLast = finite(p.Y); finiteLast {
				ys.add(l.y(p.Y))
				ys.last = l.y(p.Y)
			}
			if p.Min < p.Max {
				bands.add(l.y(p.Min))
				bands.add(l.y(p.Max))
			}
		}
		next := x + 2
		if at < len(points) {
			next = l.x(points[at].Step)
		}
		if bands.ok {
			band = append(band, rect{x, bands.lo, next - x, bands.hi - bands.lo + 1})
		}
		if !ys.ok {
			lastOK = false
			continue
		}
		if lastOK {
			ys.add(last)
		}
		if ys.lo != ys.hi {
			line = append(line, rect{x - thick/2, ys.lo - thick/2, thick, ys.hi - ys.lo + thick})
		}
		if !finiteLast {
			next = x
		}
		for _, r := range l.pieces(i, rect{x - thick/2, ys.last - thick/2, next - x + thick, thick}) {
			line = extend(line, r)
		}
		last, lastOK = ys.last, finiteLast
	}
	l.fill(palette[i%len(palette)], 22, band...)
	l.fill(palette[i%len(palette)], 100, line...)
}

// extend adds a rectangle to a line, or makes the last one longer.
func extend(line []rect, r rect) []rect {
	if len(line) > 0 {
		if last := &line[len(line)-1]; last.y == r.y && last.h == r.h && r.x <= last.x+last.w {
			last.w = max(last.w, r.x+r.w-last.x)
			return line
		}
	}
	return append(line, r)
}

// reach is a range of rows, and the newest of them.
type reach struct {
	lo, hi, last int
	ok           bool
}

func (s *reach) add(y int) {
	if !s.ok {
		s.lo, s.hi, s.ok = y, y, true
	}
	s.lo, s.hi = min(s.lo, y), max(s.hi, y)
}

// pieces cuts a horizontal line into dashes if its series uses a colour for the second time.
func (l *layout) pieces(i int, r rect) []rect {
	if i < len(palette) {
		return []rect{r}
	}
	var list []rect
	for x := r.x - r.x%dash; x < r.x+r.w; x += dash {
		from, to := max(x, r.x), min(x+dash*2/3, r.x+r.w)
		if from < to {
			list = append(list, rect{from, r.y, to - from, r.h})
		}
	}
	return list
}

// x is the column of a step.
func (l *layout) x(step uint64) int {
	if l.from == l.to {
		return l.plot.x + l.plot.w/2
	}
	return l.plot.x + int(math.Round(float64(step-l.from)/float64(l.to-l.from)*float64(l.plot.w-1)))
}

// y is the row of a value.
func (l *layout) y(v float64) int {
	return l.plot.y + l.plot.h - 1 - int(math.Round(share(v, l.lo, l.hi)*float64(l.plot.h-1)))
}

func (l *layout) fill(colour string, opacity int, rects ...rect) {
	if len(rects) > 0 {
		l.shapes = append(l.shapes, shape{colour, opacity, rects})
	}
}

func (l *layout) text(x, y int, a anchor, size int, colour, text string) {
	if text != "" {
		l.labels = append(l.labels, label{x, y, a, size, colour, text})
	}
}
