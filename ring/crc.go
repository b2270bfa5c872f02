package ring

import (
	"encoding/binary"
	"hash/crc32"
)

// slotCRC computes the CRC-32 (IEEE) of a slot: over 2n+2 as 8 bytes, the
// payload length as 4 bytes, and the payload.
//
// The first twelve bytes would cost as much as the payload, because the
// library's fast path wants 16 bytes at a time. A CRC is affine over GF(2),
// so crc(a^b^c) = crc(a)^crc(b)^crc(c) for inputs of one length; with the low
// two bytes of the sequence number tabulated and the rest remembered, the
// twelve bytes cost two look-ups.
type slotCRC struct {
	length uint32
	high   uint64 // 2n+2 >> 16 that base is for
	base   uint32
	low    [2][256]uint32
}

func newSlotCRC(payloadLen int) *slotCRC {
	c := &slotCRC{length: uint32(payloadLen)}
	c.base = c.prefixSlow(0)
	for i := range 256 {
		c.low[0][i] = c.prefixSlow(uint64(i)) ^ c.base
		c.low[1][i] = c.prefixSlow(uint64(i)<<8) ^ c.base
	}
	return c
}

func (c *slotCRC) prefixSlow(done uint64) uint32 {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], done)
	binary.LittleEndian.PutUint32(b[8:], c.length)
	return crc32.ChecksumIEEE(b[:])
}

// prefix is the CRC of the first twelve bytes.
func (c *slotCRC) prefix(done uint64) uint32 {
	if h := done >> 16; h != c.high {
		c.high, c.base = h, c.prefixSlow(h<<16)
	}
	return c.base ^ c.low[0][byte(done)] ^ c.low[1][byte(done>>8)]
}

func (c *slotCRC) sum(done uint64, payload []byte) uint32 {
	return crc32.Update(c.prefix(done), crc32.IEEETable, payload)
}
