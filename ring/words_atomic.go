//go:build !amd64 || race

package ring

import (
	"sync/atomic"
	"unsafe"
)

// publish writes one record in the order: busy to the slot's sequence word,
// lenCRC, the payload words, busy+1 to the sequence word, (busy+1)/2 to
// position. Every word is stored with release semantics, so each is visible no
// later than the next: a plain copy could overtake the busy mark here.
func publish(slot unsafe.Pointer, payload *uint64, words uintptr, busy, lenCRC uint64, position unsafe.Pointer) {
	seq := (*uint64)(slot)
	atomic.StoreUint64(seq, busy)
	atomic.StoreUint64((*uint64)(unsafe.Add(slot, slotLenCRC)), lenCRC)
	dst := unsafe.Slice((*uint64)(unsafe.Add(slot, slotHeaderLen)), words)
	for i, w := range unsafe.Slice(payload, words) {
		atomic.StoreUint64(&dst[i], w)
	}
	atomic.StoreUint64(seq, busy+1)
	atomic.StoreUint64((*uint64)(position), (busy+1)/2)
}

// fusedKeys: the CRC is the library's here; arm64 has an instruction for it.
func fusedKeys(int) []uint64 { return nil }

// emit publishes record n.
func (p *Producer) emit(n uint64, payload []uint64) {
	busy := 2*n + 1
	sum := p.crc.sum(busy+1, payloadBytes(payload))
	publish(unsafe.Add(p.slots, (n&p.mask)*p.slotSize), unsafe.SliceData(payload), uintptr(len(payload)),
		busy, p.length|uint64(sum)<<32, p.position)
}

// copyOut copies a payload out of a slot that its producer may be overwriting.
// Each load has acquire semantics, so none can be made later than the check of
// the sequence word that follows.
func copyOut(dst []uint64, src unsafe.Pointer) {
	from := unsafe.Slice((*uint64)(src), len(dst))
	for i := range dst {
		dst[i] = atomic.LoadUint64(&from[i])
	}
}
