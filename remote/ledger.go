package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// logged is an entry of a log that a proof can be made of.
type logged struct {
	index uint64
	entry digestlog.Entry
	raw   []byte
}

// ledger is what the log of a run directory says of its snapshots.
type ledger struct {
	snapshots []logged        // every SNAPSHOT entry, in order
	byName    map[string]int  // the newest of a name in snapshots
	pruned    map[string]bool // those with a PRUNE entry
	rewinds   rewinds         // where generations went on
	opens     []logged        // OPEN entries, one for each generation that began
}

// readLedger reads the outline of the log.
func readLedger(fsys vfs.FS, dir rundir.Dir) (*ledger, error) {
	l := &ledger{byName: map[string]int{}, pruned: map[string]bool{}, rewinds: rewinds{}}
	for item, err := range digestlog.Outline(fsys, dir.Digests()) {
		var fault *digestlog.Fault
		switch {
		case errors.As(err, &fault) && fault.Benign(): // a torn tail, or an entry that only a newer version understands
			continue
		case err != nil:
			return nil, fmt.Errorf("read the digest log: %w", err)
		case item.Run.Count > 0:
			continue
		}
		e := logged{item.Index, item.Entry, bytes.Clone(item.Raw)}
		switch e.entry.Kind {
		case digestlog.KindSnapshot:
			l.byName[e.entry.Name] = len(l.snapshots)
			l.snapshots = append(l.snapshots, e)
			delete(l.pruned, e.entry.Name)
		case digestlog.KindPrune:
			l.pruned[e.entry.Name] = true
		case digestlog.KindRewind:
			l.rewinds[e.entry.Generation] = rewind{e.entry.Target, e.entry.SHA256 == [32]byte{}}
		case digestlog.KindOpen:
			l.opens = append(l.opens, e)
		}
	}
	return l, nil
}

// knows says whether there is an entry for each file in what look returned. A manifest and a snapshot have their files before their entries.
func (l *ledger) knows(at mark) bool {
	for _, name := range at.snapshots {
		if _, ok := l.byName[name]; !ok {
			return false
		}
	}
	return len(l.opens) > 0 && l.opens[len(l.opens)-1].entry.Generation == at.generation
}

// rewind is where a generation went on.
type rewind struct {
	step uint64
	cold bool // at the first step, with nothing of what was before
}

// rewinds are those of a run, by generation.
type rewinds map[uint32]rewind

// effective says whether a resume would look at a snapshot of that name: whether no later generation went back behind it.
func (r rewinds) effective(name string) bool {
	step, generation, ok := snapshot.ParseFileName(name)
	for g, to := range r {
		if g > generation && (to.cold || step > to.step) {
			return false
		}
	}
	return ok
}

// signedHead reads the run's head and checks it with the keys that its manifests name: a head that is not the run's own would make proofs that
// nobody accepts. Without a head yet the error is fs.ErrNotExist.
func signedHead(fsys vfs.FS, dir rundir.Dir) (digestlog.SignedTreeHead, note.Verifiers, error) {
	last, err := rundir.LastGeneration(fsys, dir)
	if err != nil {
		return digestlog.SignedTreeHead{}, nil, err
	}
	var list []note.Verifier
	seen := map[string]bool{}
	for g := range last + 1 {
		m, _, err := rundir.ReadManifest(fsys, dir, g)
		if errors.Is(err, fs.ErrNotExist) && g > 0 {
			continue
		}
		if err != nil {
			return digestlog.SignedTreeHead{}, nil, err
		}
		if seen[m.Signer] {
			continue
		}
		seen[m.Signer] = true
		v, err := note.NewVerifier(m.Signer)
		if err != nil {
			return digestlog.SignedTreeHead{}, nil, fmt.Errorf("%s: the signer is not a verifier key", dir.Manifest(g))
		}
		list = append(list, v)
	}
	keys := note.VerifierList(list...)
	head, err := digestlog.ReadHead(fsys, dir.Head(), keys)
	return head, keys, err
}
