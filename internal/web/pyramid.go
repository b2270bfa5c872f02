package web

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/pyramid"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// pyramids is Data from the aggregates beside a run's segments, or, where too many of those are missing, from the segments.
type pyramids struct {
	fsys vfs.FS
	dir  rundir.Dir
	now  func() time.Time
	slow *segments

	mu   sync.Mutex
	q    *pyramid.Query
	read time.Time // when the end was looked at
}

// OpenPyramid is Data of a run directory, quick for runs of any length that have a pyramid. It reads nothing yet.
func OpenPyramid(fsys vfs.FS, dir string, now func() time.Time) Data {
	return &pyramids{fsys: fsys, dir: rundir.At(dir), now: now, slow: OpenSegments(fsys, dir, now).(*segments)}
}

// Close closes the files that are held open.
func (p *pyramids) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.slow.Close()
	if p.q != nil {
		err = errors.Join(err, p.q.Close())
		p.q = nil // a later call begins again
	}
	return err
}

// query is brought up to date; nil: the segments must be read.
func (p *pyramids) query(ctx context.Context) (*pyramid.Query, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.q == nil:
		q, err := pyramid.Open(ctx, pyramid.QueryOptions{Dir: p.dir, FS: p.fsys})
		if err != nil {
			return nil, err
		}
		p.q, p.read = q, p.now()
	case p.now().Sub(p.read) >= freshFor:
		if err := p.q.Refresh(ctx); err != nil {
			return nil, err
		}
		p.read = p.now() // only here: who asks ever again before it is time must not put it off for ever
	}
	if p.q.Extent().Unbuilt > 0 {
		return nil, nil
	}
	return p.q, nil
}

// Extent implements Data.
func (p *pyramids) Extent(ctx context.Context) (Extent, error) {
	q, err := p.query(ctx)
	if err != nil {
		return Extent{}, err
	}
	if q == nil {
		return p.slow.Extent(ctx)
	}
	x := q.Extent()
	e := Extent{First: x.FromStep, Last: x.ToStep, Records: x.Records, Lost: x.Lost, Schema: q.Schema()}
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
	q, err := p.query(ctx)
	if err != nil {
		return nil, err
	}
	if q == nil {
		return p.slow.Range(ctx, elements, from, until, columns)
	}
	until = max(from, until)
	t := &newFixedGrid(elements, from, until, columns).Table
	for i, e := range elements {
		list, err := q.Range(ctx, pyramid.Field{Name: e.Field, Element: e.Index}, from, until, columns)
		if errors.Is(err, pyramid.ErrNoField) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for j := range list {
			t.fill(t.Series[i], &list[j])
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
