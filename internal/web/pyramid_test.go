package web

import (
	"math"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/pyramid"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// The largest numbers that there are, whose sums are none, are shown all the same.
func TestPyramidLargest(t *testing.T) {
	const most = math.MaxFloat64
	for _, sign := range []float64{1, -1} {
		mem := vfs.NewMem()
		f := newFixture(t, mem, "/runs", "20261129T000000-aaaaa", lossSchema(t), func(v *record.Values, step uint64) {
			setLoss(v, step)
			v.SetFloat64(0, sign*[]float64{most, most, most / 2, 1}[step%4])
		})
		f.emit(1, 4000)
		f.roll()
		if _, err := pyramid.Build(t.Context(), pyramid.BuildOptions{Dir: f.dir, FS: mem}); err != nil {
			t.Fatal(err)
		}
		data := OpenPyramid(mem, f.dir.Path(), func() time.Time { return created })
		for _, columns := range []int{4000, 100, 3} {
			x, err := data.Range(t.Context(), []Element{{Field: "loss"}}, 1, 4000, columns)
			if err != nil {
				t.Fatal(err)
			}
			all, n := Summary{}, uint64(0)
			for i := range x.Columns {
				s := x.Series[0][i]
				all.join(&s)
				n += s.Count
			}
			if n != 4000 || max(all.Max, -all.Min) != most || min(math.Abs(all.Max), math.Abs(all.Min)) != 1 || all.Mean < all.Min || all.Mean > all.Max {
				t.Errorf("in %d columns: %d values, %+v", columns, n, all)
			}
		}
	}
}

// What the pyramid gives is what the segments give, in the same columns.
func TestPyramid(t *testing.T) {
	mem := vfs.NewMem()
	f := newFixture(t, mem, "/runs", "20261129T000000-aaaaa", lossSchema(t), setLoss)
	f.emit(1, 3000)
	f.lose(50)
	f.emit(3051, 5000)
	f.roll()
	f.emit(5001, 9000)
	f.rewind(7000)
	f.emit(7001, 12000)
	if _, err := pyramid.Build(t.Context(), pyramid.BuildOptions{Dir: f.dir, FS: mem}); err != nil {
		t.Fatal(err)
	}
	now := created
	clock := func() time.Time { now = now.Add(time.Second); return now }
	quick, slow := OpenPyramid(mem, f.dir.Path(), clock), OpenSegments(mem, f.dir.Path(), clock)
	a, err := quick.Extent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := slow.Extent(t.Context())
	if err != nil || a.First != b.First || a.Last != b.Last || a.Frames != b.Frames || a.Lost != b.Lost || a.LastTime != b.LastTime || a.Generation != b.Generation {
		t.Errorf("%v\n%+v\n%+v", err, a, b)
	}
	for _, r := range [][3]uint64{{1, 400, 480}, {2990, 3060, 480}, {6900, 7100, 50}, {2901, 3150, 10}, {1, 700, 70}} {
		x, err := quick.Range(t.Context(), lossElements, r[0], r[1], int(r[2]))
		if err != nil {
			t.Fatal(err)
		}
		y, err := scan(t.Context(), mem, slow.(*segments).line, newFixedGrid(lossElements, r[0], r[1], int(r[2])))
		if err != nil || x.From != y.From || x.Width != y.Width || x.Columns != y.Columns {
			t.Fatalf("%v: %v; from %d, %d wide, %d columns; want %d, %d, %d", r, err, x.From, x.Width, x.Columns, y.From, y.Width, y.Columns)
		}
		for i, e := range lossElements {
			for j := range x.Columns {
				if x.End(j) > r[1] { // the last one may have steps beyond, or not
					continue
				}
				got, want := x.Series[i][j], y.Series[i][j]
				if e.Field == "delta" || e.Field == "flags" { // of flags, what is least is another thing there
					got.Or, want.Or, got.Min, got.Max, got.Mean, want.Min, want.Max, want.Mean = 0, 0, 0, 0, 0, 0, 0, 0
				}
				if e.Field == "flags" && x.Series[i][j].Or != y.Series[i][j].Or {
					t.Errorf("%v: flags %b, want %b", r, x.Series[i][j].Or, y.Series[i][j].Or)
				}
				if e.Field == "loss" && x.Width == 1 && want.Count == 0 {
					got.Last, want.Last = 0, 0
				}
				if !same(got, want) {
					t.Errorf("%v: %v, column %d: %+v, want %+v", r, e, j, got, want)
				}
			}
		}
		for j, n := range x.Lost {
			if (n > 0) != (y.Lost[j] > 0) {
				t.Errorf("%v: column %d, step %d: %d lost, want %d", r, j, x.Step(j), n, y.Lost[j])
			}
		}
	}
}
