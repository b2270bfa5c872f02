package compare

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"

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
	a.use64(s.FirstStep, s.LastStep, s.Count)
	b.use64(s.FirstStep, s.LastStep, s.Count)
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
	for i := range c.Others {
		c.Others[i].Compared += count
	}
}

// pair compares the entries of both sides, which are of the same step.
func (c *comparison) pair() error {
	a, b, m := &c.a.cur, &c.b.cur, c.mapping()
	for _, side := range []*cursor{c.a, c.b} {
		if n, want := side.cur.Len(), len(side.gen.plan.Digests); n != want {
			return fmt.Errorf("%s: entry %d, step %d, has %d digests, want %d", side.Path, side.cur.Index, side.cur.Step, n, want)
		}
	}
	if m.same && bytes.Equal(a.Body(), b.Body()) {
		c.equal(m, a.Step, a.Step, 1)
		return nil
	}
	extA, err := ladders(a)
	if err != nil {
		return fmt.Errorf("%s: entry %d: %w", c.a.Path, a.Index, err)
	}
	extB, err := ladders(b)
	if err != nil {
		return fmt.Errorf("%s: entry %d: %w", c.b.Path, b.Index, err)
	}
	c.Common++
	c.sum, c.others = c.sum[:0], c.others[:0]
	for _, p := range m.fields {
		c.field(p, extA.ladder, extB.ladder)
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

// blocks are the extensions of a STEP entry.
type blocks struct{ ladder, invariants []byte }

func ladders(s *digestlog.StepEntry) (x blocks, err error) {
	for b, err := range digestlog.Blocks(s.Ext()) {
		if err != nil {
			return x, err
		}
		switch b.Tag {
		case digestlog.TagLadder:
			x.ladder = b.Data
		case digestlog.TagInvariants:
			x.invariants = b.Data
		}
	}
	return x, nil
}

// field compares one field.
func (c *comparison) field(p fieldPair, ladderA, ladderB []byte) {
	a, b, f := &c.a.cur, &c.b.cur, &c.Fields[p.at]
	f.Compared++
	if bytes.Equal(a.Digest(p.i), b.Digest(p.j)) {
		c.growths[p.at].add(a.Step, Exact)
		return
	}
	step := a.Step
	if f.Differ++; f.Differ == 1 {
		f.FirstStep = &step
	}
	bits, known := c.a.gen.plan.Agreement(ladderA, p.i, c.b.gen.plan, ladderB, p.j)
	d := FieldStep{Field: f.Name}
	if known {
		d.Bits = &bits
		c.growths[p.at].add(step, bits)
		if f.Bits == nil || bits < *f.Bits {
			f.Bits, f.BitsAt = &bits, &step
		}
		if c.Bits == nil || bits < *c.Bits {
			c.Bits, c.BitsAt = &bits, &step
		}
	} else {
		f.Unknown++
		c.growths[p.at].add(step, -1)
	}
	if c.opt.MinBits > 0 && c.Below == nil && (!known || bits < c.opt.MinBits) {
		c.Below = &step
	}
	c.sum = append(c.sum, d)
	c.diverge(Divergence{
		Field: f.Name, Bits: d.Bits, A: hex.EncodeToString(a.Digest(p.i)), B: hex.EncodeToString(b.Digest(p.j)),
		NonfiniteA: a.Nonfinite()>>min(p.i, 31)&1 == 1, NonfiniteB: b.Nonfinite()>>min(p.j, 31)&1 == 1,
	})
}

// diverge keeps the first divergence.
func (c *comparison) diverge(d Divergence) {
	if c.First == nil {
		d.Step, d.GenerationA, d.GenerationB = c.a.cur.Step, c.a.gen.number, c.b.gen.number
		c.First = &d
	}
}

// compareOthers compares what must be equal whatever the machine.
func (c *comparison) compareOthers(m *mapping, rawA, rawB []byte) {
	p, q := c.a.gen.plan, c.b.gen.plan
	if !p.Invariants(rawA, &c.invA) || !q.Invariants(rawB, &c.invB) {
		return
	}
	if m.flags {
		at := 0
		for _, f := range p.Flags {
			for e := range f.Len {
				if at == record.MaxFlagWords {
					break
				}
				name := "flag " + f.Name
				if f.Len > 1 {
					name = fmt.Sprintf("flag %s[%d]", f.Name, e)
				}
				c.other(name, fmt.Sprintf("%#x", c.invA.Flags[at]), fmt.Sprintf("%#x", c.invB.Flags[at]))
				at++
			}
		}
	}
	holds := map[bool]string{true: "no", false: "yes"}
	for _, f := range m.fields {
		if !p.Digests[f.i].Simplex || !q.Digests[f.j].Simplex {
			continue
		}
		name := c.Fields[f.at].Name
		c.other("sum of "+name+" is 1", holds[c.invA.Sum>>f.i&1 == 1], holds[c.invB.Sum>>f.j&1 == 1])
		c.other(name+" is not negative", holds[c.invA.NonNegative>>f.i&1 == 1], holds[c.invB.NonNegative>>f.j&1 == 1])
	}
	for _, f := range m.fields {
		a, b := c.a.cur.Nonfinite()>>min(f.i, 31)&1 == 0, c.b.cur.Nonfinite()>>min(f.j, 31)&1 == 0
		c.other(c.Fields[f.at].Name+" is finite", holds[!a], holds[!b])
	}
}

// other compares one of them.
func (c *comparison) other(name, a, b string) {
	var o *Other
	for i := range c.Others {
		if c.Others[i].Name == name {
			o = &c.Others[i]
		}
	}
	if o == nil {
		// Steps that were equal before it was first looked at were compared too.
		c.Others = append(c.Others, Other{Name: name, Compared: c.Common - 1})
		o = &c.Others[len(c.Others)-1]
	}
	o.Compared++
	if a == b {
		return
	}
	step := c.a.cur.Step
	if o.Differ++; o.Differ == 1 {
		o.FirstStep, o.A, o.B = &step, a, b
	}
	c.others = append(c.others, name)
	c.diverge(Divergence{Field: name, A: a, B: b})
}
