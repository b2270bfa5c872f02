package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/sink"
)

// facts is what is known of a run beside its telemetry.
type facts struct {
	ID         string
	Status     string
	Recording  bool
	Created    time.Time
	Generation uint32
	Schema     string
	Host       string
	Step       uint64 // of the newest digest or snapshot
	Lost       uint64
	Head       head
	Fault      string // why there is no more
	Snapshots  []recorder.Logged
}

// head is the signed head of a run's digest log.
type head struct {
	Size   uint64
	Root   string
	Signer string
	At     time.Time // when its file was written
	Fault  string
}

// sinkView is one destination.
type sinkView struct {
	Name    string
	Next    uint64
	Behind  uint64 // frames
	Lag     string // since when it has not had all
	Updated time.Time
	Fault   string
	Tries   int
}

// cached is facts that hold as long as the head's file is the same.
type cached struct {
	facts
	stamp string
	until time.Time
}

// sample is how far a run was at a time.
type sample struct {
	at    time.Time
	steps uint64
	rate  float64
}

const (
	factsFor   = 500 * time.Millisecond // of a run that is recorded
	rateOver   = time.Second
	mostCached = 4096
	mostEnds   = 256 // looks at a run that are remembered
	mostName   = 255 // bytes, of a directory
)

// find is the run directory with a name; what is in no listing is not found either.
func (s *Server) find(id string) (*rundir.Run, error) {
	if id == "" || len(id) > mostName || id == rundir.Latest || strings.HasPrefix(id, ".") || strings.ContainsAny(id, "/\\\x00") {
		return nil, &rundir.NotFoundError{Arg: clip(id, 100), RunsDir: s.o.Runs}
	}
	dir := rundir.At(filepath.Join(s.o.Runs, id))
	newest, err := rundir.LastGeneration(s.o.FS, dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = &rundir.NotFoundError{Arg: clip(id, 100), RunsDir: s.o.Runs}
		}
		return nil, err
	}
	run := &rundir.Run{ID: id, Dir: dir, Generation: newest, Recording: rundir.Locked(s.o.FS, dir)}
	first, _, err := rundir.ReadManifest(s.o.FS, dir, 0)
	if err != nil {
		run.Err = err
		return run, nil
	}
	run.Created = first.Created
	run.Manifest, _, run.Err = rundir.ReadManifest(s.o.FS, dir, newest)
	return run, nil
}

// factsOf reads what there is, or remembers it.
func (s *Server) factsOf(run *rundir.Run) facts {
	stamp := fmt.Sprint(run.Generation, run.Recording, run.Err)
	if info, err := s.o.FS.Stat(run.Dir.Head()); err == nil {
		stamp += fmt.Sprint(" ", info.Size(), info.ModTime().UnixNano())
	}
	now := s.o.Now()
	s.mu.Lock()
	c, ok := s.facts[run.ID]
	s.mu.Unlock()
	if ok && c.stamp == stamp && (!run.Recording && c.Head.Size > 0 || now.Before(c.until)) {
		return c.facts
	}
	f := s.readFacts(run)
	s.mu.Lock()
	if len(s.facts) >= mostCached {
		clear(s.facts)
	}
	s.facts[run.ID] = cached{f, stamp, now.Add(factsFor)}
	s.mu.Unlock()
	return f
}

func (s *Server) readFacts(run *rundir.Run) facts {
	f := facts{ID: run.ID, Recording: run.Recording, Created: run.Created, Generation: run.Generation}
	if run.Err != nil {
		f.Status, f.Fault = "unreadable", s.inRuns(run.Err.Error())
		return f
	}
	f.Host = run.Manifest.Host.Name
	if schema, err := run.Manifest.ParsedSchema(); err == nil {
		f.Schema = schema.Name()
	}
	f.Status = s.o.Status(run)
	f.Head = s.readHead(run)
	last, err := recorder.LastStep(s.o.FS, run.Dir.Path())
	if err == nil {
		f.Snapshots, err = recorder.EffectiveSnapshots(s.o.FS, run.Dir.Path())
	}
	if err != nil && !run.Recording { // of one that is recorded, files may change under the eyes of a reader
		f.Fault = s.inRuns(err.Error())
	}
	f.Step, f.Lost = last.Step, last.Lost
	return f
}

// readHead reads the head and checks it with the key that the manifest names.
func (s *Server) readHead(run *rundir.Run) (h head) {
	v, err := note.NewVerifier(run.Manifest.Signer)
	if err != nil {
		h.Fault = "the manifest names no key to check it with"
		return h
	}
	info, err := s.o.FS.Stat(run.Dir.Head())
	if errors.Is(err, fs.ErrNotExist) {
		h.Fault = "nothing was signed yet"
		return h
	}
	var signed digestlog.SignedTreeHead
	if err == nil {
		h.At = info.ModTime()
		signed, err = digestlog.ReadHead(s.o.FS, run.Dir.Head(), note.VerifierList(v))
	}
	if err != nil {
		h.Fault = s.inRuns(err.Error())
		return h
	}
	h.Size, h.Root, h.Signer = signed.Size, fmt.Sprintf("%x", signed.Root), v.Name()
	return h
}

// sinks reads how far each destination has the run, whose frames go up to end.
func (s *Server) sinks(run *rundir.Run, end uint64) []sinkView {
	list, err := sink.Statuses(s.o.FS, run.Dir)
	if err != nil {
		s.o.Logger.Warn("the cursors of a run's sinks cannot be read", "run", run.ID, "error", err)
	}
	s.stored(run.ID, end)
	var views []sinkView
	for _, st := range list {
		v := sinkView{Name: st.Name, Next: st.Next, Updated: st.Updated, Fault: st.Fault, Tries: st.Tries}
		v.Behind = end - min(end, st.Next)
		v.Lag = s.lag(run.ID, st.Next, end)
		views = append(views, v)
	}
	st, ok, err := remote.ReadStatus(s.o.FS, run.Dir)
	if err != nil {
		s.o.Logger.Warn("how far the remote store has a run's snapshots cannot be read", "run", run.ID, "error", err)
	} else if ok {
		views = append(views, sinkView{Name: remote.Name + " (snapshots)", Next: st.Sent, Behind: st.Waiting, Updated: st.Updated, Fault: st.Fault, Tries: st.Tries})
	}
	return views
}

// seenEnd is how many frames a run had at a time at which it was looked at.
type seenEnd struct {
	at     time.Time
	frames uint64
}

// stored notes how many frames a run has now. Of many looks every second one is forgotten.
func (s *Server) stored(id string, frames uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.ends[id]
	if n := len(list); n > 0 && frames < list[n-1].frames {
		list = nil // another run of that name
	} else if n > 0 && frames == list[n-1].frames {
		return
	}
	if len(list) == mostEnds {
		for i := range mostEnds / 2 {
			list[i] = list[2*i]
		}
		list = list[:mostEnds/2]
	}
	if len(s.ends) >= mostCached {
		clear(s.ends)
	}
	s.ends[id] = append(list, seenEnd{s.o.Now(), frames})
}

// lag is how long ago the first frame was stored that a destination does not have, as far as looks at the run can tell: of one that
// was there at the first look it is at least so long.
func (s *Server) lag(id string, next, end uint64) string {
	if next >= end {
		return "0 s"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.ends[id]
	i := slices.IndexFunc(list, func(e seenEnd) bool { return e.frames > next })
	if i < 0 {
		return "0 s"
	}
	text := fmt.Sprintf("%d s", int(s.o.Now().Sub(list[i].at).Seconds()))
	if i == 0 {
		return "at least " + text
	}
	return text
}

// rate is how many steps a run makes in a second: between the last two looks at it, or at the first, since it began.
func (s *Server) rate(run *rundir.Run, steps uint64, since time.Time) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	last, ok := s.rates[run.ID]
	switch {
	case !ok || steps < last.steps:
		last = sample{now, steps, 0}
		if d := now.Sub(since); d > 0 {
			last.rate = float64(steps) / d.Seconds()
		}
	case now.Sub(last.at) >= rateOver:
		last = sample{now, steps, float64(steps-last.steps) / now.Sub(last.at).Seconds()}
	}
	if len(s.rates) >= mostCached {
		clear(s.rates)
	}
	s.rates[run.ID] = last
	return last.rate
}

// live is what the ring says; nil: not known.
func (s *Server) live(run *rundir.Run) *Live {
	if s.o.Live == nil || !run.Recording {
		return nil
	}
	return s.o.Live(run.ID)
}

// openRun is Data that is kept.
type openRun struct {
	id   string
	data Data
}

// data opens the telemetry of a run, or finds it open.
func (s *Server) data(run *rundir.Run) (Data, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.opened, func(o *openRun) bool { return o.id == run.ID }); i >= 0 {
		o := s.opened[i]
		s.opened = append(slices.Delete(s.opened, i, i+1), o)
		return o.data, nil
	}
	d, err := s.o.Open(run.Dir.Path())
	if err != nil {
		return nil, err
	}
	if len(s.opened) == openRuns {
		s.closeData(s.opened[0])
		s.opened = slices.Delete(s.opened, 0, 1)
	}
	s.opened = append(s.opened, &openRun{run.ID, d})
	return d, nil
}

func (s *Server) closeData(o *openRun) {
	if c, ok := o.data.(io.Closer); ok {
		if err := c.Close(); err != nil {
			s.o.Logger.Warn("the data of a run could not be closed", "run", o.id, "error", err)
		}
	}
}

func (s *Server) closeRuns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.opened {
		s.closeData(o)
	}
	s.opened = nil
}

// steady reads a run that a recorder may be changing meanwhile: what fails then is tried again.
func (s *Server) steady(ctx context.Context, run *rundir.Run, read func() error) error {
	for try := 0; ; try++ {
		err := read()
		if err == nil || try == 5 || ctx.Err() != nil || !rundir.Locked(s.o.FS, run.Dir) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// runRow is a line of the list of runs.
type runRow struct {
	facts
	Rate  string
	Steps string
	Age   string
	Lost  uint64
	Now   *Live
}

// rows lists the runs, the newest first.
func (s *Server) rows() ([]runRow, error) {
	list, err := rundir.List(s.o.FS, s.o.Runs)
	if err != nil {
		return nil, err
	}
	rows := make([]runRow, 0, len(list))
	for i := range list {
		r := &list[i]
		f := s.factsOf(r)
		row := runRow{facts: f, Lost: f.Lost, Now: s.live(r), Rate: "–", Age: ago(s.o.Now().Sub(r.Created)), Steps: thousands(f.Step)}
		if r.Recording && r.Err == nil {
			steps := f.Step
			if row.Now != nil {
				steps = row.Now.Emitted
				row.Lost = max(row.Lost, row.Now.Lost)
			}
			row.Rate = short(s.rate(r, steps, r.Manifest.Created))
		}
		rows = append(rows, row)
	}
	slices.SortStableFunc(rows, func(a, b runRow) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	})
	return rows, nil
}

// glance is the state that a stream ends with.
func (s *Server) ended(run *rundir.Run) bool {
	return audit.Glance(s.o.FS, run.Dir.Path()).State == audit.Closed
}
