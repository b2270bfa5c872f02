package pyramid

import (
	"fmt"
	"math"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// builder makes the lowest level of one segment. It grows by 48 bytes, and 40 for each element, with every 256 records: less
// than a twentieth of the segment.
type builder struct {
	schema     *record.Schema
	kinds      []kind
	leaf       uint32 // records of an aggregate
	generation uint32
	base, next uint64

	stretches []stretch
	aggs      [][]agg // [element][stretch]
	current   []agg   // of the last stretch, which may not be full
	records   uint64
	leftOut   uint64 // records whose step is not above the last: no timeline has them

	// What was seen since the last record.
	lost    uint64
	unread  uint32
	pending bool
	ordinal uint64
}

func newBuilder(b *sink.Batch, leaf uint32) *builder {
	z := &builder{schema: b.Schema, kinds: kindsOf(b.Schema), leaf: leaf, generation: b.Generation, base: b.Segment, next: b.Segment}
	z.aggs = make([][]agg, len(z.kinds))
	z.current = make([]agg, len(z.kinds))
	return z
}

// add takes in the next batch of the segment.
func (z *builder) add(b *sink.Batch) error {
	if b.First != z.next || b.Segment != z.base || b.Generation != z.generation {
		return fmt.Errorf("frames from %d of segment %d and generation %d do not follow frame %d of segment %d and generation %d",
			b.First, b.Segment, b.Generation, z.next, z.base, z.generation)
	}
	if b.Next-z.base > math.MaxUint32 {
		return fmt.Errorf("segment %d has more than %d frames", z.base, uint32(math.MaxUint32))
	}
	losses, ordinal, width := b.Losses, b.First, b.Schema.StoredWords()
	for i := range b.Records() {
		for len(losses) > 0 && losses[0].Before <= i {
			z.lose(ordinal, losses[0].To-losses[0].From)
			losses, ordinal = losses[1:], ordinal+1
		}
		z.take(ordinal, b.Words[i*width:(i+1)*width])
		ordinal++
	}
	for ; len(losses) > 0; losses = losses[1:] {
		z.lose(ordinal, losses[0].To-losses[0].From)
		ordinal++
	}
	if ordinal < b.Next {
		z.wait(ordinal)
		z.unread += uint32(b.Next - ordinal)
	}
	z.next = b.Next
	return nil
}

func (z *builder) lose(ordinal, n uint64) {
	z.wait(ordinal)
	z.lost += n
}

// wait notes that something stands in front of the next record.
func (z *builder) wait(ordinal uint64) {
	if !z.pending {
		z.pending, z.ordinal = true, ordinal
	}
}

// take adds a record.
func (z *builder) take(ordinal uint64, row []uint64) {
	n := len(z.stretches)
	if n > 0 && row[0] <= z.stretches[n-1].last {
		z.leftOut++
		return
	}
	if n == 0 || z.stretches[n-1].count == z.leaf {
		z.flush()
		if z.pending {
			ordinal = z.ordinal
		}
		z.stretches = append(z.stretches, stretch{first: row[0], time: row[1], ordinal: ordinal})
		for i, k := range z.kinds {
			z.current[i] = k.none()
		}
		n++
	}
	s := &z.stretches[n-1]
	s.last = row[0]
	s.count++
	s.lost += z.lost
	s.unread += z.unread
	z.lost, z.unread, z.pending = 0, 0, false
	z.records++
	for i, w := range row[headWords:] {
		z.kinds[i].take(&z.current[i], w)
	}
}

// flush puts the aggregates of the last stretch where the others are.
func (z *builder) flush() {
	n := len(z.stretches)
	for i := range z.aggs {
		z.aggs[i] = append(z.aggs[i][:max(0, n-1)], z.current[i])[:n]
	}
}

// level is the lowest level as it is now, for a reader that comes before the next add. What was lost behind the last record belongs to that; if
// there is none, to a stretch of no records.
func (z *builder) level() *level {
	z.flush()
	l := &level{stretches: z.stretches, aggs: z.aggs}
	if !z.pending && len(z.stretches) > 0 {
		return l
	}
	if n := len(z.stretches); n > 0 {
		l.stretches = append(z.stretches[:n-1:n-1], z.stretches[n-1])
	} else {
		l.stretches = []stretch{{ordinal: z.base}}
		l.aggs = make([][]agg, len(z.kinds))
		for i, k := range z.kinds {
			l.aggs[i] = []agg{k.none()}
		}
	}
	end := &l.stretches[len(l.stretches)-1]
	end.lost += z.lost
	end.unread += z.unread
	return l
}

// level is the aggregates of one width.
type level struct {
	stretches []stretch
	aggs      [][]agg
}

// above is the level of factor times the width.
func (l *level) above(kinds []kind) *level {
	up := &level{aggs: make([][]agg, len(l.aggs))}
	for i := range l.stretches {
		if i%factor == 0 {
			up.stretches = append(up.stretches, stretch{})
		}
		up.stretches[i/factor].add(&l.stretches[i])
	}
	for e, k := range kinds {
		up.aggs[e] = make([]agg, len(up.stretches))
		for i := range l.stretches {
			if i%factor == 0 {
				up.aggs[e][i/factor] = l.aggs[e][i]
			} else {
				k.add(&up.aggs[e][i/factor], &l.aggs[e][i])
			}
		}
	}
	return up
}
