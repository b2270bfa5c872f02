package cli

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/usp-project/usp/internal/plot"
	"github.com/usp-project/usp/internal/vfs"
)

// checkFigure checks the file that --plot names; empty: none.
func checkFigure(path string) error {
	if ext := filepath.Ext(path); path != "" && ext != ".svg" && ext != ".png" {
		return fmt.Errorf("--plot %s: want a name that ends in .svg or .png", path)
	}
	return nil
}

// drawFigure writes a figure into the file that --plot names, in the format that its name ends in.
func (a *app) drawFigure(path string, fig plot.Figure) error {
	draw := plot.SVG
	if filepath.Ext(path) == ".png" {
		draw = plot.PNG
	}
	var b bytes.Buffer
	if err := draw(&b, fig); err != nil {
		return fmt.Errorf("--plot %s: %w", path, err)
	}
	if err := vfs.Replace(a.fs, path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("--plot: %w", err)
	}
	return nil
}
