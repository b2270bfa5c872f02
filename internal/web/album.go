package web

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
)

// album makes the charts of a run out of its elements.
type album struct {
	schema      *record.Schema
	elements    []Element
	table       *Table
	small       *Table // with fewer columns
	from, until uint64
	experts     []string
	used        map[string]bool
}

// group is fields that belong into one large chart, if a run has them.
type group struct {
	id, title string
	fields    []string
}

func groups() []group {
	return []group{
		{"cusum", "CUSUM against its threshold", []string{"threshold", "cusum_pos", "cusum_neg", "cusum_var"}},
		{"entropy", "Entropy", []string{"entropy", "law_entropy", "diffusion_entropy"}},
		{"ot-cost", "Optimal-transport cost", []string{"ot_cost"}},
	}
}

const (
	mostAreas    = 7 // of a stack, beside that of all others
	mostLines    = 8 // of a vector
	mostSmall    = 64
	mostMarks    = 200
	palette      = 8 // classes c0 to c7 of the style sheet
	firstMetrics = 3 // that are drawn large if no group is there
	weightsField = "weights"
	flagsField   = "flags"
	predictors   = "usp.predictor."
)

// charts returns the large ones and the small ones.
func (a *album) charts() (large, small []*chart) {
	a.used = map[string]bool{}
	for _, g := range groups() {
		if c := a.group(g); c != nil {
			large = append(large, c)
		}
	}
	for _, f := range a.schema.Fields() {
		switch {
		case f.Class == record.Digest || a.used[f.Name]:
		case f.Class == record.Flag:
			large = append(large, a.flags(f))
		case f.Len > 1 && f.Name == weightsField:
			large = append(large, a.weights(f))
		case f.Len == 1 && len(large) < firstMetrics && !strings.HasPrefix(a.schema.Name(), predictors):
			large = append(large, a.single(f, a.table, false))
		case len(small) < mostSmall:
			small = append(small, a.single(f, a.small, true))
		}
	}
	return large, small
}

// series is that of an element in a table.
func (a *album) series(t *Table, field string, index int) []Summary {
	if i := slices.Index(a.elements, Element{field, index}); i >= 0 {
		return t.Series[i]
	}
	return make([]Summary, t.Columns)
}

func (a *album) chart(id, title, unit string, t *Table) *chart {
	if unit != "" {
		title += ", " + unit
	}
	return &chart{ID: "chart-" + id, Title: title, Unit: unit, From: a.from, Until: a.until, Table: t}
}

func (a *album) group(g group) *chart {
	var c *chart
	for _, name := range g.fields {
		i, ok := a.schema.Index(name)
		if !ok || a.schema.Field(i).Class != record.Metric || a.schema.Field(i).Len != 1 {
			continue
		}
		if c == nil {
			c = a.chart(g.id, g.title, a.schema.Field(i).Unit, a.table)
		}
		class := fmt.Sprintf("c%d", len(c.Lines))
		if name == "threshold" {
			class = "threshold"
		}
		a.used[name] = true
		c.Lines = append(c.Lines, line{Name: name, Class: class, Values: a.series(a.table, name, 0)})
	}
	if c != nil && g.id == "cusum" {
		c.Marks = a.alarms()
	}
	return c
}

// alarms are those of a predictor's run, each at the first step that its column stands for.
func (a *album) alarms() (marks []mark) {
	i, ok := a.schema.Index(flagsField)
	if !ok || a.schema.Field(i).Class != record.Flag || !strings.HasPrefix(a.schema.Name(), predictors) {
		return nil
	}
	for j, s := range a.series(a.table, flagsField, 0) {
		if set := s.Or & (predictor.FlagAlarmUp | predictor.FlagAlarmDown | predictor.FlagAlarmVariance); set != 0 && len(marks) < mostMarks {
			marks = append(marks, mark{a.table.Step(j) + (a.table.Width-1)/2, strings.Join(predictor.FlagNames(set), ", ")})
		}
	}
	return marks
}

// flags draws where each flag of a field is set.
func (a *album) flags(f record.Field) *chart {
	c := a.chart(f.Name, "Flags: "+f.Name, "", a.table)
	if strings.HasPrefix(a.schema.Name(), predictors) && f.Name == flagsField {
		c.Title = "Regime flags"
	}
	for j := range f.Len {
		series := a.series(a.table, f.Name, j)
		all := uint64(0)
		for i := range series {
			all |= series[i].Or
		}
		for bit := range 64 {
			if all&(1<<bit) == 0 {
				continue
			}
			s := strip{Name: a.flagName(f, j, bit), Set: make([]bool, a.table.Columns)}
			for i := range series {
				s.Set[i] = series[i].Or&(1<<bit) != 0
			}
			c.Strips = append(c.Strips, s)
		}
	}
	return c
}

func (a *album) flagName(f record.Field, index, bit int) string {
	if strings.HasPrefix(a.schema.Name(), predictors) && f.Name == flagsField {
		if names := predictor.FlagNames(1 << bit); len(names) == 1 {
			return names[0]
		}
	}
	if f.Len > 1 {
		return fmt.Sprintf("%d, bit %d", index, bit)
	}
	return fmt.Sprintf("bit %d", bit)
}

// weights draws the largest weights on each other, and all others on top.
func (a *album) weights(f record.Field) *chart {
	c := a.chart(f.Name, "Weights of the experts", f.Unit, a.table)
	c.Stacked = true
	type weighed struct {
		index int
		mean  float64
		cells []Summary
	}
	var all []weighed
	for j := range f.Len {
		w := weighed{j, 0, a.series(a.table, f.Name, j)}
		for i := range w.cells {
			w.mean += w.cells[i].Mean
		}
		all = append(all, w)
	}
	slices.SortStableFunc(all, func(x, y weighed) int { return cmp.Compare(y.mean, x.mean) })
	rest := line{Name: "all others", Class: "c7"}
	for n, w := range all {
		if n < mostAreas {
			c.Lines = append(c.Lines, line{Name: a.expert(w.index), Class: fmt.Sprintf("c%d", n), Values: w.cells})
			continue
		}
		if rest.Values == nil {
			rest.Values = make([]Summary, a.table.Columns)
		}
		for i, s := range w.cells {
			r := &rest.Values[i]
			r.Count = max(r.Count, s.Count)
			r.Mean, r.Last = r.Mean+s.Mean, r.Last+s.Last
			r.Min, r.Max = r.Mean, r.Mean // those of the sum are not known
		}
	}
	if rest.Values != nil {
		c.Lines = append(c.Lines, rest)
	}
	return c
}

func (a *album) expert(i int) string {
	if i < len(a.experts) {
		return a.experts[i]
	}
	return fmt.Sprintf("expert %d", i+1)
}

// single draws a field of its own.
func (a *album) single(f record.Field, t *Table, small bool) *chart {
	c := a.chart(f.Name, f.Name, f.Unit, t)
	c.Small = small
	for j := range min(f.Len, mostLines) {
		c.Lines = append(c.Lines, line{Name: Element{f.Name, j}.name(a.schema), Class: fmt.Sprintf("c%d", j%palette), Values: a.series(t, f.Name, j)})
	}
	return c
}

// joined is a table with at most that many columns, more or less.
func (t *Table) joined(most int) *Table {
	by := max(1, (t.Columns+most-1)/most)
	if by == 1 {
		return t
	}
	j := &Table{From: t.From, Width: t.Width * uint64(by), Columns: (t.Columns + by - 1) / by, Series: make([][]Summary, len(t.Series))}
	j.Lost = make([]uint64, j.Columns)
	for i, n := range t.Lost {
		j.Lost[i/by] += n
	}
	for k, s := range t.Series {
		j.Series[k] = make([]Summary, j.Columns)
		for i := range s {
			j.Series[k][i/by].join(&s[i])
		}
	}
	return j
}
