package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/record"
)

// compareView is the page of two runs.
type compareView struct {
	page
	Runs        []string
	A, B        string
	From, Until uint64
	part        stretch
	Fault       string
	Result      *compare.Comparison
	Charts      []*chart
	Zooms       []zoom
	Path        string
	Sampled     bool // charts are made of some of the records only
}

const (
	compareFor   = 30 * time.Second
	mostOverlaid = 24

	firstDivergent = "first divergent step"
)

func (s *Server) comparePage(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	v := &compareView{page: s.page("Compare two runs"), A: q.Get("a"), B: q.Get("b")}
	list, err := rundir.List(s.o.FS, s.o.Runs)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	for i := range list {
		v.Runs = append(v.Runs, list[i].ID)
	}
	slices.Reverse(v.Runs)
	part, err := stretchIn(r)
	if err != nil {
		s.fail(w, r, http.StatusBadRequest, "Nothing is compared: "+err.Error()+".")
		return
	}
	if v.A == "" || v.B == "" {
		s.render(w, r, http.StatusOK, "compare.html", v)
		return
	}
	v.Path = "/compare?" + url.Values{"a": {v.A}, "b": {v.B}}.Encode()
	select {
	case s.compares <- struct{}{}:
		defer func() { <-s.compares }()
	case <-r.Context().Done():
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), compareFor)
	defer cancel()
	if err := s.compare(ctx, v, part); err != nil {
		s.failed(w, r, err)
		return
	}
	s.render(w, r, http.StatusOK, "compare.html", v)
}

// compare holds the logs of two runs against each other and draws what they both recorded.
func (s *Server) compare(ctx context.Context, v *compareView, part stretch) error {
	var sides [2]side
	for i, id := range []string{v.A, v.B} {
		run, err := s.find(id)
		if err != nil {
			return err
		}
		if run.Err != nil {
			return fmt.Errorf("run %s: %w", id, run.Err)
		}
		sides[i].run = run
		if sides[i].data, err = s.data(run); err != nil {
			return err
		}
		if sides[i].extent, err = sides[i].data.Extent(ctx); err != nil {
			return err
		}
	}
	err := s.steady(ctx, sides[0].run, func() error {
		return s.steady(ctx, sides[1].run, func() error {
			var err error
			v.Result, err = compare.Compare(ctx, s.o.FS, sides[0].run.Dir.Path(), sides[1].run.Dir.Path(), compare.Options{})
			return err
		})
	})
	if err != nil {
		v.Fault = s.inRuns(err.Error())
	}
	first, last := min(sides[0].extent.First, sides[1].extent.First), max(sides[0].extent.Last, sides[1].extent.Last)
	v.From, v.Until = part.steps(first, last)
	v.part = part
	v.Zooms = zooms(v.Path, "&", v.From, v.Until, first, last)
	return v.overlay(ctx, sides)
}

// side is one of two runs.
type side struct {
	run    *rundir.Run
	data   Data
	extent Extent
}

// overlay draws the fields of one number that both runs have.
func (v *compareView) overlay(ctx context.Context, sides [2]side) error {
	a, b := sides[0].extent.Schema, sides[1].extent.Schema
	if sides[0].extent.Records == 0 || sides[1].extent.Records == 0 {
		return nil
	}
	var both []Element
	for _, f := range a.Fields() {
		i, ok := b.Index(f.Name)
		if ok && f.Class == record.Metric && f.Len == 1 && b.Field(i).Class == record.Metric && b.Field(i).Len == 1 && len(both) < mostOverlaid {
			both = append(both, Element{f.Name, 0})
		}
	}
	var tables [2]*Table
	for i := range sides {
		var err error
		if tables[i], err = sides[i].data.Range(ctx, both, v.From, v.Until, columns/2); err != nil {
			return err
		}
		v.Sampled = v.Sampled || tables[i].Sampled
	}
	for i, e := range both {
		at, _ := a.Index(e.Field)
		title := e.Field
		if unit := a.Field(at).Unit; unit != "" {
			title += ", " + unit
		}
		c := &chart{ID: "chart-" + e.Field, Title: title, From: v.From, Until: v.Until, Table: tables[0], Small: true}
		c.Lines = []line{
			{Name: "A", Class: "c0", Values: tables[0].Series[i]},
			{Name: "B", Class: "c1", Values: tables[1].Series[i], table: tables[1]},
		}
		if v.Result != nil && v.Result.First != nil && v.Result.First.Step >= v.From && v.Result.First.Step <= v.Until {
			c.Marks = []mark{{v.Result.First.Step, firstDivergent}}
		}
		v.Charts = append(v.Charts, c)
	}
	return nil
}

// Bits is the least agreement, in words.
func (v *compareView) Bits() string {
	if v.Result == nil || v.Result.Bits == nil {
		return "not known"
	}
	return fmt.Sprintf("%d of 53 bits at least", *v.Result.Bits)
}

// Range is the form of the page.
func (v *compareView) Range() rangeView {
	return newRange(v.part, v.From, v.Until, v.Zooms, map[string]string{"a": v.A, "b": v.B})
}
