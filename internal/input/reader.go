package input

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// errTooLong ends a record that does not end.
var errTooLong = errors.New("record too long")

// Reader yields the observations of one input in order. It is for one
// goroutine. After an error it yields that error for ever.
type Reader struct {
	name string
	opts Options

	src     *source
	csv     *csv.Reader
	err     error // sticky
	names   []string
	time    int // index of the time column
	value   int
	arrival int // or -1

	row      uint64
	lastTime int64
	lastLine int // on which the last row started
	breaks   int // line breaks up to the end of the last record
	times    timeForm
	arrivals timeForm
	sum      hash.Hash
	hashed   int64
}

// NewReader returns a Reader of r. The name stands in errors: a path, "-" or
// "example:NAME". Nothing is read before the first call of Next.
func NewReader(r io.Reader, name string, o Options) *Reader {
	if o.TimeColumn == "" {
		o.TimeColumn = DefaultTimeColumn
	}
	if o.ValueColumn == "" {
		o.ValueColumn = DefaultValueColumn
	}
	if name == "-" {
		name = "standard input"
	}
	src := &source{r: bufio.NewReader(r)}
	c := csv.NewReader(src)
	c.FieldsPerRecord = -1 // counted here, for a message that says what to do
	c.ReuseRecord = true
	return &Reader{name: name, opts: o, src: src, csv: c, sum: sha256.New()}
}

// Columns returns the header as read; nil before the first call of Next.
func (r *Reader) Columns() []string { return slices.Clone(r.names) }

// Consumed returns what was read so far: up to the end of the row that Next
// returned last. Before that row was returned it identifies the empty prefix.
func (r *Reader) Consumed() Prefix {
	p := Prefix{Rows: r.row, Bytes: r.hashed}
	r.sum.Sum(p.SHA256[:0])
	return p
}

// Next returns the next observation as soon as its line has arrived, or io.EOF
// behind the last one. An input without any row is a *DataError.
func (r *Reader) Next() (Observation, error) {
	if r.err != nil {
		return Observation{}, r.err
	}
	obs, err := r.next()
	if err != nil {
		r.err = err
		return Observation{}, err
	}
	return obs, nil
}

// Resume reads the rows of p again, without returning them, and checks that
// they are the same bytes. A *DataError says that they are not.
func (r *Reader) Resume(p Prefix) error {
	for r.row < p.Rows {
		_, err := r.Next()
		if err == io.EOF {
			return r.fault(0, fmt.Sprintf("has %d rows, but the run had already read %d", r.row, p.Rows),
				"resume with the input that the run was started with")
		}
		if err != nil {
			return err
		}
	}
	if got := r.Consumed(); got != p {
		r.err = r.fault(0, fmt.Sprintf("its first %d rows are not the ones the run had read (sha256 %.12s… of %d bytes, want %.12s… of %d)",
			p.Rows, got.SHA256, got.Bytes, p.SHA256, p.Bytes), "resume with the input that the run was started with")
		return r.err
	}
	return nil
}

func (r *Reader) next() (Observation, error) {
	if r.names == nil {
		if err := r.header(); err != nil {
			return Observation{}, err
		}
	}
	rec, err := r.csv.Read()
	if err != nil {
		return Observation{}, r.readError(err)
	}
	line, _ := r.csv.FieldPos(0)
	if len(rec) != len(r.names) {
		return Observation{}, r.fault(line, fmt.Sprintf("the row has %s, the header has %d", fields(len(rec)), len(r.names)),
			"give every row the columns of the header, and quote fields that hold commas")
	}
	at, err := r.timeField(rec[r.time], line)
	if err != nil {
		return Observation{}, err
	}
	x, err := r.valueField(rec[r.value], line)
	if err != nil {
		return Observation{}, err
	}
	arrival := int64(0)
	if r.arrival >= 0 {
		if arrival, err = r.arrivalField(rec[r.arrival], line); err != nil {
			return Observation{}, err
		}
	}
	if r.row > 0 && at <= r.lastTime {
		return Observation{}, r.order(at, line)
	}
	r.consume()
	r.row, r.lastTime, r.lastLine = r.row+1, at, line
	return Observation{Row: r.row, Line: line, Time: at, Value: x, Arrival: arrival}, nil
}

// consume adds everything up to the end of the record just read to the digest.
func (r *Reader) consume() {
	end := r.csv.InputOffset() + r.src.skipped
	n := int(end - r.hashed)
	r.sum.Write(r.src.pending[:n])
	if r.row == 0 {
		r.breaks = 0 // of the header, which is consumed only now
	}
	r.breaks += bytes.Count(r.src.pending[:n], []byte("\n"))
	r.src.pending = append(r.src.pending[:0], r.src.pending[n:]...)
	r.hashed = end
}

// header reads the first record and finds the columns in it.
func (r *Reader) header() error {
	if err := r.src.start(); err != nil {
		return r.readError(err)
	}
	if r.src.utf16 {
		return r.fault(1, "the file is UTF-16", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
	}
	rec, err := r.csv.Read()
	if err == io.EOF {
		return r.fault(0, "is empty", "give a header line and at least one row")
	}
	if err != nil {
		return r.readError(err)
	}
	line, _ := r.csv.FieldPos(0)
	names := slices.Clone(rec)
	for i, n := range names {
		if !utf8.ValidString(n) || strings.ContainsRune(n, 0) {
			return r.fault(line, "the header is not text", "give a CSV file in UTF-8")
		}
		names[i] = strings.TrimSpace(n)
	}
	if err := r.findColumns(names, line); err != nil {
		return err
	}
	r.names = names
	r.breaks = bytes.Count(r.src.pending[:r.csv.InputOffset()+r.src.skipped], []byte("\n"))
	return nil
}

func (r *Reader) findColumns(names []string, line int) (err error) {
	columns := []struct {
		what, name, flag string
		at               *int
	}{
		{"time", r.opts.TimeColumn, "--time-column", &r.time},
		{"value", r.opts.ValueColumn, "--value-column", &r.value},
		{"arrival", r.opts.ArrivalColumn, "--arrival-column", &r.arrival},
	}
	if r.opts.ArrivalColumn == "" {
		columns, r.arrival = columns[:2], -1
	}
	for i, c := range columns {
		for _, d := range columns[:i] {
			if c.name == d.name {
				return r.fault(0, fmt.Sprintf("the column %q cannot be both %s and %s", c.name, d.what, c.what),
					fmt.Sprintf("name two columns with %s and %s", d.flag, c.flag))
			}
		}
	}
	for _, c := range columns {
		if *c.at, err = r.column(names, line, c.name, c.flag); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) column(names []string, line int, want, flag string) (int, error) {
	at := slices.Index(names, want)
	if at < 0 {
		hint := "name the right one with " + flag
		if len(names) == 1 && strings.ContainsAny(names[0], ";\t") {
			hint = "separate the columns with commas"
		} else if looksLikeData(names) {
			hint = "put a header line before the first row"
		}
		return 0, r.fault(line, fmt.Sprintf("there is no column %q among %s", want, list(names)), hint)
	}
	if slices.Contains(names[at+1:], want) {
		return 0, r.fault(line, fmt.Sprintf("two columns are named %q", want), "rename one of them")
	}
	return at, nil
}

// readError turns an error of the CSV layer into one with a file and a line.
func (r *Reader) readError(err error) error {
	line := r.breaks + 1
	var pe *csv.ParseError
	if errors.As(err, &pe) {
		line = pe.StartLine
	}
	switch {
	case err == io.EOF && r.row == 0:
		return r.fault(1, "there is a header but no row", "add at least one row")
	case err == io.EOF:
		return io.EOF
	case errors.Is(err, errTooLong):
		return r.fault(line, fmt.Sprintf("the record is longer than %d bytes", MaxRecord), "check that a quoted field is closed and that the file is CSV")
	case errors.Is(err, csv.ErrQuote) && r.src.eof:
		return r.fault(line, "a quoted field is not closed or has text behind its closing quote", `end it with ", and write a quote inside it twice`)
	case errors.Is(err, csv.ErrQuote), errors.Is(err, csv.ErrBareQuote):
		return r.fault(line, "a quote stands where none may stand", `quote the whole field, and write a quote inside it twice`)
	}
	return fmt.Errorf("%s:%d: read: %w", r.name, line, err)
}

func (r *Reader) fault(line int, what, hint string) *DataError {
	return &DataError{File: r.name, Line: line, What: what, Hint: hint}
}

func fields(n int) string {
	if n == 1 {
		return "1 field"
	}
	return fmt.Sprintf("%d fields", n)
}

// source hands bytes to the CSV layer and keeps those that belong to rows not
// yet consumed, because that layer reads ahead.
type source struct {
	r       *bufio.Reader
	pending []byte
	skipped int64 // bytes before the first one the CSV layer sees: a byte order mark
	utf16   bool
	eof     bool
}

// start looks for a byte order mark.
func (s *source) start() error {
	head, err := s.r.Peek(3)
	if err != nil && err != io.EOF {
		return err
	}
	s.utf16 = bytes.HasPrefix(head, []byte{0xff, 0xfe}) || bytes.HasPrefix(head, []byte{0xfe, 0xff})
	if bytes.Equal(head, []byte("\xef\xbb\xbf")) {
		s.pending = append(s.pending, head...)
		s.skipped = int64(len(head))
		_, err = s.r.Discard(len(head))
		return err
	}
	return nil
}

// Read implements io.Reader. It passes on what has arrived and does not wait
// for more.
func (s *source) Read(p []byte) (int, error) {
	if len(s.pending) > MaxRecord+4096 { // the CSV layer reads ahead by its buffer of 4096 bytes
		return 0, errTooLong
	}
	n, err := s.r.Read(p)
	s.pending = append(s.pending, p[:n]...)
	s.eof = err == io.EOF
	return n, err
}
