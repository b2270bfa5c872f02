// Package parquet holds the Parquet files of usp against readers that are not ours, DuckDB and Arrow, and runs the statements of
// doc/query.md. It has tests only. They need a Python with the packages in requirements.txt, named by PARQUET_PYTHON or found
// as python3, and skip without.
package parquet

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/parquet"
	"github.com/usp-project/usp/sink/sinktest"
)

var records = flag.Int("records", 300_000, "records of the run that TestReaders makes")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// python is one that has the readers.
func python(t *testing.T) string {
	t.Helper()
	name := os.Getenv("PARQUET_PYTHON")
	if name == "" {
		name = "python3"
	}
	if out, err := exec.Command(name, "-c", "import duckdb, pyarrow").CombinedOutput(); err != nil {
		t.Skipf("NOT CHECKED with DuckDB and Arrow: %s -c 'import duckdb, pyarrow': %v: %s\npython3 -m venv V && V/bin/pip install -r itest/parquet/requirements.txt, then set PARQUET_PYTHON=V/bin/python",
			name, err, bytes.TrimSpace(out[max(0, len(out)-200):]))
	}
	return name
}

// read runs read.py in a directory and decodes what it prints.
func read(t *testing.T, answer any, stdin []byte, dir string, args ...string) {
	t.Helper()
	script, err := filepath.Abs("read.py")
	must(t, err)
	cmd := exec.Command(python(t), append([]string{script}, args...)...)
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(stdin), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("read.py %v: %v", args, err)
	}
	must(t, json.Unmarshal(out, answer))
}

// bring has the Parquet sink bring a run to the lake.
func bring(t *testing.T, r *sinktest.Recording, lake string) {
	t.Helper()
	must(t, sink.Bring(t.Context(), sink.Options{Dir: r.Dir, Name: "parquet"}, parquet.New(parquet.Options{Dir: lake})))
}

// sums are what a reader is to find, as it writes them.
type sums map[string]string

// tally makes them from the records that are stored.
type tally struct {
	schema *record.Schema
	at     map[string]float64
	large  float64 // infinite
}

func (c *tally) add(generation uint32, seq uint64, words []uint64) {
	word := func(name string, j int) uint64 { i, _ := c.schema.Index(name); return words[c.schema.Offset(i)+j] }
	float := func(name string, j int) float64 { return math.Float64frombits(word(name, j)) }
	add := func(name string, x float64) { c.at[name] += x }
	loss := float("loss", 0)
	switch {
	case math.IsNaN(loss):
		add("loss_nan", 1)
	case math.IsInf(loss, 0):
		add("loss_inf", 1)
		if loss > 0 {
			c.large++
		}
	default:
		add("loss", loss)
	}
	step := words[0]
	add("records", 1)
	add("step", float64(step))
	add("time", float64(words[1]/1_000_000%4096))
	add("generation", float64(generation))
	add("seq", float64(seq))
	add("small", float("small", 0))
	add("count", float64(word("count", 0)))
	add("delta", float64(int64(word("delta", 0))))
	add("pair_0", float("pair", 0))
	add("pair_1", float("pair", 1))
	add("length", 2)
	add("flags", float64(word("flags", 0)))
	add("mixed", float("small", 0)*float64(step%7))
}

// sums are those of one reader: NaN is above all in DuckDB, and beside all in Arrow.
func (c *tally) sums(nanIsLarge bool) sums {
	s := sums{}
	for name, x := range c.at {
		s[name] = strconv.FormatFloat(x, 'f', -1, 64)
	}
	large := c.large
	if nanIsLarge {
		large += c.at["loss_nan"]
	}
	s["large"] = strconv.FormatFloat(large, 'f', -1, 64)
	return s
}

// payload is sinktest's, with stretches of NaN that fill whole pages, infinities of both signs.
func payload(s *record.Schema, step uint64) []uint64 {
	words := sinktest.Payload(s, step)
	i, _ := s.Index("loss")
	loss := &words[s.Offset(i)]
	switch {
	case step/40_000%3 == 1:
		*loss = record.Canonical(math.NaN())
	case step%1000 == 0:
		*loss = math.Float64bits(math.Inf(1 - 2*int(step/1000%2)))
	}
	return words
}

// longRun is a run in two generations with losses, and what is stored of it: all, and on the effective timeline.
func longRun(t *testing.T) (r *sinktest.Recording, all, effective *tally) {
	t.Helper()
	s := sinktest.Schema()
	r = sinktest.RecordSchema(t, s)
	all, effective = &tally{schema: s, at: map[string]float64{}}, &tally{schema: s, at: map[string]float64{}}
	target := uint64(*records * 2 / 5)
	generation, seq := uint32(0), uint64(0)
	emit := func(n int) {
		for ; n > 0; n -= 200_000 {
			r.EmitWords(min(n, 200_000), func(step uint64) []uint64 {
				words := payload(s, step)
				all.add(generation, seq, words)
				if generation == 1 || step <= target {
					effective.add(generation, seq, words)
				}
				seq++
				return words
			})
			r.Roll()
		}
	}
	emit(*records / 5)
	r.Lose(1000)
	seq += 1000
	emit(*records * 2 / 5)
	r.Rewind(target)
	generation, seq = 1, 0
	emit(*records - *records*3/5)
	return r, all, effective
}

// export has usp write a run to a file, on one core, and says how fast it was.
func export(t *testing.T, usp string, r *sinktest.Recording, n float64, args ...string) {
	t.Helper()
	cmd := exec.Command(usp, append([]string{"export", r.Dir.Path(), "--progress", "none"}, args...)...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	took, cpu := time.Since(began), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	t.Logf("%v: %.0f records in %.2f s, %.2f s of CPU time: %.2f and %.2f million records/s", args, n, took.Seconds(), cpu.Seconds(), n/took.Seconds()/1e6, n/cpu.Seconds()/1e6)
}

// build makes the usp command.
func build(t *testing.T) string {
	t.Helper()
	usp := filepath.Join(t.TempDir(), "usp")
	cmd := exec.Command("go", "build", "-o", usp, "./cmd/usp")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return usp
}

// TestReaders: DuckDB and Arrow read the files of a run as what was stored: as many records, equal sums, equal types.
func TestReaders(t *testing.T) {
	python(t)
	r, all, effective := longRun(t)
	lake := filepath.Join(t.TempDir(), "lake")
	began := time.Now()
	bring(t, r, lake)
	t.Logf("brought %d records in %.2f s", *records, time.Since(began).Seconds())
	out := t.TempDir()
	usp := build(t)
	export(t, usp, r, effective.at["records"], "--to", "parquet", "-o", filepath.Join(out, "one.parquet"))
	check := func(pattern string, want *tally) {
		t.Helper()
		var got map[string]sums
		read(t, &got, nil, ".", "sums", pattern)
		if diff := cmp.Diff(map[string]sums{"duckdb": want.sums(true), "pyarrow": want.sums(false)}, got); diff != "" {
			t.Errorf("%s:\n%s", filepath.Base(pattern), diff)
		}
		var types map[string]map[string]string
		read(t, &types, nil, ".", "types", pattern)
		if diff := cmp.Diff(wantTypes, types); diff != "" {
			t.Errorf("%s:\n%s", filepath.Base(pattern), diff)
		}
	}
	check(filepath.Join(lake, "run=*", "part-*.parquet"), all)
	check(filepath.Join(out, "one.parquet"), effective)
	texts(t, usp, r, out, effective)
}

var wantTypes = map[string]map[string]string{
	"duckdb": {
		"step": "UBIGINT", "time": "TIMESTAMPTZ_NS", "generation": "UINTEGER", "seq": "UBIGINT", "loss": "DOUBLE", "small": "FLOAT",
		"count": "UBIGINT", "delta": "BIGINT", "pair": "DOUBLE[]", "flags": "UBIGINT",
	},
	"pyarrow": {
		"step": "uint64", "time": "timestamp[ns, tz=UTC]", "generation": "uint32", "seq": "uint64", "loss": "double", "small": "float",
		"count": "uint64", "delta": "int64", "pair": "list<element: double not null>", "flags": "uint64",
	},
}

// texts has DuckDB read the run as text, as far as a text may be long.
func texts(t *testing.T, usp string, r *sinktest.Recording, out string, effective *tally) {
	t.Helper()
	if *records > 1_000_000 {
		t.Log("not checked as CSV and JSON lines: the run is long")
		return
	}
	csv, lines := filepath.Join(out, "one.csv"), filepath.Join(out, "one.jsonl")
	export(t, usp, r, effective.at["records"], "--to", "csv", "-o", csv)
	export(t, usp, r, effective.at["records"], "--to", "jsonl", "-o", lines)
	const columns = "count(*), sum(step), sum(seq), sum(generation), sum(if(isfinite(loss::DOUBLE), loss::DOUBLE, 0)), sum(isnan(loss::DOUBLE)::INT), sum(isinf(loss::DOUBLE)::INT), sum(small::DOUBLE), sum(count), sum(delta)"
	statements, err := json.Marshal([]string{
		fmt.Sprintf("SELECT %s, sum(pair_0), sum(pair_1), sum(flags) FROM '%s'", columns, csv),
		fmt.Sprintf("SELECT %s, sum(pair[1]), sum(pair[2]), sum(flags) FROM '%s'", columns, lines),
	})
	must(t, err)
	var got [][][]string
	read(t, &got, statements, ".", "query")
	want, all := effective.sums(true), []string{}
	for _, name := range []string{"records", "step", "seq", "generation", "loss", "loss_nan", "loss_inf", "small", "count", "delta", "pair_0", "pair_1", "flags"} {
		all = append(all, want[name])
	}
	for i, rows := range got {
		for j := range rows[0] {
			rows[0][j] = strings.TrimSuffix(rows[0][j], ".0")
		}
		if diff := cmp.Diff([][]string{all}, rows); diff != "" {
			t.Errorf("text %d:\n%s", i, diff)
		}
	}
}
