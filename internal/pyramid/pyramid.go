// Package pyramid answers what a field of a run does in any range of steps, however long the run is: in a thousand columns
// with the least, the greatest, the mean and the last value in each.
//
// Beside each sealed telemetry segment there is a file with aggregates of its records: of every 256, of 16 times as many, and
// so on up to all of them. doc/format/pyramid.md has the bytes. A file is made whole from one segment and never changes, and
// the same segment gives the same bytes, so who makes it does not matter: a Sink while the run is recorded, or Build later.
// All of it can be made again from the telemetry, and what is missing or damaged is.
//
// A Query holds of a segment that has no file, such as the one that is being recorded, the aggregates in memory. Where a
// range ends within an aggregate, the records themselves are read, so that a column has exactly the records of its steps.
//
// What is added up: NaNs are counted and are no part of the least, the greatest or the mean. Infinities are, so that a mean
// is infinite then, or NaN with both. -0 is less than +0. Flags are words: their OR and their AND, and how many records have
// any bit set, so that no alarm is lost at any width. Integers are exact in the files, and float64 in a Column.
package pyramid

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// Name is that of the sink, of its cursor, and of the directory of the files among the sinks' cursors.
const Name = "pyramid"

// How many records an aggregate of the lowest level is of, and how many of a level make one of the next.
const (
	defaultLeaf = 256
	factor      = 16
)

const suffix = ".pyr"

var (
	// ErrNotPyramid is wrapped by the error for a file that does not begin as one of these files does.
	ErrNotPyramid = errors.New("not a pyramid file")
	// ErrVersion is wrapped by the error for an intact file of a later format.
	ErrVersion = errors.New("pyramid format is too new for this program")
	// ErrNoField is wrapped by the error for a field that the run does not store.
	ErrNoField = errors.New("the run stores no such field")
	// ErrUnbuilt is wrapped by the error of a Query for which too many segments have no file yet; see Build.
	ErrUnbuilt = errors.New("the aggregates of the run are not built")
)

// CorruptError is a file that is not what was written.
type CorruptError struct {
	File   string
	Offset int64
	Err    error
}

// Error names the file, the place and the cause.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("pyramid %s: corrupt at offset %d: %v", e.File, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// directory is where the files of a run are.
func directory(dir rundir.Dir) string { return filepath.Join(dir.Sinks(), Name) }

// fileOf is the file that belongs to a telemetry segment.
func fileOf(dir rundir.Dir, base uint64) string {
	name := strings.TrimSuffix(segment.FileName(base), filepath.Ext(segment.FileName(base)))
	return filepath.Join(directory(dir), name+suffix)
}

// kind says how words of a field are added up.
type kind uint8

const (
	float kind = iota
	signed
	unsigned
	flags
)

func kindOf(f record.Field) kind {
	switch {
	case f.Type == record.Float64 || f.Type == record.Float32:
		return float
	case f.Class == record.Flag:
		return flags
	case f.Type == record.Int64:
		return signed
	}
	return unsigned
}

// kindsOf are the kinds of the stored elements of a schema, in the order of their words.
func kindsOf(s *record.Schema) []kind {
	var kinds []kind
	for i := range s.Len() {
		if f := s.Field(i); f.Class != record.Digest {
			for range f.Len {
				kinds = append(kinds, kindOf(f))
			}
		}
	}
	return kinds
}

// headWords is how many words of a record come before its elements.
const headWords = 2

// stretch is what an aggregate is of: records that follow each other, and what was lost in front of them or among them. At
// the end of a segment what was lost behind the last record belongs to that.
type stretch struct {
	first, last uint64 // steps
	time        uint64 // of the first record
	ordinal     uint64 // of the first frame, or of one before it where frames cannot be read
	lost        uint64 // records
	count       uint32 // records
	unread      uint32 // frames that are damaged
}

func (s *stretch) add(t *stretch) {
	if s.count == 0 {
		lost, unread, ordinal := s.lost, s.unread, s.ordinal
		*s = *t
		s.lost, s.unread = t.lost+lost, t.unread+unread
		if lost > 0 || unread > 0 {
			s.ordinal = ordinal
		}
		return
	}
	if t.count > 0 {
		s.last = t.last
	}
	s.lost += t.lost
	s.count += t.count
	s.unread += t.unread
}

// agg is an aggregate of one element. min, max and last are words of its kind; min and max of flags are AND and OR. sum is of
// the values that are numbers, or the number of records in which a flag is set.
type agg struct {
	min, max, last uint64
	sum            float64
	nans           uint32
}

// none is the aggregate of nothing.
func (k kind) none() agg {
	switch k {
	case float:
		return agg{min: math.Float64bits(math.Inf(1)), max: math.Float64bits(math.Inf(-1))}
	case signed:
		least := int64(math.MinInt64)
		return agg{min: math.MaxInt64, max: uint64(least)}
	}
	return agg{min: math.MaxUint64}
}

// take adds the word of one record.
func (k kind) take(a *agg, w uint64) {
	a.last = w
	switch k {
	case float:
		x := math.Float64frombits(w)
		if x != x {
			a.nans++
			return
		}
		a.min = math.Float64bits(min(x, math.Float64frombits(a.min)))
		a.max = math.Float64bits(max(x, math.Float64frombits(a.max)))
		a.sum += x
	case signed:
		a.min = uint64(min(int64(w), int64(a.min)))
		a.max = uint64(max(int64(w), int64(a.max)))
		a.sum += float64(int64(w))
	case unsigned:
		a.min, a.max = min(w, a.min), max(w, a.max)
		a.sum += float64(w)
	case flags:
		a.min &= w
		a.max |= w
		if w != 0 {
			a.sum++
		}
	}
}

// add adds the aggregate of what follows, which has records.
func (k kind) add(a, b *agg) {
	a.last = b.last
	a.sum += b.sum
	a.nans += b.nans
	switch k {
	case float:
		a.min = math.Float64bits(min(math.Float64frombits(b.min), math.Float64frombits(a.min)))
		a.max = math.Float64bits(max(math.Float64frombits(b.max), math.Float64frombits(a.max)))
	case signed:
		a.min = uint64(min(int64(b.min), int64(a.min)))
		a.max = uint64(max(int64(b.max), int64(a.max)))
	case unsigned:
		a.min, a.max = min(b.min, a.min), max(b.max, a.max)
	case flags:
		a.min &= b.min
		a.max |= b.max
	}
}

// number is a word as a number.
func (k kind) number(w uint64) float64 {
	switch k {
	case float:
		return math.Float64frombits(w)
	case signed:
		return float64(int64(w))
	}
	return float64(w)
}
