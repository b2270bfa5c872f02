package digestlog

import (
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// TestTreeReplay: the tree of a verification has the roots that tlog computes, at every size, also when it is begun in the middle, and when its roots
// are looked at on the way.
func TestTreeReplay(t *testing.T) {
	const most = 2*leavesAtOnce + 100
	wanted := map[uint64][32]byte{}
	var sizes []uint64
	var f, middle frontier
	leaf := func(i int) tlog.Hash { return tlog.RecordHash([]byte{byte(i), byte(i >> 8)}) }
	for i := range most {
		wanted[f.size] = f.root()
		if i%3 == 0 || i < 100 {
			sizes = append(sizes, f.size)
		}
		if i == 1111 {
			middle = f.clone()
		}
		f.add(leaf(i))
	}
	for _, from := range []int{0, 1111} {
		noted := 0
		p := newTreeReplay(sizes, func(size uint64, root [32]byte) {
			if noted++; root != wanted[size] {
				t.Errorf("from %d: root at %d is %x, want %x", from, size, root, wanted[size])
			}
		})
		p.note()
		want := len(sizes)
		if from > 0 {
			must(t, p.restart(&middle))
			want = 1 // of 0: nothing is noted that the tree has passed
		}
		for i := from; i < most; i++ {
			h := leaf(i)
			p.add(&h)
			if i%777 == 0 {
				must(t, p.settle())
				if p.tree.End() != uint64(i+1) {
					t.Fatalf("%d of %d leaves after settle", p.tree.End(), i+1)
				}
				p.root()
			}
		}
		must(t, p.settle())
		if p.root() != f.root() || noted != want {
			t.Errorf("from %d: root %x, want %x; %d roots noted of %d", from, p.root(), f.root(), noted, want)
		}
	}
}
