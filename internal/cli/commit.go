package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
	"github.com/usp-project/usp/recorder"
)

// maxHead bounds what is read of a head that was kept elsewhere.
const maxHead = 64 << 10

// keptHeads reads the heads that the run must contain: those named by --head, and the one in the configured anchor. An anchor that is not
// there is worth a note and no more: the run may be older than the setting.
func (a *app) keptHeads(dir rundir.Dir, files []string) (heads []audit.KeptHead, notes []string, err error) {
	for _, name := range files {
		b, err := vfs.ReadFile(a.fs, name, maxHead)
		if err != nil {
			return nil, nil, fmt.Errorf("--head: %w", err)
		}
		heads = append(heads, audit.KeptHead{Source: audit.KeptByHand, Name: name, Note: b})
	}
	if a.cfg.Anchor.Dir == "" {
		return heads, nil, nil
	}
	name := rundir.AnchorPath(a.cfg.Anchor.Dir, a.runID(dir))
	switch b, err := vfs.ReadFile(a.fs, name, maxHead); {
	case errors.Is(err, fs.ErrNotExist):
		notes = append(notes, fmt.Sprintf("no anchor was compared: there is no %s", name))
	case err != nil:
		notes = append(notes, fmt.Sprintf("no anchor was compared: %v", err))
	default:
		heads = append(heads, audit.KeptHead{Source: audit.KeptAnchor, Name: name, Note: b})
	}
	return heads, notes, nil
}

// runID is what a run directory says it holds, or else its name.
func (a *app) runID(dir rundir.Dir) string {
	if m, _, err := rundir.ReadManifest(a.fs, dir, 0); err == nil && rundir.ValidID(m.RunID) {
		return m.RunID
	}
	return dir.ID()
}

// printKept says of every head that was kept elsewhere whether the log contains it.
func (a *app) printKept(kept []audit.Kept) {
	for i := range kept {
		k := &kept[i]
		what := map[string]string{audit.KeptByHand: "head", audit.KeptAnchor: "anchor", audit.KeptWitness: "cosigned head"}[k.Source]
		switch k.Result {
		case audit.Contained:
			fmt.Fprintf(a.out, "  committed     %s %s: the log contains its %s\n", what, display(k.File), entries(k.Size))
		case audit.NotCompared:
			fmt.Fprintf(a.out, "  committed     %s %s: not compared\n", what, display(k.File))
		default:
			fmt.Fprintf(a.out, "  committed     %s %s: %s\n", what, display(k.File), k.Result)
		}
	}
}

func entries(n uint64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// damageText says of a run with problems whether they are in its own bytes.
func damageText(r *audit.Report) string {
	kept := func(p audit.Problem) bool {
		return p.Class == audit.Unwitnessed || slices.ContainsFunc(r.Integrity.Kept, func(k audit.Kept) bool { return k.File == p.File && k.Result == p.Class })
	}
	for _, p := range r.Integrity.Problems {
		if !kept(p) || r.Integrity.Dropped > 0 {
			return "DAMAGED"
		}
	}
	if slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.Class == audit.RolledBack || p.Class == audit.Rewritten }) {
		return "every byte is intact, but it is NOT THE RUN THAT WAS COMMITTED"
	}
	if !slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.Class != audit.Unwitnessed }) {
		return notWitnessed
	}
	return unusableHead
}

// What damageText says of a run in which nothing is wrong.
const (
	unusableHead = "every byte of the run is intact, but a head that was kept elsewhere CANNOT BE USED"
	notWitnessed = "every byte of the run is intact, but a witness that must have cosigned it HAS NOT"
)

// printCommitted says how far the signed heads of a run got to another place.
func printCommitted(w io.Writer, name string, c *recorder.Committed) {
	switch {
	case c == nil:
	case c.Fault != "":
		fmt.Fprintf(w, "  %-9s  %s does not have the last signed head: %s (%s)\n", name, display(c.Place), c.Fault, count(c.Failures, "failure"))
	case c.Failures > 0:
		fmt.Fprintf(w, "  %-9s  %s has the signed head of %s, after %s\n", name, display(c.Place), entries(c.Size), count(c.Failures, "failure"))
	default:
		fmt.Fprintf(w, "  %-9s  %s has the signed head of %s\n", name, display(c.Place), entries(c.Size))
	}
}

// anchored says how a copy of a head of a run, in the anchor or cosigned, and the run's own head stand to each other.
type anchored struct {
	File  string `json:"file"`
	Size  uint64 `json:"size"`      // entries under the head in the anchor
	Head  uint64 `json:"head_size"` // entries under the run's own
	Fault string `json:"fault,omitempty"`
}

// anchored reads the anchor; nil if none is configured. Whether the log contains its head is for usp verify to find out.
func (a *app) anchored(dir rundir.Dir, m *rundir.Manifest) *anchored {
	if a.cfg.Anchor.Dir == "" {
		return nil
	}
	return a.otherHead(dir, m, rundir.AnchorPath(a.cfg.Anchor.Dir, m.RunID))
}

// cosigned reads the head that a witness has cosigned; nil if there is none and no witness is configured. Whose cosignatures it has is for
// usp verify to find out.
func (a *app) cosigned(dir rundir.Dir, m *rundir.Manifest) *anchored {
	if _, err := a.fs.Stat(dir.Cosigned()); err != nil && a.cfg.Witness.URL == "" {
		return nil
	}
	return a.otherHead(dir, m, dir.Cosigned())
}

// otherHead holds another copy of a run's head against its own.
func (a *app) otherHead(dir rundir.Dir, m *rundir.Manifest, file string) *anchored {
	s := &anchored{File: file}
	v, err := note.NewVerifier(m.Signer)
	if err != nil {
		s.Fault = "the manifest names no key to check it with"
		return s
	}
	if h, err := digestlog.ReadHead(a.fs, dir.Head(), note.VerifierList(v)); err == nil {
		s.Head = h.Size
	}
	h, err := digestlog.ReadHead(a.fs, s.File, note.VerifierList(v))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Fault = "it is not there"
	case err != nil:
		s.Fault = err.Error()
	default:
		s.Size = h.Size
	}
	return s
}

func (s *anchored) print(w io.Writer, name string) {
	switch {
	case s == nil:
	case s.Fault != "":
		fmt.Fprintf(w, "  %-9s  %s: %s\n", name, display(s.File), s.Fault)
	case s.Size > s.Head:
		fmt.Fprintf(w, "  %-9s  %s: a head of %s, the run's own is only of %d: it was put back to an older state; usp verify says more\n", name, display(s.File), entries(s.Size), s.Head)
	case s.Size < s.Head:
		fmt.Fprintf(w, "  %-9s  %s: a head of %s, the run's own is of %d\n", name, display(s.File), entries(s.Size), s.Head)
	default:
		fmt.Fprintf(w, "  %-9s  %s: the run's own head, of %s\n", name, display(s.File), entries(s.Size))
	}
}

// witnesses are those whose cosignatures usp verify looks for: named ones must be there, configured ones should.
func (a *app) witnesses(named []string) (list []audit.Witness, err error) {
	seen := map[uint32]bool{}
	for i, text := range append(slices.Clone(named), a.cfg.Witness.Key...) {
		if b, err := os.ReadFile(text); err == nil && i < len(named) {
			text = string(bytes.TrimSpace(b))
		}
		key, err := witness.ParseKey(text)
		if err != nil {
			return nil, fmt.Errorf("--witness: neither a file with the verifier key of a witness nor such a key: %w", err)
		}
		if !seen[key.KeyHash()] {
			list = append(list, audit.Witness{Key: key, Required: i < len(named)})
		}
		seen[key.KeyHash()] = true
	}
	return list, nil
}

// askWitness holds the run against what the configured witness has seen of it. A witness that has seen the same answers with a cosignature, and has
// nothing new to remember then.
func (a *app) askWitness(ctx context.Context, dir rundir.Dir, r *audit.Report) error {
	c := &a.cfg.Witness
	client, err := witness.NewClient(c.URL, c.Key, nil)
	if err != nil {
		return usageError(err)
	}
	b, err := vfs.ReadFile(a.fs, dir.Head(), maxHead)
	if errors.Is(err, fs.ErrNotExist) || r.Integrity.Head == nil {
		return fmt.Errorf("the run has no signed head that the witness could be asked about")
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
	defer cancel()
	_, err = client.AddCheckpoint(ctx, r.Integrity.Head.Size, nil, b)
	var seen *witness.ConflictError
	size := r.Integrity.Head.Size
	switch {
	case err == nil:
		r.Notes = append(r.Notes, fmt.Sprintf("the witness %s has seen the same log, of %s", client.URL(), entries(size)))
		return nil
	case errors.Is(err, witness.ErrUnknownLog), errors.Is(err, witness.ErrNotTrusted), errors.Is(err, witness.ErrNoAnswer):
		return err
	case !errors.As(err, &seen) || !seen.Known:
		return withCode(exitUnreachable, err)
	case seen.Size < size:
		r.Notes = append(r.Notes, fmt.Sprintf("the witness %s has seen %s of the %d under the head", client.URL(), entries(seen.Size), size))
		return nil
	}
	p := audit.Problem{Class: audit.RolledBack, File: client.URL(), Detail: fmt.Sprintf("the signed head covers %s, the witness has cosigned %d: the run was put back to an older copy", entries(size), seen.Size)}
	if seen.Size == size {
		p.Class, p.Detail = audit.Rewritten, fmt.Sprintf("the witness has cosigned another log with %s: it is another history, though signed with the run's key", entries(size))
	}
	r.Integrity.Problems = append(r.Integrity.Problems, p)
	r.Integrity.Kept = append(r.Integrity.Kept, audit.Kept{Source: audit.KeptWitness, File: p.File, Size: seen.Size, Result: p.Class})
	r.Integrity.OK, r.Verdict, r.Exit = false, audit.Failed, exitFailed
	r.Completeness.Closed = false
	return nil
}

// printWitnessed says who has cosigned, up to where, and when.
func (a *app) printWitnessed(r *audit.Report) {
	other := slices.ContainsFunc(r.Integrity.Kept, func(k audit.Kept) bool { return k.Source == audit.KeptWitness && k.Result != audit.Contained })
	for _, w := range r.Integrity.Witnessed {
		if other {
			fmt.Fprintf(a.out, "  witnessed     NOT this log, but one of %s at %s by %s\n", entries(w.Size), w.Time.Format(time.RFC3339), w.Name)
			continue
		}
		fmt.Fprintf(a.out, "  witnessed     up to entry %d of %d at %s by %s\n", w.Size, r.Integrity.LogEntries, w.Time.Format(time.RFC3339), w.Name)
	}
}
