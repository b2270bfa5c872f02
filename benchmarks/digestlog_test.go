package benchmarks

import (
	"errors"
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

// groupLog commits in groups as the recorder does: one goroutine encodes entries into batches, another makes them durable
// batch by batch.
type groupLog struct {
	encode func(x *logBatch, e *digestlog.Entry) error
	store  func(x *logBatch) error // returns when it is durable
	end    func() error

	batch      *logBatch
	began      time.Time
	work, free chan *logBatch
	done       chan error
}

// logBatch holds entries for the log, or plain bytes.
type logBatch struct {
	n       int
	entries digestlog.Encoded
	plain   []byte
}

func (g *groupLog) start(durable func(n int)) *groupLog {
	g.batch, g.done = new(logBatch), make(chan error, 1)
	g.work, g.free = make(chan *logBatch), make(chan *logBatch, logBatches)
	for range logBatches - 1 {
		g.free <- new(logBatch)
	}
	go func() {
		var err error
		for x := range g.work {
			if err = g.store(x); err != nil {
				break
			}
			durable(x.n)
			x.n, x.plain = 0, x.plain[:0]
			x.entries.Reset()
			g.free <- x
		}
		g.done <- errors.Join(err, g.end())
	}()
	return g
}

func (g *groupLog) add(e *digestlog.Entry) error {
	if g.batch.n == 0 {
		g.began = time.Now()
	}
	if err := g.encode(g.batch, e); err != nil {
		return err
	}
	g.batch.n++
	if g.batch.entries.Size()+len(g.batch.plain) >= logBytes || time.Since(g.began) >= logAge {
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

func (g *groupLog) close() error {
	if g.batch.n > 0 {
		if err := g.push(); err != nil {
			return err
		}
	}
	close(g.work)
	return <-g.done
}

// openDigestLog opens the log as the recorder writes it: hashed by the one goroutine, and signed in time by the other.
func openDigestLog(dir string, signer note.Signer, _ int, durable func(n int)) (aLog, error) {
	l, err := digestlog.Open(filepath.Join(dir, "digests"), digestlog.Options{RunID: "benchmark", Signer: signer})
	if err != nil {
		return nil, err
	}
	var encoder digestlog.Encoder
	signed := time.Now()
	store := func(x *logBatch) error {
		for at := 0; at < x.n; {
			n, err := l.AppendEncoded(&x.entries, at)
			if at += n; errors.Is(err, digestlog.ErrBacklog) {
				err = l.Sync()
			}
			if err != nil {
				return err
			}
		}
		if err := l.Sync(); err != nil || time.Since(signed) < logHead {
			return err
		}
		signed = time.Now()
		_, err := l.SignHead()
		return err
	}
	g := &groupLog{store: store, end: l.Close, encode: func(x *logBatch, e *digestlog.Entry) error { return encoder.Append(&x.entries, e) }}
	return g.start(durable), nil
}

// openPlain is the least that can be done: the same bytes in the same groups, written to one file and synced.
func openPlain(dir string, _ note.Signer, _ int, durable func(n int)) (aLog, error) {
	f, err := os.Create(filepath.Join(dir, "entries"))
	if err != nil {
		return nil, err
	}
	store := func(x *logBatch) error {
		_, err := f.Write(x.plain)
		return errors.Join(err, f.Sync())
	}
	g := &groupLog{store: store, end: f.Close, encode: func(x *logBatch, e *digestlog.Entry) error { x.plain = e.Append(x.plain); return nil }}
	return g.start(durable), nil
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

// compareLogs measures the ways in turn, in every round of the benchmark, and reports each, and the first to the others.
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
	rate := func(i int) float64 { return rates[i][len(rates[i])/2] }
	for i, w := range ways {
		slices.Sort(rates[i])
		slices.Sort(waits[i])
		wait := func(q float64) float64 { return waits[i][int(q*float64(len(waits[i])-1))].Seconds() * 1e3 }
		b.ReportMetric(rate(i), w.name+"-entries/s")
		b.ReportMetric(wait(.5), w.name+"-p50-ms")
		b.ReportMetric(wait(.99), w.name+"-p99-ms")
		b.ReportMetric(float64(files[i]), w.name+"-files")
		if i > 0 {
			b.ReportMetric(rate(0)/rate(i), "x-of-"+w.name)
		}
	}
}

// ourLogs are the digest log and its baseline.
var ourLogs = []logWay{{"usp", openDigestLog}, {"plain", openPlain}}

// BenchmarkDigestLog measures the log on one core with the recorder's group commit: entries/s durable, time to durable at
// 10,000 entries/s, and files. One goroutine runs at a time; while one waits for fsync in the kernel, another does.
func BenchmarkDigestLog(b *testing.B) { compareLogs(b, ourLogs...) }
