package plot

import (
	"cmp"
	"image"
	"image/color"
	"slices"

	xfont "golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/sfnt"
	"golang.org/x/image/math/fixed"
)

// font measures and draws text in the Go font, which is part of the program. Outlines are filled here, in whole numbers:
// golang.org/x/image/vector does it in floating point, and to other pixels where products and sums are fused.
type font struct {
	parsed *sfnt.Font
	buf    sfnt.Buffer
}

func newFont() *font {
	parsed, err := sfnt.Parse(goregular.TTF)
	if err != nil {
		panic(err) // it is part of the program
	}
	return &font{parsed: parsed}
}

// glyph returns the shape of a character, in 1/64 of a pixel, and how far the next one is. Those that the font does not
// have are its box.
func (f *font) glyph(size int, r rune) (shape sfnt.Segments, advance int) {
	index, err := f.parsed.GlyphIndex(&f.buf, r)
	if err != nil {
		index = 0
	}
	ppem := fixed.I(size)
	wide, err := f.parsed.GlyphAdvance(&f.buf, index, ppem, xfont.HintingNone)
	if err != nil {
		return nil, 0
	}
	if shape, err = f.parsed.LoadGlyph(&f.buf, index, ppem, nil); err != nil {
		shape = nil
	}
	return shape, int(wide)
}

// width is in pixels.
func (f *font) width(size int, s string) int {
	sum := 0
	for _, r := range s {
		_, advance := f.glyph(size, r)
		sum += advance
	}
	return (sum + 63) / 64
}

// fit cuts what is too wide, and says so by an ellipsis.
func (f *font) fit(size int, s string, width int) string {
	const most = 1000 // characters; more do not fit anywhere
	if r := []rune(s); len(r) <= most && f.width(size, s) <= width {
		return s
	}
	r := []rune(s)
	r = r[:min(len(r), most)]
	for len(r) > 0 && f.width(size, string(r)+"…") > width {
		r = r[:len(r)-1]
	}
	return string(r) + "…"
}

// draw writes text from x on, with its base line at y.
func (f *font) draw(img *image.RGBA, x, y, size int, ink color.NRGBA, s string) {
	at := x * 64
	for _, r := range s {
		shape, advance := f.glyph(size, r)
		fillOutline(img, edges(shape, at, y*64), ink)
		at += advance
	}
}

// edge is a piece of an outline, in 1/64 of a pixel, from its upper to its lower end.
type edge struct {
	x0, y0, x1, y1 int
	turn           int // +1 if the outline goes down here, -1 if up
}

// edges makes straight pieces of an outline.
func edges(shape sfnt.Segments, x, y int) (list []edge) {
	type point struct{ x, y int }
	move := func(p fixed.Point26_6) point { return point{int(p.X) + x, int(p.Y) + y} }
	var begin, at point
	line := func(to point) {
		switch {
		case at.y < to.y:
			list = append(list, edge{at.x, at.y, to.x, to.y, 1})
		case at.y > to.y:
			list = append(list, edge{to.x, to.y, at.x, at.y, -1})
		}
		at = to
	}
	for _, s := range shape {
		switch s.Op {
		case sfnt.SegmentOpMoveTo:
			line(begin)
			begin = move(s.Args[0])
			at = begin
		case sfnt.SegmentOpLineTo:
			line(move(s.Args[0]))
		case sfnt.SegmentOpQuadTo: // a TrueType font has no other curve
			const pieces = 8
			a, b, c := at, move(s.Args[0]), move(s.Args[1])
			for t := 1; t <= pieces; t++ {
				u := pieces - t
				line(point{(u*u*a.x + 2*u*t*b.x + t*t*c.x) / (pieces * pieces), (u*u*a.y + 2*u*t*b.y + t*t*c.y) / (pieces * pieces)})
			}
		}
	}
	line(begin)
	return list
}

// fillOutline paints what an outline winds around. Each row of pixels is looked at along eight lines; along a line the
// share of a pixel that is covered is exact to 1/64.
func fillOutline(img *image.RGBA, outline []edge, ink color.NRGBA) {
	if len(outline) == 0 {
		return
	}
	const lines, full = 8, 8 * 64
	box := image.Rect(outline[0].x0/64, outline[0].y0/64, 0, 0)
	for _, e := range outline {
		box.Min.X, box.Max.X = min(box.Min.X, min(e.x0, e.x1)>>6), max(box.Max.X, max(e.x0, e.x1)>>6+1)
		box.Min.Y, box.Max.Y = min(box.Min.Y, e.y0>>6), max(box.Max.Y, e.y1>>6+1)
	}
	box = box.Intersect(img.Rect)
	type crossing struct{ x, turn int }
	var crossings []crossing
	covered := make([]int, box.Dx())
	for row := box.Min.Y; row < box.Max.Y; row++ {
		clear(covered)
		for l := range lines {
			y := row*64 + l*64/lines + 64/lines/2
			crossings = crossings[:0]
			for _, e := range outline {
				if e.y0 <= y && y < e.y1 {
					crossings = append(crossings, crossing{e.x0 + (e.x1-e.x0)*(y-e.y0)/(e.y1-e.y0), e.turn})
				}
			}
			slices.SortFunc(crossings, func(a, b crossing) int { return cmp.Or(cmp.Compare(a.x, b.x), cmp.Compare(a.turn, b.turn)) })
			turns := 0
			for i, c := range crossings {
				if turns != 0 {
					cover(covered, crossings[i-1].x-box.Min.X*64, c.x-box.Min.X*64)
				}
				turns += c.turn
			}
		}
		for i, c := range covered {
			if c > 0 {
				blend(img.Pix[img.PixOffset(box.Min.X+i, row):], ink, c, full)
			}
		}
	}
}

// cover adds a stretch, in 1/64 of a pixel, to the pixels it lies on.
func cover(covered []int, from, to int) {
	from, to = max(from, 0), min(to, len(covered)*64)
	for x := from; x < to; {
		next := min(to, (x/64+1)*64)
		covered[x/64] += next - x
		x = next
	}
}

// blend paints over an opaque pixel with the share c/full of a colour.
func blend(pixel []uint8, ink color.NRGBA, c, full int) {
	for i, v := range [3]uint8{ink.R, ink.G, ink.B} {
		pixel[i] = uint8((int(v)*c + int(pixel[i])*(full-c) + full/2) / full)
	}
}
