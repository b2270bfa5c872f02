package record

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Plan says what a log entry of a step holds beside the exact digests, and what the entry's numbers are about, so that a log can be
// compared with another without the runs they come from. It is in the log's OPEN entry, as text.
type Plan struct {
	Every   uint64    // digest interval in steps, at least 1
	Levels  []int     // of the precision ladder, in bits, ascending, of 2, 6, … 50; empty: there is none
	Floor   int       // of the ladder, as an exponent of 2
	Key     [8]byte   // AuditKey.ID of the ladder
	Digests []Planned // the digest fields, in schema order
	Flags   []Planned // the flag fields whose words are in the entry, in schema order
}

// Planned is one field.
type Planned struct {
	Name    string
	Type    Type
	Len     int
	Ladder  bool // of a digest field: it has a ladder
	Simplex bool // of a digest field: it is to be non-negative and to sum to 1
}

// MaxFlagWords is how many words of flags an entry holds. If the flag fields have more, the last one is a hash of the rest.
const MaxFlagWords = 8

// PlanOptions choose what goes into a Plan. The zero value is one step apart, without a ladder and without weights.
type PlanOptions struct {
	Every   uint64
	Levels  []int // MinLevel to MaxLevel, LevelStep apart or a multiple of it, ascending
	Floor   int   // MinFloor to MaxFloor
	Key     AuditKey
	Weights []string // names of digest fields that are to be non-negative and to sum to 1; those the schema has not are passed over
}

// ErrPlan is wrapped by every error about a plan that is not well formed.
var ErrPlan = errors.New("record: invalid digest plan")

// NewPlan makes the plan for a schema. The error wraps ErrPlan.
func NewPlan(s *Schema, o PlanOptions) (*Plan, error) {
	p := &Plan{Every: max(o.Every, 1), Levels: slices.Clone(o.Levels), Floor: o.Floor, Key: o.Key.ID}
	words := 0
	for _, f := range s.fields {
		d := Planned{Name: f.Name, Type: f.Type, Len: f.Len}
		switch {
		case f.Class == Digest:
			d.Ladder = len(p.Levels) > 0 && f.Len <= MaxLadderLen
			d.Simplex = slices.Contains(o.Weights, f.Name)
			p.Digests = append(p.Digests, d)
		case f.Class == Flag && words < MaxFlagWords:
			p.Flags = append(p.Flags, d)
			words += f.Len
		}
	}
	return p, p.check()
}

func (p *Plan) check() error {
	switch {
	case p.Every == 0:
		return fmt.Errorf("%w: interval 0", ErrPlan)
	case p.Floor < MinFloor || p.Floor > MaxFloor:
		return fmt.Errorf("%w: floor 2^%d, want %d to %d", ErrPlan, p.Floor, MinFloor, MaxFloor)
	case len(p.Digests) > MaxDigests || len(p.Flags) > MaxFlagWords:
		return fmt.Errorf("%w: %d digest and %d flag fields", ErrPlan, len(p.Digests), len(p.Flags))
	}
	for i, l := range p.Levels {
		if l < MinLevel || l > MaxLevel || (l-MinLevel)%LevelStep != 0 || i > 0 && l <= p.Levels[i-1] {
			return fmt.Errorf("%w: levels %v: want ascending numbers of bits of %d, %d, … %d", ErrPlan, p.Levels, MinLevel, MinLevel+LevelStep, MaxLevel)
		}
	}
	named := map[string]bool{}
	for i, f := range slices.Concat(p.Digests, p.Flags) {
		if named[f.Name] {
			return fmt.Errorf("%w: field %q stands twice", ErrPlan, f.Name)
		}
		named[f.Name] = true
		switch {
		case !validName(f.Name, "_") || !f.Type.valid() || f.Len < 1 || f.Len > MaxElements:
			return fmt.Errorf("%w: field %.64q", ErrPlan, f.Name)
		case i >= len(p.Digests) && (f.Ladder || f.Simplex), f.Ladder && (len(p.Levels) == 0 || f.Len > MaxLadderLen):
			return fmt.Errorf("%w: field %q cannot have what it is said to have", ErrPlan, f.Name)
		}
	}
	return nil
}

const planHeader = "usp-plan v1"

// Text returns the canonical text form, which ParsePlan reads back.
func (p *Plan) Text() []byte {
	levels, key := "-", "public"
	if len(p.Levels) > 0 {
		levels = strings.Trim(fmt.Sprint(p.Levels), "[]")
	}
	if p.Key != [8]byte{} {
		key = hex.EncodeToString(p.Key[:])
	}
	b := fmt.Appendf(nil, "%s\nevery %d\nlevels %s\nfloor %d\nkey %s\n", planHeader, p.Every, levels, p.Floor, key)
	word := func(yes bool, s string) string {
		if yes {
			return s
		}
		return "-"
	}
	for _, f := range p.Digests {
		b = fmt.Appendf(b, "digest %s %s %d %s %s\n", f.Name, f.Type, f.Len, word(f.Ladder, "ladder"), word(f.Simplex, "simplex"))
	}
	for _, f := range p.Flags {
		b = fmt.Appendf(b, "flag %s %s %d\n", f.Name, f.Type, f.Len)
	}
	return b
}

// ParsePlan reads a plan's text. It accepts exactly what Text returns; the error wraps ErrPlan.
func ParsePlan(text []byte) (*Plan, error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) < 6 || len(lines) > 6+MaxDigests+MaxFlagWords || lines[0] != planHeader {
		return nil, fmt.Errorf("%w: want the line %q, interval, levels, floor, key and fields", ErrPlan, planHeader)
	}
	p := &Plan{}
	for _, line := range lines[1 : len(lines)-1] {
		if !p.parseLine(strings.Split(line, " ")) {
			return nil, fmt.Errorf("%w: line %.80q", ErrPlan, line)
		}
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	if string(p.Text()) != string(text) {
		return nil, fmt.Errorf("%w: not in canonical form", ErrPlan)
	}
	return p, nil
}

// parseLine takes in one line; that there are no others, and in order, is for the comparison with Text to find.
func (p *Plan) parseLine(w []string) bool {
	var err error
	switch {
	case w[0] == "every" && len(w) == 2:
		p.Every, err = strconv.ParseUint(w[1], 10, 64)
	case w[0] == "levels" && len(w) <= 1+MaxLevel/LevelStep+1:
		for _, s := range w[1:] {
			if s == "-" {
				break
			}
			var l int
			if l, err = strconv.Atoi(s); err != nil {
				return false
			}
			p.Levels = append(p.Levels, l)
		}
	case w[0] == "floor" && len(w) == 2:
		p.Floor, err = strconv.Atoi(w[1])
	case w[0] == "key" && len(w) == 2 && w[1] == "public":
	case w[0] == "key" && len(w) == 2 && len(w[1]) == 2*len(p.Key):
		_, err = hex.Decode(p.Key[:], []byte(w[1]))
	case w[0] == "digest" && len(w) == 6:
		f, ok := parsePlanned(w)
		f.Ladder, f.Simplex = w[4] == "ladder", w[5] == "simplex"
		p.Digests = append(p.Digests, f)
		return ok
	case w[0] == "flag" && len(w) == 4:
		f, ok := parsePlanned(w)
		p.Flags = append(p.Flags, f)
		return ok
	default:
		return false
	}
	return err == nil
}

func parsePlanned(w []string) (Planned, bool) {
	t := Float64
	for ; t.valid() && t.String() != w[2]; t++ {
	}
	n, err := strconv.Atoi(w[3])
	return Planned{Name: w[1], Type: t, Len: n}, err == nil && t.valid()
}

// LadderSize is how many bytes the ladders of an entry take.
func (p *Plan) LadderSize() int {
	n := 0
	for _, f := range p.Digests {
		if f.Ladder {
			n += ladderSize(len(p.Levels), f.Len)
		}
	}
	return n
}

// FlagWords is how many words of flags an entry has.
func (p *Plan) FlagWords() int {
	n := 0
	for _, f := range p.Flags {
		n += f.Len
	}
	return min(n, MaxFlagWords)
}

// InvariantsSize is how many bytes the invariants of an entry take.
func (p *Plan) InvariantsSize() int {
	n := 8 * p.FlagWords()
	for _, f := range p.Digests {
		if f.Simplex {
			n++
		}
	}
	return n
}

// Ladder cuts the ladder of digest field i out of an entry's ladders; nil if the field has none or the entry's are not of this plan.
func (p *Plan) Ladder(ladders []byte, i int) []byte {
	if len(ladders) != p.LadderSize() || !p.Digests[i].Ladder {
		return nil
	}
	at := 0
	for _, f := range p.Digests[:i] {
		if f.Ladder {
			at += ladderSize(len(p.Levels), f.Len)
		}
	}
	return ladders[at : at+ladderSize(len(p.Levels), p.Digests[i].Len)]
}

// Agreement says to how many bits field i of an entry of this plan and field j of an entry of plan q agree at least: the highest level
// at which both have the same digest, 0 if there is none. ok is false if that cannot be said: one of them has no ladder, or the
// ladders have no level, key or floor in common.
func (p *Plan) Agreement(ladders []byte, i int, q *Plan, others []byte, j int) (bits int, ok bool) {
	a, b := p.Ladder(ladders, i), q.Ladder(others, j)
	if a == nil || b == nil || !p.Comparable(q) || p.Digests[i].Len != q.Digests[j].Len {
		return 0, false
	}
	return agreement(p.Digests[i].Len, p.Levels, a, q.Levels, b), true
}

// Comparable says whether ladders of the two plans can be held against each other.
func (p *Plan) Comparable(q *Plan) bool {
	return p.Key == q.Key && p.Floor == q.Floor && slices.ContainsFunc(p.Levels, func(l int) bool { return slices.Contains(q.Levels, l) })
}

// Invariants is what an entry says of a step's weights and flags.
type Invariants struct {
	Sum         uint32   // bit i: digest field i is a simplex field and does not sum to 1
	NonNegative uint32   // bit i: digest field i is a simplex field and has an element that is negative, or none that is a number
	Flags       []uint64 // the flag words
}

// Invariants decodes the invariants of an entry of this plan; ok is false if they are not of this plan. It does not keep b.
func (p *Plan) Invariants(b []byte, inv *Invariants) (ok bool) {
	*inv = Invariants{Flags: inv.Flags[:0]}
	if len(b) != p.InvariantsSize() {
		return false
	}
	for i, f := range p.Digests {
		if !f.Simplex {
			continue
		}
		if b[0]&holdsSum == 0 {
			inv.Sum |= 1 << i
		}
		if b[0]&holdsNonNegative == 0 {
			inv.NonNegative |= 1 << i
		}
		if b[0]&^(holdsSum|holdsNonNegative) != 0 {
			return false
		}
		b = b[1:]
	}
	for ; len(b) > 0; b = b[8:] {
		inv.Flags = append(inv.Flags, binary.LittleEndian.Uint64(b))
	}
	return true
}

// The bits of a simplex field's byte.
const (
	holdsSum         = 1
	holdsNonNegative = 2
)

// sumSlack is how far from 1 a sum may be. It is not about rounding, which the ladder is for, but about weights that are none.
func sumSlack(f Planned) float64 {
	const slack = 1.0 / (1 << 20)
	if f.Type == Float32 {
		return float64(slack * float64(f.Len))
	}
	return slack
}

// A Prober makes what a plan puts into a step's entry, without allocating. It is not safe for concurrent use.
type Prober struct {
	schema  *Schema
	plan    *Plan
	key     AuditKey
	ladders []*ladderMaker // by digest field; nil: none
	first   int            // index of the first digest field
	flags   []int          // indices of the flag fields
	words   []uint64
}

// NewProber returns a Prober for a plan that NewPlan made of the schema with that key.
func NewProber(s *Schema, p *Plan, key AuditKey) *Prober {
	r := &Prober{schema: s, plan: p, key: key, first: len(s.fields) - len(p.Digests)}
	for _, f := range p.Digests {
		var m *ladderMaker
		if f.Ladder {
			m = newLadderMaker(p.Levels, p.Floor, key, f.Len)
		}
		r.ladders = append(r.ladders, m)
	}
	for i, f := range s.fields {
		if f.Class == Flag {
			r.flags = append(r.flags, i)
		}
	}
	return r
}

// AppendLadders appends the ladders of a payload's digest fields.
func (r *Prober) AppendLadders(dst []byte, payload []uint64) []byte {
	for i, m := range r.ladders {
		if m != nil {
			dst = m.append(dst, r.field(payload, r.first+i))
		}
	}
	return dst
}

func (r *Prober) field(payload []uint64, i int) []uint64 {
	return payload[r.schema.offsets[i]:][:r.schema.fields[i].Len]
}

// AppendInvariants appends the invariants of a payload.
func (r *Prober) AppendInvariants(dst []byte, payload []uint64) []byte {
	for i, f := range r.plan.Digests {
		if f.Simplex {
			dst = append(dst, simplex(r.field(payload, r.first+i), sumSlack(f)))
		}
	}
	r.words = r.words[:0]
	for _, i := range r.flags {
		for _, w := range r.field(payload, i) {
			if t := r.schema.fields[i].Type; t == Float64 || t == Float32 {
				w = canonicalBits(w)
			}
			r.words = append(r.words, w)
		}
	}
	if len(r.words) > MaxFlagWords {
		r.words = append(r.words[:MaxFlagWords-1], r.key.hash(r.words[MaxFlagWords-1:]))
	}
	for _, w := range r.words {
		dst = binary.LittleEndian.AppendUint64(dst, w)
	}
	return dst
}

// simplex checks a vector of weights, added up in their order.
func simplex(words []uint64, slack float64) (holds byte) {
	sum, negative := 0.0, false
	for _, w := range words {
		x := math.Float64frombits(w)
		sum += x
		negative = negative || !(x >= 0)
	}
	if off := sum - 1; off <= slack && -off <= slack {
		holds |= holdsSum
	}
	if !negative {
		holds |= holdsNonNegative
	}
	return holds
}
