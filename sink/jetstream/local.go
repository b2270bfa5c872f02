package jetstream

import (
	"errors"
	"io"
	"io/fs"
	"math"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// frames reads the frames of a directory of segments, as they are, from any ordinal on. It may read segments that are
// being written, and passes over what is damaged. It holds one file open.
type frames struct {
	fsys vfs.FS
	dir  string
	next uint64 // ordinal of the frame to read

	reader *segment.Reader // of the segment that next is in; nil: it is to be opened
	base   uint64
	bound  uint64 // where a later segment begins
}

// seek makes read go on with the frame of that ordinal.
func (f *frames) seek(ordinal uint64) {
	if f.next != ordinal {
		f.close()
		f.next = ordinal
	}
}

func (f *frames) close() {
	if f.reader != nil {
		_ = f.reader.Close() // only read
		f.reader = nil
	}
}

// read returns the next frame that can be read, which is valid until the next call. At the end, as it is during the call,
// the error is io.EOF: what was written, or begun, since an earlier call is looked for.
func (f *frames) read() (frame []byte, ordinal uint64, err error) {
	looked := false
	for {
		if f.reader == nil {
			if err := f.open(); err != nil {
				return nil, 0, err
			}
		}
		frame, ordinal, err := f.reader.Next()
		var corrupt *segment.CorruptError
		var torn *segment.TornError
		switch {
		case err == nil:
			f.next = ordinal + 1
			return frame, ordinal, nil
		case errors.As(err, &corrupt):
			continue
		case !errors.Is(err, io.EOF) && !errors.As(err, &torn):
			return nil, 0, err
		case f.bound == math.MaxUint64 && !looked:
			// The end may be the one of what was read ahead some time ago. Asked again, the reader looks at its file anew.
			looked = true
			if err := f.later(); err != nil {
				return nil, 0, err
			}
			continue
		case f.bound == math.MaxUint64:
			f.close() // the next call opens what is there then, which may be another file of this name
			return nil, 0, io.EOF
		}
		f.close()
		f.next = f.bound
	}
}

// later looks whether a segment has begun behind the one that is open, which then ends where that begins.
func (f *frames) later() error {
	infos, err := segment.List(f.fsys, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.Base > f.base && f.bound == math.MaxUint64 {
			f.bound = info.Base
			f.reader.Limit(f.bound)
		}
	}
	return nil
}

// open opens the segment that has the next frame, or the first one behind it.
func (f *frames) open() error {
	infos, err := segment.List(f.fsys, f.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(infos) == 0 {
		return io.EOF
	}
	if err != nil {
		return err
	}
	at := 0
	for i, info := range infos {
		if info.Base <= f.next {
			at = i
		}
	}
	for ; at < len(infos); at++ {
		r, err := segment.Open(f.fsys, infos[at].Path)
		var corrupt *segment.CorruptError
		if errors.As(err, &corrupt) || errors.Is(err, segment.ErrNotSegment) || errors.Is(err, fs.ErrNotExist) {
			continue // as good as not there
		}
		if err != nil {
			return err
		}
		f.reader, f.base, f.bound = r, infos[at].Base, math.MaxUint64
		if at+1 < len(infos) {
			f.bound = infos[at+1].Base
			r.Limit(f.bound)
		}
		r.SkipTo(f.next)
		return nil
	}
	return io.EOF
}
