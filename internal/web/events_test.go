package web

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// event is one of a stream.
type event struct{ name, id, data string }

func events(t testing.TB, r io.Reader) func() (event, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	return func() (e event, err error) {
		for lines.Scan() {
			key, value, _ := strings.Cut(lines.Text(), ": ")
			switch {
			case key == "event":
				e.name = value
			case key == "id":
				e.id = value
			case key == "data":
				e.data = value
			case lines.Text() == "" && e.name != "":
				return e, nil
			}
		}
		return e, io.EOF
	}
}

func follow(t testing.TB, base, path string, headers ...string) (*http.Response, func() (event, error)) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp, events(t, resp.Body)
}

// A stream has the whole page first, then what changed, then the end; who was there before gets only what changed since.
func TestEvents(t *testing.T) {
	mem := vfs.NewMem()
	f := full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem, Interval: 10 * time.Millisecond})
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	resp, next := follow(t, web.URL, "/events/"+id)
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%s", resp.Header)
	}
	parts := func(e event) (all map[string]string) {
		t.Helper()
		if err := json.Unmarshal([]byte(e.data), &all); err != nil {
			t.Fatalf("%s: %v", e.data, err)
		}
		return all
	}
	first, err := next()
	if err != nil || first.name != "parts" || len(parts(first)) < 20 || !strings.Contains(parts(first)["facts"], "90 stored") || !strings.Contains(parts(first)["chart-cusum-table"], "<table>") {
		t.Fatalf("%v, %.500v", err, first)
	}
	f.emit(101, 140)
	for {
		e, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if all := parts(e); strings.Contains(all["facts"], "130 stored, 1 to 140") && strings.Contains(all["chart-cusum"], `data-until="140"`) {
			if e.id == first.id || all["snapshots"] != "" {
				t.Errorf("id %s after %s; what did not change is sent: %.100s", e.id, first.id, all["snapshots"])
			}
			break
		}
	}
	_, again := follow(t, web.URL, "/events/"+id, "Last-Event-ID", first.id)
	e, err := again()
	if err != nil || !strings.Contains(parts(e)["facts"], "130 stored") {
		t.Errorf("with an old Last-Event-ID: %v %.100v", err, e)
	}
	f.end()
	last := event{}
	for e, err := next(); err == nil; e, err = next() {
		last = e
	}
	if last.name != "end" || last.data != `"clean"` {
		t.Errorf("the stream ended with %+v", last)
	}
	if resp, _ := follow(t, web.URL, "/events/"+id, "Last-Event-ID", last.id); resp.StatusCode != http.StatusNoContent {
		t.Errorf("who has the end already: %d", resp.StatusCode)
	}
	if resp, _ := follow(t, web.URL, "/events/none"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a run that is not there: %d", resp.StatusCode)
	}
	if resp, _ := follow(t, web.URL, "/events/"+id+"?from=x"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a bad range: %d", resp.StatusCode)
	}
}

// A client that has seen the newest state hears nothing until there is more.
func TestEventsQuiet(t *testing.T) {
	mem := vfs.NewMem()
	f := full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem, Interval: 10 * time.Millisecond})
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	page := get(t, s, "/run/"+id).Body.String()
	at := regexp.MustCompile(`data-events="([^"]+)"`).FindStringSubmatch(page)
	if at == nil {
		t.Fatal("the page is not followed")
	}
	_, next := follow(t, web.URL, at[1])
	heard := make(chan event, 8)
	go func() {
		defer close(heard)
		for e, err := next(); err == nil; e, err = next() {
			heard <- e
		}
	}()
	select {
	case e := <-heard:
		t.Errorf("nothing has changed, but: %.200v", e)
	case <-time.After(200 * time.Millisecond):
	}
	f.emit(101, 102)
	for late := time.After(5 * time.Second); ; {
		select {
		case e := <-heard:
			if strings.Contains(e.data, "92 stored") { // the head may be seen before the records
				return
			}
		case <-late:
			t.Fatal("nothing was heard of new records")
		}
	}
}

// Streams are few, and end with their clients and with the server.
func TestEventsBounded(t *testing.T) {
	mem := vfs.NewMem()
	full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem, Interval: 10 * time.Millisecond, Streams: 2})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	base := "http://" + l.Addr().String()
	one, next := follow(t, base, "/events/"+id)
	_, list := follow(t, base, "/events")
	if e, err := next(); err != nil || e.name != "parts" {
		t.Errorf("%v %v", e, err)
	}
	if e, err := list(); err != nil || e.id != "list" || !strings.Contains(e.data, id) {
		t.Errorf("%v %v", e, err)
	}
	if resp, _ := follow(t, base, "/events/"+id); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d", resp.StatusCode)
	}
	one.Body.Close()
	for began := time.Now(); ; {
		resp, _ := follow(t, base, "/events/"+id)
		if resp.StatusCode == 200 {
			break
		}
		if time.Since(began) > 5*time.Second {
			t.Fatal("a client that has gone still counts")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	began := time.Now()
	select {
	case err := <-done:
		if took := time.Since(began); err != nil || took >= patienceOfEnd {
			t.Errorf("%v, after %v: the streams were cut off", err, took)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not end while pages follow")
	}
	if _, err := list(); err != io.EOF {
		for err == nil {
			_, err = list()
		}
	}
}

// A stream that is compressed can be read as it comes, and is whole at its end.
func TestEventsCompressed(t *testing.T) {
	mem := vfs.NewMem()
	f := full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem, Interval: 10 * time.Millisecond})
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	resp, _ := follow(t, web.URL, "/events/"+id, "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v", resp.Header)
	}
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	next := events(t, z)
	if e, err := next(); err != nil || e.name != "parts" {
		t.Fatalf("%v %v", e, err)
	}
	f.end()
	rest, err := io.ReadAll(z)
	if err != nil || !strings.Contains(string(rest), "event: end") {
		t.Errorf("%v: %.200s", err, rest)
	}
}

// Who asks for the header of a stream alone has it at once, and may go on asking on the same connection.
func TestEventsHead(t *testing.T) {
	mem := vfs.NewMem()
	full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem, Streams: 1})
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	for _, path := range []string{"/events", "/events/" + id, "/events/none"} {
		c, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // and not before: it is the server that is to be done with it
		if _, err := io.WriteString(c, "HEAD "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(c)
		head, err := http.ReadResponse(answers, &http.Request{Method: "HEAD"})
		if err != nil {
			t.Fatal(path, err)
		}
		next, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("%s: %s, and nothing more on this connection: %v", path, head.Status, err)
		}
		if next.StatusCode != 200 || head.StatusCode == 200 && head.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("%s: %s as %s, then %s", path, head.Status, head.Header.Get("Content-Type"), next.Status)
		}
	}
	if resp, _ := follow(t, web.URL, "/events/"+id); resp.StatusCode != 200 {
		t.Errorf("there is no room for a stream after all that: %s", resp.Status)
	}
}
