package config

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Error is one fault of a setting.
type Error struct {
	Where   string // "usp.toml:3:1", "environment variable USP_RING_SLOTS" or "flag --dir"
	Key     string // section.key of a known setting; empty else
	What    string // the fault, and what to do about it
	Excerpt string // the line of the file with a mark below; may be empty
	at      place  // in the file
}

// Error implements error: one line, then the excerpt.
func (e *Error) Error() string {
	text := e.Where + ": " + e.What
	if e.Excerpt != "" {
		text += "\n" + e.Excerpt
	}
	return text
}

// Errors is every fault found at once, in order. It is an error of use, not of
// the machine.
type Errors []*Error

// Error implements error: the faults, each on lines of its own.
func (e Errors) Error() string {
	texts := make([]string, len(e))
	for i := range e {
		texts[i] = e[i].Error()
	}
	return strings.Join(texts, "\n")
}

// sort puts the faults of the file first, in its order.
func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b *Error) int {
		if (a.at.line == 0) != (b.at.line == 0) {
			return cmp.Compare(b.at.line, a.at.line)
		}
		return cmp.Or(cmp.Compare(a.at.line, b.at.line), cmp.Compare(a.at.column, b.at.column))
	})
}

// has reports a fault of that setting.
func (e Errors) has(key string) bool {
	return slices.ContainsFunc(e, func(x *Error) bool { return x.Key == key })
}

// Unwrap gives errors.As each fault.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i := range e {
		list[i] = e[i]
	}
	return list
}

// The widest excerpt, in characters.
const widest = 100

// excerpt shows the line of a known key, without its value where that is about
// keys or an address: somebody may have put a secret there.
func excerpt(key string, text []byte, at place, length int) string {
	switch key {
	case "snapshot.recipients", "snapshot.identity_file", "witness.url", "witness.key", "otlp.endpoint", "jetstream.url", "jetstream.credentials_file", "snapshot.remote", "snapshot.remote_endpoint":
		return excerptKey(text, at, length)
	}
	return excerptValue(text, at, length)
}

// excerptKey shows a key that usp does not know, without its value: that may be
// a secret of another program.
func excerptKey(text []byte, at place, length int) string {
	line := lineOf(text, at)
	start := min(at.column-1, len(line))
	end := min(start+length, len(line))
	before, key, after := line[:start], line[start:end], strings.TrimLeft(line[end:], " \t")
	if strings.Trim(before, " \t[") != "" {
		before = "… "
	}
	switch {
	case strings.HasPrefix(after, "]"):
		after = "]"
	case strings.HasPrefix(after, "."):
		after = "…"
	default:
		after = " = …"
	}
	return mark(at, before, key, after)
}

// excerptValue shows a line of which the key is known, or none is there.
func excerptValue(text []byte, at place, length int) string {
	line := lineOf(text, at)
	start := min(at.column-1, len(line))
	end := min(start+length, len(line))
	return mark(at, line[:start], line[start:end], line[end:])
}

func lineOf(text []byte, at place) string {
	lines := bytes.SplitN(text, []byte("\n"), at.line+1)
	if at.line < 1 || at.line > len(lines) {
		return ""
	}
	return strings.TrimRight(string(lines[at.line-1]), "\r")
}

// mark writes a line with its number and underlines the middle part.
func mark(at place, before, middle, after string) string {
	if strings.Contains(strings.ToUpper(before+middle+after), "AGE-SECRET-KEY-") {
		return ""
	}
	line, indent := cells(before+middle+after), len(cells(before))
	if indent >= widest {
		return ""
	}
	n := max(1, min(len(cells(middle)), widest-indent))
	if len(line) > widest {
		line = append(line[:widest], '…')
	}
	return fmt.Sprintf("%4d | %s\n     | %s%s", at.line, string(line), strings.Repeat(" ", indent), strings.Repeat("^", n))
}

// cells makes every character one cell wide.
func cells(s string) []rune {
	list := []rune(s)
	for i, r := range list {
		if r == '\t' {
			list[i] = ' '
		} else if !unicode.IsPrint(r) {
			list[i] = '·'
		}
	}
	return list
}

// didYouMean names the nearest of some names, if one is near, as the end of a
// message.
func didYouMean(name string, names []string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, n := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d < least && d < len(n) {
			best, least = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance counts the insertions, deletions, changes and swaps of neighbours
// that turn a into b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > widest {
		return len(a) // no name is that long
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 0
			if a[i-1] != b[j-1] {
				change = 1
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
