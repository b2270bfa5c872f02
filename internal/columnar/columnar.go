// Package columnar writes telemetry as Parquet, for DuckDB, pandas, polars and whatever else reads tables. It is the only
// package that knows the library for it.
//
// A file has a column for each stored field, after step, time, generation and seq, the record's sequence number in its
// generation. Floats are DOUBLE or FLOAT as the schema declares them, integers and flags INT64 or UINT64, time is a
// timestamp in nanoseconds, UTC. A vector is a list. Nothing is null. Columns are compressed with zstd, floats by byte
// streams, integers by differences.
//
// What was lost is no row. It is in the file's metadata: usp.lost counts the records, usp.lost_ranges names them.
// Without its footer a Parquet file cannot be read at all, so a file is to appear under its name when it is closed.
package columnar

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

const (
	maxGroup   = 1 << 17 // rows of a row group
	groupWords = 4 << 20 // words of its rows, which bound it for records that are large
	pageValues = 1 << 14 // values of a page
	chunk      = 1024    // values that are handed over at once
	maxRanges  = 4096    // lost ranges that are named; further ones are counted
)

// The columns before the fields.
const (
	columnStep       = "step"
	columnTime       = "time"
	columnGeneration = "generation"
	columnSeq        = "seq"
	columnRun        = "run" // is in no file; sink/parquet puts it into the path
)

// LostRange is a range of sequence numbers that were not stored, in the metadata of a file.
type LostRange struct {
	Generation uint32 `json:"generation"`
	From       uint64 `json:"from"`
	To         uint64 `json:"to"` // one past the last
	Reason     string `json:"reason"`
}

// Column is a column of a file: a field of the schema.
type Column struct {
	Name  string // in the file
	Index int    // of the field
}

// Columns are those of the fields with these names, all stored ones for none, in the order of the schema. A field that is
// called as a column before the fields, or as the one that a reader makes of run=ID in a path, gets underscores until no
// other has its name, whichever are chosen. The error names a field that is not stored.
func Columns(s *record.Schema, names []string) ([]Column, error) {
	var list []Column
	for i := range s.Len() {
		f := s.Field(i)
		if f.Class == record.Digest || len(names) > 0 && !slices.Contains(names, f.Name) {
			continue
		}
		name := f.Name
		if name == columnGeneration || name == columnSeq || name == columnRun {
			for taken := true; taken; _, taken = s.Index(name) {
				name += "_"
			}
		}
		list = append(list, Column{name, i})
	}
	for _, name := range names {
		if i, ok := s.Index(name); !ok || s.Field(i).Class == record.Digest {
			return nil, fmt.Errorf("no stored field %q", name)
		}
	}
	return list, nil
}

// Writer writes one Parquet file. It holds a row group, compressed, in memory.
type Writer struct {
	schema  *record.Schema
	columns []column
	out     *parquet.GenericWriter[any]
	values  []parquet.Value
	group   int // rows of a row group
	pending int // rows in the one that is being made
	rows    uint64
	lost    uint64
	ranges  []LostRange
	closed  bool
}

// column says where a column's values come from.
type column struct {
	kind   kind
	offset int // of the word in a row
	len    int // elements; more than 1: a list
	index  int // of the leaf in the file
	page   int // rows of a page
}

type kind uint8

const (
	kindInt kind = iota
	kindDouble
	kindFloat
	kindGeneration
	kindSeq
)

// NewWriter begins a file of records of the schema, with the columns that Columns has chosen. meta goes into the file.
func NewWriter(w io.Writer, s *record.Schema, fields []Column, meta map[string]string) *Writer {
	root, page := &group{}, 0
	x := &Writer{schema: s, values: make([]parquet.Value, chunk), group: min(maxGroup, max(1, groupWords/s.StoredWords()))}
	add := func(name string, leaf parquet.Node, c column) {
		c.index, c.page = len(x.columns), max(1, pageValues/c.len)
		page = max(page, min(pageValues, x.group*c.len))
		x.columns = append(x.columns, c)
		root.add(name, leaf)
	}
	add(columnStep, deltas(parquet.Uint(64)), column{kind: kindInt, len: 1})
	add(columnTime, deltas(parquet.Timestamp(parquet.Nanosecond)), column{kind: kindInt, offset: 1, len: 1})
	add(columnGeneration, deltas(parquet.Uint(32)), column{kind: kindGeneration, len: 1})
	add(columnSeq, deltas(parquet.Uint(64)), column{kind: kindSeq, len: 1})
	for _, f := range fields {
		field := s.Field(f.Index)
		leaf, k := leafOf(field.Type)
		c := column{kind: k, offset: s.Offset(f.Index), len: field.Len}
		if field.Len > 1 {
			leaf = parquet.List(leaf)
		}
		add(f.Name, leaf, c)
	}
	options := []parquet.WriterOption{
		parquet.NewSchema(s.Name(), root), parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest, Concurrency: 1}),
		parquet.CreatedBy("usp", "", ""),
		parquet.PageBufferSize(20 * page), // more than a page takes: it is writeColumn that ends pages
	}
	for _, key := range sortedKeys(meta) {
		options = append(options, parquet.KeyValueMetadata(key, meta[key]))
	}
	x.out = parquet.NewGenericWriter[any](w, options...)
	return x
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func deltas(n parquet.Node) parquet.Node { return parquet.Encoded(n, &parquet.DeltaBinaryPacked) }

func leafOf(t record.Type) (parquet.Node, kind) {
	switch t {
	case record.Float64:
		return parquet.Encoded(parquet.Leaf(floats{parquet.DoubleType}), &parquet.ByteStreamSplit), kindDouble
	case record.Float32:
		return parquet.Encoded(parquet.Leaf(floats{parquet.FloatType}), &parquet.ByteStreamSplit), kindFloat
	case record.Int64:
		return deltas(parquet.Int(64)), kindInt
	default:
		return deltas(parquet.Uint(64)), kindInt
	}
}

// Write adds the records of a batch, whose schema is the file's, and notes its losses.
func (w *Writer) Write(b *sink.Batch) error {
	for _, l := range b.Losses {
		w.lost += l.To - l.From
		if len(w.ranges) < maxRanges {
			w.ranges = append(w.ranges, LostRange{b.Generation, l.From, l.To, l.Reason.String()})
		}
	}
	for from := 0; from < len(b.Seq); {
		to := min(len(b.Seq), from+w.group-w.pending)
		for i := range w.columns {
			if err := w.writeColumn(&w.columns[i], b, from, to); err != nil {
				return fmt.Errorf("parquet: %w", err)
			}
		}
		w.pending += to - from
		w.rows += uint64(to - from)
		from = to
		if w.pending == w.group {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *Writer) flush() error {
	w.pending = 0
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	return nil
}

// writeColumn hands over rows [from, to) of one column. Where its pages end depends on nothing but the rows before, so that
// the same records give the same bytes however they are cut into batches.
func (w *Writer) writeColumn(c *column, b *sink.Batch, from, to int) error {
	out := w.out.ColumnWriters()[c.index]
	begin := w.pending - from // row i of the batch is row begin+i of the row group
	for from < to {
		end := min(to, from+c.page-(begin+from)%c.page, from+max(1, chunk/c.len))
		if _, err := out.WriteRowValues(w.take(c, b, from, end)); err != nil {
			return err
		}
		if from = end; (begin+from)%c.page == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// take returns the values of a column in rows [from, to). They are valid until the next call.
func (w *Writer) take(c *column, b *sink.Batch, from, to int) []parquet.Value {
	if need := (to - from) * c.len; need > len(w.values) {
		w.values = make([]parquet.Value, need)
	}
	values := w.values[:(to-from)*c.len]
	words, stride := b.Words[from*b.Schema.StoredWords()+c.offset:], b.Schema.StoredWords()
	switch {
	case c.kind == kindSeq:
		for i, seq := range b.Seq[from:to] {
			values[i] = parquet.Int64Value(int64(seq))
		}
	case c.kind == kindGeneration:
		for i := range values {
			values[i] = parquet.Int32Value(int32(b.Generation))
		}
	case c.len > 1:
		for i := range values {
			j := i % c.len
			values[i] = c.value(words[i/c.len*stride+j]).Level(min(j, 1), 1, c.index)
		}
	case c.kind == kindInt:
		for i := range values {
			values[i] = parquet.Int64Value(int64(words[i*stride]))
		}
	case c.kind == kindDouble:
		for i := range values {
			values[i] = parquet.DoubleValue(math.Float64frombits(words[i*stride]))
		}
	default:
		for i := range values {
			values[i] = c.value(words[i*stride])
		}
	}
	return values
}

func (c *column) value(word uint64) parquet.Value {
	switch c.kind {
	case kindDouble:
		return parquet.DoubleValue(math.Float64frombits(word))
	case kindFloat:
		return parquet.FloatValue(float32(math.Float64frombits(word))) // exact: it was widened
	}
	return parquet.Int64Value(int64(word))
}

// Rows is the number of records written.
func (w *Writer) Rows() uint64 { return w.rows }

// Lost is the number of lost records noted.
func (w *Writer) Lost() uint64 { return w.lost }

// Close writes the rest and the footer. It does not close what it writes to.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	w.out.SetKeyValueMetadata("usp.lost", fmt.Sprint(w.lost))
	ranges, err := json.Marshal(append([]LostRange{}, w.ranges...))
	if err != nil {
		return err
	}
	w.out.SetKeyValueMetadata("usp.lost_ranges", string(ranges))
	if err := w.out.Close(); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	return nil
}
