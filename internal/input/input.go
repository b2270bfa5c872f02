// Package input reads the series that usp predicts: CSV with a header line, a
// time column, a value column and, if one is named, a column that says when each
// row arrived. A Reader yields one observation as soon as
// its line is there and knows, at every row boundary, how many bytes it has
// consumed and their SHA-256, so that a resumed run can prove that it continues
// on the same input. Scan checks a whole file before anything is created.
//
// Whatever is wrong with the data is a *DataError with one line that names the
// file, the line and what to do; every other error is the reading itself.
package input

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// The columns read when Options names none.
const (
	DefaultTimeColumn  = "time"
	DefaultValueColumn = "value"
)

// MaxRecord is the length in bytes of the longest record accepted, quoted line
// breaks included. It bounds the memory that a hostile input can take.
const MaxRecord = 1 << 20

// Options says how to read a series. The zero value reads the columns "time"
// and "value".
type Options struct {
	TimeColumn  string // header of the column that holds times
	ValueColumn string // header of the column that holds values

	// ArrivalColumn is the header of the column that says when each row arrived,
	// written as times are; empty: there is none. A field may be empty.
	ArrivalColumn string
}

// Observation is one row of the input.
type Observation struct {
	Row   uint64  // number of the data row, from 1; the header does not count
	Line  int     // line in the file on which the row starts, from 1
	Time  int64   // nanoseconds since 1970-01-01T00:00:00Z, strictly increasing
	Value float64 // finite

	// Arrival is when the row arrived, nanoseconds since 1970, or 0 where the
	// input does not say. An arrival at the very start of 1970 is a nanosecond
	// later. It can lie before Time: clocks differ.
	Arrival int64
}

// Prefix identifies what a Reader has consumed: everything up to and including
// the line break of the last row returned.
type Prefix struct {
	Rows   uint64 `json:"rows"`   // data rows
	Bytes  int64  `json:"bytes"`  // from the start of the file, a byte order mark included
	SHA256 Sum    `json:"sha256"` // of those bytes
}

// Sum is a SHA-256 digest, in text as 64 lower-case hexadecimal digits.
type Sum [sha256.Size]byte

// String returns the digest in hexadecimal.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText implements encoding.TextMarshaler.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sum) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(s) {
		return fmt.Errorf("sha256 %.80q: want %d hexadecimal digits", text, 2*len(s))
	}
	copy(s[:], b)
	return nil
}

// DataError says what is wrong with the content of an input. Its text is one
// line, "file:line: what; what to do".
type DataError struct {
	File string // as the user named it
	Line int    // from 1; 0 when the fault has no line
	What string // the fault
	Hint string // what to do about it
}

// Error implements error.
func (e *DataError) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Hint == "" {
		return where + ": " + e.What
	}
	return where + ": " + e.What + "; " + e.Hint
}

// Summary is what Scan found in a file without fault.
type Summary struct {
	Prefix               // of the whole file, up to its last row
	First, Last int64    // times of the first and the last row, ns
	Columns     []string // the header
	Trailing    int64    // bytes behind the last row: blank lines
}

// Scan reads the whole of a regular file and returns what it holds, or the
// first fault. A *DataError is a fault of the content, or of a name that leads
// to no regular file; anything else is an error of the file system.
func Scan(name string, o Options) (Summary, error) {
	info, err := os.Stat(name)
	if err != nil {
		return Summary{}, fmt.Errorf("input %s: %w", name, reason(err))
	}
	if err := checkRegular(name, info); err != nil {
		return Summary{}, err
	}
	f, err := os.Open(name)
	if err != nil {
		return Summary{}, fmt.Errorf("input %s: %w", name, reason(err))
	}
	defer f.Close()
	return scan(f, name, info.Size(), o)
}

// ScanBytes is Scan for an input in memory, such as a shipped example.
func ScanBytes(name string, data []byte, o Options) (Summary, error) {
	return scan(bytes.NewReader(data), name, int64(len(data)), o)
}

func scan(r io.Reader, name string, size int64, o Options) (Summary, error) {
	in := NewReader(r, name, o)
	var s Summary
	for {
		obs, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Summary{}, err
		}
		if obs.Row == 1 {
			s.First = obs.Time
		}
		s.Last = obs.Time
	}
	s.Prefix, s.Columns = in.Consumed(), in.Columns()
	s.Trailing = max(0, size-s.Bytes)
	return s, nil
}

func checkRegular(name string, info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsDir():
		return &DataError{File: name, What: "is a directory", Hint: "name a CSV file"}
	case !mode.IsRegular():
		return &DataError{File: name, What: "is not a regular file", Hint: "read it as a stream: usp run - < FILE"}
	}
	return nil
}

// reason strips the operation and the path, which the caller says better.
func reason(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

// list writes column names for people.
func list(names []string) string {
	const most = 12
	var b strings.Builder
	for i, n := range names {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%.40q", n)
	}
	return b.String()
}
