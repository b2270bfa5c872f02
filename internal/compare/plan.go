package compare

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/usp-project/usp/record"
)

func newCursor(l *Log, o *Options) *cursor {
	c := &cursor{log: l, r: l.steps(), from: o.From, to: o.To}
	if o.To == 0 {
		c.to = math.MaxUint64
	}
	c.Side = Side{Path: l.Path, RunID: l.RunID, Tiles: l.Tiles, Lost: l.lost}
	limit, limited := uint64(math.MaxUint64), false
	for i := len(l.order) - 1; i >= 0; i-- {
		g := l.generations[l.order[i]]
		if g.plan != nil && c.Every == 0 {
			c.Every = g.plan.Every
		}
		if g.limited && (!limited || g.limit < limit) {
			limit, limited = g.limit, true
			c.Rewinds = append(c.Rewinds, Rewind{Generation: l.order[i+1], From: limit})
		}
	}
	slices.Reverse(c.Rewinds)
	return c
}

// planned are the digest fields of all generations, each once.
func (l *Log) planned() (list []record.Planned) {
	for _, n := range l.order {
		p := l.generations[n].plan
		if p == nil {
			continue
		}
		for _, f := range p.Digests {
			if !slices.ContainsFunc(list, func(o record.Planned) bool { return o.Name == f.Name }) {
				list = append(list, f)
			}
		}
	}
	return list
}

// plan lists what is compared, and says how the sides differ before any step. The answer is why they cannot be compared.
func (c *comparison) plan() (refused string) {
	fieldsA, fieldsB := c.a.log.planned(), c.b.log.planned()
	for _, side := range []struct {
		name string
		log  *Log
	}{{"A", c.a.log}, {"B", c.b.log}} {
		if len(side.log.generations) == 0 {
			return fmt.Sprintf("the log of %s has no entry that says what it is about: nothing was recorded", side.name)
		}
		for _, g := range side.log.generations {
			if g.plan == nil {
				return fmt.Sprintf("the log of %s does not name its fields; compare the run directory it was exported from", side.name)
			}
		}
	}
	refused = c.fields(fieldsA, fieldsB)
	c.growths = make([]growth, len(c.Fields))
	c.notes()
	return refused
}

// fields makes the list of fields.
func (c *comparison) fields(fieldsA, fieldsB []record.Planned) (refused string) {
	find := func(list []record.Planned, name string) *record.Planned {
		if i := slices.IndexFunc(list, func(f record.Planned) bool { return f.Name == name }); i >= 0 {
			return &list[i]
		}
		return nil
	}
	wanted := func(name string) bool { return len(c.opt.Fields) == 0 || slices.Contains(c.opt.Fields, name) }
	var alone, shape []string
	for _, f := range fieldsA {
		g := find(fieldsB, f.Name)
		switch {
		case !wanted(f.Name):
			continue
		case g == nil:
			alone = append(alone, f.Name+" is in A only")
			c.Fields = append(c.Fields, Field{Name: f.Name, In: "a"})
			continue
		case f.Len != g.Len:
			shape = append(shape, fmt.Sprintf("%s has %d elements in A and %d in B", f.Name, f.Len, g.Len))
		case f.Type != g.Type:
			c.note("field %s is %v in A and %v in B", f.Name, f.Type, g.Type)
		}
		c.Fields = append(c.Fields, Field{Name: f.Name, In: "both"})
	}
	for _, f := range fieldsB {
		if wanted(f.Name) && find(fieldsA, f.Name) == nil {
			alone = append(alone, f.Name+" is in B only")
			c.Fields = append(c.Fields, Field{Name: f.Name, In: "b"})
		}
	}
	for _, name := range c.opt.Fields {
		if find(fieldsA, name) == nil && find(fieldsB, name) == nil {
			return fmt.Sprintf("no digest field is called %q; A has %s", name, names(fieldsA))
		}
	}
	var both []string
	for _, f := range c.Fields {
		if f.In == "both" {
			both = append(both, f.Name)
		}
	}
	switch {
	case len(shape) > 0:
		return "other vectors: " + strings.Join(shape, "; ")
	case len(both) == 0:
		return "the runs have no digest field in common: " + strings.Join(alone, "; ")
	case len(alone) > 0:
		return fmt.Sprintf("other fields: %s; --field %s compares what both have", strings.Join(alone, "; "), strings.Join(both, ","))
	}
	return ""
}

func names(list []record.Planned) string {
	var out []string
	for _, f := range list {
		out = append(out, f.Name)
	}
	return strings.Join(out, ", ")
}

// notes says what else differs between the logs.
func (c *comparison) notes() {
	if a, b := c.a.Every, c.b.Every; a != b {
		c.note("digest interval %d in A and %d in B: only steps that both have are compared", a, b)
	}
	for _, side := range []struct {
		name string
		*cursor
	}{{"A", c.a}, {"B", c.b}} {
		l := side.log
		for _, r := range side.Rewinds {
			c.note("%s was resumed: generation %d counts from step %d on", side.name, r.Generation, r.From)
		}
		if l.lost > 0 {
			c.note("%s has lost %d records; steps without a digest are not compared", side.name, l.lost)
		}
		if !l.ended {
			c.note("%s has not ended: it is being recorded, or its recorder died; its last step with digests is %d", side.name, l.lastStep)
		}
		if l.missing > 0 {
			c.note("%s lacks digests that were due: a recorder died before it had logged them", side.name)
		}
		if l.unknown > 0 {
			c.note("%s has %d entries of a kind that only a newer usp knows; they were passed", side.name, l.unknown)
		}
	}
	a, b := c.a.log.last(), c.b.log.last()
	switch {
	case a.plan == nil || b.plan == nil || len(a.plan.Levels) == 0 && len(b.plan.Levels) == 0:
	case len(a.plan.Levels) == 0:
		c.note("A has no precision ladders")
	case len(b.plan.Levels) == 0:
		c.note("B has no precision ladders")
	case a.plan.Key != b.plan.Key:
		c.note("the precision ladders of A and B were made with different audit keys, and say nothing")
	case a.plan.Floor != b.plan.Floor:
		c.note("the precision ladders of A and B have different floors, 2^%d and 2^%d, and say nothing", a.plan.Floor, b.plan.Floor)
	case !a.plan.Comparable(b.plan):
		c.note("the precision ladders of A and B have no level in common, and say nothing")
	}
}

// mapping says what of an entry of one generation of A belongs to what of an entry of one of B.
type mapping struct {
	fields []fieldPair
	alone  []int // in Comparison.Fields: those that one of the generations has not
	others []otherPair
	same   bool // entries with the same bytes behind the header are equal, and all that is to be compared is in them
}

// fieldPair is a digest field in both.
type fieldPair struct {
	at   int // in Comparison.Fields
	i, j int // in the entries of A and B
}

// otherPair is something else in both.
type otherPair struct {
	kind otherKind
	at   int // in Comparison.Others
	i, j int // the digest field or flag word in the entries of A and B
}

type otherKind uint8

const (
	flagWord otherKind = iota
	sumIsOne
	notNegative
	finite
)

func (c *comparison) mapping() *mapping {
	key := [2]uint32{c.a.gen.number, c.b.gen.number}
	m := c.mappings[key]
	if m == nil {
		m = c.newMapping(c.a.gen.plan, c.b.gen.plan)
		c.mappings[key] = m
	}
	return m
}

func (c *comparison) newMapping(p, q *record.Plan) *mapping {
	m := &mapping{}
	index := func(list []record.Planned, name string) int {
		return slices.IndexFunc(list, func(f record.Planned) bool { return f.Name == name })
	}
	for at, f := range c.Fields {
		switch i, j := index(p.Digests, f.Name), index(q.Digests, f.Name); {
		case i >= 0 && j >= 0:
			m.fields = append(m.fields, fieldPair{at, i, j})
		case i >= 0 || j >= 0:
			m.alone = append(m.alone, at)
		}
	}
	c.mapFlags(m, p, q)
	for _, f := range m.fields {
		name := c.Fields[f.at].Name
		if p.Digests[f.i].Simplex && q.Digests[f.j].Simplex {
			m.others = append(m.others, otherPair{sumIsOne, c.other("sum of " + name + " is 1"), f.i, f.j}, otherPair{notNegative, c.other(name + " is not negative"), f.i, f.j})
		}
		m.others = append(m.others, otherPair{finite, c.other(name + " is finite"), f.i, f.j})
	}
	sameFields := func(a, b record.Planned) bool { return a.Name == b.Name && a.Simplex == b.Simplex }
	m.same = slices.EqualFunc(p.Digests, q.Digests, sameFields) && slices.Equal(p.Flags, q.Flags)
	return m
}

// mapFlags adds the flag words that are in both, and notes flags of which that is not so.
func (c *comparison) mapFlags(m *mapping, p, q *record.Plan) {
	// If there are as many words as an entry can hold, the last may be a hash of more, with the key of the ladders.
	const last = record.MaxFlagWords - 1
	lastToo := slices.Equal(p.Flags, q.Flags) && p.Key == q.Key
	for i, f := range p.Flags {
		j := slices.Index(q.Flags, f)
		if j < 0 {
			c.note("flag %s is not compared: it is not in both, or not of one type and length", f.Name)
			continue
		}
		at, to := words(p.Flags[:i]), words(q.Flags[:j])
		for e := 0; e < f.Len && at <= last && to <= last; e, at, to = e+1, at+1, to+1 {
			name := "flag " + f.Name
			if f.Len > 1 {
				name = fmt.Sprintf("flag %s[%d]", f.Name, e)
			}
			if (at == last || to == last) && !lastToo {
				c.note("%s, and flags behind it, are not compared: all but the first %d words are hashed, with the audit key", name, last)
				break
			}
			m.others = append(m.others, otherPair{flagWord, c.other(name), at, to})
		}
	}
	for _, f := range q.Flags {
		if !slices.Contains(p.Flags, f) {
			c.note("flag %s is not compared: it is not in both, or not of one type and length", f.Name)
		}
	}
}

// words is how many words there are in the fields.
func words(list []record.Planned) (n int) {
	for _, f := range list {
		n += f.Len
	}
	return n
}

// other returns the place of something in Comparison.Others.
func (c *comparison) other(name string) int {
	i := slices.IndexFunc(c.Others, func(o Other) bool { return o.Name == name })
	if i < 0 {
		i = len(c.Others)
		c.Others = append(c.Others, Other{Name: name})
	}
	return i
}
