package cli

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/usp-project/usp/internal/plot"
	"github.com/usp-project/usp/record"
)

// weightSummary is what weight each expert had over a run.
type weightSummary struct {
	Steps   uint64    `json:"steps"`   // records whose weights are numbers
	Experts []weighed `json:"experts"` // in the order of the field
}

// weighed is one expert's weight over a run.
type weighed struct {
	Name   string  `json:"name"`
	Family string  `json:"family"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Mean   float64 `json:"mean"`
	Last   float64 `json:"last"`
}

// weightStats gathers the weights of the experts, in memory that does not grow with the run: their summary, and the sums
// over equal stretches of steps, which are merged two by two when there are too many.
type weightStats struct {
	weightSummary
	field   int    // of the records
	first   uint64 // step that the first stretch begins with
	newest  uint64
	length  uint64    // steps of a stretch, a power of two
	most    int       // stretches
	records []uint64  // in each stretch
	sums    []float64 // over each stretch, of all experts
	row     []float64 // of the newest record
}

const (
	mostStretches = 4096 // more than a figure has columns
	mostSums      = 1 << 20
)

// newWeightStats is for runs whose records have weights; else it returns nil.
func newWeightStats(schema *record.Schema, experts []expertMeta) *weightStats {
	field, ok := schema.Index(fieldWeights)
	if !ok || schema.Field(field).Class != record.Metric || schema.Field(field).Len != len(experts) {
		return nil
	}
	w := &weightStats{field: field, length: 1, most: max(2, min(mostStretches, mostSums/len(experts))), row: make([]float64, len(experts))}
	for _, e := range experts {
		w.Experts = append(w.Experts, weighed{Name: e.Name, Family: e.Family})
	}
	return w
}

func (w *weightStats) add(s *record.Schema, f *record.Frame) {
	for i := range w.row {
		if w.row[i] = f.Float64(s, w.field, i); w.row[i]-w.row[i] != 0 {
			return // no number: a file that no predictor wrote
		}
	}
	step := f.Step()
	if w.Steps == 0 {
		w.first = step
	} else if step <= w.newest {
		return // likewise
	}
	w.newest = step
	w.Steps++
	for (step-w.first)/w.length >= uint64(w.most) {
		w.halve()
	}
	at := int((step - w.first) / w.length)
	n := len(w.row)
	w.records = append(w.records, make([]uint64, max(0, at+1-len(w.records)))...)
	w.sums = append(w.sums, make([]float64, max(0, (at+1)*n-len(w.sums)))...)
	w.records[at]++
	for i, x := range w.row {
		w.sums[at*n+i] += x
		e := &w.Experts[i]
		if w.Steps == 1 {
			e.Min, e.Max = x, x
		}
		e.Min, e.Max, e.Last = min(e.Min, x), max(e.Max, x), x
		e.Mean += (x - e.Mean) / float64(w.Steps)
	}
}

// halve makes stretches of twice the length.
func (w *weightStats) halve() {
	w.length *= 2
	n, count := len(w.row), len(w.records)
	for to := range (count + 1) / 2 {
		w.records[to] = w.records[2*to]
		copy(w.sums[to*n:(to+1)*n], w.sums[2*to*n:])
		if second := 2*to + 1; second < count {
			w.records[to] += w.records[second]
			for i := range n {
				w.sums[to*n+i] += w.sums[second*n+i]
			}
		}
	}
	w.records = w.records[:(count+1)/2]
	w.sums = w.sums[:len(w.records)*n]
}

// mean is that of a stretch, of the experts named together; NaN if no record of it is there.
func (w *weightStats) mean(stretch int, experts []int) float64 {
	sum := 0.0
	for _, e := range experts {
		sum += w.sums[stretch*len(w.row)+e]
	}
	return sum / float64(w.records[stretch])
}

// byMean are the experts, the one with the greatest mean weight first.
func (w *weightStats) byMean() []int {
	order := make([]int, len(w.Experts))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(w.Experts[b].Mean, w.Experts[a].Mean) })
	return order
}

// text draws a line for each expert.
func (w *weightStats) text(width int) string {
	var rows []plot.Row
	for _, e := range w.byMean() {
		row := plot.Row{Name: w.Experts[e].Name, Note: fmt.Sprintf("%.4f", w.Experts[e].Mean)}
		for stretch := range w.records {
			row.Values = append(row.Values, w.mean(stretch, []int{e}))
		}
		rows = append(rows, row)
	}
	return plot.Rows(rows, plot.Options{
		Title: "weights of the experts, means of columns and, at the right, of all steps", Width: width,
		First: fmt.Sprintf("step %d", w.first), Last: fmt.Sprintf("step %d", w.newest),
	})
}

// figure stacks the weights over the steps. Where there are more experts than colours, those with the least weight are one.
func (w *weightStats) figure(run string) plot.Figure {
	fig := plot.Figure{Title: run + ": weights of the experts, means of columns", XLabel: "step", YMax: 1, Stacked: true}
	order := w.byMean()
	named := len(order)
	if named > plot.StackColours {
		named = plot.StackColours - 1
	}
	for _, e := range order[:named] {
		fig.Series = append(fig.Series, plot.Series{Name: w.Experts[e].Name, Points: w.points([]int{e})})
	}
	if rest := order[named:]; len(rest) > 0 {
		fig.Series = append(fig.Series, plot.Series{Name: fmt.Sprintf("%d others", len(rest)), Points: w.points(rest)})
	}
	return fig
}

// points are the means of the stretches, each at its first step, and the last one again where it ends.
func (w *weightStats) points(experts []int) (list []plot.Point) {
	for stretch := range w.records {
		y := w.mean(stretch, experts)
		if stretch > 0 && math.IsNaN(y) && math.IsNaN(list[len(list)-1].Y) {
			continue // one point for a gap of any length
		}
		list = append(list, plot.Point{Step: w.first + uint64(stretch)*w.length, Y: y})
	}
	if n := len(list); n > 0 && list[n-1].Step < w.newest {
		list = append(list, plot.Point{Step: w.newest, Y: list[n-1].Y})
	}
	return list
}
