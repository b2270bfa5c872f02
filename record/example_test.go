package record_test

import (
	"fmt"

	"github.com/usp-project/usp/record"
)

// The digest of a weight vector is the SHA-256 of its little-endian float64 bytes, so that any language can check it.
func ExampleSumFloat64s() {
	sum := record.SumFloat64s([]float64{0.25, 0.25, 0.25, 0.25})
	fmt.Printf("%x\n", sum[:8])
	// Output: 5073e61eafb5e090
}

func ExampleNewSchema() {
	s, err := record.NewSchema("loop.v1",
		record.Field{Name: "weights", Class: record.Digest, Len: 3},
		record.Field{Name: "loss", Class: record.Metric, Unit: "nats"},
	)
	if err != nil {
		panic(err)
	}
	fmt.Print(string(s.Text()))
	fmt.Println(s.Words(), "words travel,", s.StoredWords(), "are stored")
	// Output:
	// usp-schema v1
	// name loop.v1
	// field loss metric f64 1 nats
	// field weights digest f64 3 -
	// 6 words travel, 3 are stored
}
