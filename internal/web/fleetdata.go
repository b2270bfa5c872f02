package web

import (
	"context"
	"math"

	"github.com/usp-project/usp/internal/fleet"
)

// fleetData is Data of the newest records of a run in a stream.
type fleetData struct{ records *fleet.Records }

// Extent implements Data.
func (d *fleetData) Extent(context.Context) (Extent, error) {
	e := d.records.Extent()
	return Extent{First: e.First, Last: e.Last, Records: uint64(e.Records), Frames: e.Sequence, Schema: e.Schema}, nil
}

// Range implements Data.
func (d *fleetData) Range(ctx context.Context, elements []Element, from, until uint64, columns int) (*Table, error) {
	g := newFixedGrid(elements, from, until, columns)
	var at loser
	d.records.Each(func(p fleet.Part) {
		if ctx.Err() == nil {
			at.take(p, g)
		}
	})
	return &g.Table, context.Cause(ctx)
}

// loser knows at which steps records are lost.
type loser struct {
	step uint64 // of the newest record, or, behind a loss, the least it got to
	any  bool   // step is known
	gap  bool   // records were lost since
}

func (l *loser) take(p fleet.Part, g *grid) {
	if p.Width < 2 {
		return
	}
	where := make([]place, len(g.elements))
	if p.Schema != nil {
		where = places(p.Schema, g.elements)
	}
	losses, n := p.Losses, len(p.Words)/p.Width
	for i := 0; i <= n; i++ {
		for len(losses) > 0 && losses[0].Before <= i {
			l.lose(losses[0].N, g)
			losses = losses[1:]
		}
		if i < n {
			row := p.Words[i*p.Width : (i+1)*p.Width]
			if l.gap && l.any && row[0] > l.step+1 {
				g.lose(l.step+1, row[0]-1)
			}
			l.step, l.any, l.gap = row[0], true, false
			g.record(where, row)
		}
	}
}

// lose takes in lost records. Each had a step of its own; if more steps than records are missing, the next record tells.
func (l *loser) lose(n uint64, g *grid) {
	if l.gap = true; !l.any || n == 0 {
		return
	}
	if n >= math.MaxUint64-l.step {
		return // no run is as long: somebody has made it up
	}
	g.lose(l.step+1, l.step+n)
	l.step += n
}
