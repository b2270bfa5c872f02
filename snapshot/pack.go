package snapshot

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// packer compresses chunks.
type packer struct {
	enc  *zstd.Encoder
	bufs buffers
}

func newPacker(level int) (*packer, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithWindowSize(ChunkSize))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &packer{enc: enc}, nil
}

// pack returns raw compressed, in memory that h may be given, or raw itself when
// that is not smaller. A nil packer always returns raw.
func (p *packer) pack(h *hasher, raw []byte) []byte {
	if p == nil {
		return raw
	}
	b := p.enc.EncodeAll(raw, p.bufs.next(h, 0))
	// The format bounds how far a chunk may expand, so that a small hostile
	// file cannot ask for unbounded memory. A zstd skippable frame fills up.
	if least := (len(raw) + maxRatio - 1) / maxRatio; len(b) < least {
		fill := max(least-len(b)-8, 0)
		b = binary.LittleEndian.AppendUint32(b, 0x184D2A50)
		b = binary.LittleEndian.AppendUint32(b, uint32(fill))
		b = append(b, make([]byte, fill)...)
	}
	p.bufs.bufs[p.bufs.turn] = b
	if len(b) >= len(raw) {
		return raw
	}
	return b
}

// unpacker decompresses chunks in bounded memory.
type unpacker struct{ dec *zstd.Decoder }

// unpack fills raw from a compressed chunk.
func (u *unpacker) unpack(raw, stored []byte) error {
	if u.dec == nil {
		dec, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(2*ChunkSize),
			zstd.WithDecoderMaxWindow(ChunkSize),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		u.dec = dec
	}
	got, err := u.dec.DecodeAll(stored, raw[:0:len(raw)])
	if err == nil && len(got) != len(raw) {
		err = fmt.Errorf("%d bytes, want %d", len(got), len(raw))
	}
	if err != nil {
		return fmt.Errorf("zstd chunk: %w", err)
	}
	return nil
}

func (u *unpacker) close() {
	if u.dec != nil {
		u.dec.Close()
		u.dec = nil
	}
}
