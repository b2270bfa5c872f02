package config

import (
	"encoding/json"
	"fmt"
	"strings"
)

// TOML returns the effective settings as a usp.toml with comments, which Load
// reads back as they are.
func (c *Config) TOML() string {
	return render(c, nil)
}

// Show returns the effective settings as a usp.toml in which each line ends in
// a comment that says where its value comes from.
func (l *Loaded) Show() string {
	return render(&l.Config, l.Origin)
}

func render(c *Config, origin func(key string) Origin) string {
	var b strings.Builder
	for i, s := range sectionsOf(c) {
		if i > 0 {
			b.WriteString("\n")
		}
		if origin == nil {
			fmt.Fprintf(&b, "# %s\n", s.doc)
		}
		fmt.Fprintf(&b, "[%s]\n", s.name)
		for _, f := range s.fields {
			line := f.key + " = " + f.text()
			if origin == nil {
				fmt.Fprintf(&b, "# %s%s\n%s\n", f.doc, f.values(), line)
				continue
			}
			fmt.Fprintf(&b, "%-32s # %s\n", line, origin(f.name))
		}
	}
	return b.String()
}

// values lists what an enumeration allows.
func (f *field) values() string {
	if f.enum == nil {
		return ""
	}
	return " One of: " + strings.Join(f.enum, ", ") + "."
}

// Value is one effective setting, for output as JSON.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

// Values lists the effective settings in the order of the file.
func (l *Loaded) Values() []Value {
	var list []Value
	for _, f := range fieldsOf(&l.Config) {
		list = append(list, Value{f.name, f.value.Interface(), l.Origin(f.name).String()})
	}
	return list
}

// Schema returns the JSON Schema (draft 2020-12) of usp.toml, indented.
func Schema() []byte {
	def := Default()
	tables := map[string]any{}
	for _, s := range sectionsOf(&def) {
		keys := map[string]any{}
		for _, f := range s.fields {
			keys[f.key] = f.schema()
		}
		tables[s.name] = map[string]any{
			"type": "object", "description": s.doc, "properties": keys, "additionalProperties": false,
		}
	}
	b, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "usp.toml",
		"type":    "object", "properties": tables, "additionalProperties": false,
	}, "", "  ")
	if err != nil {
		panic("config: schema: " + err.Error()) // only maps, texts and numbers are in it
	}
	return append(b, '\n')
}

func (f *field) schema() map[string]any {
	m := map[string]any{"description": f.doc, "default": f.value.Interface()}
	switch f.kind() {
	case "a duration":
		m["type"] = "string"
		m["pattern"] = `^[-+]?([0-9]*\.?[0-9]+(ns|us|µs|ms|s|m|h))+$|^0$`
	case "a size":
		m["type"] = []string{"string", "integer"}
		m["pattern"] = `^[0-9]+ *(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)?$`
		m["minimum"] = 0
	case "a text":
		m["type"] = "string"
	case "a truth value":
		m["type"] = "boolean"
	case "a list of texts":
		m["type"] = "array"
		m["items"] = map[string]any{"type": "string"}
	case "a list of whole numbers":
		m["type"] = "array"
		m["items"] = map[string]any{"type": "integer", "minimum": json.Number(f.min), "maximum": json.Number(f.max)}
	case "a number":
		m["type"] = "number"
	default:
		m["type"] = "integer"
		if f.value.CanUint() {
			m["minimum"] = 0
		}
		if f.min != "" {
			m["minimum"] = json.Number(f.min)
		}
		if f.max != "" {
			m["maximum"] = json.Number(f.max)
		}
	}
	if f.enum != nil {
		m["enum"] = f.enum
	}
	return m
}
