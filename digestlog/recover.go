package digestlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// Open continues the log in the directory dir, or begins it if there is none. It checks before it changes anything: it refuses a log that is
// shorter than its signed head or one of Options.Kept ([ErrRollback]), that has another root at that size or another run's head ([ErrHeadMismatch]), or that has
// damage in what it replays (a [*Fault]; run [Verify] for all of it). An unacknowledged tail is cut off and the file it was in is
// sealed; entries go to a new file, which is made by the first Sync. The caller must hold the lock of the run directory.
func Open(dir string, o Options) (*Log, error) {
	o, err := o.withDefaults(dir)
	if err != nil {
		return nil, err
	}
	if err := vfs.MkdirAll(o.FS, dir, dirMode); err != nil {
		return nil, fmt.Errorf("digestlog: open: %w", err)
	}
	l := &Log{dir: dir, opt: o, cause: causeStart}
	if l.recovery.Head, err = l.readHead(); err != nil {
		return nil, err
	}
	if err := l.takeKept(); err != nil {
		return nil, err
	}
	if err := l.resume(); err != nil {
		return nil, fmt.Errorf("digestlog: open %s: %w", dir, err)
	}
	l.recovery.Entries = l.tree.size
	return l, nil
}

// readHead returns the head that is there, or nil.
func (l *Log) readHead() (*SignedTreeHead, error) {
	b, err := vfs.ReadFile(l.opt.FS, l.opt.HeadPath, maxHeadFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("digestlog: open: read head: %w", err)
	}
	var h SignedTreeHead
	if l.opt.Verifiers != nil {
		h, err = ParseHead(b, l.opt.Verifiers)
	} else {
		h, err = peekHead(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.opt.HeadPath, err)
	}
	if h.RunID() != l.opt.RunID {
		return nil, fmt.Errorf("%w: %s is of %q, this is run %q", ErrHeadMismatch, l.opt.HeadPath, h.Origin, l.opt.RunID)
	}
	return &h, nil
}

// takeKept notes which heads the log is to be held against: its own, and those that were kept elsewhere.
func (l *Log) takeKept() error {
	if h := l.recovery.Head; h != nil {
		l.kept = append(l.kept, KeptHead{Name: l.opt.HeadPath, Head: *h})
	}
	for _, k := range l.opt.Kept {
		if k.Head.RunID() != l.opt.RunID {
			return fmt.Errorf("%w: %s is of %q, this is run %q", ErrHeadMismatch, k.Name, k.Head.Origin, l.opt.RunID)
		}
		l.kept = append(l.kept, k)
	}
	return nil
}

// resume replays the end of the log, compares it with the head, and only then seals what was left open.
func (l *Log) resume() error {
	chain, err := openChain(l.opt.FS, l.dir)
	if err != nil {
		return err
	}
	sealed, err := l.replay(chain)
	if err != nil {
		return err
	}
	for _, k := range l.kept {
		if l.tree.size < k.Head.Size {
			return fmt.Errorf("%w: %d entries, the head in %s has %d", ErrRollback, l.tree.size, k.Name, k.Head.Size)
		}
	}
	if err := l.removeTemps(); err != nil {
		return err
	}
	if len(chain) == 0 {
		return nil
	}
	last := &chain[len(chain)-1]
	if !sealed {
		l.recovery.File = last.name()
	}
	l.setAppendOnly(last.path, false) // whoever wrote it may have been told to set it
	// A file that has its end is synced again: the one who sealed it may not have lived to do it.
	repaired, err := segment.RepairIndexed(l.opt.FS, last.path, newOutliner)
	if err != nil {
		return err
	}
	if end := repaired.Base + repaired.Count; end != l.tree.size {
		return fmt.Errorf("%s changed while it was opened: it ended at entry %d and now at %d; open it again", last.name(), l.tree.size, end)
	}
	if l.opt.AppendOnly && repaired.Count > 0 {
		l.setAppendOnly(last.path, true)
	}
	l.cause = causeReopen
	if l.tree.size == last.base {
		l.cause, l.unclaimed = last.cause, true // an empty file; the next one takes its place
	}
	return nil
}

// replay brings the tree to the end of the log, from the last file that begins no later than the signed size and has an entry. It
// reports whether the last file is sealed.
func (l *Log) replay(chain []link) (sealed bool, err error) {
	if len(chain) == 0 {
		return true, l.checkRoot()
	}
	from := len(chain) - 1
	for from > 0 && chain[from].base > l.signedSize() {
		from--
	}
	for ; ; from-- {
		l.tree = chain[from].tree.clone()
		for i := from; i < len(chain); i++ {
			if err := l.enter(chain, i); err != nil {
				return false, err
			}
			if sealed, err = l.replayFile(chain, i); err != nil {
				return false, err
			}
		}
		if len(l.lastRaw) > 0 || from == 0 {
			return sealed, nil
		}
	}
}

// signedSize is the least size at which the root is to be compared.
func (l *Log) signedSize() uint64 {
	size := uint64(maxSize)
	for _, k := range l.kept {
		size = min(size, k.Head.Size)
	}
	return size
}

// enter checks that file i of the chain is of this run and begins with the tree that the files before it make.
func (l *Log) enter(chain []link, i int) error {
	k := &chain[i]
	switch {
	case k.runID != l.opt.RunID:
		return &Fault{Class: ClassNotOurs, File: k.name(), Err: fmt.Errorf("a file of run %q in the log of run %q", k.runID, l.opt.RunID)}
	case k.base != l.tree.size:
		return &Fault{Class: ClassMissing, File: k.name(), From: l.tree.size, To: k.base, Err: errGap}
	case k.tree.root() != l.tree.root():
		return &Fault{Class: ClassCorrupt, File: k.name(), Err: errTreeState}
	}
	return l.checkRoot()
}

// checkRoot compares with every head whose size the tree has.
func (l *Log) checkRoot() error {
	for _, k := range l.kept {
		if k.Head.Size == l.tree.size && k.Head.Root != l.tree.root() {
			return fmt.Errorf("%w: root at size %d is %x, the head in %s has %x", ErrHeadMismatch, k.Head.Size, l.tree.root(), k.Name, k.Head.Root)
		}
	}
	return nil
}

// replayFile adds the entries of file i up to where the next file begins.
func (l *Log) replayFile(chain []link, i int) (sealed bool, err error) {
	k := &chain[i]
	limit, final, void := uint64(maxSize), i == len(chain)-1, false
	if !final {
		limit, void = chain[i+1].base, chain[i+1].cause == causePoisoned
	}
	if err := dropCache(l.opt.FS, k.path); err != nil {
		return false, err
	}
	r, err := segment.Open(l.opt.FS, k.path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for {
		if void && l.tree.size == limit {
			return false, nil // the rest of a file that was given up holds nothing that counts
		}
		raw, ordinal, err := r.Next()
		var torn *segment.TornError
		switch {
		case err == io.EOF:
			return r.Sealed(), nil
		case errors.As(err, &torn) && final:
			l.recovery.Torn, l.recovery.Offset = true, torn.Offset
			return false, nil
		case err != nil:
			return false, readFault(k.path, err)
		case ordinal != l.tree.size || ordinal >= limit:
			return false, &Fault{Class: ClassMissing, File: k.name(), From: l.tree.size, To: ordinal, Err: errGap}
		}
		if err := l.adopt(raw); err != nil {
			return false, err
		}
	}
}

// dropCache makes the next read of a file come from the disk: after a failed fsync the cache may show what the disk does not have.
func dropCache(fsys vfs.FS, path string) error {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(vfs.DropCache(f), f.Close())
}

// adopt takes a recovered entry into the tree.
func (l *Log) adopt(raw []byte) error {
	if e, err := ParseEntry(raw); errors.Is(err, ErrEntry) {
		return fmt.Errorf("entry %d: %w", l.tree.size, err)
	} else {
		l.ended = endsLog(e.Kind, l.ended)
	}
	l.lastRaw = append(l.lastRaw[:0], raw...)
	l.tree.add(tlog.RecordHash(raw))
	return l.checkRoot()
}

// removeTemps removes what a crash in the middle of making a file or replacing the head has left. In the head's directory, which others
// write to as well, it takes only its own.
func (l *Log) removeTemps() error {
	if _, err := vfs.RemoveTemps(l.opt.FS, l.dir); err != nil {
		return err
	}
	dir, base := filepath.Split(l.opt.HeadPath)
	list, err := l.opt.FS.ReadDir(filepath.Clean(dir))
	if err != nil {
		return err
	}
	for _, d := range list {
		if vfs.IsTemp(d.Name()) && strings.HasPrefix(d.Name(), "."+base+".") {
			if err := l.opt.FS.Remove(filepath.Join(dir, d.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// A link is one file of the log with what its header says.
type link struct {
	path  string
	base  uint64
	runID string
	cause cause
	tree  frontier // as it was at base, so the header says
}

func (k *link) name() string { return filepath.Base(k.path) }

// openChain reads the headers of all files. A header that cannot be read is a *Fault: files are complete when they get their name.
func openChain(fsys vfs.FS, dir string) ([]link, error) {
	list, err := segment.List(fsys, dir)
	if err != nil {
		return nil, err
	}
	chain := make([]link, len(list))
	for i, info := range list {
		if chain[i], err = openLink(fsys, info.Path, info.Base); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// openLink reads one file's header.
func openLink(fsys vfs.FS, path string, base uint64) (k link, err error) {
	r, err := segment.Open(fsys, path)
	if err != nil {
		return link{}, readFault(path, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	h := r.Header()
	k = link{path: path, base: h.Base, runID: h.RunID}
	if h.Kind != segment.KindDigests || h.Base != base {
		return link{}, &Fault{Class: ClassNotOurs, File: filepath.Base(path), Err: fmt.Errorf("a segment of kind %d with base %d", h.Kind, h.Base)}
	}
	k.cause, k.tree, err = parseMeta(h.Meta, h.Base)
	if err != nil {
		class := ClassCorrupt
		if errors.Is(err, errTooNew) {
			class = ClassTooNew
		}
		return link{}, &Fault{Class: class, File: filepath.Base(path), Err: err}
	}
	return k, nil
}
