package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/columnar"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestTextTables writes fields whose columns would have each other's names, and numbers that text has trouble with.
func TestTextTables(t *testing.T) {
	s, err := record.NewSchema("x",
		record.Field{Name: "a", Class: record.Metric, Len: 2}, record.Field{Name: "a_0", Class: record.Metric}, record.Field{Name: "a_1", Class: record.Metric, Type: record.Float32, Len: 2},
		record.Field{Name: "a_1_", Class: record.Flag, Type: record.Uint64}, record.Field{Name: "seq", Class: record.Metric, Type: record.Int64}, record.Field{Name: "rho", Class: record.Digest})
	if err != nil {
		t.Fatal(err)
	}
	columns, err := columnar.Columns(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := math.Float64bits
	b := &sink.Batch{Schema: s, Generation: math.MaxUint32, Seq: []uint64{math.MaxUint64}, Words: []uint64{
		math.MaxUint64, 1 << 63, f(math.NaN()), f(math.Inf(-1)), f(math.MaxFloat64), f(float64(float32(0.1))), f(math.Inf(1)), math.MaxUint64, 1 << 63,
	}}
	var out bytes.Buffer
	buf := bufio.NewWriter(&out)
	write := func(table table) string {
		t.Helper()
		out.Reset()
		if err := table.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		if err := buf.Flush(); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	const want = "step,time,generation,seq,a_0_,a_1__,a_0,a_1_0,a_1_1,a_1_,seq_\n" +
		"18446744073709551615,-9223372036854775808,4294967295,18446744073709551615,nan,-inf,1.7976931348623157e+308,0.1,inf,18446744073709551615,-9223372036854775808\n"
	csv := write(newCSV(buf, s, columns))
	if csv != want {
		t.Errorf("as CSV:\n%swant\n%s", csv, want)
	}
	head, _, _ := strings.Cut(csv, "\n")
	names := strings.Split(head, ",")
	slices.Sort(names)
	if n := len(names); len(slices.Compact(names)) != n {
		t.Errorf("a column has the name of another: %s", head)
	}
	lines := write(newLines(buf, s, columns))
	if want := `{"step":18446744073709551615,"time":-9223372036854775808,"generation":4294967295,"seq":18446744073709551615,"a":["nan","-inf"],"a_0":1.7976931348623157e+308,"a_1":[0.1,"inf"],"a_1_":18446744073709551615,"seq_":-9223372036854775808}` + "\n"; lines != want || !json.Valid([]byte(lines)) {
		t.Errorf("as JSON lines:\n%swant\n%s", lines, want)
	}
}

// TestNegativeZero: a reader that takes numbers without a point for integers has the sign all the same.
func TestNegativeZero(t *testing.T) {
	zero := math.Float64bits(math.Copysign(0, -1))
	for quote, want := range map[string]string{"": "-0", `"`: "-0.0"} {
		for _, typ := range []record.Type{record.Float64, record.Float32} {
			if got := string(appendNumber(nil, typ, zero, quote)); got != want {
				t.Errorf("%v between %q: %s, want %s", typ, quote, got, want)
			}
		}
	}
}

// TestTextCanary: what a digest field held is in no text.
func TestTextCanary(t *testing.T) {
	s := sinktest.Schema()
	columns, err := columnar.Columns(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &sink.Batch{Schema: s, Seq: []uint64{0}, Words: sinktest.Payload(s, 1)[:s.StoredWords()]}
	var out bytes.Buffer
	buf := bufio.NewWriter(&out)
	for _, table := range []table{newCSV(buf, s, columns), newLines(buf, s, columns)} {
		if err := table.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := buf.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, c := range sinktest.Canaries() {
		if strings.Contains(out.String(), c) || out.Len() < 100 {
			t.Errorf("%s is in:\n%s", c, &out)
		}
	}
}
