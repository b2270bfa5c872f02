package digestlog

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// IndexOptions says what [VerifyIndex] reads.
type IndexOptions struct {
	FS        vfs.FS           // nil: the real file system
	Dir       string           // the log's directory
	HeadPath  string           // file of the signed head; "": there is none to compare with
	Verifiers note.Verifiers   // keys that may have signed it
	RootsAt   []uint64         // sizes at which to note the root, in any order: entries are read from the file on that holds the least of them
	Each      func(Span) error // called for everything in the outline, in order; an error ends the verification with it
}

// VerifyIndex verifies what can be known of a log without reading all of its entries, at a cost that grows with its files. It reads the outline
// (see [Outline]), and the entries from the last file on that begins no later than the signed head: put into the tree that the header
// of this file has, they must come to the signed root, as in [Open]. Every header's tree must have in common with the next one's what it
// should, so the signed head vouches for the last header and it for what it shares with those before. The entries of the files before
// are not read, and neither is their outline known to be true. Report.Root is that of the empty log, and Report.Roots is empty, if nothing was signed.
func VerifyIndex(o IndexOptions) (Report, error) {
	v := indexCheck{}
	v.opt = VerifyOptions{FS: orOS(o.FS), Dir: o.Dir, HeadPath: o.HeadPath, Verifiers: o.Verifiers, RootsAt: o.RootsAt}
	v.whole, v.each = true, o.Each
	if o.Each != nil {
		v.opt.Each = func(it Item) error { return o.Each(spanOf(it)) }
	}
	if err := v.begin(); err != nil {
		return Report{}, err
	}
	if err := v.findStart(); err != nil {
		return Report{}, err
	}
	v.tree.note()
	v.chain.fault = v.fault
	w := walker{
		fsys: v.opt.FS, dir: o.Dir, enter: v.enterIndex, leaves: &leafHasher{each: v.leaf}, item: v.item, fault: v.fault, steps: v.span, check: true,
		whole: func(*link) bool { return v.replay },
	}
	err := w.run()
	if err = errors.Join(v.settle(), err); err != nil {
		return Report{}, err
	}
	v.finish(&w)
	if v.Size = w.next; !v.whole {
		v.Size = v.tree.tree.End()
	}
	return v.Report, nil
}

type indexCheck struct {
	verification
	chain chainCheck
	start uint64 // base of the file from which entries are put into the tree
	each  func(Span) error
}

// findStart looks for the last file that begins no later than the signed size, and than every size at which a root is wanted.
func (v *indexCheck) findStart() error {
	list, err := segment.List(v.opt.FS, v.opt.Dir)
	if err != nil {
		return fmt.Errorf("digestlog: %w", err)
	}
	if v.Head == nil {
		return nil
	}
	least := v.Head.Size
	for _, size := range v.opt.RootsAt {
		least = min(least, size)
	}
	for _, info := range list {
		if info.Base <= least {
			v.start = info.Base
		}
	}
	return nil
}

func (v *indexCheck) enterIndex(k *link) bool {
	if !v.chain.enter(k) {
		return false
	}
	if v.Head != nil && k.base == v.start && v.whole {
		if err := v.tree.restart(&k.tree); err != nil {
			v.err = fmt.Errorf("digestlog: tree of %s: %w", k.name(), err)
			return false
		}
		v.replay = true
	}
	return v.enter(k)
}

func (v *indexCheck) span(s Span) bool {
	v.Entries += s.Run.Count
	v.Kinds[KindStep] += s.Run.Count
	v.End = nil
	if v.each != nil {
		v.err = v.each(s)
	}
	return v.err == nil
}

// A chainCheck wants what the trees in the headers of two neighbours have in common to be the same: subtrees do not change when a tree
// grows.
type chainCheck struct {
	fault  func(f *Fault) bool
	before *link
}

func (c *chainCheck) enter(k *link) bool {
	before := c.before
	c.before = k
	if before == nil {
		return true
	}
	if !before.tree.within(&k.tree) {
		return c.fault(&Fault{Class: ClassCorrupt, File: k.name(), From: k.base, To: k.base, Err: errTreeState})
	}
	return true
}
