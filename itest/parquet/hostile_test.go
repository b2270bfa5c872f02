package parquet

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink/sinktest"
)

// hostile is a schema whose fields are called as other columns are, as parts of vectors are, as words of SQL, and are as long as a name
// may be.
func hostile(t *testing.T) *record.Schema {
	t.Helper()
	metric := func(name string, typ record.Type, n int) record.Field {
		return record.Field{Name: name, Class: record.Metric, Type: typ, Len: n}
	}
	s, err := record.NewSchema("hostile.v1-._",
		metric("generation", record.Float64, 1), metric("generation_", record.Float64, 1), metric("run", record.Int64, 1), metric("select", record.Float32, 1),
		record.Field{Name: "seq", Class: record.Flag, Type: record.Uint64},
		metric("a", record.Float64, 3), metric("a_0", record.Float64, 1), metric("a_1", record.Float32, 2), metric("a_1_0", record.Float64, 1),
		record.Field{Name: "nan", Class: record.Metric, Unit: `"><b>,;'$(x)`}, metric("most", record.Uint64, 2), metric("least", record.Int64, 2),
		metric("x23456789012345678901234567890123456789012345678901234567890123", record.Float64, 2),
		record.Field{Name: "rho", Class: record.Digest, Len: 2},
	)
	must(t, err)
	return s
}

// extreme is a record of what numbers have at their ends.
func extreme(s *record.Schema, step uint64) []uint64 {
	w := make([]uint64, s.Words())
	w[0], w[1] = step, uint64(int64(step)*1_000_000_007-1<<62)
	for i := range s.Len() {
		f := s.Field(i)
		for j := range f.Len {
			n := step + uint64(i+j)
			x := []float64{math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), 5e-324, math.MaxFloat64, 0.1, float64(step)}[n%8]
			switch word := &w[s.Offset(i)+j]; f.Type {
			case record.Uint64:
				*word = []uint64{math.MaxUint64 - step, 1<<53 + 1, 1 << 63}[n%3]
			case record.Int64:
				*word = []uint64{1<<63 + step, math.MaxInt64, -(1<<53 + 1) & math.MaxUint64}[n%3]
			case record.Float32:
				*word = math.Float64bits(float64([]float32{float32(x), math.MaxFloat32, math.SmallestNonzeroFloat32, 0.1}[n%4]))
			default:
				*word = math.Float64bits(x)
			}
		}
	}
	return w
}

// TestHostileFields: every value of every row is, to the bit, what was stored, for every reader and in every format, whatever fields are
// called and numbers are, and no column has the name of another.
func TestHostileFields(t *testing.T) {
	python(t)
	s := hostile(t)
	r := sinktest.RecordSchema(t, s)
	var want [][]string
	generation, seq, target := 0, 0, 120
	emit := func(n int) {
		r.EmitWords(n, func(step uint64) []uint64 {
			w := extreme(s, step)
			if generation == 1 || int(step) <= target {
				want = append(want, values(s, w, generation, seq))
			}
			seq++
			return w
		})
	}
	emit(100)
	r.Lose(3)
	seq += 3
	emit(50)
	r.Rewind(uint64(target))
	generation, seq = 1, 0
	emit(40)
	usp, base := build(t), filepath.Join(t.TempDir(), "out")
	for _, format := range []string{"parquet", "csv", "jsonl"} {
		export(t, usp, r, float64(len(want)), "--to", format, "-o", base+"."+format)
	}
	var got struct {
		Names map[string][]string
		Rows  map[string][][]string
	}
	read(t, &got, nil, ".", "rows", base)
	for _, reader := range []string{"duckdb", "pyarrow", "csv", "jsonl"} {
		if diff := cmp.Diff(want, got.Rows[reader]); diff != "" {
			t.Errorf("%s:\n%.3000s", reader, diff)
		}
		names := slices.Sorted(slices.Values(got.Names[reader]))
		if n := len(names); n < 17 || len(slices.Compact(names)) != n {
			t.Errorf("%s has a column twice: %q", reader, names)
		}
	}
}

// values are the columns of a record, as read.py writes them.
func values(s *record.Schema, w []uint64, generation, seq int) []string {
	row := []string{strconv.FormatUint(w[0], 10), strconv.FormatInt(int64(w[1]), 10), strconv.Itoa(generation), strconv.Itoa(seq)}
	for i := range s.Len() {
		f := s.Field(i)
		if f.Class == record.Digest {
			continue
		}
		for _, word := range w[s.Offset(i):][:f.Len] {
			switch x := math.Float64frombits(word); {
			case f.Type == record.Uint64:
				row = append(row, strconv.FormatUint(word, 10))
			case f.Type == record.Int64:
				row = append(row, strconv.FormatInt(int64(word), 10))
			case math.IsNaN(x):
				row = append(row, "nan")
			default:
				row = append(row, fmt.Sprintf("%016x", word))
			}
		}
	}
	return row
}
