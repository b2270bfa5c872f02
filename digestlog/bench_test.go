package digestlog

import (
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// BenchmarkAppendSync measures entries of two digests, made durable in groups on the real file system; one op is one entry.
func BenchmarkAppendSync(b *testing.B) {
	for _, group := range []int{100, 1000} {
		b.Run(fmt.Sprintf("group=%d", group), func(b *testing.B) {
			o := testOptions(b, vfs.OS())
			o.SegmentSize = 0
			l, err := Open(filepath.Join(b.TempDir(), "digests"), o)
			must(b, err)
			e := step(1)
			b.SetBytes(int64(len(e.Append(nil))))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				e.Step = uint64(i)
				if _, err := l.Append(e); err != nil {
					b.Fatal(err)
				}
				if i%group == group-1 {
					must(b, l.Sync())
				}
			}
			must(b, l.Close())
		})
	}
}

// BenchmarkAppend is the part of it that needs no disk.
func BenchmarkAppend(b *testing.B) {
	e := step(1)
	var tree frontier
	var buf []byte
	b.ReportAllocs()
	for i := range b.N {
		e.Step = uint64(i)
		buf = e.Append(buf[:0])
		tree.add(tlog.RecordHash(buf))
	}
}

// BenchmarkVerify is per entry.
func BenchmarkVerify(b *testing.B) {
	m := vfs.NewMem()
	o := testOptions(b, m)
	o.SegmentSize = 1 << 20
	l := mustOpen(b, o)
	for i := range b.N {
		mustAppend(b, l, step(i))
		if i%1000 == 999 {
			must(b, l.Sync())
		}
	}
	must(b, l.Close())
	b.ResetTimer()
	if r := mustVerify(b, m); r.Size != uint64(b.N) || r.Err() != nil {
		b.Fatal(r.Faults)
	}
}
