package snapshot

import (
	"crypto/sha256"
	"hash"
)

// hasher computes a SHA-256 beside the caller's I/O, in one goroutine that ends
// with Sum or stop. write returns as soon as the previous piece has been hashed,
// so a caller may reuse a piece's memory after the next write: two buffers in
// turn are enough.
type hasher struct {
	h    hash.Hash
	work chan []byte
	done chan struct{}
}

func newHasher() *hasher {
	h := &hasher{h: sha256.New(), work: make(chan []byte), done: make(chan struct{})}
	go func() {
		defer close(h.done)
		for b := range h.work {
			h.h.Write(b)
		}
	}()
	return h
}

func (h *hasher) write(b []byte) {
	if len(b) > 0 {
		h.work <- b
	}
}

// stop ends the goroutine; the hash may be used directly afterwards. It can be
// called more than once.
func (h *hasher) stop() hash.Hash {
	if h.work != nil {
		close(h.work)
		<-h.done
		h.work = nil
	}
	return h.h
}
