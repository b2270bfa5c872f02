// Package compare says where, how far and why two runs part, from their digest logs alone.
//
// [Compare] holds the effective timelines of two logs against each other, step by step, each a run directory's or one exported as tiles.
// What is compared is exact digests; where these differ, the precision ladders beside them say to how many bits the fields agree at
// least; and beside both, what must be equal whatever the machine: flags, and whether weights are weights. Stretches of steps that are
// equal are passed by comparing one hash of each. The verdict has three tiers, see [Verdict]. Memory does not grow with the runs.
//
// It verifies neither log; package audit does that. It promises never to call identical what it could not compare in full: a
// field or step that only one side has is said or refused.
package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/usp-project/usp/internal/environ"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// Verdict is the outcome of Compare.
type Verdict string

// The verdicts.
const (
	Identical    Verdict = "identical"    // every digest of every common step is the same, and so are flags and invariants where both have them
	Agree        Verdict = "agree"        // not all are, but every field agrees to Bits bits at least in every common step
	Parted       Verdict = "parted"       // some field does not even agree to the lowest level, or nothing says how far, or flags or invariants differ
	Incomparable Verdict = "incomparable" // there is nothing that could be compared, or not all that should be
)

// ErrContradiction is wrapped by the error about a log that says one thing here and another there: a step twice, digests that its plan has not. What
// is left of it cannot be called equal to anything.
var ErrContradiction = errors.New("the log contradicts itself")

// The exit statuses of usp compare.
const (
	exitOK      = 0
	exitRefused = 2
	exitDiffer  = 22
)

// Options choose what is compared. The zero value compares everything and tolerates nothing.
type Options struct {
	From, To uint64   // steps before From are passed, and those behind To unless it is 0
	Fields   []string // digest fields to compare; none: all, and both sides must have the same
	MinBits  int      // agreement to so many bits is good enough for exit status 0
	Each     func(Step) error
}

// Step is one step at which the sides differ, for Options.Each. It is valid during the call.
type Step struct {
	Step   uint64      `json:"step"`
	Fields []FieldStep `json:"fields,omitempty"` // those that differ
	Other  []string    `json:"other,omitempty"`  // what else differs: flags, invariants
}

// FieldStep is a field at one step.
type FieldStep struct {
	Field string `json:"field"`
	Bits  *int   `json:"bits"` // of agreement, at least; 0: less than the lowest level; nil: nothing says
}

// Comparison is what Compare found.
type Comparison struct {
	Verdict Verdict `json:"verdict"`
	Exit    int     `json:"exit"`
	Reason  string  `json:"reason,omitempty"` // why incomparable, or parted although digests may agree
	Bits    *int    `json:"bits,omitempty"`   // the least agreement of any field in any step that differs; nil: nothing says, or nothing differs
	BitsAt  *uint64 `json:"bits_at,omitempty"`

	A      Side        `json:"a"`
	B      Side        `json:"b"`
	Common uint64      `json:"common_steps"` // with digests in both
	Differ uint64      `json:"differing_steps"`
	First  *Divergence `json:"first_divergent,omitempty"`
	Below  *uint64     `json:"first_below_min_bits,omitempty"`
	Fields []Field     `json:"fields"`          // in the order of A, then those of B alone
	Others []Other     `json:"others"`          // flags and invariants
	Notes  []string    `json:"notes,omitempty"` // what else differs between the sides

	// Environment is what the producers of the generations at the first divergent step, or else of the last ones, were run with and had different.
	Environment []environ.Difference `json:"environment"`
	Skipped     uint64               `json:"skipped_steps"` // of the common ones, as parts of equal stretches
}

// Side is one of the two logs.
type Side struct {
	Path      string    `json:"path"`
	RunID     string    `json:"run_id"`
	Tiles     bool      `json:"tiles,omitempty"`
	Steps     uint64    `json:"steps"` // with digests, on the effective timeline, in the range compared
	FirstStep uint64    `json:"first_step"`
	LastStep  uint64    `json:"last_step"`
	Every     uint64    `json:"digest_every"` // 0: not known
	Only      uint64    `json:"only"`         // steps that the other has no digests of
	FirstOnly uint64    `json:"first_only,omitempty"`
	Lost      uint64    `json:"lost_records,omitempty"`
	Rewinds   []Rewind  `json:"rewinds,omitempty"`
	Nearest   *Snapshot `json:"nearest_snapshot,omitempty"` // the newest intact one before the first divergent step
}

// Rewind is a generation that overrides steps of those before it.
type Rewind struct {
	Generation uint32 `json:"generation"`
	From       uint64 `json:"from"` // first step that it overrides
}

// Field is one digest field.
type Field struct {
	Name      string   `json:"name"`
	In        string   `json:"in"` // both, a or b
	Compared  uint64   `json:"compared"`
	Differ    uint64   `json:"differ"`
	FirstStep *uint64  `json:"first_step,omitempty"` // the first that differs
	Bits      *int     `json:"bits,omitempty"`       // least agreement; nil: nothing differs, or nothing says
	BitsAt    *uint64  `json:"bits_at,omitempty"`
	Unknown   uint64   `json:"unknown,omitempty"` // of those that differ: nothing says by how much
	Alone     uint64   `json:"alone,omitempty"`   // common steps in which only one side has it
	Growth    []Bucket `json:"growth,omitempty"`  // over the steps, if any differ
}

// Other is something that must be equal whatever the machine.
type Other struct {
	Name      string  `json:"name"` // such as "flag flags" or "sum of rho is 1"
	Compared  uint64  `json:"compared"`
	Differ    uint64  `json:"differ"`
	FirstStep *uint64 `json:"first_step,omitempty"`
	A         string  `json:"a,omitempty"` // at the first step
	B         string  `json:"b,omitempty"`
}

// Divergence is the first place where the sides differ.
type Divergence struct {
	Step        uint64 `json:"step"`
	Field       string `json:"field"`          // the first digest field that differs, else what else does
	Bits        *int   `json:"bits,omitempty"` // of agreement of that field
	A           string `json:"a"`              // SHA-256 in hexadecimal, or the value
	B           string `json:"b"`
	NonfiniteA  bool   `json:"nonfinite_a,omitempty"` // the field held a NaN or an infinity
	NonfiniteB  bool   `json:"nonfinite_b,omitempty"`
	GenerationA uint32 `json:"generation_a"`
	GenerationB uint32 `json:"generation_b"`
}

// Compare holds the logs at two paths against each other. Errors are of reading; a *digestlog.Fault says that a log is damaged.
func Compare(ctx context.Context, fsys vfs.FS, pathA, pathB string, o Options) (*Comparison, error) {
	var a, b *Log
	var errB error
	var wg sync.WaitGroup
	wg.Go(func() { b, errB = Open(fsys, pathB) })
	a, err := Open(fsys, pathA)
	wg.Wait()
	if err = cmp.Or(err, errB); err != nil {
		return nil, err
	}
	c := &comparison{opt: o, a: newCursor(a, &o), b: newCursor(b, &o), mappings: map[[2]uint32]*mapping{}}
	defer c.a.r.Close()
	defer c.b.r.Close()
	reason := c.plan()
	if reason == "" {
		if err := c.run(ctx); err != nil {
			return nil, fmt.Errorf("compare %s and %s: %w", pathA, pathB, err)
		}
		c.believed()
		if c.Common == 0 {
			reason = "the runs have no step with digests in common"
		}
	}
	c.conclude(reason)
	if c.First != nil {
		if err := c.nearest(ctx); err != nil {
			return nil, fmt.Errorf("compare %s and %s: %w", pathA, pathB, err)
		}
	}
	return &c.Comparison, nil
}

// believed notes what was taken for true.
func (c *comparison) believed() {
	for i, side := range []*cursor{c.a, c.b} {
		if side.grew {
			c.note("%c was resumed while it was read; what came then is not compared", "AB"[i])
		}
	}
	if c.Skipped > 0 {
		c.note("%d equal steps were passed by hashes in the index of the logs; that these are true, usp verify finds out", c.Skipped)
	}
}

// comparison is one in the making.
type comparison struct {
	Comparison
	opt      Options
	a, b     *cursor
	mappings map[[2]uint32]*mapping // by the generations of the two sides
	growths  []growth               // by field
	sum      []FieldStep            // of the step being compared
	others   []string
	invA     record.Invariants
	invB     record.Invariants
	blind    uint64 // steps whose flags and weights could not be compared, though both should have them
}

// conclude finds the verdict.
func (c *comparison) conclude(refused string) {
	c.A, c.B = c.a.Side, c.b.Side
	for i := range c.Fields {
		if f := &c.Fields[i]; f.Differ > 0 {
			f.Growth = c.growths[i].list()
		}
	}
	alone := slices.IndexFunc(c.Fields, func(f Field) bool { return f.Alone > 0 })
	differs := slices.IndexFunc(c.Others, func(o Other) bool { return o.Differ > 0 })
	unknown := slices.IndexFunc(c.Fields, func(f Field) bool { return f.Unknown > 0 })
	switch {
	case refused != "":
		c.Verdict, c.Reason = Incomparable, refused
	case alone >= 0 && (c.Differ == 0 || differs < 0 && unknown < 0 && *c.Bits > 0):
		f := &c.Fields[alone]
		c.Verdict, c.Reason = Incomparable, fmt.Sprintf("in %s of %d only one of the runs has %s; --from, --to and --field compare what both have", steps(f.Alone), c.Common, f.Name)
	case c.Differ == 0:
		c.Verdict = Identical
	case differs >= 0:
		c.Verdict, c.Reason = Parted, fmt.Sprintf("%s differs, which no rounding explains", c.Others[differs].Name)
	case unknown >= 0:
		c.Verdict, c.Reason = Parted, fmt.Sprintf("nothing says how far %s agrees: there are no precision ladders to hold against each other", c.Fields[unknown].Name)
	case *c.Bits == 0:
		c.Verdict = Parted
	default:
		c.Verdict = Agree
	}
	switch {
	case c.Verdict == Incomparable:
		c.Exit = exitRefused
	case c.Verdict == Identical, c.Verdict == Agree && c.opt.MinBits > 0 && *c.Bits >= c.opt.MinBits:
		c.Exit = exitOK
	default:
		c.Exit = exitDiffer
	}
	if c.blind > 0 {
		c.note("flags and weights were not compared in %s: an entry does not hold them as it should", steps(c.blind))
	}
	c.environment()
}

// steps is a number of steps for people.
func steps(n uint64) string {
	if n == 1 {
		return "1 step"
	}
	return fmt.Sprintf("%d steps", n)
}

// environment compares what the producers were run with.
func (c *comparison) environment() {
	a, b := c.a.log.last(), c.b.log.last()
	if f := c.First; f != nil {
		a, b = c.a.log.generations[f.GenerationA], c.b.log.generations[f.GenerationB]
	}
	if a == nil || b == nil {
		return
	}
	switch {
	case a.environment == nil && b.environment == nil:
		c.note("neither log says what its producer was run with")
	case a.environment == nil:
		c.note("the log of A does not say what its producer was run with")
	case b.environment == nil:
		c.note("the log of B does not say what its producer was run with")
	default:
		c.Environment = environ.Diff(a.environment, b.environment)
	}
}

// note adds a note, if it was not added before.
func (c *comparison) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(c.Notes, n) {
		c.Notes = append(c.Notes, n)
	}
}
