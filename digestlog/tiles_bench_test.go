package digestlog

import (
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// diskLog is a signed log of n entries on the real file system, and where it would be exported to.
func diskLog(b *testing.B, n int) ExportOptions {
	dir := b.TempDir()
	o := testOptions(b, vfs.OS())
	o.SegmentSize = 0
	l, err := Open(filepath.Join(dir, "digests"), o)
	must(b, err)
	for i := range n {
		mustAppend(b, l, step(i))
		if i%1000 == 999 {
			must(b, l.Sync())
		}
	}
	must(b, l.Close())
	return ExportOptions{Dir: filepath.Join(dir, "digests"), HeadPath: filepath.Join(dir, HeadName), Verifiers: o.Verifiers, To: filepath.Join(dir, "tiles")}
}

// heapMiB is what the heap takes of the machine.
func heapMiB() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapSys-m.HeapReleased) / (1 << 20)
}

// BenchmarkExportTiles and the two below are per entry, on the real file system.
func BenchmarkExportTiles(b *testing.B) {
	o := diskLog(b, b.N)
	b.ResetTimer()
	x, err := ExportTiles(o)
	must(b, err)
	b.ReportMetric(float64(x.Files), "files")
	b.ReportMetric(heapMiB(), "heap-MiB")
}

func BenchmarkVerifyTiles(b *testing.B) {
	o := diskLog(b, b.N)
	_, err := ExportTiles(o)
	must(b, err)
	b.ResetTimer()
	r, err := VerifyTiles(TilesOptions{Dir: o.To, Verifiers: o.Verifiers})
	must(b, err)
	if r.Err() != nil || r.Size != uint64(b.N) {
		b.Fatal(r.Faults)
	}
	b.ReportMetric(heapMiB(), "heap-MiB")
}

// BenchmarkProve proves the first entry, the one for which the whole log is read.
func BenchmarkProve(b *testing.B) {
	o := diskLog(b, b.N)
	h, err := ReadHead(nil, o.HeadPath, o.Verifiers)
	must(b, err)
	b.ResetTimer()
	_, err = Prove(nil, o.Dir, &h, 0)
	must(b, err)
	b.ReportMetric(heapMiB(), "heap-MiB")
}

// BenchmarkGrowth is what one leaf costs a writer that keeps a growth.
func BenchmarkGrowth(b *testing.B) {
	g := new(Growth)
	b.ReportAllocs()
	for range b.N {
		g.Append(tlog.Hash{1})
	}
}
