// Command screenshots makes the pictures of usp serve that the README shows: it records the shipped series, opens the pages in
// Chromium and writes PNG files of few colours into the directory that it is given.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/usp-project/usp/itest/web"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: screenshots DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
}

// shot is one picture.
type shot struct {
	file, path, scheme string
	width, height      int64
}

func run(out string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "usp-screenshots-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	usp, err := web.Build(ctx, dir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "usp.toml"), []byte("[telemetry]\nweights = true\n"), 0o600); err != nil {
		return err
	}
	for _, series := range []string{"example:nile", "example:co2", "example:sunspots"} {
		cmd := exec.CommandContext(ctx, usp, "run", "-q", series)
		cmd.Dir = dir
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("usp run %s: %w\n%s", series, err, text)
		}
	}
	p, err := web.Serve(usp, dir)
	if err != nil {
		return err
	}
	defer func() {
		_, e := p.End()
		err = errors.Join(err, e)
	}()
	tab, end, err := web.Browser(ctx)
	if err != nil {
		return err
	}
	defer end()
	for _, s := range []shot{
		{"run.png", "run/latest", "light", 1000, 1180},
		{"run-dark.png", "run/latest", "dark", 1000, 1180},
		{"runs.png", "", "light", 1000, 330},
	} {
		if err := s.take(tab, p.URL, out); err != nil {
			return fmt.Errorf("%s: %w", s.file, err)
		}
	}
	return nil
}

func (s *shot) take(tab context.Context, url, out string) error {
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s.scheme}}}
	if _, err := chromedp.Call(tab, emulation.SetEmulatedMedia, media); err != nil {
		return err
	}
	if err := chromedp.Do(tab, chromedp.EmulateViewport(s.width, s.height), chromedp.Navigate(url+s.path), chromedp.WaitVisible(chromedp.CSS("h1"))); err != nil {
		return err
	}
	b, err := chromedp.Run(tab, chromedp.CaptureScreenshot())
	if err != nil {
		return err
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		return err
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, fewColours(img)); err != nil {
		return err
	}
	fmt.Printf("%s: %d bytes\n", s.file, small.Len())
	return os.WriteFile(filepath.Join(out, s.file), small.Bytes(), 0o644)
}

// fewColours keeps the colours that are most frequent and takes for each other the one next to it. A page has few; the rest are
// edges of letters and lines.
func fewColours(img image.Image) image.Image {
	const most = 128
	count := map[color.RGBA]int{}
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(img.At(x, y)).(color.RGBA) }
	r := img.Bounds()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			count[at(x, y)]++
		}
	}
	var all []color.RGBA
	for c := range count {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b color.RGBA) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a.R, b.R), cmp.Compare(a.G, b.G), cmp.Compare(a.B, b.B))
	})
	var colours color.Palette
	for _, c := range all[:min(most, len(all))] {
		colours = append(colours, c)
	}
	few := image.NewPaletted(r, colours)
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			few.Set(x, y, at(x, y))
		}
	}
	return few
}
