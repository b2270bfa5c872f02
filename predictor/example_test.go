package predictor_test

import (
	"fmt"

	"github.com/usp-project/usp/predictor"
)

// A signal with a period of three: after a few periods the forecast is right.
func ExamplePredictor() {
	p, err := predictor.New(predictor.Config{Season: 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	var out predictor.Output
	for i := range 60 {
		obs := predictor.Observation{Time: int64(i) * 1e9, Value: []float64{10, 20, 60}[i%3]}
		if err := p.Step(obs, &out); err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Printf("step %d, next value about %.0f, flags %v\n", out.Step, out.Forecast, predictor.FlagNames(out.Flags))

	// Any time later, in another process or on another machine:
	state := map[string][]byte{}
	p.State(func(name string, data []byte) { state[name] = append([]byte(nil), data...) })
	q, err := predictor.Restore(predictor.Config{Season: 3}, state)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("continues at step", q.Steps()+1)
	// Output:
	// step 60, next value about 10, flags []
	// continues at step 61
}
