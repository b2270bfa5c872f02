package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/ring"
)

const benchLong = `Measure what handing over one step's record costs the loop, beside what people do
instead: a plain copy of the same bytes, a send to a buffered channel that a
receiver drains all the time, a burst into a channel that takes all of it, and an
append to a slice under a mutex. All in one process, in turn, many times; ratios
hold between machines, nanoseconds do not.

ns is the median over rounds of a round's mean. The percentiles are of single
operations, less the cost of reading the clock (clock_ns).

With --storage: what the recorder and snapshots take on the disk of --dir, beside
plain file operations on the same bytes. The recorder is a process of its own, as
in production, on one core. All files are removed again; the default needs 700 MiB
of free disk for a moment, and a minute.`

// benchResult is one way to hand over a record.
type benchResult struct {
	Name   string  `json:"name"`
	NS     float64 `json:"ns"`    // per operation
	Ratio  float64 `json:"ratio"` // to a plain copy of the same bytes
	P50    int64   `json:"p50"`
	P99    int64   `json:"p99"`
	P999   int64   `json:"p999"`
	Max    int64   `json:"max"`
	Allocs float64 `json:"allocs"` // per operation
}

// benchReport is usp bench --json.
type benchReport struct {
	Bytes         int           `json:"bytes"` // of one record
	Operations    int           `json:"operations"`
	ClockNS       float64       `json:"clock_ns"`
	EmitToChannel float64       `json:"emit_to_channel_send"` // ratio
	EmitToCopy    float64       `json:"emit_to_copy"`
	Results       []benchResult `json:"results"`
	Go            string        `json:"go"`
	Arch          string        `json:"arch"`
	CPUs          int           `json:"cpus"`
}

func (a *app) benchCommand() *cobra.Command {
	n := 1_000_000
	var storage storageBench
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure what emitting costs, or storage, beside the alternatives", Long: benchLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if storage.on {
				return a.benchStorage(cmd.Context(), &storage)
			}
			if n < benchRound {
				return usageError(fmt.Errorf("--operations %d: at least %d are needed", n, benchRound))
			}
			return a.bench(cmd.Context(), n)
		},
	}
	cmd.Flags().IntVar(&n, "operations", n, "operations of each kind")
	storage.flags(cmd)
	return cmd
}

// benchRound is how many operations of one kind are measured before it is the next one's turn.
const benchRound = 10_000

// candidate is one way to hand over a record; settle lets what runs beside it finish before the next one's turn.
type candidate struct {
	name   string
	op     func()
	settle func()
	means  []float64
	each   latencies
	allocs float64
}

func (a *app) bench(ctx context.Context, n int) error {
	var rec benchRecord
	for i := range rec {
		rec[i] = uint64(i) * 0x9e3779b97f4a7c15
	}
	payload := rec[:]
	dir, err := benchDir(a.cfg.Ring.Dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := ring.Create(ring.Config{
		Path: filepath.Join(dir, "bench.ring"), RunID: "bench", Schema: []byte("bench"), PayloadLen: 8 * len(payload), Slots: a.cfg.Ring.Slots,
	})
	if err != nil {
		return err
	}
	defer p.Close(true)
	candidates, stop := rivals(&rec)
	defer stop()
	candidates = append([]*candidate{{name: "emit", op: func() { p.Emit(payload) }}}, candidates...)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the slice under the mutex would have the collector run beside the others
	clock := clockCost()
	for range (n + benchRound - 1) / benchRound {
		for _, c := range candidates {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			c.round(clock)
		}
	}
	return a.printBench(report(candidates, clock, 8*len(payload), n))
}

// benchRecord has the size of a record of usp run.
type benchRecord [30]uint64

func benchDir(configured string) (string, error) {
	dir := configured
	if dir == "" {
		dir, _ = ring.DefaultDir()
	}
	if err := ring.PrepareDir(dir); err != nil {
		return "", err
	}
	return os.MkdirTemp(dir, "bench-")
}

// channelBuffer is the capacity of the channel that is sent to for as long as the benchmark runs; a burst goes to one that
// takes all of it.
const channelBuffer = 1024

// rivals are the alternatives to Emit. The channels' receivers run until stop.
func rivals(rec *benchRecord) (list []*candidate, stop func()) {
	var dst benchRecord
	var mu sync.Mutex
	rows := make([]benchRecord, 0, benchRound)
	steady, stopSteady := channelRival("channel_send", rec, channelBuffer)
	burst, stopBurst := channelRival("channel_burst", rec, benchRound)
	list = []*candidate{
		{name: "copy", op: func() { copy(dst[:], rec[:]) }},
		steady, burst,
		{name: "mutex_append", op: func() {
			mu.Lock()
			rows = append(rows, *rec)
			mu.Unlock()
		}, settle: func() { rows = rows[:0] }},
	}
	return list, func() { stopSteady(); stopBurst() }
}

// channelRival sends to a channel with that buffer, which a goroutine drains all the time.
func channelRival(name string, rec *benchRecord, buffer int) (c *candidate, stop func()) {
	ch := make(chan benchRecord, buffer)
	var received atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		var sink benchRecord
		for sink = range ch {
			received.Add(1)
		}
		runtime.KeepAlive(&sink)
	})
	sent := uint64(0)
	return &candidate{name: name, op: func() { ch <- *rec; sent++ }, settle: func() {
		for received.Load() < sent {
			runtime.Gosched()
		}
	}}, func() { close(ch); wg.Wait() }
}

// round measures one round: the mean over operations back to back, then operations timed one by one.
func (c *candidate) round(clock time.Duration) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	for range benchRound {
		c.op()
	}
	c.means = append(c.means, float64(time.Since(began).Nanoseconds())/benchRound)
	runtime.ReadMemStats(&after)
	c.allocs = max(c.allocs, float64(after.Mallocs-before.Mallocs)/benchRound)
	if c.settle != nil {
		c.settle()
	}
	for range benchRound {
		t := time.Now()
		c.op()
		c.each.add(max(0, time.Since(t)-clock))
	}
	if c.settle != nil {
		c.settle()
	}
}

// clockCost is what a pair of clock readings adds to a measured time.
func clockCost() time.Duration {
	var l latencies
	for range benchRound {
		t := time.Now()
		l.add(time.Since(t))
	}
	return l.quantile(.5)
}

func report(candidates []*candidate, clock time.Duration, size, n int) benchReport {
	r := benchReport{Bytes: size, Operations: n, ClockNS: float64(clock), Go: runtime.Version(), Arch: runtime.GOARCH, CPUs: runtime.NumCPU()}
	ns := map[string]float64{}
	for _, c := range candidates {
		slices.Sort(c.means)
		ns[c.name] = c.means[len(c.means)/2]
	}
	for _, c := range candidates {
		r.Results = append(r.Results, benchResult{
			Name: c.name, NS: ns[c.name], Ratio: ns[c.name] / ns["copy"], Allocs: float64(int64(c.allocs*1000)) / 1000,
			P50: c.each.quantile(.5).Nanoseconds(), P99: c.each.quantile(.99).Nanoseconds(),
			P999: c.each.quantile(.999).Nanoseconds(), Max: c.each.max.Nanoseconds(),
		})
	}
	r.EmitToChannel, r.EmitToCopy = ns["emit"]/ns["channel_send"], ns["emit"]/ns["copy"]
	return r
}

func (a *app) printBench(r benchReport) error {
	if a.json {
		return a.printJSON(r, true)
	}
	fmt.Fprintf(a.out, "record of %d bytes, %d operations of each kind, clock %.0f ns\n", r.Bytes, r.Operations, r.ClockNS)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tns\tp50\tp99\tp99.9\tmax\tallocs\t× copy\t")
	for _, b := range r.Results {
		fmt.Fprintf(w, "%s\t%.1f\t%d\t%d\t%d\t%d\t%g\t%.2f\t\n", b.Name, b.NS, b.P50, b.P99, b.P999, b.Max, b.Allocs, b.Ratio)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "emit costs %.2f of a channel send\n", r.EmitToChannel)
	return nil
}
