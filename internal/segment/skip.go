package segment

import "fmt"

// SkipTo makes Next go on with the frame of this ordinal, or with the first behind it that is there. Whole batches in
// front of it are passed by their headers: nothing in them is read or checked, and damage to their frames is not
// found. Where a header is no good, or not what follows, Next reads on as ever and reports what it finds. An
// ordinal that was passed already changes nothing.
func (r *Reader) SkipTo(ordinal uint64) {
	r.from = max(r.from, ordinal)
	r.drop()
}

// drop passes the frames of the current batch that are not wanted.
func (r *Reader) drop() {
	for len(r.left) > 0 && r.next < r.from {
		_, r.left = split(r.left)
		r.next++
	}
}

// hop passes whole batches of frames up to the one that holds the frame that is wanted, or to one that must be looked at.
func (r *Reader) hop() error {
	for r.next < r.from && !r.gap && !r.sealed && !r.idle && r.size-r.off >= batchHeader {
		b, err := r.peek(r.off)
		if err != nil {
			return err
		}
		x, _, bad := r.sum.decodeHead(b, r.tag, r.off, r.size-r.off)
		if bad != nil || x.flags != 0 || x.count == 0 || x.first != r.next || x.first+uint64(x.count) > r.from {
			return nil
		}
		r.accept(x)
		r.next = x.first + uint64(x.count)
	}
	return nil
}

// peek returns a batch header without the window of bytes behind it, unless that was read already. It is valid until
// the next call.
func (r *Reader) peek(off int64) ([]byte, error) {
	if i := off - r.winOff; i >= 0 && i+batchHeader <= int64(len(r.win)) {
		return r.win[i : i+batchHeader], nil
	}
	if n, err := r.f.ReadAt(r.head[:], off); n < len(r.head) {
		if cut := r.shrunk(); cut {
			return r.head[:], nil // no header any more; whoever looks again sees why
		}
		return nil, fmt.Errorf("segment %s: read %d bytes at offset %d: %w", r.path, len(r.head), off, err)
	}
	return r.head[:], nil
}
