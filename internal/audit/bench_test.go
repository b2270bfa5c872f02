package audit_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
)

// benchEntry is how many bytes one record of the benchmarks has in the log; in the telemetry it has fewer.
const benchEntry = 4 + 24 + 8 + 32 + 2

// generate writes a closed run of so many records, each with so many digests and an extension of ext bytes, in files of about
// size bytes, as a recorder does.
func generate(dir string, records uint64, size int64, digests, ext int) {
	f := openFixture(vfs.Unsynced(vfs.OS()))
	f.dir, f.size, f.every = rundir.At(dir), size, 1
	var err error
	fields := []record.Field{{Name: "loss", Class: record.Metric}}
	for i := range digests {
		fields = append(fields, record.Field{Name: fmt.Sprintf("rho%d", i), Class: record.Digest})
	}
	f.schema, err = record.NewSchema("bench.v1", fields...)
	must(err)
	must(vfs.MkdirAll(f.fs, f.dir.Telemetry(), 0o755))
	must(vfs.MkdirAll(f.fs, f.dir.Snapshots(), 0o755))
	f.openLog()
	f.begin(0, nil)
	v := record.NewValues(f.schema)
	digester := record.NewDigester(f.schema)
	for step := range records {
		for i := range 1 + digests {
			v.SetFloat64(i, float64(step))
		}
		p := v.Payload(step, int64(step))
		must(f.seg.Append(record.AppendRecord(nil, 0, step, p[:f.schema.StoredWords()])))
		sums, _ := digester.Append(nil, p)
		f.entries = append(f.entries, digestlog.Entry{Kind: digestlog.KindStep, Step: step, Seq: step, Digests: sums, Ext: make([]byte, ext)})
		if len(f.entries) == 20_000 || f.seg.Size() >= size {
			f.commit()
		}
		if f.seg.Size() >= size {
			f.roll()
		}
	}
	f.seq, f.stored = records, records
	f.end(digestlog.StatusClean)
}

// segments counts the files of both kinds of a run.
func segments(b *testing.B, dir string) (n int) {
	for _, sub := range []string{rundir.At(dir).Telemetry(), rundir.At(dir).Digests()} {
		infos, err := segment.List(vfs.OS(), sub)
		must(err)
		n += len(infos)
		for _, i := range infos { // so that the first look is a look at the disk
			f, err := vfs.OS().OpenFile(i.Path, os.O_RDONLY, 0)
			must(err)
			must(vfs.DropCache(f))
			must(f.Close())
		}
	}
	return n
}

// BenchmarkIndex shows what it takes to open a run and to verify its index: the time grows with its files and not with its records. With
// USP_BENCH_RECORDS it measures a run of that many, in files of the default size, and reads the log whole as well; the run stays in
// USP_BENCH_DIR for the next time, if that is set.
func BenchmarkIndex(b *testing.B) {
	if n, err := strconv.ParseUint(os.Getenv("USP_BENCH_RECORDS"), 10, 64); err == nil {
		parent := os.Getenv("USP_BENCH_DIR")
		if parent == "" {
			parent = b.TempDir()
		}
		dir := filepath.Join(parent, runID)
		if _, err := os.Stat(dir); err != nil {
			generate(dir, n, segment.DefaultSize, 1, 0)
		}
		benchIndex(b, dir, n)
		b.Run("read-log", func(b *testing.B) {
			for range b.N {
				entries := uint64(0)
				for _, err := range digestlog.Entries(vfs.OS(), rundir.At(dir).Digests()) {
					must(err)
					entries++
				}
			}
		})
		return
	}
	for records := uint64(100_000); records <= 10_000_000; records *= 10 {
		if records == 10_000_000 && testing.Short() {
			continue
		}
		for _, by := range []struct {
			name string
			size int64
		}{{"same-number", int64(records) * benchEntry / 16}, {"same-size", 1 << 20}} {
			b.Run(fmt.Sprintf("records=%d/%s", records, by.name), func(b *testing.B) {
				dir := filepath.Join(b.TempDir(), runID)
				generate(dir, records, by.size, 1, 0)
				benchIndex(b, dir, records)
			})
		}
	}
}

func benchIndex(b *testing.B, dir string, records uint64) {
	n := segments(b, dir)
	per := func(b *testing.B) {
		b.ReportMetric(float64(n), "segments")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/segment")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(records), "ns/record")
	}
	b.Run("verify", func(b *testing.B) {
		for range b.N {
			r, err := audit.Verify(context.Background(), vfs.OS(), dir, audit.Options{Index: true})
			must(err)
			if r.Verdict != audit.OK || r.Completeness.Stored != records || r.Completeness.Digests != records {
				b.Fatalf("%v: %v %v", r.Verdict, r.Integrity.Problems, r.Completeness)
			}
		}
		per(b)
	})
	b.Run("open", func(b *testing.B) {
		for range b.N {
			p, err := recorder.LastStep(vfs.OS(), dir)
			must(err)
			if p.Step != records-1 {
				b.Fatalf("%+v", p)
			}
		}
		per(b)
	})
}

// BenchmarkVerify compares what `usp verify` does with a run of 10⁶ entries (or USP_BENCH_RECORDS) with reading the bytes of
// all its files and hashing them with SHA-256, in turn: bare entries of one digest, and some of two digests and 200 bytes of
// extension.
func BenchmarkVerify(b *testing.B) {
	records := uint64(1_000_000)
	if n, err := strconv.ParseUint(os.Getenv("USP_BENCH_RECORDS"), 10, 64); err == nil {
		records = n
	}
	for _, shape := range []struct {
		name    string
		digests int
		ext     int
	}{{"digests=1", 1, 0}, {"digests=2,ext=200", 2, 200}, {"digests=2,ext=400", 2, 400}} {
		b.Run(shape.name, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), runID)
			generate(dir, records, segment.DefaultSize, shape.digests, shape.ext)
			var verified, hashed, verifiedCPU, hashedCPU []time.Duration
			size := int64(0)
			for b.Loop() {
				begun, cpu := time.Now(), cpuTime()
				r, err := audit.Verify(context.Background(), vfs.OS(), dir, audit.Options{})
				must(err)
				verified, verifiedCPU = append(verified, time.Since(begun)), append(verifiedCPU, cpuTime()-cpu)
				if r.Verdict != audit.OK || r.Completeness.Stored != records || r.Completeness.Digests != records {
					b.Fatalf("%v: %v %v", r.Verdict, r.Integrity.Problems, r.Completeness)
				}
				begun, cpu = time.Now(), cpuTime()
				size = hashFiles(dir)
				hashed, hashedCPU = append(hashed, time.Since(begun)), append(hashedCPU, cpuTime()-cpu)
			}
			v, h := median(verified), median(hashed)
			b.ReportMetric(0, "ns/op") // of both sides together, which says nothing
			b.ReportMetric(float64(size)/float64(records), "bytes/record")
			b.ReportMetric(float64(v.Nanoseconds())/float64(records), "ns/record")
			b.ReportMetric(float64(h.Nanoseconds())/float64(records), "read+sha256-ns/record")
			b.ReportMetric(v.Seconds()/h.Seconds(), "x-of-read+sha256")
			b.ReportMetric(median(verifiedCPU).Seconds()/median(hashedCPU).Seconds(), "x-of-read+sha256-cpu")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// cpuTime is what this process has used, of which other programs on the machine take nothing.
func cpuTime() time.Duration {
	var r syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// hashFiles reads every file of a run once, and hashes it. It returns how many bytes that were.
func hashFiles(dir string) (size int64) {
	buf := make([]byte, 1<<20)
	must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		sum := sha256.New()
		n, err := io.CopyBuffer(sum, struct{ io.Reader }{f}, buf)
		size += n
		return errors.Join(err, f.Close())
	}))
	return size
}
