package audit

import (
	"errors"
	"io/fs"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
)

// Where a head was kept.
const (
	KeptByHand  = "head"    // named by the one who verifies
	KeptAnchor  = "anchor"  // the recorder's second place
	KeptWitness = "witness" // checkpoint.cosigned
)

// A KeptHead is a signed head of the run that was kept outside of it. A prefix of a log is a valid log, so only such a head tells a run
// from an older copy of itself.
type KeptHead struct {
	Source string // KeptByHand or KeptAnchor
	Name   string // of its file, for messages
	Note   []byte // the signed note
}

// What holding the log against a kept head came to.
const (
	Contained   = "contained"    // the log holds the tree of the head
	NotCompared = "not-compared" // it could not be known; a note or a problem says why
)

// Kept says what holding the log against one head that was kept elsewhere came to.
type Kept struct {
	Source string `json:"source"`
	File   string `json:"file"`
	Size   uint64 `json:"size"` // entries under the head
	Root   string `json:"root,omitempty"`
	Result string `json:"result"` // Contained, NotCompared, or the class of the problem: RolledBack, Rewritten, NotOurs, Forged, Corrupt, "wrong-key"

	head digestlog.SignedTreeHead
}

const wrongKey = "wrong-key"

// readKept reads the heads that were kept elsewhere, before the log is read: at their sizes its root is wanted.
func (j *judge) readKept() error {
	for _, k := range j.opt.Heads {
		j.addKept(k)
	}
	b, err := vfs.ReadFile(j.fsys, j.dir.Cosigned(), maxCosigned)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		j.unwitnessed(j.opt.Witnesses, "there is no "+rundir.CosignedFile)
		return nil
	case errors.Is(err, vfs.ErrTooLarge): // what cannot be one is found out below
	case err != nil:
		return err
	}
	j.addKept(KeptHead{Source: KeptWitness, Name: rundir.CosignedFile, Note: b})
	j.findCosignatures(b)
	return nil
}

// maxCosigned bounds what is read of checkpoint.cosigned.
const maxCosigned = 64 << 10

// A Witness is one whose cosignature is looked for in checkpoint.cosigned.
type Witness struct {
	Key      note.Verifier // see witness.ParseKey
	Required bool          // without its cosignature the run fails; else that is a note
}

// Witnessed says which head a witness has cosigned, and when, by its clock.
type Witnessed struct {
	Name string    `json:"name"`
	Size uint64    `json:"size"`
	Time time.Time `json:"time"`
}

// unwitnessed says that witnesses have not cosigned.
func (j *judge) unwitnessed(list []Witness, why string) {
	for _, w := range list {
		if !w.Required {
			j.note("not cosigned by %s: %s", w.Key.Name(), why)
			continue
		}
		j.problemf(Unwitnessed, rundir.CosignedFile, 0, "not cosigned by %s: %s", w.Key.Name(), why)
	}
}

// findCosignatures looks for the cosignature of each witness. One in its name that is wrong is a forgery, whether it is required or not.
func (j *judge) findCosignatures(b []byte) {
	size := j.Integrity.Kept[len(j.Integrity.Kept)-1].Size
	for _, w := range j.opt.Witnesses {
		sigs, err := witness.Cosignatures(b, w.Key)
		var wrong *note.InvalidSignatureError
		switch {
		case errors.As(err, &wrong):
			j.problemf(Forged, rundir.CosignedFile, 0, "the cosignature in the name of %s is wrong", w.Key.Name())
		case err != nil:
			j.unwitnessed([]Witness{w}, err.Error())
		case len(sigs) == 0:
			j.unwitnessed([]Witness{w}, rundir.CosignedFile+" has no cosignature with that key")
		default:
			at, err := witness.Time(sigs[0])
			if err != nil {
				j.problemf(Forged, rundir.CosignedFile, 0, "%v", err)
				continue
			}
			j.Integrity.Witnessed = append(j.Integrity.Witnessed, Witnessed{Name: w.Key.Name(), Size: size, Time: at})
		}
	}
	if len(j.opt.Witnesses) == 0 {
		j.note("%s: its cosignatures were not checked; give the key of the witness for that", rundir.CosignedFile)
	}
}

// addKept takes one head in. What is wrong with it is a problem of the run: it cannot be told any more whether the run is what was signed.
func (j *judge) addKept(k KeptHead) {
	kept := Kept{Source: k.Source, File: k.Name, Result: NotCompared}
	h, err := digestlog.ParseHead(k.Note, j.keys())
	switch {
	case err == nil:
		kept.head, kept.Size, kept.Root = h, h.Size, hexa(h.Root)
	case errors.Is(err, digestlog.ErrWrongKey):
		kept.Result, j.wrong = wrongKey, true
		j.note("%s: %v", k.Name, err)
	case errors.Is(err, digestlog.ErrSignature):
		kept.Result = Forged
	default:
		kept.Result = Corrupt
	}
	if kept.Result == Forged || kept.Result == Corrupt {
		j.problemf(kept.Result, k.Name, 0, "%s: %v; another copy of that head is needed", kept.what(), err)
	}
	if err == nil {
		j.trustKept(&kept)
	}
	j.Integrity.Kept = append(j.Integrity.Kept, kept)
}

// trustKept looks whether the head is signed with a key that the caller trusts, if one was given.
func (j *judge) trustKept(k *Kept) {
	if j.opt.Verifiers == nil {
		return
	}
	if _, err := digestlog.ParseHead(k.head.Note, j.opt.Verifiers); err != nil {
		k.Result, j.wrong = wrongKey, true
		j.note("%s: %v", k.File, err)
	}
}

// what names the head in a message.
func (k *Kept) what() string {
	switch k.Source {
	case KeptAnchor:
		return "the head in the anchor"
	case KeptWitness:
		return "the cosigned head"
	}
	return "the head kept by hand"
}

// keptSizes are the sizes at which the log's root is wanted for the kept heads.
func (j *judge) keptSizes() (sizes []uint64) {
	for i := range j.Integrity.Kept {
		if k := &j.Integrity.Kept[i]; k.Result == NotCompared {
			sizes = append(sizes, k.Size)
		}
	}
	return sizes
}

// checkKept holds the log against every kept head.
func (j *judge) checkKept() error {
	for i := range j.Integrity.Kept {
		k := &j.Integrity.Kept[i]
		if k.Result != NotCompared {
			continue
		}
		if id := k.head.RunID(); id != j.keptRun() {
			k.Result = NotOurs
			j.problemf(NotOurs, k.File, 0, "%s is of %q, the run is %q", k.what(), k.head.Origin, j.keptRun())
			continue
		}
		j.compareKept(k)
	}
	return nil
}

// keptRun is the run id that a head must name: the log's, or, when there is none left, that of the directory.
func (j *judge) keptRun() string {
	if j.RunID != "" {
		return j.RunID
	}
	return j.dir.ID()
}

// compareKept is checkKept for a head of this run.
func (j *judge) compareKept(k *Kept) {
	root, known := j.log.Roots[k.Size]
	switch {
	case known && root == k.head.Root:
		k.Result = Contained
	case known:
		k.Result = Rewritten
		j.problemf(Rewritten, k.File, 0, "the log has another root at %d entries than %s: it is another history, though signed with the run's key (%s against %s)", k.Size, k.what(), hexa(root), k.Root)
	case k.Size > j.log.Size && !j.damagedLog():
		k.Result = RolledBack
		j.problemf(RolledBack, k.File, 0, "the log has %d entries, %s covers %d: the end of the log was cut off, or the run was put back to an older copy", j.log.Size, k.what(), k.Size)
	case k.Size > j.log.Size || j.damagedLog():
		j.note("%s: not compared: the log is damaged before its entry %d", k.File, k.Size)
	default:
		j.note("%s: not compared: by the index the root at %d entries cannot be known, because the log has no signed head of its own; verify without --index", k.File, k.Size)
	}
}

// damagedLog says that entries in the log cannot be read, so that how long it is is not known.
func (j *judge) damagedLog() bool {
	return j.log.Has(digestlog.ClassCorrupt) || j.log.Has(digestlog.ClassTooNew) || j.log.Size < j.log.Entries
}
