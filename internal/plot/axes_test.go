package plot_test

import (
	"testing"

	"github.com/usp-project/usp/internal/plot"
)

// The axes of who draws a chart of their own are those of a Figure.
func TestAxes(t *testing.T) {
	steps := plot.StepTicks(3, 2500, 5)
	if len(steps) != 5 || steps[0].Step != 500 || steps[4].Step != 2500 || steps[1].Text != "1000" {
		t.Errorf("%+v", steps)
	}
	values := plot.ValueTicks(-0.25, 1, 5)
	if len(values) != 3 || values[1].At != 0.5 || values[1].Text != "0.5" || values[2].At != 1 {
		t.Errorf("%+v", values)
	}
	if got := plot.Number(1234567); got != "1234567" {
		t.Error(got)
	}
}
