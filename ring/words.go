package ring

import (
	"sync/atomic"
	"unsafe"
)

// Everything two processes touch is an aligned 8-byte word of a mapping, read
// and written by these. The pointers lie outside of the Go heap.

func load(p unsafe.Pointer) uint64 { return atomic.LoadUint64((*uint64)(p)) }

func store(p unsafe.Pointer, v uint64) { atomic.StoreUint64((*uint64)(p), v) }

// payloadBytes views private words as bytes; hosts are little-endian.
func payloadBytes(w []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), len(w)*8)
}
