package digestlog

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/fixedsum"
)

// leavesAtOnce is how many leaf hashes are put into the tree at once.
const leavesAtOnce = 1024

// A treeReplay is the tree of a verification, which another library keeps. Leaf hashes are put into it behind the back of the one who reads the log, a
// list at a time; settle waits for that, and is to be called before anything of the tree is looked at, and in the end.
type treeReplay struct {
	tree   *compact.Range
	wanted []uint64 // sizes at which roots are still to be noted, ascending
	noted  func(size uint64, root [32]byte)
	err    error

	next, now []tlog.Hash // leaf hashes that were handed in, and those of them that are being put into the tree
	busy      sync.WaitGroup
	node      *fixedsum.Hasher
	free      [][]byte // memory of hashes that the library does not need any more
	folding   bool     // it folds a root
}

// newTreeReplay returns an empty tree. noted is called with the root at each wanted size that the tree comes to.
func newTreeReplay(wanted []uint64, noted func(size uint64, root [32]byte)) *treeReplay {
	p := &treeReplay{wanted: slices.Clone(wanted), noted: noted, node: fixedsum.New(1 + 2*tlog.HashSize)}
	slices.Sort(p.wanted)
	p.wanted = slices.Compact(p.wanted)
	p.tree = (&compact.RangeFactory{Hash: p.hashNode}).NewEmptyRange(0)
	return p
}

// restart puts the tree in the place of the one that there was.
func (p *treeReplay) restart(f *frontier) error {
	nodes := make([][]byte, len(f.nodes))
	for i := range nodes {
		nodes[i] = bytes.Clone(f.nodes[i][:])
	}
	tree, err := (&compact.RangeFactory{Hash: p.hashNode}).NewRange(0, f.size, nodes)
	if err == nil {
		p.tree = tree
		p.note()
	}
	return err
}

// add hands in the next leaf hash.
func (p *treeReplay) add(leaf *tlog.Hash) {
	p.next = append(p.next, *leaf)
	if len(p.next) < leavesAtOnce {
		return
	}
	p.busy.Wait()
	p.next, p.now = p.now[:0], p.next
	p.busy.Go(p.work)
}

// settle waits until all leaf hashes are in the tree.
func (p *treeReplay) settle() error {
	p.busy.Wait()
	p.next, p.now = p.now[:0], p.next
	p.work()
	return p.err
}

// work puts the leaf hashes in now into the tree.
func (p *treeReplay) work() {
	for i := range p.now {
		if err := p.tree.Append(p.keep(&p.now[i]), nil); err != nil {
			p.err = fmt.Errorf("digestlog: verify entry %d: %w", p.tree.End(), err)
			break
		}
		p.note()
	}
	p.now = p.now[:0]
}

// note takes down the root if the tree has a wanted size.
func (p *treeReplay) note() {
	if len(p.wanted) > 0 && p.wanted[0] == p.tree.End() {
		p.noted(p.wanted[0], p.root())
		p.wanted = p.wanted[1:]
	}
}

// root returns the root of the tree as it is.
func (p *treeReplay) root() (root [32]byte) {
	p.folding = true
	hash, err := p.tree.GetRootHash(nil)
	p.folding = false
	if err != nil {
		panic("digestlog: no root of a range from 0: " + err.Error())
	}
	if hash == nil {
		hash = rfc6962.DefaultHasher.EmptyRoot()
	}
	copy(root[:], hash)
	return root
}

// hashNode is rfc6962.DefaultHasher.HashChildren, in less time and without memory of its own: when the tree grows, the library is done with both hashes
// once they are joined. When it folds a root it is not.
func (p *treeReplay) hashNode(left, right []byte) []byte {
	m := p.node.Message()
	m[0] = nodePrefix
	copy(m[1:], left)
	copy(m[1+tlog.HashSize:], right)
	sum := p.node.Sum()
	if p.folding {
		return bytes.Clone(sum[:])
	}
	p.free = append(p.free, right)
	copy(left, sum[:])
	return left
}

// keep puts a hash where the library may keep it.
func (p *treeReplay) keep(hash *tlog.Hash) []byte {
	n := len(p.free) - 1
	if n < 0 {
		return bytes.Clone(hash[:])
	}
	b := p.free[n]
	p.free = p.free[:n]
	copy(b, hash[:])
	return b
}

// bytesAtOnce is about how many bytes of entries are hashed at once.
const bytesAtOnce = 128 << 10

// A leafHasher computes the leaf hashes of entries behind the back of the one who reads them, some at a time, in their order. settle waits for that; it is to
// be called before anything is touched that each or the outline use.
type leafHasher struct {
	each    func(*tlog.Hash)
	outline *outliner // is given the entries with their hashes; may be nil

	next, now entryList // entries that were handed in, and those of them that are being hashed
	busy      sync.WaitGroup
	encoder   Encoder
	leaf      tlog.Hash
}

// entryList is entries back to back, each ending where ends says.
type entryList struct {
	raw  []byte
	ends []int
}

// add hands in an entry, of which it makes a copy.
func (h *leafHasher) add(raw []byte) {
	h.next.raw = append(h.next.raw, raw...)
	h.next.ends = append(h.next.ends, len(h.next.raw))
	if len(h.next.raw) < bytesAtOnce {
		return
	}
	h.busy.Wait()
	h.next, h.now = h.now, h.next
	h.busy.Go(h.work)
}

// settle waits until all entries are hashed.
func (h *leafHasher) settle() {
	h.busy.Wait()
	h.next, h.now = h.now, h.next
	h.work()
}

// work hashes the entries in now.
func (h *leafHasher) work() {
	start := 0
	for _, end := range h.now.ends {
		raw := h.now.raw[start:end]
		start = end
		h.leaf = h.encoder.hash(raw)
		if h.outline != nil {
			s, isStep := stepOf(raw)
			h.outline.add(raw, &s, isStep, &h.leaf)
		}
		h.each(&h.leaf)
	}
	h.now.raw, h.now.ends = h.now.raw[:0], h.now.ends[:0]
}
