package segment

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"

	"github.com/usp-project/usp/internal/vfs"
)

// Frame is one frame of a stream.
type Frame struct {
	Ordinal uint64
	Data    []byte // valid until the next step of the iteration
	File    string // path of the segment
	Offset  int64  // of Data's length field in File
}

// Frames iterates over the stream that the segments in dir hold together. Frames that a poisoned
// segment and its successor both hold come once. *CorruptError and *TornError come in their place and
// the iteration goes on; frames missing between two segments are a *CorruptError at the end of the
// first. A segment that cannot be opened is reported and passed over. An error of listing dir ends it.
func Frames(fsys vfs.FS, dir string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		infos, err := List(fsys, dir)
		if err != nil {
			yield(Frame{}, err)
			return
		}
		for i, info := range infos {
			limit := uint64(math.MaxUint64)
			if i+1 < len(infos) {
				limit = infos[i+1].Base
			}
			if !segmentFrames(fsys, info, limit, yield) {
				return
			}
		}
	}
}

// segmentFrames yields one segment's frames below limit; false = the caller wants no more.
func segmentFrames(fsys vfs.FS, info Info, limit uint64, yield func(Frame, error) bool) (more bool) {
	r, err := Open(fsys, info.Path)
	if err != nil {
		return yield(Frame{}, err)
	}
	defer func() {
		if err := r.Close(); err != nil && more {
			more = yield(Frame{}, err)
		}
	}()
	if base := r.header.Base; base != info.Base {
		return yield(Frame{}, r.corrupt(24, 32, fmt.Errorf("header says base %d, the name %d", base, info.Base)))
	}
	r.Limit(limit)
	for {
		data, ordinal, err := r.Next()
		var corrupt *CorruptError
		switch {
		case err == nil:
			if !yield(Frame{Ordinal: ordinal, Data: data, File: info.Path, Offset: r.Position()}, nil) {
				return false
			}
			continue
		case errors.As(err, &corrupt):
			if !yield(Frame{}, err) {
				return false
			}
			continue
		case err == io.EOF, r.next >= limit: // a torn tail of what the next segment holds again is no loss
		default:
			if !yield(Frame{}, err) {
				return false
			}
		}
		break
	}
	if limit != math.MaxUint64 && r.next < limit {
		return yield(Frame{}, r.corrupt(r.good, r.good, fmt.Errorf("frames %d to %d are missing", r.next, limit-1)))
	}
	return true
}
