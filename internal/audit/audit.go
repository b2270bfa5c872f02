// Package audit judges run directories: whether every byte is what was recorded,
// and how much of what was emitted is there.
//
// [Verify] derives everything a run directory claims a second time, with decoders
// only: the digest log against its signed head, the manifests, telemetry segments
// and snapshots against the log, and the accounting of each generation against
// the frames themselves. It changes nothing and may run beside a recorder.
// With Options.Index it reads the ends of files only, in a time that grows with
// their number.
// [Open] gives a run's effective timeline, in memory that does not grow with the
// run. Package compare holds two of them against each other.
//
// It promises that a run whose recorder was killed at any moment is never called
// damaged, and that a closed run with a changed byte always is.
// doc/format/run-directory.md has the table of crash windows and verdicts.
package audit

import (
	"fmt"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/snapshot"
)

// Verdict is the outcome of Verify.
type Verdict uint8

// The verdicts, from good to bad. Text forms: ok, crash-tail, wrong-key, failed, not-found.
const (
	OK        Verdict = iota // intact, and closed or still being recorded
	CrashTail                // intact as far as it was ever acknowledged, but not closed: resume or re-attach closes it
	WrongKey                 // intact, but signed with another key than those given
	Failed                   // damaged or tampered with
	NotFound                 // no run directory
)

func (v Verdict) String() string {
	names := [...]string{"ok", "crash-tail", "wrong-key", "failed", "not-found"}
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// MarshalText writes the verdict's name.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// ExitCode is the exit status of usp verify for the verdict.
func (v Verdict) ExitCode() int {
	switch v {
	case OK:
		return 0
	case CrashTail:
		return 21
	case WrongKey:
		return 12
	case NotFound:
		return 10
	}
	return 20
}

// Options configure Verify. The zero value checks everything against the keys
// that the manifests name.
type Options struct {
	// Verifiers are the keys one of which must have signed the head. Without them
	// the head is checked with the key in the manifest, which proves that nothing
	// was changed by accident but not who recorded it.
	Verifiers note.Verifiers
	// Heads are signed heads of the run that were kept outside of it. The log must contain the tree of each.
	Heads []KeptHead
	// Witnesses are those whose cosignature of a head of the run is looked for.
	Witnesses []Witness
	// Index reads the index of the run only: manifests, the outline of the digest
	// log up to its signed head, the ends of telemetry segments and of snapshots.
	// What lies between the ends is not read, and not vouched for.
	Index bool
	// Deep loads every snapshot whole and hands it to Snapshot.
	Deep bool
	// Identities are the age secret keys for encrypted snapshots. Of one that none of
	// them opens, Deep checks the stored bytes only, and counts it.
	Identities []age.Identity
	// Snapshot, if not nil, tries to use a snapshot's state; an error is damage.
	Snapshot func(m snapshot.Meta, sections []snapshot.Section) error
	// MaxProblems bounds the list of problems; 0 means 100.
	MaxProblems int
}

// Report is what Verify found.
type Report struct {
	Dir          string       `json:"dir"`
	RunID        string       `json:"run_id,omitempty"`
	Verdict      Verdict      `json:"verdict"`
	Exit         int          `json:"exit"`
	InProgress   bool         `json:"in_progress"`          // a recorder holds the directory
	IndexOnly    bool         `json:"index_only,omitempty"` // Options.Index: most bytes were not read
	Integrity    Integrity    `json:"integrity"`
	Completeness Completeness `json:"completeness"`
	Files        Files        `json:"files"`
	Notes        []string     `json:"notes,omitempty"` // worth knowing, changes nothing
}

// Integrity is about bytes: is what is there what was recorded?
type Integrity struct {
	OK         bool        `json:"ok"`
	Problems   []Problem   `json:"problems,omitempty"`
	Dropped    int         `json:"problems_dropped,omitempty"` // found beyond Options.MaxProblems
	LogEntries uint64      `json:"log_entries"`
	LogRoot    string      `json:"log_root,omitempty"` // hexadecimal, over LogEntries
	Head       *Head       `json:"head,omitempty"`     // nil: nothing was signed
	Witnessed  []Witnessed `json:"witnessed,omitempty"`
	Kept       []Kept      `json:"kept_heads,omitempty"` // heads kept outside of the run, and whether the log contains them
}

// Head is the signed tree head.
type Head struct {
	Size   uint64 `json:"size"`
	Root   string `json:"root"`
	Signer string `json:"signer,omitempty"` // name and hash of the key
	// Trusted says that the key is one of Options.Verifiers; otherwise it is only
	// the one that the manifest names.
	Trusted bool `json:"trusted"`
}

// Problem classes.
const (
	Corrupt      = "corrupt"      // bytes are not what was written
	Missing      = "missing"      // something acknowledged is not there
	Mismatch     = "mismatch"     // a file or a root is not the one in the log
	Forged       = "forged"       // the signature is wrong
	TooNew       = "too-new"      // written by a newer usp
	NotOurs      = "not-ours"     // a file of another kind or another run
	Inconsistent = "inconsistent" // two things that are intact contradict each other
	RolledBack   = "rolled-back"  // the log is shorter than a head that was kept elsewhere
	Unwitnessed  = "unwitnessed"  // no cosignature of a witness that must have cosigned
	Rewritten    = "rewritten"    // the log is another than that of a head that was kept elsewhere, though signed
)

// Problem is one thing that shows damage or tampering.
type Problem struct {
	Class      string  `json:"class"`
	File       string  `json:"file,omitempty"` // relative to the run directory; that of a kept head as it was named
	Offset     int64   `json:"offset"`         // bytes into File
	Generation *uint32 `json:"generation,omitempty"`
	Seq        *uint64 `json:"seq,omitempty"`
	Step       *uint64 `json:"step,omitempty"`
	Detail     string  `json:"detail"`
}

func (p *Problem) String() string {
	s := p.Class
	switch {
	case p.Class == RolledBack || p.Class == Rewritten: // about the log as a whole; the file is that of the head
		s += ": " + p.File
	case p.File != "":
		s += fmt.Sprintf(": %s at byte %d", p.File, p.Offset)
	}
	if p.Step != nil {
		s += fmt.Sprintf(": step %d", *p.Step)
	}
	return s + ": " + p.Detail
}

// Completeness is about records: is all that was emitted there, and was it brought to an end?
type Completeness struct {
	Closed         bool         `json:"closed"` // end logged, everything sealed, head signed over all of it
	Stored         uint64       `json:"stored"`
	Lost           uint64       `json:"lost"`
	Digests        uint64       `json:"digests"`
	DigestsMissing uint64       `json:"digests_missing"`                   // stored records that were due one by their step
	Snapshots      uint64       `json:"snapshots"`                         // logged, not pruned, verified
	Undecrypted    uint64       `json:"snapshots_not_decrypted,omitempty"` // of Deep: intact, but encrypted to keys that were not given
	Generations    []Generation `json:"generations"`
	Tail           []string     `json:"tail,omitempty"` // why it is not closed; all of it recoverable
}

// Generation is the account of one generation.
type Generation struct {
	Generation     uint32      `json:"generation"`
	Resumed        *Resumed    `json:"resumed,omitempty"`
	End            string      `json:"end"` // clean, crashed, failed, or "" when there is none
	Emitted        uint64      `json:"emitted"`
	EmittedKnown   bool        `json:"emitted_known"` // the producer's own count, in the END entry
	Stored         uint64      `json:"stored"`
	Lost           uint64      `json:"lost"`
	LostRanges     []LostRange `json:"lost_ranges,omitempty"` // the first 100
	FirstStep      uint64      `json:"first_step"`
	LastStep       uint64      `json:"last_step"`
	Digests        uint64      `json:"digests"`
	DigestsMissing uint64      `json:"digests_missing"`
}

// Resumed says which state a generation began with.
type Resumed struct {
	Step           uint64      `json:"step"`
	FromGeneration uint32      `json:"from_generation"`
	SHA256         rundir.Hash `json:"snapshot_sha256"`
}

// LostRange is the sequence numbers [From, To).
type LostRange struct {
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	Reason string `json:"reason"`
}

// Files accounts for every name in the run directory.
type Files struct {
	Manifests int      `json:"manifests"`
	Telemetry int      `json:"telemetry"`
	Digests   int      `json:"digests"`
	Snapshots int      `json:"snapshots"`
	Bytes     int64    `json:"bytes"`               // of all files, preallocated ones included
	Leftovers []string `json:"leftovers,omitempty"` // of crashes and repairs: temporary files, torn tails, orphans; nothing vouches for their bytes
	Unknown   []string `json:"unknown,omitempty"`   // not usp's; passed over
}
