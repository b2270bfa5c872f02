package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
)

// tilesReport is the report of usp verify about an exported log.
type tilesReport struct {
	Dir     string            `json:"dir"`
	RunID   string            `json:"run_id,omitempty"`
	Verdict string            `json:"verdict"`
	Exit    int               `json:"exit"`
	Files   int               `json:"files"`
	Entries uint64            `json:"entries"`
	Root    string            `json:"root"`   // hexadecimal, over the entries from the first on without a hole
	Closed  bool              `json:"closed"` // the log came to its end before it was exported
	Head    *tilesHead        `json:"head,omitempty"`
	Kinds   map[string]uint64 `json:"kinds"`
	Faults  []tilesFault      `json:"problems,omitempty"`
	Dropped uint64            `json:"problems_dropped,omitempty"`
	Notes   []string          `json:"notes,omitempty"`
}

type tilesHead struct {
	Size    uint64   `json:"size"`
	Root    string   `json:"root"`
	Signers []string `json:"signers"`
	Trust   string   `json:"trust"` // given, or own
}

type tilesFault struct {
	Class  string `json:"class"`
	File   string `json:"file,omitempty"` // below the directory
	Offset int64  `json:"offset"`
	From   uint64 `json:"from"` // the entries it is about: [from, to)
	To     uint64 `json:"to"`
	Detail string `json:"detail"`
}

func (a *app) verifyTiles(ctx context.Context, dir string, f verifyFlags) error {
	if f.index || f.deep || f.input != "" || f.fromHead != "" {
		return usageError(fmt.Errorf("%s is an exported log, not a run: it is checked whole, and of the flags only --key applies", dir))
	}
	v, trust, err := a.proofKey(f.key)
	if err != nil {
		return err
	}
	keys := verifierList(v)
	found, err := digestlog.VerifyTiles(digestlog.TilesOptions{FS: a.fs, Dir: dir, Verifiers: keys, Each: func(digestlog.Item) error { return ctx.Err() }})
	if errors.Is(err, fs.ErrNotExist) {
		return withCode(exitFailed, fmt.Errorf("%s has tiles and no checkpoint: without it nothing can be checked", dir))
	}
	if err != nil {
		return err
	}
	r := tilesFindings(dir, &found, keys, trust)
	if a.json {
		if err := a.printJSON(r, true); err != nil {
			return err
		}
	} else {
		a.printTiles(r)
	}
	if r.Exit != exitOK {
		return withCode(r.Exit, nil)
	}
	return nil
}

// tilesFindings makes the report. Damage counts more than a key that nobody gave.
func tilesFindings(dir string, found *digestlog.Report, keys note.Verifiers, trust string) *tilesReport {
	r := &tilesReport{
		Dir: dir, RunID: found.RunID, Verdict: verdictOK, Files: found.Files, Entries: found.Entries, Root: hex.EncodeToString(found.Root[:]),
		Closed: found.Closed(), Kinds: map[string]uint64{}, Dropped: found.Dropped,
	}
	for kind, n := range found.Kinds {
		r.Kinds[kind.String()] = n
	}
	unknown := uint64(0)
	for _, f := range found.Faults {
		switch {
		case f.Class == digestlog.ClassUnknown:
			unknown++
			continue
		case f.Class == digestlog.ClassWrongKey:
			r.Notes = append(r.Notes, "signed "+whoseKey(trust, f.Err))
			r.worse(verdictWrongKey, exitWrongKey)
			continue
		case !f.Benign():
			r.worse(verdictFailed, exitFailed)
		}
		r.Faults = append(r.Faults, tilesFault{string(f.Class), f.File, f.Offset, f.From, f.To, f.Err.Error()})
	}
	if h := found.Head; h != nil {
		r.Head = &tilesHead{Size: h.Size, Root: hex.EncodeToString(h.Root[:]), Trust: trust}
		if n, err := note.Open(h.Note, keys); err == nil {
			for _, s := range n.Sigs {
				r.Head.Signers = append(r.Head.Signers, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
			}
		}
	}
	if unknown > 0 {
		r.Notes = append(r.Notes, entriesText(unknown)+" of a newer usp: verified as leaves, and not understood")
	}
	if r.Exit == exitOK && !r.Closed {
		r.Notes = append(r.Notes, "the run had not ended when it was exported, or was never closed")
	}
	if found.Err() != nil && r.Exit == exitOK { // faults that were dropped
		r.worse(verdictFailed, exitFailed)
	}
	return r
}

// worse makes the verdict the worse of two.
func (r *tilesReport) worse(verdict string, exit int) {
	if exit > r.Exit {
		r.Verdict, r.Exit = verdict, exit
	}
}

func (a *app) printTiles(r *tilesReport) {
	w := a.out
	switch r.Verdict {
	case verdictOK:
		fmt.Fprintf(w, "exported log of run %s: ok: entries and tiles are what was signed\n", r.RunID)
	case verdictWrongKey:
		fmt.Fprintf(w, "exported log of run %s: signed with another key\n", r.RunID)
	default:
		fmt.Fprintf(w, "exported log of run %s: FAILED: it is not what was signed\n", r.RunID)
	}
	fmt.Fprintf(w, "  entries   %d (%d STEP) in %d files, root %s\n", r.Entries, r.Kinds[digestlog.KindStep.String()], r.Files, r.Root)
	if h := r.Head; h != nil {
		fmt.Fprintf(w, "  head      over %s", entriesText(h.Size))
		for _, s := range h.Signers {
			fmt.Fprintf(w, ", signed by %s", s)
		}
		whose := "the key that was given"
		if h.Trust == trustOwn {
			whose = "your own key"
		}
		fmt.Fprintf(w, " (%s)\n", whose)
	}
	for _, f := range r.Faults {
		fmt.Fprintf(w, "    %s", f.Class)
		if f.File != "" {
			fmt.Fprintf(w, ": %s at byte %d", f.File, f.Offset)
		}
		if f.To > f.From {
			fmt.Fprintf(w, ": entries %d to %d", f.From, f.To-1)
		}
		fmt.Fprintf(w, ": %s\n", f.Detail)
	}
	if r.Dropped > 0 {
		fmt.Fprintf(w, "    and %d more\n", r.Dropped)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  note: %s\n", n)
	}
}

var errWhatToVerify = errors.New("give one RUN, one exported directory, or --proof FILE")
