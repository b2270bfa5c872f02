package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
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
		return slices.ContainsFunc(r.Integrity.Kept, func(k audit.Kept) bool { return k.File == p.File && k.Result == p.Class })
	}
	for _, p := range r.Integrity.Problems {
		if !kept(p) || r.Integrity.Dropped > 0 {
			return "DAMAGED"
		}
	}
	if slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.Class == audit.RolledBack || p.Class == audit.Rewritten }) {
		return "every byte is intact, but it is NOT THE RUN THAT WAS COMMITTED"
	}
	return "every byte of the run is intact, but a head that was kept elsewhere CANNOT BE USED"
}

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

// anchored says how the configured anchor of a run and its own head stand to each other.
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
	s := &anchored{File: rundir.AnchorPath(a.cfg.Anchor.Dir, m.RunID)}
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

func (s *anchored) print(w io.Writer) {
	switch {
	case s == nil:
	case s.Fault != "":
		fmt.Fprintf(w, "  anchor     %s: %s\n", display(s.File), s.Fault)
	case s.Size > s.Head:
		fmt.Fprintf(w, "  anchor     %s: a head of %s, the run's own is only of %d: it was put back to an older state; usp verify says more\n", display(s.File), entries(s.Size), s.Head)
	case s.Size < s.Head:
		fmt.Fprintf(w, "  anchor     %s: a head of %s, the run's own is of %d\n", display(s.File), entries(s.Size), s.Head)
	default:
		fmt.Fprintf(w, "  anchor     %s: the run's own head, of %s\n", display(s.File), entries(s.Size))
	}
}
