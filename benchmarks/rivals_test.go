//go:build rivals

package benchmarks

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidwall/wal"

	"github.com/usp-project/usp/internal/bench"
)

const (
	rivalRecords = 200_000
	rivalSync    = 16 << 10 // records between two syncs: what a commit of the recorder holds under load
)

// row is a record of 240 bytes as a program of its own would have it.
type row struct {
	Step   uint64
	Time   int64
	Values [15]float64
	Rho    [12]float64
	Cost   float64
}

// BenchmarkRivals stores records of the same size durably in other ways, in turn with the recorder, which is the only one
// to hash what it stores, to log digests, and to leave the loop alone meanwhile.
func BenchmarkRivals(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	ways := []struct {
		name  string
		store func(dir string) error
	}{
		{"json-lines", storeJSON}, {"gob", storeGob}, {"tidwall-wal", storeWAL},
	}
	times := make([][]time.Duration, len(ways)+1)
	for b.Loop() {
		round, err := bench.Record(b.Context(), bench.RecorderConfig{Dir: b.TempDir(), Command: []string{self, recorderArg}, Records: rivalRecords})
		if err != nil {
			b.Fatal(err)
		}
		times[len(ways)] = append(times[len(ways)], round.Elapsed)
		for i, w := range ways {
			dir := b.TempDir()
			begun := time.Now()
			if err := w.store(dir); err != nil {
				b.Fatal(err)
			}
			times[i] = append(times[i], time.Since(begun))
			if err := os.RemoveAll(dir); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // of all sides together, which says nothing
	ours := bench.Median(times[len(ways)])
	b.ReportMetric(rivalRecords/ours.Seconds(), "usp-records/s")
	for i, w := range ways {
		d := bench.Median(times[i])
		b.ReportMetric(rivalRecords/d.Seconds(), w.name+"-records/s")
		b.ReportMetric(d.Seconds()/ours.Seconds(), "x-of-"+w.name)
	}
}

// each calls store with record after record, and sync after every rivalSync of them and at the end.
func each(store func(i int, r *row) error, sync func() error) error {
	r := row{Values: [15]float64{1.5, 2.25, 3.125}, Cost: .1}
	for i := range rivalRecords {
		r.Step, r.Time = uint64(i), int64(i)*1e9
		for j := range r.Rho {
			r.Rho[j] = float64(i+j) / 7
		}
		if err := store(i, &r); err != nil {
			return err
		}
		if (i+1)%rivalSync == 0 {
			if err := sync(); err != nil {
				return err
			}
		}
	}
	return sync()
}

// encoded stores what an encoder over a buffered file makes of the records.
func encoded(dir string, encoder func(w *bufio.Writer) func(any) error) error {
	f, err := os.Create(filepath.Join(dir, "records"))
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	encode := encoder(w)
	err = each(func(_ int, r *row) error { return encode(r) }, func() error { return errors.Join(w.Flush(), f.Sync()) })
	return errors.Join(err, f.Close())
}

func storeJSON(dir string) error {
	return encoded(dir, func(w *bufio.Writer) func(any) error { return json.NewEncoder(w).Encode })
}

func storeGob(dir string) error {
	return encoded(dir, func(w *bufio.Writer) func(any) error { return gob.NewEncoder(w).Encode })
}

func storeWAL(dir string) error {
	l, err := wal.Open(filepath.Join(dir, "wal"), &wal.Options{NoSync: true, SegmentSize: 16 << 20, SegmentCacheSize: 2, DirPerms: 0o755, FilePerms: 0o644})
	if err != nil {
		return err
	}
	var batch wal.Batch
	payload := make([]byte, 240)
	err = each(func(i int, r *row) error {
		payload[0] = byte(r.Step)
		batch.Write(uint64(i)+1, payload)
		return nil
	}, func() error {
		err := l.WriteBatch(&batch)
		batch.Clear()
		return errors.Join(err, l.Sync())
	})
	return errors.Join(err, l.Close())
}
