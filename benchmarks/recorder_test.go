package benchmarks

import (
	"fmt"
	"os"
	"testing"

	"github.com/usp-project/usp/internal/bench"
	"github.com/usp-project/usp/recorder"
)

// BenchmarkRecorder has a recorder's process on one core record what this process emits, and in turn writes and syncs the
// same bytes plainly.
func BenchmarkRecorder(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, interval := range []uint64{1, 100} {
		b.Run(fmt.Sprintf("digest-interval=%d", interval), func(b *testing.B) {
			c := bench.RecorderConfig{
				Dir: b.TempDir(), Command: []string{self, recorderArg}, Records: 1_000_000,
				Options: recorder.Options{DigestInterval: interval},
			}
			f, err := bench.CompareRecorder(b.Context(), c, b.N)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op") // of all sides together, which says nothing
			b.ReportMetric(f.Rate, "records/s")
			b.ReportMetric(f.ToPlain, "x-of-plain")
			b.ReportMetric(f.ToGroup, "x-of-plain-sync")
			b.ReportMetric(f.ToHash, "x-of-hashing-cpu")
			b.ReportMetric(f.CPURate, "records/cpu-s")
			b.ReportMetric(f.PlainRate, "plain-records/s")
			b.ReportMetric(f.CPU, "cpu-ns/record")
			b.ReportMetric(float64(f.MaxRSS)/(1<<20), "rss-MiB")
			b.ReportMetric(float64(f.Lost), "lost")
		})
	}
}
