//go:build unix

package ring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// retries of a slot that is published but does not verify, while its producer
// is alive: one whose stores are seen out of order has it right a moment later.
const retries = 8

// read tries for the next record. Got has moved on; Lost has set c.loss and not
// moved, lose does.
//
// The slot alone decides whether a record is there. Its sequence word is 2m+1
// while record m is written into it and 2m+2 after; the producer's position is
// looked at only when the slot does not hold what we want.
func (c *Consumer) read(dst []uint64) Status {
	n := c.next
	slot := c.slot(n)
	done := 2*n + 2
	for try := 0; ; try++ {
		ended := c.ended // known before the slot is looked at
		seq := load(slot)
		if seq == done && c.copy(dst, slot, done) {
			c.next, c.seen = n+1, max(c.seen, n+1)
			return Got
		}
		if seq == done && load(slot) != done {
			continue // overwritten during the copy
		}
		p := load(c.ring.at(offPosition))
		switch {
		case p > maxSeq:
			c.err = fmt.Errorf("ring: %s: %w", c.ring.path, badHeader(ErrCorrupt, offPosition, "producer position %d", p))
			return Failed
		case seq != done && n >= p:
			if seq != done-1 {
				return Empty
			}
			// Record n is being written. It will be finished, unless its producer died.
			if ended {
				return c.torn(n)
			}
			if !c.stuck(n) {
				return Empty
			}
		case c.overtaken(seq, n, p):
			c.loss = loss{n, c.resume(n, p), Overrun}
			return Lost
		case ended || try >= retries:
			return c.torn(n)
		}
	}
}

func (c *Consumer) torn(n uint64) Status {
	c.seen = max(c.seen, n+1)
	c.loss = loss{n, n + 1, Torn}
	return Lost
}

func (c *Consumer) slot(n uint64) unsafe.Pointer {
	return c.ring.at(c.slots + int64(n&uint64(c.header.Slots-1))*int64(c.header.SlotSize))
}

// copy takes the payload out of the slot and reports whether it is whole: not
// overwritten meanwhile, of the right length, with the right CRC.
func (c *Consumer) copy(dst []uint64, slot unsafe.Pointer, done uint64) bool {
	lenCRC := load(unsafe.Add(slot, slotLenCRC))
	copyOut(dst, unsafe.Add(slot, slotHeaderLen))
	if load(slot) != done {
		return false
	}
	return uint32(lenCRC) == uint32(c.header.PayloadLen) &&
		uint32(lenCRC>>32) == c.crc.sum(done, payloadBytes(dst))
}

// overtaken reports whether record n has been overwritten, by the producer's
// position p or by a later record of the same slot that the position allows for.
func (c *Consumer) overtaken(seq, n, p uint64) bool {
	count := uint64(c.header.Slots)
	if p > n && p-n > count {
		return true
	}
	if seq <= 2*n+2 {
		return false
	}
	later := (seq - 1) / 2
	return later <= p && (later-n)%count == 0
}

// resume says where to go on after an overrun: at the oldest record that is
// still there. Under a live producer that record is the next to go, so each
// overrun soon after another gives up twice as many, up to half the ring;
// otherwise a slow consumer would lose the race for every record.
func (c *Consumer) resume(n, p uint64) uint64 {
	count := uint64(c.header.Slots)
	if p < count {
		return n + 1
	}
	if !c.ended {
		c.probe()
	}
	to := p - count
	if !c.ended {
		if n >= c.calm {
			c.skip = 1
		}
		to += c.skip
	}
	return max(to, n+1)
}

// lose moves past c.loss.
func (c *Consumer) lose() {
	c.next = c.loss.to
	if c.loss.reason == Overrun {
		c.skip = min(2*c.skip, uint64(c.header.Slots)/2)
		c.calm = c.next + uint64(c.header.Slots)
	}
}

// stuck reports whether record n, met unfinished, stays so for ever. The
// producer is asked for only if the record was unfinished at an earlier call
// too, because a write in progress is nothing unusual.
func (c *Consumer) stuck(n uint64) bool {
	if c.odd != n+1 {
		c.odd = n + 1
		return false
	}
	c.probe()
	return c.ended
}

// probe finds out whether more records may come; an error counts as yes.
func (c *Consumer) probe() {
	if ProducerState(load(c.ring.at(offState))) != StateOpen {
		c.ended = true
		return
	}
	_, _ = c.alive()
}

// alive asks the kernel for the producer's lock.
func (c *Consumer) alive() (bool, error) {
	if c.dead {
		return false, nil
	}
	err := flock(c.fd, unix.LOCK_SH|unix.LOCK_NB) // shared: two consumers may ask at once
	if err == unix.EWOULDBLOCK {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("ring: %s: probe the producer's lock: %w", c.ring.path, err)
	}
	c.dead, c.ended = true, true
	if err := flock(c.fd, unix.LOCK_UN); err != nil {
		return false, fmt.Errorf("ring: %s: release the probe: %w", c.ring.path, err)
	}
	return false, nil
}
