// Package record describes one step's telemetry: which fields a program emits, what may become of each, and
// the exact bytes that are stored and hashed.
//
// A Schema names the fields and puts each in a class. Metric and Flag fields are persisted; Digest fields are
// hashed and then dropped: a decoded Frame has no place for them, so nothing behind the recorder can see them.
// A record is a row of 8-byte little-endian words: step, time, the metric and flag fields in declared order, then
// the digest fields. The persisted part is therefore a prefix, and splitting a record is slicing it.
//
// Digests are SHA-256 over canonical float64 bytes (see Canonical), so that two machines that computed the same
// numbers, whatever their NaN payloads or signs of zero, agree on the hash, and any language can recompute it.
//
// The package does no I/O and promises that equal schemas have equal text and equal Sum.
package record

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Class says what becomes of a field once it has left the ring.
type Class uint8

// The classes. Their text forms, used in schema text, are "metric", "flag" and "digest".
const (
	Metric Class = 1 // persisted as a number
	Flag   Class = 2 // persisted as bits
	Digest Class = 3 // hashed, then dropped; never persisted
)

// Type is the element type at the producer. Every element travels as one 8-byte word; Float32 is widened exactly.
type Type uint8

// The element types. Their text forms are "f64", "f32", "i64" and "u64".
const (
	Float64 Type = 1
	Float32 Type = 2
	Int64   Type = 3
	Uint64  Type = 4
)

// String returns the text form of c.
func (c Class) String() string {
	switch c {
	case Metric:
		return "metric"
	case Flag:
		return "flag"
	case Digest:
		return "digest"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

func (c Class) valid() bool { return c >= Metric && c <= Digest }

// String returns the text form of t.
func (t Type) String() string {
	switch t {
	case Float64:
		return "f64"
	case Float32:
		return "f32"
	case Int64:
		return "i64"
	case Uint64:
		return "u64"
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

func (t Type) valid() bool { return t >= Float64 && t <= Uint64 }

// Limits of a schema. They bound what a decoder of a hostile file may be made to allocate.
const (
	MaxFields   = 1024    // fields in a schema
	MaxElements = 1 << 16 // elements in a record, all fields together
	MaxDigests  = 32      // digest fields in a schema: each has its bit in a log entry
	MaxName     = 63      // bytes in a field, schema or unit name
	headWords   = 2       // step and time precede the fields
)

// ErrSchema is wrapped by every error about a schema that is not well formed.
var ErrSchema = errors.New("record: invalid schema")

// Field is one named value, or vector of values, of a record.
type Field struct {
	Name  string // [a-z][a-z0-9_]*, unique in the schema
	Class Class
	Type  Type   // zero means Float64
	Len   int    // number of elements; zero means 1
	Unit  string // without spaces; empty means dimensionless
}

// Schema is an immutable, ordered set of fields.
type Schema struct {
	name    string
	fields  []Field
	offsets []int // word offset of each field in a payload
	index   map[string]int
	words   int
	stored  int
	text    []byte
	sum     [32]byte
}

// NewSchema makes a schema of the fields in the order given, digest fields moved behind all others.
// The error wraps ErrSchema and names the field at fault.
func NewSchema(name string, fields ...Field) (*Schema, error) {
	if !validName(name, "._-") {
		return nil, fmt.Errorf("%w: schema name %q: want 1 to %d of a-z 0-9 . _ -, starting with a letter", ErrSchema, name, MaxName)
	}
	if len(fields) == 0 || len(fields) > MaxFields {
		return nil, fmt.Errorf("%w: %q has %d fields, want 1 to %d", ErrSchema, name, len(fields), MaxFields)
	}
	s := &Schema{name: name, fields: make([]Field, 0, len(fields)), index: make(map[string]int, len(fields))}
	for _, digests := range []bool{false, true} {
		for _, f := range fields {
			if (f.Class == Digest) == digests {
				s.fields = append(s.fields, f)
			}
		}
	}
	elements, digests := 0, 0
	s.words, s.stored = headWords, headWords
	for i := range s.fields {
		f := &s.fields[i]
		if f.Type == 0 {
			f.Type = Float64
		}
		if f.Len == 0 {
			f.Len = 1
		}
		if err := f.check(); err != nil {
			return nil, err
		}
		if _, dup := s.index[f.Name]; dup {
			return nil, fmt.Errorf("%w: field %q stands twice", ErrSchema, f.Name)
		}
		s.index[f.Name] = i
		if elements += f.Len; elements > MaxElements {
			return nil, fmt.Errorf("%w: more than %d elements at field %q", ErrSchema, MaxElements, f.Name)
		}
		s.offsets = append(s.offsets, s.words)
		s.words += f.Len
		if f.Class != Digest {
			s.stored = s.words
		} else if digests++; digests > MaxDigests {
			return nil, fmt.Errorf("%w: more than %d digest fields at %q", ErrSchema, MaxDigests, f.Name)
		}
	}
	s.text = s.appendText(nil)
	s.sum = sha256.Sum256(s.text)
	return s, nil
}

func (f *Field) check() error {
	switch {
	case !validName(f.Name, "_"):
		return fmt.Errorf("%w: field name %q: want 1 to %d of a-z 0-9 _, starting with a letter", ErrSchema, f.Name, MaxName)
	case f.Name == "step" || f.Name == "time":
		return fmt.Errorf("%w: field %q: every record has step and time already", ErrSchema, f.Name)
	case !f.Class.valid():
		return fmt.Errorf("%w: field %q: class %d is not metric, flag or digest", ErrSchema, f.Name, f.Class)
	case !f.Type.valid():
		return fmt.Errorf("%w: field %q: unknown type %d", ErrSchema, f.Name, f.Type)
	case f.Len < 1 || f.Len > MaxElements:
		return fmt.Errorf("%w: field %q: length %d, want 1 to %d", ErrSchema, f.Name, f.Len, MaxElements)
	case f.Class == Digest && f.Type != Float64 && f.Type != Float32:
		return fmt.Errorf("%w: field %q: a digest field holds f64 or f32, not %s", ErrSchema, f.Name, f.Type)
	case f.Unit == "-" || len(f.Unit) > MaxName || strings.ContainsFunc(f.Unit, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("%w: field %q: unit %q: want printable ASCII without spaces, at most %d bytes", ErrSchema, f.Name, f.Unit, MaxName)
	}
	return nil
}

func validName(s, extra string) bool {
	if len(s) == 0 || len(s) > MaxName || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(extra, c) < 0 {
			return false
		}
	}
	return true
}

const schemaHeader = "usp-schema v1"

func (s *Schema) appendText(b []byte) []byte {
	b = append(b, schemaHeader+"\nname "...)
	b = append(b, s.name...)
	b = append(b, '\n')
	for _, f := range s.fields {
		unit := f.Unit
		if unit == "" {
			unit = "-"
		}
		b = fmt.Appendf(b, "field %s %s %s %d %s\n", f.Name, f.Class, f.Type, f.Len, unit)
	}
	return b
}

// ParseSchema reads schema text. It accepts exactly what Text returns, to the byte; the error wraps ErrSchema.
func ParseSchema(text []byte) (*Schema, error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) < 4 || lines[len(lines)-1] != "" || len(lines)-3 > MaxFields {
		return nil, fmt.Errorf("%w: want a header, a name and 1 to %d field lines, each ended by a newline", ErrSchema, MaxFields)
	}
	if lines[0] != schemaHeader {
		return nil, fmt.Errorf("%w: line 1 is %.40q, want %q", ErrSchema, lines[0], schemaHeader)
	}
	name, ok := strings.CutPrefix(lines[1], "name ")
	if !ok {
		return nil, fmt.Errorf("%w: line 2 is %.40q, want \"name NAME\"", ErrSchema, lines[1])
	}
	var fields []Field
	for i, line := range lines[2 : len(lines)-1] {
		f, err := parseField(line)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %v", ErrSchema, i+3, err)
		}
		fields = append(fields, f)
	}
	s, err := NewSchema(name, fields...)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(s.text, text) {
		return nil, fmt.Errorf("%w: %q is not in canonical form (digest fields last, no leading zeros)", ErrSchema, name)
	}
	return s, nil
}

func parseField(line string) (Field, error) {
	parts := strings.Split(line, " ")
	if len(parts) != 6 || parts[0] != "field" {
		return Field{}, fmt.Errorf("%.60q: want \"field NAME CLASS TYPE LEN UNIT\"", line)
	}
	class := Metric
	for ; class.valid() && class.String() != parts[2]; class++ {
	}
	if !class.valid() {
		return Field{}, fmt.Errorf("class %.20q is not metric, flag or digest", parts[2])
	}
	typ := Float64
	for ; typ.valid() && typ.String() != parts[3]; typ++ {
	}
	if !typ.valid() {
		return Field{}, fmt.Errorf("type %.20q is not f64, f32, i64 or u64", parts[3])
	}
	n, err := strconv.Atoi(parts[4])
	if err != nil || n < 1 {
		return Field{}, fmt.Errorf("length %.20q is not a positive number", parts[4])
	}
	unit := parts[5]
	if unit == "-" {
		unit = ""
	}
	return Field{Name: parts[1], Class: class, Type: typ, Len: n, Unit: unit}, nil
}

// Name returns the schema's name.
func (s *Schema) Name() string { return s.name }

// Text returns the canonical text form, which ParseSchema reads back.
func (s *Schema) Text() []byte { return bytes.Clone(s.text) }

// Sum returns the SHA-256 of the canonical text: the schema's identity.
func (s *Schema) Sum() [32]byte { return s.sum }

// Fields returns the fields in layout order: digest fields last.
func (s *Schema) Fields() []Field { return slices.Clone(s.fields) }

// Field returns field i in layout order.
func (s *Schema) Field(i int) Field { return s.fields[i] }

// Len returns the number of fields.
func (s *Schema) Len() int { return len(s.fields) }

// Index returns the position of the named field in layout order.
func (s *Schema) Index(name string) (int, bool) { i, ok := s.index[name]; return i, ok }

// Offset returns the word at which field i begins in a payload (step is word 0, time word 1).
func (s *Schema) Offset(i int) int { return s.offsets[i] }

// Words returns the number of 8-byte words in a ring payload.
func (s *Schema) Words() int { return s.words }

// StoredWords returns how many leading words of a payload are persisted.
func (s *Schema) StoredWords() int { return s.stored }

// DigestFields returns the names of the digest fields in layout order: the order of a step's digests in the log.
func (s *Schema) DigestFields() []string {
	var names []string
	for _, f := range s.fields {
		if f.Class == Digest {
			names = append(names, f.Name)
		}
	}
	return names
}
