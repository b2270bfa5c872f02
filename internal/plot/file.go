package plot

import (
	"bytes"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
)

// SVG writes the figure as an SVG document without references to anything outside it. The same figure is the same bytes,
// everywhere. Errors are those of w, or say which series has its steps out of order.
func SVG(w io.Writer, f Figure) error {
	s, err := newScene(&f)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" font-family="Go, Helvetica, Arial, sans-serif">`+"\n",
		s.width/scale, s.height/scale, s.width, s.height)
	if s.title != "" {
		fmt.Fprintf(&b, "<title>%s</title>\n", escaped(s.title))
	}
	for _, sh := range s.shapes {
		opacity := ""
		if sh.opacity < 100 {
			opacity = fmt.Sprintf(` fill-opacity="0.%02d"`, sh.opacity)
		}
		fmt.Fprintf(&b, `<path shape-rendering="crispEdges" fill="#%s"%s d="`, sh.colour, opacity)
		for _, r := range sh.rects {
			fmt.Fprintf(&b, "M%d %dh%dv%dh%dz", r.x, r.y, r.w, r.h, -r.w)
		}
		b.WriteString("\"/>\n")
	}
	for _, l := range s.labels {
		anchor := [...]string{left: "", middle: ` text-anchor="middle"`, right: ` text-anchor="end"`}[l.anchor]
		fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="%d" fill="#%s"%s>%s</text>`+"\n", l.x, l.y, l.size, l.colour, anchor, escaped(l.text))
	}
	b.WriteString("</svg>\n")
	_, err = w.Write(b.Bytes())
	return err
}

// escaped makes text fit for XML; characters that XML does not have become U+FFFD.
func escaped(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}

// PNG writes the figure as a PNG of twice its width and height, for screens with small pixels. The same figure gives the
// same pixels everywhere, and with the same version of Go the same bytes. Errors are those of SVG.
func PNG(w io.Writer, f Figure) error {
	s, err := newScene(&f)
	if err != nil {
		return err
	}
	img := image.NewRGBA(image.Rect(0, 0, s.width, s.height))
	for _, sh := range s.shapes {
		ink := image.NewUniform(colour(sh.colour, sh.opacity))
		for _, r := range sh.rects {
			draw.Draw(img, image.Rect(r.x, r.y, r.x+r.w, r.y+r.h), ink, image.Point{}, draw.Over)
		}
	}
	text := newFont()
	for _, l := range s.labels {
		x := l.x
		switch width := text.width(l.size, l.text); l.anchor {
		case middle:
			x -= width / 2
		case right:
			x -= width
		}
		text.draw(img, x, l.y, l.size, colour(l.colour, 100), l.text)
	}
	return png.Encode(w, img)
}

// colour is a colour of six hexadecimal digits, with its opacity in percent.
func colour(digits string, opacity int) color.NRGBA {
	b, err := hex.DecodeString(digits)
	if err != nil {
		panic(err) // a constant of this package
	}
	return color.NRGBA{b[0], b[1], b[2], uint8(opacity * 255 / 100)}
}
