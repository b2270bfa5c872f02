package ot_test

import (
	"fmt"

	"github.com/usp-project/usp/ot"
)

// Three experts, of which the second was right: mass moves to it, and between the first and third only as far as
// the ground cost lets it.
func ExampleHK() {
	weights := []float64{0.5, 0.3, 0.2}
	loss := []float64{1, 0, 2}
	cost := []float64{
		0, 1, 4,
		1, 0, 1,
		4, 1, 0,
	}
	r := ot.HK(weights, weights, loss, cost, 1, 0.2, ot.NewWorkspace(3))
	fmt.Printf("%.4f, mix loss %.4f, transport cost %.4f\n", weights, r.MixLoss, r.OTCost)
	// Output: [0.3614 0.5820 0.0565], mix loss 0.6714, transport cost 0.0106
}

func ExampleSinkhorn() {
	plan := make([]float64, 4)
	r := ot.Sinkhorn(plan, []float64{0.5, 0.5}, []float64{0.5, 0.5}, []float64{0, 1, 1, 0}, 1, ot.SinkhornOptions{}, ot.NewWorkspace(2))
	fmt.Printf("%.4f costs %.4f\n", plan, r.Cost)
	// Output: [0.3655 0.1345 0.1345 0.3655] costs 0.2689
}
