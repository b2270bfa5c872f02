package pyramid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sort"
)

// MaxColumns is the most that a Range may be asked for.
const MaxColumns = 1 << 16

// rawBytes is how much of the segments is read to make columns of less than an aggregate.
const rawBytes = 16 << 20

// Column is what a field does in some steps that follow each other.
type Column struct {
	FromStep, UntilStep uint64 // of the first record and the last
	FromTime            int64  // of the first record, in Unix ns
	Generation          uint32 // of the last record
	Count               uint64 // records
	NaNs                uint64 // of them; they are no part of Min, Max and Mean

	// Of a flag: the AND of all words, their OR, and the share of records with any bit set. NaN if there are none.
	Min, Max, Mean float64
	Last           float64
	Bits           uint64 // of a flag: the OR of all words

	Lost   uint64 // records that were emitted in front of or among these, and not stored
	Unread uint64 // damaged frames there

	// Sampled says that the column is made of some of its records only: Count is of those, and nothing is known of what was lost.
	Sampled bool

	and uint64 // of the words of a flag
}

// Range returns what a field does from one step until another, both included, in columns of equal numbers of steps, each with
// exactly the records of its steps that are on the effective timeline. There are about as many as asked for: a column without
// records is left out, and where the range is too long to read its records none is shorter than an aggregate, which belongs to
// the column of its first record. A generation whose schema does not have the field is left out.
func (q *Query) Range(ctx context.Context, f Field, from, until uint64, columns int) ([]Column, error) {
	lists, err := q.Ranges(ctx, []Field{f}, from, until, columns)
	if err == nil && lists[0] == nil {
		q.mu.RLock()
		defer q.mu.RUnlock()
		err = q.has(f)
	}
	if err != nil {
		return nil, err
	}
	return lists[0], nil
}

// Ranges is Range of several fields at once, which reads each file once. A field that no generation has gets no columns.
func (q *Query) Ranges(ctx context.Context, fields []Field, from, until uint64, columns int) ([][]Column, error) {
	if columns < 1 || columns > MaxColumns || from > until {
		return nil, fmt.Errorf("%d columns from step %d until %d: want 1 to %d columns, and steps in order", columns, from, until, MaxColumns)
	}
	q.mu.RLock()
	defer q.mu.RUnlock()
	if err := q.ready(); err != nil {
		return nil, err
	}
	lists := make([][]Column, len(fields))
	for _, b := range q.bands(fields, from, until) {
		for range b.of {
			b.gathers = append(b.gathers, measure(b.cuts, columns))
		}
		for i := range b.cuts {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			if err := q.walk(ctx, b.gathers, &b.cuts[i]); err != nil {
				return nil, err
			}
		}
		for i, at := range b.of {
			lists[at] = b.gathers[i].finish()
		}
	}
	return lists, nil
}

// band is fields that the same parts have.
type band struct {
	of      []int // places among the fields
	cuts    []cut
	gathers []*gather // one for each field
}

// bands finds what a range has of each field.
func (q *Query) bands(fields []Field, from, until uint64) (list []*band) {
	for at, f := range fields {
		cuts := q.plan(f, from, until)
		if len(cuts) == 0 {
			continue
		}
		i := slices.IndexFunc(list, func(b *band) bool { return slices.EqualFunc(b.cuts, cuts, sameCut) })
		if i < 0 {
			list = append(list, &band{of: []int{at}, cuts: cuts})
			continue
		}
		b := list[i]
		b.of = append(b.of, at)
		for j := range cuts {
			b.cuts[j].elements = append(b.cuts[j].elements, cuts[j].elements[0])
		}
	}
	return list
}

// sameCut says whether two cuts are the same but for their elements.
func sameCut(a, b cut) bool {
	return a.p == b.p && a.from == b.from && a.to == b.to && a.before == b.before && a.after == b.after
}

// gap is what is missing.
type gap struct {
	lost, unread uint64 // records, frames
}

func (g *gap) add(lost, unread uint64) {
	g.lost += lost
	g.unread += unread
}

// cut is what a range has of a part.
type cut struct {
	p             *part
	elements      []int  // of the part, one for each field
	from, to      uint64 // steps, both included
	before, after gap    // of parts without records beside this one
}

// plan finds what a range has of each part. What is missing in a part without records belongs to the record in front of it, or
// else to the first of all. Where a generation was cut off in front of it, the range has to reach to the step where it was.
func (q *Query) plan(f Field, from, until uint64) []cut {
	var cuts []cut
	var wait gap
	var last, near *part           // with records on the timeline, and with any
	floor, end := uint64(0), false // the step behind those on the timeline; there is none
	for _, p := range q.parts {
		if p.records == 0 {
			n := len(cuts)
			switch {
			case q.overridden(p, near):
			case last == nil:
				wait.add(p.lost, p.unread)
			case n > 0 && cuts[n-1].p == last && cuts[n-1].to == floor-1:
				cuts[n-1].after.add(p.lost, p.unread)
			}
			continue
		}
		near = p
		if end || p.first >= p.limit || p.last < floor {
			continue
		}
		c := cut{p: p, from: max(p.first, floor), to: p.last}
		if p.limit != math.MaxUint64 {
			c.to = min(c.to, p.limit-1)
		}
		if c.from > c.to {
			continue
		}
		if c.from >= from {
			c.before = wait
		}
		last, wait = p, gap{}
		floor, end = c.to+1, c.to == math.MaxUint64
		c.from, c.to = max(c.from, from), min(c.to, until)
		if e, ok := element(p.schema, f); ok && c.from <= c.to {
			c.elements = []int{e}
			cuts = append(cuts, c)
		}
	}
	return cuts
}

// overridden says whether a part without records is, as the record in front of it in its generation is, or the first there could be.
func (q *Query) overridden(p, near *part) bool {
	switch {
	case p.none || p.limit == math.MaxUint64:
		return false
	case near != nil && near.generation == p.generation:
		return near.last >= p.limit
	}
	return q.line.Begin(p.generation)+1 >= p.limit
}

// ready says why aggregates cannot be had.
func (q *Query) ready() error {
	absent := 0
	for _, p := range q.parts {
		if p.absent {
			absent++
		}
	}
	if absent > 0 && !q.opts.Partial {
		return fmt.Errorf("run %s: %w: %d of %d segments have none", q.opts.Dir, ErrUnbuilt, absent, len(q.parts))
	}
	return nil
}

// has says why there is nothing of a field, if no generation has it.
func (q *Query) has(f Field) error {
	for _, p := range q.parts {
		if p.schema == nil || p.absent {
			continue
		}
		if _, ok := element(p.schema, f); ok {
			return nil
		}
	}
	if _, ok := element(q.line.Schema(q.line.Manifests[len(q.line.Manifests)-1].Generation), f); !ok {
		return fmt.Errorf("run %s: field %q, element %d: %w", q.opts.Dir, f.Name, f.Element, ErrNoField)
	}
	return nil
}

// measure decides how wide columns are, and from what they are made. Where steps are missing, how many records there are in part
// of a segment is a guess.
func measure(cuts []cut, columns int) *gather {
	g := &gather{origin: cuts[0].from}
	records, bytes := 0.0, 0.0
	for i := range cuts {
		c := &cuts[i]
		n := float64(c.p.records)
		if whole := float64(c.p.last-c.p.first) + 1; c.from > c.p.first || c.to < c.p.last {
			n = math.Ceil(n * min(1, (float64(c.to-c.from)+1)/whole))
		}
		records += n
		bytes += n * float64(8*len(c.p.kinds)+40)
	}
	g.width = (cuts[len(cuts)-1].to-g.origin)/uint64(columns) + 1
	g.records = records / float64(columns)
	g.raw = bytes <= rawBytes && g.records < float64(cuts[0].p.leaf)
	return g
}

// gather makes columns of what comes in the order of steps.
type gather struct {
	origin  uint64  // first step of the first column
	width   uint64  // steps of a column
	records float64 // of a column, about
	raw     bool    // columns are made of records

	columns []Column
	open    bool   // the last column may get more
	at      uint64 // its number
	sum     float64
	wait    gap
}

// level is the widest that is not wider than a column.
func (g *gather) level(p *part) int {
	l := 0
	for l < p.top() && float64(p.width(l+1)) <= g.records {
		l++
	}
	return l
}

// take adds an aggregate of a kind.
func (g *gather) take(c *cut, k kind, s *stretch, a *agg) {
	at := (s.first - g.origin) / g.width
	if !g.open || at != g.at {
		g.close()
		g.open, g.at = true, at
		g.columns = append(g.columns, Column{FromStep: s.first, FromTime: int64(s.time), Min: math.Inf(1), Max: math.Inf(-1)})
	}
	col := &g.columns[len(g.columns)-1]
	col.UntilStep, col.Generation = s.last, c.p.generation
	col.Count += uint64(s.count)
	col.NaNs += uint64(a.nans)
	col.Sampled = col.Sampled || c.p.sampled && !g.raw
	col.Lost += s.lost + g.wait.lost
	col.Unread += uint64(s.unread) + g.wait.unread
	g.wait = gap{}
	if a.nans < s.count {
		col.Min, col.Max = min(col.Min, k.number(a.min)), max(col.Max, k.number(a.max))
	}
	col.Last = k.number(a.last)
	if k == flags {
		col.Bits |= a.max
		if col.and &= a.min; col.Count == uint64(s.count) {
			col.and = a.min
		}
		col.Min, col.Max = float64(col.and), float64(col.Bits)
	}
	g.sum += a.sum
}

// close ends the last column.
func (g *gather) close() {
	if !g.open {
		return
	}
	col := &g.columns[len(g.columns)-1]
	n := col.Count - col.NaNs
	if col.Mean = g.sum / float64(n); n == 0 {
		col.Min, col.Max, col.Mean = math.NaN(), math.NaN(), math.NaN()
	}
	g.open, g.sum = false, 0
}

// behind adds what is missing behind the last record.
func (g *gather) behind(more gap) {
	if n := len(g.columns); n > 0 {
		g.columns[n-1].Lost += more.lost
		g.columns[n-1].Unread += more.unread
	}
}

func (g *gather) finish() []Column {
	g.close()
	return g.columns
}

// walk adds what a range has of a part. Where its file turns out to be damaged, the segment is read instead.
func (q *Query) walk(ctx context.Context, gs []*gather, c *cut) error {
	saved := make([]gather, len(gs))
	newest := make([]Column, len(gs))
	for i, g := range gs {
		g.wait.add(c.before.lost, c.before.unread)
		saved[i] = *g
		if n := len(g.columns); n > 0 {
			newest[i] = g.columns[n-1]
		}
	}
	err := q.descend(ctx, gs, c)
	if c.p.cached && errors.Is(err, fs.ErrNotExist) {
		q.damaged.Store(c.p.info.Base, true) // the next Refresh looks again
		return fmt.Errorf("run %s: %w: files of it were removed from the cache", q.opts.Dir, ErrUnbuilt)
	}
	if corrupt := new(CorruptError); errors.As(err, &corrupt) || c.p.path != "" && errors.Is(err, fs.ErrNotExist) {
		q.opts.Damaged(err)
		q.damaged.Store(c.p.info.Base, true)
		for i, g := range gs {
			n := len(saved[i].columns)
			columns := g.columns[:n]
			if *g = saved[i]; n > 0 {
				columns[n-1] = newest[i]
			}
			g.columns = columns
		}
		err = q.instead(ctx, gs, c)
	}
	for _, g := range gs {
		g.behind(c.after)
	}
	return err
}

// instead is descend for a part whose file is damaged.
func (q *Query) instead(ctx context.Context, gs []*gather, c *cut) error {
	p, room := &part{info: c.p.info, bound: c.p.bound}, 0
	defer p.close()
	if err := q.inMemory(ctx, p, true, &room); err != nil {
		return err
	}
	if p.none || p.generation != c.p.generation {
		for _, g := range gs {
			g.wait.add(0, c.p.next-c.p.base)
		}
		return nil
	}
	again := *c
	again.p = p
	return q.descend(ctx, gs, &again)
}

func (q *Query) descend(ctx context.Context, gs []*gather, c *cut) error {
	v, err := q.view(c.p, len(gs))
	if err != nil {
		return err
	}
	defer v.close()
	if gs[0].raw { // they differ in their columns alone
		return q.records(ctx, gs, c, v)
	}
	return q.down(ctx, gs, c, v, gs[0].level(c.p), 0, math.MaxInt)
}

// down adds the aggregates of a level from one on up to another, and of one that is only in part in the range what is below it.
func (q *Query) down(ctx context.Context, gs []*gather, c *cut, v *view, l, from, to int) error {
	ss, err := v.stretches(l)
	if err != nil {
		return err
	}
	ss = ss[:min(to, len(ss))]
	from += sort.Search(len(ss)-from, func(i int) bool { return ss[from+i].last >= c.from })
	for i := from; i < len(ss) && ss[i].first <= c.to; i++ {
		s := &ss[i]
		switch {
		case s.first >= c.from && s.last <= c.to:
			for j, e := range c.elements {
				as, err := v.aggregates(l, e)
				if err != nil {
					return err
				}
				gs[j].take(c, c.p.kinds[e], s, &as[i])
			}
		case l > 0:
			err = q.down(ctx, gs, c, v, l-1, i*factor, (i+1)*factor)
		default:
			part := *c
			part.from, part.to = max(c.from, s.first), min(c.to, s.last)
			err = q.read(ctx, gs, &part, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// records adds all records of the range one by one.
func (q *Query) records(ctx context.Context, gs []*gather, c *cut, v *view) error {
	ss, err := v.stretches(0)
	if err != nil {
		return err
	}
	if c.p.sampled {
		return q.read(ctx, gs, c, c.p.before(c.from))
	}
	i := sort.Search(len(ss), func(i int) bool { return ss[i].last >= c.from })
	if i == len(ss) || ss[i].first > c.to {
		return nil
	}
	return q.read(ctx, gs, c, &ss[i])
}
