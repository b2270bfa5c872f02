package snapshot

import (
	"crypto/sha256"
	"hash"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// Up to how many bytes the caller hashes itself. A reader has little to do beside
// hashing, a writer waits for its device.
const (
	hashReadInline  = 4 << 20
	hashWriteInline = 64 << 10
)

// hasher computes a SHA-256 beside the caller's I/O, in one goroutine that ends
// with stop or abandon. An inline one has none: to wake one takes longer than to
// hash few bytes. write only queues: memory that is given to it must not change
// until wait says that it was hashed. write and wait accept nil, and then do nothing.
type hasher struct {
	h       hash.Hash
	inline  bool
	dropped atomic.Bool
	done    chan struct{}

	mu     sync.Mutex
	cond   sync.Cond
	queue  [][]byte
	queued uint64 // pieces ever queued
	hashed uint64 // pieces of them that are hashed
	closed bool
	fault  any // what step met; the rest was not hashed
}

func newHasher(inline bool) *hasher {
	h := &hasher{h: sha256.New(), done: make(chan struct{}), inline: inline}
	h.cond.L = &h.mu
	if inline {
		close(h.done)
	} else {
		go h.run()
	}
	return h
}

func (h *hasher) run() {
	defer close(h.done)
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		for len(h.queue) == 0 && !h.closed {
			h.cond.Wait()
		}
		if len(h.queue) == 0 {
			return
		}
		b := h.queue[0]
		h.queue = h.queue[1:]
		h.mu.Unlock()
		// In steps, so that abandon need not wait for a whole section.
		var fault any
		for len(b) > 0 && !h.dropped.Load() && fault == nil {
			n := min(len(b), ChunkSize)
			fault = h.step(b[:n])
			b = b[n:]
		}
		h.mu.Lock()
		if fault != nil {
			h.fault = fault
			h.dropped.Store(true)
		}
		h.hashed++
		h.cond.Broadcast()
	}
}

// step hashes b. The state may lie in memory shared with another process: if that takes the memory away, reading it is a
// fault, which the caller of stop or wait is to see in its own goroutine, where it may be prepared for it.
func (h *hasher) step(b []byte) (fault any) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() }()
	h.h.Write(b)
	return nil
}

// write queues b and returns the ticket to wait for it.
func (h *hasher) write(b []byte) (ticket uint64) {
	if h == nil {
		return 0
	}
	if h.inline {
		h.h.Write(b)
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queue = append(h.queue, b)
	h.queued++
	h.cond.Broadcast()
	return h.queued
}

// wait returns once the piece of a ticket, and all before it, are hashed.
func (h *hasher) wait(ticket uint64) {
	if h == nil || ticket == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.hashed < ticket {
		h.cond.Wait()
	}
	if h.fault != nil {
		panic(h.fault)
	}
}

// stop ends the goroutine when all is hashed; the hash may be used directly afterwards.
func (h *hasher) stop() hash.Hash {
	h.join()
	if h.fault != nil {
		panic(h.fault)
	}
	return h.h
}

func (h *hasher) join() {
	h.mu.Lock()
	h.closed = true
	h.cond.Broadcast()
	h.mu.Unlock()
	<-h.done
}

// abandon ends the goroutine without hashing the rest. After stop it does nothing.
func (h *hasher) abandon() {
	h.dropped.Store(true)
	h.join()
}

// buffers are two pieces of memory used in turn, of which a hasher may still be
// reading the one before.
type buffers struct {
	bufs    [2][]byte
	tickets [2]uint64
	turn    int
}

// next returns n bytes that no hasher reads any more.
func (b *buffers) next(h *hasher, n int) []byte {
	b.turn ^= 1
	h.wait(b.tickets[b.turn])
	if cap(b.bufs[b.turn]) < n {
		b.bufs[b.turn] = make([]byte, n)
	}
	return b.bufs[b.turn][:n]
}

// lent notes when the hasher is through with what next returned last.
func (b *buffers) lent(ticket uint64) { b.tickets[b.turn] = ticket }
