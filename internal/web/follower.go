package web

import (
	"errors"
	"io"
	"io/fs"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// follower reads the frames of a directory of segments, and later those that were added since. It holds the newest
// segment open.
type follower struct {
	fsys vfs.FS
	dir  string
	pass func(path string) bool // segments that need not be read; may be nil

	r     *segment.Reader
	from  uint64 // segments that begin before are done
	next  uint64 // ordinal of the next frame; the first of a segment may be the last of the one before, again
	limit uint64 // where the segment behind the one being read begins; 0: there was none
}

func (f *follower) close() {
	if f.r != nil {
		_ = f.r.Close() // it was read only
		f.r = nil
	}
}

// frame is the next one, valid until the next call, or io.EOF where the stream ends for now.
func (f *follower) frame() ([]byte, error) {
	for {
		if f.r == nil {
			if err := f.open(); err != nil {
				return nil, err
			}
		}
		b, ordinal, err := f.r.Next()
		var (
			corrupt *segment.CorruptError
			torn    *segment.TornError
		)
		switch {
		case err == nil:
			f.next = ordinal + 1
			return b, nil
		case errors.As(err, &corrupt):
		case err != io.EOF && !errors.As(err, &torn):
			return nil, err
		case f.limit != 0: // read to its end after its successor was there
			f.close()
		default:
			infos, err := f.list()
			if err != nil {
				return nil, err
			}
			if len(infos) == 0 {
				return nil, io.EOF
			}
			f.limit = infos[0].Base
			f.r.Limit(f.limit)
		}
	}
}

// open opens the next segment that is not to be passed.
func (f *follower) open() error {
	infos, err := f.list()
	if err != nil {
		return err
	}
	for i, info := range infos {
		last := i == len(infos)-1
		if f.pass != nil && f.pass(info.Path) {
			f.from = info.Base + 1
			continue
		}
		r, err := segment.Open(f.fsys, info.Path)
		if err != nil {
			var corrupt *segment.CorruptError
			ours := errors.As(err, &corrupt) || errors.Is(err, segment.ErrNotSegment) || errors.Is(err, fs.ErrNotExist)
			if ours && last {
				return io.EOF // it may be about to be made, or was empty and is gone
			}
			if ours {
				continue
			}
			return err
		}
		f.r, f.from, f.limit = r, info.Base+1, 0
		r.SkipTo(f.next)
		return nil
	}
	return io.EOF
}

// list are the segments that were not begun.
func (f *follower) list() ([]segment.Info, error) {
	infos, err := segment.List(f.fsys, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for len(infos) > 0 && infos[0].Base < f.from {
		infos = infos[1:]
	}
	return infos, err
}
