package plot_test

import (
	"fmt"
	"os"
	"strings"

	"github.com/usp-project/usp/internal/plot"
)

func ExampleSVG() {
	f := plot.Figure{
		Title:     "bits of agreement",
		Series:    []plot.Series{{Name: "rho", Points: []plot.Point{{Step: 0, Y: 53}, {Step: 10, Y: 53}, {Step: 20, Y: 30, Min: 28, Max: 30}, {Step: 30, Y: 29}}}},
		Verticals: []plot.Mark{{At: 20, Label: "first divergent step 20"}},
		YMax:      53,
	}
	var b strings.Builder
	if err := plot.SVG(&b, f); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	first, _, _ := strings.Cut(b.String(), "\n")
	fmt.Println(first)
	fmt.Println(strings.Count(b.String(), "<text"), "labels")
	// Output:
	// <svg xmlns="http://www.w3.org/2000/svg" width="800" height="450" viewBox="0 0 1600 900" role="img" font-family="Go, Helvetica, Arial, sans-serif">
	// 16 labels
}
