package compare

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/record"
)

// run merges the two timelines by step.
func (c *comparison) run(ctx context.Context) error {
	a, b := c.a, c.b
	for n := 0; ; n++ {
		if n%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		if c.skip() {
			continue
		}
		if err := a.fill(); err != nil {
			return err
		}
		if err := b.fill(); err != nil {
			return err
		}
		switch {
		case !a.have && !b.have:
			return nil
		case !b.have || a.have && a.cur.Step < b.cur.Step:
			a.alone()
		case !a.have || b.cur.Step < a.cur.Step:
			b.alone()
		default:
			if err := c.pair(); err != nil {
				return err
			}
			a.use()
			b.use()
		}
	}
}

// alone uses a step that the other side has not.
func (c *cursor) alone() {
	if c.Only++; c.Only == 1 {
		c.FirstOnly = c.cur.Step
	}
	c.use()
}

// skip passes a stretch that both sides have.
func (c *comparison) skip() bool {
	a, b := c.a, c.b
	if a.have || b.have {
		return false
	}
	s, ga, ok := a.stretch()
	if !ok {
		return false
	}
	t, gb, ok := b.stretch()
	if !ok || s.Sum != t.Sum || s.Count != t.Count || s.FirstStep != t.FirstStep || s.LastStep != t.LastStep {
		return false
	}
	a.gen, b.gen = ga, gb
	m := c.mapping()
	if !m.same {
		return false
	}
	a.r.Skip()
	b.r.Skip()
	a.advance(s.FirstStep, s.LastStep, s.Count)
	b.advance(s.FirstStep, s.LastStep, s.Count)
	c.Skipped += s.Count
	c.equal(m, s.FirstStep, s.LastStep, s.Count)
	return true
}

// equal takes in steps with the same entries.
func (c *comparison) equal(m *mapping, first, last, count uint64) {
	c.Common += count
	for _, p := range m.fields {
		c.Fields[p.at].Compared += count
		if count == 1 {
			c.growths[p.at].add(first, Exact)
		} else {
			c.growths[p.at].equal(first, last, count)
		}
	}
	for _, p := range m.others {
		c.Others[p.at].Compared += count
	}
}

// pair compares the entries of both sides, which are of the same step.
func (c *comparison) pair() error {
	a, b, m := &c.a.cur, &c.b.cur, c.mapping()
	for _, side := range []*cursor{c.a, c.b} {
		if n, want := side.cur.Len(), len(side.gen.plan.Digests); n != want {
			return fmt.Errorf("%s: entry %d: %w: step %d has %d digests, want %d", side.Path, side.cur.Index, ErrContradiction, side.cur.Step, n, want)
		}
	}
	if m.same && bytes.Equal(a.Body(), b.Body()) {
		c.equal(m, a.Step, a.Step, 1)
		return nil
	}
	extA, extB := extensions(a), extensions(b)
	c.Common++
	c.sum, c.others = c.sum[:0], c.others[:0]
	for _, p := range m.fields {
		c.field(p, extA.ladder, extB.ladder)
	}
	for _, at := range m.alone {
		c.Fields[at].Alone++
	}
	c.compareOthers(m, extA.invariants, extB.invariants)
	if len(c.sum) == 0 && len(c.others) == 0 {
		return nil
	}
	c.Differ++
	if c.opt.Each != nil {
		return c.opt.Each(Step{Step: a.Step, Fields: c.sum, Other: c.others})
	}
	return nil
}

// field compares one field.
func (c *comparison) field(p fieldPair, ladderA, ladderB []byte) {
	a, b, f := &c.a.cur, &c.b.cur, &c.Fields[p.at]
	f.Compared++
	if bytes.Equal(a.Digest(p.i), b.Digest(p.j)) {
		c.growths[p.at].add(a.Step, Exact)
		return
	}
	if f.Differ++; f.Differ == 1 {
		f.FirstStep = copied(a.Step)
	}
	bits, known := c.a.gen.plan.Agreement(ladderA, p.i, c.b.gen.plan, ladderB, p.j)
	d := FieldStep{Field: f.Name}
	if known {
		d.Bits = &bitNumbers[bits]
		c.growths[p.at].add(a.Step, bits)
		if f.Bits == nil || bits < *f.Bits {
			f.Bits, f.BitsAt = d.Bits, copied(a.Step)
		}
		if c.Bits == nil || bits < *c.Bits {
			c.Bits, c.BitsAt = d.Bits, copied(a.Step)
		}
	} else {
		f.Unknown++
		c.growths[p.at].add(a.Step, -1)
	}
	if c.opt.MinBits > 0 && c.Below == nil && (!known || bits < c.opt.MinBits) {
		c.Below = copied(a.Step)
	}
	c.sum = append(c.sum, d)
	if c.First != nil {
		return
	}
	c.diverge(Divergence{
		Field: f.Name, Bits: d.Bits, A: hex.EncodeToString(a.Digest(p.i)), B: hex.EncodeToString(b.Digest(p.j)),
		NonfiniteA: a.Nonfinite()>>min(p.i, 31)&1 == 1, NonfiniteB: b.Nonfinite()>>min(p.j, 31)&1 == 1,
	})
}

func copied(step uint64) *uint64 { return &step }

// bitNumbers are the numbers of bits that there can be, so that none is allocated for a step.
var bitNumbers = func() (n [Exact + 1]int) {
	for i := range n {
		n[i] = i
	}
	return n
}()

// diverge notes the first divergence.
func (c *comparison) diverge(d Divergence) {
	d.Step, d.GenerationA, d.GenerationB = c.a.cur.Step, c.a.gen.number, c.b.gen.number
	c.First = &d
}

// compareOthers compares what must be equal whatever the machine.
func (c *comparison) compareOthers(m *mapping, rawA, rawB []byte) {
	okA, okB := c.a.gen.plan.Invariants(rawA, &c.invA), c.b.gen.plan.Invariants(rawB, &c.invB)
	if !(okA && okB) && slices.ContainsFunc(m.others, func(p otherPair) bool { return p.kind != finite }) {
		c.blind++
	}
	for _, p := range m.others {
		if !(okA && okB) && p.kind != finite {
			continue
		}
		o := &c.Others[p.at]
		o.Compared++
		a, b := p.value(p.i, &c.a.cur, &c.invA), p.value(p.j, &c.b.cur, &c.invB)
		if a == b {
			continue
		}
		step := c.a.cur.Step
		if o.Differ++; o.Differ == 1 {
			o.FirstStep, o.A, o.B = &step, p.text(a), p.text(b)
		}
		c.others = append(c.others, o.Name)
		if c.First == nil {
			c.diverge(Divergence{Field: o.Name, A: p.text(a), B: p.text(b)})
		}
	}
}

// value is what an entry says.
func (p *otherPair) value(i int, s *digestlog.StepEntry, inv *record.Invariants) uint64 {
	switch p.kind {
	case sumIsOne:
		return uint64(^inv.Sum >> i & 1)
	case notNegative:
		return uint64(^inv.NonNegative >> i & 1)
	case finite:
		return uint64(^s.Nonfinite() >> min(i, 31) & 1)
	}
	return inv.Flags[i]
}

// text is a value for people.
func (p *otherPair) text(v uint64) string {
	if p.kind == flagWord {
		return fmt.Sprintf("%#x", v)
	}
	return [...]string{"no", "yes"}[v]
}

// blocks are the extensions of a STEP entry.
type blocks struct{ ladder, invariants []byte }

// extensions finds the blocks. What is no list of blocks holds none: digests do not depend on it.
func extensions(s *digestlog.StepEntry) (x blocks) {
	for b, err := range digestlog.Blocks(s.Ext()) {
		switch {
		case err != nil:
			return blocks{}
		case b.Tag == digestlog.TagLadder:
			x.ladder = b.Data
		case b.Tag == digestlog.TagInvariants:
			x.invariants = b.Data
		}
	}
	return x
}
