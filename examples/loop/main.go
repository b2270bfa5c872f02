// Command loop records a small gradient descent: the loss of every step is stored, the weights are only hashed. Killed
// and started again with -resume, it continues behind its newest snapshot.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"log"
	"math"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/record"
)

func main() {
	usp.ServeRecorder() // first: lets this program be its own recorder process
	resume := flag.String("resume", "", "run to continue")
	flag.Parse()

	schema, err := record.NewSchema("descent.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "weights", Class: record.Digest, Len: 2})
	if err != nil {
		log.Fatal(err)
	}
	ctx, options := context.Background(), usp.Options{Schema: schema}
	weights, from := []float64{3, -4}, uint64(0)
	var run *usp.Run
	if *resume == "" {
		run, err = usp.Start(ctx, options)
	} else {
		var state *usp.State
		if run, state, err = usp.Resume(ctx, *resume, options); err == nil && state.Step > 0 {
			decode(weights, state.Section("weights"))
			from = state.Step
		}
	}
	if err != nil {
		log.Fatal(err)
	}

	values := record.NewValues(schema)
	for step := from + 1; step <= from+1000; step++ {
		loss := 0.0
		for i := range weights {
			weights[i] *= 0.99
			loss += weights[i] * weights[i]
		}
		values.SetFloat64(0, loss) // fields by position: digest fields come last
		values.SetFloat64s(1, weights)
		run.Emit(step, 0, values) // tens of nanoseconds: no system call, no lock, no allocation
		if step%250 == 0 {
			run.Snapshot(step, usp.ReasonCadence, usp.Section{Name: "weights", Data: encode(weights)})
		}
	}

	summary, err := run.Close()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d emitted, %d stored, %d lost in %s\n", summary.Emitted, summary.Stored, summary.Lost, summary.Dir)
}

func encode(xs []float64) []byte {
	var b []byte
	for _, x := range xs {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
	}
	return b
}

func decode(xs []float64, b []byte) {
	for i := range xs {
		xs[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
}
