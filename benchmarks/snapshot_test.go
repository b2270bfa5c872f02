package benchmarks

import (
	"fmt"
	"testing"

	"github.com/usp-project/usp/internal/bench"
)

// BenchmarkSnapshot compares what a snapshot costs the step loop with a copy of the state in memory, persisting it with
// write, fsync and rename of the same bytes, and loading it, verified, with reading and hashing the same file.
func BenchmarkSnapshot(b *testing.B) {
	sizes := []int{1 << 20, 64 << 20, 1 << 30}
	if testing.Short() {
		sizes = sizes[:2]
	}
	for _, size := range sizes {
		b.Run(fmt.Sprintf("size=%dMiB", size>>20), func(b *testing.B) {
			f, err := bench.CompareSnapshot(b.Context(), b.TempDir(), "", size, b.N)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op") // of all sides together, which says nothing
			b.ReportMetric(f.ToCopy, "stall-x-of-copy-time")
			b.ReportMetric(f.ToPlain, "persist-x-of-plain")
			b.ReportMetric(f.ToRead, "load-x-of-read+sha256")
		})
	}
}
