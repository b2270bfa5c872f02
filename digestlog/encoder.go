package digestlog

import (
	"crypto/sha256"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/fixedsum"
)

// Encoded is a list of entries that are encoded and hashed, ready for [Log.AppendEncoded]. The zero value is empty.
type Encoded struct {
	raw    []byte // entries back to back, entry i ending at ends[i]
	ends   []int
	leaves []tlog.Hash
}

// Reset empties the list and keeps its memory.
func (x *Encoded) Reset() { x.raw, x.ends, x.leaves = x.raw[:0], x.ends[:0], x.leaves[:0] }

// Like returns an empty list with room for as much as x has and an eighth more.
func (x *Encoded) Like() Encoded {
	n := len(x.ends) + len(x.ends)/8
	return Encoded{raw: make([]byte, 0, len(x.raw)+len(x.raw)/8), ends: make([]int, 0, n), leaves: make([]tlog.Hash, 0, n)}
}

// Len returns the number of entries.
func (x *Encoded) Len() int { return len(x.ends) }

// Size returns about how many bytes of memory the entries take.
func (x *Encoded) Size() int { return len(x.raw) + len(x.ends)*(8+sha256.Size) }

// start is where entry i begins, and entry i-1 ends.
func (x *Encoded) start(i int) int {
	if i == 0 {
		return 0
	}
	return x.ends[i-1]
}

// An Encoder encodes and hashes entries before it is their turn in the log, so that this can be done in another goroutine than the log's.
// It is for one goroutine. The zero value is ready.
type Encoder struct {
	leaf []byte // a prefix and the entry
	len  int    // of the last STEP entry's prefix and bytes
	sum  *fixedsum.Hasher
}

// Append adds e to x. It does not keep e. The error is an [ErrEntry].
func (c *Encoder) Append(x *Encoded, e *Entry) error {
	if err := e.Validate(); err != nil {
		return err
	}
	start := len(x.raw)
	x.raw = e.Append(x.raw)
	x.ends = append(x.ends, len(x.raw))
	x.leaves = append(x.leaves, c.hash(x.raw[start:]))
	return nil
}

// hash is tlog.RecordHash of raw in half of its time: prefix and entry are hashed in one piece, and those of one
// length, as the STEP entries of a run are, with one hasher, which is made when two follow each other.
func (c *Encoder) hash(raw []byte) tlog.Hash {
	n := 1 + len(raw)
	again := n == c.len
	if n > entryHeader && Kind(raw[1]) == KindStep {
		c.len = n
		if again && (c.sum == nil || len(c.sum.Message()) != n) {
			c.sum = fixedsum.New(n)
		}
	}
	if c.sum == nil || len(c.sum.Message()) != n {
		c.leaf = append(append(c.leaf[:0], leafPrefix), raw...)
		return sha256.Sum256(c.leaf)
	}
	m := c.sum.Message()
	m[0] = leafPrefix
	copy(m[1:], raw)
	return c.sum.Sum()
}
