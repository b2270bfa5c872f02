package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	client "github.com/prometheus/client_golang/prometheus"

	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDoc holds the table of metrics to the code, to the word, both ways.
func TestDoc(t *testing.T) {
	text := read(t, "doc/metrics.md")
	known := map[string]bool{}
	for _, m := range append(metrics(), fleetMetrics()...) {
		kind := map[client.ValueType]string{client.GaugeValue: "gauge", client.CounterValue: "counter", histogram: "histogram"}[m.kind]
		labels := ""
		if m.labels != nil {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		line := strings.ReplaceAll(fmt.Sprintf("| `%s` | %s | %s | %s |", m.name, kind, labels, m.help), "|  |", "| |")
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("doc/metrics.md has no line\n%s", line)
		}
		known[m.name] = true
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(usp_[a-z_]+)` ").FindAllStringSubmatch(text, -1) {
		if !known[row[1]] {
			t.Errorf("doc/metrics.md has a row for %s, which is no metric", row[1])
		}
	}
	for _, suffix := range suffixes {
		if !strings.Contains(text, "`"+suffix+"`") {
			t.Errorf("doc/metrics.md does not say what becomes of names that end with %s", suffix)
		}
	}
}

// panel is one of a dashboard.
type panel struct {
	Title   string
	Type    string
	Targets []struct{ Expr, LegendFormat string }
}

// TestDashboard wants every query of the dashboard to be of metrics that there are, and every metric on it.
func TestDashboard(t *testing.T) {
	text := read(t, "deploy/grafana/usp.json")
	var dashboard struct {
		Panels     []panel
		Templating struct{ List []struct{ Name, Query any } }
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{fieldPrefix: true} // in a pattern
	for _, m := range append(metrics(), fleetMetrics()...) {
		known[m.name] = false
	}
	schema := predictor.SchemaWithWeights(4)
	for i, name := range fieldMetrics(schema) {
		switch schema.Field(i).Class {
		case record.Flag:
			known[fieldPrefix+schema.Field(i).Name+setSuffix] = true
			fallthrough
		case record.Metric:
			known[name] = true
		}
	}
	queries := 0
	names := regexp.MustCompile(`usp_[a-z0-9_]+`)
	for _, p := range dashboard.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("the panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			queries++
			found := names.FindAllString(target.Expr, -1)
			if found == nil && !strings.Contains(target.Expr, "$field") {
				t.Errorf("%q: %s asks for no metric", p.Title, target.Expr)
			}
			for _, name := range found {
				name = strings.TrimSuffix(name, "_bucket")
				if _, ok := known[name]; !ok {
					t.Errorf("%q asks for %s, which is no metric", p.Title, name)
				}
				known[name] = true
			}
			checkBit(t, target.Expr, target.LegendFormat)
		}
	}
	for name, used := range known {
		if !used {
			t.Errorf("%s is not on the dashboard", name)
		}
	}
	for _, name := range names.FindAllString(text, -1) {
		if _, ok := known[strings.TrimSuffix(name, "_bucket")]; !ok && name != strings.TrimPrefix(setSuffix, "_") {
			t.Errorf("the dashboard speaks of %s, which is no metric", name)
		}
	}
	if queries < 40 {
		t.Errorf("only %d queries were looked at", queries)
	}
}

// checkBit wants a query for one flag to be called what the predictor calls it.
func checkBit(t *testing.T, expr, legend string) {
	t.Helper()
	m := regexp.MustCompile(`bit="(\d+)"`).FindStringSubmatch(expr)
	if m == nil {
		return
	}
	var bit uint
	if _, err := fmt.Sscan(m[1], &bit); err != nil {
		t.Fatal(err)
	}
	if want := predictor.FlagNames(1 << bit); !slices.Equal(want, []string{strings.TrimPrefix(legend, "{{run}} ")}) {
		t.Errorf("bit %d is called %q, and is %q", bit, legend, want)
	}
}
