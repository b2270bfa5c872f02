package digestlog

import (
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// A Growth knows what it takes to prove that a log only grew: that its first [Growth.From] entries are still the first of its [Growth.Size].
// It is told each leaf hash when it joins the tree, and holds at most two hashes for each bit of the size, however much the log has grown.
// The zero value is the growth from the empty log. It is for one goroutine.
//
// Who has to show the log to a witness keeps one Growth from the size that the witness has seen, and begins another at the size it is
// about to be shown, see [Growth.Restart].
type Growth struct {
	old   frontier    // the tree of the first From leaves
	size  uint64      // leaves now
	nodes []tlog.Hash // roots of the largest perfect subtrees that the leaves behind the first From make, from left to right
}

// newGrowth begins at the tree f.
func newGrowth(f *frontier) *Growth {
	return &Growth{old: f.clone(), size: f.size}
}

// ReadGrowth reads the growth of the log in dir from size from to size to. It reads from the last file on that begins no later than from. An error that
// wraps [ErrRollback] says that the log has fewer than to entries, a [*Fault] that it is damaged in what has to be read.
func ReadGrowth(fsys vfs.FS, dir string, from, to uint64) (*Growth, error) {
	if from > to {
		return nil, fmt.Errorf("digestlog: growth from size %d to the smaller size %d", from, to)
	}
	g := new(Growth)
	err := readLeaves(fsys, dir, from, to, func(f *frontier) { g = newGrowth(f) }, func(index uint64, raw []byte) {
		if leaf := tlog.RecordHash(raw); index < from {
			g.old.add(leaf)
			g.size++
		} else {
			g.Append(leaf)
		}
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// readLeaves calls leaf for the entries up to size to, from the last file on that begins no later than entry first, and begin with the tree
// before that file.
func readLeaves(fsys vfs.FS, dir string, first, to uint64, begin func(f *frontier), leaf func(index uint64, raw []byte)) error {
	next, begun := uint64(0), false
	var failed error
	w := walker{fsys: orOS(fsys), dir: dir, first: first}
	w.enter = func(k *link) bool {
		if !begun {
			begun, next = true, k.base
			begin(&k.tree)
		}
		return true
	}
	w.item = func(it Item, _ *Fault) bool {
		if next >= to {
			return false
		}
		leaf(next, it.Raw)
		next++
		return true
	}
	w.fault = func(f *Fault) bool {
		if !f.Benign() {
			failed = f
		}
		return failed == nil
	}
	switch err := w.run(); {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case next < to:
		return fmt.Errorf("%w: it has %d entries of %d", ErrRollback, next, to)
	}
	return nil
}

// Append adds the hash of the next leaf.
func (g *Growth) Append(leaf tlog.Hash) { g.join(leaf, tlog.NodeHash) }

// join is Append with a node hash of the caller's.
func (g *Growth) join(leaf tlog.Hash, node func(left, right tlog.Hash) tlog.Hash) {
	// A subtree is joined with its left neighbour if that has the same size and is not part of the old tree.
	for level := 0; g.size>>level&1 == 1 && (g.size>>level-1)<<level >= g.old.size; level++ {
		last := len(g.nodes) - 1
		leaf = node(g.nodes[last], leaf)
		g.nodes = g.nodes[:last]
	}
	g.nodes = append(g.nodes, leaf)
	g.size++
}

// From returns the size from which the growth is known.
func (g *Growth) From() uint64 { return g.old.size }

// Size returns the size of the tree with all leaves that were appended.
func (g *Growth) Size() uint64 { return g.size }

// Restart returns a new growth that begins at the present size. Both go on independently.
func (g *Growth) Restart() *Growth {
	f := g.old.clone()
	// The nodes behind the old tree are perfect subtrees from left to right: each joins what is as large as it is.
	for at, i := g.old.size, 0; i < len(g.nodes); i++ {
		level := subtreeLevel(at, g.size)
		f.joinSubtree(g.nodes[i], level)
		at += 1 << level
	}
	return &Growth{old: f, size: g.size}
}

// subtreeLevel returns the height of the largest perfect subtree that begins at leaf at and ends no later than size.
func subtreeLevel(at, size uint64) int {
	fits := bits.Len64(size-at) - 1
	if at == 0 {
		return fits
	}
	return min(fits, bits.TrailingZeros64(at))
}

// joinSubtree adds the root of a perfect subtree of 2^level leaves; size must be a multiple of that.
func (f *frontier) joinSubtree(root tlog.Hash, level int) {
	added := uint64(1) << level
	for ; f.size>>level&1 == 1; level++ {
		last := len(f.nodes) - 1
		root = tlog.NodeHash(f.nodes[last], root)
		f.nodes = f.nodes[:last]
	}
	f.nodes = append(f.nodes, root)
	f.size += added
}

// Proof returns the consistency proof (RFC 6962, 2.1.2) between the trees of the first [Growth.From] and of all [Growth.Size] leaves. It is empty
// if the sizes are equal or the first is 0: then there is nothing to prove.
func (g *Growth) Proof() []tlog.Hash {
	from, old := g.old.size, g.old.nodes
	if from == 0 || from == g.size {
		return nil
	}
	// The proof is the audit path of the old tree's last perfect subtree in the new tree, behind the root of that subtree where
	// the verifier does not know it already: it does if that is the whole old tree.
	var proof []tlog.Hash
	last := len(old) - 1
	if last > 0 {
		proof = append(proof, old[last])
	}
	return append(proof, auditPath(from-1, bits.TrailingZeros64(from), g.size, old[:last], g.nodes)...)
}

// auditPath returns the audit path (RFC 6962, 2.1.1) of the node of a level that has the leaf last as its rightmost one, or its only one, in a tree of that size. left are
// the perfect subtrees before that node, right those of the leaves behind it.
func auditPath(last uint64, level int, size uint64, left, right []tlog.Hash) []tlog.Hash {
	var path []tlog.Hash
	for ; len(left) > 0 || len(right) > 0; level++ {
		node := last >> level
		next := (node + 1) << level // where its right neighbour begins
		switch {
		case node&1 == 1:
			path = append(path, left[len(left)-1])
			left = left[:len(left)-1]
		case next >= size: // nothing on its right
		case next+1<<level <= size:
			path = append(path, right[0])
			right = right[1:]
		default: // the rest of the tree, which is not a perfect subtree
			root := right[len(right)-1]
			for _, l := range slices.Backward(right[:len(right)-1]) {
				root = tlog.NodeHash(l, root)
			}
			path = append(path, root)
			right = nil
		}
	}
	return path
}
