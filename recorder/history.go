package recorder

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// history is what the digest log of a run says so far.
type history struct {
	generations []generation               // by number
	snapshots   map[string]digestlog.Entry // SNAPSHOT entries without a PRUNE entry, by file name
	pruned      map[string]bool            // names of the others
	sealed      map[string]bool            // names of the telemetry segments with a SEAL entry
	lost        uint64                     // records in LOST entries
	telemetry   uint64                     // ordinal after the last sealed telemetry frame
}

// generation is what the log says of one generation.
type generation struct {
	opened    bool
	open      digestlog.Entry
	end       *digestlog.Entry
	schema    [32]byte
	digested  uint64 // sequence number after the last one whose digest is logged, or noted as missing
	lostTo    uint64 // sequence number after the last one that is logged as lost
	digests   uint64
	lastStep  uint64 // newest step with a digest or a snapshot
	snapshots uint64
	saved     uint64 // position of the newest snapshot, whether pruned or not
	rewind    *digestlog.Entry
}

// readHistory reads the outline of the log: what it takes grows with the files of the log, not with the steps in them. A log that is
// not there yet is an empty history.
func readHistory(fsys vfs.FS, dir rundir.Dir) (*history, error) {
	h := &history{snapshots: map[string]digestlog.Entry{}, pruned: map[string]bool{}, sealed: map[string]bool{}}
	if _, err := fsys.Stat(dir.Digests()); errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	for item, err := range digestlog.Outline(fsys, dir.Digests()) {
		var fault *digestlog.Fault
		switch {
		case errors.As(err, &fault) && fault.Benign(): // a torn tail, or an entry that only a newer version understands
			continue
		case err != nil:
			return nil, fmt.Errorf("read the digest log: %w", err)
		}
		if item.Run.Count > 0 {
			err = h.addRun(&item.Run)
		} else {
			err = h.add(&item.Entry)
		}
		if err != nil {
			return nil, fmt.Errorf("read the digest log: entry %d in %s at byte %d: %w", item.Index, item.File, item.Offset, err)
		}
	}
	return h, nil
}

// at returns a generation, of which the log has begun to speak. Generations are opened one after the other; the bound keeps a hostile
// log from asking for memory.
func (h *history) at(n uint32) (*generation, error) {
	switch count := uint64(len(h.generations)); {
	case uint64(n) > count:
		return nil, fmt.Errorf("generation %d follows %d generations", n, count)
	case uint64(n) == count:
		h.generations = append(h.generations, generation{})
	}
	return &h.generations[n], nil
}

// addRun takes STEP entries in.
func (h *history) addRun(s *digestlog.Steps) error {
	g, err := h.at(s.Generation)
	if err != nil {
		return err
	}
	g.digested = s.LastSeq + 1
	g.digests += s.Count
	g.lastStep = s.LastStep
	return nil
}

// add takes one entry in that is not a STEP.
func (h *history) add(e *digestlog.Entry) error {
	g, err := h.at(e.Generation)
	if err != nil {
		return err
	}
	switch e.Kind {
	case digestlog.KindOpen:
		g.opened, g.open, g.schema = true, *e, e.Schema
	case digestlog.KindLost:
		g.lostTo = e.To
		h.lost += e.To - e.From
	case digestlog.KindSnapshot:
		g.snapshots++
		g.lastStep, g.saved = max(g.lastStep, e.Step), max(g.saved, e.Seq)
		h.snapshots[e.Name] = *e
		delete(h.pruned, e.Name)
	case digestlog.KindPrune:
		delete(h.snapshots, e.Name)
		h.pruned[e.Name] = true
	case digestlog.KindRewind:
		rewind := *e
		g.rewind = &rewind
	case digestlog.KindSeal:
		h.telemetry = max(h.telemetry, e.Base+e.Count)
		h.sealed[e.Name] = true
	case digestlog.KindEnd:
		end := *e
		g.end = &end
	case digestlog.KindEvent:
		if e.Code == digestlog.EventDigestsMissing {
			g.digested = max(g.digested, e.Seq+1)
		}
	}
	return nil
}

// last returns the newest generation that was opened, or nil if there is none.
func (h *history) last() (number uint32, g *generation) {
	for n := range slices.Backward(h.generations) {
		if h.generations[n].opened {
			return uint32(n), &h.generations[n]
		}
	}
	return 0, nil
}

func (h *history) generation(n uint32) generation {
	if int(n) < len(h.generations) {
		return h.generations[n]
	}
	return generation{}
}

// effective returns the snapshots that lie on the effective timeline, the one to resume from first: those of the newest
// generation, then those of older ones up to the step from which a newer one took over.
func (h *history) effective() []digestlog.Entry {
	all := slices.SortedFunc(maps.Values(h.snapshots), func(a, b digestlog.Entry) int {
		return cmp.Or(-cmp.Compare(a.Generation, b.Generation), -cmp.Compare(a.Step, b.Step))
	})
	var out []digestlog.Entry
	limit := ^uint64(0)
	for n, g := range slices.Backward(h.generations) {
		for _, e := range all {
			if e.Generation == uint32(n) && e.Step <= limit {
				out = append(out, e)
			}
		}
		if g.rewind == nil {
			continue
		}
		if g.rewind.SHA256 == [32]byte{} { // a cold start: nothing older counts
			break
		}
		limit = min(limit, g.rewind.Target)
	}
	return out
}

// checkResumed refuses a start from a snapshot that the log does not have: the REWIND entry would name something that
// nothing vouches for.
func (h *history) checkResumed(to *rundir.Resumed) error {
	if to == nil || to.SnapshotSHA256 == (rundir.Hash{}) {
		return nil
	}
	for _, e := range h.snapshots {
		if e.SHA256 == to.SnapshotSHA256 && e.Step == to.Step && e.Generation == to.Generation {
			return nil
		}
	}
	return fmt.Errorf("it continues from snapshot %v of step %d, generation %d, which the run's log does not have", to.SnapshotSHA256, to.Step, to.Generation)
}
