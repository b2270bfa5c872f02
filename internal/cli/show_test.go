package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/plot"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/score"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
)

// weighted is a frame with the weights.
func weighted(s *record.Schema, step uint64, weights []float64) *record.Frame {
	v := record.NewValues(s)
	predictor.Fill(v, &predictor.Output{Weights: weights})
	return &record.Frame{Kind: record.KindRecord, Words: slices.Clone(v.Payload(step, 0)[:s.StoredWords()])}
}

// TestWeightStats holds summary, stretches and points against weights that are all kept. Steps may be missing.
func TestWeightStats(t *testing.T) {
	schema := predictor.SchemaWithWeights(3)
	rapid.Check(t, func(t *rapid.T) {
		w := newWeightStats(schema, make([]expertMeta, 3))
		w.most = rapid.IntRange(2, 9).Draw(t, "most")
		gap := rapid.SampledFrom([]uint64{1, 3, 1000, 1 << 60}).Draw(t, "gap")
		n := rapid.IntRange(1, 60).Draw(t, "n")
		step := rapid.Uint64Range(0, 1<<40).Draw(t, "first")
		first, want := step, map[uint64][][]float64{}
		var steps []uint64
		var rows [][]float64
		for i := range n {
			x := rapid.Float64Range(0, 1).Draw(t, "x")
			row := []float64{x, (1 - x) / 4, 3 * (1 - x) / 4}
			w.add(schema, weighted(schema, step, row))
			steps, rows = append(steps, step), append(rows, row)
			if next := step + 1 + rapid.Uint64Range(0, gap).Draw(t, "skip"); i+1 < n && next > step {
				step = next
			} else {
				break
			}
		}
		for i, s := range steps {
			at := (s - first) / w.length
			want[at] = append(want[at], rows[i])
		}
		if len(w.records) > w.most || len(w.sums) != 3*len(w.records) || w.Steps != uint64(len(steps)) {
			t.Fatalf("%d stretches of %d, %d sums, %d steps of %d", len(w.records), w.most, len(w.sums), w.Steps, len(steps))
		}
		if w.length > 1 && (steps[len(steps)-1]-first)/(w.length/2) < uint64(w.most) {
			t.Fatalf("stretches of %d steps are longer than need be", w.length)
		}
		for e := range 3 {
			sum := 0.0
			for at := range w.records {
				got, mean := w.mean(at, []int{e}), 0.0
				for _, row := range want[uint64(at)] {
					mean += row[e] / float64(len(want[uint64(at)]))
					sum += row[e]
				}
				if len(want[uint64(at)]) == 0 != math.IsNaN(got) || math.Abs(got-mean) > 1e-12 {
					t.Fatalf("stretch %d, expert %d: mean %g, want %g of %d", at, e, got, mean, len(want[uint64(at)]))
				}
			}
			column := func(row []float64) float64 { return row[e] }
			x := w.Experts[e]
			if least, most := slices.Min(mapped(rows, column)), slices.Max(mapped(rows, column)); x.Min != least || x.Max != most || x.Last != rows[len(rows)-1][e] || math.Abs(x.Mean-sum/float64(len(rows))) > 1e-12 {
				t.Fatalf("expert %d: %+v", e, x)
			}
		}
		fig := w.figure("run")
		if err := plot.SVG(io.Discard, fig); err != nil {
			t.Fatal(err)
		}
		points := fig.Series[0].Points
		if points[0].Step != first || points[len(points)-1].Step != step {
			t.Fatalf("the figure goes from %d to %d, want %d to %d", points[0].Step, points[len(points)-1].Step, first, step)
		}
	})
}

func mapped[A, B any](list []A, f func(A) B) (out []B) {
	for _, x := range list {
		out = append(out, f(x))
	}
	return out
}

// TestWeightStatsHostile passes over what no predictor writes, and keeps its memory whatever the schema says.
func TestWeightStatsHostile(t *testing.T) {
	schema := predictor.SchemaWithWeights(2)
	w := newWeightStats(schema, make([]expertMeta, 2))
	for _, row := range [][]float64{{math.NaN(), 1}, {.5, math.Inf(1)}} {
		w.add(schema, weighted(schema, 1, row))
	}
	if w.Steps != 0 || len(w.text(80)) == 0 {
		t.Errorf("weights that are no numbers count: %+v", w.weightSummary)
	}
	w.add(schema, weighted(schema, 9, []float64{.25, .75}))
	w.add(schema, weighted(schema, 5, []float64{1, 0}))
	w.add(schema, weighted(schema, math.MaxUint64, []float64{.75, .25}))
	w.add(schema, weighted(schema, 10, []float64{1, 0}))
	if w.Steps != 2 || w.Experts[0].Mean != .5 {
		t.Errorf("%+v", w.weightSummary)
	}
	if w := newWeightStats(predictor.SchemaWithWeights(30000), make([]expertMeta, 30000)); w.most*30000 > mostSums {
		t.Errorf("%d stretches of 30000 experts", w.most)
	}
	for _, s := range []*record.Schema{predictor.Schema(2), predictor.SchemaWithWeights(3)} {
		if newWeightStats(s, make([]expertMeta, 2)) != nil {
			t.Errorf("schema %s of other experts has weights", s.Name())
		}
	}
}

// TestWeightFigure wants as many names as there are colours, and no weight left out.
func TestWeightFigure(t *testing.T) {
	for n, want := range map[int]int{1: 1, plot.StackColours: plot.StackColours, plot.StackColours + 1: plot.StackColours, 15: plot.StackColours} {
		schema, experts, row := predictor.SchemaWithWeights(n), make([]expertMeta, n), make([]float64, n)
		for i := range experts {
			experts[i].Name = fmt.Sprintf("e%d", i)
			row[i] = float64(2*(i+1)) / float64(n*(n+1)) // the last one has most
		}
		w := newWeightStats(schema, experts)
		w.add(schema, weighted(schema, 1, row))
		w.add(schema, weighted(schema, 2, row))
		fig := w.figure("run")
		sum := 0.0
		for _, s := range fig.Series {
			sum += s.Points[0].Y
		}
		if len(fig.Series) != want || math.Abs(sum-1) > 1e-12 || fig.Series[0].Name != fmt.Sprintf("e%d", n-1) {
			t.Errorf("%d experts: %d series with a sum of %g, the first is %s", n, len(fig.Series), sum, fig.Series[0].Name)
		}
		if last := fig.Series[want-1].Name; n > want && last != fmt.Sprintf("%d others", n-want+1) {
			t.Errorf("%d experts: the last series is %q", n, last)
		}
	}
}

// TestLeaderboard ranks three experts by hand: errors 1, 3 and 2 of one, none of the second, and the naive forecast's.
func TestLeaderboard(t *testing.T) {
	experts := []expertMeta{{"bad", "A"}, {"good", "B"}, {"naive", "A"}}
	var all scores
	board := score.New(3)
	board.Add(10, &predictor.Output{Weights: []float64{1, 0, 0}})
	all.add(10, 0, 0, 0, false)
	for i, y := range []float64{12, 9, 8} {
		last := []float64{10, 12, 9}[i]
		prior := y + .5
		all.add(y, prior, y-1, y+1, true)
		board.Add(y, &predictor.Output{HasPrior: true, PriorExperts: []float64{y + []float64{1, -3, 2}[i], y, last}, Weights: []float64{0, 1, 0}})
	}
	l := newLeaderboard(experts, &all, board)
	naive := math.Sqrt((4. + 9 + 1) / 3)
	want := []ranked{
		{Rank: 1, Name: "good", Family: "B"},
		{Rank: 2, Name: "bad", Family: "A", RMSE: naive, MAE: 2, ToNaive: 1}, // 1, 9 and 4 are 4, 9 and 1
		{Rank: 3, Name: "naive", Family: "A", RMSE: naive, MAE: 2, ToNaive: 1},
	}
	near := cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-12 })
	nearly := cmp.Comparer(func(a, b undefined) bool { return math.Abs(float64(a-b)) < 1e-12 })
	if diff := cmp.Diff(want, l.Experts, near, nearly); diff != "" || l.Scored != 3 || l.RMSE != .5 || math.Abs(float64(l.ToNaive)-.5/naive) > 1e-12 {
		t.Errorf("%+v\n%s", l, diff)
	}
	l.Step = 3
	l.weigh(&weightSummary{Steps: 4, Experts: []weighed{{Name: "bad", Family: "A", Mean: .25}, {Name: "good", Family: "B", Mean: .75, Last: 1}}})
	var b strings.Builder
	l.print(&b, 4)
	if got, want := b.String(), `
experts, the best alone first: 3 forecasts, up to step 3, where the newest snapshot is
      expert         family        RMSE  to naive         MAE  mean w  last w
   1  good           B                0    0.0000           0  0.7500  1.0000
      all, weighted                 0.5    0.2315         0.5
   2  bad            A          2.16025    1.0000           2  0.2500  0.0000
   3  naive          A          2.16025    1.0000           2
`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// A naive forecast without error: no ratio, and JSON that can be read.
	b.Reset()
	all = scores{}
	for range 3 {
		all.add(1, 2, 0, 3, true)
	}
	l = newLeaderboard(experts, &all, board)
	l.print(&b, 0)
	text, err := json.Marshal(l)
	if err != nil || !strings.Contains(string(text), `"rmse_to_naive":null`) || !strings.Contains(b.String(), "all, weighted                   1         -           1\n") {
		t.Errorf("%s, %v\n%s", text, err, &b)
	}
	b.Reset()
	newLeaderboard(experts, &scores{}, score.New(3)).print(&b, 0)
	if !strings.Contains(b.String(), "not scored") || strings.Contains(b.String(), "good") {
		t.Error(b.String())
	}
}

// TestExpertNames wants the manifest's names where they fit the records, else numbers.
func TestExpertNames(t *testing.T) {
	for _, tt := range []struct{ producer, want string }{
		{`{"program":"usp run","experts":[{"name":"a","family":"A"},{"name":"b","family":"C"}]}`, "[{a A} {b C}]"},
		{`{"program":"usp run","experts":[{"name":"a","family":"A"}]}`, "[{expert 1 } {expert 2 }]"},
		{`{"program":"usp run"}`, "[{expert 1 } {expert 2 }]"},
		{`7`, "[{expert 1 } {expert 2 }]"},
	} {
		if got := fmt.Sprint(expertNames(&rundir.Manifest{Producer: json.RawMessage(tt.producer)}, predictor.Schema(2))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.producer, got, tt.want)
		}
	}
}

// TestDecodeScores gives back what a run saves, and refuses what is not that before it takes memory for it.
func TestDecodeScores(t *testing.T) {
	all, board := scores{N: 3, Sq: 12}, score.New(2)
	state, _ := board.AppendBinary(all.state())
	if got, b, err := decodeScores(state, 2); err != nil || got != all || b == nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, n := range []int{0, 1, 3, 60000} {
		if _, _, err := decodeScores(state, n); err == nil {
			t.Errorf("the scores of two experts are read as those of %d", n)
		}
	}
	if _, _, err := decodeScores(state[:20], 2); err == nil {
		t.Error("20 bytes are read as scores")
	}
}
