package digestlog

import (
	"errors"
	"iter"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// A Follower is [Entries] for one who comes back to a log that grows: each entry is given once, and what was read stays
// read. The zero value is of no use; see [NewFollower]. It is not safe for concurrent use.
type Follower struct {
	w     walker
	files []extent
	at    int       // of files; the one that is read
	file  *openFile // nil: the next call begins anew, with the file that was read last
	next  uint64    // index of the first entry that was not given
}

// NewFollower follows the log in the directory dir. It opens nothing yet. A nil fsys is the real file system.
func NewFollower(fsys vfs.FS, dir string) *Follower {
	return &Follower{w: walker{fsys: orOS(fsys), dir: dir}}
}

// Entries returns the entries that no earlier call has given, up to the end of the log as it is now. Errors are those of the function
// [Entries]. Where the caller stops at one that is not benign, the next call comes to the same place and reports it again, if it is still so.
func (l *Follower) Entries() iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		anew := l.file == nil
		doubt, err := l.read(anew, yield)
		if !anew && (doubt || err != nil && !l.w.stopped) {
			// A file may have been cut, or given up for another, since it was opened. Then all is well with what is there now.
			_, err = l.read(true, yield)
		}
		if err != nil && !l.w.stopped {
			yield(Item{}, err)
		}
	}
}

// Close closes the file that is read. A later call of Entries opens it again.
func (l *Follower) Close() error {
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return f.r.Close()
}

// read gives what there is; anew: with a file that is opened now. doubt: something was wrong in one that was opened by an earlier call, and
// nobody was told.
func (l *Follower) read(anew bool, yield func(Item, error) bool) (doubt bool, err error) {
	tell := func(it Item, f *Fault) bool {
		switch {
		case f == nil:
			return yield(it, nil)
		case !anew && !f.Benign():
			doubt = true
			return false
		}
		return yield(it, f)
	}
	w := &l.w
	w.stopped = false
	w.fault = func(f *Fault) bool { return tell(Item{}, f) }
	w.item = func(it Item, f *Fault) bool {
		if it.Index < l.next {
			return true
		}
		more := tell(it, f)
		if f == nil || f.Benign() {
			l.next = it.Index + 1
		}
		return more
	}
	if err = l.walk(); err != nil || w.stopped {
		err = errors.Join(err, l.Close())
	}
	return doubt, err
}

// walk reads on from where the last call came to.
func (l *Follower) walk() error {
	w := &l.w
	if err := l.list(); err != nil || w.stopped {
		return err
	}
	for ; l.at < len(l.files); l.at++ {
		s := &l.files[l.at]
		if !s.ok {
			continue
		}
		if l.file == nil {
			f, err := w.open(s)
			if err != nil {
				return err
			}
			l.file = f
		}
		if err := l.drain(); err != nil || w.stopped || s.final {
			return err
		}
		if err := l.Close(); err != nil || !w.gap(s, s.limit, w.end) {
			return err
		}
	}
	return nil
}

// drain reads the file to its end.
func (l *Follower) drain() error {
	for w := &l.w; !w.stopped; {
		raw, end, err := w.entry(l.file)
		switch {
		case err != nil || end:
			return err
		case raw != nil:
			w.stopped = !w.take(l.file, raw, nil)
		}
	}
	return nil
}

// errGone is met where a file is removed or renamed while it is followed.
var errGone = errors.New("digestlog: the file that was being read is not there any more")

// list looks which files there are, and begins with one if none is read. To ask for names only is all there is to do while no file is added.
func (l *Follower) list() error {
	w := &l.w
	if l.file != nil {
		infos, err := segment.List(w.fsys, w.dir)
		if err != nil {
			return err
		}
		if n := len(infos); n > 0 && infos[n-1].Base == l.file.base {
			return nil
		}
	}
	files, err := w.headers()
	if err != nil || w.stopped {
		return err
	}
	l.files = files
	if l.file == nil {
		w.first, w.next = w.base, 0 // what was wrong with the file that was read is wrong still
		l.at = w.skip(files)
		return nil
	}
	for i := range files {
		if s := &files[i]; s.ok && s.path == l.file.path {
			l.at, l.file.extent = i, s
			return nil
		}
	}
	return errGone
}
