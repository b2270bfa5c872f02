package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const (
	writeFor    = 10 * time.Second // a client that takes longer is gone
	heartbeat   = 15 * time.Second
	tablesEvery = 2 * time.Second
	listEvery   = time.Second
	patience    = 4 // a message is followed by a pause of so many times what it took to make it
	slowest     = 10 * time.Second
)

// stream sends parts of a page to one client, each when it has changed.
type stream struct {
	w    io.Writer
	zip  *gzip.Writer
	rc   *http.ResponseController
	sent map[string]string
	last time.Time // something was sent
}

// open begins a stream. Without room for one more it answers so. Who asks for the header alone has it and no stream: that
// would send nothing, so that nobody would notice when its client is done with it.
func (s *Server) open(w http.ResponseWriter, r *http.Request) (st *stream, done func(), ok bool) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		return nil, nil, false
	}
	select {
	case s.streams <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many pages are following runs; reload this one to see how it stands", http.StatusServiceUnavailable)
		return nil, nil, false
	}
	st = &stream{w: w, rc: http.NewResponseController(w), sent: map[string]string{}}
	// The request has been read; what bounds the stream is each message.
	_ = st.rc.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	if accepts(r, "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		st.zip = gzip.NewWriter(w)
		st.w = st.zip
	}
	return st, func() { st.end(); <-s.streams }, true
}

// send writes an event, or a comment if it has no name.
func (st *stream) send(name, id string, data any) error {
	var b bytes.Buffer
	if name == "" {
		b.WriteString(": still here\n\n")
	} else {
		fmt.Fprintf(&b, "event: %s\nid: %s\ndata: ", name, id)
		text := json.NewEncoder(&b)
		text.SetEscapeHTML(false) // markup is what it is, and no browser takes a stream for a page
		if err := text.Encode(data); err != nil {
			return err
		}
		b.WriteByte('\n') // the second one, which ends the event
	}
	if err := st.rc.SetWriteDeadline(time.Now().Add(writeFor)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := st.w.Write(b.Bytes()); err != nil {
		return err
	}
	if st.zip != nil {
		if err := st.zip.Flush(); err != nil {
			return err
		}
	}
	st.last = time.Now()
	return st.rc.Flush()
}

// end completes what is compressed.
func (st *stream) end() {
	if st.zip != nil {
		_ = st.zip.Close() // the client may have gone
	}
}

// parts sends those that have changed.
func (st *stream) parts(id string, all map[string]string) error {
	changed := map[string]string{}
	for name, html := range all {
		if st.sent[name] != html {
			st.sent[name], changed[name] = html, html
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return st.send("parts", id, changed)
}

// alive writes something now and then, so that a client that has gone is noticed.
func (st *stream) alive() error {
	if time.Since(st.last) < heartbeat {
		return nil
	}
	return st.send("", "", nil)
}

// every is how often a client wants to hear, not more often than the server would.
func (s *Server) every(r *http.Request, least time.Duration) time.Duration {
	ms, err := strconv.ParseUint(r.URL.Query().Get("every"), 10, 16)
	if err != nil {
		return least
	}
	return min(max(least, time.Duration(ms)*time.Millisecond), slowest)
}

// have is the state that a client has of its page already.
func have(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("at")
}

// wait pauses; false if the stream is to end.
func (s *Server) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-s.ending:
	}
	return false
}

// runEvents follows a run until it has ended.
func (s *Server) runEvents(w http.ResponseWriter, r *http.Request) {
	part, err := stretchIn(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, known := r.PathValue("id"), have(r)
	run, err := s.find(id)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	v, err := s.runView(r.Context(), run, part)
	if err != nil {
		s.failed(w, r, err)
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
	var tabled time.Time // when tables were sent
	stale := false       // what was sent since then changed them
	for {
		began := time.Now()
		if tables := v.Ended || began.Sub(tabled) >= tablesEvery; v.State != known || stale && tables {
			all, err := s.parts(v, tables)
			if err != nil {
				s.o.Logger.Error("a page could not be made", "run", id, "error", err)
				return
			}
			if err := st.parts(v.State, all); err != nil {
				return
			}
			if known, stale = v.State, !tables; tables {
				tabled = began
			}
		}
		if v.Ended {
			_ = st.send("end", v.State, v.Status)
			return
		}
		if st.alive() != nil {
			return
		}
		took := time.Since(began)
		for again := true; again; again = v == nil { // a run that cannot be read for the moment is looked at again
			if !s.wait(r.Context(), min(max(interval, patience*took), slowest)) {
				return
			}
			began = time.Now()
			if run, err = s.find(id); err == nil {
				v, err = s.runView(r.Context(), run, part)
			}
			if err != nil {
				s.o.Logger.Debug("a run that is followed cannot be read", "run", id, "error", err)
				if v = nil; st.alive() != nil {
					return
				}
			}
			took = time.Since(began)
		}
	}
}

// runsEvents follows the list of runs.
func (s *Server) runsEvents(w http.ResponseWriter, r *http.Request) {
	st, done, ok := s.open(w, r)
	if !ok {
		return
	}
	defer done()
	interval := s.every(r, max(listEvery, s.o.Interval))
	for {
		began := time.Now()
		if rows, err := s.rows(); err != nil {
			s.o.Logger.Warn("the runs cannot be listed", "error", err)
		} else {
			var b bytes.Buffer
			if err := s.pages.ExecuteTemplate(&b, "rows", runsView{Rows: rows}); err != nil {
				s.o.Logger.Error("a page could not be made", "error", err)
				return
			}
			if st.parts("list", map[string]string{"rows": b.String()}) != nil {
				return
			}
		}
		if st.alive() != nil || !s.wait(r.Context(), min(max(interval, patience*time.Since(began)), slowest)) {
			return
		}
	}
}
