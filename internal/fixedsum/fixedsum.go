// Package fixedsum computes the SHA-256 of many short messages of one length.
//
// crypto/sha256 copies its state and pads that copy for each sum, which for a message of one or two blocks costs nearly
// as much as the hash itself. Here the padding is in place once and for all, so that whole blocks go through
// crypto/sha256 and its state, which it gives out through encoding.BinaryAppender, is the sum. The layout of that state
// is no promise of the standard library: New tries it and falls back to sha256.Sum256. So the results are always those
// of sha256.Sum256; only the speed depends.
package fixedsum

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

const (
	stateAt = 4       // where the sum is in the state: behind a mark of that length
	longest = 4 << 10 // beyond it, padding is nothing beside the message
)

// Hasher computes sums of messages of one length. It is not safe for concurrent use.
type Hasher struct {
	n     int
	block []byte // the message, and its padding
	hash  hash.Hash
	state encoding.BinaryAppender // of hash; nil: the state is of no use
	out   []byte
}

// New returns a Hasher for messages of n bytes.
func New(n int) *Hasher {
	h := &Hasher{n: n, block: make([]byte, (n+1+8+sha256.BlockSize-1)/sha256.BlockSize*sha256.BlockSize)}
	h.block[n] = 0x80
	binary.BigEndian.PutUint64(h.block[len(h.block)-8:], 8*uint64(n))
	if n > longest {
		return h
	}
	h.hash = sha256.New()
	h.state, _ = h.hash.(encoding.BinaryAppender)
	if h.state != nil && !h.works() {
		h.state = nil
	}
	return h
}

// works tries whether the state is the sum, for a message with no byte like its neighbour.
func (h *Hasher) works() bool {
	m := h.Message()
	for i := range m {
		m[i] = byte(i*7 + i>>8)
	}
	state, err := h.run()
	ok := err == nil && len(state) >= stateAt+sha256.Size && [sha256.Size]byte(state[stateAt:]) == sha256.Sum256(m)
	clear(m)
	return ok
}

func (h *Hasher) run() ([]byte, error) {
	h.hash.Reset()
	h.hash.Write(h.block) // never fails
	var err error
	h.out, err = h.state.AppendBinary(h.out[:0])
	return h.out, err
}

// Message returns where the message goes, all of it: what was there before is still there.
func (h *Hasher) Message() []byte { return h.block[:h.n:h.n] }

// Sum returns the SHA-256 of the message.
func (h *Hasher) Sum() [sha256.Size]byte {
	if h.state != nil {
		if state, err := h.run(); err == nil {
			return [sha256.Size]byte(state[stateAt:])
		}
	}
	return sha256.Sum256(h.Message())
}
