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

// contender is one of the things a benchmark compares.
type contender struct {
	name string
	run  func() error
}

// compare runs all in turn, so that what else the machine does hits all alike,
// and reports the median time of each and, for each but the last, which is ours,
// its time by ours: the share of its speed that is reached. Of the first one that
// is the ratio, and once more of the best times. settle comes after each and is
// not timed.
func compare(b *testing.B, settle func() error, all ...contender) {
	times := make([][]time.Duration, len(all))
	for turn := 0; b.Loop(); turn++ {
		for k := range all {
			i := (k + turn) % len(all)
			start := time.Now()
			err := all[i].run()
			times[i] = append(times[i], time.Since(start))
			if err = errors.Join(err, settle()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // of all together, which says nothing
	median := make([]float64, len(all))
	for i := range times {
		slices.Sort(times[i])
		median[i] = times[i][len(times[i])/2].Seconds()
		b.ReportMetric(median[i]*1e3, all[i].name+"-ms")
	}
	ours := len(all) - 1
	b.ReportMetric(median[0]/median[ours], "ratio")
	b.ReportMetric(times[0][0].Seconds()/times[ours][0].Seconds(), "best-ratio")
	for i := 1; i < ours; i++ {
		b.ReportMetric(median[i]/median[ours], all[i].name+"-ratio")
	}
}

func nothing() error { return nil }

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
				compare(b, func() error {
					// Freeing the blocks and, on some mounts, telling the device about them is
					// nobody's share: it is waited for here.
					for _, f := range []string{name, snap} {
						if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
							return err
						}
					}
					return vfs.OS().SyncDir(dir)
				}, contender{"plain", func() error {
					return vfs.Replace(vfs.OS(), name, state[0].Data, 0o600)
				}}, contender{"ours", func() error {
					_, err := snapshot.Write(dir, meta(1), state, o)
					return err
				}})
			})
		}
	}
}

// BenchmarkLoad compares with reading the same file and its SHA-256. Both find it
// in the page cache.
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
				compare(b, nothing, contender{"plain", func() error {
					return readAndSum(path, info)
				}}, contender{"ours", func() error {
					_, _, err := snapshot.LoadWith(vfs.OS(), path, &info.SHA256, snapshot.LoadOptions{Identities: []age.Identity{id}})
					return err
				}})
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
