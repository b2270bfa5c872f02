package cli

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/tui"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/sink"
)

// Bounds of what usp top keeps of a run.
const (
	topRecords = 240 // the newest, for the lines that are drawn
	topValues  = 256 // numbers of a record
	topEnded   = 20  // runs that are not being recorded whose newest records are read
)

// newest keeps the last records of a run. A run that is being recorded is read on from where the last look came to.
type newest struct {
	follower *sink.Follower
	schema   *record.Schema
	rows     [][]uint64 // the newest last, at most topRecords
}

// look reads what has come.
func (n *newest) look(fsys vfs.FS, dir rundir.Dir) error {
	if n.follower == nil {
		end, err := sink.End(fsys, dir)
		if err != nil {
			return err
		}
		n.rows = nil
		n.follower = sink.Follow(fsys, dir, end-min(end, topRecords))
	}
	for {
		b, err := n.follower.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			n.close()
			return err
		}
		n.take(b)
	}
}

// take keeps the end of a batch.
func (n *newest) take(b *sink.Batch) {
	if n.schema == nil || n.schema.Sum() != b.Schema.Sum() {
		n.schema, n.rows = b.Schema, nil
	}
	for i := max(0, b.Records()-topRecords); i < b.Records(); i++ {
		var row []uint64
		if len(n.rows) == topRecords {
			row = n.rows[0]
			n.rows = append(n.rows[:0], n.rows[1:]...)
		}
		n.rows = append(n.rows, append(row[:0], b.Row(i)...))
	}
}

// close gives up the file; what was read stays.
func (n *newest) close() {
	if n.follower != nil {
		_ = n.follower.Close() // it was only read
		n.follower = nil
	}
}

// end is the ordinal behind the last frame that was read.
func (n *newest) end() uint64 {
	if n.follower == nil {
		return 0
	}
	return n.follower.Position()
}

// step is that of the newest record.
func (n *newest) step() (step uint64, ok bool) {
	if len(n.rows) == 0 {
		return 0, false
	}
	return n.rows[len(n.rows)-1][0], true
}

// values are the numbers of the newest record, with those of the ones before.
func (n *newest) values() (list []tui.Value) {
	if len(n.rows) == 0 {
		return nil
	}
	last := n.rows[len(n.rows)-1]
	for i := range n.schema.Len() {
		f := n.schema.Field(i)
		if f.Class == record.Digest {
			break // they and all behind them are not stored
		}
		for j := range f.Len {
			if len(list) == topValues {
				return list
			}
			v := tui.Value{Name: f.Name, Unit: f.Unit, Flag: f.Class == record.Flag}
			if f.Len > 1 {
				v.Name = fmt.Sprintf("%s/%d", f.Name, j)
			}
			at := n.schema.Offset(i) + j
			v.Now = number(last[at], f.Type)
			for _, row := range n.rows {
				v.History = append(v.History, asFloat(row[at], f.Type))
			}
			list = append(list, v)
		}
	}
	return list
}

// number is a stored word as it is written.
func number(w uint64, t record.Type) tui.Number {
	switch t {
	case record.Int64:
		return tui.Number(strconv.FormatInt(int64(w), 10))
	case record.Uint64:
		return tui.Number(strconv.FormatUint(w, 10))
	}
	return tui.Float(math.Float64frombits(w))
}

// asFloat is a stored word as what can be drawn.
func asFloat(w uint64, t record.Type) float64 {
	switch t {
	case record.Int64:
		return float64(int64(w))
	case record.Uint64:
		return float64(w)
	}
	return math.Float64frombits(w)
}

// watched is a run as it was at the last look.
type watched struct {
	line    tui.Run
	ended   bool // nobody records it: the line stays until somebody does
	newest  newest
	emitted uint64
	at      time.Time // of emitted; zero: it is not known
}

// watcher looks at all runs again and again.
type watcher struct {
	app  *app
	runs map[string]*watched
}

// look is one look.
func (v *watcher) look() (tui.View, error) {
	view := tui.View{Time: v.app.now(), Dir: display(v.app.cfg.Run.Dir), Runs: []tui.Run{}}
	list, err := rundir.List(v.app.fs, v.app.cfg.Run.Dir)
	if err != nil {
		return view, err
	}
	seen := map[string]*watched{}
	ended := 0
	for i := range slices.Backward(list) {
		r := &list[i]
		w := v.runs[r.ID]
		if w == nil {
			w = &watched{}
		}
		seen[r.ID] = w
		if !r.Recording {
			ended++
		}
		switch {
		case r.Recording:
			v.recorded(r, w)
		case !w.ended || w.line.Generation != r.Generation:
			v.ended(r, w, ended <= topEnded)
		}
		view.Runs = append(view.Runs, w.line)
	}
	for id, w := range v.runs {
		if seen[id] == nil {
			w.newest.close()
		}
	}
	v.runs = seen
	slices.SortStableFunc(view.Runs, func(a, b tui.Run) int { return rank(&a) - rank(&b) })
	return view, nil
}

func rank(r *tui.Run) int {
	if r.Status == tui.Recording {
		return 0
	}
	return 1
}

// recorded looks at a run that is being recorded: at its ring, and at what its telemetry has got more.
func (v *watcher) recorded(r *rundir.Run, w *watched) {
	was := w.line
	w.ended = false
	w.line = tui.Run{ID: r.ID, Status: tui.Recording, Generation: r.Generation, Step: was.Step}
	if r.Err != nil {
		w.line.Error = r.Err.Error()
	}
	if l := v.app.live(r.ID); l != nil {
		now := v.app.now()
		if d := now.Sub(w.at).Seconds(); !w.at.IsZero() && was.Generation == r.Generation && l.Emitted >= w.emitted && d > 0 {
			rate := float64(l.Emitted-w.emitted) / d
			w.line.Rate = &rate
		}
		w.emitted, w.at = l.Emitted, now
		w.line.Stored, w.line.Lost, w.line.Held, w.line.Fault = l.Stored, l.Lost, l.Held, l.Fault
	} else {
		w.at = time.Time{}
	}
	v.read(r, w, true)
}

// ended looks at a run that nobody records: once, as it does not change.
func (v *watcher) ended(r *rundir.Run, w *watched, read bool) {
	row := v.app.runRow(r)
	if row.Status == tui.Recording {
		v.recorded(r, w) // since the list was made
		return
	}
	w.at, w.ended = time.Time{}, true
	w.line = tui.Run{ID: r.ID, Status: row.Status, Generation: r.Generation, Step: row.Step, Error: row.Error}
	if end := row.end; end != nil {
		w.line.Stored, w.line.Lost = end.Stored, end.Lost
	}
	v.read(r, w, read)
	w.newest.close()
}

// read takes in what the files of a run say.
func (v *watcher) read(r *rundir.Run, w *watched, records bool) {
	fault := func(err error) {
		if err != nil && w.line.Error == "" {
			w.line.Error = err.Error()
		}
	}
	all, err := sink.Statuses(v.app.fs, r.Dir)
	fault(err)
	if records || len(all) > 0 {
		fault(w.newest.look(v.app.fs, r.Dir))
	}
	for _, s := range all {
		w.line.Sinks = append(w.line.Sinks, tui.Sink{Name: s.Name, Lag: w.newest.end() - min(w.newest.end(), s.Next), Fault: s.Fault})
	}
	far, ok, err := remote.ReadStatus(v.app.fs, r.Dir)
	fault(err)
	if ok {
		w.line.Sinks = append(w.line.Sinks, tui.Sink{Name: remote.Name, Lag: far.Waiting, Unit: "snapshots", Fault: far.Fault})
	}
	if step, ok := w.newest.step(); ok {
		w.line.Step = step
	}
	w.line.Values = w.newest.values()
	names, err := v.app.fs.ReadDir(r.Dir.Snapshots())
	if err == nil {
		for _, d := range names {
			if strings.HasSuffix(d.Name(), rundir.SnapshotSuffix) {
				w.line.Snapshots++
			}
		}
	}
}

// close gives up what is open.
func (v *watcher) close() {
	for _, w := range v.runs {
		w.newest.close()
	}
}
