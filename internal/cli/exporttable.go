package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/columnar"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/tensorboard"
)

// tableReport is what usp export prints about records.
type tableReport struct {
	RunID   string `json:"run_id"`
	To      string `json:"to"`
	Path    string `json:"path"` // - for standard output
	Records uint64 `json:"records"`
	Lost    uint64 `json:"lost"`              // records of the run that were not stored, wherever their steps were
	Damaged int    `json:"damaged,omitempty"` // places in the telemetry that cannot be read
	Bytes   int64  `json:"bytes"`
}

// table writes records in one format.
type table interface {
	Write(b *sink.Batch) error
	Close() error
}

// exporting is an export of records as it goes on.
type exporting struct {
	app    *app
	flags  exportFlags
	line   *audit.Timeline
	schema *record.Schema
	report tableReport
}

func (a *app) exportTable(ctx context.Context, dir rundir.Dir, f exportFlags) error {
	line, err := audit.Open(a.fs, dir.Path())
	if err != nil {
		return err
	}
	schema, err := oneSchema(line)
	if err != nil {
		return err
	}
	columns, err := columnar.Columns(schema, f.fields)
	if err != nil {
		return usageError(fmt.Errorf("--fields: %w; usp show %s lists them", err, pathArg(dir.Path())))
	}
	x := &exporting{app: a, flags: f, line: line, schema: schema}
	x.report = tableReport{RunID: line.RunID, To: f.to, Path: x.path()}
	if err := x.run(ctx, columns); err != nil {
		return err
	}
	return x.print()
}

// oneSchema is the schema of all generations of a run.
func oneSchema(line *audit.Timeline) (*record.Schema, error) {
	var s *record.Schema
	for _, m := range line.Manifests {
		next := line.Schema(m.Generation)
		if s != nil && next.Sum() != s.Sum() {
			return nil, fmt.Errorf("generation %d of run %s has other fields than those before: one table cannot hold both; the parquet sink writes them apart", m.Generation, line.RunID)
		}
		s = next
	}
	return s, nil
}

// path is where the export goes.
func (x *exporting) path() string {
	switch {
	case x.flags.out != "":
		return x.flags.out
	case x.flags.to == toTensorBoard:
		return x.line.RunID + ".tensorboard"
	}
	return x.line.RunID + "." + x.flags.to
}

func (x *exporting) run(ctx context.Context, columns []columnar.Column) error {
	if x.flags.to == toTensorBoard {
		return x.tensorBoard(ctx, columns)
	}
	if x.report.Path == "-" {
		counted := &countingWriter{w: x.app.out}
		err := x.write(ctx, counted, columns)
		x.report.Bytes = counted.n
		return err
	}
	if _, err := x.app.fs.Stat(x.report.Path); err == nil {
		return fmt.Errorf("%s is there already: remove it, or name another file with -o", x.report.Path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := vfs.Begin(x.app.fs, x.report.Path, 0o644)
	if err != nil {
		return err
	}
	counted := &countingWriter{w: file}
	if err := x.write(ctx, counted, columns); err != nil {
		return errors.Join(err, file.Discard())
	}
	x.report.Bytes = counted.n
	if err := file.Place(); err != nil {
		return errors.Join(err, file.Discard())
	}
	return nil
}

// write writes all records.
func (x *exporting) write(ctx context.Context, w io.Writer, columns []columnar.Column) error {
	buf := bufio.NewWriterSize(w, 1<<18)
	var out table
	switch x.flags.to {
	case toParquet:
		out = columnar.NewWriter(buf, x.schema, columns, map[string]string{"usp.run": x.line.RunID, "usp.schema": string(x.schema.Text())})
	case toCSV:
		out = newCSV(buf, x.schema, columns)
	default:
		out = newLines(buf, x.schema, columns)
	}
	for b, err := range x.batches(ctx) {
		if err == nil {
			err = out.Write(b)
		}
		if err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return buf.Flush()
}

// batches are those that are wanted, counted.
func (x *exporting) batches(ctx context.Context) func(yield func(*sink.Batch, error) bool) {
	progress := x.app.progress(0)
	s := sink.Selection{
		From: x.flags.from, Until: x.flags.until, AllGenerations: x.flags.all,
		Damaged: func(err error) {
			x.report.Damaged++
			fmt.Fprintf(x.app.err, "usp: warning: left out, since it cannot be read: %v\n", err)
		},
		Passed: func(frames, total uint64) { progress.amount("exported", frames, total) },
	}
	return func(yield func(*sink.Batch, error) bool) {
		defer progress.end()
		for b, err := range sink.Read(x.app.fs, x.line, s) {
			if err == nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if err == nil {
				x.report.Records += uint64(b.Records())
				for _, l := range b.Losses {
					x.report.Lost += l.To - l.From
				}
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

func (x *exporting) tensorBoard(ctx context.Context, columns []columnar.Column) error {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = x.schema.Field(c.Index).Name
	}
	o := tensorboard.Options{Dir: x.report.Path, Fields: names, FS: x.app.fs}
	done, err := tensorboard.Export(ctx, o, sink.Run{ID: x.line.RunID, Schema: x.schema}, x.batches(ctx))
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: remove it, or name another directory with -o", done.File)
	}
	x.report.Path, x.report.Bytes = filepath.Clean(done.File), done.Bytes
	return err
}

func (x *exporting) print() error {
	a, r := x.app, &x.report
	code := exitOK
	if r.Damaged > 0 {
		code = exitPartial
	}
	where := a.out
	if r.Path == "-" {
		where = a.err // standard output is the table
	}
	if a.json && r.Path != "-" {
		if err := a.printJSON(r, true); err != nil {
			return err
		}
	} else if !a.quiet || r.Path != "-" {
		fmt.Fprintf(where, "run %s: %s exported to %s, %s; %d were lost\n", r.RunID, count(r.Records, "record"), display(r.Path), bytesText(r.Bytes), r.Lost)
	}
	if code != exitOK {
		return withCode(code, fmt.Errorf("%s of the telemetry could not be read: usp verify %s", count(uint64(r.Damaged), "place"), pathArg(x.line.Dir.Path())))
	}
	return nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// textTable writes records as text, in the order of the columns. A float has the shortest digits that give its bits back.
type textTable struct {
	w       *bufio.Writer
	schema  *record.Schema
	columns []columnar.Column
	line    []byte
}

// csvTable is comma-separated values with a header; a vector has a column for each element, name_0, name_1 and so on, with
// an underscore more where a field has that name. Names and numbers need no quotes.
type csvTable struct{ textTable }

func newCSV(w *bufio.Writer, s *record.Schema, columns []columnar.Column) *csvTable {
	c := &csvTable{textTable{w: w, schema: s, columns: columns}}
	c.line = append(c.line, "step,time,generation,seq"...)
	for _, col := range columns {
		n := s.Field(col.Index).Len
		for j := range n {
			c.line = append(append(c.line, ','), col.Name...)
			if n > 1 {
				c.line = append(c.line, elementSuffix(s, col.Name, j)...)
			}
		}
	}
	c.line = append(c.line, '\n')
	return c
}

// elementSuffix is what the column of a vector's element j has behind the vector's name, such that no field has the whole.
func elementSuffix(s *record.Schema, name string, j int) string {
	suffix := "_" + strconv.Itoa(j)
	for taken := true; taken; {
		if _, taken = s.Index(name + suffix); taken {
			suffix += "_"
		}
	}
	return suffix
}

func (c *csvTable) Write(b *sink.Batch) error {
	for i := range b.Seq {
		row := b.Row(i)
		c.line = strconv.AppendUint(c.line, row[0], 10)
		c.line = strconv.AppendInt(append(c.line, ','), int64(row[1]), 10)
		c.line = strconv.AppendUint(append(c.line, ','), uint64(b.Generation), 10)
		c.line = strconv.AppendUint(append(c.line, ','), b.Seq[i], 10)
		for _, col := range c.columns {
			f := c.schema.Field(col.Index)
			for _, word := range row[c.schema.Offset(col.Index):][:f.Len] {
				c.line = appendNumber(append(c.line, ','), f.Type, word, "")
			}
		}
		c.line = append(c.line, '\n')
		if err := c.flush(); err != nil {
			return err
		}
	}
	return nil
}

// flush hands the line on.
func (c *textTable) flush() error {
	_, err := c.w.Write(c.line)
	c.line = c.line[:0]
	return err
}

// Close writes the header of a table without records.
func (c *textTable) Close() error { return c.flush() }

// lineTable is JSON, an object on each line. Numbers that JSON does not have are the strings "nan", "inf" and "-inf".
type lineTable struct{ textTable }

func newLines(w *bufio.Writer, s *record.Schema, columns []columnar.Column) *lineTable {
	return &lineTable{textTable{w: w, schema: s, columns: columns}}
}

func (c *lineTable) Write(b *sink.Batch) error {
	for i := range b.Seq {
		row := b.Row(i)
		c.line = fmt.Appendf(c.line, `{"step":%d,"time":%d,"generation":%d,"seq":%d`, row[0], int64(row[1]), b.Generation, b.Seq[i])
		for _, col := range c.columns {
			f := c.schema.Field(col.Index)
			c.line = append(append(append(c.line, `,"`...), col.Name...), `":`...)
			if f.Len > 1 {
				c.line = append(c.line, '[')
			}
			for j, word := range row[c.schema.Offset(col.Index):][:f.Len] {
				if j > 0 {
					c.line = append(c.line, ',')
				}
				c.line = appendNumber(c.line, f.Type, word, `"`)
			}
			if f.Len > 1 {
				c.line = append(c.line, ']')
			}
		}
		c.line = append(c.line, "}\n"...)
		if err := c.flush(); err != nil {
			return err
		}
	}
	return nil
}

// appendNumber appends a word as a number of its type. What is no number in JSON stands between quotes.
func appendNumber(dst []byte, t record.Type, word uint64, quote string) []byte {
	switch t {
	case record.Int64:
		return strconv.AppendInt(dst, int64(word), 10)
	case record.Uint64:
		return strconv.AppendUint(dst, word, 10)
	}
	x := math.Float64frombits(word)
	special := ""
	switch {
	case math.IsNaN(x):
		special = "nan"
	case math.IsInf(x, 1):
		special = "inf"
	case math.IsInf(x, -1):
		special = "-inf"
	case quote != "" && x == 0 && math.Signbit(x):
		return append(dst, "-0.0"...) // to many a reader of JSON, -0 is an integer, which has no sign
	case t == record.Float32:
		return strconv.AppendFloat(dst, x, 'g', -1, 32)
	default:
		return strconv.AppendFloat(dst, x, 'g', -1, 64)
	}
	return append(append(append(dst, quote...), special...), quote...)
}
