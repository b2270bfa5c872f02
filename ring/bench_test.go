//go:build unix

package ring

import (
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// benchWords is the payload of the benchmarks: 26 words, 208 bytes.
const benchWords = 26

// memoryDir is a temporary directory, in memory where there is such a thing.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "usp-test-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

func benchRing(tb testing.TB, slots int) *Producer {
	tb.Helper()
	p, err := Create(Config{Path: filepath.Join(memoryDir(tb), "bench"), PayloadLen: 8 * benchWords, Slots: slots})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(true); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// BenchmarkHandOver compares what it costs a step loop to hand over one record of
// 208 bytes, at the same depth of buffering. With payload=fresh the record is
// written just before, as it usually is, which is dearer for the hardware too;
// to=nobody is that writing alone, to be subtracted.
func BenchmarkHandOver(b *testing.B) {
	b.Run("payload=still", func(b *testing.B) { benchHandOver(b, false) })
	b.Run("payload=fresh", func(b *testing.B) { benchHandOver(b, true) })
}

func benchHandOver(b *testing.B, fresh bool) {
	payload := make([]uint64, benchWords)
	measure := func(b *testing.B, handOver func([]uint64)) {
		b.SetBytes(8 * benchWords)
		b.ReportAllocs()
		x := uint64(0)
		for b.Loop() {
			if fresh {
				for i := range payload {
					x++
					payload[i] = x
				}
			}
			handOver(payload)
		}
	}
	b.Run("to=nobody", func(b *testing.B) { measure(b, func([]uint64) {}) })
	b.Run("to=copy", func(b *testing.B) {
		buf, n := make([]uint64, DefaultSlots*32), 0
		measure(b, func(w []uint64) {
			copy(buf[n:n+benchWords], w)
			n = (n + 32) & (len(buf) - 1)
		})
	})
	b.Run("to=ring/consumer=none", func(b *testing.B) {
		p := benchRing(b, DefaultSlots)
		measure(b, func(w []uint64) { p.Emit(w) })
	})
	b.Run("to=ring/consumer=draining", func(b *testing.B) {
		p := benchRing(b, DefaultSlots)
		drained := drainAside(b, p)
		measure(b, func(w []uint64) { p.Emit(w) })
		if got, lost := drained(); got+lost != p.Position() {
			b.Errorf("got %d + lost %d != emitted %d", got, lost, p.Position())
		} else {
			b.ReportMetric(100*float64(lost)/float64(got+lost), "lost-%")
		}
	})
	b.Run("to=channel", func(b *testing.B) {
		ch := make(chan [benchWords]uint64, DefaultSlots)
		var wg sync.WaitGroup
		wg.Go(func() {
			for range ch {
			}
		})
		measure(b, func(w []uint64) { ch <- [benchWords]uint64(w) })
		close(ch)
		wg.Wait()
	})
	b.Run("to=mutex-append", func(b *testing.B) {
		list := mutexList{list: make([][benchWords]uint64, 0, DefaultSlots)}
		measure(b, list.append)
	})
}

// mutexList is a list that somebody else may take away, at no cost here.
type mutexList struct {
	mu   sync.Mutex
	list [][benchWords]uint64
}

func (l *mutexList) append(w []uint64) {
	l.mu.Lock()
	if len(l.list) == DefaultSlots {
		l.list = l.list[:0]
	}
	l.list = append(l.list, [benchWords]uint64(w))
	l.mu.Unlock()
}

// drainAside reads the ring in another goroutine until the returned function is called.
func drainAside(b *testing.B, p *Producer) func() (got, lost uint64) {
	c, err := Open(p.Path())
	if err != nil {
		b.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	var got, lost uint64
	wg.Go(func() {
		dst := make([]uint64, 64*benchWords)
		for {
			last := stop.Load()
			switch _, n, st := c.NextBatch(dst); st {
			case Got:
				got += uint64(n)
			case Lost:
				from, to, _ := c.LostRange()
				lost += to - from
			default:
				if last {
					return
				}
				runtime.Gosched()
			}
		}
	})
	return func() (uint64, uint64) {
		stop.Store(true)
		wg.Wait()
		if err := c.Close(); err != nil {
			b.Error(err)
		}
		return got, lost
	}
}

// BenchmarkEmit is Emit alone, of a payload that does not change.
func BenchmarkEmit(b *testing.B) {
	for _, bench := range []struct {
		name string
		lib  bool
	}{{"crc=fused", false}, {"crc=library", true}} {
		b.Run(bench.name, func(b *testing.B) {
			p := benchRing(b, DefaultSlots)
			if bench.lib {
				p.keys = nil
			} else if p.keys == nil {
				b.Skip("this processor or build has no fused CRC")
			}
			payload := make([]uint64, benchWords)
			b.SetBytes(8 * benchWords)
			for b.Loop() {
				p.Emit(payload)
			}
		})
	}
}

// BenchmarkNext measures the reading end on a full ring.
func BenchmarkNext(b *testing.B) {
	const slots = 1 << 10
	p := benchRing(b, slots)
	for range slots {
		p.Emit(make([]uint64, benchWords))
	}
	c, err := Open(p.Path())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for _, bench := range []struct {
		name  string
		batch int
	}{{"batch=1", 1}, {"batch=64", 64}} {
		b.Run(bench.name, func(b *testing.B) {
			dst := make([]uint64, bench.batch*benchWords)
			b.SetBytes(8 * benchWords * int64(bench.batch))
			for b.Loop() {
				if c.Position()+uint64(bench.batch) > slots {
					c.Seek(0)
				}
				if _, n, st := c.NextBatch(dst); st != Got || n != bench.batch {
					b.Fatal(n, st)
				}
			}
		})
	}
}
