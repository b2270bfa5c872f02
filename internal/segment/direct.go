package segment

import (
	"errors"
	"syscall"

	"github.com/usp-project/usp/internal/vfs"
)

// direct appends to a segment past the kernel's cache. What goes through the cache takes new pages of it all the time, and on a virtual
// machine a processor stands still where the host does not have one at hand, and with it the step loop. What is written directly
// comes from memory that is the same each time.
//
// Whole blocks are written. The last one is filled up with zeros, which is what a preallocated file has there, and written again with what
// follows, as the cache does with a page. So each sector that had something durable gets the same bytes again, and more behind them.
type direct struct {
	f    vfs.DirectFile // nil: it cannot be written so, or no longer
	room int64          // preallocated bytes; zeros behind them would make the file longer
	buf  []byte         // aligned; nil without f
	tail int            // the file's last bytes, those in a block that is not full, are buf[:tail]
}

// openDirect is for f, of which room bytes are preallocated, and a header that ends at end written. That it cannot be written so is no error.
func openDirect(f vfs.File, room, end int64) direct {
	d := direct{room: room}
	if end%vfs.DirectBlock != 0 || room <= end {
		return d
	}
	if d.f, _ = vfs.OpenDirect(f, room); d.f != nil {
		d.buf = vfs.Aligned(vfs.DirectBlock)
	}
	return d
}

// write appends b to f at off, all of it or an error. It says whether it did so directly: who appends much at a time has the device
// at work beside itself, by way of the cache.
func (d *direct) write(f vfs.File, b []byte, off int64) (directly bool, err error) {
	if d.f != nil && len(b) <= quickSync {
		directly, err = d.blocks(b, off-int64(d.tail))
	}
	if !directly && err == nil {
		_, err = f.WriteAt(b, off)
	}
	if err == nil && d.f != nil {
		d.appended(b)
	}
	return directly, err
}

// blocks writes the tail and b at off, a block's beginning, unless that cannot be done.
func (d *direct) blocks(b []byte, off int64) (done bool, err error) {
	n := d.tail + len(b)
	full := (n + vfs.DirectBlock - 1) &^ (vfs.DirectBlock - 1)
	if off+int64(full) > d.room {
		return false, nil
	}
	if full > len(d.buf) {
		buf := vfs.Aligned(max(full, 2*len(d.buf)))
		copy(buf, d.buf[:d.tail])
		d.buf = buf
	}
	copy(d.buf[d.tail:], b)
	clear(d.buf[n:full])
	_, err = d.f.WriteAt(d.buf[:full], off)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		_ = d.close() // nothing is lost with it
		return false, nil
	}
	return err == nil, err
}

// appended takes note that the file has b behind what it had.
func (d *direct) appended(b []byte) {
	tail := (d.tail + len(b)) % vfs.DirectBlock
	if tail <= len(b) {
		copy(d.buf, b[len(b)-tail:])
	} else {
		copy(d.buf[d.tail:], b)
	}
	d.tail = tail
}

// close gives back what it has, and does nothing the second time.
func (d *direct) close() error {
	if d.f == nil {
		return nil
	}
	err := d.f.Close()
	*d = direct{}
	return err
}
