package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"github.com/usp-project/usp/internal/vfs"
)

// window is how much is read from the file at once, in bytes.
const window = 256 << 10

// Reader reads the frames of one segment in order, past damage. Its memory is bounded by MaxBatch
// whatever the file holds. It may read a segment that a Writer is still appending to: after io.EOF or a
// *TornError, Next looks again. It is not safe for concurrent use.
type Reader struct {
	f      vfs.File
	path   string
	size   int64
	header Header
	tag    uint32
	sum    summer

	win    []byte // file content at winOff
	winOff int64

	off    int64  // where the next batch is looked for
	good   int64  // end of the last good batch
	next   uint64 // ordinal of the next frame
	limit  uint64 // frames from this ordinal on are not delivered
	from   uint64 // nor are frames before this one, see SkipTo
	gap    bool   // damage was passed since the last good batch, so ordinals may be missing
	index  int64  // bytes of the last good batch if that was an index, or 0
	data   int64  // end of the last good batch that was none
	sealed bool
	idle   bool  // the end was reached; look at the file anew
	used   int64 // one past the last byte that is not zero; 0 = not known

	cur      batch
	left     []byte // frames of cur not yet delivered
	position int64  // offset of the last frame delivered
	head     [batchHeader]byte

	surveyed bool
	probe    []byte // what goodNow reads into
	promised int64  // largest offset that a batch behind the first damage says was durable
}

// Open opens a segment and checks its header. A file that is no segment is an ErrNotSegment, one of a
// later format an ErrVersion, a damaged header a *CorruptError.
func Open(fsys vfs.FS, path string) (*Reader, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	r := &Reader{f: f, path: path, limit: math.MaxUint64}
	if err := r.start(); err != nil {
		_ = f.Close() // nothing was written; the error that matters is err
		return nil, fmt.Errorf("open segment: %w", err)
	}
	return r, nil
}

func (r *Reader) start() error {
	if err := r.refresh(); err != nil {
		return err
	}
	var err error
	if r.header, r.tag, err = readHeader(r.f, r.size); err != nil {
		return err
	}
	r.off = int64(r.header.Len)
	r.good, r.data, r.next = r.off, r.off, r.header.Base
	return nil
}

// Header returns what the file says about itself.
func (r *Reader) Header() Header { return r.header }

// Offset returns the end of the last good batch that Next came to, in bytes from the start of the file.
func (r *Reader) Offset() int64 { return r.good }

// Position returns the offset in the file of the frame that Next returned last.
func (r *Reader) Position() int64 { return r.position }

// Ordinal returns the ordinal that follows the last good batch or the last frame delivered.
func (r *Reader) Ordinal() uint64 { return r.next }

// Sealed reports whether the footer was found and the file cut off behind it. It is known when Next
// has returned io.EOF.
func (r *Reader) Sealed() bool { return r.sealed }

// Limit makes Next return io.EOF in place of the frame with this ordinal. Where a Writer was poisoned
// and its caller went on in a new segment, the old one may hold frames that the new one holds again;
// the base of the new one is the limit of the old.
func (r *Reader) Limit(ordinal uint64) { r.limit = ordinal }

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }

// Next returns the next frame and its ordinal; the frame is valid until the next call. At the end of
// the data the error is io.EOF, or *TornError where a crash has left a torn tail; both come again if
// nothing was appended since. *CorruptError reports a damaged range; the next call goes on behind it.
// Any other error is one of reading.
func (r *Reader) Next() (frame []byte, ordinal uint64, err error) {
	for len(r.left) == 0 {
		if err := r.hop(); err != nil {
			return nil, 0, err
		}
		err := r.advance()
		if errors.Is(err, io.ErrUnexpectedEOF) && r.shrunk() {
			err = r.advance() // a Writer has sealed the file and cut off what it had reserved
		}
		if err != nil {
			return nil, 0, err
		}
		r.left = r.cur.payload
		r.next = r.cur.first
		r.drop()
	}
	if r.next >= r.limit {
		return nil, 0, io.EOF
	}
	r.position = r.cur.end - int64(pad(len(r.cur.payload))) + int64(len(r.cur.payload)-len(r.left))
	frame, r.left = split(r.left)
	ordinal = r.next
	r.next++
	return frame, ordinal, nil
}

// advance makes the next good batch the current one. Errors as for Next.
func (r *Reader) advance() error {
	if r.sealed {
		return io.EOF
	}
	if r.idle {
		if quiet, err := r.stillIdle(); err != nil || quiet {
			return orEOF(err)
		}
	}
	if r.off >= r.size {
		r.idle = true
		return io.EOF
	}
	x, bad, err := r.inspect(r.off)
	if err != nil {
		return err
	}
	if bad != nil {
		return r.damaged(x, bad)
	}
	switch {
	case x.first < r.next:
		return r.skip(x.end, errDuplicate)
	case x.first > r.next && !r.gap:
		r.gap = true // said once; the batch itself comes with the next call
		return r.corrupt(r.off, r.off, fmt.Errorf("frames %d to %d are missing", r.next, x.first-1))
	}
	if x.flags == flagFooter {
		return r.footer(x)
	}
	r.accept(x)
	return nil
}

func (r *Reader) accept(x batch) {
	r.off, r.good = x.end, x.end
	r.gap = false
	if x.flags == flagIndex {
		r.index, x.payload = batchHeader+int64(pad(len(x.payload))), nil
	} else {
		r.index, r.data = 0, x.end
	}
	r.cur = x
}

// footer handles a good footer: what is behind it decides whether the file is sealed.
func (r *Reader) footer(x batch) error {
	last, err := r.lastNonZero(x.end)
	if err != nil {
		return err
	}
	r.next = x.first
	agreed := r.gap || int64(x.count) == r.index // what was damaged cannot be held against it
	switch {
	case r.size == x.end:
		r.accept(x)
		r.sealed = true
		if !agreed {
			return r.corrupt(x.end-batchHeader, x.end, errIndex)
		}
		return io.EOF
	case last == x.end:
		// A seal that did not come to cut off the preallocated space; r.off stays, so Repair redoes it.
		r.idle = true
		return io.EOF
	}
	r.accept(x)
	r.sealed = true // it was, and then something was added
	return r.skip(r.size, errTrailing)
}

// damaged decides what the bytes at off are, which are no good batch.
func (r *Reader) damaged(x batch, bad error) error {
	last, err := r.lastNonZero(r.off)
	if err != nil {
		return err
	}
	if last == r.off { // preallocated and not yet used
		r.idle = true
		return io.EOF
	}
	from := r.off + alignment
	if x.end > r.off && bad != errNoBatch {
		from = x.end // the header is good, so this is where the next batch begins
	}
	if !r.surveyed {
		if r.promised, err = r.survey(from); err != nil {
			return err
		}
		r.surveyed = true
	}
	if r.promised <= r.off {
		r.surveyed = false // the writer may be about to complete it
		r.idle = true
		return &TornError{File: r.path, Offset: r.off, End: last}
	}
	// A Writer may have written it since these bytes were read, and more behind it. What a later batch promises was complete
	// before that batch was begun, so it shows when it is read anew.
	if good, err := r.goodNow(r.off); err != nil {
		return err
	} else if good {
		if err := r.refresh(); err != nil {
			return err
		}
		return r.advance()
	}
	next, err := r.resync(from)
	if err != nil {
		return err
	}
	return r.skip(next, bad)
}

// goodNow reports whether there is a good batch at off in the file as it is now, whatever was read of it before.
func (r *Reader) goodNow(off int64) (bool, error) {
	info, err := r.f.Stat()
	if err != nil {
		return false, fmt.Errorf("segment %s: %w", r.path, err)
	}
	read := func(n int64) ([]byte, error) {
		r.probe = slices.Grow(r.probe[:0], int(n))[:n]
		_, err := r.f.ReadAt(r.probe, off)
		if err == io.EOF {
			err = nil // cut off meanwhile: the rest is what was there before, and no good batch
		}
		return r.probe, err
	}
	room := info.Size() - off
	if room < batchHeader {
		return false, nil
	}
	b, err := read(batchHeader)
	if err != nil {
		return false, fmt.Errorf("segment %s: read at offset %d: %w", r.path, off, err)
	}
	x, payload, bad := r.sum.decodeHead(b, r.tag, off, room)
	if bad != nil {
		return false, nil
	}
	if b, err = read(x.end - off); err != nil {
		return false, fmt.Errorf("segment %s: read at offset %d: %w", r.path, off, err)
	}
	return x.check(r.header.Version, b, payload) == nil, nil
}

// skip passes over a damaged range.
func (r *Reader) skip(to int64, bad error) error {
	from := r.off
	r.off = to
	r.gap = true
	return r.corrupt(from, to, bad)
}

func (r *Reader) corrupt(from, to int64, bad error) error {
	return &CorruptError{File: r.path, Offset: from, End: to, Err: bad}
}

// inspect looks at a batch. bad says why it is none; x.end is then still set if its header was good.
func (r *Reader) inspect(off int64) (x batch, bad, err error) {
	room := r.size - off
	if room < batchHeader {
		return x, errNoBatch, nil
	}
	b, err := r.at(off, batchHeader)
	if err != nil {
		return x, nil, err
	}
	x, payload, bad := r.sum.decodeHead(b, r.tag, off, room)
	if bad != nil {
		return batch{}, bad, nil
	}
	if b, err = r.at(off, int(x.end-off)); err != nil {
		return x, nil, err
	}
	return x, x.check(r.header.Version, b, payload), nil
}

// survey returns the largest promise of the good batches from off on.
func (r *Reader) survey(off int64) (promised int64, err error) {
	for {
		if off, err = r.resync(off); err != nil || off >= r.size {
			return promised, err
		}
		x, _, err := r.inspect(off)
		if err != nil {
			return promised, err
		}
		promised = max(promised, x.synced)
		off = x.end
	}
}

// resync returns the offset of the first good batch at or behind off, or the size of the file. Batches
// lie at multiples of 8 bytes. A good header over a bad payload is passed as a whole, so the work is
// linear in the size of the file even if its author wanted otherwise.
func (r *Reader) resync(off int64) (int64, error) {
	for off+batchHeader <= r.size {
		b, err := r.ahead(off)
		if err != nil {
			return 0, err
		}
		i := 0
		for i < len(b) && binary.LittleEndian.Uint32(b[i:]) != batchMagic {
			i += alignment
		}
		if off += int64(i); i == len(b) {
			if off, err = r.passZeros(off); err != nil {
				return 0, err
			}
			continue
		}
		x, bad, err := r.inspect(off)
		switch {
		case err != nil:
			return 0, err
		case bad == nil:
			return off, nil
		}
		off = max(x.end, off+alignment)
	}
	return r.size, nil
}

// ahead returns what has been read from off on, a multiple of 8 bytes, or reads it. To ask for a whole
// window each time would read it again for every false start of a batch.
func (r *Reader) ahead(off int64) ([]byte, error) {
	n := r.winOff + int64(len(r.win)) - off
	if off < r.winOff || n < alignment {
		n = min(window, r.size-off)
	}
	return r.at(off, int(n&^(alignment-1)))
}

// lastNonZero returns one past the last byte at or behind off that is not zero, or off. It is asked
// for growing offsets and reads the file once, but for what is known to be zeros.
func (r *Reader) lastNonZero(off int64) (int64, error) {
	if r.used == 0 {
		used, err := r.findLast(off)
		if err != nil {
			return 0, err
		}
		r.used = used
	}
	return max(off, r.used), nil
}

// findLast looks at the window at off in any case: what was read there before counts, whatever the file system says.
func (r *Reader) findLast(off int64) (used int64, err error) {
	used = off
	for at := off; at < r.size; {
		b, err := r.at(at, int(min(window, r.size-at)))
		if err != nil {
			return 0, err
		}
		if n := trimZeros(b); n > 0 {
			used = at + int64(n)
		}
		if at, err = r.passZeros(at + int64(len(b))); err != nil {
			return 0, err
		}
	}
	return used, nil
}

// passZeros returns an offset before which all from off on is known to be zeros.
func (r *Reader) passZeros(off int64) (int64, error) {
	if off >= r.size {
		return r.size, nil
	}
	data, err := vfs.NextData(r.f, off)
	if err == io.EOF {
		return r.size, nil
	}
	if err != nil {
		return 0, fmt.Errorf("segment %s: %w", r.path, err)
	}
	return min(max(off, data&^(alignment-1)), r.size), nil
}

// trimZeros returns the length of b without the zeros at its end.
func trimZeros(b []byte) int {
	n := len(b)
	for n >= 8 && binary.LittleEndian.Uint64(b[n-8:]) == 0 {
		n -= 8
	}
	for n > 0 && b[n-1] == 0 {
		n--
	}
	return n
}

// stillIdle looks whether anything was appended since the end was found, without a scan of the
// preallocated rest.
func (r *Reader) stillIdle() (bool, error) {
	size := r.size
	if err := r.refresh(); err != nil {
		return false, err
	}
	r.idle = false
	if r.size < r.off {
		return false, fmt.Errorf("segment %s: file shrank to %d bytes below offset %d: %w", r.path, r.size, r.off, io.ErrUnexpectedEOF)
	}
	if r.size != size || r.size-r.off < batchHeader {
		return false, nil
	}
	b, err := r.at(r.off, batchHeader)
	if err != nil {
		return false, err
	}
	r.idle = trimZeros(b) == 0
	return r.idle, nil
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// shrunk reports whether the file is smaller than it was, and goes on with what is left of it.
func (r *Reader) shrunk() bool {
	size := r.size
	if err := r.refresh(); err != nil || r.size >= size || r.size < r.off {
		return false
	}
	r.idle = false
	return true
}

// refresh takes the file's size and forgets what was read.
func (r *Reader) refresh() error {
	info, err := r.f.Stat()
	if err != nil {
		return fmt.Errorf("segment %s: %w", r.path, err)
	}
	r.size = info.Size()
	r.win, r.winOff, r.used = r.win[:0], 0, 0
	return nil
}

// at returns n bytes at off, which must lie in the file. They are valid until the next call.
func (r *Reader) at(off int64, n int) ([]byte, error) {
	if off >= r.winOff && off+int64(n) <= r.winOff+int64(len(r.win)) {
		i := int(off - r.winOff)
		return r.win[i : i+n : i+n], nil
	}
	want := int(min(max(int64(n), window), r.size-off))
	if cap(r.win) < want {
		r.win = make([]byte, want)
	}
	r.win, r.winOff = r.win[:want], off
	got, err := r.f.ReadAt(r.win, off)
	if got < n {
		r.win, r.idle = r.win[:0], true
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF // cut off while we read
		}
		return nil, fmt.Errorf("segment %s: read %d bytes at offset %d: %w", r.path, want, off, err)
	}
	r.win = r.win[:got] // less than wanted where a Writer has just sealed the file
	return r.win[:n:n], nil
}
