package digestlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// frontier is the right edge of an RFC 6962 tree: the roots of the perfect subtrees that its leaves make, from the largest (leftmost) to the
// smallest. Its length is the number of one bits in size, so it never has more than 63 nodes.
type frontier struct {
	size  uint64
	nodes []tlog.Hash
}

// add appends one leaf hash, joining equal subtrees as the low one bits of the size carry.
func (f *frontier) add(leaf tlog.Hash) { f.join(leaf, tlog.NodeHash) }

// join is add with a node hash of the caller's.
func (f *frontier) join(leaf tlog.Hash, node func(left, right tlog.Hash) tlog.Hash) {
	for carry := f.size; carry&1 == 1; carry >>= 1 {
		last := len(f.nodes) - 1
		leaf = node(f.nodes[last], leaf)
		f.nodes = f.nodes[:last]
	}
	f.nodes = append(f.nodes, leaf)
	f.size++
}

// root returns the tree's root; that of the empty tree is SHA-256 of nothing (RFC 6962, 2.1).
func (f *frontier) root() [32]byte {
	if len(f.nodes) == 0 {
		root, err := tlog.TreeHash(0, nil)
		if err != nil {
			panic("digestlog: no root of the empty tree: " + err.Error()) // tlog reads nothing for size 0
		}
		return root
	}
	root := f.nodes[len(f.nodes)-1]
	for _, left := range slices.Backward(f.nodes[:len(f.nodes)-1]) {
		root = tlog.NodeHash(left, root)
	}
	return root
}

// within reports whether the tree can have grown into later: the largest subtrees of both, as far as their sizes have the same high
// bits, must be the same.
func (f *frontier) within(later *frontier) bool {
	for i := range min(len(f.nodes), len(later.nodes)) {
		if nthBit(f.size, i) != nthBit(later.size, i) {
			break
		}
		if f.nodes[i] != later.nodes[i] {
			return false
		}
	}
	return true
}

// nthBit returns the position of the nth highest one bit of size, which has more than n.
func nthBit(size uint64, n int) int {
	for range n {
		size &^= 1 << (bits.Len64(size) - 1)
	}
	return bits.Len64(size)
}

func (f *frontier) clone() frontier { return frontier{f.size, slices.Clone(f.nodes)} }

// cause says why a segment was begun. It is what tells an unsealed file that was given up from one that was cut.
type cause uint8

const (
	causeStart    cause = 1 // first segment of the log
	causeRoll     cause = 2 // the one before reached its size and was sealed
	causeReopen   cause = 3 // the log was opened again; the one before was sealed
	causePoisoned cause = 4 // a write to the one before failed: its frames from this base on are void, and it has no footer
	maxCause            = causePoisoned
)

const (
	metaVersion = 1
	metaHeader  = 16 // version u8, cause u8, zero u16, node count u32, size u64
)

// appendMeta encodes what a segment header says of the tree at its base.
func appendMeta(dst []byte, c cause, f *frontier) []byte {
	dst = append(dst, metaVersion, byte(c), 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(f.nodes)))
	dst = binary.LittleEndian.AppendUint64(dst, f.size)
	for i := range f.nodes {
		dst = append(dst, f.nodes[i][:]...)
	}
	return dst
}

// parseMeta decodes the meta bytes of a segment with that base.
func parseMeta(b []byte, base uint64) (cause, frontier, error) {
	if len(b) < metaHeader || b[0] == 0 {
		return 0, frontier{}, fmt.Errorf("tree state of %d bytes", len(b))
	}
	if b[0] > metaVersion {
		return 0, frontier{}, fmt.Errorf("%w: tree state version %d", errTooNew, b[0])
	}
	count, size := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:])
	c := cause(b[1])
	switch {
	case c == 0 || c > maxCause || b[2]|b[3] != 0:
		return 0, frontier{}, fmt.Errorf("tree state with cause %d and reserved bytes %x", b[1], b[2:4])
	case size != base || size > maxSize:
		return 0, frontier{}, fmt.Errorf("tree state of size %d in a segment with base %d", size, base)
	case int(count) != bits.OnesCount64(size) || len(b) != metaHeader+32*int(count):
		return 0, frontier{}, fmt.Errorf("tree state of size %d with %d nodes in %d bytes", size, count, len(b))
	}
	f := frontier{size: size, nodes: make([]tlog.Hash, count)}
	for i := range f.nodes {
		copy(f.nodes[i][:], b[metaHeader+32*i:])
	}
	return c, f, nil
}

// maxSize is the largest tree: tlog counts leaves and nodes in an int64.
const maxSize = 1 << 62

var errTooNew = errors.New("written by a newer usp")
