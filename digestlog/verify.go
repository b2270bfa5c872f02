package digestlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// maxFaults bounds a report of a file that is damaged everywhere.
const maxFaults = 256

// VerifyOptions says what [VerifyWith] reads and what else it shall find out on the way.
type VerifyOptions struct {
	FS        vfs.FS           // nil: the real file system
	Dir       string           // the log's directory
	HeadPath  string           // file of the signed head; "": there is none to compare with
	Verifiers note.Verifiers   // keys that may have signed it
	RootsAt   []uint64         // sizes at which to note the root, in any order
	Each      func(Item) error // called for every readable entry, in order; an error ends the verification with it

	// Steps, if not nil, is called for STEP entries in the place of Each. They are not decoded, which takes less time.
	Steps func(*StepEntry) error
}

// A Report is what [Verify] found. It separates whether the bytes are intact ([Report.Err]) from whether the log is complete ([Report.Closed]).
type Report struct {
	RunID   string
	Files   int
	Entries uint64              // readable entries, in their places
	Size    uint64              // entries from the first on without a hole
	Root    [32]byte            // root of the first Size entries
	Roots   map[uint64][32]byte // roots at the sizes asked for, as far as Size reaches
	Kinds   map[Kind]uint64     // readable entries by kind
	Head    *SignedTreeHead     // the signed head, if its signature is good and it is this run's
	Sealed  bool                // the last file has its end
	End     *Entry              // the END entry, if nothing but an EVENT is behind it
	Faults  []*Fault            // what was found, in order; the first 256
	Dropped uint64              // faults not in Faults

	damaged bool // a fault that is not benign, kept or dropped
}

// Err returns nil if everything in the log that was ever promised is there and is what was signed; otherwise the faults that show
// the opposite, joined.
func (r *Report) Err() error {
	if !r.damaged {
		return nil
	}
	var errs []error
	for _, f := range r.Faults {
		if !f.Benign() {
			errs = append(errs, f)
		}
	}
	if r.Dropped > 0 {
		errs = append(errs, fmt.Errorf("digestlog: and %d faults more", r.Dropped))
	}
	return errors.Join(errs...)
}

// Closed reports whether the log is intact and came to its end: END entry, sealed file, and a signed head over all of it. A log that is intact
// but not closed is one whose recorder still runs or was stopped.
func (r *Report) Closed() bool {
	return !r.damaged && r.End != nil && r.Sealed && r.Head != nil && r.Head.Size == r.Size
}

// Has reports whether there is a fault of class c.
func (r *Report) Has(c Class) bool {
	return slices.ContainsFunc(r.Faults, func(f *Fault) bool { return f.Class == c })
}

func (r *Report) add(f *Fault) {
	r.damaged = r.damaged || !f.Benign()
	if len(r.Faults) >= maxFaults {
		r.Dropped++
		return
	}
	r.Faults = append(r.Faults, f)
}

// Verify reads the whole log in dir, recomputes its root in a tree that the writer does not use, and compares it with the signed head in
// headPath. It changes nothing and needs no lock. What is wrong with the log is in the report; the error is only for what kept it
// from being read.
func Verify(fsys vfs.FS, dir, headPath string, verifiers note.Verifiers) (Report, error) {
	return VerifyWith(VerifyOptions{FS: fsys, Dir: dir, HeadPath: headPath, Verifiers: verifiers})
}

// VerifyWith is [Verify] with all options.
func VerifyWith(o VerifyOptions) (Report, error) {
	o.FS = orOS(o.FS)
	v := verification{opt: o, whole: true, replay: true}
	if err := v.begin(); err != nil {
		return Report{}, err
	}
	v.tree.note()
	w := walker{fsys: o.FS, dir: o.Dir, enter: v.enter, leaves: &leafHasher{each: v.leaf}, item: v.item, fault: v.fault, check: true}
	if o.Each == nil || o.Steps != nil {
		w.step = v.step
	}
	err := w.run()
	if err = errors.Join(v.settle(), err); err != nil {
		return Report{}, err
	}
	v.finish(&w)
	return v.Report, nil
}

type verification struct {
	Report
	opt    VerifyOptions
	tree   *treeReplay
	whole  bool     // no entry was missing so far
	replay bool     // entries are put into the tree
	steps  uint64   // readable STEP entries that are not in Kinds
	head   [32]byte // the root at the head's size, if headOK
	headOK bool
	err    error
}

// begin reads the head, and makes the tree, which notes the roots that are wanted.
func (v *verification) begin() error {
	v.Roots, v.Kinds = map[uint64][32]byte{}, map[Kind]uint64{}
	if err := v.readHead(); err != nil {
		return err
	}
	wanted := slices.Clone(v.opt.RootsAt)
	if v.Head != nil {
		wanted = append(wanted, v.Head.Size)
	}
	v.tree = newTreeReplay(wanted, v.noteRoot)
	return nil
}

// noteRoot takes down the root at a wanted size.
func (v *verification) noteRoot(size uint64, root [32]byte) {
	if slices.Contains(v.opt.RootsAt, size) {
		v.Roots[size] = root
	}
	if v.Head != nil && v.Head.Size == size {
		v.head, v.headOK = root, true
	}
}

func (v *verification) readHead() error {
	if v.opt.HeadPath == "" {
		v.add(&Fault{Class: ClassNoHead, Err: errors.New("no head was given")})
		return nil
	}
	h, err := ReadHead(v.opt.FS, v.opt.HeadPath, v.opt.Verifiers)
	switch {
	case err == nil:
		v.Head = &h
	case errors.Is(err, fs.ErrNotExist):
		v.add(&Fault{Class: ClassNoHead, Err: err})
	case errors.Is(err, ErrWrongKey):
		v.add(&Fault{Class: ClassWrongKey, Err: err})
	case errors.Is(err, ErrSignature), errors.Is(err, ErrHead), errors.Is(err, vfs.ErrTooLarge):
		v.add(&Fault{Class: ClassHead, Err: err})
	default:
		return err
	}
	return nil
}

// enter checks a file's header against the entries before it.
func (v *verification) enter(k *link) bool {
	if v.RunID == "" {
		v.RunID = k.runID
	}
	if k.runID != v.RunID {
		v.add(&Fault{Class: ClassNotOurs, File: k.name(), Err: fmt.Errorf("a file of run %q in the log of run %q", k.runID, v.RunID)})
	}
	if v.settle() != nil {
		return false
	}
	if !v.whole || k.base != v.tree.tree.End() {
		return true // the walker says what is missing
	}
	hashes := v.tree.tree.Hashes()
	same := len(hashes) == len(k.tree.nodes)
	for i := 0; same && i < len(hashes); i++ {
		same = bytes.Equal(hashes[i], k.tree.nodes[i][:])
	}
	if !same {
		v.add(&Fault{Class: ClassCorrupt, File: k.name(), From: k.base, To: k.base, Err: errTreeState})
	}
	return true
}

func (v *verification) fault(f *Fault) bool {
	v.add(f)
	if f.Class == ClassMissing {
		v.whole = false
	}
	return true
}

func (v *verification) item(it Item, f *Fault) bool {
	if f != nil {
		v.add(f)
	}
	v.Entries++
	v.Kinds[it.Entry.Kind]++
	switch {
	case it.Entry.Kind == KindEnd:
		end := it.Entry
		v.End = &end
	case !endsLog(it.Entry.Kind, v.End != nil):
		v.End = nil
	}
	if v.opt.Each != nil {
		v.err = v.opt.Each(it)
	}
	return v.err == nil
}

// step takes in a STEP entry that nobody wants decoded.
func (v *verification) step(s *StepEntry) bool {
	v.Entries++
	v.steps++
	v.End = nil
	if v.opt.Steps != nil {
		v.err = v.opt.Steps(s)
	}
	return v.err == nil
}

// settle waits until the tree is that of the entries so far, and returns the first error there was.
func (v *verification) settle() error {
	if err := v.tree.settle(); v.err == nil {
		v.err = err
	}
	return v.err
}

// leaf puts an entry into the tree. It is called in the hasher's goroutine.
func (v *verification) leaf(leaf *tlog.Hash) {
	if v.whole && v.replay {
		v.tree.add(leaf)
	}
}

// finish compares what was read with the head.
func (v *verification) finish(w *walker) {
	v.Files, v.Sealed = w.files, w.sealed
	if v.steps > 0 {
		v.Kinds[KindStep] += v.steps
	}
	v.Size, v.Root = v.tree.tree.End(), v.tree.root()
	h := v.Head
	if h == nil {
		return
	}
	if v.Files > 0 && h.RunID() != v.RunID {
		v.add(&Fault{Class: ClassNotOurs, Err: fmt.Errorf("the head is of %q, the log of run %q", h.Origin, v.RunID)})
		v.Head = nil
		return
	}
	if h.Size > w.next {
		v.add(&Fault{Class: ClassMissing, File: w.last, Offset: w.end, From: w.next, To: h.Size, Err: fmt.Errorf("the signed head covers %d entries: %w", h.Size, ErrRollback)})
	}
	if v.headOK && v.head != h.Root {
		v.add(&Fault{Class: ClassMismatch, To: h.Size, Err: fmt.Errorf("root of the entries is %x, the signed one %x", v.head, h.Root)})
	}
	// The writer signs an END only after it sealed the file, see Log.SignHead. A file without an entry behind it was just begun.
	if v.End != nil && !v.Sealed && h.Size == w.next && w.base < w.next {
		v.add(&Fault{Class: ClassCorrupt, File: w.last, Offset: w.end, Err: errCut})
	}
}
