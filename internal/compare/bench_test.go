package compare_test

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/vfs"
)

// long is a program that runs for so many steps, with a snapshot every 100, as a recorder logs it: others' snapshots have other digests, and lie between
// other steps.
func long(b *testing.B, dir string, steps uint64, salt byte, resumed bool, change func(p *program)) {
	b.Helper()
	p := newProgram(b, vfs.Unsynced(vfs.OS()), dir)
	p.segment = 16 << 20
	rho := []float64{.1, .2, .3, .4}
	p.rho = func(step uint64) []float64 { return rho }
	p.cost = func(step uint64) float64 { return float64(step) }
	change(p)
	p.begin(0, nil)
	if resumed {
		p.steps(0, 100)
		p.begin(1, &[]uint64{99}[0])
	}
	for at := map[bool]uint64{true: 100}[resumed]; at < steps; at += 100 {
		p.steps(at, at+uint64(salt))
		e := digestlog.Entry{Kind: digestlog.KindSnapshot, Step: at, Name: "state.snap", Size: 1000}
		e.SHA256[0] = salt
		binary.LittleEndian.PutUint64(e.SHA256[1:], at)
		p.append(&e)
		p.steps(at+uint64(salt), at+100)
	}
	p.end()
}

// BenchmarkCompare holds logs of 10^6 steps, or of USP_BENCH_STEPS, with two digests and their ladders each, against each other. Peak is the most memory of
// the Go heap at the ends of the garbage collector's rounds.
func BenchmarkCompare(b *testing.B) {
	steps := uint64(1_000_000)
	if n, err := strconv.ParseUint(os.Getenv("USP_BENCH_STEPS"), 10, 64); err == nil {
		steps = n
	}
	parent := b.TempDir()
	path := func(name string) string { return filepath.Join(parent, name) }
	long(b, path("a"), steps, 20, false, func(*program) {})
	long(b, path("one-step"), steps, 30, false, func(p *program) {
		cost := p.cost
		p.cost = func(step uint64) float64 {
			if step == steps/2 {
				return -1
			}
			return cost(step)
		}
	})
	long(b, path("every-step"), steps, 40, false, func(p *program) {
		p.rho = func(uint64) []float64 { return []float64{.1 + 1e-9, .2, .3, .4} }
	})
	long(b, path("resumed"), steps, 50, true, func(*program) {}) // no entry of its second generation is the same
	for _, name := range []string{"one-step", "every-step", "resumed"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := compare.Compare(context.Background(), vfs.OS(), path("a"), path(name), compare.Options{})
				check(b, err)
				if c.Common != steps || (c.Verdict == compare.Identical) != (name == "resumed") || name == "one-step" && c.First.Step != steps/2 {
					b.Fatalf("%s, %d common steps", verdict(c), c.Common)
				}
				b.ReportMetric(float64(c.Skipped)/float64(steps), "skipped/step")
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapSys)/(1<<20), "heap-MiB")
		})
	}
}
