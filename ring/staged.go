//go:build unix

package ring

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"
)

// consumerArea is the consumer's side of a staging area.
type consumerArea struct {
	m     mapping
	bad   bool // not the ring's, or damaged: never used
	taken bool // by this consumer
}

// Staged is a state that the producer staged. Its memory is shared: it stays as
// it is until Release.
type Staged struct {
	Step       uint64 // the step it is the state of
	Seq        uint64 // records < Seq came before it: they must be durable before it is published
	Ticket     uint64 // counts the producer's staged states from 0
	Generation uint32
	Reason     uint32

	a      *consumerArea
	b      []byte
	hasCRC bool
	sum    uint32
}

// Staged returns the oldest state that is ready, and takes it. A state that an
// earlier consumer took and never released is ready again. One that a dead
// producer had not finished is dropped and counted, see Discarded.
//
// A staging file that cannot be used (missing, damaged, of another run) is passed over.
func (c *Consumer) Staged() (*Staged, bool) {
	for c.err == nil {
		// An area looked at early may have become ready before a later one did. What
		// came before a state that is ready is ready too, so a second look finds it.
		if c.oldest() == nil {
			return nil, false
		}
		s := c.oldest()
		if s == nil {
			return nil, false
		}
		whole := false
		err := s.a.m.guarded(func() {
			whole = !s.hasCRC || crc32.ChecksumIEEE(s.b) == s.sum
			store(s.a.m.at(areaState), areaTaken)
		})
		if err == nil && whole {
			s.a.taken = true
			return s, true
		}
		c.reject(s.a, err)
	}
	return nil, false
}

// Untaken returns the ticket of the oldest state that is ready and that nobody has taken yet. It takes nothing and changes
// nothing: it is for one that looks on while another consumer is at work.
func (c *Consumer) Untaken() (ticket uint64, ok bool) {
	for i := range c.areas {
		a := &c.areas[i]
		if !c.mapArea(a, i) {
			continue
		}
		err := a.m.guarded(func() {
			if load(a.m.at(areaState)) != areaReady {
				return
			}
			if t := load(a.m.at(areaTicket)); !ok || t < ticket {
				ticket, ok = t, true
			}
		})
		a.bad = err != nil // truncated
	}
	return ticket, ok
}

// oldest returns the state with the lowest ticket of those that are ready.
func (c *Consumer) oldest() (best *Staged) {
	for i := range c.areas {
		a := &c.areas[i]
		if a.taken || !c.mapArea(a, i) {
			continue
		}
		var s *Staged
		if err := a.m.guarded(func() { s = c.look(a) }); err != nil {
			c.reject(a, err)
			continue
		}
		if s != nil && (best == nil || s.Ticket < best.Ticket) {
			best = s
		}
	}
	return best
}

// look reads what one area holds; nil if nothing is to be had from it.
func (c *Consumer) look(a *consumerArea) *Staged {
	ended := c.ended // known before the state is looked at
	switch load(a.m.at(areaState)) {
	case areaReady, areaTaken:
	case areaFilling:
		if ended {
			c.reject(a, nil)
		}
		return nil
	default:
		return nil
	}
	length := load(a.m.at(areaLength))
	if length > uint64(c.header.StagingCapacity) {
		c.reject(a, nil)
		return nil
	}
	ids, content := load(a.m.at(areaReason)), load(a.m.at(areaContent))
	return &Staged{
		Step: load(a.m.at(areaStep)), Seq: load(a.m.at(areaSeq)), Ticket: load(a.m.at(areaTicket)),
		Generation: uint32(ids), Reason: uint32(ids >> 32),
		a: a, b: a.m.b[areaHeaderLen : areaHeaderLen+length : areaHeaderLen+length],
		hasCRC: uint32(content)&areaHasCRC != 0, sum: uint32(content >> 32),
	}
}

// reject counts what an area held as discarded and gives the area back to the
// producer, or, after a fault, leaves it alone for good.
func (c *Consumer) reject(a *consumerArea, fault error) {
	c.discarded++
	if fault == nil {
		fault = a.m.guarded(func() { store(a.m.at(areaState), areaFree) })
	}
	a.bad = a.bad || fault != nil
}

// mapArea maps the file of an area if that has not been done, and reports
// whether the area can be used.
func (c *Consumer) mapArea(a *consumerArea, i int) bool {
	if a.bad || a.m.b != nil {
		return !a.bad
	}
	name := areaPath(c.ring.path, i)
	fd, err := openFile(name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false // the producer names its areas just after the ring: look again later
	}
	defer unix.Close(fd)
	size := areaSize(c.header.StagingCapacity)
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil || st.Size != size || st.Mode&unix.S_IFMT != unix.S_IFREG {
		a.bad = true
		return false
	}
	head, err := readAt(fd, 0, areaCRC+4)
	if err != nil || string(head) != string(encodeArea(&c.header, i)) ||
		binary.LittleEndian.Uint32(head[areaCRC:]) != crc32.ChecksumIEEE(head[:areaCRC]) {
		a.bad = true
		return false
	}
	if a.m, err = mapFile(fd, name, size); err != nil {
		a.bad = true
		return false
	}
	return true
}

// Discarded returns how many staged states were dropped on this side:
// unfinished when their producer died, damaged, or in a file that was truncated.
func (c *Consumer) Discarded() uint64 { return c.discarded }

// Bytes returns the content, without a copy. If someone truncates the staging
// file meanwhile, reading it is a fault that kills the process; View guards
// against that.
func (s *Staged) Bytes() []byte { return s.b }

// View calls f with the content and returns f's error. A memory fault in the
// content, while f runs and in its goroutine, becomes [ErrTruncated].
func (s *Staged) View(f func(content []byte) error) error {
	var failed error
	if err := s.a.m.guarded(func() { failed = f(s.b) }); err != nil {
		return err
	}
	return failed
}

// Release gives the area back to the producer. The content must not be used any more.
func (s *Staged) Release() error {
	if s.b == nil || s.a.m.b == nil {
		return fmt.Errorf("ring: %s: release: %w", s.a.m.path, ErrClosed)
	}
	s.b, s.a.taken = nil, false
	return s.a.m.guarded(func() { store(s.a.m.at(areaState), areaFree) })
}
