package digestlog

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/usp-project/usp/internal/segment"
)

// Class is the kind of a [Fault].
type Class string

// The classes. Those of the second group do not make a log wrong: they are what a crash, a failed disk or a newer writer leaves behind.
const (
	ClassNotOurs  Class = "not-ours"  // a file or a head that belongs to something else, or to another run
	ClassTooNew   Class = "too-new"   // written by a newer version
	ClassCorrupt  Class = "corrupt"   // bytes that were promised are damaged, at File and Offset
	ClassMissing  Class = "missing"   // entries [From, To) are not there
	ClassMismatch Class = "mismatch"  // the entries are there and the root differs from the signed one
	ClassHead     Class = "head"      // the signed head is malformed or forged
	ClassWrongKey Class = "wrong-key" // the head is signed with a key that was not given

	ClassTorn    Class = "torn-tail" // the last file ends in bytes that were never acknowledged, at File and Offset
	ClassVoid    Class = "void"      // the end of a file that was given up after a write error; its entries are in the next file
	ClassNoHead  Class = "no-head"   // nothing was signed yet
	ClassUnknown Class = "unknown"   // an entry of a newer version or kind; it counts as a leaf
)

// A Fault is one thing found wrong in a log, and where.
type Fault struct {
	Class    Class
	File     string // base name, or "" if it is not about one file
	Offset   int64  // bytes from the file's start; 0 if it is not about one place
	From, To uint64 // the entries it is about; equal if it is not about entries
	Err      error
}

// Error says class, file, offset, entries and cause.
func (f *Fault) Error() string {
	s := "digestlog: " + string(f.Class)
	if f.File != "" {
		s += fmt.Sprintf(": %s: offset %d", f.File, f.Offset)
	}
	switch {
	case f.To == f.From+1:
		s += fmt.Sprintf(": entry %d", f.From)
	case f.To != f.From:
		s += fmt.Sprintf(": entries [%d, %d)", f.From, f.To)
	}
	return s + ": " + f.Err.Error()
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// Benign reports whether a log with this fault can still be whole.
func (f *Fault) Benign() bool {
	switch f.Class {
	case ClassTorn, ClassVoid, ClassNoHead, ClassUnknown:
		return true
	}
	return false
}

var (
	errGap       = errors.New("entries are missing before this place; restore the file from a copy")
	errOverlap   = errors.New("the next file begins before this one ends, and does not say why")
	errTreeState = errors.New("the tree in the header is not that of the entries before it")
	errOutline   = errors.New("the outline in the file is not that of its entries")
	errCut       = errors.New("the file has no end although it was sealed: it was cut off")
)

// readFault puts an error of a segment reader into its class. An error of the file system (not of the bytes) stays what it is.
func readFault(path string, err error) error {
	if err == nil {
		return nil
	}
	f := &Fault{File: filepath.Base(path), Err: err}
	var corrupt *segment.CorruptError
	var torn *segment.TornError
	switch {
	case errors.Is(err, segment.ErrNotSegment):
		f.Class = ClassNotOurs
	case errors.Is(err, segment.ErrVersion):
		f.Class = ClassTooNew
	case errors.As(err, &corrupt):
		f.Class, f.Offset = ClassCorrupt, corrupt.Offset
	case errors.As(err, &torn):
		f.Class, f.Offset = ClassTorn, torn.Offset
	default:
		return fmt.Errorf("digestlog: read %s: %w", filepath.Base(path), err)
	}
	return f
}
