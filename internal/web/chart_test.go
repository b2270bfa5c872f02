package web

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the charts under testdata anew")

// crowded has all that a chart can have.
func crowded() *chart {
	t := &Table{From: 100, Width: 10, Columns: 12, Lost: make([]uint64, 12)}
	t.Lost[5], t.Lost[6] = 10, 4
	up, level := make([]Summary, 12), make([]Summary, 12)
	for i := range up {
		x := float64(i * i)
		up[i] = Summary{Count: 10, Min: x - 3, Max: x + 5, Mean: x, Last: x + 1}
		level[i] = Summary{Count: 10, Min: 60, Max: 60, Mean: 60, Last: 60}
	}
	up[5] = Summary{}
	up[9] = Summary{Last: math.NaN()}
	return &chart{
		ID: "chart-x", Title: `A <title> & "more"`, From: 100, Until: 219, Table: t,
		Lines: []line{{Name: "threshold", Class: "threshold", Values: level}, {Name: "up", Class: "c1", Values: up}}, Marks: []mark{{184, "alarm+"}},
	}
}

func strips() *chart {
	c := crowded()
	c.Lines, c.Marks = nil, nil
	c.Strips = []strip{{"warm-up", append([]bool{true, true}, make([]bool, 10)...)}, {"alarm+", append(make([]bool, 11), true)}}
	return c
}

func stacked() *chart {
	c := crowded()
	c.Lines, c.Marks, c.Stacked, c.Small = nil, nil, true, true
	for i, class := range []string{"c0", "c7"} {
		values := make([]Summary, 12)
		for j := range values {
			w := float64(j+1) / 14
			values[j] = Summary{Count: 1, Mean: []float64{w, 1 - w}[i], Last: w}
		}
		c.Lines = append(c.Lines, line{Name: class, Class: class, Values: values})
	}
	return c
}

func TestSVG(t *testing.T) {
	for name, c := range map[string]*chart{"crowded": crowded(), "strips": strips(), "stacked": stacked()} {
		got := strings.ReplaceAll(string(c.SVG()), "><", ">\n<") + "\n"
		file := filepath.Join("testdata", name+".svg")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s has changed; look at it, and use -update:\n%s", name, cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")))
		}
	}
	// what the golden files cannot say: that they are right
	c := crowded()
	svg := string(c.SVG())
	for _, want := range []string{
		`<title id="chart-x-title">A &lt;title&gt; &amp; &#34;more&#34;</title>`,
		"up: least -3, greatest 126, mean 40, last 122", "Alarms: alarm+ at step 184", "Records lost in: steps 150 to 169",
	} {
		contains(t, svg, want)
	}
	if n := strings.Count(svg, `class="band c1"`); n != 3 {
		t.Errorf("%d bands, want 3: before the loss, up to what is no number, and behind it", n)
	}
	if rows := c.Rows(); len(rows) != 12 || rows[1].Steps != "110 to 119" || rows[1].Cells[1] != "1 (-2 to 6)" || rows[5].Cells[1] != "–" {
		t.Errorf("%+v", rows)
	}
	if rows := strips().Rows(); rows[0].Cells[0] != "set" || rows[2].Cells[0] != "–" || rows[11].Cells[1] != "set" {
		t.Errorf("%+v", rows)
	}
}

// Whatever the values are, a chart is XML whose coordinates lie within it.
func TestSVGHostile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "columns")
		width := rapid.SampledFrom([]uint64{1, 2, 1 << 40}).Draw(t, "width")
		from := rapid.SampledFrom([]uint64{0, 1, 1 << 62}).Draw(t, "from")
		table := &Table{From: from, Width: width, Columns: n, Lost: make([]uint64, n)}
		value := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, 1, math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64}))
		c := &chart{ID: "c", Title: rapid.StringMatching("[ -~é…]*").Draw(t, "title"), From: from, Until: table.End(n - 1), Table: table, Stacked: rapid.Bool().Draw(t, "stacked")}
		for range rapid.IntRange(0, 3).Draw(t, "lines") {
			l := line{Name: "l", Class: "c0", Values: make([]Summary, n)}
			for i := range l.Values {
				for range rapid.IntRange(0, 2).Draw(t, "values") {
					l.Values[i].add(value.Draw(t, "x"), 0)
				}
				table.Lost[i] = rapid.Uint64Range(0, 1).Draw(t, "lost")
			}
			c.Lines = append(c.Lines, l)
		}
		svg := string(c.SVG())
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
		}
		if strings.Contains(svg, "NaN") && !strings.Contains(c.Describe(), "NaN") || strings.Contains(svg, "Inf") && !strings.Contains(c.Describe()+c.Title, "Inf") {
			t.Fatalf("no number: %s", svg)
		}
	})
}

func TestText(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1\u202f000", 12345678: "12\u202f345\u202f678", math.MaxUint64: "18\u202f446\u202f744\u202f073\u202f709\u202f551\u202f615"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	for x, want := range map[float64]string{0: "0", 1.0 / 3: "0.3333", 123456: "123456", math.Inf(-1): "-Inf", 1e300: "1e+300"} {
		if got := short(x); got != want {
			t.Errorf("%v: %s", x, got)
		}
	}
}
