package usp_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
)

// A loop of your own, with your own fields: the loss is stored, the weights are only hashed. In main, before anything
// else, call usp.ServeRecorder: it lets the program be its own recorder process. (Here TestMain does.)
func Example() {
	dir, err := os.MkdirTemp("", "usp-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	schema, err := record.NewSchema("descent.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "weights", Class: record.Digest, Len: 2})
	if err != nil {
		log.Fatal(err)
	}
	options := usp.Options{Schema: schema, Recorder: recorder.Options{Runs: dir, KeyFile: dir + "/signing.key"}}
	run, err := usp.Start(context.Background(), options)
	if err != nil {
		log.Fatal(err)
	}
	values := record.NewValues(schema)
	w := []float64{3, -4}
	for step := uint64(1); step <= 1000; step++ {
		w[0], w[1] = 0.99*w[0], 0.99*w[1]
		values.SetFloat64(0, w[0]*w[0]+w[1]*w[1])
		values.SetFloat64s(1, w)
		run.Emit(step, int64(step), values) // no system call, no lock, no allocation
	}
	run.SnapshotLast(1000, usp.Section{Name: "weights", Data: fmt.Appendf(nil, "%x %x", w[0], w[1])})
	summary, err := run.Close()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(summary.Emitted, "emitted,", summary.Stored, "stored,", summary.Lost, "lost,", summary.Digests, "digests")

	// Another process, another day: continue behind the newest snapshot.
	run, state, err := usp.Resume(context.Background(), summary.RunID, options)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("continue behind step", state.Step)
	run.Emit(state.Step+1, 0, values)
	if summary, err = run.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("generation", summary.Generation, "stored", summary.Stored)
	// Output:
	// 1000 emitted, 1000 stored, 0 lost, 1000 digests
	// continue behind step 1000
	// generation 1 stored 1
}
