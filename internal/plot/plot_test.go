package plot

import (
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// ramp rises by one each step, with a spike at one place.
func ramp(n, spike int) []float64 {
	list := make([]float64, n)
	for i := range list {
		list[i] = float64(i)
	}
	if spike >= 0 {
		list[spike] = float64(2 * n)
	}
	return list
}

func TestLine(t *testing.T) {
	nan := math.NaN()
	tests := []struct {
		name   string
		series []float64
		o      Options
		want   string
	}{
		{
			"ramp", ramp(40, -1), Options{Title: "ramp", Width: 26, Height: 3, First: "1700", Last: "2008"},
			`
ramp
39 ┤               ⣀⣀⡠⠤⠒⠒⠉
   │       ⢀⣀⠤⠤⠒⠒⠊⠉
 0 ┤⣀⡠⠤⠔⠒⠉⠉⠁
   └──────────────────────
    1700              2008
`,
		},
		{
			"the same without UTF-8", ramp(40, -1), Options{Width: 26, Height: 3, ASCII: true, First: "1700", Last: "2008"},
			`
39 +                 *****
   |      ***********
 0 +******
   +----------------------
    1700              2008
`,
		},
		{
			"one spike among many, and a threshold", ramp(5000, 2500), Options{Width: 30, Height: 4, ASCII: true, Marks: []float64{7500}},
			`
10000 +           *
      |- - - - - -*- - - - - -
      |       ****************
    0 +********
      +-----------------------
`,
		},
		{
			"steps up and down", []float64{0, 4, 4, 0, 4, 1}, Options{Width: 20, Height: 5, ASCII: true},
			`
4 +   ******   ***
  |   *     *  *  *
  |   *     *  *  *
  |   *     *  *  **
0 +***      ***
  +-----------------
`,
		},
		{
			"constant", []float64{3, 3, 3}, Options{Width: 20, Height: 3, ASCII: true},
			`
  |
3 +*****************
  |
  +-----------------
`,
		},
		{
			"gaps", []float64{1, 1, nan, math.Inf(1), 2, 2}, Options{Width: 20, Height: 2, ASCII: true, First: "only the first label fits here", Last: "x"},
			`
2 +            *****
1 +******
  +-----------------
   only the first la
`,
		},
		{"nothing", nil, Options{}, "\n(no finite value)\n"},
		{"nothing finite", []float64{nan}, Options{Title: "t", Marks: []float64{1}}, "\nt\n(no finite value)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := "\n" + Line(tt.series, tt.o)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s\n%s", diff, got)
			}
		})
	}
}

func TestSparkline(t *testing.T) {
	tests := []struct {
		series []float64
		width  int
		ascii  bool
		want   string
	}{
		{ramp(8, -1), 8, false, "▁▂▃▄▅▆▇█"},
		{ramp(8, -1), 80, true, "_.-=+*#@"},
		{ramp(800, -1), 4, false, "▁▃▆█"},
		{[]float64{1, math.NaN(), 2}, 3, true, "_ @"},
		{[]float64{5, 5}, 2, false, "▅▅"},
		{nil, 5, false, ""},
		{ramp(3, -1), 0, false, ""},
	}
	for _, tt := range tests {
		if got := Sparkline(tt.series, tt.width, tt.ascii); got != tt.want {
			t.Errorf("Sparkline(%v, %d, %v) = %q, want %q", tt.series, tt.width, tt.ascii, got, tt.want)
		}
	}
}

func TestRows(t *testing.T) {
	nan := math.NaN()
	rows := []Row{
		{"one", []float64{0, 1, 2, 3, 4, 5, 6, 7}, "a"},
		{"quarter", []float64{nan, 1, 1, 1, 1, 1, 1, nan}, ""},
		{"short", []float64{8}, "b"},
	}
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"all fit", Options{Title: "shares", Width: 40, First: "1", Last: "8"},
			"shares: 0 to 8\n  one     ▁▂▃▄▅▆▇█ a\n  quarter  ▂▂▂▂▂▂\n  short   █        b\n          1      8\n"},
		{"narrow, in ASCII", Options{Title: "shares", Width: 20, ASCII: true},
			"shares: 0 to 8\n  one   _.-=+*#@ a\n  quart  ......\n  short @        b\n"},
	} {
		if got := Rows(rows, tt.o); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
	wide := []Row{{"x", ramp(1000, -1), ""}, {"y", []float64{-1, math.Inf(1)}, "note"}}
	for _, width := range []int{20, 33, 72} {
		for line := range strings.SplitSeq(Rows(wide, Options{Width: width, First: "step 1", Last: "step 1000"}), "\n") {
			if n := utf8.RuneCountInString(line); n > width {
				t.Errorf("%d columns, want at most %d: %s", n, width, line)
			}
		}
	}
	// The mean of a column, not its greatest value: a spike of one step hardly shows.
	spike := []Row{{"x", append(make([]float64, 999), 1), ""}, {"y", slices.Repeat([]float64{.5}, 1000), ""}}
	if got, want := Rows(spike, Options{Width: 24, ASCII: true}), "  x "+strings.Repeat("_", 19)+"\n  y "+strings.Repeat("@", 19)+"\n"; got != want {
		t.Errorf("a spike is not drawn as the mean of its column:\n%s", got)
	}
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{
		0: "0", math.Copysign(0, -1): "0", 1: "1", -1.5: "-1.5", 18.19967: "18.2", 0.0012344: "0.001234", 999.96: "1000", 1000.4: "1000",
		9999999: "9999999", -1e7: "-1e+07", 0.00099: "0.00099", 1.23456e-300: "1.235e-300",
	} {
		if got := number(x); got != want || len(got) > 10 {
			t.Errorf("number(%v) = %s, want %s", x, got, want)
		}
	}
}

// TestAny wants every chart to keep to its width and its alphabet, whatever the
// values are.
func TestAny(t *testing.T) {
	values := rapid.SliceOf(rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{
		0, math.Copysign(0, -1), math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, math.NaN(), math.Inf(1), math.Inf(-1),
	})))
	rapid.Check(t, func(t *rapid.T) {
		o := Options{
			Width: rapid.IntRange(-5, 200).Draw(t, "width"), Height: rapid.IntRange(-1, 9).Draw(t, "height"),
			ASCII: rapid.Bool().Draw(t, "ascii"), Marks: values.Draw(t, "marks"),
			First: rapid.StringMatching(`[a-z]{0,40}`).Draw(t, "first"), Last: rapid.StringMatching(`[a-z]{0,40}`).Draw(t, "last"),
		}
		series := values.Draw(t, "series")
		text := Line(series, o)
		width := max(o.Width, leastWidth)
		if o.Width == 0 {
			width = defaultWidth
		}
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if utf8.RuneCountInString(line) > width || strings.TrimRight(line, " ") != line {
				t.Fatalf("%q in\n%s", line, text)
			}
		}
		if strings.ContainsFunc(text+Sparkline(series, width, true), func(r rune) bool { return o.ASCII && r > 126 }) {
			t.Fatalf("not ASCII:\n%s", text)
		}
		if got := utf8.RuneCountInString(Sparkline(series, width, o.ASCII)); got > width {
			t.Fatalf("a line of %d characters, want at most %d", got, width)
		}
	})
}

// TestNoSpikeLost wants a single value seen wherever it stands.
func TestNoSpikeLost(t *testing.T) {
	for _, at := range []int{0, 1, 777, 4998, 4999} {
		series := make([]float64, 5000)
		series[at] = 1
		top := strings.SplitN(Line(series, Options{ASCII: true}), "\n", 2)[0]
		if strings.Count(top, "*") != 1 {
			t.Errorf("spike at %d: %s", at, top)
		}
	}
}
