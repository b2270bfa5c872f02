package ring

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"time"
)

// The layout of doc/format/ring.md. Offsets are bytes from the start of the file.
const (
	magic      = "USPRING1"
	version    = 1
	endianMark = 0x01020304

	offVersion     = 8
	offEndian      = 12
	offHeaderLen   = 16
	offSlotSize    = 24
	offSlotCount   = 32
	offPayloadLen  = 40
	offSchemaOff   = 48
	offSchemaLen   = 52
	offMetaOff     = 56
	offMetaLen     = 60
	offSchemaSum   = 64
	offRunID       = 96
	offGeneration  = 128
	offAreas       = 132
	offCapacity    = 136
	offBootID      = 144
	offPID         = 160
	offStart       = 168
	offCRC         = 252
	fixedHeaderLen = 256 // the fields above, the last of them the CRC

	offDurations = 256 // producer's counts of how long handing over took
	offLongest   = offDurations + 8*durationCounts
	offSum       = offLongest + 8

	offPosition  = 1024 // producer's words, each alone on 128 bytes
	offHeartbeat = 1152
	offState     = 1280
	offDrops     = 1408
	offConsumer  = 1536 // consumer's words, together on 128 bytes
	offText      = 2048 // schema, then meta

	consumerPhase     = 0
	consumerPosition  = 8
	consumerStored    = 16
	consumerLost      = 24
	consumerSynced    = 32
	consumerSnapshots = 40
	consumerPID       = 48
	consumerStorage   = 56
	consumerFault     = 64
	consumerHeld      = 72
	consumerUnsaved   = 80

	slotSeq       = 0
	slotLenCRC    = 8
	slotHeaderLen = 16

	pageSize = 4096
)

// Limits of the format.
const (
	MaxPayload  = 1<<20 - 4096 // bytes of a record; it still fits a segment's frame of 1 MiB with its header
	MaxSchema   = 64 << 10     // bytes of the schema text
	MaxMeta     = 64 << 10     // bytes of the producer's metadata
	MaxRunID    = 32           // bytes of a run id
	MinSlots    = 2
	MaxSlots    = 1 << 24
	MaxAreas    = 16
	MaxCapacity = 1 << 40 // bytes of one staging area
	maxRing     = 1 << 38 // bytes of a ring file
	maxSeq      = 1 << 62 // of a record: 2n+2 must not come near the end of a word
)

// Header is the fixed part of a ring: written once by the producer, before the
// ring gets its name, and never changed.
type Header struct {
	RunID           string // run that the records belong to
	Generation      uint32 // restart within the run
	Schema          []byte // text that describes a record; opaque here
	SchemaSum       [32]byte
	Meta            []byte // producer's metadata, JSON by convention; opaque here
	PayloadLen      int    // bytes of a record, a multiple of 8
	Slots           int    // a power of two
	SlotSize        int    // bytes from slot to slot
	StagingAreas    int
	StagingCapacity int64    // bytes of each staging area
	BootID          [16]byte // of the machine's boot; zero where there is none
	PID             int      // of the producer, for display only
	Start           time.Time
}

// Words returns the 8-byte words of one record.
func (h Header) Words() int { return h.PayloadLen / 8 }

func (h *Header) headerLen() int64 {
	return roundUp(offText+int64(len(h.Schema))+int64(len(h.Meta)), pageSize)
}

func (h *Header) fileSize() int64 {
	return h.headerLen() + int64(h.Slots)*int64(h.SlotSize)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func slotSizeFor(payloadLen int) int { return int(roundUp(slotHeaderLen+int64(payloadLen), 64)) }

// check says what in a header cannot be; the same rules hold for a ring to
// create and for one found.
func (h *Header) check() error {
	switch {
	case h.PayloadLen < 8 || h.PayloadLen > MaxPayload || h.PayloadLen%8 != 0:
		return fmt.Errorf("payload of %d bytes: want a multiple of 8 in [8, %d]", h.PayloadLen, MaxPayload)
	case h.Slots < MinSlots || h.Slots > MaxSlots || bits.OnesCount(uint(h.Slots)) != 1:
		return fmt.Errorf("%d slots: want a power of two in [%d, %d]", h.Slots, MinSlots, MaxSlots)
	case h.SlotSize%64 != 0 || h.SlotSize < slotHeaderLen+h.PayloadLen || h.SlotSize > MaxPayload+4096:
		return fmt.Errorf("slots of %d bytes: want a multiple of 64 that holds %d + %d", h.SlotSize, slotHeaderLen, h.PayloadLen)
	case len(h.Schema) > MaxSchema:
		return fmt.Errorf("schema of %d bytes: at most %d", len(h.Schema), MaxSchema)
	case len(h.Meta) > MaxMeta:
		return fmt.Errorf("metadata of %d bytes: at most %d", len(h.Meta), MaxMeta)
	case len(h.RunID) > MaxRunID || bytes.IndexByte([]byte(h.RunID), 0) >= 0:
		return fmt.Errorf("run id %q: at most %d bytes, none of them zero", h.RunID, MaxRunID)
	case h.StagingAreas < 0 || h.StagingAreas > MaxAreas:
		return fmt.Errorf("%d staging areas: at most %d", h.StagingAreas, MaxAreas)
	case h.StagingCapacity < 0 || h.StagingCapacity > MaxCapacity || h.StagingCapacity > math.MaxInt-2*pageSize:
		return fmt.Errorf("staging areas of %d bytes: at most %d", h.StagingCapacity, int64(MaxCapacity))
	case (h.StagingAreas == 0) != (h.StagingCapacity == 0):
		return fmt.Errorf("%d staging areas of %d bytes: both or neither", h.StagingAreas, h.StagingCapacity)
	case h.fileSize() > maxRing || h.fileSize() > math.MaxInt:
		return fmt.Errorf("ring of %d bytes: at most %d", h.fileSize(), int64(maxRing))
	}
	return nil
}

// encode returns the first headerLen bytes of the file: everything but the
// words that change while the ring lives.
func (h *Header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, h.headerLen())
	copy(b, magic)
	le.PutUint32(b[offVersion:], version)
	le.PutUint32(b[offEndian:], endianMark)
	le.PutUint64(b[offHeaderLen:], uint64(len(b)))
	le.PutUint64(b[offSlotSize:], uint64(h.SlotSize))
	le.PutUint64(b[offSlotCount:], uint64(h.Slots))
	le.PutUint64(b[offPayloadLen:], uint64(h.PayloadLen))
	metaOff := offText + len(h.Schema)
	le.PutUint32(b[offSchemaOff:], offText)
	le.PutUint32(b[offSchemaLen:], uint32(len(h.Schema)))
	le.PutUint32(b[offMetaOff:], uint32(metaOff))
	le.PutUint32(b[offMetaLen:], uint32(len(h.Meta)))
	copy(b[offSchemaSum:], h.SchemaSum[:])
	copy(b[offRunID:offRunID+MaxRunID], h.RunID)
	le.PutUint32(b[offGeneration:], h.Generation)
	le.PutUint32(b[offAreas:], uint32(h.StagingAreas))
	le.PutUint64(b[offCapacity:], uint64(h.StagingCapacity))
	copy(b[offBootID:], h.BootID[:])
	le.PutUint32(b[offPID:], uint32(h.PID))
	le.PutUint64(b[offStart:], uint64(h.Start.UnixNano()))
	copy(b[offText:], h.Schema)
	copy(b[metaOff:], h.Meta)
	le.PutUint32(b[offCRC:], headerCRC(b, h.Schema, h.Meta))
	return b
}

// headerCRC covers the fixed fields before it, the schema and the metadata.
func headerCRC(fixed, schema, meta []byte) uint32 {
	c := crc32.ChecksumIEEE(fixed[:offCRC])
	c = crc32.Update(c, crc32.IEEETable, schema)
	return crc32.Update(c, crc32.IEEETable, meta)
}

// badHeader is an error at an offset of the header, of one of the classes above.
func badHeader(class error, off int64, format string, args ...any) error {
	return fmt.Errorf("offset %d: %s: %w", off, fmt.Sprintf(format, args...), class)
}

// extent is where the texts of a header lie, as the file says.
type extent struct {
	headerLen, schemaOff, schemaLen, metaOff, metaLen int64
}

// decodeFixed reads the first 256 bytes of a file of the given size, checks
// everything that bounds what has to be read next, and nothing that rests on
// the CRC.
func decodeFixed(b []byte, size int64) (Header, extent, error) {
	le := binary.LittleEndian
	if len(b) < len(magic) || string(b[:len(magic)]) != magic {
		return Header{}, extent{}, badHeader(ErrNotRing, 0, "magic is not %q", magic)
	}
	if len(b) < fixedHeaderLen {
		return Header{}, extent{}, badHeader(ErrCorrupt, int64(len(b)), "file ends inside the header")
	}
	if m := le.Uint32(b[offEndian:]); m != endianMark {
		return Header{}, extent{}, badHeader(ErrCorrupt, offEndian, "endian mark %#08x, want %#08x: written on a host of other byte order, or damaged", m, endianMark)
	}
	if v := le.Uint32(b[offVersion:]); v != version {
		return Header{}, extent{}, badHeader(ErrVersion, offVersion, "version %d, want %d: update usp to read it", v, version)
	}
	x := extent{
		schemaOff: int64(le.Uint32(b[offSchemaOff:])),
		schemaLen: int64(le.Uint32(b[offSchemaLen:])),
		metaOff:   int64(le.Uint32(b[offMetaOff:])),
		metaLen:   int64(le.Uint32(b[offMetaLen:])),
	}
	hl := le.Uint64(b[offHeaderLen:])
	if hl%pageSize != 0 || hl == 0 || hl > offText+MaxSchema+MaxMeta+2*pageSize || int64(hl) > size {
		return Header{}, extent{}, badHeader(ErrCorrupt, offHeaderLen, "header of %d bytes in a file of %d", hl, size)
	}
	x.headerLen = int64(hl)
	if x.schemaLen > MaxSchema || x.schemaOff < offText || x.schemaOff+x.schemaLen > x.headerLen {
		return Header{}, extent{}, badHeader(ErrCorrupt, offSchemaOff, "schema at %d, %d bytes, leaves the header", x.schemaOff, x.schemaLen)
	}
	if x.metaLen > MaxMeta || x.metaOff < offText || x.metaOff+x.metaLen > x.headerLen {
		return Header{}, extent{}, badHeader(ErrCorrupt, offMetaOff, "metadata at %d, %d bytes, leaves the header", x.metaOff, x.metaLen)
	}
	var h Header
	for _, f := range []struct {
		dst *int
		off int
	}{{&h.SlotSize, offSlotSize}, {&h.Slots, offSlotCount}, {&h.PayloadLen, offPayloadLen}} {
		v := le.Uint64(b[f.off:])
		if v > maxRing || v > math.MaxInt {
			return Header{}, extent{}, badHeader(ErrCorrupt, int64(f.off), "value %d is out of range", v)
		}
		*f.dst = int(v)
	}
	h.Generation = le.Uint32(b[offGeneration:])
	h.StagingAreas = int(le.Uint32(b[offAreas:]))
	h.StagingCapacity = int64(min(le.Uint64(b[offCapacity:]), math.MaxInt64))
	h.RunID = string(bytes.TrimRight(b[offRunID:offRunID+MaxRunID], "\x00"))
	copy(h.SchemaSum[:], b[offSchemaSum:])
	copy(h.BootID[:], b[offBootID:])
	h.PID = int(le.Uint32(b[offPID:]))
	h.Start = time.Unix(0, int64(le.Uint64(b[offStart:]))).UTC()
	return h, x, nil
}

// finish takes the texts, then checks the CRC, the geometry against the size of
// the file, and the schema's digest, in that order.
func (h *Header) finish(fixed []byte, x extent, schema, meta []byte, size int64) error {
	h.Schema, h.Meta = schema, meta
	if got, want := headerCRC(fixed, schema, meta), binary.LittleEndian.Uint32(fixed[offCRC:]); got != want {
		return badHeader(ErrCorrupt, offCRC, "header crc %08x, want %08x", got, want)
	}
	if err := h.check(); err != nil {
		return badHeader(ErrCorrupt, 0, "%v", err)
	}
	if want := x.headerLen + int64(h.Slots)*int64(h.SlotSize); size != want {
		return badHeader(ErrCorrupt, min(size, want), "file has %d bytes, its header says %d", size, want)
	}
	if sha256.Sum256(schema) != h.SchemaSum {
		return badHeader(ErrDigest, offSchemaSum, "sha256 of the schema is not %x", h.SchemaSum)
	}
	return nil
}
