package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFile is the size of the largest configuration file accepted.
const maxFile = 1 << 20

// place is where something stands in a file, from 1.
type place struct{ line, column int }

// item is one key or one table header of a file.
type item struct {
	path  []string
	at    unstable.Range // of the key
	table bool           // a header, which has no value of its own
}

// decode reads the text of a file into c and returns where each setting of the
// file stands. The errors are all there are, in the order of the file; those
// about values that are merely out of range come later, from check.
func decode(c *Config, name string, text []byte) (map[string]place, Errors) {
	if len(text) > maxFile {
		return nil, Errors{{Where: name, What: fmt.Sprintf("the file has %d bytes, more than %d; name a usp.toml", len(text), maxFile)}}
	}
	d := decoder{
		file: name, text: text, places: map[string]place{},
		sections: map[string]bool{}, fields: map[string]field{}, unknown: map[string]bool{},
	}
	for _, s := range sectionsOf(c) {
		d.sections[s.name] = true
		for _, f := range s.fields {
			d.fields[f.name] = f
		}
	}
	if err := toml.Unmarshal(text, &d.values); err != nil {
		return nil, Errors{d.syntaxError(err)}
	}
	for _, it := range items(text) {
		d.take(it)
	}
	return d.places, d.errs
}

type decoder struct {
	file     string
	text     []byte
	values   map[string]any
	sections map[string]bool
	fields   map[string]field
	unknown  map[string]bool // tables already reported
	places   map[string]place
	errs     Errors
}

func (d *decoder) take(it item) {
	for n := range it.path {
		if d.unknown[strings.Join(it.path[:n], "\x00")] {
			return // its table is the error
		}
	}
	name := strings.Join(it.path, ".")
	switch {
	case !d.sections[it.path[0]]:
		d.unknown[it.path[0]] = true
		what := fmt.Sprintf("unknown key %.60q", it.path[0])
		if it.table || len(it.path) > 1 {
			what = fmt.Sprintf("unknown section %.60q", it.path[0])
		}
		d.fail(it, false, what+d.nearest(it.path[0], ""))
	case len(it.path) == 1:
		if _, ok := d.values[it.path[0]].(map[string]any); !ok {
			d.unknown[name] = true
			d.fail(it, true, fmt.Sprintf("%s is a section; write [%s] and its keys below", name, name))
		}
	default:
		f, ok := d.fields[it.path[0]+"."+it.path[1]]
		if !ok {
			d.unknown[strings.Join(it.path[:2], "\x00")] = true
			d.fail(it, false, fmt.Sprintf("unknown key %.60q in [%s]%s", it.path[1], it.path[0], d.nearest(it.path[1], it.path[0])))
			return
		}
		section, _ := d.values[f.section].(map[string]any)
		if err := f.set(section[f.key]); err != nil {
			d.unknown[strings.Join(it.path[:2], "\x00")] = true
			d.fail(it, true, f.name+": "+err.Error())
			last := d.errs[len(d.errs)-1]
			last.Key, last.Excerpt = f.name, excerpt(f.name, d.text, last.at, int(it.at.Length))
			return
		}
		d.places[f.name] = position(d.text, int(it.at.Offset))
	}
}

// nearest suggests a section, or a key of a section; a key that another section
// has is suggested too.
func (d *decoder) nearest(name, in string) string {
	var names, elsewhere []string
	if in == "" {
		for s := range d.sections {
			names = append(names, s)
		}
	}
	for _, f := range d.fields {
		switch {
		case f.section == in:
			names = append(names, f.key)
		case f.key == name, f.section+"_"+f.key == name:
			elsewhere = append(elsewhere, fmt.Sprintf("; did you mean %q in [%s]?", f.key, f.section))
		}
	}
	slices.Sort(names)
	if hint := didYouMean(name, names); hint != "" || len(elsewhere) == 0 {
		return hint
	}
	slices.Sort(elsewhere)
	return elsewhere[0]
}

func (d *decoder) fail(it item, value bool, what string) {
	at := position(d.text, int(it.at.Offset))
	e := &Error{Where: fmt.Sprintf("%s:%d:%d", d.file, at.line, at.column), What: what, at: at}
	if value {
		e.Excerpt = excerptValue(d.text, at, int(it.at.Length))
	} else {
		e.Excerpt = excerptKey(d.text, at, int(it.at.Length))
	}
	d.errs = append(d.errs, e)
}

// items lists the keys of a valid file with their places, inline tables
// flattened.
func items(text []byte) []item {
	var list []item
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			it := keyOf(nil, e.Key())
			it.table = true
			table = it.path
			list = append(list, it)
		case unstable.KeyValue:
			list = appendValue(list, table, e)
		default: // a comment
		}
	}
	return list
}

func appendValue(list []item, table []string, kv *unstable.Node) []item {
	it := keyOf(table, kv.Key())
	if kv.Value().Kind != unstable.InlineTable || len(it.path) > 1 {
		return append(list, it)
	}
	it.table = true
	list = append(list, it)
	for child := kv.Value().Children(); child.Next(); {
		list = appendValue(list, it.path, child.Node())
	}
	return list
}

func keyOf(table []string, parts unstable.Iterator) item {
	it := item{path: slices.Clone(table)}
	for first := true; parts.Next(); first = false {
		n := parts.Node()
		it.path = append(it.path, string(n.Data))
		if first {
			it.at = n.Raw
		}
		it.at.Length = n.Raw.Offset + n.Raw.Length - it.at.Offset
	}
	return it
}

// syntaxError says where the file is no TOML.
func (d *decoder) syntaxError(err error) *Error {
	what := strings.TrimPrefix(err.Error(), "toml: ")
	var de *toml.DecodeError
	if !errors.As(err, &de) {
		return &Error{Where: d.file, What: what}
	}
	line, column := de.Position()
	at := place{line, column}
	e := &Error{Where: fmt.Sprintf("%s:%d:%d", d.file, line, column), What: what}
	key, _, found := strings.Cut(lineOf(d.text, at), "=")
	if !found || d.isKey(strings.TrimSpace(key)) {
		e.Excerpt = excerptValue(d.text, at, 1)
	} else {
		e.Excerpt = excerptKey(d.text, place{line, len(key) - len(strings.TrimLeft(key, " \t")) + 1}, len(strings.TrimSpace(key)))
	}
	return e
}

func (d *decoder) isKey(key string) bool {
	for _, f := range d.fields {
		if key == f.key || key == f.name {
			return true
		}
	}
	return false
}

func position(text []byte, offset int) place {
	before := text[:min(offset, len(text))]
	return place{
		line:   bytes.Count(before, []byte("\n")) + 1,
		column: len(before) - bytes.LastIndexByte(before, '\n'),
	}
}
