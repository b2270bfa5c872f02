package web

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/fleet"
)

const (
	fleetPage    = 200 // runs on a page of the list
	fleetEvery   = 500 * time.Millisecond
	mostFilter   = 200             // characters
	openFleetFor = 2 * time.Second // that a page waits for the records of a run
)

// fleetRow is a line of the list.
type fleetRow struct {
	fleet.Run
	Ago string
}

// Path is where the run's page is.
func (r *fleetRow) Path() string { return "/fleet/run/" + url.PathEscape(r.ID) }

// Known says whether the run has records.
func (r *fleetRow) Known() bool { return r.Stored > 0 }

// fleetView is the list of a fleet's runs.
type fleetView struct {
	page
	Filter  fleetFilter
	Rows    []fleetRow
	All     int // that there are
	Found   int // that the filter leaves
	Hidden  int // that are not kept
	Keys    bool
	Stream  string
	Fault   string
	Stale   string // how old what is shown is, if the stream does not answer
	States  []string
	Events  string
	Earlier string // pages
	Later   string
}

// fleetFilter is what the list is asked for.
type fleetFilter struct {
	Text, State string
	Page        int // from 1
}

func filterOf(q url.Values) fleetFilter {
	f := fleetFilter{Text: clip(strings.TrimSpace(q.Get("q")), mostFilter), State: clip(q.Get("state"), mostFilter), Page: 1}
	if n, err := strconv.Atoi(q.Get("page")); err == nil {
		f.Page = min(max(n, 1), 1_000_000)
	}
	return f
}

// query is what filterOf reads, of another page.
func (f fleetFilter) query(page int) string {
	q := url.Values{}
	for name, v := range map[string]string{"q": f.Text, "state": f.State} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if page > 1 {
		q.Set("page", strconv.Itoa(page))
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// takes says whether the filter leaves a run.
func (f fleetFilter) takes(r *fleet.Run) bool {
	if f.State != "" && f.State != r.State {
		return false
	}
	text := strings.ToLower(f.Text)
	return text == "" || slices.ContainsFunc([]string{r.ID, r.Host, r.Program, r.Schema}, func(s string) bool { return strings.Contains(strings.ToLower(s), text) })
}

// fleetStates are those that can be asked for.
func fleetStates() []string {
	return []string{fleet.Recording, fleet.Silent, "clean", "crashed", "failed", fleet.Unreadable}
}

// fleetList is the list that a request asks for.
func (s *Server) fleetList(f fleetFilter) *fleetView {
	all := s.o.Fleet.View()
	v := &fleetView{page: s.page("Fleet"), Filter: f, All: len(all.Runs), Hidden: all.Hidden, Keys: all.Keys, Stream: all.Stream, States: fleetStates()}
	v.OfStream = true
	v.Fault, v.Stale = s.staleness(&all)
	var found []*fleet.Run
	for i := range all.Runs {
		if f.takes(&all.Runs[i]) {
			found = append(found, &all.Runs[i])
		}
	}
	v.Found = len(found)
	pages := max(1, (len(found)+fleetPage-1)/fleetPage)
	at := min(f.Page, pages)
	for _, r := range found[(at-1)*fleetPage : min(at*fleetPage, len(found))] {
		v.Rows = append(v.Rows, fleetRow{*r, ago(seconds(r.Age))})
	}
	if at > 1 {
		v.Earlier = "/fleet" + f.query(at-1)
	}
	if at < pages {
		v.Later = "/fleet" + f.query(at+1)
	}
	v.Events = "/fleet/events" + f.query(at)
	return v
}

func seconds(s float64) time.Duration {
	return time.Duration(min(max(s, 0), 1e9) * float64(time.Second))
}

// staleness says why what is shown may not be how things are.
func (s *Server) staleness(v *fleet.View) (fault, age string) {
	if v.Fault == "" {
		return "", ""
	}
	if v.Looked.IsZero() {
		return clip(v.Fault, 500), "never"
	}
	return clip(v.Fault, 500), ago(s.o.Now().Sub(v.Looked))
}

func (s *Server) fleetPage(w http.ResponseWriter, r *http.Request) {
	s.render(w, r, http.StatusOK, "fleet.html", s.fleetList(filterOf(r.URL.Query())))
}

// fleetEvents follows the list.
func (s *Server) fleetEvents(w http.ResponseWriter, r *http.Request) {
	st, done, ok := s.open(w, r)
	if !ok {
		return
	}
	defer done()
	filter := filterOf(r.URL.Query())
	interval := s.every(r, max(fleetEvery, s.o.Interval))
	for {
		began := time.Now()
		v := s.fleetList(filter)
		all, err := s.pieces(map[string]any{"fleet-state": v, "fleet-rows": v})
		if err != nil {
			s.o.Logger.Error("a page could not be made", "error", err)
			return
		}
		if st.parts("list", all) != nil || st.alive() != nil || !s.wait(r.Context(), min(max(interval, patience*time.Since(began)), slowest)) {
			return
		}
	}
}

// pieces makes parts of a page, each by the template of its name.
func (s *Server) pieces(views map[string]any) (map[string]string, error) {
	all := map[string]string{}
	for name, view := range views {
		var b bytes.Buffer
		if err := s.pages.ExecuteTemplate(&b, name, view); err != nil {
			return nil, err
		}
		all[name] = b.String()
	}
	return all, nil
}

// fleetRunView is the page of one run of the fleet.
type fleetRunView struct {
	runView // of which the charts and what belongs to them count
	Row     fleetRow
	Keys    bool
	Stream  string
	Gone    string // why what is shown may be old
	Stale   string
	More    bool   // there is more to read
	Garbled string // why there is less to draw than could be
}

var errNoFleetRun = errors.New("the stream has no such run")

// fleetRun reads all that the page of a run shows.
func (s *Server) fleetRun(ctx context.Context, id string, part stretch) (*fleetRunView, error) {
	run, ok := s.o.Fleet.Find(id)
	if !ok {
		return nil, errNoFleetRun
	}
	all := s.o.Fleet.Stand()
	v := &fleetRunView{Row: fleetRow{run, ago(seconds(run.Age))}, Keys: all.Keys, Stream: all.Stream}
	v.page, v.Path, v.part, v.facts.ID = s.page("Run "+run.ID), v.Row.Path(), part, run.ID
	v.OfStream = true
	v.Gone, v.Stale = s.staleness(&all)
	records := s.o.Fleet.Open(id)
	bounded, cancel := context.WithTimeout(ctx, openFleetFor)
	defer cancel()
	var err error
	if v.More, err = records.Refresh(bounded); err != nil {
		v.Gone = cmp.Or(v.Gone, clip(err.Error(), 500))
	}
	v.Garbled = records.Extent().Fault
	data := &fleetData{records}
	if v.Extent, err = data.Extent(ctx); err != nil {
		return nil, err
	}
	v.From, v.Until = part.steps(v.Extent.First, v.Extent.Last)
	if v.Extent.Records > 0 && v.Extent.Schema != nil {
		if err := v.read(ctx, data, nil); err != nil {
			return nil, err
		}
		v.Zooms = zooms(v.Path, "?", v.From, v.Until, v.Extent.First, v.Extent.Last)
	}
	v.Ended = run.State != fleet.Recording && run.State != fleet.Silent && run.State != fleet.Unreadable && !v.More
	if v.State = v.stamp(); !v.Ended {
		q := part.query()
		q.Set("at", v.State)
		v.Events = "/fleet/events/" + url.PathEscape(id) + "?" + q.Encode()
	}
	return v, nil
}

// stamp is short, and another whenever the page is, but for ages.
func (v *fleetRunView) stamp() string {
	row := v.Row.Run
	row.Age, row.Received = 0, time.Time{}
	h := sha256.New()
	fmt.Fprint(h, row, v.Extent.First, v.Extent.Last, v.Extent.Records, v.Extent.Frames, v.Gone, v.More, v.Garbled)
	return hex.EncodeToString(h.Sum(nil)[:9])
}

func (s *Server) fleetRunPage(w http.ResponseWriter, r *http.Request) {
	v, ok := s.askedFleetRun(w, r)
	if ok {
		s.render(w, r, http.StatusOK, "fleetrun.html", v)
	}
}

// askedFleetRun is the run that a request asks for; if it is false, the request was answered.
func (s *Server) askedFleetRun(w http.ResponseWriter, r *http.Request) (*fleetRunView, bool) {
	part, err := stretchIn(r)
	if err != nil {
		s.fail(w, r, http.StatusBadRequest, "Nothing is shown: "+err.Error()+".")
		return nil, false
	}
	v, err := s.fleetRun(r.Context(), r.PathValue("id"), part)
	switch {
	case errors.Is(err, errNoFleetRun):
		s.fail(w, r, http.StatusNotFound, "The stream has no such run. The fleet's list has all that it has.")
	case err != nil:
		s.failed(w, r, err)
	}
	return v, err == nil
}

// fleetRunEvents follows a run until it has ended.
func (s *Server) fleetRunEvents(w http.ResponseWriter, r *http.Request) {
	known := have(r)
	v, ok := s.askedFleetRun(w, r)
	if !ok {
		return
	}
	if v.Ended && v.State == known {
		w.WriteHeader(http.StatusNoContent) // tells an EventSource not to come again
		return
	}
	st, done, ok := s.open(w, r)
	if !ok {
		return
	}
	defer done()
	interval := s.every(r, s.o.Interval)
	id, part := r.PathValue("id"), v.part
	var drawn string // state of the charts that were sent
	var tabled time.Time
	for {
		began := time.Now()
		all, err := s.pieces(map[string]any{"fleet-facts": v})
		if err == nil && (v.State != drawn || v.Ended) {
			tables := v.Ended || began.Sub(tabled) >= tablesEvery
			if err = s.pictures(all, tables, v.Main, v.Small); tables {
				tabled = began
			}
			drawn = v.State
		}
		if err != nil {
			s.o.Logger.Error("a page could not be made", "run", id, "error", err)
			return
		}
		if st.parts(v.State, all) != nil {
			return
		}
		if v.Ended {
			_ = st.send("end", v.State, v.Row.State)
			return
		}
		if st.alive() != nil || !s.wait(r.Context(), min(max(interval, patience*time.Since(began)), slowest)) {
			return
		}
		next, err := s.fleetRun(r.Context(), id, part)
		if err != nil {
			s.o.Logger.Debug("a run that is followed cannot be read", "run", id, "error", err)
			if r.Context().Err() != nil {
				return
			}
			continue
		}
		v = next
	}
}
