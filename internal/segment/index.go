package segment

import (
	"errors"
	"fmt"
	"io"

	"github.com/usp-project/usp/internal/vfs"
)

// An Indexer makes the index of one segment while its frames are written, or read again by [RepairIndexed]. What an
// index says is its owner's business.
type Indexer interface {
	// Add is called for every frame, in order. It must not keep the frame, and has to bound what it remembers.
	Add(ordinal uint64, frame []byte)
	// Index returns the index of the frames so far, of 1 to MaxIndex bytes; any other length means that there is none.
	Index() []byte
}

// indexBytes returns what can be stored of the index.
func indexBytes(idx Indexer) []byte {
	if b := idx.Index(); len(b) <= MaxIndex {
		return b
	}
	return nil
}

// index gives the frames of the batch to idx, unless that is nil.
func (x *batch) index(idx Indexer) {
	if idx == nil {
		return
	}
	var frame []byte
	for i, rest := uint64(0), x.payload; len(rest) > 0; i++ {
		frame, rest = split(rest)
		idx.Add(x.first+i, frame)
	}
}

// Ends is what the two ends of a segment say of it.
type Ends struct {
	Header Header
	Size   int64  // bytes
	Sealed bool   // it ends in a good footer
	Next   uint64 // of a sealed segment: the ordinal after the last frame
	Index  []byte // of a sealed segment: its index; nil if it has none
}

// ReadEnds reads header, footer and index of a segment and not what is between them, so it takes the same time
// for a segment of any length. The last 40 bytes of a sealed file are its footer, which says where the index is. A
// file that does not end so is not sealed: only a [Reader] can say what it is. Errors are those of [Open], and a
// *CorruptError for an index that is not what the footer promises.
func ReadEnds(fsys vfs.FS, path string) (e Ends, err error) {
	r, err := Open(fsys, path)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	e = Ends{Header: r.header, Size: r.size}
	at := r.size - batchHeader
	if at < int64(r.header.Len) || at%alignment != 0 {
		return e, nil
	}
	x, err := r.batchAt(at, r.size)
	if err != nil || x == nil || x.flags != flagFooter || x.first < r.header.Base {
		return e, err
	}
	e.Sealed, e.Next = true, x.first
	if x.count == 0 {
		return e, nil
	}
	from := at - int64(x.count)
	if from < int64(r.header.Len) {
		return e, r.corrupt(at, r.size, errIndex)
	}
	i, err := r.batchAt(from, at)
	if err != nil {
		return e, err
	}
	if i == nil || i.flags != flagIndex || i.first != x.first || i.end != at {
		return e, r.corrupt(from, at, errIndex)
	}
	e.Index = i.payload
	return e, nil
}

// batchAt reads the bytes from off to end, and returns the good batch that begins there, or nil.
func (r *Reader) batchAt(off, end int64) (*batch, error) {
	b := make([]byte, end-off)
	if _, err := r.f.ReadAt(b, off); err != nil {
		if err == io.EOF {
			return nil, nil // cut off meanwhile
		}
		return nil, fmt.Errorf("segment %s: read at offset %d: %w", r.path, off, err)
	}
	x, payload, bad := r.sum.decodeHead(b, r.tag, off, end-off)
	if bad != nil || x.check(r.header.Version, b[:x.end-off], payload) != nil {
		return nil, nil
	}
	return &x, nil
}
