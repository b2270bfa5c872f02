package web

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/pyramid"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// pyramids is Data from the aggregates of a run's segments, beside those or in a cache. Where too many of them are missing, somebody
// works in the background and answers come from some of the records until then; with nobody there, all come from the segments.
type pyramids struct {
	fsys   vfs.FS
	dir    rundir.Dir
	now    func() time.Time
	cache  *pyramid.Cache // nil: none
	back   *background    // nil: none
	none   string         // why there is no cache, if one was wanted
	atOnce int64          // bytes of a run that is read at once; 0: the default
	log    *slog.Logger
	slow   *segments

	mu     sync.Mutex
	q      *pyramid.Query
	read   time.Time // when the end was looked at; zero: it is to be
	part   bool      // q answers though aggregates are missing
	run    [32]byte  // of which the rest is
	cancel context.CancelFunc

	fault      error  // why aggregates cannot be kept
	tried      uint64 // stands for the segments for which they were made as far as can be
	triedAny   bool
	whole      bool // slow has the run
	unreadable bool // it cannot have it
}

// OpenPyramid is Data of a run directory, quick for runs of any length that have a pyramid. It reads nothing yet.
func OpenPyramid(fsys vfs.FS, dir string, now func() time.Time) Data {
	return newPyramids(fsys, dir, now)
}

func newPyramids(fsys vfs.FS, dir string, now func() time.Time) *pyramids {
	return &pyramids{fsys: fsys, dir: rundir.At(dir), now: now, log: slog.New(slog.DiscardHandler), slow: OpenSegments(fsys, dir, now).(*segments)}
}

// Close closes the files that are held open, and ends what is done for the run.
func (p *pyramids) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil {
		p.cancel()
	}
	err := p.slow.Close()
	if p.q != nil {
		err = errors.Join(err, p.q.Close())
		p.q = nil // a later call begins again
	}
	p.forget()
	return err
}

// forget begins again with what is known of the run.
func (p *pyramids) forget() {
	p.run, p.fault, p.tried, p.triedAny, p.whole, p.unreadable = [32]byte{}, nil, 0, false, false, false
}

// query is brought up to date; nil: the segments must be read.
func (p *pyramids) query(ctx context.Context) (*pyramid.Query, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.q == nil:
		part := p.back != nil && p.back.runs()
		q, err := pyramid.Open(ctx, pyramid.QueryOptions{Dir: p.dir, FS: p.fsys, Cache: p.cache, Partial: part, AtOnce: p.atOnce, Now: p.now, Damaged: func(err error) {
			p.log.Debug("something of a run cannot be read", "run", p.dir.ID(), "err", err)
		}})
		if err != nil {
			return nil, err
		}
		p.q, p.read, p.part = q, p.now(), part
	case p.now().Sub(p.read) >= freshFor:
		if err := p.q.Refresh(ctx); err != nil {
			return nil, err
		}
		p.read = p.now() // only here: who asks ever again before it is time must not put it off for ever
	}
	unbuilt := p.q.Extent().Unbuilt
	if p.part {
		return p.ask(unbuilt)
	}
	if unbuilt > 0 {
		return nil, nil
	}
	return p.q, nil
}

// ask has the background do what is missing, and says from what there is an answer until then.
func (p *pyramids) ask(unbuilt int) (*pyramid.Query, error) {
	if run := p.q.Run(); run != p.run {
		if p.cancel != nil {
			p.cancel()
		}
		p.forget()
		p.run = run
		if err := p.slow.Close(); err != nil {
			return nil, err
		}
	}
	if p.cache != nil && p.fault == nil {
		if n, which := p.q.Missing(); n > 0 && (!p.triedAny || which != p.tried) {
			p.back.want(p)
		}
		return p.q, nil
	}
	switch {
	case unbuilt == 0 || p.unreadable:
	case p.whole:
		return nil, nil
	default:
		p.back.want(p)
	}
	return p.q, nil
}

// progress says how far the background is.
func (p *pyramids) progress(unbuilt, segments int) (x Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.q == nil || !p.part:
		return x
	case p.fault != nil:
		x.Fault = "they cannot be kept: the log of usp serve says why"
	case p.cache == nil && (unbuilt > 0 || p.whole):
		x.Fault = p.none
	}
	if unbuilt == 0 {
		return x
	}
	x.Done, x.Of, x.What = uint64(segments-unbuilt), uint64(segments), "segments"
	_, which := p.q.Missing()
	switch {
	case p.cache != nil && p.fault == nil:
		x.Going = !p.triedAny || which != p.tried || p.read.IsZero()
	default:
		x.Going = !p.whole && !p.unreadable
	}
	return x
}

// Extent implements Data.
func (p *pyramids) Extent(ctx context.Context) (Extent, error) {
	q, err := p.query(ctx)
	if err != nil {
		return Extent{}, err
	}
	if q == nil {
		e, err := p.slow.Extent(ctx)
		e.Progress = p.progress(0, 0)
		return e, err
	}
	x := q.Extent()
	e := Extent{First: x.FromStep, Last: x.ToStep, Records: x.Records, Lost: x.Lost, Schema: q.Schema(), Progress: p.progress(x.Unbuilt, x.Segments)}
	if e.Frames, err = sink.End(p.fsys, p.dir); err != nil {
		return Extent{}, err
	}
	if e.Records == 0 {
		return e, nil
	}
	elements := elementsOf(e.Schema, 1)
	if len(elements) == 0 {
		return e, nil
	}
	last, err := q.Range(ctx, pyramid.Field{Name: elements[0].Field}, e.Last, e.Last, 1)
	if err != nil {
		return Extent{}, err
	}
	if len(last) > 0 {
		e.LastTime, e.Generation = last[len(last)-1].FromTime, last[len(last)-1].Generation
	}
	return e, nil
}

// Range implements Data.
func (p *pyramids) Range(ctx context.Context, elements []Element, from, until uint64, columns int) (*Table, error) {
	t, err := p.table(ctx, elements, from, until, columns)
	if errors.Is(err, pyramid.ErrUnbuilt) { // another process has taken files from the cache
		p.mu.Lock()
		p.read = time.Time{}
		p.mu.Unlock()
		t, err = p.table(ctx, elements, from, until, columns)
	}
	return t, err
}

func (p *pyramids) table(ctx context.Context, elements []Element, from, until uint64, columns int) (*Table, error) {
	q, err := p.query(ctx)
	if err != nil {
		return nil, err
	}
	if q == nil {
		return p.slow.Range(ctx, elements, from, until, columns)
	}
	until = max(from, until)
	t := &newFixedGrid(elements, from, until, columns).Table
	fields := make([]pyramid.Field, len(elements))
	for i, e := range elements {
		fields[i] = pyramid.Field{Name: e.Field, Element: e.Index}
	}
	lists, err := q.Ranges(ctx, fields, from, until, columns)
	if err != nil {
		return nil, err
	}
	for i, list := range lists {
		for j := range list {
			t.fill(t.Series[i], &list[j])
			t.Sampled = t.Sampled || list[j].Sampled
			if i == 0 && list[j].Lost > 0 {
				t.lost(list, j)
			}
		}
	}
	return t, nil
}

// fill adds what some steps have to the column that they begin in.
func (t *Table) fill(series []Summary, c *pyramid.Column) {
	at := (c.FromStep - t.From) / t.Width
	if c.FromStep < t.From || at >= uint64(len(series)) {
		return
	}
	s := Summary{Count: c.Count - c.NaNs, Min: c.Min, Max: c.Max, Mean: c.Mean, Last: c.Last, Or: c.Bits}
	if s.Count == 0 || c.Min-c.Min != 0 || c.Max-c.Max != 0 { // no number, or infinities among them
		s = Summary{Last: c.Last, Or: c.Bits}
	}
	s.Mean = max(s.Min, min(s.Mean, s.Max)) // of numbers whose sum is none any more it is infinite
	series[at].join(&s)
}

// lost marks where the records that are missing at list[j] were: in front of its steps, or, if those follow the last ones,
// among them.
func (t *Table) lost(list []pyramid.Column, j int) {
	g := grid{Table: *t, most: t.Columns, fixed: true, begun: true}
	from, to := list[j].FromStep, list[j].UntilStep
	if j > 0 && list[j-1].UntilStep+1 < from {
		from, to = list[j-1].UntilStep+1, from-1
	}
	g.lose(from, to) // the same slice of counts
}
