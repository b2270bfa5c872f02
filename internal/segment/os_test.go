package segment_test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// The same on the host's file system, with the options that the zero value stands for.
func TestOnTheHost(t *testing.T) {
	where := filepath.Join(t.TempDir(), "telemetry")
	check(t, vfs.MkdirAll(vfs.OS(), where, 0o700))
	w, err := segment.Create(where, 0, segment.Options{Kind: segment.KindTelemetry})
	check(t, err)
	appendTo(t, w, 1000)
	for w.Next() < 1500 {
		check(t, w.Append(frame(w.Next())))
	}
	check(t, w.Flush())
	check(t, w.Abort())
	f, err := os.OpenFile(w.Path(), os.O_RDWR, 0)
	check(t, err)
	_, end := w.Synced()
	_, err = f.WriteAt([]byte("torn"), end+10_000)
	check(t, err)
	check(t, f.Close())

	s, err := segment.Repair(vfs.OS(), w.Path())
	check(t, err)
	data, err := os.ReadFile(w.Path())
	check(t, err)
	if s.SHA256 != sha256.Sum256(data) || s.Count != 1000 || s.Torn == 0 || s.Size != int64(len(data)) {
		t.Errorf("repaired %+v", s)
	}
	info, err := os.Stat(w.Path())
	check(t, err)
	if info.Mode() != 0o444 {
		t.Errorf("mode %v", info.Mode())
	}
	next, err := segment.Create(where, s.Count, segment.Options{Kind: segment.KindTelemetry})
	check(t, err)
	appendTo(t, next, 1100)
	_, err = next.Seal()
	check(t, err)
	n := uint64(0)
	for f, err := range segment.Frames(vfs.OS(), where) {
		check(t, err)
		if f.Ordinal != n || !bytes.Equal(f.Data, frame(n)) {
			t.Fatalf("frame %d in the place of %d", f.Ordinal, n)
		}
		n++
	}
	if n != 1100 {
		t.Errorf("%d frames", n)
	}
	if removed, err := vfs.RemoveTemps(vfs.OS(), where); err != nil || len(removed) != 0 {
		t.Errorf("temporary files left: %v, %v", removed, err)
	}
}

func BenchmarkReader(b *testing.B) {
	where := b.TempDir()
	w, err := segment.Create(where, 0, segment.Options{Kind: segment.KindTelemetry})
	check(b, err)
	data := make([]byte, 200)
	for w.Size() < segment.DefaultSize-1<<20 {
		check(b, w.Append(data))
		if w.Next()%1000 == 0 {
			check(b, w.Flush())
		}
	}
	_, err = w.Seal()
	check(b, err)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for n := 0; n < b.N; {
		r, err := segment.Open(vfs.OS(), w.Path())
		check(b, err)
		for ; n < b.N; n++ {
			if _, _, err := r.Next(); err != nil {
				break
			}
		}
		check(b, r.Close())
	}
}
