package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// Header layout; doc/format/segment.md has the table.
const (
	magic      = "USPSEGM1"
	fixedLen   = 128  // bytes before meta
	headerUnit = 4096 // header lengths are multiples of it
	maxHeader  = (fixedLen + MaxMeta + crcLen + headerUnit - 1) / headerUnit * headerUnit
	crcLen     = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errChecksum = errors.New("checksum mismatch")

// appendHeader encodes h; h.Version and h.Len are not read. It also returns the header's checksum,
// which ties the batches of the file to it.
func appendHeader(dst []byte, h Header) (_ []byte, tag uint32, err error) {
	if len(h.RunID) > MaxRunID || strings.ContainsRune(h.RunID, 0) {
		return nil, 0, fmt.Errorf("run id %q: must be at most %d bytes without NUL", h.RunID, MaxRunID)
	}
	if len(h.Meta) > MaxMeta {
		return nil, 0, fmt.Errorf("meta of %d bytes is over the limit of %d", len(h.Meta), MaxMeta)
	}
	n := (fixedLen + len(h.Meta) + crcLen + headerUnit - 1) / headerUnit * headerUnit
	start := len(dst)
	dst = append(dst, make([]byte, n)...)
	b := dst[start:]
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[8:], Version)
	le.PutUint32(b[12:], uint32(h.Kind))
	le.PutUint32(b[16:], uint32(n))
	le.PutUint64(b[24:], h.Base)
	copy(b[32:64], h.RunID)
	le.PutUint64(b[64:], uint64(h.Created.UnixNano()))
	le.PutUint32(b[72:], uint32(len(h.Meta)))
	copy(b[fixedLen:], h.Meta)
	tag = crc32.Checksum(b[:n-crcLen], castagnoli)
	le.PutUint32(b[n-crcLen:], tag)
	return dst, tag, nil
}

// readHeader reads and checks the header of f, whose size is given.
func readHeader(f vfs.File, size int64) (h Header, tag uint32, err error) {
	le := binary.LittleEndian
	start := make([]byte, min(size, fixedLen))
	if _, err := f.ReadAt(start, 0); err != nil && err != io.EOF {
		return h, 0, fmt.Errorf("read segment header: %w", err)
	}
	if !bytes.HasPrefix(start, []byte(magic)) {
		return h, 0, fmt.Errorf("%s: %w", f.Name(), ErrNotSegment)
	}
	corrupt := func(end int64, err error) error {
		return &CorruptError{File: f.Name(), Offset: 0, End: end, Err: err}
	}
	if len(start) < fixedLen {
		return h, 0, corrupt(size, fmt.Errorf("header is cut off after %d bytes", size))
	}
	n := int64(le.Uint32(start[16:]))
	if n < headerUnit || n > maxHeader || n%headerUnit != 0 {
		return h, 0, corrupt(fixedLen, fmt.Errorf("header length %d is not a multiple of %d up to %d", n, headerUnit, maxHeader))
	}
	if n > size {
		return h, 0, corrupt(size, fmt.Errorf("header of %d bytes is cut off after %d", n, size))
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return h, 0, fmt.Errorf("read segment header: %w", err)
	}
	tag = le.Uint32(b[n-crcLen:])
	if crc32.Checksum(b[:n-crcLen], castagnoli) != tag {
		return h, 0, corrupt(n, fmt.Errorf("header: %w", errChecksum))
	}
	// Only now is a strange version a later format and not a flipped bit.
	version := le.Uint32(b[8:])
	if version < firstVersion || version > Version {
		return h, 0, fmt.Errorf("%s: %w: version %d, known are %d to %d", f.Name(), ErrVersion, version, firstVersion, Version)
	}
	if flags := le.Uint32(b[20:]); flags != 0 {
		return h, 0, fmt.Errorf("%s: %w: header flags %#x", f.Name(), ErrVersion, flags)
	}
	meta := int64(le.Uint32(b[72:]))
	if meta > n-fixedLen-crcLen {
		return h, 0, corrupt(n, fmt.Errorf("meta of %d bytes does not fit a header of %d", meta, n))
	}
	return Header{
		Version: version,
		Kind:    Kind(le.Uint32(b[12:])),
		Base:    le.Uint64(b[24:]),
		RunID:   string(bytes.TrimRight(b[32:64], "\x00")),
		Created: time.Unix(0, int64(le.Uint64(b[64:]))).UTC(),
		Meta:    b[fixedLen : fixedLen+meta : fixedLen+meta],
		Len:     int(n),
	}, tag, nil
}
