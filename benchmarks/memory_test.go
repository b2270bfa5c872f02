package benchmarks

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/usp-project/usp/internal/bench"
	"github.com/usp-project/usp/recorder"
)

var memory = flag.Uint64("memory", 0, "records of BenchmarkMemory; 100000000 need 26 GB of disk and some minutes, 0 leaves it out")

// BenchmarkMemory records one long run and prints what memory the recorder's process has after 10^5, 10^6, … records. It
// is flat if it does not grow with them. Anonymous memory is the recorder's own; the rest is mapped: the program and the
// ring, which the recorder has seen all of soon.
func BenchmarkMemory(b *testing.B) {
	if *memory == 0 {
		b.Skip("a long run; ask for it with -memory 100000000")
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	var table bytes.Buffer
	next := uint64(100_000)
	c := bench.RecorderConfig{
		Dir: b.TempDir(), Command: []string{self, recorderArg}, Records: *memory, Options: recorder.Options{DigestInterval: 1},
		Watch: func(emitted uint64, pid int) {
			if emitted < min(next, *memory) {
				return
			}
			next *= 10
			fmt.Fprintf(&table, "%11d records: resident %6d KiB, of which anonymous %6d KiB, at most %6d KiB\n",
				emitted, status(b, pid, "VmRSS"), status(b, pid, "RssAnon"), status(b, pid, "VmHWM"))
		},
	}
	for b.Loop() {
		round, err := bench.Record(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		if round.Lost != 0 {
			b.Fatalf("%d records were lost", round.Lost)
		}
		b.ReportMetric(float64(*memory)/round.Elapsed.Seconds(), "records/s")
	}
	b.Log("\n" + table.String())
}

// status returns a size in KiB from a process's status.
func status(b *testing.B, pid int, key string) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip(err) // only Linux tells
	}
	for line := range bytes.Lines(data) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if fields := bytes.Fields(value); string(name) == key && len(fields) > 0 {
			n, err := strconv.Atoi(string(fields[0]))
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s in the status of process %d", key, pid)
	return 0
}
