package web

import (
	"context"
	"fmt"
	"math"
	"math/bits"

	"github.com/usp-project/usp/record"
)

// Data answers what the charts of one run ask. It is used by many goroutines.
type Data interface {
	// Extent takes in what was stored since, and says what there is.
	Extent(ctx context.Context) (Extent, error)

	// Range sums up elements of the records of steps from to until, both included, in about that many columns: it may
	// begin earlier and have fewer columns, to be quick. Elements that no generation has are empty.
	Range(ctx context.Context, elements []Element, from, until uint64, columns int) (*Table, error)
}

// Extent is how far a run's telemetry goes, on its effective timeline.
type Extent struct {
	First, Last uint64 // steps, if there are records
	Records     uint64
	Lost        uint64 // records
	Frames      uint64 // stored, over all generations: the ordinal of the next one
	LastTime    int64  // the input's time of the last record, Unix ns
	Generation  uint32
	Schema      *record.Schema // of the newest generation
	Progress    Progress
}

// Progress is how far what is needed for long ranges has been made.
type Progress struct {
	Going    bool   // more is being made
	Done, Of uint64 // of What; Of 0: all is there
	What     string
	Fault    string // why it is not kept
}

// Element is one number of every record: a stored field, and which of its numbers.
type Element struct {
	Field string
	Index int
}

// Table is a stretch of a run: column i stands for the steps from From+i*Width, Width of them.
type Table struct {
	From, Width uint64
	Columns     int
	Series      [][]Summary // of each element asked for, a Summary to the column
	Lost        []uint64    // steps in each column whose record, if there was one, is lost
	Sampled     bool        // some columns are made of some of their records only
}

// Summary is an element in one column.
type Summary struct {
	Count          uint64 // of values that are finite; of flags, of all
	Min, Max, Mean float64
	Last           float64 // the newest, finite or not
	Or             uint64  // of flags and integers: all of them ORed
}

// Step is where a column begins.
func (t *Table) Step(column int) uint64 { return t.From + uint64(column)*t.Width }

// End is the last step of a column.
func (t *Table) End(column int) uint64 { return t.Step(column) + t.Width - 1 }

// add takes in a value.
func (s *Summary) add(x float64, word uint64) {
	s.Or |= word
	s.Last = x
	if x-x != 0 {
		return
	}
	if s.Count == 0 {
		s.Min, s.Max = x, x
	}
	s.Count++
	s.Min, s.Max = min(s.Min, x), max(s.Max, x)
	s.Mean += x/float64(s.Count) - s.Mean/float64(s.Count)
}

// join takes in a Summary of later steps.
func (s *Summary) join(o *Summary) {
	switch {
	case o.Count == 0 && o.Or == 0 && o.Last == 0:
		return
	case s.Count == 0:
		s.Min, s.Max, s.Mean = o.Min, o.Max, o.Mean
	case o.Count > 0:
		share := float64(o.Count) / float64(s.Count+o.Count)
		s.Min, s.Max = min(s.Min, o.Min), max(s.Max, o.Max)
		s.Mean += o.Mean*share - s.Mean*share
	}
	s.Count += o.Count
	s.Or |= o.Or
	s.Last = o.Last
}

// grid is a Table being made. With most columns, that is doubled in width when a step lies beyond.
type grid struct {
	Table
	elements []Element
	most     int  // columns; Width is a power of two and From a multiple of it
	fixed    bool // steps beyond are passed over
	begun    bool
}

// newGrid is for a run whose steps are not known.
func newGrid(elements []Element, most int) *grid {
	g := &grid{elements: elements, most: most}
	g.Width = 1
	g.Series = make([][]Summary, len(elements))
	return g
}

// newFixedGrid is for known steps, from to until.
func newFixedGrid(elements []Element, from, until uint64, columns int) *grid {
	g := &grid{elements: elements, fixed: true, begun: true}
	g.From = from
	g.Width = widthFor(from, until, columns)
	g.most = int((until-from)/g.Width) + 1
	g.Series = make([][]Summary, len(elements))
	g.grow(g.most)
	return g
}

// widthFor is how many steps a column stands for, at least, if all are to fit.
func widthFor(from, until uint64, columns int) uint64 {
	return (until-from)/uint64(max(columns, 1)) + 1
}

func (g *grid) grow(columns int) {
	for i := range g.Series {
		g.Series[i] = append(g.Series[i], make([]Summary, columns-g.Columns)...)
	}
	g.Lost = append(g.Lost, make([]uint64, columns-g.Columns)...)
	g.Columns = columns
}

// column makes room for a step; ok is false if it is not of a fixed grid.
func (g *grid) column(step uint64) (at int, ok bool) {
	if !g.begun {
		g.From, g.begun = step, true
	}
	if step < g.From {
		return 0, false
	}
	for !g.fixed && (step-g.From)/g.Width >= uint64(g.most) {
		g.halve()
	}
	at64 := (step - g.From) / g.Width
	if at64 >= uint64(g.most) {
		return 0, false
	}
	if int(at64) >= g.Columns {
		g.grow(int(at64) + 1)
	}
	return int(at64), true
}

// halve joins columns two by two.
func (g *grid) halve() {
	if g.Width == 1<<63 {
		g.most = math.MaxInt // a width of 2⁶³ holds every step in two columns
		return
	}
	from := g.From &^ (2*g.Width - 1) // so that columns begin at multiples of their width
	shift := int((g.From - from) / g.Width)
	columns := (g.Columns + shift + 1) / 2
	for i, s := range g.Series {
		joined := make([]Summary, columns, cap(s))
		for j := range s {
			joined[(j+shift)/2].join(&s[j])
		}
		g.Series[i] = joined
	}
	lost := make([]uint64, columns)
	for j, n := range g.Lost {
		lost[(j+shift)/2] += n
	}
	g.Lost, g.From, g.Width, g.Columns = lost, from, 2*g.Width, columns
}

// record takes in a record.
func (g *grid) record(places []place, row []uint64) {
	at, ok := g.column(row[0])
	if !ok {
		return
	}
	for i, p := range places {
		if p.word > 0 {
			w := row[p.word]
			g.Series[i][at].add(p.value(w), p.flags(w))
		}
	}
}

// lose takes in a range of steps of which records are lost.
func (g *grid) lose(from, to uint64) {
	if g.fixed && g.Columns > 0 {
		from, to = max(from, g.From), min(to, g.End(g.Columns-1))
	}
	if from > to {
		return
	}
	if !g.begun {
		g.column(from)
	}
	if _, ok := g.column(to); !ok {
		return
	}
	for at := from; ; {
		i, ok := g.column(at)
		if !ok {
			return
		}
		end := min(to, g.End(i))
		g.Lost[i] += end - at + 1
		if end == to {
			return
		}
		at = end + 1
	}
}

// summed is a copy of the steps from to until, in at most about that many columns.
func (g *grid) summed(elements []Element, from, until uint64, columns int) *Table {
	width := uint64(1) << bits.Len64(widthFor(from, until, columns)-1) // a multiple of the grid's own
	width = max(width, g.Width)
	t := &Table{Width: width, From: max(from, g.From) &^ (width - 1)}
	t.Columns = int((max(until, t.From)-t.From)/width) + 1
	t.Series, t.Lost = make([][]Summary, len(elements)), make([]uint64, t.Columns)
	each := func(put func(column, at int)) {
		for j := range g.Columns {
			if step := g.Step(j); step >= t.From && step <= until {
				put(int((step-t.From)/width), j)
			}
		}
	}
	each(func(column, at int) { t.Lost[column] += g.Lost[at] })
	for i, e := range elements {
		t.Series[i] = make([]Summary, t.Columns)
		for k, mine := range g.elements {
			if mine == e {
				each(func(column, at int) { t.Series[i][column].join(&g.Series[k][at]) })
			}
		}
	}
	return t
}

// place is where an element lies in the words of a record of one schema.
type place struct {
	word  int // 0: nowhere
	class record.Class
	typ   record.Type
}

func (p place) value(w uint64) float64 {
	switch p.typ {
	case record.Uint64:
		return float64(w)
	case record.Int64:
		return float64(int64(w))
	}
	return math.Float64frombits(w)
}

func (p place) flags(w uint64) uint64 {
	if p.typ == record.Uint64 {
		return w
	}
	return 0
}

// places finds elements in a schema. Digest fields have no place in a record.
func places(s *record.Schema, elements []Element) []place {
	list := make([]place, len(elements))
	for i, e := range elements {
		at, ok := s.Index(e.Field)
		if !ok {
			continue
		}
		f := s.Field(at)
		if f.Class == record.Digest || e.Index < 0 || e.Index >= f.Len {
			continue
		}
		list[i] = place{word: s.Offset(at) + e.Index, class: f.Class, typ: f.Type}
	}
	return list
}

// elementsOf lists what of a schema is stored, at most as many as given.
func elementsOf(s *record.Schema, most int) (list []Element) {
	for _, f := range s.Fields() {
		if f.Class == record.Digest {
			continue
		}
		for j := range f.Len {
			if len(list) == most {
				return list
			}
			list = append(list, Element{f.Name, j})
		}
	}
	return list
}

// name is what a person reads.
func (e Element) name(s *record.Schema) string {
	if i, ok := s.Index(e.Field); ok && s.Field(i).Len > 1 {
		return fmt.Sprintf("%s %d", e.Field, e.Index)
	}
	return e.Field
}
