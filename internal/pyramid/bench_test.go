package pyramid

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

var (
	benchSteps = flag.Uint64("steps", 1_000_000, "records of the run that the benchmarks read")
	benchDir   = flag.String("bench-dir", "", "where the runs of the benchmarks are put; default a temporary directory")
)

// benchSchema has as many elements as a run of the predictor stores.
func benchSchema(t testing.TB) *record.Schema {
	fields := []record.Field{{Name: "flags", Class: record.Flag, Type: record.Uint64}, {Name: "iterations", Class: record.Metric, Type: record.Uint64}}
	for i := range 17 {
		fields = append(fields, record.Field{Name: fmt.Sprintf("metric_%c", 'a'+i), Class: record.Metric})
	}
	s, err := record.NewSchema("bench.v1", fields...)
	check(t, err)
	return s
}

// fillBatch makes the next records of a run: waves of several lengths, and a flag at every 99991st step.
func fillBatch(b *sink.Batch, n int) {
	w := b.Schema.StoredWords()
	b.First = b.Next
	b.Seq, b.Words = b.Seq[:0], b.Words[:0]
	for range n {
		step := b.Next + 1
		b.Seq = append(b.Seq, b.Next)
		b.Words = append(b.Words, step, step*1e6)
		flag := uint64(0)
		if step%99991 == 0 {
			flag = 4
		}
		b.Words = append(b.Words, flag, step%50)
		for i := range w - 4 {
			x := float64(step%uint64(1000*(i+1)))/1000 + float64(step*0x9e3779b97f4a7c15>>40)*1e-8
			b.Words = append(b.Words, math.Float64bits(x))
		}
		b.Next++
	}
}

// benchRun makes the run directory of a run without records.
func benchRun(b *testing.B, s *record.Schema) rundir.Dir {
	root := cmp.Or(*benchDir, b.TempDir())
	dir := rundir.At(fmt.Sprintf("%s/20261129T001254-b%d", root, time.Now().UnixNano()%1e9))
	for _, d := range []string{dir.Telemetry(), dir.Digests()} {
		check(b, os.MkdirAll(d, 0o755))
	}
	_, err := rundir.WriteManifest(vfs.OS(), dir, rundir.Manifest{RunID: dir.ID(), Created: time.Unix(1, 0), Schema: string(s.Text()), Signer: "x"})
	check(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir.Path()) })
	return dir
}

// stored writes the segments of a run.
func stored(b *testing.B, steps uint64) (dir rundir.Dir, bytes int64) {
	s := benchSchema(b)
	dir = benchRun(b, s)
	batch := &sink.Batch{Schema: s}
	var w *segment.Writer
	seal := func() {
		sealed, err := w.Seal()
		check(b, err)
		bytes += sealed.Size
	}
	var frame []byte
	for batch.Next < steps {
		fillBatch(batch, int(min(4096, steps-batch.Next)))
		if w != nil && w.Size() > segment.DefaultSize-2<<20 {
			seal()
			w = nil
		}
		if w == nil {
			meta := record.StreamMeta{Schema: s}
			var err error
			w, err = segment.Create(dir.Telemetry(), batch.First, segment.Options{Kind: segment.KindTelemetry, RunID: dir.ID(), Meta: meta.Append(nil), Index: new(record.Summarizer)})
			check(b, err)
		}
		for i := range batch.Records() {
			frame = record.AppendRecord(frame[:0], 0, batch.Seq[i], batch.Row(i))
			check(b, w.Append(frame))
		}
		check(b, w.Flush())
	}
	seal()
	return dir, bytes
}

// synthetic makes the files of a run whose segments are empty: what lies between their aggregates cannot be read.
func synthetic(b *testing.B, steps uint64) (dir rundir.Dir, bytes int64) {
	const records = 348_160 // of a segment of 64 MiB
	s := benchSchema(b)
	dir = benchRun(b, s)
	batch := &sink.Batch{Schema: s}
	k := NewSink(vfs.OS(), dir)
	_, err := k.Begin(b.Context(), sink.Run{ID: dir.ID(), Schema: s}, sink.Cursor{})
	check(b, err)
	for batch.Next < steps {
		if batch.Segment = batch.Next - batch.Next%records; batch.Segment == batch.Next {
			check(b, os.WriteFile(dir.Telemetry()+"/"+segment.FileName(batch.Segment), nil, 0o600))
		}
		fillBatch(batch, int(min(4096, steps-batch.Next)))
		batch.End = batch.Next%records == 0 || batch.Next == steps
		check(b, k.Write(b.Context(), batch))
	}
	list, err := os.ReadDir(directory(dir))
	check(b, err)
	for _, d := range list {
		info, err := d.Info()
		check(b, err)
		bytes += info.Size()
	}
	return dir, bytes
}

// BenchmarkBuild makes the files of a run, beside no more than its records read.
func BenchmarkBuild(b *testing.B) {
	dir, bytes := stored(b, *benchSteps)
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			f := sink.Follow(vfs.OS(), dir, 0)
			for {
				_, err := f.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				check(b, err)
			}
			check(b, f.Close())
		}
		b.ReportMetric(float64(b.N)*float64(*benchSteps)/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("build", func(b *testing.B) {
		var built Built
		for b.Loop() {
			check(b, os.RemoveAll(directory(dir)))
			var err error
			built, err = Build(b.Context(), BuildOptions{Dir: dir})
			check(b, err)
		}
		b.ReportMetric(float64(b.N)*float64(*benchSteps)/b.Elapsed().Seconds(), "records/s")
		b.ReportMetric(100*float64(built.Bytes)/float64(bytes), "%size")
	})
	b.Run("add", func(b *testing.B) {
		batch := &sink.Batch{Schema: benchSchema(b)}
		fillBatch(batch, 8192)
		z := newBuilder(batch, defaultLeaf)
		for b.Loop() {
			z.next, z.stretches = 0, z.stretches[:0]
			check(b, z.add(batch))
		}
		b.ReportMetric(float64(b.N)*8192/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("range", func(b *testing.B) { ranges(b, dir, *benchSteps, 1) })
}

// BenchmarkCache opens a run of which nothing is made, makes its files in a cache, and opens it again.
func BenchmarkCache(b *testing.B) {
	dir, _ := stored(b, *benchSteps)
	open := func(b *testing.B, k *Cache) {
		for b.Loop() {
			q, err := Open(b.Context(), QueryOptions{Dir: dir, Cache: k, Partial: true, AtOnce: 1, Now: time.Now})
			check(b, err)
			_, err = q.Range(b.Context(), Field{Name: "metric_c"}, 1, *benchSteps, 480)
			check(b, errors.Join(err, q.Close()))
		}
	}
	k, err := OpenCache(CacheOptions{Dir: b.TempDir() + "/cache"})
	check(b, err)
	b.Run("open/nothing", func(b *testing.B) { open(b, k) })
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			check(b, os.RemoveAll(k.dir))
			check(b, os.Mkdir(k.dir, 0o700))
			_, err := k.Build(b.Context(), BuildOptions{Dir: dir})
			check(b, err)
		}
		b.ReportMetric(float64(b.N)*float64(*benchSteps)/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("open/made", func(b *testing.B) { open(b, k) })
}

// BenchmarkRange asks for ranges of a run of which there are only the files.
func BenchmarkRange(b *testing.B) {
	dir, _ := synthetic(b, *benchSteps)
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			q, err := Open(b.Context(), QueryOptions{Dir: dir})
			check(b, err)
			check(b, q.Close())
		}
	})
	b.Run("refresh", func(b *testing.B) {
		q, err := Open(b.Context(), QueryOptions{Dir: dir})
		check(b, err)
		for b.Loop() {
			check(b, q.Refresh(b.Context()))
		}
	})
	ranges(b, dir, *benchSteps, defaultLeaf)
}

// ranges asks for a thousand columns of all steps, and of fewer and fewer around the middle, with the borders at multiples of unit.
func ranges(b *testing.B, dir rundir.Dir, steps, unit uint64) {
	q, err := Open(b.Context(), QueryOptions{Dir: dir})
	check(b, err)
	defer q.Close()
	for n := steps; n >= 1000; n /= 4 {
		if unit > 1 && n < 150_000 {
			break // there are no records to read
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			from := (steps-n)/2/unit*unit + 1
			until := max(unit, n/unit*unit) + from - 1
			var cs []Column
			for b.Loop() {
				var err error
				cs, err = q.Range(b.Context(), Field{Name: "metric_c"}, from, until, 1000)
				check(b, err)
			}
			b.ReportMetric(float64(len(cs)), "columns")
		})
		b.Run(fmt.Sprintf("%d/all", n), func(b *testing.B) {
			from := (steps-n)/2/unit*unit + 1
			until := max(unit, n/unit*unit) + from - 1
			var all []Field
			for _, f := range q.Schema().Fields() {
				all = append(all, Field{Name: f.Name})
			}
			for b.Loop() {
				_, err := q.Ranges(b.Context(), all, from, until, 480)
				check(b, err)
			}
		})
	}
}
