package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the figures under testdata anew")

// agreement is a figure as usp compare makes it: all alike up to step 5000, then one field with a band, and one with a gap.
func agreement() Figure {
	var rho, cost []Point
	for s := uint64(0); s < 10000; s += 100 {
		r, c := Point{Step: s, Y: 53}, Point{Step: s, Y: 53}
		if s >= 5000 {
			r.Y = 30 - float64((s-5000)/250)
			r.Min, r.Max = r.Y-6, r.Y
		}
		if s >= 7000 {
			c.Y = 24
		}
		if s >= 8000 && s < 8500 {
			c.Y = math.NaN()
		}
		rho, cost = append(rho, r), append(cost, c)
	}
	return Figure{
		Title: "A & B: agreement <per step>", XLabel: "step", YLabel: "bits of agreement",
		Series:    []Series{{"rho", rho}, {"ot_cost", cost}},
		Verticals: []Mark{{5000, "first divergent step 5000"}}, Horizontals: []Mark{{20, "--min-bits 20"}}, YMin: 0, YMax: 53,
	}
}

// crowded uses all colours twice, many points to a column, and more marks than there are rows for.
func crowded() Figure {
	f := Figure{Width: 640, Height: 480}
	for i := range 9 {
		s := Series{Name: fmt.Sprintf("field %d", i)}
		for step := range uint64(20000) {
			p := Point{Step: 1e6 + step*100, Y: float64(i)}
			if step == 12345 {
				p.Y += 0.7
			}
			s.Points = append(s.Points, p)
		}
		f.Series = append(f.Series, s)
	}
	for i := range 4 {
		f.Verticals = append(f.Verticals, Mark{1.2e6 + 2e5*float64(i), fmt.Sprintf("mark %d", i)})
	}
	return f
}

func figures() map[string]Figure {
	return map[string]Figure{"agreement": agreement(), "crowded": crowded(), "empty": {Title: "nothing", XLabel: "step"}, "stacked": stacked()}
}

// stacked is shares of three: a has a half for twenty steps, then all; b and c share the rest. There is a gap from step 30 on, for
// two steps.
func stacked() Figure {
	f := Figure{Title: "shares", XLabel: "step", YMax: 1, Stacked: true, Width: 320, Height: 240, Series: []Series{{Name: "a"}, {Name: "b"}, {Name: "c"}}}
	for step := range uint64(41) {
		y := []float64{.5, .3, .2}
		switch {
		case step >= 30 && step < 32:
			y[1] = math.NaN()
		case step >= 20:
			y = []float64{1, 0, 0}
		}
		for i := range f.Series {
			f.Series[i].Points = append(f.Series[i].Points, Point{Step: step, Y: y[i]})
		}
	}
	return f
}

func render(t testing.TB, draw func(io.Writer, Figure) error, f Figure) []byte {
	t.Helper()
	var b, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&b, &again} {
		if err := draw(w, f); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatal("the same figure gave other bytes the second time")
	}
	return b.Bytes()
}

// TestGolden holds the SVG to the byte and the PNG to the pixel: its compression may change with Go.
func TestGolden(t *testing.T) {
	for name, f := range figures() {
		t.Run(name, func(t *testing.T) {
			svg, bitmap := render(t, SVG, f), render(t, PNG, f)
			base := filepath.Join("testdata", name)
			if *update {
				if err := errors.Join(os.WriteFile(base+".svg", svg, 0o666), os.WriteFile(base+".png", bitmap, 0o666)); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(base + ".svg")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(svg, want) {
				t.Errorf("the SVG has changed; look at it, and use -update:\n%s", cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(svg), "\n")))
			}
			if want, err = os.ReadFile(base + ".png"); err != nil {
				t.Fatal(err)
			}
			a, b := decode(t, want), decode(t, bitmap)
			if !a.Bounds().Eq(b.Bounds()) || !slices.Equal(pixels(a), pixels(b)) {
				t.Error("the PNG has changed; look at it, and use -update")
			}
		})
	}
}

func decode(t testing.TB, b []byte) image.Image {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func pixels(img image.Image) []color.RGBA {
	var list []color.RGBA
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			list = append(list, color.RGBAModel.Convert(img.At(x, y)).(color.RGBA))
		}
	}
	return list
}

// TestInk wants the colours where the values are.
func TestInk(t *testing.T) {
	f := agreement()
	img := decode(t, render(t, PNG, f))
	if got := img.Bounds(); got != image.Rect(0, 0, 1600, 900) {
		t.Fatalf("the picture is %v", got)
	}
	l := &layout{f: &f, font: newFont()} // to ask where things are
	l.width, l.height = 1600, 900
	l.ranges()
	l.frame(valueTicks(l.lo, l.hi, 9))
	for _, tt := range []struct {
		what   string
		step   uint64
		value  float64
		colour string
	}{
		{"ot_cost over rho", 2500, 53, palette[1]},
		{"rho before ot_cost has left", 6050, 26, palette[0]},
		{"ot_cost after its step", 7550, 24, palette[1]},
		{"a gap in ot_cost", 8250, 24, ""},
		{"ot_cost after the gap", 9050, 24, palette[1]},
		{"nothing above the lines", 8000, 45, paper},
		{"nothing below them", 2500, 15, paper},
		{"the grid", 2500, 10, inkGrid},
	} {
		got := hexOf(img.At(l.x(tt.step), l.y(tt.value)))
		if tt.colour != "" && got != tt.colour || tt.colour == "" && got == palette[1] {
			t.Errorf("%s: the pixel at step %d, value %g is #%s, want #%s", tt.what, tt.step, tt.value, got, tt.colour)
		}
	}
	if band := hexOf(img.At(l.x(6050), l.y(23))); band == paper || band == palette[0] {
		t.Errorf("the band of rho is #%s", band)
	}
	marks := 0
	for y := range l.plot.h {
		if hexOf(img.At(l.x(5000), l.plot.y+y)) == inkMark {
			marks++
		}
	}
	if marks < l.plot.h/4 {
		t.Errorf("the mark at step 5000 has %d pixels of %d", marks, l.plot.h)
	}
}

func hexOf(c color.Color) string {
	r, g, b, _ := c.RGBA()
	return fmt.Sprintf("%02x%02x%02x", r>>8, g>>8, b>>8)
}

// TestText wants a letter where it is written, half covered at its edges, and nothing beside it.
func TestText(t *testing.T) {
	img := image.NewRGBA(image.Rect(0, 0, 40, 40))
	for i := range img.Pix {
		img.Pix[i] = 255
	}
	text := newFont()
	text.draw(img, 10, 30, 24, colour("000000", 100), "o")
	right := 10 + text.width(24, "o")
	black, grey := 0, 0
	for y := range 40 {
		for x := range 40 {
			switch v := img.RGBAAt(x, y); {
			case v.R == 255:
				continue
			case x < 10 || x >= right || y < 14 || y > 30:
				t.Errorf("ink at %d, %d, beside the letter", x, y)
			case v.R == 0:
				black++
			default:
				grey++
			}
		}
	}
	if black < 20 || grey < 20 || img.RGBAAt((10+right)/2, 24).R != 255 {
		t.Errorf("%d pixels black, %d grey, the middle is %v", black, grey, img.RGBAAt((10+right)/2, 24))
	}
}

// TestEachSpike wants one value among many seen, wherever it is.
func TestEachSpike(t *testing.T) {
	for _, at := range []int{0, 1, 4321, 49999} {
		s := Series{Name: "s"}
		for i := range 50000 {
			p := Point{Step: uint64(i), Y: 1}
			if i == at {
				p.Y = 0
			}
			s.Points = append(s.Points, p)
		}
		f := Figure{Series: []Series{s}}
		sc, err := newScene(&f)
		if err != nil {
			t.Fatal(err)
		}
		line := sc.shapes[len(sc.shapes)-1]
		tall := 0
		for _, r := range line.rects {
			if r.h > 400 {
				tall++
			}
		}
		if tall == 0 || tall > 2 {
			t.Errorf("a spike at %d gives %d tall lines, want one or two", at, tall)
		}
	}
}

// TestGapInColumn wants a gap kept that begins in the column of a value: what comes behind is not joined to it.
func TestGapInColumn(t *testing.T) {
	f := Figure{Series: []Series{{"s", []Point{{Step: 0, Y: 1}, {Step: 1, Y: math.NaN()}, {Step: 1 << 20, Y: 0}}}}}
	sc, err := newScene(&f)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range sc.shapes[len(sc.shapes)-1].rects {
		if r.h > 10 || r.w > 10 {
			t.Errorf("%+v joins what a gap parts", r)
		}
	}
	f.Stacked = true
	if sc, err = newScene(&f); err != nil {
		t.Fatal(err)
	}
	areas := 0
	for _, sh := range sc.shapes {
		for _, r := range sh.rects {
			if sh.colour == stackPalette[0] && r.h > 40 { // not the legend
				areas++
				if r.w > 10 {
					t.Errorf("%+v joins what a gap parts", r)
				}
			}
		}
	}
	if areas != 1 {
		t.Errorf("%d areas, want one before the gap", areas)
	}
}

func TestTicks(t *testing.T) {
	text := func(list []tick) (all []string) {
		for _, x := range list {
			all = append(all, x.text)
		}
		return all
	}
	for _, tt := range []struct {
		from, to uint64
		n        int
		want     string
	}{
		{0, 9999, 10, "0 1k 2k 3k 4k 5k 6k 7k 8k 9k"}, {0, 1e6, 4, "0 500k 1000k"}, {17, 23, 3, "18 20 22"}, {5, 5, 3, "5"}, {1, 2, 1, "1 2"},
		{999, 2000, 2, "1000 1500 2000"}, {math.MaxUint64 - 3, math.MaxUint64, 3, "18446744073709551612 18446744073709551613 18446744073709551614 18446744073709551615"},
		{0, math.MaxUint64, 2, "0 10E"}, {0, 100, 0, "0 100"},
	} {
		if got := strings.Join(text(stepTicks(tt.from, tt.to, tt.n)), " "); got != tt.want {
			t.Errorf("stepTicks(%d, %d, %d) = %s, want %s", tt.from, tt.to, tt.n, got, tt.want)
		}
	}
	for _, tt := range []struct {
		lo, hi float64
		n      int
		want   string
	}{
		{0, 53, 6, "0 10 20 30 40 50"}, {-1, 1, 4, "-1 -0.5 0 0.5 1"}, {0.1, 0.35, 5, "0.1 0.15 0.2 0.25 0.3 0.35"}, {0, 3e-9, 3, "0 1e-09 2e-09 3e-09"},
		{-2e307, 2e307, 4, "-2e+307 -1e+307 0 1e+307 2e+307"}, {0, 5e-324, 1, "0 5e-324"}, {1e7, 3e7, 2, "1e+07 2e+07 3e+07"},
	} {
		if got := strings.Join(text(valueTicks(tt.lo, tt.hi, tt.n)), " "); got != tt.want {
			t.Errorf("valueTicks(%g, %g, %d) = %s, want %s", tt.lo, tt.hi, tt.n, got, tt.want)
		}
	}
}

// TestStackInk wants each share where it is in the stack, and nothing in a gap.
func TestStackInk(t *testing.T) {
	f := stacked()
	img := decode(t, render(t, PNG, f))
	l := &layout{f: &f, font: newFont()}
	l.width, l.height = 640, 480
	l.ranges()
	l.frame(valueTicks(l.lo, l.hi, 4))
	for _, tt := range []struct {
		step   uint64
		value  float64
		colour string
	}{
		{10, .05, stackPalette[0]}, {10, .47, stackPalette[0]}, {10, .53, stackPalette[1]}, {10, .77, stackPalette[1]}, {10, .83, stackPalette[2]}, {10, .97, stackPalette[2]},
		{25, .05, stackPalette[0]}, {25, .97, stackPalette[0]}, {31, .05, paper}, {31, .97, paper}, {35, .97, stackPalette[0]},
	} {
		if got := hexOf(img.At(l.x(tt.step), l.y(tt.value))); got != tt.colour {
			t.Errorf("step %d, value %g: #%s, want #%s", tt.step, tt.value, got, tt.colour)
		}
	}
}

// TestStackMeans wants the mean of all points in a column, wherever in it they are; without a range, the greatest sum is at the top.
func TestStackMeans(t *testing.T) {
	const n = 50000
	f := Figure{Stacked: true, Series: []Series{{Name: "a"}, {Name: "b"}}}
	for i := range n {
		f.Series[0].Points = append(f.Series[0].Points, Point{Step: uint64(i), Y: float64(i % 2)})
		f.Series[1].Points = append(f.Series[1].Points, Point{Step: uint64(i), Y: 1 - float64(i%2)})
	}
	sc, err := newScene(&f)
	if err != nil {
		t.Fatal(err)
	}
	var areas [2]int
	for _, sh := range sc.shapes {
		for i := range areas {
			if sh.colour == stackPalette[i] {
				for _, r := range sh.rects {
					if r.h > 40 { // not the legend
						areas[i] += r.w * r.h
					}
				}
			}
		}
	}
	if ratio := float64(areas[0]) / float64(areas[0]+areas[1]); areas[0] == 0 || math.Abs(ratio-.5) > .01 {
		t.Errorf("areas %d and %d, want halves", areas[0], areas[1])
	}
}

// TestStackOthers wants the colours that come a second time to be told from the first ones.
func TestStackOthers(t *testing.T) {
	seen := map[string]bool{}
	for i := range 2 * StackColours {
		colour, opacity := stackColour(i)
		key := fmt.Sprint(colour, opacity)
		if seen[key] {
			t.Errorf("series %d has the colour of another: %s", i, key)
		}
		seen[key] = true
	}
}

func TestErrors(t *testing.T) {
	unlike := Figure{Stacked: true, Series: []Series{{"s", []Point{{Step: 2}, {Step: 3}}}, {"r", []Point{{Step: 2}, {Step: 4}}}}}
	if err := SVG(io.Discard, unlike); err == nil || !strings.Contains(err.Error(), `stacked series "r" has step 4 where "s" has 3`) {
		t.Errorf("stacked series of other steps: %v", err)
	}
	unlike.Series[1].Points = unlike.Series[1].Points[:1]
	if err := PNG(io.Discard, unlike); err == nil || !strings.Contains(err.Error(), `stacked series "r" has 1 steps, "s" has 2`) {
		t.Errorf("stacked series of other lengths: %v", err)
	}
	f := Figure{Series: []Series{{"s", []Point{{Step: 2}, {Step: 2}}}}}
	for _, draw := range []func(io.Writer, Figure) error{SVG, PNG} {
		var b bytes.Buffer
		if err := draw(&b, f); err == nil || b.Len() > 0 || !strings.Contains(err.Error(), `series "s": step 2 comes after step 2`) {
			t.Errorf("%v, with %d bytes", err, b.Len())
		}
		if err := draw(full{}, Figure{}); !errors.Is(err, errFull) {
			t.Errorf("a disk that is full: %v", err)
		}
	}
}

var errFull = errors.New("no space left")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestAnyFigure wants a well-formed file and shapes inside it, whatever is drawn.
func TestAnyFigure(t *testing.T) {
	value := rapid.OneOf(rapid.Float64(), rapid.Float64Range(0, 53), rapid.SampledFrom([]float64{
		0, math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, math.NaN(), math.Inf(1), math.Inf(-1),
	}))
	mark := rapid.Custom(func(t *rapid.T) Mark { return Mark{value.Draw(t, "at"), rapid.String().Draw(t, "label")} })
	series := rapid.Custom(func(t *rapid.T) Series {
		s := Series{Name: rapid.String().Draw(t, "name")}
		steps := rapid.SliceOfDistinct(rapid.Uint64(), rapid.ID).Draw(t, "steps")
		slices.Sort(steps)
		for _, step := range steps {
			s.Points = append(s.Points, Point{step, value.Draw(t, "y"), value.Draw(t, "min"), value.Draw(t, "max")})
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		f := Figure{
			Title: rapid.String().Draw(t, "title"), XLabel: rapid.String().Draw(t, "x"), YLabel: rapid.String().Draw(t, "y"),
			Series: rapid.SliceOfN(series, 0, 9).Draw(t, "series"), Verticals: rapid.SliceOfN(mark, 0, 4).Draw(t, "verticals"), Horizontals: rapid.SliceOfN(mark, 0, 2).Draw(t, "horizontals"),
			Stacked: rapid.Bool().Draw(t, "stacked"), YMin: value.Draw(t, "ymin"), YMax: value.Draw(t, "ymax"), Width: rapid.IntRange(-1, 900).Draw(t, "width"), Height: rapid.IntRange(-1, 500).Draw(t, "height"),
		}
		if f.Stacked { // of the steps of the first
			for i := range f.Series {
				points := slices.Clone(f.Series[0].Points)
				for j := range points {
					points[j].Y = value.Draw(t, "share")
				}
				f.Series[i].Points = points
			}
		}
		var b bytes.Buffer
		if err := SVG(&b, f); err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(&b); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		s, err := newScene(&f)
		if err != nil {
			t.Fatal(err)
		}
		corner := image.NewRGBA(image.Rect(0, 0, 200, 60)) // all text is clipped, or drawn, somewhere
		for _, l := range s.labels {
			newFont().draw(corner, l.x%300-50, l.y%100-20, l.size, colour(l.colour, 100), l.text)
		}
		for _, sh := range s.shapes {
			for _, r := range sh.rects {
				if r.w <= 0 || r.h <= 0 || r.x < -pad || r.y < -pad || r.x+r.w > s.width+pad {
					t.Fatalf("%+v in a figure of %d by %d", r, s.width, s.height)
				}
			}
		}
	})
}

func BenchmarkPNG(b *testing.B) {
	f := crowded()
	for b.Loop() {
		if err := PNG(io.Discard, f); err != nil {
			b.Fatal(err)
		}
	}
}
