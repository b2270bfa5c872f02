package digestlog

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/segment"
)

// Layout of the stretches in an outline; doc/format/digestlog.md has the table.
const (
	stretchesLen = 4               // u32: how many there are
	stretchLen   = 4 + 8 + 8 + 32  // count u32, first step u64, last step u64, sum
	maxStretch   = 4096            // entries
	sumAtOnce    = 64 * stretchSum // leaf hashes that are gathered before they are hashed, in bytes
	stretchSum   = 32
)

// A Stretch is what the outline of a file says of STEP entries in a row, whatever other entries lie between them. Where it begins and ends depends on
// the STEP entries alone, so two logs that have the same ones for a while have the same stretches, but for the first and the last. Equal Sum and
// Count mean equal entries.
type Stretch struct {
	Index               uint64 // of the first entry, in the tree
	Generation          uint32
	Count               uint64 // at least 1
	FirstStep, LastStep uint64
	Sum                 [32]byte // SHA-256 of the leaf hashes of the entries, in order
}

// cuts reports whether an entry with that leaf hash begins a stretch wherever it is: one of 256 does.
func cuts(leaf *tlog.Hash) bool { return leaf[0] == 0 }

// A stretcher makes the stretches of one file, in memory that is bounded by what an index may have.
type stretcher struct {
	out    []byte // encoded, without the one that goes on
	count  uint32
	run    Steps // the one that goes on
	leaves []byte
	sum    hash.Hash
	full   bool // out would have become too long
}

// add takes in a STEP entry.
func (x *stretcher) add(s *Steps, leaf *tlog.Hash) {
	if x.full {
		return
	}
	if cuts(leaf) || !x.run.joins(s) || x.run.Count == maxStretch {
		x.endRun()
		x.run = *s
	} else {
		x.run.Count++
		x.run.LastStep, x.run.LastSeq = s.LastStep, s.LastSeq
	}
	if len(x.leaves) == sumAtOnce {
		x.flush()
	}
	x.leaves = append(x.leaves, leaf[:]...)
}

func (x *stretcher) flush() {
	if x.sum == nil {
		x.sum = sha256.New()
	}
	x.sum.Write(x.leaves) // never fails
	x.leaves = x.leaves[:0]
}

// endRun writes the stretch that goes on down.
func (x *stretcher) endRun() {
	if x.run.Count == 0 {
		return
	}
	if x.full = outlineHeader+stretchesLen+len(x.out)+2*stretchLen > segment.MaxIndex; x.full {
		*x = stretcher{full: true}
		return
	}
	x.flush()
	x.out = x.encode(x.out)
	x.sum.Reset()
	x.count++
	x.run = Steps{}
}

// encode appends the stretch that goes on, as far as it got.
func (x *stretcher) encode(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(x.run.Count))
	dst = le.AppendUint64(le.AppendUint64(dst, x.run.FirstStep), x.run.LastStep)
	return x.sum.Sum(dst)
}

// append appends the section, or returns false if there is no room for it.
func (x *stretcher) append(dst []byte) ([]byte, bool) {
	count := x.count
	if x.run.Count > 0 {
		count++
	}
	if x.full || len(dst)+stretchesLen+int(count)*stretchLen > segment.MaxIndex {
		return dst, false
	}
	dst = append(binary.LittleEndian.AppendUint32(dst, count), x.out...)
	if x.run.Count > 0 {
		x.flush()
		dst = x.encode(dst)
	}
	return dst, true
}

// A stretchCheck reads the stretches of an outline beside its runs, and wants that they can be those of the runs' entries.
type stretchCheck struct {
	d    decoder // the stretches to come
	each func(Stretch)
	last Steps  // the run before, all of it or its last part
	rest uint64 // entries to come of the stretch that goes on
	end  uint64 // its last step

	// The last place in a growing row of steps of which the step is known.
	pos, step uint64
	at        uint64 // place of the next run
}

// run takes in a run that begins at that index.
func (c *stretchCheck) run(r *Steps, index uint64) bool {
	if !c.last.joins(r) {
		if c.rest > 0 {
			return false // the stretch goes on where there is no going on
		}
		c.pos, c.step = c.at, r.FirstStep
	}
	ok := c.known(c.at, r.FirstStep)
	for off := uint64(0); ok && off < r.Count; {
		if c.rest == 0 {
			s := Stretch{Index: index + off, Generation: r.Generation, Count: uint64(c.d.u32()), FirstStep: c.d.u64(), LastStep: c.d.u64()}
			c.d.sum(&s.Sum)
			ok = !c.d.short && s.Count > 0 && s.Count <= maxStretch && c.known(c.at+off, s.FirstStep)
			c.rest, c.end = s.Count, s.LastStep
			if ok {
				c.each(s)
			}
		}
		n := min(c.rest, r.Count-off)
		off += n
		if c.rest -= n; ok && c.rest == 0 {
			ok = c.known(c.at+off-1, c.end)
		}
	}
	ok = ok && c.known(c.at+r.Count-1, r.LastStep)
	c.at += r.Count
	c.last = *r
	return ok
}

// known takes down that the entry at a place has that step. Steps grow by at least one from place to place.
func (c *stretchCheck) known(pos, step uint64) bool {
	if step < c.step || step-c.step < pos-c.pos || pos == c.pos && step != c.step {
		return false
	}
	c.pos, c.step = pos, step
	return true
}

// eachStretch calls back for the stretches of an outline, whose indexes count from 0. items reads its runs; b is the section, nothing in front of or behind it.
func eachStretch(b []byte, items func(func(run Steps, raw []byte) bool) error, each func(Stretch)) error {
	c := stretchCheck{d: decoder{rest: b}, each: each}
	count := c.d.u32()
	if c.d.short || uint64(len(c.d.rest)) != uint64(count)*stretchLen {
		return fmt.Errorf("%w: %d bytes of stretches", errOutlineForm, len(b))
	}
	index, ok := uint64(0), true
	err := items(func(run Steps, _ []byte) bool {
		if run.Count > 0 {
			ok = c.run(&run, index)
		}
		index += max(1, run.Count)
		return ok
	})
	if err == nil && (!ok || c.rest > 0 || len(c.d.rest) > 0) {
		err = fmt.Errorf("%w: the stretches are not those of the entries", errOutlineForm)
	}
	return err
}
