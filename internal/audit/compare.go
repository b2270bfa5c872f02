package audit

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// Outcome is the verdict of Compare.
type Outcome string

// The outcomes.
const (
	Identical    Outcome = "identical"    // every digest of every common step is the same
	Diverged     Outcome = "diverged"     // some are not
	Incomparable Outcome = "incomparable" // no digest field or no step in common
)

// ExitCode is the exit status of usp compare.
func (o Outcome) ExitCode() int {
	switch o {
	case Identical:
		return 0
	case Diverged:
		return 22
	}
	return 2
}

// Comparison is what Compare found.
type Comparison struct {
	Verdict Outcome           `json:"verdict"`
	Exit    int               `json:"exit"`
	Reason  string            `json:"reason,omitempty"` // why incomparable
	A       Side              `json:"a"`
	B       Side              `json:"b"`
	Common  uint64            `json:"common_steps"` // with a digest in both
	First   *Divergence       `json:"first_divergent,omitempty"`
	Fields  []FieldComparison `json:"fields"`          // in the order of A, then those of B alone
	Notes   []string          `json:"notes,omitempty"` // differences of schema and interval
}

// Side is one of the two runs.
type Side struct {
	Dir       string `json:"dir"`
	RunID     string `json:"run_id"`
	Steps     uint64 `json:"steps"` // with a digest, on the effective timeline
	FirstStep uint64 `json:"first_step"`
	LastStep  uint64 `json:"last_step"`
	Every     uint64 `json:"digest_every"`         // 0: not known
	Only      uint64 `json:"only"`                 // steps that the other has no digest of
	FirstOnly uint64 `json:"first_only,omitempty"` // the first of them
}

// FieldComparison is one digest field.
type FieldComparison struct {
	Name      string `json:"name"`
	In        string `json:"in"` // both, a or b
	Compared  uint64 `json:"compared"`
	Differ    uint64 `json:"differ"`
	FirstStep uint64 `json:"first_step,omitempty"` // the first step that differs, if any do
}

// Divergence is the first place where the runs differ.
type Divergence struct {
	Step        uint64 `json:"step"`
	Field       string `json:"field"`
	A           string `json:"a"` // SHA-256 in hexadecimal
	B           string `json:"b"`
	NonfiniteA  bool   `json:"nonfinite_a,omitempty"` // the field held a NaN or an infinity
	NonfiniteB  bool   `json:"nonfinite_b,omitempty"`
	GenerationA uint32 `json:"generation_a"`
	GenerationB uint32 `json:"generation_b"`
}

// Compare holds the digests of two runs' effective timelines against each other,
// by field name, step by step, in memory that does not grow with the runs. It
// verifies neither. Errors are of reading, or a *digestlog.Fault of a damaged log.
func Compare(ctx context.Context, fsys vfs.FS, dirA, dirB string) (*Comparison, error) {
	a, err := Open(fsys, dirA)
	if err != nil {
		return nil, err
	}
	b, err := Open(fsys, dirB)
	if err != nil {
		return nil, err
	}
	c := &comparison{a: side(a), b: side(b)}
	c.A, c.B = c.a.Side, c.b.Side
	c.schemas()
	if !slices.ContainsFunc(c.Fields, func(f FieldComparison) bool { return f.In == "both" }) {
		return c.conclude(Incomparable, "the runs have no digest field in common"), nil
	}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("compare %s and %s: %w", dirA, dirB, err)
	}
	c.A, c.B = c.a.Side, c.b.Side
	switch {
	case c.Common == 0:
		return c.conclude(Incomparable, "the runs have no step with digests in common"), nil
	case c.First != nil:
		return c.conclude(Diverged, ""), nil
	}
	return c.conclude(Identical, ""), nil
}

type comparison struct {
	Comparison
	a, b runner
}

// runner goes through one run.
type runner struct {
	Side
	line  *Timeline
	names map[uint32][]string // digest fields by generation
	next  func() (digestlog.Item, error, bool)
	item  digestlog.Item
	have  bool
}

func side(t *Timeline) runner {
	r := runner{line: t, names: map[uint32][]string{}}
	r.Dir, r.RunID = t.Dir.Path(), t.RunID
	for _, m := range t.Manifests {
		r.names[m.Generation] = t.Schema(m.Generation).DigestFields()
		r.Every = m.DigestEvery
	}
	return r
}

// fields are the digest fields of all generations, each once, with their schema.
func (r *runner) fields() (names []string, of map[string]record.Field) {
	of = map[string]record.Field{}
	for _, m := range r.line.Manifests {
		s := r.line.Schema(m.Generation)
		for _, name := range r.names[m.Generation] {
			if _, seen := of[name]; !seen {
				i, _ := s.Index(name)
				names, of[name] = append(names, name), s.Field(i)
			}
		}
	}
	return names, of
}

func (c *comparison) conclude(o Outcome, reason string) *Comparison {
	c.Verdict, c.Exit, c.Reason = o, o.ExitCode(), reason
	return &c.Comparison
}

// schemas lists the fields and states how the runs differ before any step.
func (c *comparison) schemas() {
	namesA, fieldsA := c.a.fields()
	namesB, fieldsB := c.b.fields()
	for _, n := range namesA {
		in := "a"
		if fb, ok := fieldsB[n]; ok {
			in = "both"
			if fa := fieldsA[n]; fa.Len != fb.Len || fa.Type != fb.Type {
				c.Notes = append(c.Notes, fmt.Sprintf("field %s is %d × %v in A and %d × %v in B", n, fa.Len, fa.Type, fb.Len, fb.Type))
			}
		}
		c.Fields = append(c.Fields, FieldComparison{Name: n, In: in})
	}
	for _, n := range namesB {
		if _, ok := fieldsA[n]; !ok {
			c.Fields = append(c.Fields, FieldComparison{Name: n, In: "b"})
		}
	}
	for _, f := range c.Fields {
		if f.In != "both" {
			c.Notes = append(c.Notes, fmt.Sprintf("field %s is in %s only", f.Name, map[string]string{"a": "A", "b": "B"}[f.In]))
		}
	}
	if c.a.Every != c.b.Every {
		c.Notes = append(c.Notes, fmt.Sprintf("digest interval %d in A and %d in B", c.a.Every, c.b.Every))
	}
}

// run merges the two timelines by step.
func (c *comparison) run(ctx context.Context) error {
	for _, r := range []*runner{&c.a, &c.b} {
		next, stop := iter.Pull2(r.line.Digests())
		defer stop()
		r.next = next
		if err := r.advance(); err != nil {
			return err
		}
	}
	a, b := &c.a, &c.b
	for n := 0; a.have || b.have; n++ {
		if n%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		var err error
		switch {
		case !b.have || a.have && a.item.Entry.Step < b.item.Entry.Step:
			err = a.alone()
		case !a.have || b.item.Entry.Step < a.item.Entry.Step:
			err = b.alone()
		default:
			c.Common++
			c.step()
			if err = a.advance(); err == nil {
				err = b.advance()
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// alone counts a step that the other run has not.
func (r *runner) alone() error {
	if r.Only++; r.Only == 1 {
		r.FirstOnly = r.item.Entry.Step
	}
	return r.advance()
}

func (r *runner) advance() error {
	it, err, ok := r.next()
	r.item, r.have = it, ok
	if err != nil {
		return err
	}
	if !ok {
		return nil
	}
	e := &it.Entry
	if names := r.names[e.Generation]; len(names) != len(e.Digests) {
		return fmt.Errorf("run %s: step %d has %d digests, its schema has %d digest fields", r.RunID, e.Step, len(e.Digests), len(names))
	}
	if r.Steps++; r.Steps == 1 {
		r.FirstStep = e.Step
	}
	r.LastStep = e.Step
	return nil
}

// digest is a field's digest in the current entry.
func (r *runner) digest(name string) (sum [32]byte, nonfinite, ok bool) {
	e := &r.item.Entry
	i := slices.Index(r.names[e.Generation], name)
	if i < 0 {
		return sum, false, false
	}
	return e.Digests[i], e.Nonfinite>>min(i, 31)&1 == 1, true
}

// step compares the current entries of both runs, which are of the same step.
func (c *comparison) step() {
	for i := range c.Fields {
		f := &c.Fields[i]
		da, nonA, okA := c.a.digest(f.Name)
		db, nonB, okB := c.b.digest(f.Name)
		if !okA || !okB {
			continue
		}
		f.Compared++
		if da == db {
			continue
		}
		step := c.a.item.Entry.Step
		if f.Differ++; f.Differ == 1 {
			f.FirstStep = step
		}
		if c.First == nil {
			c.First = &Divergence{
				Step: step, Field: f.Name, A: hexa(da), B: hexa(db), NonfiniteA: nonA, NonfiniteB: nonB,
				GenerationA: c.a.item.Entry.Generation, GenerationB: c.b.item.Entry.Generation,
			}
		}
	}
}
