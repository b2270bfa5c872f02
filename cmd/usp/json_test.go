package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// jsonis KEY=VALUE… reads standard output's last line, or all of it, as JSON and wants the values. KEY alone wants the
// key to be there; a VALUE that begins with < or > compares with the number or the other key behind it.
func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	out := strings.TrimSpace(ts.ReadFile("stdout"))
	doc := map[string]any{}
	if json.Unmarshal([]byte(out), &doc) != nil {
		lines := strings.Split(out, "\n")
		ts.Check(json.Unmarshal([]byte(lines[len(lines)-1]), &doc))
	}
	for _, arg := range args {
		key, want, compare := strings.Cut(arg, "=")
		got, ok := lookup(doc, key)
		if !ok {
			ts.Fatalf("no key %q in %s", key, out)
		}
		if compare && !matches(doc, got, want) != neg {
			ts.Fatalf("%s is %v, want %s", key, got, want)
		}
	}
}

func lookup(doc map[string]any, key string) (any, bool) {
	var v any = doc
	for part := range strings.SplitSeq(key, ".") {
		if list, ok := v.([]any); ok {
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(list) {
				return nil, false
			}
			v = list[i]
			continue
		}
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[part]; !ok {
			return nil, false
		}
	}
	return v, true
}

func matches(doc map[string]any, got any, want string) bool {
	if got == nil {
		return want == "null"
	}
	if want == "" || want[0] != '<' && want[0] != '>' {
		if other, ok := lookup(doc, want); ok {
			return fmt.Sprint(other) == fmt.Sprint(got)
		}
		return fmt.Sprint(got) == want
	}
	var bound float64
	if other, ok := lookup(doc, want[1:]); ok {
		bound, _ = other.(float64)
	} else if _, err := fmt.Sscan(want[1:], &bound); err != nil {
		return false
	}
	x, ok := got.(float64)
	return ok && (want[0] == '<' && x < bound || want[0] == '>' && x > bound)
}
