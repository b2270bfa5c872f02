package audit_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

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

// unsynced is a file system for a run that is made to be measured: it may be lost.
type unsynced struct{ vfs.FS }

type unsyncedFile struct{ vfs.File }

func (u unsynced) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	return unsyncedFile{f}, err
}

func (unsynced) SyncDir(string) error { return nil }
func (unsyncedFile) Sync() error      { return nil }
func (unsyncedFile) Datasync() error  { return nil }

// generate writes a closed run of so many records, each with a digest and so many bytes of extension, in files of about size bytes, as a recorder does.
func generate(dir string, records uint64, size int64, ext int) {
	f := openFixture(unsynced{vfs.OS()})
	f.dir, f.size, f.every = rundir.At(dir), size, 1
	var err error
	f.schema, err = record.NewSchema("bench.v1", record.Field{Name: "loss", Class: record.Metric}, record.Field{Name: "rho", Class: record.Digest})
	must(err)
	must(vfs.MkdirAll(f.fs, f.dir.Telemetry(), 0o755))
	must(vfs.MkdirAll(f.fs, f.dir.Snapshots(), 0o755))
	f.openLog()
	f.begin(0, nil)
	v := record.NewValues(f.schema)
	digester := record.NewDigester(f.schema)
	for step := range records {
		v.SetFloat64(0, float64(step))
		v.SetFloat64(1, float64(step))
		p := v.Payload(step, int64(step))
		must(f.seg.Append(record.AppendRecord(nil, 0, step, p[:f.schema.StoredWords()])))
		sums, _ := digester.Append(nil, p)
		f.entries = append(f.entries, digestlog.Entry{Kind: digestlog.KindStep, Step: step, Seq: step, Digests: sums, Ext: make([]byte, ext)})
		if len(f.entries) == 50_000 || f.seg.Size() >= size {
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
			generate(dir, n, segment.DefaultSize, 0)
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
				generate(dir, records, by.size, 0)
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

// BenchmarkVerify is the whole verification of a run, and beside it what it takes to read all of its files and to hash them. Entries have 98 bytes or 300.
// USP_BENCH_RECORDS is the number of records.
func BenchmarkVerify(b *testing.B) {
	records := uint64(100_000)
	if n, err := strconv.ParseUint(os.Getenv("USP_BENCH_RECORDS"), 10, 64); err == nil {
		records = n
	}
	for _, entry := range []int{98, 300} {
		dir := filepath.Join(b.TempDir(), runID)
		generate(dir, records, segment.DefaultSize, entry-benchEntry+4)
		b.Run(fmt.Sprintf("entry=%d/hash", entry), func(b *testing.B) {
			for range b.N {
				b.SetBytes(hashFiles(dir))
			}
		})
		b.Run(fmt.Sprintf("entry=%d/verify", entry), func(b *testing.B) {
			for range b.N {
				r, err := audit.Verify(context.Background(), vfs.OS(), dir, audit.Options{})
				must(err)
				if r.Verdict != audit.OK || r.Completeness.Stored != records || r.Completeness.Digests != records {
					b.Fatalf("%v: %v %v", r.Verdict, r.Integrity.Problems, r.Completeness)
				}
			}
		})
	}
}

// hashFiles reads and hashes all files of a run, and returns how many bytes they have.
func hashFiles(dir string) (n int64) {
	buf := make([]byte, 256<<10)
	must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		h := sha256.New()
		for {
			m, err := f.Read(buf)
			h.Write(buf[:m])
			n += int64(m)
			if err != nil {
				return f.Close()
			}
		}
	}))
	return n
}
