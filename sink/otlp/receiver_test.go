package otlp_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is one of a message.
type field struct {
	number protowire.Number
	typ    protowire.Type
	bytes  []byte
	word   uint64
}

func decode(b []byte) (list []field, err error) {
	for len(b) > 0 {
		f, n := field{}, 0
		if f.number, f.typ, n = protowire.ConsumeTag(b); n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		switch f.typ {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		case protowire.Fixed64Type:
			f.word, n = protowire.ConsumeFixed64(b)
		case protowire.VarintType:
			f.word, n = protowire.ConsumeVarint(b)
		default:
			return nil, fmt.Errorf("field %d of type %d", f.number, f.typ)
		}
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		list = append(list, f)
	}
	return list, nil
}

// point is a data point; the attributes are a=b,c=d in their order.
type point struct {
	encoded                  string
	metric, unit, attributes string
	sum                      bool
	start, time              uint64
	value                    float64
	integer                  bool
}

// key is what a store tells points apart by: all but the value and the time from which a counter counts.
func (r *reader) key(metric string, b string) string {
	key := metric
	for _, f := range r.message([]byte(b)) {
		switch f.number {
		case 7:
			key += "\x00" + string(f.bytes)
		case 3:
			key += "\x00" + strconv.FormatUint(f.word, 10)
		}
	}
	return key
}

func (p *point) attribute(name string) string {
	for a := range strings.SplitSeq(p.attributes, ",") {
		if k, v, _ := strings.Cut(a, "="); k == name {
			return v
		}
	}
	return ""
}

// reader walks a message of OTLP.
type reader struct{ err error }

func (r *reader) message(b []byte) []field {
	list, err := decode(b)
	if err != nil && r.err == nil {
		r.err = err
	}
	return list
}

func (r *reader) attribute(b []byte) string {
	var key, value string
	for _, f := range r.message(b) {
		if f.number == 1 {
			key = string(f.bytes)
			continue
		}
		for _, v := range r.message(f.bytes) {
			value = string(v.bytes)
		}
	}
	return key + "=" + value
}

func (r *reader) point(m point) point {
	var attributes []string
	for _, f := range r.message([]byte(m.encoded)) {
		switch f.number {
		case 7:
			attributes = append(attributes, r.attribute(f.bytes))
		case 2:
			m.start = f.word
		case 3:
			m.time = f.word
		case 4:
			m.value = math.Float64frombits(f.word)
		case 6:
			m.value, m.integer = float64(int64(f.word)), true
		}
	}
	m.encoded = ""
	m.attributes = strings.Join(attributes, ",")
	return m
}

func (r *reader) metric(b []byte) (list []point) {
	var m point
	for _, f := range r.message(b) {
		switch f.number {
		case 1:
			m.metric = string(f.bytes)
		case 3:
			m.unit = string(f.bytes)
		case 5, 7:
			m.sum = f.number == 7
			kind := map[protowire.Number]uint64{}
			for _, d := range r.message(f.bytes) {
				if d.number == 1 {
					m.encoded = string(d.bytes)
					list = append(list, m)
				} else {
					kind[d.number] = d.word
				}
			}
			if m.sum != (kind[2] == 2 && kind[3] == 1) {
				r.err = fmt.Errorf("%s: temporality and monotony are %v", m.metric, kind)
			}
		}
	}
	return list
}

// request reads ExportMetricsServiceRequest.
func (r *reader) request(b []byte) (points []point, resource []string) {
	for _, all := range r.message(b) {
		for _, f := range r.message(all.bytes) {
			for _, in := range r.message(f.bytes) {
				switch {
				case f.number == 1:
					resource = append(resource, r.attribute(in.bytes))
				case f.number == 2 && in.number == 2:
					points = append(points, r.metric(in.bytes)...)
				}
			}
		}
	}
	return points, resource
}

// store is a receiver that keeps points as a store of metrics does: one for each name, attributes and time. It does not
// take another value for one that it has.
type store struct {
	t  testing.TB
	mu sync.Mutex

	points   map[string]point // only encoded
	order    []string         // of keys
	again    int              // points that came twice, with the same value
	requests []*http.Request
	bodies   [][]byte
	resource []string
	only     []string // metrics that are kept, and no bodies; nil: all
	keep     bool     // bodies too

	answer func(n int, w http.ResponseWriter) (taken bool) // of request n, from 0; nil: all are taken
}

func newStore(t testing.TB) *store { return &store{t: t, points: map[string]point{}} }

func (s *store) serve(t testing.TB) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return server
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			s.t.Errorf("gzip: %v", err)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return // the sender has left
	}
	n := len(s.requests)
	s.requests = append(s.requests, r)
	if s.only == nil || s.keep {
		s.bodies = append(s.bodies, b)
	}
	if s.answer != nil && !s.answer(n, w) {
		return
	}
	var in reader
	var points []point
	points, s.resource = in.request(b)
	if in.err != nil || len(points) == 0 {
		s.t.Errorf("%d points, %v", len(points), in.err)
	}
	for _, p := range points {
		if s.only != nil && !slices.Contains(s.only, p.metric) {
			continue
		}
		s.take(in.key(p.metric, p.encoded), p)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (s *store) take(key string, p point) {
	old, ok := s.points[key]
	switch {
	case !ok:
		s.points[key] = p
		s.order = append(s.order, key)
	case old != p:
		s.t.Errorf("%q is %+v, and was %+v", key, p, old)
	default:
		s.again++
	}
}

// RoundTrip makes it a transport, where there is to be no network.
func (s *store) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result(), nil
}

// of lists a metric's points in the order in which they came.
func (s *store) of(metric string) (list []point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in reader
	for _, key := range s.order {
		if p := s.points[key]; p.metric == metric {
			list = append(list, in.point(p))
		}
	}
	if in.err != nil {
		s.t.Error(in.err)
	}
	return list
}

// total adds a counter's newest points.
func (s *store) total(metric string) float64 {
	newest := map[string]point{}
	for _, p := range s.of(metric) {
		if p.time >= newest[p.attributes].time {
			newest[p.attributes] = p
		}
	}
	sum := 0.0
	for _, p := range newest {
		sum += p.value
	}
	return sum
}

func (s *store) keys() []string { return slices.Sorted(slices.Values(s.order)) }
