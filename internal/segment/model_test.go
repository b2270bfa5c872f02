package segment_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// modelBatch is a batch of a random file and what was done to it.
type modelBatch struct {
	start, end int
	first      uint64
	count      int
	synced     int
	bad        bool
}

// expected is the rule of doc/format/segment.md in its shortest form: a run of bad batches is damage if
// a good one behind it says that its start was durable, and else the end of the file.
func expected(batches []modelBatch) (want result) {
	for i := 0; i < len(batches); i++ {
		b := batches[i]
		if !b.bad {
			for o := range uint64(b.count) {
				want.Ordinals = append(want.Ordinals, b.first+o)
			}
			want.Sealed = b.count == 0
			continue
		}
		promised := false
		for _, later := range batches[i+1:] {
			promised = promised || !later.bad && later.synced > b.start
		}
		if !promised {
			want.Torn = int64(b.start)
			return want
		}
		for i+1 < len(batches) && batches[i+1].bad {
			i++
		}
		want.Corrupt = append(want.Corrupt, [2]int64{int64(b.start), int64(batches[i].end)})
	}
	return want
}

func TestDamageModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRaw(100, "", 4096)
		var batches []modelBatch
		n := rapid.IntRange(1, 12).Draw(rt, "batches")
		synced := r.len()
		for i := range n {
			b := modelBatch{start: r.len(), first: r.next, count: rapid.IntRange(1, 3).Draw(rt, "count")}
			if i == n-1 && rapid.Bool().Draw(rt, "sealed") {
				b.count = 0
			}
			if b.count == 0 || rapid.Bool().Draw(rt, "sync") {
				synced = b.start // all before was synced, and this batch is the first to say so
			}
			b.synced = synced
			r.batch(b.count, b.synced, nil)
			b.end = r.len()
			batches = append(batches, b)
		}
		for i := range batches {
			b := &batches[i]
			if b.bad = rapid.IntRange(0, 3).Draw(rt, "bad") == 0; b.bad {
				at := rapid.IntRange(b.start, b.end-1).Draw(rt, "at")
				r.data[at] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
				if rapid.Bool().Draw(rt, "zero") {
					clear(r.data[b.start:b.end])
				}
			}
		}
		tail := 8 * rapid.IntRange(0, 200).Draw(rt, "tail")
		if last := batches[len(batches)-1]; last.count == 0 && !last.bad {
			tail = 0
		}
		want := expected(batches)
		m := newFS(t)
		got := readAll(t, m, write(t, m, r.zeros(tail).data))
		if want.Torn > 0 && got.Torn == 0 && allZero(r.data[want.Torn:]) {
			got.Torn = want.Torn // nothing there at all is a clean end
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatal(diff)
		}
	})
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
