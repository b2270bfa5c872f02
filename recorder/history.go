package recorder

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// history is what the digest log of a run says so far.
type history struct {
	generations []generation      // by number
	snapshots   []digestlog.Entry // SNAPSHOT entries without a PRUNE entry, in log order
	pruned      []string          // names of the others
	lost        uint64            // records in LOST entries
	telemetry   uint64            // ordinal after the last sealed telemetry frame
}

// generation is what the log says of one generation.
type generation struct {
	opened    bool
	end       *digestlog.Entry
	schema    [32]byte
	next      uint64 // sequence number after the last one that has a digest or is known to be lost
	digests   uint64
	lastStep  uint64 // newest step with a digest or a snapshot
	snapshots uint64
	rewound   bool
	rewindTo  uint64 // the step it continued behind
	rewindGen uint32
}

// readHistory reads the log once. A log that is not there yet is an empty history.
func readHistory(fsys vfs.FS, dir rundir.Dir) (*history, error) {
	h := &history{}
	if _, err := fsys.Stat(dir.Digests()); errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	for item, err := range digestlog.Entries(fsys, dir.Digests()) {
		var fault *digestlog.Fault
		switch {
		case errors.As(err, &fault) && fault.Class == digestlog.ClassUnknown: // of a newer version: what is common is known
		case errors.As(err, &fault) && fault.Benign():
			continue
		case err != nil:
			return nil, fmt.Errorf("read the digest log: %w", err)
		}
		h.add(&item.Entry)
	}
	return h, nil
}

func (h *history) add(e *digestlog.Entry) {
	for int(e.Generation) >= len(h.generations) {
		h.generations = append(h.generations, generation{})
	}
	g := &h.generations[e.Generation]
	switch e.Kind {
	case digestlog.KindOpen:
		g.opened, g.schema = true, e.Schema
	case digestlog.KindStep:
		g.next = e.Seq + 1
		g.digests++
		g.lastStep = e.Step
	case digestlog.KindLost:
		g.next = max(g.next, e.To)
		h.lost += e.To - e.From
	case digestlog.KindSnapshot:
		g.snapshots++
		g.lastStep = max(g.lastStep, e.Step)
		h.snapshots = append(h.snapshots, *e)
	case digestlog.KindPrune:
		h.snapshots = slices.DeleteFunc(h.snapshots, func(s digestlog.Entry) bool { return s.Name == e.Name })
		h.pruned = append(h.pruned, e.Name)
	case digestlog.KindRewind:
		g.rewound, g.rewindTo, g.rewindGen = true, e.Target, e.FromGeneration
	case digestlog.KindSeal:
		h.telemetry = max(h.telemetry, e.Base+e.Count)
	case digestlog.KindEnd:
		end := *e
		g.end = &end
	}
}

// last returns the newest generation, or nil if the log has none.
func (h *history) last() (number uint32, g *generation) {
	if len(h.generations) == 0 {
		return 0, nil
	}
	n := len(h.generations) - 1
	return uint32(n), &h.generations[n]
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
	var out []digestlog.Entry
	limit := ^uint64(0)
	for n := len(h.generations) - 1; n >= 0; n-- {
		for _, e := range slices.Backward(h.snapshots) {
			if e.Generation == uint32(n) && e.Step <= limit {
				out = append(out, e)
			}
		}
		if g := &h.generations[n]; g.rewound {
			limit = min(limit, g.rewindTo)
		}
	}
	return out
}
