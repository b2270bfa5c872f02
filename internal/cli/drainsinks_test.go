package cli

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/bench"
	"github.com/usp-project/usp/recorder"
)

// BenchmarkDrainWithSinks is the rate at which a recorder takes records at full speed, with sinks beside it against without,
// in turns, with six snapshots of 1 MiB in all of them. It needs the program: USP_BIN.
func BenchmarkDrainWithSinks(b *testing.B) {
	bin := os.Getenv("USP_BIN")
	if bin == "" {
		b.Skip("USP_BIN names no usp: go build -o /tmp/usp ./cmd/usp; USP_BIN=/tmp/usp go test -bench DrainWithSinks ./internal/cli")
	}
	dir := b.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	ways := []struct {
		name string
		env  []string
	}{
		{"none", nil},
		{"blocked", []string{"USP_PARQUET_DIR=" + filepath.Join(file, "x")}},
		{"remote-blocked", []string{"USP_SNAPSHOT_REMOTE=s3://bucket/fleet", "USP_SNAPSHOT_REMOTE_ENDPOINT=" + silent(b), "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=key", "USP_SINKS_PATIENCE=100ms", "USP_SINKS_TIMEOUT=100ms"}},
		{"parquet", []string{"USP_PARQUET_DIR=" + filepath.Join(dir, "lake")}},
		{"parquet+prometheus", []string{"USP_PARQUET_DIR=" + filepath.Join(dir, "lake"), "USP_PROMETHEUS_LISTEN=127.0.0.1:0"}},
	}
	rates := make([][]float64, len(ways))
	for b.Loop() {
		for i, way := range ways {
			o := recorder.Options{}
			if way.env != nil {
				o.Companion = recorder.CompanionOptions{Command: append(append([]string{"/usr/bin/env"}, way.env...), bin, "sink", "--follow", "-q"), Wait: 30 * time.Second}
			}
			const records = 600_000
			round, err := bench.Record(context.Background(), bench.RecorderConfig{Dir: dir, Command: []string{bin, "record", "--options-on-stdin"}, Options: o, Records: records, StateEvery: 100_000, StateSize: 1 << 20})
			if err != nil {
				b.Fatal(err)
			}
			rates[i] = append(rates[i], records/round.Elapsed.Seconds())
		}
	}
	for i, way := range ways {
		slices.Sort(rates[i])
		b.ReportMetric(rates[i][len(rates[i])/2]/rates[0][len(rates[0])/2], way.name+"/none")
		b.ReportMetric(rates[i][len(rates[i])/2], way.name+"-records/s")
	}
}

// silent is the address of a server that accepts and never answers.
func silent(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		var open []net.Conn // else they are closed when nobody holds them
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
		}
		for _, c := range open {
			_ = c.Close() // the benchmark is over
		}
	}()
	return "http://" + l.Addr().String()
}
