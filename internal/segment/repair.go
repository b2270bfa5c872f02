package segment

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"

	"github.com/usp-project/usp/internal/vfs"
)

const (
	tornSuffix = ".torn"
	tornTries  = 100
)

// Repair is [RepairIndexed] without an index.
func Repair(fsys vfs.FS, path string) (Sealed, error) { return RepairIndexed(fsys, path, nil) }

// RepairIndexed seals the segment that a crash or a poisoned Writer has left, and returns what it then is. No
// Writer may have it open. A torn tail is copied to PATH.torn (PATH.torn.1, … if there is one already)
// and cut off, so what was never acknowledged cannot come back later. Frames that the next segment of
// the directory holds again are cut off with it. Damage in the middle stays as it is, for the Reader to
// report. A segment that is sealed already is only hashed. One that never held a frame is removed, and
// Count and Size are 0. A crash during Repair is repaired by Repair. What index returns makes the index of
// the file that is sealed; nil, for it or from it, means none. A damaged file and one of version 1 get none.
func RepairIndexed(fsys vfs.FS, path string, index func(Header) Indexer) (Sealed, error) {
	s, err := repair(fsys, path, index)
	if err != nil {
		return Sealed{}, fmt.Errorf("repair segment %s: %w", path, err)
	}
	return s, nil
}

func repair(fsys vfs.FS, path string, index func(Header) Indexer) (s Sealed, err error) {
	limit, err := nextBase(fsys, path)
	if err != nil {
		return s, err
	}
	r, err := Open(fsys, path)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_ = r.f.Datasync() // of what its writer did not come to sync; whatever is not on the disk then will not be found there
	// After a failed sync the cache may show what the disk does not have, up to the size of the file.
	if err := errors.Join(vfs.DropCache(r.f), r.refresh()); err != nil {
		return s, err
	}
	var idx Indexer
	if index != nil && r.header.Version > 1 {
		idx = index(r.header)
	}
	found, err := r.scan(limit, idx)
	if err != nil {
		return s, err
	}
	s = Sealed{Name: filepath.Base(path), Base: r.header.Base, Count: found.next - r.header.Base, Damaged: found.damaged}
	if r.sealed {
		s.Size = r.size
		// The one who sealed it may not have lived to sync it.
		if err := errors.Join(protect(fsys, path), r.f.Sync()); err != nil {
			return s, err
		}
	} else {
		s.Torn = found.last - found.cut
		if s.Torn > 0 {
			if err := r.setAside(fsys, found.cut, found.last); err != nil {
				return s, err
			}
		}
		if s.Count == 0 && s.Damaged == 0 {
			return s, remove(fsys, path)
		}
		if s.Size, err = r.cutAndSeal(fsys, found); err != nil {
			return s, err
		}
	}
	s.SHA256, err = hashFile(r.f, s.Size)
	return s, err
}

// found is what a scan of an unsealed segment says about its end.
type found struct {
	cut     int64 // where the footer belongs
	last    int64 // one past the last byte to be set aside; cut if there is none
	next    uint64
	damaged int
	index   []byte // for the footer, or none
}

// scan reads the whole file, or up to the first batch at or above limit, and has idx, unless it is nil, index it.
func (r *Reader) scan(limit uint64, idx Indexer) (x found, err error) {
	for {
		start := r.off
		err := r.advance()
		var corrupt *CorruptError
		var torn *TornError
		switch {
		case errors.As(err, &corrupt):
			x.damaged++
			continue
		case errors.As(err, &torn), err == io.EOF:
			x.cut, x.next = r.off, r.next
		case err != nil:
			return x, err
		case r.cur.flags == flagIndex: // of a seal that may turn out to be unfinished
			r.next = min(r.cur.first, limit)
			continue
		case r.cur.first >= limit:
			x.cut, x.next = start, limit
		default:
			r.next = r.cur.first + uint64(r.cur.count)
			r.cur.index(idx)
			continue
		}
		if r.sealed {
			return x, nil
		}
		if idx != nil && x.damaged == 0 {
			x.index = indexBytes(idx)
		}
		return x, r.end(&x)
	}
}

// end finds out what is to be set aside of an unsealed file. What an unfinished seal has left is not: the seal
// is about to be made again, index and all.
func (r *Reader) end(x *found) (err error) {
	if x.last, err = r.lastNonZero(x.cut); err != nil {
		return err
	}
	if r.isFooter(x.cut) {
		x.last = x.cut
	}
	if x.cut == r.off && r.index > 0 {
		if x.last == x.cut {
			x.last = r.data
		}
		x.cut = r.data
	}
	return nil
}

// isFooter reports whether there is a good footer at off.
func (r *Reader) isFooter(off int64) bool {
	x, bad, err := r.inspect(off)
	return err == nil && bad == nil && x.flags == flagFooter
}

// cutAndSeal cuts the tail off and only then, when it is gone for good, writes the footer: a footer in
// front of an old tail would look like damage. It returns the size of the file.
func (r *Reader) cutAndSeal(fsys vfs.FS, x found) (size int64, err error) {
	f, err := openWritable(fsys, r.path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(x.cut); err != nil {
		return 0, err
	}
	var index []byte
	if len(x.index) > 0 {
		index = r.sum.index(r.tag, x.cut, x.cut, x.next, x.index)
		if _, err := f.WriteAt(index, x.cut); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	at := x.cut + int64(len(index))
	return at + batchHeader, finish(fsys, f, r.path, r.sum.footer(r.tag, at, x.next, len(index)), at)
}

// openWritable opens a file that somebody may have made read-only, as copies of runs often are.
func openWritable(fsys vfs.FS, path string) (vfs.File, error) {
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrPermission) {
		return f, err
	}
	if err := fsys.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return fsys.OpenFile(path, os.O_RDWR, 0)
}

// setAside copies a range of the file to a new file beside it, unless an earlier try has done so.
func (r *Reader) setAside(fsys vfs.FS, from, to int64) error {
	for name := range tornNames(r.path) {
		err := vfs.Create(fsys, name, 0o600, func(f vfs.File) error {
			_, err := io.Copy(f, io.NewSectionReader(r.f, from, to-from))
			return err
		})
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		same, err := r.sameAs(fsys, name, from, to)
		if err != nil || same {
			return err
		}
	}
	return errTooManyTorn(r.path)
}

// tornNames are the names for what is taken out of the segment path.
func tornNames(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		name := path + tornSuffix
		for i := 1; i <= tornTries && yield(name); i++ {
			name = fmt.Sprintf("%s%s.%d", path, tornSuffix, i)
		}
	}
}

func errTooManyTorn(path string) error {
	return fmt.Errorf("%d torn tails are set aside already; remove %s%s*", tornTries, path, tornSuffix)
}

// sameAs reports whether the file name holds exactly the range.
func (r *Reader) sameAs(fsys vfs.FS, name string, from, to int64) (same bool, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size() != to-from {
		return false, err
	}
	a, err := hashRange(f, 0, to-from)
	if err != nil {
		return false, err
	}
	b, err := hashRange(r.f, from, to)
	return a == b, err
}

// nextBase returns the base of the segment that follows path in its directory, or the largest number.
func nextBase(fsys vfs.FS, path string) (uint64, error) {
	base, ok := ParseName(filepath.Base(path))
	if !ok {
		return math.MaxUint64, nil // a copy under another name stands alone
	}
	infos, err := List(fsys, filepath.Dir(path))
	if err != nil {
		return 0, err
	}
	for _, info := range infos {
		if info.Base > base {
			return info.Base, nil
		}
	}
	return math.MaxUint64, nil
}

func hashFile(f vfs.File, size int64) ([32]byte, error) { return hashRange(f, 0, size) }

// hashRange returns the SHA-256 of the bytes from from to to, all of which must be there.
func hashRange(f vfs.File, from, to int64) (sum [32]byte, err error) {
	h := sha256.New()
	n, err := io.CopyBuffer(h, io.NewSectionReader(f, from, to-from), make([]byte, max(1, min(window, to-from))))
	if err == nil && n != to-from {
		err = fmt.Errorf("%s: %d bytes of %d to hash: %w", f.Name(), n, to-from, io.ErrUnexpectedEOF)
	}
	h.Sum(sum[:0])
	return sum, err
}
