package cli

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/bench"
	"github.com/usp-project/usp/recorder"
)

var (
	drainRecords = flag.Uint64("drain-records", 600_000, "records of each round of BenchmarkDrainWithSinks")
	drainOnly    = flag.String("drain-only", "", "ways of BenchmarkDrainWithSinks, with commas; none: all")
)

// drainWay is a state of the destinations beside a recorder.
type drainWay struct {
	name   string
	env    []string
	script string // of the shell, in front of usp sink; "$1" is the run directory
	before func() // each round; nil: nothing
	thaw   func() // some time after the last record; nil: nothing
}

// drainBench has what the ways need.
type drainBench struct {
	b    *testing.B
	bin  string
	dir  string
	file string // a file: nothing can be made below it
}

func newDrainBench(b *testing.B) *drainBench {
	d := &drainBench{b: b, bin: os.Getenv("USP_BIN"), dir: b.TempDir()}
	if d.bin == "" {
		b.Skip("USP_BIN names no usp: go build -o /tmp/usp ./cmd/usp; USP_BIN=/tmp/usp go test -bench DrainWithSinks ./internal/cli")
	}
	d.file = filepath.Join(d.dir, "file")
	d.must(os.WriteFile(d.file, nil, 0o600))
	return d
}

func (d *drainBench) must(err error) {
	d.b.Helper()
	if err != nil {
		d.b.Fatal(err)
	}
}

// silent takes connections and what is sent, and never says a word.
func (d *drainBench) silent() (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	d.must(err)
	d.b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }() // until the other end closes it
		}
	}()
	return l.Addr().String()
}

// frozen is a directory of a file system in which, once frozen, every change waits for thaw. It is empty where that cannot be made: it needs
// the rights to mount.
func (d *drainBench) frozen() (dir string, freeze, thaw func()) {
	image, dir := filepath.Join(d.dir, "image"), filepath.Join(d.dir, "frozen")
	d.must(os.Mkdir(dir, 0o700))
	for _, args := range [][]string{{"truncate", "-s", "64M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			d.b.Logf("left out: a directory that hangs: %s: %v %s", args[0], err, out)
			return "", nil, nil
		}
	}
	h, err := os.Open(dir)
	d.must(err)
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	var is atomic.Bool
	freeze = func() {
		if is.CompareAndSwap(false, true) {
			d.must(unix.IoctlSetInt(int(h.Fd()), fifreeze, 0))
		}
	}
	thaw = func() {
		if is.CompareAndSwap(true, false) {
			_ = unix.IoctlSetInt(int(h.Fd()), fithaw, 0)
		}
	}
	d.b.Cleanup(func() { thaw(); h.Close(); _ = exec.Command("umount", dir).Run() })
	return dir, freeze, thaw
}

// ways are every sink in each state that a destination can be in, and what works.
func (d *drainBench) ways() []drainWay {
	lake := "USP_PARQUET_DIR=" + filepath.Join(d.dir, "lake")
	metrics := "USP_PROMETHEUS_LISTEN=127.0.0.1:0"
	const full = `d="$USP_TENSORBOARD_DIR/$(basename "$1")"; mkdir -p "$d"; ln -sf /dev/full "$d/events.out.tfevents.0000000000.usp.0.0"; `
	list := []drainWay{
		{name: "none again"},
		{name: "parquet refused", env: []string{"USP_PARQUET_DIR=" + filepath.Join(d.file, "x")}},
		{name: "tensorboard refused", env: []string{"USP_TENSORBOARD_DIR=" + filepath.Join(d.file, "x")}},
		{name: "tensorboard full", env: []string{"USP_TENSORBOARD_DIR=" + filepath.Join(d.dir, "full")}, script: full},
		{name: "otlp never answers", env: []string{"USP_OTLP_ENDPOINT=http://" + d.silent()}},
		{name: "jetstream never answers", env: []string{"USP_JETSTREAM_URL=nats://" + d.silent()}},
		{name: "remote store never answers", env: []string{"USP_SNAPSHOT_REMOTE=s3://bucket/runs", "USP_SNAPSHOT_REMOTE_ENDPOINT=http://" + d.silent(),
			"AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=key", "USP_SINKS_TIMEOUT=100ms"}},
		{name: "prometheus never read", env: []string{metrics}},
		{name: "pyramid", env: []string{"USP_SERVE_AGGREGATES=true"}},
		{name: "pyramid refused", env: []string{"USP_SERVE_AGGREGATES=true"}, script: `mkdir -p "$1/sinks"; : > "$1/sinks/pyramid"; `},
		{name: "their process stopped", env: []string{lake}, script: `kill -STOP $$; `},
		{name: "parquet", env: []string{lake}},
		{name: "parquet and prometheus", env: []string{lake, metrics}},
	}
	if dir, freeze, thaw := d.frozen(); dir != "" {
		for _, w := range []string{"parquet", "tensorboard"} {
			key := "USP_" + strings.ToUpper(w) + "_DIR="
			list = append(list, drainWay{name: w + " hangs", env: []string{key + filepath.Join(dir, w)}, before: freeze, thaw: thaw})
		}
	}
	if *drainOnly != "" {
		only := strings.Split(*drainOnly, ",")
		list = slices.DeleteFunc(list, func(w drainWay) bool { return !slices.Contains(only, w.name) })
	}
	return list
}

// record records with the destinations of a way; afterwards is called when the last record was emitted.
func (d *drainBench) record(w drainWay, wait time.Duration, afterwards func()) bench.RecorderRound {
	d.b.Helper()
	if w.before != nil {
		w.before()
	}
	o := recorder.Options{}
	if w.env != nil {
		o.Companion = recorder.CompanionOptions{Wait: wait, Command: append(append([]string{"/usr/bin/env", "USP_SINKS_PATIENCE=100ms"}, w.env...),
			"/bin/sh", "-c", w.script+`exec "$0" sink --follow -q "$1"`, d.bin)}
	}
	round, err := bench.Record(context.Background(), bench.RecorderConfig{
		Dir: d.dir, Command: []string{d.bin, "record", "--options-on-stdin"}, Options: o, Records: *drainRecords,
		StateEvery: 100_000, StateSize: 1 << 20,
		Watch: func(emitted uint64, _ int) {
			if emitted == *drainRecords {
				afterwards()
				if w.thaw != nil {
					time.AfterFunc(2*time.Second, w.thaw) // a process that hangs in the kernel cannot be ended
				}
			}
		},
	})
	d.must(err)
	return round
}

// quartiles are the first, the middle and the third.
func quartiles(x []float64) (low, middle, high float64) {
	s := slices.Sorted(slices.Values(x))
	at := func(p float64) float64 {
		i := p * float64(len(s)-1)
		k := int(i)
		return s[k] + (i-float64(k))*(s[min(k+1, len(s)-1)]-s[k])
	}
	return at(.25), at(.5), at(.75)
}

// BenchmarkDrainWithSinks is the rate at which a recorder takes records at full speed, with destinations in every state beside it:
// each time between two rounds without any, to the mean of those; in all of them a snapshot of 1 MiB at every 100,000th record. Recorder and sinks share one processor, the worst that they can
// do. None between none says what the ratio is worth. It needs the program: USP_BIN.
func BenchmarkDrainWithSinks(b *testing.B) {
	d := newDrainBench(b)
	ways := d.ways()
	ratios := make([][]float64, len(ways))
	nothing := func() {}
	rate := func(w drainWay) float64 {
		return float64(*drainRecords) / d.record(w, time.Second, nothing).Elapsed.Seconds()
	}
	var none []float64
	for b.Loop() {
		before := rate(drainWay{})
		for i, w := range ways {
			with := rate(w)
			after := rate(drainWay{})
			ratios[i] = append(ratios[i], 2*with/(before+after))
			none = append(none, after)
			before = after
		}
	}
	_, middle, _ := quartiles(none)
	b.ReportMetric(middle, "none-records/s")
	text := fmt.Sprintf("%d rounds of %d records, %.0f records/s with no sink\n| destinations | rate, × none | quartiles |\n| --- | --- | --- |\n", b.N, *drainRecords, middle)
	for i, w := range ways {
		low, middle, high := quartiles(ratios[i])
		b.ReportMetric(middle, strings.NewReplacer(" ", "-").Replace(w.name)+"/none")
		text += fmt.Sprintf("| %s | %.3f | %.3f to %.3f |\n", w.name, middle, low, high)
	}
	fmt.Println(text) // a benchmark's log is cut off
}

// BenchmarkSinksCatchUp is how long after the end of a run its sinks have all of it, while nothing else computes and while
// every processor has something better to do.
func BenchmarkSinksCatchUp(b *testing.B) {
	d := newDrainBench(b)
	w := drainWay{env: []string{"USP_PARQUET_DIR=" + filepath.Join(d.dir, "lake"), "USP_PROMETHEUS_LISTEN=127.0.0.1:0"}}
	for _, busy := range []bool{false, true} {
		b.Run(map[bool]string{false: "idle", true: "busy"}[busy], func(b *testing.B) {
			d.b = b
			var took []float64
			for b.Loop() {
				var end atomic.Bool
				round := d.record(w, time.Minute, func() {
					for range runtime.NumCPU() {
						go func() {
							for busy && !end.Load() {
							}
						}()
					}
				})
				end.Store(true)
				took = append(took, round.Ending.Seconds())
			}
			_, middle, _ := quartiles(took)
			b.ReportMetric(middle, "s-behind")
		})
	}
}
