package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// field is one setting of a Config.
type field struct {
	section, key string
	name         string // section.key
	doc          string
	enum         []string
	min, max     string // limits, as text of the field's type; empty: none
	step         string // of the numbers of a list, from min on
	value        reflect.Value
}

// section is one table of the file.
type section struct {
	name, doc string
	fields    []field
}

// sectionsOf lists the settings of c, which they point into.
func sectionsOf(c *Config) []section {
	var list []section
	docs := predictorDocs()
	root := reflect.ValueOf(c).Elem()
	for i := range root.NumField() {
		tag := root.Type().Field(i).Tag
		s := section{name: tag.Get("toml"), doc: tag.Get("comment")}
		table := root.Field(i)
		for j := range table.NumField() {
			tag := table.Type().Field(j).Tag
			if tag.Get("toml") == "-" { // a section of its own
				continue
			}
			f := field{
				section: s.name, key: tag.Get("toml"), doc: tag.Get("comment"),
				min: tag.Get("min"), max: tag.Get("max"), step: tag.Get("step"), value: table.Field(j),
			}
			f.name = s.name + "." + f.key
			if f.doc == "" {
				f.doc = docs[f.key]
			}
			if e := tag.Get("enum"); e != "" {
				f.enum = strings.Split(e, ",")
			}
			s.fields = append(s.fields, f)
		}
		list = append(list, s)
	}
	return list
}

func fieldsOf(c *Config) []field {
	var list []field
	for _, s := range sectionsOf(c) {
		list = append(list, s.fields...)
	}
	return list
}

// env is the name of the variable that sets the field.
func (f *field) env() string {
	return "USP_" + strings.ToUpper(f.section+"_"+f.key)
}

// text is the value as it stands in the file.
func (f *field) text() string {
	var text string
	switch v := f.value.Interface().(type) {
	case string:
		text = v
	case fmt.Stringer:
		text = v.String()
	case []string:
		quoted := make([]string, len(v))
		for i := range v {
			quoted[i] = quote(v[i])
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case []int:
		return strings.ReplaceAll(fmt.Sprint(v), " ", ", ")
	case float64:
		s := strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(s, ".en") { // not 1e+06, +Inf, NaN
			s += ".0"
		}
		return strings.ToLower(s)
	default:
		return fmt.Sprint(v)
	}
	return quote(text)
}

// quote writes a basic string of TOML.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// set stores a value as the TOML decoder gives it: string, bool, int64,
// float64, a list of these, or something that no field takes.
func (f *field) set(v any) error {
	if text, ok := v.(string); ok {
		if u, ok := f.value.Addr().Interface().(encoding.TextUnmarshaler); ok {
			return u.UnmarshalText([]byte(text))
		}
		if f.value.Kind() == reflect.String {
			f.value.SetString(text)
			return nil
		}
	}
	switch n := v.(type) {
	case int64:
		switch {
		case f.value.CanFloat():
			f.value.SetFloat(float64(n))
			return nil
		case f.value.CanUint() && n >= 0 && !f.value.OverflowUint(uint64(n)):
			f.value.SetUint(uint64(n))
			return nil
		case f.value.CanInt() && f.kind() != "a duration" && !f.value.OverflowInt(n):
			f.value.SetInt(n)
			return nil
		case f.value.CanUint():
			return fmt.Errorf("%d is below the least allowed, %s", n, orZero(f.min))
		}
	case bool:
		if f.value.Kind() == reflect.Bool {
			f.value.SetBool(n)
			return nil
		}
	case []any:
		if f.isList() {
			return f.setList(n)
		}
	case float64:
		if f.value.CanFloat() {
			f.value.SetFloat(n)
			return nil
		}
	}
	if _, ok := v.(string); ok && f.isList() { // not shown: it may be a secret where public keys belong
		return fmt.Errorf("a text is not %s; write %s", f.kind(), f.example())
	}
	return fmt.Errorf("%s is not %s; write %s", describe(v), f.kind(), f.example())
}

func (f *field) isList() bool { return f.value.Kind() == reflect.Slice }

// setList stores a list of texts or of whole numbers. The list it replaces is left as it is: another
// Config may share it.
func (f *field) setList(items []any) error {
	if _, numbers := f.value.Interface().([]int); numbers {
		list := make([]int, len(items))
		for i, item := range items {
			n, ok := item.(int64)
			if !ok {
				return fmt.Errorf("item %d, %s, is not a whole number", i+1, describe(item))
			}
			list[i] = int(n)
		}
		f.value.Set(reflect.ValueOf(list))
		return nil
	}
	list := make([]string, len(items))
	for i, item := range items {
		text, ok := item.(string)
		if !ok {
			return fmt.Errorf("item %d, %s, is not a text; write it in quotes", i+1, describe(item))
		}
		list[i] = text
	}
	f.value.Set(reflect.ValueOf(list))
	return nil
}

// setText stores a value as an environment variable or a flag gives it.
func (f *field) setText(text string) error {
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return fmt.Errorf("%.40q is no UTF-8 text; write it in UTF-8", text)
	}
	_, isText := f.value.Addr().Interface().(encoding.TextUnmarshaler)
	switch {
	case isText || f.value.Kind() == reflect.String:
		return f.set(text)
	case f.isList():
		var items []any
		_, numbers := f.value.Interface().([]int)
		if numbers && strings.TrimSpace(text) == "" {
			return f.setList(nil)
		}
		for item := range strings.SplitSeq(text, ",") {
			item = strings.TrimSpace(item)
			if n, err := strconv.ParseInt(item, 10, 64); numbers && err == nil {
				items = append(items, n)
			} else {
				items = append(items, item)
			}
		}
		return f.setList(items)
	case f.value.Kind() == reflect.Bool:
		if text == "true" || text == "false" {
			return f.set(text == "true")
		}
	case f.value.CanFloat():
		if x, err := strconv.ParseFloat(text, 64); err == nil {
			return f.set(x)
		}
	case f.value.CanUint():
		if n, err := strconv.ParseUint(text, 10, 64); err == nil && !f.value.OverflowUint(n) {
			f.value.SetUint(n)
			return nil
		}
	default:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return f.set(n)
		}
	}
	return fmt.Errorf("%.40q is not %s; write %s", text, f.kind(), f.example())
}

// check holds the value against the limits in the field's tags.
func (f *field) check() error {
	if f.enum != nil {
		for _, e := range f.enum {
			if f.value.String() == e {
				return nil
			}
		}
		return fmt.Errorf("%.40q is not one of %s%s", f.value.String(), strings.Join(f.enum, ", "), didYouMean(f.value.String(), f.enum))
	}
	if list, ok := f.value.Interface().([]int); ok {
		return f.checkNumbers(list)
	}
	for _, limit := range []struct {
		text string
		sign int
		what string
	}{{f.min, -1, "below the least"}, {f.max, +1, "above the most"}} {
		if limit.text == "" {
			continue
		}
		l := *f
		l.value = reflect.New(f.value.Type()).Elem()
		if err := l.setText(limit.text); err != nil {
			panic("config: " + f.name + ": limit " + limit.text + ": " + err.Error()) // a tag that no value can have
		}
		if compare(f.value, l.value) == limit.sign {
			return fmt.Errorf("%s is %s allowed, %s", f.text(), limit.what, l.text())
		}
	}
	if f.value.CanFloat() && (math.IsNaN(f.value.Float()) || math.IsInf(f.value.Float(), 0)) {
		return errors.New("is not finite; write a finite number")
	}
	return nil
}

// checkNumbers holds a list of whole numbers against the limits: its numbers lie between them, a multiple of the step apart, and ascend.
func (f *field) checkNumbers(list []int) error {
	least, errMin := strconv.Atoi(f.min)
	most, errMax := strconv.Atoi(f.max)
	step, errStep := strconv.Atoi(f.step)
	if errMin != nil || errMax != nil || errStep != nil {
		panic("config: " + f.name + ": a list of whole numbers wants limits and a step")
	}
	for i, n := range list {
		if n < least || n > most || (n-least)%step != 0 {
			return fmt.Errorf("%d is none of %d, %d, … %d", n, least, least+step, most)
		}
		if i > 0 && n <= list[i-1] {
			return fmt.Errorf("%d stands behind %d; write the numbers in ascending order, each once", n, list[i-1])
		}
	}
	return nil
}

func compare(a, b reflect.Value) int {
	less := func(x, y bool) int {
		switch {
		case x:
			return -1
		case y:
			return +1
		}
		return 0
	}
	switch {
	case a.CanInt():
		return less(a.Int() < b.Int(), a.Int() > b.Int())
	case a.CanUint():
		return less(a.Uint() < b.Uint(), a.Uint() > b.Uint())
	}
	return less(a.Float() < b.Float(), a.Float() > b.Float())
}

// kind names the type for people.
func (f *field) kind() string {
	switch f.value.Interface().(type) {
	case Duration:
		return "a duration"
	case Size:
		return "a size"
	case float64:
		return "a number"
	case string:
		return "a text"
	case bool:
		return "a truth value"
	case []string:
		return "a list of texts"
	case []int:
		return "a list of whole numbers"
	}
	return "a whole number"
}

// example shows how a value of the type is written.
func (f *field) example() string {
	switch f.kind() {
	case "a duration":
		return `one with its unit, such as "50ms"`
	case "a size":
		return `one such as "64MiB"`
	case "a text":
		return "it in quotes"
	case "a number":
		return "one such as 0.9"
	case "a truth value":
		return "true or false"
	case "a list of texts":
		return `one such as ["a", "b"]`
	case "a list of whole numbers":
		return "one such as [1, 2, 3]"
	}
	return "one such as 100"
}

// describe names a decoded value.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%.40q", v)
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	case int64, float64, bool:
		return fmt.Sprint(v)
	}
	return "a date or time"
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}
