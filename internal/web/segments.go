package web

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

const (
	overviewCells = 1 << 17 // of a run's overview, 56 bytes each
	mostStretches = 4096
	mostElements  = 512
	freshFor      = 50 * time.Millisecond // how long what was read counts as new
	leastColumns  = 200                   // a coarse answer is good enough from here on
)

// segments is Data read from a run's telemetry segments: an overview of the whole run, in memory that does not grow with
// it and brought up to date as the run goes on, and behind it the segments themselves for a closer look. The first
// call reads the whole run.
type segments struct {
	fsys vfs.FS
	dir  string
	now  func() time.Time

	mu     sync.Mutex
	read   time.Time // when the end was looked at
	line   *audit.Timeline
	follow *follower
	track  track
	grid   *grid
	extent Extent
}

// OpenSegments is Data of a run directory, for runs that have no pyramid. It reads nothing yet.
func OpenSegments(fsys vfs.FS, dir string, now func() time.Time) Data {
	return &segments{fsys: fsys, dir: dir, now: now}
}

// Extent implements Data.
func (s *segments) Extent(ctx context.Context) (Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.extent, s.refresh(ctx)
}

// refresh reads what was stored since. If ctx ends it goes on with the next call.
func (s *segments) refresh(ctx context.Context) error {
	if s.line != nil && s.now().Sub(s.read) < freshFor {
		return nil
	}
	if s.line == nil {
		if err := s.reset(); err != nil {
			return err
		}
	}
	var f record.Frame
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b, err := s.follow.frame()
		if err == io.EOF {
			s.read = s.now()
			return nil
		}
		if err != nil {
			return err
		}
		if record.DecodeFrame(b, &f) != nil {
			continue // usp verify judges; here is shown what can be read
		}
		if s.line.Schema(f.Generation) == nil || f.Generation > s.extent.Generation { // what it rewinds must be forgotten
			version := s.extent.Version
			if err := s.reset(); err != nil {
				return err
			}
			s.extent.Version = version + 1
			if s.line.Schema(f.Generation) == nil {
				return fmt.Errorf("run %s: telemetry of generation %d, which was never opened", s.line.RunID, f.Generation)
			}
			continue
		}
		s.take(&f)
	}
}

// reset begins again, with the generations that there are now.
func (s *segments) reset() error {
	line, err := audit.Open(s.fsys, s.dir)
	if err != nil {
		return err
	}
	if s.follow != nil {
		s.follow.close()
	}
	newest := line.Manifests[len(line.Manifests)-1].Generation
	elements := elementsOf(line.Schema(newest), mostElements)
	s.line, s.follow, s.track = line, &follower{fsys: s.fsys, dir: line.Dir.Telemetry()}, track{line: line}
	s.grid = newGrid(elements, max(2*leastColumns, min(mostStretches, overviewCells/max(1, len(elements)))))
	s.track.places = map[uint32][]place{}
	s.extent = Extent{Generation: newest, Schema: line.Schema(newest), Version: s.extent.Version + 1}
	return nil
}

func (s *segments) take(f *record.Frame) {
	e := &s.extent
	e.Version++
	if f.Kind == record.KindLost && !s.line.Superseded(f.Generation, s.track.step+1) {
		e.Lost += f.To - f.Seq
	}
	if s.track.take(f, s.grid) {
		if e.Records == 0 {
			e.First = f.Step()
		}
		e.Records++
		e.Last, e.LastTime = f.Step(), f.Time()
	}
}

// Range implements Data.
func (s *segments) Range(ctx context.Context, elements []Element, from, until uint64, columns int) (*Table, error) {
	s.mu.Lock()
	err := s.refresh(ctx)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	until = max(from, until)
	if width := s.grid.Width; width <= widthFor(from, until, columns) || (until-from)/width >= leastColumns {
		defer s.mu.Unlock()
		return s.grid.summed(elements, from, until, columns), nil
	}
	line := s.line
	s.mu.Unlock()
	return scan(ctx, s.fsys, line, newFixedGrid(elements, from, until, columns))
}

// scan fills a fixed grid from the segments that have steps of it.
func scan(ctx context.Context, fsys vfs.FS, line *audit.Timeline, g *grid) (*Table, error) {
	until := g.End(g.Columns - 1)
	t := track{line: line, places: map[uint32][]place{}}
	f := &follower{fsys: fsys, dir: line.Dir.Telemetry(), pass: func(path string) bool {
		ends, err := segment.ReadEnds(fsys, path)
		if err != nil || !ends.Sealed {
			return false
		}
		sum, err := record.ParseSummary(ends.Index)
		if err != nil || sum.Stored == 0 || sum.LastStep >= g.From && sum.FirstStep <= until {
			return false
		}
		if sum.LastStep < g.From {
			t.passed(&sum)
		}
		return true
	}}
	defer f.close()
	var frame record.Frame
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		b, err := f.frame()
		if err == io.EOF {
			return &g.Table, nil
		}
		if err != nil {
			return nil, err
		}
		if record.DecodeFrame(b, &frame) == nil && line.Schema(frame.Generation) != nil {
			t.take(&frame, g)
		}
	}
}

// track picks from a stream of frames what is on the effective timeline.
type track struct {
	line       *audit.Timeline
	places     map[uint32][]place
	any        bool
	step       uint64 // of the newest record on the timeline, or where the generation began
	generation uint32
	lost       bool // since the newest record
}

// passed notes a segment that is not read.
func (t *track) passed(s *record.Summary) {
	if !t.line.Superseded(s.Generation, s.LastStep) {
		t.any, t.step, t.generation, t.lost = true, s.LastStep, s.Generation, false
	}
}

// take puts a frame into a grid; it reports whether it was a record that counts.
func (t *track) take(f *record.Frame, g *grid) bool {
	if f.Generation != t.generation {
		t.generation, t.lost = f.Generation, false
		t.step = t.line.Begin(f.Generation)
	}
	if f.Kind == record.KindLost {
		t.lost = true
		if n := f.To - f.Seq; t.any && n > 0 && t.step < math.MaxUint64-n && !t.line.Superseded(f.Generation, t.step+1) {
			g.lose(t.step+1, t.step+n) // each has a step of its own; if more steps than records are missing, the next record tells
			t.step += n
		}
		return false
	}
	if t.line.Superseded(f.Generation, f.Step()) || t.any && f.Step() <= t.step {
		return false
	}
	if t.lost && f.Step() > t.step+1 && t.any {
		g.lose(t.step+1, f.Step()-1)
	}
	t.any, t.step, t.lost = true, f.Step(), false
	p, ok := t.places[f.Generation]
	if !ok {
		p = places(t.line.Schema(f.Generation), g.elements)
		t.places[f.Generation] = p
	}
	g.record(p, f)
	return true
}
