package digestlog

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// benchLog writes a log of so many steps, of 200 bytes of extension each, with a SNAPSHOT behind every hundredth that comes late by up to late
// entries, in groups as a recorder syncs them. Step odd is another.
func benchLog(b *testing.B, dir string, steps, odd, late uint64) {
	o := testOptions(b, vfs.Unsynced(vfs.OS()))
	o.SegmentSize = 0
	l, err := Open(dir, o)
	must(b, err)
	e := step(0)
	e.Ext = make([]byte, 200)
	snapshot := Entry{Kind: KindSnapshot, Name: "s"}
	for i := range steps {
		e.Step, e.Seq, e.Nonfinite = i, i, 0
		binary.LittleEndian.PutUint64(e.Digests[0][:], i)
		if i == odd {
			e.Nonfinite = 1
		}
		_, err := l.Append(e)
		must(b, err)
		if snapshot.Step = i; i%100 == i/100%100*late%100 {
			_, err := l.Append(&snapshot)
			must(b, err)
		}
		if i%500 == 0 {
			must(b, l.Sync())
		}
	}
	must(b, l.Close())
}

// BenchmarkMerge is what the comparer of two logs pays for reading them that are equal but for one step: with skips of what is equal, and without.
// USP_BENCH_RECORDS is the number of steps.
func BenchmarkMerge(b *testing.B) {
	steps := uint64(100_000)
	if n, err := strconv.ParseUint(os.Getenv("USP_BENCH_RECORDS"), 10, 64); err == nil {
		steps = n
	}
	dirs := [2]string{filepath.Join(b.TempDir(), "a"), filepath.Join(b.TempDir(), "b")}
	benchLog(b, dirs[0], steps, steps, 0)
	benchLog(b, dirs[1], steps, steps/2, 7)
	for _, skips := range []bool{true, false} {
		b.Run(fmt.Sprintf("skips=%v", skips), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				m := merger{t: b, skips: skips, sides: [2]mergeSide{{r: NewStepReader(nil, dirs[0])}, {r: NewStepReader(nil, dirs[1])}}}
				m.run()
				if len(m.diff) != 1 || m.equal != steps-1 {
					b.Fatalf("%v, %d equal", m.diff, m.equal)
				}
			}
		})
	}
}
