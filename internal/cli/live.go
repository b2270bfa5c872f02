package cli

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/ring"
)

// live is what the ring of a run that is being recorded says.
type live struct {
	Emitted     uint64 `json:"emitted"` // of this generation, like the others
	Stored      uint64 `json:"stored"`
	Lost        uint64 `json:"lost"`
	LostStorage uint64 `json:"lost_storage"` // of those lost: storage did not take them
	Held        uint64 `json:"held"`         // in the recorder's memory until storage is well
	Fault       string `json:"fault,omitempty"`
	Snapshots   uint64 `json:"snapshots"`
	Unsaved     uint64 `json:"snapshots_unsaved"`
	Recorder    int    `json:"recorder_pid"`
	EmitP50     int64  `json:"emit_ns_p50"` // of the records whose emission was timed, to a quarter; 0: none was
	EmitP99     int64  `json:"emit_ns_p99"`
	EmitMax     int64  `json:"emit_ns_max"`

	emits ring.Durations
}

// live looks into the ring of a run; nil if there is none.
func (a *app) live(id string) *live {
	dir := a.cfg.Ring.Dir
	if dir == "" {
		dir, _ = ring.DefaultDir()
	}
	c, err := ring.Open(filepath.Join(dir, rundir.RingName(id)))
	if err != nil {
		return nil // it may just have been removed
	}
	defer c.Close()
	p := c.Published()
	l := &live{
		Emitted: c.Produced(), Stored: p.Stored, Lost: p.Lost, LostStorage: p.LostStorage, Held: p.Held,
		Snapshots: p.Snapshots, Unsaved: p.Unsaved, Recorder: p.PID,
	}
	l.emits = c.Durations()
	l.EmitP50, l.EmitP99, l.EmitMax = l.emits.Quantile(.5).Nanoseconds(), l.emits.Quantile(.99).Nanoseconds(), l.emits.Longest.Nanoseconds()
	if p.Fault != 0 {
		l.Fault = p.Fault.Error()
	}
	return l
}

func (l *live) print(w io.Writer) {
	if l == nil {
		return
	}
	fmt.Fprintf(w, "  now        %d emitted, %d stored, %d lost, %d snapshots; recorder is process %d\n", l.Emitted, l.Stored, l.Lost, l.Snapshots, l.Recorder)
	if l.EmitMax > 0 {
		fmt.Fprintf(w, "  emit       p50 %d ns, p99 %d ns, max %d ns, of %d that were timed\n", l.EmitP50, l.EmitP99, l.EmitMax, l.emits.Counted())
	}
	if l.Fault != "" {
		fmt.Fprintf(w, "  STORAGE    takes nothing: %s; %d records are held in memory, %d were lost to it, %d snapshots given up\n", l.Fault, l.Held, l.LostStorage, l.Unsaved)
	}
}
