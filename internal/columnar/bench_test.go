package columnar

import (
	"io"
	"math"
	"testing"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// benchRun is a run with five fields, of numbers that compress as measured ones do.
func benchRun(b *testing.B, records int) *sinktest.Recording {
	b.Helper()
	fields := []record.Field{}
	for _, name := range []string{"loss", "entropy", "cusum", "cost"} {
		fields = append(fields, record.Field{Name: name, Class: record.Metric})
	}
	s, err := record.NewSchema("bench", append(fields, record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64})...)
	if err != nil {
		b.Fatal(err)
	}
	run := sinktest.RecordSchema(b, s)
	x, words := 1.0, make([]uint64, s.StoredWords())
	for range records / segmentRecords {
		run.EmitWords(segmentRecords, func(step uint64) []uint64 {
			x = math.Mod(x*1.37+0.11, 3)
			words[0], words[1] = step, step*1_000_000_000
			for i, v := range []float64{x, 1 / x, x * x, math.Sqrt(x)} {
				words[2+i] = math.Float64bits(v)
			}
			words[6] = step / 1000 % 2
			return words
		})
		run.Roll()
	}
	return run
}

const segmentRecords = 250_000

// BenchmarkExport is the rate, on one core, at which a run becomes a Parquet file; reading it and doing nothing with it is
// what there is to compare it with.
func BenchmarkExport(b *testing.B) {
	const records = 4 * segmentRecords
	run := benchRun(b, records)
	columns, err := Columns(run.Schema, nil)
	if err != nil {
		b.Fatal(err)
	}
	line, err := audit.Open(vfs.OS(), run.Dir.Path())
	if err != nil {
		b.Fatal(err)
	}
	bench := func(name string, begin func() (write func(*sink.Batch) error, end func() error)) {
		b.Run(name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				write, end := begin()
				for batch, err := range sink.Read(vfs.OS(), line, sink.Selection{}) {
					if err == nil {
						err = write(batch)
					}
					if err != nil {
						b.Fatal(err)
					}
					n += batch.Records()
				}
				if err := end(); err != nil {
					b.Fatal(err)
				}
			}
			if n != records*b.N {
				b.Fatalf("%d records", n)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
		})
	}
	bench("read", func() (func(*sink.Batch) error, func() error) {
		return func(*sink.Batch) error { return nil }, func() error { return nil }
	})
	bench("parquet", func() (func(*sink.Batch) error, func() error) {
		w := NewWriter(io.Discard, run.Schema, columns, nil)
		return w.Write, w.Close
	})
}
