package plot

import "fmt"

// StackColours is how many series of a stacked figure have a colour of their own. Those beyond use them again, paler.
const StackColours = 8

// stackPalette are the colours of Okabe and Ito, which lie beside each other without a line between, and grey in place of
// black, which would weigh more than any of them.
var stackPalette = [StackColours]string{"0072b2", "e69f00", "009e73", "cc79a7", "56b4e9", "d55e00", "f0e442", "999999"}

// stackColour is that of a series, with its opacity in percent.
func stackColour(i int) (colour string, opacity int) {
	if i < StackColours {
		return stackPalette[i], 100
	}
	return stackPalette[i%StackColours], 45
}

// checkStack wants the series of a stacked figure to have the same steps.
func checkStack(f *Figure) error {
	for _, s := range f.Series {
		first := f.Series[0]
		if len(s.Points) != len(first.Points) {
			return fmt.Errorf("plot: stacked series %q has %d steps, %q has %d", s.Name, len(s.Points), first.Name, len(first.Points))
		}
		for i, p := range s.Points {
			if p.Step != first.Points[i].Step {
				return fmt.Errorf("plot: stacked series %q has step %d where %q has %d", s.Name, p.Step, first.Name, first.Points[i].Step)
			}
		}
	}
	return nil
}

// heights returns the values of all series at one point, those below zero as zero, and their sum. Where one is not finite, or
// the sum is not, there is a gap.
func (f *Figure) heights(at int, into []float64) (sum float64, ok bool) {
	for i, s := range f.Series {
		if !finite(s.Points[at].Y) {
			return 0, false
		}
		into[i] = max(0, s.Points[at].Y)
		sum += into[i]
	}
	return sum, finite(sum)
}

// stack draws the series as areas on each other. Each column of a CSS pixel shows the mean of the points in it.
func (l *layout) stack() {
	if len(l.f.Series) == 0 {
		return
	}
	points := l.f.Series[0].Points
	areas := make([][]rect, len(l.f.Series))
	means, heights := make([]float64, len(areas)), make([]float64, len(areas))
	for at := 0; at < len(points); {
		x := l.column(points[at].Step)
		clear(means)
		n, gap := 0, false
		for ; at < len(points) && l.column(points[at].Step) == x; at++ {
			_, ok := l.f.heights(at, heights)
			if gap = !ok; gap {
				continue
			}
			n++
			for i, h := range heights {
				means[i] += h/float64(n) - means[i]/float64(n) // a running mean cannot overflow as a sum can
			}
		}
		next := x + scale
		if at < len(points) && !gap {
			next = l.column(points[at].Step)
		}
		if n == 0 {
			continue
		}
		sum, bottom := 0.0, l.plot.y+l.plot.h
		for i, mean := range means {
			sum += mean
			top := l.y(sum)
			if top < bottom && sum > l.lo {
				areas[i] = extend(areas[i], rect{x, top, min(next, l.plot.x+l.plot.w) - x, bottom - top})
				bottom = top
			}
		}
	}
	for i, rects := range areas {
		colour, opacity := stackColour(i)
		l.fill(colour, opacity, rects...)
	}
}

// column is where the CSS pixel of a step begins.
func (l *layout) column(step uint64) int {
	return l.x(step) - (l.x(step)-l.plot.x)%scale
}
