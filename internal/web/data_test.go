package web

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

func lossSchema(t testing.TB) *record.Schema {
	t.Helper()
	s, err := record.NewSchema("test.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "pair", Class: record.Metric, Len: 2},
		record.Field{Name: "delta", Class: record.Metric, Type: record.Int64},
		record.Field{Name: "rho", Class: record.Digest, Len: 2})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func setLoss(v *record.Values, step uint64) {
	v.SetFloat64(0, float64(step))
	if step%10 == 0 {
		v.SetFloat64(0, math.NaN())
	}
	v.SetUint64(1, 1<<(step%3))
	v.SetFloat64s(2, []float64{float64(step) / 2, -float64(step)})
	v.SetInt64(3, -int64(step))
	v.SetFloat64s(4, []float64{canary, canary})
}

// reference sums up what setLoss stores, in a table's columns.
func reference(t *Table, element Element, steps []uint64) []Summary {
	all := make([]Summary, t.Columns)
	for _, step := range steps {
		if step < t.From || step > t.End(t.Columns-1) {
			continue
		}
		s := &all[(step-t.From)/t.Width]
		x := map[Element]float64{{"loss", 0}: float64(step), {"pair", 0}: float64(step) / 2, {"pair", 1}: -float64(step), {"delta", 0}: -float64(step), {"flags", 0}: float64(uint64(1) << (step % 3))}[element]
		if element.Field == "loss" && step%10 == 0 {
			x = math.NaN()
		}
		if element.Field == "flags" {
			s.Or |= 1 << (step % 3)
		}
		s.Last = x
		if math.IsNaN(x) {
			continue
		}
		if s.Count == 0 {
			s.Min, s.Max = x, x
		}
		s.Count++
		s.Min, s.Max, s.Mean = min(s.Min, x), max(s.Max, x), s.Mean+x // the sum, until below
	}
	for i := range all {
		if all[i].Count > 0 {
			all[i].Mean /= float64(all[i].Count)
		}
	}
	return all
}

func same(a, b Summary) bool {
	near := math.Abs(a.Mean-b.Mean) <= 1e-9*(1+math.Abs(b.Mean))
	return a.Count == b.Count && a.Or == b.Or && near && (a.Last == b.Last || math.IsNaN(a.Last) && math.IsNaN(b.Last)) &&
		(a.Count == 0 || a.Min == b.Min && a.Max == b.Max)
}

var lossElements = []Element{{"loss", 0}, {"flags", 0}, {"pair", 1}, {"delta", 0}, {"rho", 0}, {"none", 0}}

// A run with losses, several segments and a rewind, summed up over any range in any number of columns, is what a plain sum
// over its effective timeline gives.
func TestRange(t *testing.T) {
	mem := vfs.NewMem()
	f := newFixture(t, mem, "/runs", "20261129T000000-aaaaa", lossSchema(t), setLoss)
	var steps []uint64
	emit := func(from, until uint64) {
		f.emit(from, until)
		for s := from; s <= until; s++ {
			steps = append(steps, s)
		}
	}
	emit(1, 3000)
	f.lose(50)
	emit(3051, 5000)
	f.roll()
	emit(5001, 9000)
	f.rewind(7000)
	steps = steps[:slices.Index(steps, 7001)]
	emit(7001, 12000)

	now := created
	data := OpenSegments(mem, f.dir.Path(), func() time.Time { now = now.Add(time.Second); return now })
	extent, err := data.Extent(t.Context())
	if err != nil || extent.Records != uint64(len(steps)) || extent.First != 1 || extent.Last != 12000 || extent.Lost != 50 || extent.Generation != 1 || extent.Frames != f.ordinal {
		t.Fatalf("%+v, %v, want %d records", extent, err, len(steps))
	}
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Uint64Range(0, 13000).Draw(t, "from")
		until := from + rapid.Uint64Range(0, 13000).Draw(t, "length")
		columns := rapid.IntRange(1, 600).Draw(t, "columns")
		table, err := data.Range(context.Background(), lossElements, from, until, columns)
		if err != nil {
			t.Fatal(err)
		}
		if table.From > max(from, 1) || table.Columns > columns+1 || table.End(table.Columns-1) < min(until, 12000) {
			t.Fatalf("%d columns from %d, %d wide, for %d columns from %d to %d", table.Columns, table.From, table.Width, columns, from, until)
		}
		inside := slices.DeleteFunc(slices.Clone(steps), func(s uint64) bool { return s < table.From })
		for i, e := range lossElements {
			if e.Field == "rho" || e.Field == "none" {
				for _, s := range table.Series[i] {
					if s != (Summary{}) {
						t.Fatalf("%v has %+v", e, s)
					}
				}
				continue
			}
			want := reference(table, e, inside)
			for j := range want {
				if table.End(j) > until { // the last column may have steps beyond, or not
					continue
				}
				if got := table.Series[i][j]; !same(got, want[j]) {
					t.Fatalf("%v, column %d (step %d, %d wide): %+v, want %+v", e, j, table.Step(j), table.Width, got, want[j])
				}
			}
		}
		for j, n := range table.Lost {
			want := uint64(0)
			for s := table.Step(j); s <= table.End(j); s++ {
				if s >= 3001 && s <= 3050 {
					want++
				}
			}
			if n != want && table.End(j) <= until {
				t.Fatalf("column %d (steps %d to %d): %d lost, want %d", j, table.Step(j), table.End(j), n, want)
			}
		}
	})
}

// What is read while a run grows is what is read of it at once afterwards.
func TestRangeGrows(t *testing.T) {
	mem := vfs.NewMem()
	f := newFixture(t, mem, "/runs", "20261129T000000-aaaaa", lossSchema(t), setLoss)
	now := created
	clock := func() time.Time { now = now.Add(time.Second); return now }
	data := OpenSegments(mem, f.dir.Path(), clock)
	step := uint64(0)
	for i := range 60 {
		switch {
		case i%7 == 3:
			f.lose(5)
			step += 5
		case i%11 == 5:
			f.roll()
		case i == 40:
			f.rewind(step - 100)
			step -= 100
		default:
			f.emit(step+1, step+97)
			step += 97
		}
		if extent, err := data.Extent(t.Context()); err != nil || extent.Last != step && i%7 != 3 && i != 40 && i%11 != 5 {
			t.Fatalf("%+v, %v; the run is at step %d", extent, err, step)
		}
	}
	fresh := OpenSegments(mem, f.dir.Path(), clock)
	want, err := fresh.Range(t.Context(), lossElements, 1, step, 500)
	if err != nil {
		t.Fatal(err)
	}
	got, err := data.Range(t.Context(), lossElements, 1, step, 500)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v: grown and read at once differ\n%v\n%v", err, got, want)
	}
	if err := data.(interface{ Close() error }).Close(); err != nil {
		t.Error(err)
	}
	if again, err := data.Range(t.Context(), lossElements, 1, step, 500); err != nil || fmt.Sprint(again) != fmt.Sprint(want) {
		t.Errorf("after Close: %v, another answer", err)
	}
}

// Memory is bounded by the number of columns, whatever the steps are.
func TestGridHostile(t *testing.T) {
	g := newGrid([]Element{{"x", 0}}, 64)
	for _, step := range []uint64{5, 1 << 20, 1 << 40, math.MaxUint64 - 1, math.MaxUint64} {
		g.record([]place{{word: 2}}, []uint64{step, 0, math.Float64bits(1)})
	}
	g.lose(7, math.MaxUint64)
	if g.Columns > 64 || len(g.Series[0]) != g.Columns || len(g.Lost) != g.Columns {
		t.Errorf("%d columns", g.Columns)
	}
	n := uint64(0)
	for _, s := range g.Series[0] {
		n += s.Count
	}
	if n != 5 {
		t.Errorf("%d values of 5", n)
	}
	fixed := newFixedGrid([]Element{{"x", 0}}, math.MaxUint64-10, math.MaxUint64, 4)
	fixed.lose(0, math.MaxUint64)
	fixed.record([]place{{word: 2}}, []uint64{math.MaxUint64, 0, math.Float64bits(1)})
	if fixed.Columns > 4 {
		t.Errorf("%d columns", fixed.Columns)
	}
}
