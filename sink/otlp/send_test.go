package otlp_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/otlp"
	"github.com/usp-project/usp/sink/sinktest"
)

// swallow takes everything.
type swallow struct{}

func (swallow) RoundTrip(r *http.Request) (*http.Response, error) {
	_, err := io.Copy(io.Discard, r.Body)
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, err
}

const secret = "tok3n-that-nobody-may-see"

// two is a run of two points.
func two() *run {
	return &run{schema: sinktest.Schema(), frames: []frame{{time: ms(1)}, {time: ms(9), end: true}}}
}

// offer brings two points and returns the log, and what Sync says.
func offer(t *testing.T, ctx context.Context, o otlp.Options) (*otlp.Sink, string, error) {
	t.Helper()
	var log bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	o.Headers = otlp.Headers{"Authorization": "Bearer " + secret}
	o.Interval = time.Millisecond
	r := two()
	s, _ := r.begin(t, o, sink.Cursor{})
	write(t, s, r.batch(0, 9))
	_, err := s.Sync(ctx)
	if said := fmt.Sprint(err, log.String(), fmt.Sprintf("%v %+v %#v", o.Headers, struct{ H otlp.Headers }{o.Headers}, o.Headers)); strings.Contains(said, secret) {
		t.Errorf("the secret is told: %s", said)
	}
	return s, log.String(), err
}

// TestBusy tries again where a receiver says that it is busy, when it wishes; after a while the caller hears of it.
func TestBusy(t *testing.T) {
	inHTTP := func(d time.Duration) string { // the clock of synctest begins then
		return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(d).Format(http.TimeFormat)
	}
	for _, tt := range []struct {
		code  int
		after []string      // Retry-After of each answer; then the request is taken
		want  time.Duration // until then; 0: error
	}{
		{429, []string{"7"}, 7 * time.Second},
		{502, []string{""}, 500 * time.Millisecond},
		{503, []string{"", "", ""}, 3500 * time.Millisecond},
		{503, []string{"1", "2"}, 3 * time.Second},
		{503, []string{inHTTP(9 * time.Second)}, 9 * time.Second},
		{504, []string{inHTTP(-9 * time.Second)}, 500 * time.Millisecond},
		{504, []string{"soon", "-1"}, 1500 * time.Millisecond},
		{429, []string{"2000000000"}, 10 * time.Minute},
		{503, []string{"1", "1", "1", "1"}, 0},
	} {
		t.Run(fmt.Sprint(tt.code, tt.after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newStore(t)
				d.answer = func(n int, w http.ResponseWriter) bool {
					if n >= len(tt.after) {
						return true
					}
					if tt.after[n] != "" {
						w.Header().Set("Retry-After", tt.after[n])
					}
					w.WriteHeader(tt.code)
					return false
				}
				began := time.Now()
				_, _, err := offer(t, t.Context(), otlp.Options{Endpoint: "http://store", Transport: d})
				if tt.want == 0 {
					if err == nil || errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), fmt.Sprint(tt.code)) || len(d.requests) != 4 {
						t.Errorf("after %d requests: %v", len(d.requests), err)
					}
					return
				}
				if took := time.Since(began); err != nil || took != tt.want || len(d.of("usp.step")) != 2 {
					t.Errorf("it took %v, want %v: %v", took, tt.want, err)
				}
				for _, b := range d.bodies {
					if !bytes.Equal(b, d.bodies[0]) {
						t.Error("another try sends something else")
					}
				}
			})
		})
	}
}

// TestLeftAlone does not wait where there is no time to, and asks no sooner than the receiver wished, whoever calls.
func TestLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newStore(t)
		d.answer = func(n int, w http.ResponseWriter) bool {
			if n > 0 {
				return true
			}
			w.Header().Set("Retry-After", "300")
			w.WriteHeader(http.StatusTooManyRequests)
			return false
		}
		r := sinktest.Record(t)
		r.Emit(3)
		r.Roll()
		s, _ := two().begin(t, otlp.Options{Endpoint: "http://store", Transport: d, Interval: time.Millisecond}, sink.Cursor{})
		write(t, s, two().batch(0, 9))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		for range 2 {
			if _, err := s.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2000-01-01T00:05:00Z") || time.Since(began) > 0 {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		}
		d.requests = nil
		bring(t, r, open(t, otlp.Options{Endpoint: "http://store", Transport: d, Interval: time.Millisecond}))
		if took := time.Since(began); took < 300*time.Second || took > 340*time.Second || len(d.requests) != 2 || len(d.of("usp.step")) != 3 {
			t.Errorf("after %v there were %d requests, and %d points taken", took, len(d.requests), len(d.of("usp.step")))
		}
	})
}

func status(message string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), message)
}

func partial(points uint64, message string) []byte {
	p := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), points)
	p = protowire.AppendString(protowire.AppendTag(p, 2, protowire.BytesType), message)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), p)
}

// TestPartial counts the points that are not taken, says why once, and keeps the count.
func TestPartial(t *testing.T) {
	for name, tt := range map[string]struct {
		code int
		body []byte
		typ  string
		want uint64
		said string
	}{
		"partial":   {200, partial(3, "too old, Bearer "+secret), "application/x-protobuf", 3, "too old, ***"},
		"a warning": {200, partial(0, "slow down"), "application/x-protobuf", 0, "slow down"},
		"negative":  {200, partial(1<<63, ""), "application/x-protobuf", 0, ""},
		"all":       {400, status("out of order"), "application/x-protobuf", 2*(2+7) + 2*(1+4+8), "out of order"},
		"too large": {413, []byte("no more " + strings.Repeat("x", 1<<20)), "text/plain", 2*(2+7) + 2*(1+4+8), "no more xxx"},
		"garbage":   {200, []byte("\xff\xff\xff<html>"), "application/x-protobuf", 0, ""},
		"no proto":  {200, partial(3, "too old"), "text/html", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newStore(t)
			d.answer = func(_ int, w http.ResponseWriter) bool {
				w.Header().Set("Content-Type", tt.typ)
				w.WriteHeader(tt.code)
				_, err := w.Write(tt.body)
				return err != nil
			}
			s, log, err := offer(t, t.Context(), otlp.Options{Endpoint: d.serve(t).URL})
			if err != nil {
				t.Fatal(err)
			}
			if n, _ := s.Rejected(); n != tt.want || len(d.requests) != 1 {
				t.Errorf("%d points are refused, want %d, in %d requests", n, tt.want, len(d.requests))
			}
			if strings.Contains(log, "does not take") != (tt.said != "") || !strings.Contains(log, tt.said) || len(log) > 700 {
				t.Errorf("the log says %q, want %q", log, tt.said)
			}
			at := synced(t, s)
			if s, _ := two().begin(t, otlp.Options{Endpoint: "http://store"}, at); at.Next != 2 {
				t.Errorf("synced to %d", at.Next)
			} else if n, _ := s.Rejected(); n != tt.want {
				t.Errorf("the next process knows of %d", n)
			}
		})
	}
}

// TestWarns says that points are refused, and not again before a minute is over.
func TestWarns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newStore(t)
		d.answer = func(_ int, w http.ResponseWriter) bool {
			w.WriteHeader(http.StatusBadRequest)
			return false
		}
		var log bytes.Buffer
		s, _ := two().begin(t, otlp.Options{Endpoint: "http://store", Transport: d, Interval: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}, sink.Cursor{})
		for i, want := range []int{1, 1, 2} {
			r := &run{schema: sinktest.Schema(), frames: []frame{{time: ms(int64(i) + 1), end: true}}}
			write(t, s, r.batch(0, 1))
			synced(t, s)
			if n := strings.Count(log.String(), "does not take"); n != want || len(d.requests) != i+1 {
				t.Errorf("after %d requests it says so %d times, want %d", len(d.requests), n, want)
			}
			time.Sleep(40 * time.Second)
		}
	})
}

// TestRefused follows no redirect, and leaves a receiver alone that will not have it.
func TestRefused(t *testing.T) {
	elsewhere := newStore(t)
	to := elsewhere.serve(t).URL
	for code, want := range map[int]string{
		301: "redirects are not followed", 302: "redirects are not followed", 307: "redirects are not followed", 308: "redirects are not followed",
		401: "OTEL_EXPORTER_OTLP_HEADERS", 403: "OTEL_EXPORTER_OTLP_HEADERS", 405: "OTLP over HTTP", 415: "OTLP over HTTP",
		404: "is /v1/metrics where", 500: "500 Internal", 418: "418",
	} {
		d := newStore(t)
		d.answer = func(_ int, w http.ResponseWriter) bool {
			w.Header().Set("Location", to)
			w.WriteHeader(code)
			_, err := fmt.Fprintf(w, "you sent Bearer %s", secret)
			return err != nil
		}
		_, _, err := offer(t, t.Context(), otlp.Options{Endpoint: d.serve(t).URL})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "you sent ***") {
			t.Errorf("%d: %v, want %q", code, err, want)
		}
		if refused := code < 404 || code == 405 || code == 415; errors.Is(err, sink.ErrRefused) != refused {
			t.Errorf("%d: refused for good is %v: %v", code, !refused, err)
		}
		if len(d.requests) != 1 {
			t.Errorf("%d: %d requests", code, len(d.requests))
		}
	}
	if len(elsewhere.requests) > 0 {
		t.Error("it went where it was sent")
	}
}

// TestNeverAnswers has servers that accept and say nothing, or begin to and stop: each call ends in time, by its own limit
// or with the context.
func TestNeverAnswers(t *testing.T) {
	for name, begin := range map[string]string{
		"silent": "",
		"header": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n",
		"body":   "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\nxx",
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					defer c.Close()
					if _, err := c.Read(make([]byte, 1)); err != nil { // an answer before the question is another fault
						return
					}
					if _, err := io.WriteString(c, begin); err != nil {
						return
					}
				}
			}()
			url := "http://" + l.Addr().String()
			began := time.Now()
			if _, _, err := offer(t, t.Context(), otlp.Options{Endpoint: url, Timeout: 50 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("by its own limit: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			if _, _, err := offer(t, ctx, otlp.Options{Endpoint: url, Timeout: time.Minute}); !errors.Is(err, context.Canceled) {
				t.Errorf("with the context: %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestComesBack has a receiver that is away and then there: nothing is missing, and nothing there twice.
func TestComesBack(t *testing.T) {
	d := newStore(t)
	d.answer = func(n int, w http.ResponseWriter) bool {
		if n%3 != 2 {
			w.WriteHeader(http.StatusInternalServerError)
			return false
		}
		return true
	}
	r := sinktest.Record(t)
	for range 3 {
		r.Emit(20)
		r.Roll()
	}
	o := sink.Options{Dir: r.Dir, Name: "otlp", SyncEvery: 1, Pace: sink.Pace{RetryFirst: time.Millisecond}}
	if err := sink.Bring(t.Context(), o, open(t, otlp.Options{Endpoint: d.serve(t).URL, Interval: time.Millisecond})); err != nil {
		t.Fatal(err)
	}
	if n := len(d.of("usp.step")); n != 60 || d.total("usp.records.stored") != 60 {
		t.Errorf("%d points, want 60", n)
	}
}

// TestTLS trusts who is named in the environment, and nobody else.
func TestTLS(t *testing.T) {
	d := newStore(t)
	server := httptest.NewTLSServer(d)
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	file := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := vfs.Replace(vfs.OS(), file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	var o otlp.Options
	if err := o.Environ([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + server.URL, "OTEL_EXPORTER_OTLP_CERTIFICATE=" + file}, vfs.OS()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := offer(t, t.Context(), o); err != nil || len(d.of("usp.step")) != 2 {
		t.Errorf("%d points: %v", len(d.of("usp.step")), err)
	}
	if _, _, err := offer(t, t.Context(), otlp.Options{Endpoint: server.URL}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown certificate: %v", err)
	}
}

// TestEndpoint refuses what is no receiver, and does not repeat it.
func TestEndpoint(t *testing.T) {
	for endpoint, want := range map[string]string{
		"": "no endpoint", "localhost:4318": "no http", "grpc://x:4317": "no http", "http://": "no http",
		"http://u:" + secret + "@h": "OTEL_EXPORTER_OTLP_HEADERS", "http://h/%zz" + secret: "no URL", "http://h/#" + secret: "#",
	} {
		if _, err := otlp.New(otlp.Options{Endpoint: endpoint}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v, want %q", endpoint, err, want)
		}
	}
	if _, err := otlp.New(otlp.Options{Endpoint: "http://h", Interval: time.Microsecond}); err == nil {
		t.Error("an interval of a microsecond is taken")
	}
	// A query may be a key: it is sent, and not told.
	_, log, err := offer(t, t.Context(), otlp.Options{Endpoint: "http://127.0.0.1:1/x?key=" + secret})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || strings.Contains(log, secret) {
		t.Errorf("%v; %s", err, log)
	}
}

// TestEnviron reads the variables; those for metrics alone come first, and what is set already stays.
func TestEnviron(t *testing.T) {
	d := newStore(t)
	url := d.serve(t).URL
	for name, tt := range map[string]struct {
		env      []string
		o        otlp.Options
		path     string
		resource []string // what is there besides service.instance.id
		header   http.Header
		plain    bool
	}{
		"general": {
			env:      []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url + "/base/", "OTEL_EXPORTER_OTLP_HEADERS=api-key=a%20b, x=1=2 ,", "OTEL_RESOURCE_ATTRIBUTES=service.name=s,k=%C3%A4,service.instance.id=no"},
			path:     "/base/v1/metrics",
			resource: []string{"service.name=s", "k=ä"},
			header:   http.Header{"Api-Key": {"a b"}, "X": {"1=2"}},
		},
		"of metrics": {
			env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=" + url + "/exactly?q=1", "OTEL_EXPORTER_OTLP_HEADERS=a=1",
				"OTEL_EXPORTER_OTLP_METRICS_HEADERS=a=2", "OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION=none", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf",
				"OTEL_SERVICE_NAME=t", "OTEL_RESOURCE_ATTRIBUTES=service.name=s"},
			path:     "/exactly",
			resource: []string{"service.name=t"},
			header:   http.Header{"A": {"2"}},
			plain:    true,
		},
		"set already": {
			env:      []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS=a=1", "OTEL_SERVICE_NAME=t", "OTEL_RESOURCE_ATTRIBUTES=k=1,l=2", "OTEL_EXPORTER_OTLP_TIMEOUT=1"},
			o:        otlp.Options{Endpoint: url + "/v1/metrics", Headers: otlp.Headers{"A": "3"}, Service: "u", Attributes: []otlp.Attribute{{Key: "k", Value: "0"}}, Timeout: time.Minute},
			path:     "/v1/metrics",
			resource: []string{"service.name=u", "k=0", "l=2"},
			header:   http.Header{"A": {"3"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := tt.o
			if err := o.Environ(tt.env, vfs.OS()); err != nil {
				t.Fatal(err)
			}
			o.Interval = time.Millisecond
			r := two()
			s, _ := r.begin(t, o, sink.Cursor{})
			write(t, s, r.batch(0, 9))
			synced(t, s)
			q := d.requests[len(d.requests)-1]
			if q.URL.Path != tt.path || (q.Header.Get("Content-Encoding") == "") != tt.plain {
				t.Errorf("it went to %s, with %v", q.URL.Path, q.Header)
			}
			for k, v := range tt.header {
				if !slices.Equal(q.Header[k], v) {
					t.Errorf("header %s is %q, want %q", k, q.Header[k], v)
				}
			}
			if want := slices.Insert(slices.Clone(tt.resource), 1, "service.instance.id=r1"); !slices.Equal(d.resource, want) {
				t.Errorf("the resource is %q, want %q", d.resource, want)
			}
		})
	}
}

// TestTimeoutVariable is in milliseconds.
func TestTimeoutVariable(t *testing.T) {
	var o otlp.Options
	if err := o.Environ([]string{"OTEL_EXPORTER_OTLP_TIMEOUT=2500"}, vfs.OS()); err != nil || o.Timeout != 2500*time.Millisecond {
		t.Errorf("%v, %v", o.Timeout, err)
	}
}

// TestBadEnviron names the variable, and never what is in it.
func TestBadEnviron(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := vfs.Replace(vfs.OS(), empty, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, env := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=ftp://" + secret,
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://a:" + secret + "@h",
		"OTEL_EXPORTER_OTLP_HEADERS=" + secret,
		"OTEL_EXPORTER_OTLP_HEADERS=" + secret + " x=1",
		"OTEL_EXPORTER_OTLP_HEADERS=a=" + secret + "%0a",
		"OTEL_EXPORTER_OTLP_HEADERS=a=" + secret + "%zz",
		"OTEL_EXPORTER_OTLP_METRICS_HEADERS==" + secret,
		"OTEL_EXPORTER_OTLP_TIMEOUT=" + secret,
		"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT=0",
		"OTEL_EXPORTER_OTLP_COMPRESSION=" + secret,
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_RESOURCE_ATTRIBUTES=" + secret,
		"OTEL_EXPORTER_OTLP_CERTIFICATE=/nowhere/ca.pem",
		"OTEL_EXPORTER_OTLP_CERTIFICATE=" + empty,
		"OTEL_EXPORTER_OTLP_CLIENT_KEY=" + empty,
	} {
		name, _, _ := strings.Cut(env, "=")
		var o otlp.Options
		if err := o.Environ([]string{env}, vfs.OS()); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", env, err)
		}
	}
}

// TestPlaintext warns where a secret would leave the machine in the open.
func TestPlaintext(t *testing.T) {
	for endpoint, want := range map[string]bool{"http://store": true, "https://store": false, "http://127.0.0.1:4318": false, "http://localhost": false, "http://[::1]:1": false} {
		var log bytes.Buffer
		two().begin(t, otlp.Options{Endpoint: endpoint, Headers: otlp.Headers{"A": secret}, Logger: slog.New(slog.NewTextHandler(&log, nil))}, sink.Cursor{})
		if strings.Contains(log.String(), "without encryption") != want || strings.Contains(log.String(), secret) {
			t.Errorf("%s: the log says %q", endpoint, &log)
		}
	}
}
