// Command experts writes what every expert of the predictor forecasts for each step of a series, as JSON, so that a program
// in another language can weigh the same forecasts: examples/jax_jko.py does, and `usp compare` then says how far its
// weights agree with those of `usp run` over the same series.
//
//	usp run internal/examples/sunspots.csv --season 11
//	go run ./examples/experts -season 11 internal/examples/sunspots.csv > sunspots.json
//	python examples/jax_jko.py --experts sunspots.json
package main

import (
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strconv"

	"github.com/usp-project/usp/predictor"
)

// table is what is written. Numbers are written so that reading them gives the same bits.
type table struct {
	Experts  []string    `json:"experts"`
	Belief   []float64   `json:"belief"`   // weights before any evidence, in the order of Experts
	Value    []float64   `json:"value"`    // of the series, one for each step
	Forecast [][]float64 `json:"forecast"` // of each expert after that step, for the next
}

func main() {
	log.SetFlags(0)
	season := flag.Int("season", 0, "observations in one period (0: find one)")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: experts [-season N] FILE.csv, with a header line and the columns time,value")
	}
	file, err := os.Open(flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	t, err := forecasts(file, *season)
	if err != nil {
		log.Fatalf("%s: %v", flag.Arg(0), err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		log.Fatal(err)
	}
}

// forecasts shows the predictor the second column of a table.
func forecasts(r io.Reader, season int) (table, error) {
	p, err := predictor.New(predictor.Config{Season: season})
	if err != nil {
		return table{}, err
	}
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return table{}, err
	}
	if len(rows) < 2 {
		return table{}, fmt.Errorf("no rows below the header")
	}
	t := table{Experts: p.Experts()}
	var out predictor.Output
	step := func(value float64) error {
		// Experts look at values alone; times only have to grow.
		if err := p.Step(predictor.Observation{Time: int64(out.Step+1) * 1e9, Value: value}, &out); err != nil {
			return err
		}
		if out.Step == 1 {
			t.Belief = slices.Clone(out.Weights)
		} else {
			t.Forecast = append(t.Forecast, slices.Clone(out.PriorExperts))
		}
		return nil
	}
	for i, row := range rows[1:] {
		value, err := strconv.ParseFloat(row[1], 64)
		if err != nil {
			return table{}, fmt.Errorf("line %d: %w", i+2, err)
		}
		if err := step(value); err != nil {
			return table{}, err
		}
		// Quarantined values reach the experts later than the step they came in, which a table by steps cannot say.
		if out.Flags&(predictor.FlagOutlier|predictor.FlagShift|predictor.FlagDropped) != 0 {
			return table{}, fmt.Errorf("line %d: the predictor put the value in quarantine; such a series cannot be written as a table", i+2)
		}
		t.Value = append(t.Value, value)
	}
	// What was forecast after the last value is known from the step after it, whatever comes there.
	return t, step(t.Value[len(t.Value)-1])
}
