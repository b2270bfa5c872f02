//go:build unix

package ring

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// word reads one word of the header, 0 if that fails; the failure is kept.
func (c *Consumer) word(off int64) (w uint64) {
	if c.err != nil {
		return 0
	}
	if err := c.ring.guarded(func() { w = load(c.ring.at(off)) }); err != nil {
		c.err = err
	}
	return w
}

// Produced returns how many records the producer has emitted. A producer that
// died while it wrote one had begun that one: once Next has met it, as a record
// or as lost, it counts.
func (c *Consumer) Produced() uint64 { return max(c.word(offPosition), c.seen) }

// State returns what the producer says of itself, 0 if the consumer has failed.
func (c *Consumer) State() ProducerState {
	s := ProducerState(c.word(offState))
	if s == StateClosed || s == StateFailed {
		c.ended = true
	}
	return s
}

// Heartbeat returns how often the producer called Beat.
func (c *Consumer) Heartbeat() uint64 { return c.word(offHeartbeat) }

// Drops returns the staging requests that the producer dropped.
func (c *Consumer) Drops() uint64 { return c.word(offDrops) }

// Durations returns what the producer counted, zero if it counts nothing or the consumer has failed. The counts may be
// of slightly different moments.
func (c *Consumer) Durations() (d Durations) {
	if c.err != nil {
		return d
	}
	err := c.ring.guarded(func() {
		for i := range d.Counts {
			d.Counts[i] = load(c.ring.at(offDurations + 8*int64(i)))
		}
		d.Longest = time.Duration(min(load(c.ring.at(offLongest)), 1<<63-1))
		d.Sum = time.Duration(min(load(c.ring.at(offSum)), 1<<63-1))
	})
	if err != nil {
		c.err = err
		return Durations{}
	}
	return d
}

// ProducerAlive reports whether the producer holds its lock, which it does from
// before the ring has its name until Close or the end of its process. One that
// is gone never comes back to the same ring. After false, what Next and Staged
// answer until Empty is all there will ever be.
func (c *Consumer) ProducerAlive() (bool, error) {
	if c.fd < 0 {
		return false, fmt.Errorf("ring: %s: %w", c.ring.path, ErrClosed)
	}
	return c.alive()
}

// Publish shows the consumer's state to the producer. It has no other effect.
func (c *Consumer) Publish(s ConsumerState) {
	if c.err != nil {
		return
	}
	err := c.ring.guarded(func() {
		for _, w := range []struct {
			off int64
			v   uint64
		}{
			{consumerPosition, s.Position}, {consumerStored, s.Stored}, {consumerLost, s.Lost}, {consumerSynced, s.Synced},
			{consumerSnapshots, s.Snapshots}, {consumerPID, uint64(s.PID)}, {consumerStorage, s.LostStorage},
			{consumerFault, uint64(s.Fault)}, {consumerHeld, s.Held}, {consumerUnsaved, s.Unsaved}, {consumerPhase, uint64(s.Phase)},
		} {
			store(c.ring.at(offConsumer+w.off), w.v)
		}
	})
	if err != nil {
		c.err = err
	}
}

// Published returns what a consumer last said with Publish.
func (c *Consumer) Published() (s ConsumerState) {
	if c.err != nil {
		return s
	}
	if err := c.ring.guarded(func() { s = readConsumer(&c.ring) }); err != nil {
		c.err = err
	}
	return s
}

// Remove unlinks the staging files and the ring. It refuses with [ErrAlive]
// while the producer lives, and leaves alone a file that has taken the ring's
// name since. The mappings stay until Close.
func (c *Consumer) Remove() error {
	alive, err := c.ProducerAlive()
	if err != nil {
		return err
	}
	if alive {
		return fmt.Errorf("ring: remove %s: %w", c.ring.path, ErrAlive)
	}
	var now unix.Stat_t
	if err := retry(func() error { return unix.Lstat(c.ring.path, &now) }); err != nil {
		return &fs.PathError{Op: "ring: remove", Path: c.ring.path, Err: err}
	}
	if now.Dev != c.inode.Dev || now.Ino != c.inode.Ino {
		return fmt.Errorf("ring: remove %s: another file has that name now: left alone", c.ring.path)
	}
	// The ring last: without it nobody would find the staging files.
	for i := range c.areas {
		if err := unix.Unlink(areaPath(c.ring.path, i)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("ring: remove %s: %w", areaPath(c.ring.path, i), err)
		}
	}
	if err := unix.Unlink(c.ring.path); err != nil {
		return fmt.Errorf("ring: remove %s: %w", c.ring.path, err)
	}
	return nil
}

// Close unmaps the ring. What Staged returned must not be used any more.
func (c *Consumer) Close() error {
	if c.fd < 0 {
		return fmt.Errorf("ring: %s: close: %w", c.ring.path, ErrClosed)
	}
	if c.err == nil {
		c.err = fmt.Errorf("ring: %s: %w", c.ring.path, ErrClosed)
	}
	err := c.ring.unmap()
	for i := range c.areas {
		err = errors.Join(err, c.areas[i].m.unmap())
	}
	err = errors.Join(err, unix.Close(c.fd))
	c.fd = -1
	return err
}
