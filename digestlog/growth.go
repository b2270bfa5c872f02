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
	var g Growth
	w := walker{fsys: orOS(fsys), dir: dir, first: from}
	var failed error
	w.enter = func(k *link) bool {
		if g.size == 0 { // the file to begin with; the headers of others say what the entries before them say
			g.old = k.tree.clone()
			g.size = k.base
		}
		return true
	}
	w.leaf = func(raw []byte) bool {
		if w.next >= to {
			return false
		}
		if leaf := tlog.RecordHash(raw); g.size < from {
			g.old.add(leaf)
			g.size++
		} else {
			g.Append(leaf)
		}
		return true
	}
	w.item = func(Item, *Fault) bool { return true }
	w.fault = func(f *Fault) bool {
		if !f.Benign() {
			failed = f
		}
		return failed == nil
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	if g.size != to {
		return nil, fmt.Errorf("%w: it has %d entries of %d", ErrRollback, g.size, to)
	}
	return &g, nil
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
	from, old, right := g.old.size, g.old.nodes, g.nodes
	if from == 0 || from == g.size {
		return nil
	}
	// The proof is the audit path of the old tree's last perfect subtree in the new tree, behind the root of that subtree where
	// the verifier does not know it already: it does if that is the whole old tree.
	var proof []tlog.Hash
	if len(old) > 1 {
		proof = append(proof, old[len(old)-1])
	}
	old = old[:len(old)-1]
	for level := bits.TrailingZeros64(from); len(old) > 0 || len(right) > 0; level++ {
		node := (from - 1) >> level
		next := (node + 1) << level // where its right neighbour begins
		switch {
		case node&1 == 1:
			proof = append(proof, old[len(old)-1])
			old = old[:len(old)-1]
		case next >= g.size: // nothing on its right
		case next+1<<level <= g.size:
			proof = append(proof, right[0])
			right = right[1:]
		default: // the rest of the new tree, which is not a perfect subtree
			root := right[len(right)-1]
			for _, left := range slices.Backward(right[:len(right)-1]) {
				root = tlog.NodeHash(left, root)
			}
			proof = append(proof, root)
			right = nil
		}
	}
	return proof
}
