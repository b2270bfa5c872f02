package web

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
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
	dir  rundir.Dir
	now  func() time.Time

	mu     sync.Mutex
	read   time.Time // when the end was looked at
	line   *audit.Timeline
	follow *sink.Follower
	track  track
	grid   *grid
	extent Extent
}

// OpenSegments is Data of a run directory, for runs that have no pyramid. It reads nothing yet.
func OpenSegments(fsys vfs.FS, dir string, now func() time.Time) Data {
	return &segments{fsys: fsys, dir: rundir.At(dir), now: now}
}

// Close closes the file that is held open.
func (s *segments) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.line == nil {
		return nil
	}
	s.line = nil // a later call begins again
	return s.follow.Close()
}

// Extent implements Data.
func (s *segments) Extent(ctx context.Context) (Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.refresh(ctx)
	return s.extent, err
}

// refresh reads what was stored since. If ctx ends it goes on with the next call.
func (s *segments) refresh(ctx context.Context) error {
	if s.line == nil {
		if err := s.reset(); err != nil {
			return err
		}
	} else if s.now().Sub(s.read) < freshFor {
		return nil
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b, err := s.follow.Next()
		if errors.Is(err, io.EOF) {
			s.read = s.now()
			return nil
		}
		if err != nil {
			return err
		}
		if b.Generation > s.extent.Generation { // what it rewinds must be forgotten
			if err := s.reset(); err != nil {
				return err
			}
			if b.Generation <= s.extent.Generation {
				continue
			}
			s.extent.Generation = b.Generation // of a log that does not know it
		}
		s.take(b)
	}
}

// reset begins again, with the generations that there are now.
func (s *segments) reset() error {
	line, err := audit.Open(s.fsys, s.dir.Path())
	if err != nil {
		return err
	}
	if s.follow != nil {
		_ = s.follow.Close() // it was read only
	}
	newest := line.Manifests[len(line.Manifests)-1].Generation
	elements := elementsOf(line.Schema(newest), mostElements)
	s.line, s.follow, s.track = line, sink.Follow(s.fsys, s.dir, 0), track{line: line}
	s.grid = newGrid(elements, max(2*leastColumns, min(mostStretches, overviewCells/max(1, len(elements)))))
	s.extent = Extent{Generation: newest, Schema: line.Schema(newest)}
	return nil
}

func (s *segments) take(b *sink.Batch) {
	e := &s.extent
	e.Frames, e.Schema = max(e.Frames, b.Next), b.Schema
	s.track.take(b, s.grid)
	e.Records, e.Lost, e.First, e.Last, e.LastTime = s.track.records, s.track.lost, s.track.first, s.track.last, s.track.time
}

// Range implements Data.
func (s *segments) Range(ctx context.Context, elements []Element, from, until uint64, columns int) (*Table, error) {
	s.mu.Lock()
	if err := s.refresh(ctx); err != nil {
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
	infos, err := segment.List(fsys, line.Dir.Telemetry())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t := track{line: line}
	for _, info := range infos {
		if t.passes(fsys, info.Path, g.From, g.End(g.Columns-1)) {
			continue
		}
		if err := t.scan(ctx, sink.Follow(fsys, line.Dir, info.Base), info.Base, g); err != nil {
			return nil, err
		}
	}
	return &g.Table, nil
}

// scan takes in one segment.
func (t *track) scan(ctx context.Context, f *sink.Follower, base uint64, g *grid) error {
	defer f.Close()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b, err := f.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if b.Segment != base {
			return nil
		}
		t.take(b, g)
		if b.End {
			return nil
		}
	}
}

// track picks from a stream of frames what is on the effective timeline.
type track struct {
	line *audit.Timeline

	generation    uint32
	step          uint64 // of the newest record, or where the generation began, or, behind a loss, the least it got to
	any           bool   // step is known
	gap           bool   // records were lost since
	places        []place
	records, lost uint64
	first, last   uint64 // steps of records
	time          int64
}

// passes says whether a segment has no step of a range, by its end alone.
func (t *track) passes(fsys vfs.FS, path string, from, until uint64) bool {
	ends, err := segment.ReadEnds(fsys, path)
	if err != nil || !ends.Sealed {
		return false
	}
	sum, err := record.ParseSummary(ends.Index)
	if err != nil || sum.Stored == 0 || sum.LastStep >= from && sum.FirstStep <= until {
		return false
	}
	if sum.LastStep < from && !t.line.Superseded(sum.Generation, sum.LastStep) {
		t.any, t.step, t.generation, t.gap = true, sum.LastStep, sum.Generation, false
	}
	t.places = nil
	return true
}

// take puts a batch into a grid.
func (t *track) take(b *sink.Batch, g *grid) {
	if b.Generation != t.generation || t.places == nil {
		t.places = places(b.Schema, g.elements)
	}
	if b.Generation != t.generation {
		t.generation, t.gap = b.Generation, false
		t.step = t.line.Begin(b.Generation)
		t.any = t.step > 0 // of one that starts fresh the first step is not known
	}
	losses := b.Losses
	for i := 0; i <= b.Records(); i++ {
		for len(losses) > 0 && losses[0].Before == i {
			t.lose(&losses[0], g)
			losses = losses[1:]
		}
		if i < b.Records() {
			t.record(b.Row(i), g)
		}
	}
}

// lose takes in a loss. Each record had a step of its own; if more steps than records are missing, the next record tells.
func (t *track) lose(l *sink.Loss, g *grid) {
	n := l.To - l.From
	if n == 0 || t.line.Superseded(t.generation, t.step+1) {
		return
	}
	t.lost += n
	t.gap = true
	if t.any && t.step < math.MaxUint64-n {
		g.lose(t.step+1, t.step+n)
		t.step += n
	}
}

func (t *track) record(row []uint64, g *grid) {
	step := row[0]
	if t.line.Superseded(t.generation, step) || t.any && step <= t.step {
		return
	}
	if t.gap && t.any && step > t.step+1 {
		g.lose(t.step+1, step-1)
	}
	if t.records == 0 {
		t.first = step
	}
	t.records++
	t.any, t.step, t.gap, t.last, t.time = true, step, false, step, int64(row[1])
	g.record(t.places, row)
}
