package plot

import "strings"

// canvas is a grid of dots, 2 by 4 to a character in braille and 1 by 1 in
// ASCII. Row 0 is at the bottom.
type canvas struct {
	columns, height int // in characters
	rows, width     int // in dots
	ascii           bool
	dots            []bool
	marked          []bool
}

func newCanvas(columns, height int, ascii bool) *canvas {
	c := &canvas{columns: columns, height: height, width: columns * 2, rows: height * 4, ascii: ascii}
	if ascii {
		c.width, c.rows = columns, height
	}
	c.dots = make([]bool, c.width*c.rows)
	c.marked = make([]bool, c.width*c.rows)
	return c
}

// mark draws a dotted line across the canvas.
func (c *canvas) mark(row int) {
	for x := 0; x < c.width; x += 2 {
		c.marked[row*c.width+x] = true
	}
}

// draw sets in each column every dot between the least and the greatest of its
// values, and joins it to the column before.
func (c *canvas) draw(series []float64, scale func(float64) int) {
	last := -1 // dot row of the newest value drawn; -1 after a gap
	for x := range c.width {
		from, to := span(x, c.width, len(series))
		lo, hi, ok := bounds(series[from:to], nil)
		if !ok {
			last = -1
			continue
		}
		bottom, top := scale(lo), scale(hi)
		if last > top {
			top = last - 1 // the dot of the column before is there already
		} else if last >= 0 && last < bottom {
			bottom = last + 1
		}
		for row := bottom; row <= top; row++ {
			c.dots[row*c.width+x] = true
		}
		last = -1
		if v := series[to-1]; finite(v) {
			last = scale(v)
		}
	}
}

// lines returns the canvas as text, from the top.
func (c *canvas) lines() []string {
	lines := make([]string, c.height)
	for i := range lines {
		var b strings.Builder
		for x := range c.columns {
			if c.ascii {
				b.WriteByte(c.char(x, c.height-1-i))
			} else {
				b.WriteRune(c.braille(x, c.height-1-i))
			}
		}
		lines[i] = b.String()
	}
	return lines
}

func (c *canvas) char(x, row int) byte {
	switch at := row*c.width + x; {
	case c.dots[at]:
		return '*'
	case c.marked[at]:
		return '-'
	}
	return ' '
}

// braille packs 2 by 4 dots into a character of the block U+2800. The bits are
// numbered down the left column, then down the right one, with the lowest row
// added later: 0x40 and 0x80.
func (c *canvas) braille(x, row int) rune {
	bits := [2][4]rune{{0x40, 0x04, 0x02, 0x01}, {0x80, 0x20, 0x10, 0x08}} // from the bottom
	r := rune(0)
	for dx := range 2 {
		for dy := range 4 {
			if at := (row*4+dy)*c.width + x*2 + dx; c.dots[at] || c.marked[at] {
				r |= bits[dx][dy]
			}
		}
	}
	if r == 0 {
		return ' '
	}
	return 0x2800 + r
}
