package digestlog

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// An Item is one entry and where it is.
type Item struct {
	Index  uint64 // in the tree
	Entry  Entry
	Raw    []byte // the leaf's bytes; valid until the next item
	File   string // base name
	Offset int64  // of its frame, in bytes from the file's start
}

// Entries returns the entries of the log in the directory dir, in order. A nil fsys is the real file system. It needs neither key nor lock, and
// can read a log that is being written. It checks checksums and places, not the tree; for that there is [Verify].
//
// An error that is a [*Fault] does not end the sequence: what can be read behind the damage follows. With [ClassUnknown] the item is valid but
// for what only a newer version can decode. Any other error is the file system's and is the last element.
func Entries(fsys vfs.FS, dir string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		w := walker{fsys: orOS(fsys), dir: dir}
		w.item = func(it Item, f *Fault) bool {
			if f != nil {
				return yield(it, f)
			}
			return yield(it, nil)
		}
		w.fault = func(f *Fault) bool { return yield(Item{}, f) }
		if err := w.run(); err != nil && !w.stopped {
			yield(Item{}, err)
		}
	}
}

// orOS makes nil the real file system, for callers who have no other.
func orOS(fsys vfs.FS) vfs.FS {
	if fsys == nil {
		return vfs.OS()
	}
	return fsys
}

// A walker reads a log from its first file to its last and calls back for everything it finds. It keeps going behind damage. It is the
// reading side's own: the writer has another (see [Open]).
type walker struct {
	fsys  vfs.FS
	dir   string
	enter func(k *link) bool           // a file whose header is good; may be nil
	item  func(it Item, f *Fault) bool // an entry, with the fault if it cannot be decoded
	fault func(f *Fault) bool          // anything else that is wrong
	steps func(s Span) bool            // STEP entries in a row, in the place of item; nil: every file is read, and item called for each
	step  func(*StepEntry) bool        // a STEP entry, in the place of item; may be nil
	whole func(k *link) bool           // with steps: the file is to be read all the same; may be nil
	check bool                         // compare the outlines of files that are read with their entries
	first uint64                       // begin with the last file whose base is not above this index

	leaves  *leafHasher // of every entry that is read; may be nil
	current StepEntry   // what step is called for
	next    uint64      // index of the next entry
	files   int
	sealed  bool   // the last file has its end
	last    string // base name of the file read last
	base    uint64 // its first entry
	pending Span   // with steps: STEP entries that were read and not called back for
	end     int64  // offset behind its last good batch
	stopped bool   // a callback returned false
}

// extent is what a walker needs to know of a file before it reads it.
type extent struct {
	link
	ok    bool   // the header could be read
	limit uint64 // the next file's base: entries from there on do not count in this file
	void  bool   // this file was given up: it has no end, and what is behind limit is void
	final bool   // the last file
}

func (w *walker) run() error {
	files, err := w.headers()
	if err != nil || w.stopped {
		return err
	}
	for i := w.skip(files); i < len(files); i++ {
		s := &files[i]
		if !s.ok {
			continue
		}
		if w.enter != nil && !w.enter(&s.link) {
			w.stopped = true
			return nil
		}
		if w.steps == nil || !w.outlined(s) {
			if err := w.readFile(s); err != nil {
				return err
			}
			w.endRun()
		}
		if w.stopped {
			return nil
		}
		if !s.final && !w.gap(s, s.limit, w.end) {
			return nil
		}
	}
	return nil
}

// skip returns the file to begin with.
func (w *walker) skip(files []extent) int {
	for i := len(files) - 1; i > 0; i-- {
		if files[i].ok && files[i].base <= w.first {
			w.next = files[i].base
			return i
		}
	}
	return 0
}

// headers opens every file once, and reports those that cannot be opened.
func (w *walker) headers() ([]extent, error) {
	list, err := segment.List(w.fsys, w.dir)
	if err != nil {
		return nil, fmt.Errorf("digestlog: %w", err)
	}
	var files []extent
	for _, info := range list {
		k, err := openLink(w.fsys, info.Path, info.Base)
		var f *Fault
		switch {
		case err == nil:
			files = append(files, extent{link: k, ok: true})
		case errors.As(err, &f):
			files = append(files, extent{link: link{path: info.Path, base: info.Base}})
			if !w.report(f) {
				return nil, nil
			}
		default:
			return nil, err
		}
	}
	w.files = len(files)
	for i := range files {
		files[i].final, files[i].limit = true, maxSize
		if i+1 < len(files) {
			next := &files[i+1]
			files[i].final, files[i].limit, files[i].void = false, next.base, next.cause == causePoisoned
		}
	}
	return files, nil
}

func (w *walker) report(f *Fault) bool {
	if !w.endRun() {
		return false
	}
	if w.leaves != nil {
		w.leaves.settle() // they are those of entries before the fault
	}
	w.stopped = w.stopped || !w.fault(f)
	return !w.stopped
}

// gap reports the entries before index to that have not been seen at this place, and goes on behind them.
func (w *walker) gap(s *extent, to uint64, offset int64) bool {
	if w.next >= to {
		return true
	}
	f := &Fault{Class: ClassMissing, File: s.name(), Offset: offset, From: w.next, To: to, Err: errGap}
	w.next = to
	return w.report(f)
}

func (w *walker) readFile(s *extent) (err error) {
	f, err := w.open(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.r.Close()) }()
	outline, err := w.compare(s)
	if err != nil {
		return err
	}
	if w.leaves != nil {
		w.leaves.outline = outline.seen
		defer w.leaves.settle()
	}
	for !w.stopped {
		raw, end, err := w.entry(f)
		switch {
		case err != nil:
			return err
		case end:
			if w.leaves != nil {
				w.leaves.settle()
			}
			if w.sealed && f.intact {
				outline.end(w, s)
			}
			return nil
		case raw == nil:
			continue
		}
		if !w.take(f, raw, outline.seen) {
			w.stopped = true
		}
	}
	return nil
}

// take calls back for an entry that was read. False: somebody wants no more.
func (w *walker) take(f *openFile, raw []byte, outline *outliner) bool {
	s, isStep := stepOf(raw)
	if w.leaves != nil {
		w.leaves.add(raw)
	} else if outline != nil {
		outline.add(raw, &s, isStep, nil)
	}
	switch {
	case isStep && w.steps != nil:
		w.joinStep(f.extent, &s)
		return !w.stopped
	case isStep && w.step != nil:
		w.current = StepEntry{Index: w.next, Generation: s.Generation, Step: s.FirstStep, Seq: s.FirstSeq, Raw: raw, File: f.file, Offset: f.r.Position()}
		w.next++
		return w.step(&w.current)
	}
	w.deliver(f.extent, f.r.Position(), raw)
	return !w.stopped
}

// An openFile is a file that a walker reads.
type openFile struct {
	*extent
	file    string // its name
	r       *segment.Reader
	overlap bool // entries that do not count were reported
	intact  bool // no damage was met
}

// open begins to read a file. What is missing before it is reported.
func (w *walker) open(s *extent) (*openFile, error) {
	r, err := segment.Open(w.fsys, s.path)
	if err != nil {
		return nil, readFault(s.path, err)
	}
	w.last, w.base = s.name(), s.base
	w.gap(s, s.base, 0)
	return &openFile{extent: s, file: s.name(), r: r, intact: true}, nil
}

// entry returns the next entry that counts, whose index is w.next; the caller moves that on. Without one there is either an end of the file, or
// something was reported, or passed, and there may be more.
func (w *walker) entry(f *openFile) (raw []byte, end bool, _ error) {
	raw, ordinal, err := f.r.Next()
	switch {
	case err == io.EOF:
		w.sealed, w.end = f.r.Sealed(), f.r.Offset()
		if !w.sealed && !f.final && !f.void {
			w.report(&Fault{Class: ClassCorrupt, File: f.name(), Offset: w.end, Err: errCut})
		}
		return nil, true, nil
	case err != nil:
		f.intact = false
		end, err := w.damage(f.extent, f.r, err)
		return nil, end, err
	case ordinal < w.next || ordinal >= f.limit:
		if !f.void && !f.overlap {
			f.overlap = true
			w.report(&Fault{Class: ClassCorrupt, File: f.name(), Offset: f.r.Position(), From: ordinal, To: ordinal + 1, Err: errOverlap})
		}
		return nil, false, nil
	case !w.gap(f.extent, ordinal, f.r.Position()):
		return nil, false, nil
	}
	return raw, false, nil
}

// joinStep puts a STEP entry into the run that goes on.
func (w *walker) joinStep(s *extent, step *Steps) {
	if run := &w.pending.Run; run.joins(step) {
		run.Count++
		run.LastStep, run.LastSeq = step.LastStep, step.LastSeq
	} else if w.endRun() {
		w.pending = Span{Item: Item{Index: w.next, File: s.name()}, Run: *step}
	}
	w.next++
}

// endRun calls back for the run that went on. What comes after it has to come after it.
func (w *walker) endRun() bool {
	run := w.pending
	w.pending = Span{}
	w.stopped = w.stopped || run.Run.Count > 0 && !w.steps(run)
	return !w.stopped
}

// damage reports what the reader could not read. done: there is nothing behind it.
func (w *walker) damage(s *extent, r *segment.Reader, err error) (done bool, _ error) {
	var f *Fault
	if err := readFault(s.path, err); !errors.As(err, &f) {
		return true, err
	}
	done = f.Class != ClassCorrupt
	if done {
		w.sealed, w.end = false, r.Offset()
	}
	switch {
	case s.void && w.next >= s.limit:
		f.Class = ClassVoid
	case f.Class == ClassTorn && !s.final && !s.void:
		f.Class, f.Err = ClassCorrupt, errors.Join(errCut, f.Err)
	}
	w.report(f)
	return done, nil
}

func (w *walker) deliver(s *extent, offset int64, raw []byte) {
	if !w.endRun() {
		return
	}
	it := Item{Index: w.next, Raw: raw, File: s.name(), Offset: offset}
	w.next++
	var f *Fault
	it.Entry, f = parseItem(&it)
	w.stopped = !w.item(it, f)
}
