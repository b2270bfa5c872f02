package snapshot_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// sizes in bytes of the benchmarks; with -short without the largest.
func sizes() []int {
	if testing.Short() {
		return []int{1 << 20, 64 << 20}
	}
	return []int{1 << 20, 64 << 20, 1 << 30}
}

// pair runs plain and ours in turn, so that what else the machine does hits both
// alike, and reports the time of each and plain/ours, the share of the plain
// speed that is reached: of the medians, and of the best. settle comes after each
// and is not timed.
func pair(b *testing.B, plain, ours, settle func() error) {
	var times [2][]time.Duration
	both := [2]func() error{plain, ours}
	for turn := 0; b.Loop(); turn++ {
		for k := range both {
			i := (k + turn) % 2
			start := time.Now()
			err := both[i]()
			times[i] = append(times[i], time.Since(start))
			if err = errors.Join(err, settle()); err != nil {
				b.Fatal(err)
			}
		}
	}
	var median, best [2]float64 // milliseconds
	for i := range times {
		slices.Sort(times[i])
		median[i] = times[i][len(times[i])/2].Seconds() * 1e3
		best[i] = times[i][0].Seconds() * 1e3
	}
	b.ReportMetric(0, "ns/op") // of both together, which says nothing
	b.ReportMetric(median[0], "plain-ms")
	b.ReportMetric(median[1], "ours-ms")
	b.ReportMetric(median[0]/median[1], "ratio")
	b.ReportMetric(best[0]/best[1], "best-ratio")
}

// BenchmarkWrite compares with the same bytes written, synced, renamed and the
// directory synced.
func BenchmarkWrite(b *testing.B) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range sizes() {
		state := []snapshot.Section{{Name: "state", Data: noise(n)}}
		for _, o := range []snapshot.Options{{}, {Codec: snapshot.Zstd}, {Recipients: []age.Recipient{id.Recipient()}}} {
			b.Run(fmt.Sprintf("size=%d/codec=%v/recipients=%d", n, o.Codec, len(o.Recipients)), func(b *testing.B) {
				dir := b.TempDir()
				name, snap := filepath.Join(dir, "plain"), filepath.Join(dir, snapshot.FileName(1, 2))
				pair(b, func() error {
					return vfs.Replace(vfs.OS(), name, state[0].Data, 0o600)
				}, func() error {
					_, err := snapshot.Write(dir, meta(1), state, o)
					return err
				}, func() error {
					// Freeing the blocks and, on some mounts, telling the device about them is
					// nobody's share: it is waited for here.
					for _, f := range []string{name, snap} {
						if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
							return err
						}
					}
					return vfs.OS().SyncDir(dir)
				})
			})
		}
	}
}

// BenchmarkLoad compares with reading the same file and its SHA-256.
func BenchmarkLoad(b *testing.B) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range sizes() {
		state := []snapshot.Section{{Name: "state", Data: noise(n)}}
		for _, o := range []snapshot.Options{{}, {Recipients: []age.Recipient{id.Recipient()}}} {
			b.Run(fmt.Sprintf("size=%d/recipients=%d", n, len(o.Recipients)), func(b *testing.B) {
				dir := b.TempDir()
				info, err := snapshot.Write(dir, meta(1), state, o)
				if err != nil {
					b.Fatal(err)
				}
				path := filepath.Join(dir, info.Name)
				pair(b, func() error { return readAndSum(path, info) }, func() error {
					_, _, err := snapshot.LoadWith(vfs.OS(), path, &info.SHA256, snapshot.LoadOptions{Identities: []age.Identity{id}})
					return err
				}, func() error { return nil })
			})
		}
	}
}

func readAndSum(path string, info snapshot.Info) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data := make([]byte, info.Size)
	if _, err := io.ReadFull(f, data); err != nil {
		return err
	}
	if sha256.Sum256(data) != info.SHA256 {
		return errors.New("not the file")
	}
	return nil
}
