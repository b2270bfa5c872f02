//go:build amd64 && !race

package ring

import (
	"hash/crc32"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// publish writes one record with plain stores in program order, which is all
// that x86 needs: its stores become visible in the order they were made. It is
// assembly because nothing else keeps a Go compiler from moving plain stores,
// and sync/atomic's store is an exchange, a full barrier of some 20 cycles.
//
// The order: busy to the slot's sequence word, lenCRC, words payload words,
// busy+1 to the sequence word, (busy+1)/2 to position.
//
//go:noescape
func publish(slot unsafe.Pointer, payload *uint64, words uintptr, busy, lenCRC uint64, position unsafe.Pointer)

// publishFused is publish with the CRC computed on the way; state is the CRC
// register after the twelve bytes before the payload, not inverted. With the
// library's CRC, which was three quarters of Emit, a record of 208 bytes took
// twice as long.
//
//go:noescape
func publishFused(slot unsafe.Pointer, payload, keys *uint64, words uintptr, busy, length uint64, state uint32, position unsafe.Pointer)

// fusedWords bounds the payloads that are worth a table of keys as long as they are.
const fusedWords = 128

// fusedKeys returns the keys of publishFused for payloads of so many words: for
// word i of n the residue x^(64(n-1-i)+32) mod P, reflected, and shifted by one
// as the product of two reflected polynomials wants it. It returns nil if the
// processor has no wide carry-less multiplication or the payload is long.
func fusedKeys(words int) []uint64 {
	if words > fusedWords || !cpu.X86.HasAVX2 || !cpu.X86.HasAVX512VPCLMULQDQ {
		return nil
	}
	keys := make([]uint64, words)
	x := bits.Reverse32(1)
	times := func(power int) {
		for range power {
			x = x>>1 ^ crc32.IEEE&-(x&1)
		}
	}
	times(32)
	for i := words - 1; i >= 0; i-- {
		keys[i] = uint64(x) << 1
		times(64)
	}
	return keys
}

// emit publishes record n.
func (p *Producer) emit(n uint64, payload []uint64) {
	slot := unsafe.Add(p.slots, (n&p.mask)*p.slotSize)
	busy, words := 2*n+1, uintptr(len(payload))
	if p.keys != nil {
		publishFused(slot, unsafe.SliceData(payload), unsafe.SliceData(p.keys), words,
			busy, p.length, ^p.crc.prefix(busy+1), p.position)
		return
	}
	sum := p.crc.sum(busy+1, payloadBytes(payload))
	publish(slot, unsafe.SliceData(payload), words, busy, p.length|uint64(sum)<<32, p.position)
}

// copyOut copies a payload out of a slot that its producer may be overwriting.
// Loads are not reordered with loads on x86, and the call is not moved across
// the atomic loads around it.
func copyOut(dst []uint64, src unsafe.Pointer) {
	copy(dst, unsafe.Slice((*uint64)(src), len(dst)))
}
