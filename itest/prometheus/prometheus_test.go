// Package prometheus holds what usp shows and sends against Prometheus itself: its parsers, its receiver of OTLP with a database behind
// it, and its query language. It has tests only, and a module of its own because of what Prometheus needs.
package prometheus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/otlp"
	usp "github.com/usp-project/usp/sink/prometheus"
	"github.com/usp-project/usp/sink/sinktest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// history has losses and a rewind.
func history(t *testing.T) *sinktest.Recording {
	t.Helper()
	r := sinktest.Record(t)
	r.Emit(50)
	r.Lose(3)
	r.Emit(50)
	r.Rewind(80)
	r.Emit(9)
	r.Roll()
	return r
}

// database is a Prometheus that takes OTLP.
func database(t *testing.T) (*tsdb.DB, *httptest.Server) {
	t.Helper()
	db, err := tsdb.Open(t.TempDir(), nil, nil, tsdb.DefaultOptions(), nil)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	c := config.DefaultConfig
	c.OTLPConfig.TranslationStrategy = otlptranslator.UnderscoreEscapingWithSuffixes
	handler := remote.NewOTLPWriteHandler(slog.New(slog.DiscardHandler), nil, db, func() config.Config { return c }, remote.OTLPOptions{LookbackDelta: 5 * time.Minute})
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return db, server
}

// sample is the newest of a series, and how many it has.
type sample struct {
	n     int
	value float64
}

// series are what the database has of the run, by name and labels, without those that tell the run.
func series(t *testing.T, db *tsdb.DB) map[string]sample {
	t.Helper()
	q, err := db.Querier(0, math.MaxInt64)
	must(t, err)
	all := map[string]sample{}
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", "usp_.+"))
	for set.Next() {
		var s sample
		it := set.At().Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			s.n++
			_, s.value = it.At()
		}
		must(t, it.Err())
		all[key(set.At().Labels())] = s
	}
	must(t, set.Err())
	must(t, q.Close())
	return all
}

func key(l labels.Labels) string {
	return labels.NewBuilder(l).Del("run", "job", "instance").Labels().String()
}

// TestTakesOTLP has Prometheus store a run, once and once more: each point is there once, by the names of /metrics.
func TestTakesOTLP(t *testing.T) {
	run := history(t)
	db, server := database(t)
	var log bytes.Buffer
	bring := func(name string) {
		s, err := otlp.New(otlp.Options{Endpoint: server.URL, Interval: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		must(t, err)
		must(t, sink.Bring(t.Context(), sink.Options{Dir: run.Dir, Name: name}, s))
		if n, left := s.Rejected(); name == "first" && n+left > 0 {
			t.Errorf("%d points were refused, and %d records left out: %s", n, left, &log)
		}
	}
	bring("first")
	got := series(t, db)
	bring("again")
	if again := series(t, db); !maps.Equal(got, again) {
		t.Errorf("sent twice it is %v, and was %v", again, got)
	}
	row := sinktest.Payload(run.Schema, 89)
	pair, _ := run.Schema.Index("pair")
	flags, _ := run.Schema.Index("flags")
	bits := 0.0 // bit 4 of the flags in generation 1
	for step := uint64(81); step <= 89; step++ {
		bits += float64(sinktest.Payload(run.Schema, step)[run.Schema.Offset(flags)] >> 4 & 1)
	}
	for name, want := range map[string]sample{
		`{__name__="usp_step", generation="0"}`:                                      {100, 103},
		`{__name__="usp_step", generation="1"}`:                                      {9, 89},
		`{__name__="usp_records_stored_total", generation="0"}`:                      {100, 100},
		`{__name__="usp_records_stored_total", generation="1"}`:                      {9, 9},
		`{__name__="usp_records_lost_total", generation="0", reason="overrun"}`:      {100, 3},
		`{__name__="usp_field_pair", generation="1", index="1"}`:                     {9, sinktest.Float(run.Schema, row, pair, 1)},
		`{__name__="usp_field_flags_set_total", bit="4", generation="1", index="0"}`: {9, bits},
	} {
		if s, ok := got[name]; !ok || s != want {
			t.Errorf("%s is %v (%v), want %v", name, s, ok, want)
		}
	}
}

// TestReadsMetrics has the parsers of Prometheus read each format, which say the same.
func TestReadsMetrics(t *testing.T) {
	run := history(t)
	s := usp.New(usp.Options{
		Live: func() (usp.Live, bool) { return usp.Live{Emitted: 9}, true },
		Lags: func() []usp.Lag { return []usp.Lag{{Sink: "a\"b\nc\\", Frames: 2}} },
	})
	must(t, sink.Bring(t.Context(), sink.Options{Dir: run.Dir, Name: "prometheus"}, s))
	var first map[string]float64
	for _, accept := range []string{"text/plain", "application/openmetrics-text; version=1.0.0", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		kind, _, _ := strings.Cut(accept, ";")
		if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, kind) {
			t.Fatalf("asked for %s, it is %s", kind, got)
		}
		got := parse(t, w.Body.Bytes(), w.Header().Get("Content-Type"))
		if first == nil {
			first = got
		}
		if !maps.Equal(got, first) || got[`{__name__="usp_records_stored_total"}`] != 109 || got[`{__name__="usp_step"}`] != 89 {
			t.Errorf("as %s it is %v, and was %v", kind, got, first)
		}
	}
}

func parse(t *testing.T, b []byte, contentType string) map[string]float64 {
	t.Helper()
	p, err := textparse.New(b, contentType, labels.NewSymbolTable(), textparse.ParserOptions{})
	must(t, err)
	all := map[string]float64{}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		if entry == textparse.EntrySeries {
			var l labels.Labels
			p.Labels(&l)
			_, _, v := p.Series()
			all[key(l)] = v
		}
	}
}

// TestQueries has Prometheus read each query of the dashboard.
func TestQueries(t *testing.T) {
	b, err := os.ReadFile("../../deploy/grafana/usp.json")
	must(t, err)
	var dashboard struct {
		Panels      []struct{ Targets []struct{ Expr string } }
		Annotations struct{ List []struct{ Expr string } }
	}
	must(t, json.Unmarshal(b, &dashboard))
	exprs := []string{}
	for _, a := range dashboard.Annotations.List {
		exprs = append(exprs, a.Expr)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
		}
	}
	fill := strings.NewReplacer("$__rate_interval", "1m", "$run", "r1|r2", "$field", "usp_field_loss")
	for _, expr := range exprs {
		if _, err := parser.NewParser(parser.Options{}).ParseExpr(fill.Replace(expr)); err != nil {
			t.Errorf("%s: %v", expr, err)
		}
	}
	if len(exprs) < 40 {
		t.Errorf("only %d queries", len(exprs))
	}
}
