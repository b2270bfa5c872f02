package tensorboard

import (
	"fmt"
	"math"
	"testing"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// BenchmarkWrite puts records of five fields into a file. The baselines are the same events made by protowire message by message, and
// no more than their bytes written.
func BenchmarkWrite(b *testing.B) {
	s, err := record.NewSchema("bench.v1",
		record.Field{Name: "cusum", Class: record.Metric}, record.Field{Name: "entropy", Class: record.Metric}, record.Field{Name: "ot_cost", Class: record.Metric},
		record.Field{Name: "loss", Class: record.Metric}, record.Field{Name: "regime", Class: record.Flag, Type: record.Uint64})
	if err != nil {
		b.Fatal(err)
	}
	const n = 1000
	batch := &sink.Batch{Schema: s}
	fill := func(first uint64) {
		batch.First, batch.Next = first, first+n
		batch.Seq, batch.Words = batch.Seq[:0], batch.Words[:0]
		for i := first; i < first+n; i++ {
			batch.Seq = append(batch.Seq, i)
			batch.Words = append(batch.Words, i, i*1e6)
			for j := range uint64(4) {
				batch.Words = append(batch.Words, math.Float64bits(float64(i+j)/7))
			}
			batch.Words = append(batch.Words, i%4)
		}
	}
	plain := func(out []byte) []byte {
		for i := range n {
			row := batch.Row(i)
			values := make([][]byte, 0, 5)
			for f := range 4 {
				values = append(values, scalar(s.Field(f).Name, "", float32(math.Float64frombits(row[2+f]))))
			}
			values = append(values, scalar("regime", "", float32(row[6])))
			out = appendSummary(out, int64(row[1]), row[0], values...)
		}
		return out
	}
	for _, name := range []string{"usp", "protowire", "bytes"} {
		b.Run(name, func(b *testing.B) {
			k := New(Options{Dir: b.TempDir()})
			if _, err := k.Begin(b.Context(), sink.Run{ID: "bench", Schema: s}, sink.Cursor{}); err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			fill(0)
			ready, out := plain(nil), []byte(nil)
			k.ctx = b.Context()
			for i := 0; b.Loop(); i++ {
				var err error
				switch name {
				case "usp":
					b.StopTimer()
					fill(uint64(i) * n)
					b.StartTimer()
					err = k.Write(b.Context(), batch)
				case "protowire":
					out = plain(out[:0])
					err = k.append(out)
				case "bytes":
					err = k.append(ready)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			if _, err := k.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(len(ready))/n, "B/record")
			if k.length == 0 {
				b.Fatal(fmt.Errorf("nothing was written"))
			}
		})
	}
}
