package snapshot_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

var sizes = []int{1 << 20, 64 << 20}

// BenchmarkWrite stands beside op=plain: the same bytes written, synced, renamed, directory synced.
func BenchmarkWrite(b *testing.B) {
	for _, n := range sizes {
		state := []snapshot.Section{{Name: "state", Data: noise(n)}}
		b.Run(fmt.Sprintf("size=%d/op=plain", n), func(b *testing.B) {
			dir := b.TempDir()
			b.SetBytes(int64(n))
			for b.Loop() {
				if err := vfs.Replace(vfs.OS(), filepath.Join(dir, "x"), state[0].Data, 0o600); err != nil {
					b.Fatal(err)
				}
			}
		})
		for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
			b.Run(fmt.Sprintf("size=%d/op=snapshot/codec=%v", n, codec), func(b *testing.B) {
				dir := b.TempDir()
				b.SetBytes(int64(n))
				for b.Loop() {
					info, err := snapshot.Write(dir, meta(1), state, snapshot.Options{Codec: codec})
					if err == nil {
						err = os.Remove(filepath.Join(dir, info.Name))
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkLoad stands beside op=plain: read and SHA-256 of the same bytes.
func BenchmarkLoad(b *testing.B) {
	for _, n := range sizes {
		dir := b.TempDir()
		info, err := snapshot.Write(dir, meta(1), []snapshot.Section{{Name: "state", Data: noise(n)}}, snapshot.Options{})
		if err != nil {
			b.Fatal(err)
		}
		path := filepath.Join(dir, info.Name)
		b.Run(fmt.Sprintf("size=%d/op=plain", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				f, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				data := make([]byte, info.Size)
				if _, err := io.ReadFull(f, data); err != nil || sha256.Sum256(data) != info.SHA256 {
					b.Fatal("not the file", err)
				}
				f.Close()
			}
		})
		b.Run(fmt.Sprintf("size=%d/op=snapshot", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				if _, _, err := snapshot.Load(vfs.OS(), path, &info.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
