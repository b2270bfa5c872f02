//go:build unix

package ring

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Consumer is the reading end of a ring. It is for one goroutine at a time, and
// a ring has one consumer that calls Staged, Publish or Remove; any number of
// others may watch.
type Consumer struct {
	ring   mapping
	header Header
	fd     int
	inode  unix.Stat_t
	slots  int64 // offset of slot 0
	crc    *slotCRC

	next  uint64 // sequence number to read next
	seen  uint64 // 1 + the highest sequence number met in a slot
	loss  loss   // last range lost
	skip  uint64 // records to give up beyond those overwritten, at the next overrun
	calm  uint64 // position from which skip starts anew
	odd   uint64 // 1 + the sequence number last met unfinished
	ended bool   // no more records come: the producer is gone or has closed the ring
	dead  bool   // the producer is gone
	err   error

	areas     []consumerArea
	discarded uint64
}

type loss struct {
	from, to uint64
	reason   LostReason
}

// Open maps a ring for reading, from sequence number 0 on, and checks its
// header, its geometry against the size of the file, and its schema's digest.
// The errors are [ErrNotRing], [ErrVersion], [ErrCorrupt] and [ErrDigest], or
// those of the file system. What a file says never decides how much memory is
// used beyond two texts of 64 KiB.
func Open(path string) (*Consumer, error) {
	if err := checkHost(); err != nil {
		return nil, err
	}
	// A FIFO must not block here, nor a link lead elsewhere.
	fd, err := openFile(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "ring: open", Path: path, Err: err}
	}
	c := &Consumer{fd: fd, skip: 1}
	if err := c.open(path); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Consumer) open(path string) error {
	c.ring.path = path
	if err := retry(func() error { return unix.Fstat(c.fd, &c.inode) }); err != nil {
		return fmt.Errorf("ring: %s: %w", path, err)
	}
	if c.inode.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("ring: %s: %w", path, badHeader(ErrNotRing, 0, "not a regular file"))
	}
	h, headerLen, err := readHeader(c.fd, c.inode.Size)
	if err != nil {
		return fmt.Errorf("ring: %s: %w", path, err)
	}
	if c.ring, err = mapFile(c.fd, path, c.inode.Size); err != nil {
		return err
	}
	c.header, c.slots = h, headerLen
	c.crc = newSlotCRC(h.PayloadLen)
	c.areas = make([]consumerArea, h.StagingAreas)
	return nil
}

// readHeader reads with ordinary reads, which end where the file ends: mapped
// memory of a file that is too short would fault.
func readHeader(fd int, size int64) (h Header, headerLen int64, err error) {
	fixed, err := readAt(fd, 0, fixedHeaderLen)
	if err != nil {
		return Header{}, 0, err
	}
	h, x, err := decodeFixed(fixed, size)
	if err != nil {
		return Header{}, 0, err
	}
	schema, err := readAt(fd, x.schemaOff, x.schemaLen)
	if err != nil {
		return Header{}, 0, err
	}
	meta, err := readAt(fd, x.metaOff, x.metaLen)
	if err != nil {
		return Header{}, 0, err
	}
	if err := h.finish(fixed, x, schema, meta, size); err != nil {
		return Header{}, 0, err
	}
	return h, x.headerLen, nil
}

// readAt reads n bytes, or fewer at the end of the file.
func readAt(fd int, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	got := 0
	for got < len(b) {
		var k int
		err := retry(func() (err error) {
			k, err = unix.Pread(fd, b[got:], off+int64(got))
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("offset %d: read: %w", off+int64(got), err)
		}
		if k == 0 {
			break
		}
		got += k
	}
	return b[:got], nil
}

// Header returns what the producer made the ring with.
func (c *Consumer) Header() Header { return c.header }

// Path returns the name of the ring file.
func (c *Consumer) Path() string { return c.ring.path }

// Position returns the sequence number that Next reads next.
func (c *Consumer) Position() uint64 { return c.next }

// Seek makes Next continue at seq. Beyond the records produced so far Next
// answers Empty until the producer gets there.
func (c *Consumer) Seek(seq uint64) { c.next, c.odd = min(seq, maxSeq), 0 }

// Err returns why the consumer failed, nil if it did not.
func (c *Consumer) Err() error { return c.err }

// LostRange returns the range [from, to) that the last Lost meant, and why.
func (c *Consumer) LostRange() (from, to uint64, reason LostReason) {
	return c.loss.from, c.loss.to, c.loss.reason
}

// Next reads one record into dst, which must have room for Header().Words()
// words; less is a mistake in the program and panics. With Got, seq is the
// record's number; with Lost, the first number lost.
func (c *Consumer) Next(dst []uint64) (seq uint64, st Status) {
	seq, _, st = c.NextBatch(dst[:min(len(dst), c.header.Words())])
	return seq, st
}

// NextBatch reads as many consecutive records as there are and as dst has room
// for, one after the other in dst, and returns the number of the first and how
// many. It answers Lost or Empty only when it read none.
func (c *Consumer) NextBatch(dst []uint64) (first uint64, n int, st Status) {
	w := c.header.Words()
	if len(dst) < w {
		panic(fmt.Sprintf("ring: %d words to read into, the ring's records have %d", len(dst), w))
	}
	if c.err != nil {
		return c.next, 0, Failed
	}
	// Not through guarded: this is the hot path of the consumer.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	first, st = c.next, Got
	defer func() {
		if r := recover(); r != nil {
			c.err = c.ring.fault(r)
			// What was copied before the fault is whole and checked.
			if st = Got; n == 0 {
				st = Failed
			}
		}
	}()
	for ; len(dst) >= w; dst = dst[w:] {
		if st = c.read(dst[:w]); st != Got {
			break
		}
		n++
	}
	switch {
	case n > 0:
		return first, n, Got // what ended the batch, the next call finds again
	case st == Lost:
		c.lose()
	}
	return first, 0, st
}
