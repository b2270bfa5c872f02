package cli

import (
	"fmt"
	"slices"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/vfs"
)

// maxHead bounds what is read of a head that was kept elsewhere.
const maxHead = 64 << 10

// keptHeads reads the heads that the run must contain: those named by --head.
func (a *app) keptHeads(files []string) ([]audit.KeptHead, error) {
	var heads []audit.KeptHead
	for _, name := range files {
		b, err := vfs.ReadFile(a.fs, name, maxHead)
		if err != nil {
			return nil, fmt.Errorf("--head: %w", err)
		}
		heads = append(heads, audit.KeptHead{Source: audit.KeptByHand, Name: name, Note: b})
	}
	return heads, nil
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
