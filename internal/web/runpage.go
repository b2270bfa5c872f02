package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/rundir"
)

// runView is the page of one run.
type runView struct {
	page
	facts
	Extent    Extent
	Sampled   bool // charts are made of some of the records only
	From      uint64
	Until     uint64
	part      stretch
	Zooms     []zoom
	Main      []*chart
	Small     []*chart
	Sinks     []sinkView
	Live      *Live
	Rate      string
	Age       string
	InputTime string
	State     string // changes with whatever the page shows
	Events    string // where its stream is; empty: it has ended
	Path      string
	Ended     bool
}

// zoom is a link to another range.
type zoom struct{ Name, URL string }

// stretch is the range of steps that a request asks for.
type stretch struct {
	from, until *uint64 // nil: from the first, to the last
	last        uint64  // in their place: that many steps before the last
}

var (
	errRange = errors.New("the range of steps must be two whole numbers, the first not above the second")
	errQuery = errors.New("what stands behind the question mark of the address cannot be read")
)

// stretchIn is the range that a request asks for. A query that cannot be read is not one for the whole run.
func stretchIn(r *http.Request) (stretch, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return stretch{}, errQuery
	}
	return stretchOf(q)
}

// stretchOf reads from, until and last.
func stretchOf(q url.Values) (r stretch, err error) {
	for name, to := range map[string]**uint64{"from": &r.from, "until": &r.until} {
		if text := strings.TrimSpace(q.Get(name)); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return r, errRange
			}
			*to = &n
		}
	}
	if text := q.Get("last"); text != "" {
		if r.last, err = strconv.ParseUint(text, 10, 64); err != nil || r.last == 0 {
			return r, errRange
		}
	}
	if r.from != nil && r.until != nil && *r.from > *r.until {
		return r, errRange
	}
	return r, nil
}

// query is what stretchOf reads.
func (r *stretch) query() url.Values {
	q := url.Values{}
	if r.from != nil {
		q.Set("from", strconv.FormatUint(*r.from, 10))
	}
	if r.until != nil {
		q.Set("until", strconv.FormatUint(*r.until, 10))
	}
	if r.last > 0 {
		q.Set("last", strconv.FormatUint(r.last, 10))
	}
	return q
}

// steps are the ends of the range in a run that goes from first to last.
func (r *stretch) steps(first, last uint64) (from, until uint64) {
	from, until = first, last
	if r.last > 0 && last-first >= r.last {
		from = last - r.last + 1
	}
	if r.from != nil {
		from = *r.from
	}
	if r.until != nil {
		until = *r.until
	}
	return from, max(from, until)
}

// columns of a large and a small chart.
const (
	columns      = 480
	smallColumns = 160
)

func (s *Server) runPage(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if id == rundir.Latest {
		dir, err := rundir.Resolve(s.o.FS, s.o.Runs, id)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		http.Redirect(w, r, "/run/"+url.PathEscape(dir.ID()), http.StatusFound)
		return
	}
	part, err := stretchIn(r)
	if err != nil {
		s.fail(w, r, http.StatusBadRequest, "Nothing is shown: "+err.Error()+".")
		return
	}
	run, err := s.find(id)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	view, err := s.runView(r.Context(), run, part)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	s.render(w, r, http.StatusOK, "run.html", view)
}

// runView reads all that the page of a run shows.
func (s *Server) runView(ctx context.Context, run *rundir.Run, part stretch) (*runView, error) {
	v := &runView{page: s.page("Run " + run.ID), facts: s.factsOf(run), Path: "/run/" + url.PathEscape(run.ID), Live: s.live(run), part: part}
	v.Age = ago(s.o.Now().Sub(run.Created))
	if run.Err != nil {
		return v, nil
	}
	data, err := s.data(run)
	if err != nil {
		return nil, err
	}
	err = s.steady(ctx, run, func() error {
		var err error
		if v.Extent, err = data.Extent(ctx); err != nil {
			return err
		}
		v.From, v.Until = part.steps(v.Extent.First, v.Extent.Last)
		if v.Extent.Records == 0 {
			return nil
		}
		return v.read(ctx, data, s.experts(run))
	})
	if err != nil {
		return nil, err
	}
	v.Lost = max(v.Lost, v.Extent.Lost)
	v.Sinks = s.sinks(run, v.Extent.Frames)
	v.Rate = "–"
	if run.Recording {
		steps := v.Extent.Records
		if v.Live != nil {
			steps = v.Live.Emitted
			v.Lost = max(v.Lost, v.Live.Lost)
		}
		v.Rate = short(s.rate(run, steps, run.Manifest.Created)) + " steps/s"
	}
	if v.Extent.Records > 0 {
		v.InputTime = time.Unix(0, v.Extent.LastTime).UTC().Format(time.RFC3339)
	}
	v.Zooms = zooms(v.Path, "?", v.From, v.Until, v.Extent.First, v.Extent.Last)
	v.Ended = !run.Recording && !v.Extent.Progress.Going && s.ended(run)
	v.State = v.state()
	if !v.Ended {
		q := part.query()
		q.Set("at", v.State)
		v.Events = "/events/" + url.PathEscape(run.ID) + "?" + q.Encode()
	}
	return v, nil
}

func (s *Server) experts(run *rundir.Run) []string {
	if s.o.Experts == nil {
		return nil
	}
	return s.o.Experts(run.Manifest)
}

// read makes the charts.
func (v *runView) read(ctx context.Context, data Data, experts []string) error {
	elements := elementsOf(v.Extent.Schema, mostElements)
	t, err := data.Range(ctx, elements, v.From, v.Until, columns)
	if err != nil {
		return err
	}
	v.Sampled = t.Sampled
	a := &album{schema: v.Extent.Schema, elements: elements, table: t, small: t.joined(smallColumns), from: v.From, until: v.Until, experts: experts}
	v.Main, v.Small = a.charts()
	return nil
}

// state is short, and another whenever the page is.
func (v *runView) state() string {
	h := sha256.New()
	fmt.Fprint(h, v.Extent.Generation, v.Extent.Frames, v.Extent.Records, v.Status, v.Recording, v.Head, v.Lost, len(v.Snapshots), v.Extent.Progress)
	for _, sink := range v.Sinks {
		sink.Lag = "" // which grows of itself
		fmt.Fprint(h, sink)
	}
	if v.Live != nil {
		fmt.Fprint(h, *v.Live)
	}
	return hex.EncodeToString(h.Sum(nil)[:9])
}

// zooms are links to other ranges of a run that goes from first to last. To path a query is added, behind what stands
// between. A range that lies beside the run, or reaches beyond it, leads back into it.
func zooms(path, between string, from, until, first, last uint64) []zoom {
	link := func(name string, from, until uint64) zoom {
		return zoom{name, fmt.Sprintf("%s%sfrom=%d&until=%d", path, between, max(from, first), min(until, last))}
	}
	list := []zoom{}
	if from != first || until != last {
		list = append(list, zoom{"whole run", path})
	}
	if from > last || until < first {
		from, until = first, last
	}
	from, until = max(from, first), min(until, last)
	n := until - from
	if n >= 4 {
		list = append(list, link("zoom in", from+n/4, until-n/4))
	}
	if from > first || until < last {
		list = append(list, link("zoom out", from-min(from, n/2+1), until+min(last-min(last, until), n/2+1)))
	}
	if from > first {
		list = append(list, link("earlier", from-min(from-first, n/2+1), until-min(from-first, n/2+1)))
	}
	if until < last {
		list = append(list, link("later", from+min(last-until, n/2+1), until+min(last-until, n/2+1)))
	}
	if last-first >= 1000 {
		list = append(list, zoom{"last 1000 steps", path + between + "last=1000"})
	}
	return list
}

// parts are the pieces of the page that change, by name. Tables are those of the charts.
func (s *Server) parts(v *runView, tables bool) (map[string]string, error) {
	all := map[string]string{}
	put := func(name, tmpl string, data any) error {
		var b bytes.Buffer
		if err := s.pages.ExecuteTemplate(&b, tmpl, data); err != nil {
			return err
		}
		all[name] = b.String()
		return nil
	}
	err := errors.Join(put("facts", "facts", v), put("sinks", "sinks", v), put("snapshots", "snapshots", v), put("progress", "progress", v))
	return all, errors.Join(err, s.pictures(all, tables, v.Main, v.Small))
}

// pictures adds charts to the pieces of a page, and their tables if those are wanted.
func (s *Server) pictures(all map[string]string, tables bool, lists ...[]*chart) (err error) {
	put := func(name, tmpl string, c *chart) {
		var b bytes.Buffer
		err = errors.Join(err, s.pages.ExecuteTemplate(&b, tmpl, c))
		all[name] = b.String()
	}
	for _, list := range lists {
		for _, c := range list {
			put(c.ID, "picture", c)
			if tables {
				put(c.ID+"-table", "numbers", c)
			}
		}
	}
	return err
}

func (s *Server) runsPage(w http.ResponseWriter, r *http.Request) {
	rows, err := s.rows()
	if err != nil {
		s.failed(w, r, err)
		return
	}
	s.render(w, r, http.StatusOK, "runs.html", runsView{page: s.page("Runs"), Rows: rows, Events: "/events"})
}

// runsView is the list of runs.
type runsView struct {
	page
	Rows   []runRow
	Events string
}

// rangeView is the form that chooses a range of steps.
type rangeView struct {
	From, Until string // empty: the end of the run, wherever that will be
	Zooms       []zoom
	Fixed       map[string]string
}

// Range is the form of the page.
func (v *runView) Range() rangeView { return newRange(v.part, v.From, v.Until, v.Zooms, nil) }

// newRange fills the form with what was asked for.
func newRange(part stretch, from, until uint64, zooms []zoom, fixed map[string]string) rangeView {
	r := rangeView{Zooms: zooms, Fixed: fixed}
	if part.from != nil || part.last > 0 {
		r.From = strconv.FormatUint(from, 10)
	}
	if part.until != nil {
		r.Until = strconv.FormatUint(until, 10)
	}
	return r
}
