package otlp

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDoc holds the table of metrics to the code, to the word, both ways.
func TestDoc(t *testing.T) {
	b, err := os.ReadFile("../../doc/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	text, known := string(b), map[string]bool{}
	for _, m := range metrics() {
		kind := map[bool]string{false: "gauge", true: "sum, cumulative"}[m.sum]
		line := strings.ReplaceAll(fmt.Sprintf("| `%s` | %s | %s | %s |", m.name, kind, m.unit, m.help), "|  |", "| |")
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("doc/metrics.md has no line\n%s", line)
		}
		known[m.name] = true
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(usp\\.[a-z.]+)` ").FindAllStringSubmatch(text, -1) {
		if !known[row[1]] {
			t.Errorf("doc/metrics.md has a row for %s, which is no metric", row[1])
		}
	}
	for _, name := range []string{"ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "PROTOCOL", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"} {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("doc/metrics.md does not name %s%s", prefix, name)
		}
	}
}
