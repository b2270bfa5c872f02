package benchmarks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
)

const (
	logEntries = 200_000          // of a measurement of the rate
	logOffered = 10_000           // entries per second of a measurement of the time to durable
	logSeconds = 3                // how long that takes
	logExt     = 200              // bytes of Ext in each entry
	logBatches = 3                // those of the recorder: one being filled, one being written, one between
	logBytes   = 4 << 20          // that force a commit: the recorder's default
	logHead    = time.Second      // between signed heads: the recorder's default
	logAge     = time.Second / 20 // from the first entry of a commit to its write: the recorder's default
)

// logEntry returns the i-th entry: two digests and an extension, all of them different from the last.
func logEntry(e *digestlog.Entry, i int) *digestlog.Entry {
	e.Kind, e.Step, e.Seq = digestlog.KindStep, uint64(i), uint64(i)
	if e.Ext == nil {
		e.Digests, e.Ext = make([][32]byte, 2), make([]byte, logExt)
	}
	for _, b := range [][]byte{e.Digests[0][:], e.Digests[1][:], e.Ext} {
		b[0], b[1], b[2], b[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
	}
	return e
}

// aLog is something to append to, for one goroutine. It tells how many more entries, in order, have become durable: from a
// goroutine of its own, with the function it was opened with.
type aLog interface {
	add(e *digestlog.Entry) error
	close() error // when all that was added is durable
}

// logWay is how to open one that is to take so many entries per second, or as many as it can if pace is 0.
type logWay struct {
	name string
	open func(dir string, signer note.Signer, pace int, durable func(n int)) (aLog, error)
}

// groupLog is the digest log as the recorder writes it: one goroutine encodes and hashes entries into batches, another makes
// them durable batch by batch and signs the head in time.
type groupLog struct {
	log     *digestlog.Log
	encoder digestlog.Encoder
	batch   *digestlog.Encoded
	began   time.Time
	work    chan *digestlog.Encoded
	free    chan *digestlog.Encoded
	durable func(n int)
	done    chan error
}

func openGroupLog(dir string, signer note.Signer, _ int, durable func(n int)) (aLog, error) {
	l, err := digestlog.Open(filepath.Join(dir, "digests"), digestlog.Options{RunID: "benchmark", Signer: signer})
	if err != nil {
		return nil, err
	}
	g := &groupLog{log: l, durable: durable, batch: new(digestlog.Encoded), done: make(chan error, 1),
		work: make(chan *digestlog.Encoded), free: make(chan *digestlog.Encoded, logBatches)}
	for range logBatches - 1 {
		g.free <- new(digestlog.Encoded)
	}
	go func() { g.done <- g.write() }()
	return g, nil
}

func (g *groupLog) add(e *digestlog.Entry) error {
	if g.batch.Len() == 0 {
		g.began = time.Now()
	}
	if err := g.encoder.Append(g.batch, e); err != nil {
		return err
	}
	if g.batch.Size() >= logBytes || time.Since(g.began) >= logAge {
		return g.push()
	}
	return nil
}

func (g *groupLog) push() error {
	select {
	case g.work <- g.batch:
	case err := <-g.done:
		return errors.Join(errors.New("the writer has ended"), err)
	}
	g.batch = <-g.free
	return nil
}

func (g *groupLog) write() error {
	signed := time.Now()
	for x := range g.work {
		for at := 0; at < x.Len(); {
			n, err := g.log.AppendEncoded(x, at)
			if at += n; errors.Is(err, digestlog.ErrBacklog) {
				err = g.log.Sync()
			}
			if err != nil {
				return err
			}
		}
		if err := g.log.Sync(); err != nil {
			return err
		}
		g.durable(x.Len())
		x.Reset()
		g.free <- x
		if time.Since(signed) >= logHead {
			signed = time.Now()
			if _, err := g.log.SignHead(); err != nil {
				return err
			}
		}
	}
	return g.log.Close()
}

func (g *groupLog) close() error {
	if g.batch.Len() > 0 {
		if err := g.push(); err != nil {
			return err
		}
	}
	close(g.work)
	return <-g.done
}

// logResult is what one measurement gives.
type logResult struct {
	rate  float64         // entries/s from the first one added to the last one durable
	waits []time.Duration // from when an entry was due to when it was durable
	files int             // in the directory, but for those that the log says it would remove
}

// measureLog appends n entries on one core: as fast as the log takes them, or at a pace of so many per second. A log that
// cannot keep the pace makes entries wait from the time when they were due.
func measureLog(b *testing.B, w logWay, n, pace int) (r logResult) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	dir := b.TempDir()
	signer, _, err := digestlog.LoadOrCreateKey(vfs.OS(), filepath.Join(dir, "key"), nil)
	if err != nil {
		b.Fatal(err)
	}
	dir = filepath.Join(dir, "log")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	due := make([]time.Time, n)
	waits, all := make([]time.Duration, 0, n), make(chan time.Time, 1)
	l, err := w.open(dir, signer, pace, func(k int) {
		now := time.Now()
		for range k {
			waits = append(waits, now.Sub(due[len(waits)]))
		}
		if len(waits) == n {
			all <- now
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	var e digestlog.Entry
	begun := time.Now()
	for i := range n {
		due[i] = begun
		if pace > 0 {
			due[i] = begun.Add(time.Duration(i) * time.Second / time.Duration(pace))
			if d := time.Until(due[i]); d > 0 {
				time.Sleep(d)
			}
		}
		if err := l.add(logEntry(&e, i)); err != nil {
			b.Fatalf("%s: entry %d: %v", w.name, i, err)
		}
	}
	if err := l.close(); err != nil {
		b.Fatalf("%s: %v", w.name, err)
	}
	r.rate, r.waits, r.files = float64(n)/(<-all).Sub(begun).Seconds(), waits, countFiles(b, dir)
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	return r
}

// countFiles leaves out partial tiles, in directories that end in ".p": a log of tiles removes them in time.
func countFiles(b *testing.B, dir string) (n int) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasSuffix(d.Name(), ".p"):
			return fs.SkipDir
		case !d.IsDir():
			n++
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// compareLogs measures the ways in turn, in every round of the benchmark, and reports each, and the first to the second.
func compareLogs(b *testing.B, ways ...logWay) {
	rates, waits, files := make([][]float64, len(ways)), make([][]time.Duration, len(ways)), make([]int, len(ways))
	for b.Loop() {
		for i, w := range ways {
			fast := measureLog(b, w, logEntries, 0)
			rates[i], files[i] = append(rates[i], fast.rate), fast.files
			waits[i] = append(waits[i], measureLog(b, w, logOffered*logSeconds, logOffered).waits...)
		}
	}
	b.ReportMetric(0, "ns/op") // of all sides together, which says nothing
	for i, w := range ways {
		slices.Sort(rates[i])
		slices.Sort(waits[i])
		at := func(q float64) float64 { return waits[i][int(q*float64(len(waits[i])-1))].Seconds() * 1e3 }
		b.ReportMetric(rates[i][len(rates[i])/2], w.name+"-entries/s")
		b.ReportMetric(at(.5), w.name+"-p50-ms")
		b.ReportMetric(at(.99), w.name+"-p99-ms")
		b.ReportMetric(float64(files[i]), w.name+"-files")
	}
	if len(ways) == 2 {
		b.ReportMetric(rates[0][len(rates[0])/2]/rates[1][len(rates[1])/2], fmt.Sprintf("x-of-%s", ways[1].name))
		b.ReportMetric(float64(files[1])/float64(files[0]), fmt.Sprintf("times-fewer-files-than-%s", ways[1].name))
	}
}

var ourLog = logWay{"usp", openGroupLog}

// BenchmarkDigestLog measures the log on one core with the recorder's group commit: entries/s durable, time to durable at
// 10,000 entries/s, and files. One goroutine runs at a time; while one waits for fsync in the kernel, another does.
func BenchmarkDigestLog(b *testing.B) { compareLogs(b, ourLog) }
