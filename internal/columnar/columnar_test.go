package columnar

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// batch has the records of steps 1 to n, with losses before the third and behind the last.
func batch(s *record.Schema, n int) *sink.Batch {
	b := &sink.Batch{Schema: s, Generation: 3, Next: uint64(n)}
	for step := uint64(1); step <= uint64(n); step++ {
		b.Seq = append(b.Seq, 2*step)
		b.Words = append(b.Words, sinktest.Payload(s, step)[:s.StoredWords()]...)
	}
	b.Losses = []sink.Loss{{From: 5, To: 6, Reason: record.LostTorn, Before: min(2, n)}, {From: 100, To: 110, Reason: record.LostOverrun, Before: n}}
	return b
}

func write(t testing.TB, s *record.Schema, names []string, batches ...*sink.Batch) []byte {
	t.Helper()
	columns, err := Columns(s, names)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := NewWriter(&out, s, columns, map[string]string{"usp.run": "r1", "a": "b"})
	for _, b := range batches {
		if err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(t *testing.T, b []byte) *parquet.File {
	t.Helper()
	f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// row is what is read back, by a schema of its own.
type row struct {
	Step       uint64    `parquet:"step"`
	Time       int64     `parquet:"time"`
	Generation uint32    `parquet:"generation"`
	Seq        uint64    `parquet:"seq"`
	Loss       float64   `parquet:"loss"`
	Small      float32   `parquet:"small"`
	Count      uint64    `parquet:"count"`
	Delta      int64     `parquet:"delta"`
	Pair       []float64 `parquet:"pair,list"`
	Flags      uint64    `parquet:"flags"`
}

func TestRoundTrip(t *testing.T) {
	s := sinktest.Schema()
	for _, n := range []int{0, 1, chunk, chunk + 1, maxGroup + 10} {
		b := batch(s, n)
		data := write(t, s, nil, b)
		rows, err := parquet.Read[row](bytes.NewReader(data), int64(len(data)))
		if err != nil || len(rows) != n {
			t.Fatalf("%d rows of %d, %v", len(rows), n, err)
		}
		for i, got := range rows {
			w := b.Row(i)
			at := func(name string, j int) uint64 { f, _ := s.Index(name); return w[s.Offset(f)+j] }
			float := func(name string, j int) float64 { return math.Float64frombits(at(name, j)) }
			want := row{
				Step: w[0], Time: int64(w[1]), Generation: 3, Seq: b.Seq[i], Loss: float("loss", 0), Small: float32(float("small", 0)),
				Count: at("count", 0), Delta: int64(at("delta", 0)), Pair: []float64{float("pair", 0), float("pair", 1)}, Flags: at("flags", 0),
			}
			if !cmp.Equal(got, want) {
				t.Fatalf("row %d of %d:\n%s", i, n, cmp.Diff(want, got))
			}
		}
		f := open(t, data)
		if groups := len(f.RowGroups()); groups != (n+maxGroup-1)/maxGroup {
			t.Errorf("%d rows in %d row groups", n, groups)
		}
		var ranges []LostRange
		lost, _ := f.Lookup("usp.lost")
		text, _ := f.Lookup("usp.lost_ranges")
		if err := json.Unmarshal([]byte(text), &ranges); err != nil || lost != "11" ||
			!cmp.Equal(ranges, []LostRange{{3, 5, 6, "torn"}, {3, 100, 110, "overrun"}}) {
			t.Errorf("lost %q in %q: %v", lost, text, err)
		}
		if run, _ := f.Lookup("usp.run"); run != "r1" {
			t.Errorf("the run is %q", run)
		}
	}
}

// TestColumns holds the order and the types of the columns, which are what queries rest on.
func TestColumns(t *testing.T) {
	s := sinktest.Schema()
	data := write(t, s, nil, batch(s, 3))
	const want = `message usp.sinktest.v1 {
	required int64 step (INT(64,false));
	required int64 time (TIMESTAMP(isAdjustedToUTC=true,unit=NANOS));
	required int32 generation (INT(32,false));
	required int64 seq (INT(64,false));
	required double loss;
	required float small;
	required int64 count (INT(64,false));
	required int64 delta (INT(64,true));
	required group pair (LIST) {
		repeated group list {
			required double element;
		}
	}
	required int64 flags (INT(64,false));
}`
	if got := open(t, data).Schema().String(); got != want {
		t.Error(cmp.Diff(want, got))
	}
	if got := len(open(t, write(t, s, []string{"flags", "loss"}, batch(s, 3))).Schema().Columns()); got != 6 {
		t.Errorf("%d columns of two fields", got)
	}
	for _, name := range []string{"rho", "nothing"} {
		if _, err := Columns(s, []string{name}); err == nil {
			t.Errorf("a column %s", name)
		}
	}
}

// TestNames: no two columns have one name, and a field's does not depend on which others are wanted.
func TestNames(t *testing.T) {
	var fields []record.Field
	for _, name := range []string{"seq", "generation", "generation_", "generation__", "run", "step_"} {
		fields = append(fields, record.Field{Name: name, Class: record.Metric})
	}
	s, err := record.NewSchema("x", fields...)
	if err != nil {
		t.Fatal(err)
	}
	want := []Column{{"seq_", 0}, {"generation___", 1}, {"generation_", 2}, {"generation__", 3}, {"run_", 4}, {"step_", 5}}
	columns, err := Columns(s, nil)
	if err != nil || !cmp.Equal(columns, want) {
		t.Errorf("%v, %v", columns, err)
	}
	if columns, err = Columns(s, []string{"generation"}); err != nil || !cmp.Equal(columns, want[1:2]) {
		t.Errorf("%v, %v", columns, err)
	}
	if got := len(open(t, write(t, s, nil, &sink.Batch{Schema: s})).Schema().Columns()); got != 4+len(fields) {
		t.Errorf("%d columns", got)
	}
}

// TestSpecialValues: every float comes back with its bits, NaN as NaN.
func TestSpecialValues(t *testing.T) {
	s, err := record.NewSchema("x", record.Field{Name: "v", Class: record.Metric})
	if err != nil {
		t.Fatal(err)
	}
	values := []float64{0, math.Inf(1), math.NaN(), -1, math.Inf(-1), math.SmallestNonzeroFloat64, math.MaxFloat64, 1}
	b := &sink.Batch{Schema: s}
	for i, v := range values {
		b.Seq = append(b.Seq, uint64(i))
		b.Words = append(b.Words, uint64(i+1), 0, record.Canonical(v))
	}
	data := write(t, s, nil, b)
	type one struct {
		V float64 `parquet:"v"`
	}
	rows, err := parquet.Read[one](bytes.NewReader(data), int64(len(data)))
	if err != nil || len(rows) != len(values) {
		t.Fatal(len(rows), err)
	}
	for i, r := range rows {
		if record.Canonical(r.V) != record.Canonical(values[i]) {
			t.Errorf("%v came back as %v", values[i], r.V)
		}
	}
}

// TestBounds: no bounds exclude a NaN, which SQL sorts above all numbers, and those of other pages are what they are.
func TestBounds(t *testing.T) {
	s, err := record.NewSchema("x", record.Field{Name: "v", Class: record.Metric}, record.Field{Name: "small", Class: record.Metric, Type: record.Float32},
		record.Field{Name: "pair", Class: record.Metric, Len: 2}, record.Field{Name: "n", Class: record.Flag, Type: record.Uint64})
	if err != nil {
		t.Fatal(err)
	}
	b := &sink.Batch{Schema: s}
	for i := range 3 * pageValues {
		v := 7.0
		if i == pageValues || i >= 2*pageValues { // one in the second page, all of the third
			v = math.NaN()
		}
		w := record.Canonical(v)
		b.Seq = append(b.Seq, uint64(i))
		b.Words = append(b.Words, uint64(i+1), 0, w, w, w, w, 1<<63)
	}
	file := open(t, write(t, s, nil, b))
	group := file.RowGroups()[0]
	for i, name := range []string{"v", "small", "pair"} {
		index, err := group.ColumnChunks()[4+i].ColumnIndex()
		if err != nil {
			t.Fatal(err)
		}
		perPage := pageValues
		if name == "pair" {
			perPage /= 2
		}
		for page := range index.NumPages() {
			least, most := 7.0, 7.0
			if first := page * perPage; first+perPage > pageValues && (first <= pageValues || first >= 2*pageValues) {
				least, most = math.Inf(-1), math.Inf(1)
			}
			low, high := index.MinValue(page), index.MaxValue(page)
			if number(low) != least || number(high) != most {
				t.Errorf("%s, page %d: %v to %v, want %v to %v", name, page, low, high, least, most)
			}
		}
		stats := file.Metadata().RowGroups[0].Columns[4+i].MetaData.Statistics
		kind := group.ColumnChunks()[4+i].Type().Kind()
		if low, high := number(kind.Value(stats.MinValue)), number(kind.Value(stats.MaxValue)); !math.IsInf(low, -1) || !math.IsInf(high, 1) {
			t.Errorf("%s: row group of %v to %v", name, low, high)
		}
	}
	n := file.Metadata().RowGroups[0].Columns[7].MetaData.Statistics
	if low := parquet.Int64.Value(n.MinValue).Uint64(); low != 1<<63 || n.Min != nil {
		t.Errorf("n from %d, and %v for readers that take it as signed", low, n.Min)
	}
}

func number(v parquet.Value) float64 {
	if v.Kind() == parquet.Float {
		return float64(v.Float())
	}
	return v.Double()
}

// TestSameBytes: the same records, however they are cut into batches, give the same file.
func TestSameBytes(t *testing.T) {
	s := sinktest.Schema()
	n := maxGroup + pageValues + 10
	whole := batch(s, n)
	whole.Losses = nil
	words := s.StoredWords()
	want := write(t, s, nil, whole)
	for _, size := range []int{501, 8192} {
		var parts []*sink.Batch
		for from := 0; from < n; from += size {
			to := min(from+size, n)
			parts = append(parts, &sink.Batch{Schema: s, Generation: 3, Seq: whole.Seq[from:to], Words: whole.Words[from*words : to*words]})
		}
		if got := write(t, s, nil, parts...); !bytes.Equal(got, want) {
			t.Errorf("in batches of %d: %d bytes, not %d", size, len(got), len(want))
		}
	}
}

// TestLarge: records of the most elements, in one vector or in as many fields as can be, come back whole, and what is held of
// them in memory stays small.
func TestLarge(t *testing.T) {
	wide := make([]record.Field, record.MaxFields)
	for i := range wide {
		wide[i] = record.Field{Name: fmt.Sprintf("f%d", i), Class: record.Metric, Len: record.MaxElements / record.MaxFields}
	}
	for name, fields := range map[string][]record.Field{
		"vector": {{Name: "v", Class: record.Metric, Len: record.MaxElements}},
		"mixed":  {{Name: "v", Class: record.Metric, Len: record.MaxElements - 200}, {Name: "w", Class: record.Metric, Type: record.Float32, Len: 199}, {Name: "x", Class: record.Flag, Type: record.Uint64}},
		"wide":   wide,
	} {
		t.Run(name, func(t *testing.T) {
			s, err := record.NewSchema("x", fields...)
			if err != nil {
				t.Fatal(err)
			}
			const n = 70
			parts := make([]*sink.Batch, 0, n)
			for i := range n {
				parts = append(parts, &sink.Batch{Schema: s, Seq: []uint64{uint64(i)}, Words: sinktest.Payload(s, uint64(i+1))})
			}
			data := write(t, s, nil, parts...)
			groups := open(t, data).RowGroups()
			if len(groups) != 2 || groups[0].NumRows()*int64(s.StoredWords()) > groupWords {
				t.Errorf("%d row groups of %d rows", len(groups), groups[0].NumRows())
			}
			i := uint64(0)
			for _, g := range groups {
				rows := g.Rows()
				for buf := make([]parquet.Row, 1); ; i++ {
					if n, err := rows.ReadRows(buf); n == 0 {
						if err != io.EOF {
							t.Fatal(err)
						}
						break
					}
					checkWords(t, s, buf[0], sinktest.Payload(s, i+1))
				}
				if err := rows.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if i != n {
				t.Errorf("%d rows", i)
			}
		})
	}
}

// checkWords compares the fields of a row with what they were made of.
func checkWords(t *testing.T, s *record.Schema, row parquet.Row, words []uint64) {
	t.Helper()
	i := 2
	for _, v := range row {
		if v.Column() < 4 {
			continue
		}
		var got uint64
		switch v.Kind() {
		case parquet.Double:
			got = math.Float64bits(v.Double())
		case parquet.Float:
			got = math.Float64bits(float64(v.Float()))
		default:
			got = v.Uint64()
		}
		if i >= s.StoredWords() || got != words[i] {
			t.Fatalf("step %d: value %d is %#x", words[0], i, got)
		}
		i++
	}
	if i != s.StoredWords() {
		t.Fatalf("step %d has %d values", words[0], i)
	}
}
