package record

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var schemaVectorFile = filepath.Join("..", "testdata", "vectors", "schema", "index.json")

// schemaVectors are schemas in words, for producers in other languages, which must make the same text of the same fields.
type schemaVectors struct {
	Provenance string
	Schemas    []schemaVector
	Refused    []schemaVector // with a name and fields only; Note says what is wrong
}

type schemaVector struct {
	Note   string
	Name   string
	Fields []fieldVector // in the order in which they are declared

	Text        string `json:",omitempty"`
	SHA256      string `json:",omitempty"`
	Words       int    `json:",omitempty"`
	StoredWords int    `json:",omitempty"`
	Offsets     []int  `json:",omitempty"` // of the fields in the text's order
}

type fieldVector struct {
	Name, Class, Type string
	Len               int
	Unit              string
}

// fields returns what NewSchema takes; a class or type that there is none of becomes an invalid number.
func (v schemaVector) fields() []Field {
	var out []Field
	for _, f := range v.Fields {
		class, typ := Class(99), Type(99)
		for c := Metric; c.valid(); c++ {
			if c.String() == f.Class {
				class = c
			}
		}
		for t := Float64; t.valid(); t++ {
			if t.String() == f.Type {
				typ = t
			}
		}
		n := f.Len
		if n == 0 {
			n = -1 // zero would mean one
		}
		out = append(out, Field{f.Name, class, typ, n, f.Unit})
	}
	return out
}

func many(n int, class string) []fieldVector {
	fs := make([]fieldVector, n)
	for i := range fs {
		fs[i] = fieldVector{fmt.Sprintf("f%d", i), class, "f64", 1, ""}
	}
	return fs
}

func makeSchemaVectors(t *testing.T) schemaVectors {
	long := "a" + strings.Repeat("b", MaxName-1)
	v := schemaVectors{
		Provenance: "go test ./record -run SchemaVectors -update",
		Schemas: []schemaVector{
			{Note: "one field", Name: "a", Fields: []fieldVector{{"loss", "metric", "f64", 1, ""}}},
			{Note: "every class and type", Name: "python.v1", Fields: []fieldVector{
				{"loss", "metric", "f64", 1, "nats"}, {"norm", "metric", "f32", 1, ""}, {"count", "metric", "i64", 2, "1/s"}, {"seen", "metric", "u64", 1, ""},
				{"alarm", "flag", "u64", 1, ""}, {"rho", "digest", "f64", 1024, ""}, {"grad", "digest", "f32", 3, "~!"},
			}},
			{Note: "digest fields are moved behind all others", Name: "moved-1", Fields: []fieldVector{
				{"rho", "digest", "f64", 4, ""}, {"alarm", "flag", "u64", 1, ""}, {"ot_cost", "digest", "f64", 1, ""}, {"loss", "metric", "f64", 1, ""},
			}},
			{Note: "digest fields alone", Name: "z_9", Fields: []fieldVector{{"rho", "digest", "f64", 4, ""}}},
			{Note: "the longest names", Name: long, Fields: []fieldVector{{long, "metric", "f64", 1, strings.Repeat("u", MaxName)}}},
			{Note: "the most elements", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", MaxElements, ""}}},
			{Note: "the most digest fields", Name: "a", Fields: many(MaxDigests, "digest")},
		},
		Refused: []schemaVector{
			{Note: "no fields", Name: "a", Fields: []fieldVector{}},
			{Note: "schema name with a capital", Name: "A", Fields: many(1, "metric")},
			{Note: "no schema name", Name: "", Fields: many(1, "metric")},
			{Note: "schema name too long", Name: long + "b", Fields: many(1, "metric")},
			{Note: "schema name with a newline", Name: "a\n", Fields: many(1, "metric")},
			{Note: "schema name with a digit first", Name: "1a", Fields: many(1, "metric")},
			{Note: "field name with a dot", Name: "a", Fields: []fieldVector{{"a.b", "metric", "f64", 1, ""}}},
			{Note: "field name not ASCII", Name: "a", Fields: []fieldVector{{"aé", "metric", "f64", 1, ""}}},
			{Note: "field name too long", Name: "a", Fields: []fieldVector{{long + "b", "metric", "f64", 1, ""}}},
			{Note: "field named step", Name: "a", Fields: []fieldVector{{"step", "metric", "f64", 1, ""}}},
			{Note: "field named time", Name: "a", Fields: []fieldVector{{"time", "metric", "f64", 1, ""}}},
			{Note: "same name twice", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", 1, ""}, {"x", "digest", "f64", 1, ""}}},
			{Note: "no such class", Name: "a", Fields: []fieldVector{{"x", "gauge", "f64", 1, ""}}},
			{Note: "no such type", Name: "a", Fields: []fieldVector{{"x", "metric", "f16", 1, ""}}},
			{Note: "digest of integers", Name: "a", Fields: []fieldVector{{"x", "digest", "i64", 1, ""}}},
			{Note: "no elements", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", 0, ""}}},
			{Note: "fewer than none", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", -1, ""}}},
			{Note: "too many elements", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", MaxElements + 1, ""}}},
			{Note: "too many elements together", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", MaxElements, ""}, {"y", "metric", "f64", 1, ""}}},
			{Note: "too many digest fields", Name: "a", Fields: many(MaxDigests+1, "digest")},
			{Note: "unit with a space", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", 1, "m s"}}},
			{Note: "unit not ASCII", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", 1, "µs"}}},
			{Note: "unit that stands for none", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", 1, "-"}}},
			{Note: "unit too long", Name: "a", Fields: []fieldVector{{"x", "metric", "f64", 1, strings.Repeat("u", MaxName+1)}}},
		},
	}
	for i := range v.Schemas {
		s := &v.Schemas[i]
		made, err := NewSchema(s.Name, s.fields()...)
		if err != nil {
			t.Fatalf("%s: %v", s.Note, err)
		}
		sum := made.Sum()
		s.Text, s.SHA256, s.Words, s.StoredWords = string(made.Text()), hex.EncodeToString(sum[:]), made.Words(), made.StoredWords()
		for k := range made.Len() {
			s.Offsets = append(s.Offsets, made.Offset(k))
		}
	}
	for _, r := range v.Refused {
		if _, err := NewSchema(r.Name, r.fields()...); err == nil {
			t.Errorf("%s: accepted", r.Note)
		}
	}
	return v
}

// TestSchemaVectors holds the stored vectors against NewSchema, and reads their texts back.
func TestSchemaVectors(t *testing.T) {
	v := makeSchemaVectors(t)
	if *update {
		b, err := json.MarshalIndent(v, "", " ")
		if err == nil {
			err = os.MkdirAll(filepath.Dir(schemaVectorFile), 0o755)
		}
		if err == nil {
			err = os.WriteFile(schemaVectorFile, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(schemaVectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var stored schemaVectors
	if err := json.Unmarshal(b, &stored); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stored, v); diff != "" {
		t.Error(diff)
	}
	for _, s := range stored.Schemas {
		if _, err := ParseSchema([]byte(s.Text)); err != nil {
			t.Errorf("%s: %v", s.Note, err)
		}
	}
}
