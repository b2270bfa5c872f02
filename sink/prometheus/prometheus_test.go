package prometheus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/prometheus"
	"github.com/usp-project/usp/sink/sinktest"
)

const openMetrics = "application/openmetrics-text; version=1.0.0"

// scrape asks as Prometheus does.
func scrape(t testing.TB, h http.Handler, accept string) (string, http.Header) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("a scrape gives %d: %s", w.Code, w.Body)
	}
	return w.Body.String(), w.Header()
}

// values reads a scrape with Prometheus' own parser: name{label="value",...} without the label run → value.
func values(t testing.TB, h http.Handler) map[string]float64 {
	t.Helper()
	text, _ := scrape(t, h, "text/plain")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	all := map[string]float64{}
	for name, family := range families {
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				if l.GetName() != "run" {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
			}
			key := name
			if labels != nil {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			if _, twice := all[key]; twice {
				t.Errorf("%s stands there twice", key)
			}
			if h := m.GetHistogram(); h != nil {
				all[name+"_count"], all[name+"_sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
				for _, b := range h.Bucket {
					all[fmt.Sprintf("%s_bucket{le=%q}", name, fmt.Sprint(b.GetUpperBound()))] = float64(b.GetCumulativeCount())
				}
				continue
			}
			all[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if family.GetType() != dto.MetricType_GAUGE && family.GetType() != dto.MetricType_COUNTER {
				t.Errorf("%s is a %v", name, family.GetType())
			}
		}
	}
	return all
}

func wantValue(t *testing.T, got map[string]float64, name string, want float64) {
	t.Helper()
	if v, ok := got[name]; !ok || v != want {
		t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
	}
}

func options(r *sinktest.Recording) sink.Options {
	return sink.Options{Dir: r.Dir, Name: "prometheus"}
}

func end(r *sinktest.Recording) func() (uint64, error) {
	return func() (uint64, error) { return sink.End(vfs.OS(), r.Dir) }
}

func bring(t *testing.T, r *sinktest.Recording, s sink.Sink) {
	t.Helper()
	if err := sink.Bring(t.Context(), options(r), s); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	sinktest.Test(t, func(*testing.T) sinktest.Destination {
		var last *prometheus.Sink
		return sinktest.Destination{
			Open: func() sink.Sink { last = prometheus.New(prometheus.Options{}); return last },
			Newest: func(t *testing.T) (sinktest.Row, bool) {
				v := values(t, last)
				_, ok := v["usp_step"]
				return sinktest.Row{Generation: uint32(v["usp_generation"]), Seq: uint64(v["usp_sequence"]), Step: uint64(v["usp_step"])}, ok
			},
			Lost: func(t *testing.T) uint64 { return uint64(values(t, last)[`usp_records_lost_total{reason="overrun"}`]) },
			Held: func(t *testing.T) [][]byte {
				plain, _ := scrape(t, last, "text/plain")
				open, _ := scrape(t, last, openMetrics)
				return [][]byte{[]byte(plain), []byte(open)}
			},
		}
	})
}

// TestRestarted ends the process after every batch, with the cursor of that batch or of one before: the counters are those
// of one process that saw all.
func TestRestarted(t *testing.T) {
	r := sinktest.Record(t)
	for range 3 {
		r.Emit(40)
		r.Lose(3)
		r.Roll()
	}
	r.Rewind(50)
	r.Emit(7)
	r.Roll()
	var at, before sink.Cursor
	var s *prometheus.Sink
	for i := 0; at.Next < r.Frames(); i++ {
		s = prometheus.New(prometheus.Options{})
		from, err := s.Begin(t.Context(), sink.Run{ID: "x", Schema: r.Schema}, at)
		if err != nil || from.Next != at.Next {
			t.Fatalf("begins at %d, want %d: %v", from.Next, at.Next, err)
		}
		f := sink.Follow(vfs.OS(), r.Dir, from.Next)
		defer f.Close()
		b, err := f.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if before = at; i%2 == 0 {
			if at, err = s.Sync(t.Context()); err != nil || at.Next != b.Next {
				t.Fatalf("synced to %d, want %d: %v", at.Next, b.Next, err)
			}
		}
	}
	if before.Next == 0 {
		t.Fatal("there was but one batch")
	}
	got := values(t, s)
	wantValue(t, got, "usp_records_stored_total", 3*40+7)
	wantValue(t, got, `usp_records_lost_total{reason="overrun"}`, 9)
	wantValue(t, got, `usp_records_lost_total{reason="torn"}`, 0)
	wantValue(t, got, "usp_generation", 1)
	wantValue(t, got, "usp_step", 57)

	// A process that begins where there is nothing more to read shows the newest record all the same.
	s = prometheus.New(prometheus.Options{End: end(r)})
	if _, err := s.Begin(t.Context(), sink.Run{ID: "x", Schema: r.Schema}, at); err != nil {
		t.Fatal(err)
	}
	again := values(t, s)
	delete(got, "usp_ready")
	for name, v := range got {
		wantValue(t, again, name, v)
	}
}

// TestCatchesUp wants no counter before all that was there is counted: a lower one than the process before has shown
// would look to Prometheus like a run begun anew.
func TestCatchesUp(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(9000) // two batches
	s := prometheus.New(prometheus.Options{End: end(r)})
	if _, err := s.Begin(t.Context(), sink.Run{ID: "x", Schema: r.Schema}, sink.Cursor{}); err != nil {
		t.Fatal(err)
	}
	f := sink.Follow(vfs.OS(), r.Dir, 0)
	defer f.Close()
	for _, want := range []map[string]float64{
		{"usp_ready": 0},
		{"usp_ready": 1, "usp_records_stored_total": 9000, "usp_step": 9000},
	} {
		b, err := f.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		got := values(t, s)
		for name, v := range want {
			wantValue(t, got, name, v)
		}
		if want["usp_ready"] == 0 && len(got) != 1 {
			t.Errorf("before it is ready it shows %v", got)
		}
	}
}

// TestBeginsAgain wants the process's own place after an error elsewhere, so that no counter goes back or is counted up twice.
func TestBeginsAgain(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(10)
	r.Roll()
	s := prometheus.New(prometheus.Options{})
	bring(t, r, s)
	from, err := s.Begin(t.Context(), sink.Run{ID: r.Dir.ID(), Schema: r.Schema}, sink.Cursor{})
	if err != nil || from.Next != r.Frames() {
		t.Fatalf("begins again at %d, want %d: %v", from.Next, r.Frames(), err)
	}
	if at, err := s.Sync(t.Context()); err != nil || at.Next != from.Next || !bytes.Equal(at.State, from.State) {
		t.Errorf("its state is not that of its place: %q, want %q (%v)", from.State, at.State, err)
	}
	wantValue(t, values(t, s), "usp_records_stored_total", 10)
	f := sink.Follow(vfs.OS(), r.Dir, 0) // and who gives it what it has counted, for whatever reason
	defer f.Close()
	b, err := f.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	wantValue(t, values(t, s), "usp_records_stored_total", 10)
	if _, err := s.Begin(t.Context(), sink.Run{ID: "other", Schema: r.Schema}, sink.Cursor{}); !errors.Is(err, sink.ErrRefused) {
		t.Errorf("another run: %v", err)
	}
}

// TestUselessCursor counts from the beginning again: the state is damaged, or the run has lost its end since.
func TestUselessCursor(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(10)
	good, err := func() (sink.Cursor, error) {
		s := prometheus.New(prometheus.Options{})
		bring(t, r, s)
		return s.Sync(t.Context())
	}()
	if err != nil || good.Next != 10 {
		t.Fatalf("%d, %v", good.Next, err)
	}
	for name, at := range map[string]sink.Cursor{
		"no JSON":         {Next: 10, State: []byte("{")},
		"nothing":         {Next: 10},
		"no counts":       {Next: 10, State: []byte(`{"next":10,"lost":null}`)},
		"of another":      {Next: 9, State: good.State},
		"behind the end":  {Next: 11, State: bytes.Replace(good.State, []byte(`"next":10`), []byte(`"next":11`), 1)},
		"from nowhere":    {},
		"good, but older": good,
	} {
		var log bytes.Buffer
		s := prometheus.New(prometheus.Options{End: end(r), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		from, err := s.Begin(t.Context(), sink.Run{ID: "x", Schema: r.Schema}, at)
		if want := map[bool]uint64{true: 10}[name == "good, but older"]; err != nil || from.Next != want {
			t.Errorf("%s: begins at %d, want %d: %v", name, from.Next, want, err)
		}
		if said := strings.Contains(log.String(), "counted from its beginning"); said != (at.Next != 0 && from.Next == 0) {
			t.Errorf("%s: the log says %q", name, &log)
		}
	}
}

// TestFields shows each field's value in its type, the flags' bits counted, and nothing of a digest.
func TestFields(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(5)
	s := prometheus.New(prometheus.Options{})
	bring(t, r, s)
	got := values(t, s)
	row := sinktest.Payload(r.Schema, 5)
	for i := range r.Schema.Len() {
		f := r.Schema.Field(i)
		if f.Class == record.Digest {
			continue
		}
		for j := range f.Len {
			name := "usp_field_" + f.Name
			if f.Len > 1 {
				name += fmt.Sprintf("{index=%q}", fmt.Sprint(j))
			}
			wantValue(t, got, name, sinktest.Float(r.Schema, row, i, j))
		}
	}
	wantValue(t, got, "usp_time_seconds", 1_700_000_000.005)
	var bits [64]int
	flags, _ := r.Schema.Index("flags")
	for step := range uint64(5) {
		for bit := range bits {
			bits[bit] += int(sinktest.Payload(r.Schema, step+1)[r.Schema.Offset(flags)] >> bit & 1)
		}
	}
	shown := 0
	for bit, n := range bits {
		name := fmt.Sprintf(`usp_field_flags_set_total{bit="%d",index="0"}`, bit)
		if _, ok := got[name]; ok {
			shown++
		}
		if n > 0 || bit < 8 {
			wantValue(t, got, name, float64(n))
		}
	}
	if shown != 16 {
		t.Errorf("%d bits are shown, want 16", shown)
	}
	text, _ := scrape(t, s, openMetrics)
	for _, canary := range sinktest.Canaries() {
		if strings.Contains(text, canary) {
			t.Errorf("%q is shown", canary)
		}
	}
	at, err := s.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, canary := range sinktest.Canaries() {
		if bytes.Contains(at.State, []byte(canary)) {
			t.Errorf("%q is in the state", canary)
		}
	}
}

// hostile is a schema of names that mean something to Prometheus, of long vectors and of many flags.
func hostile(t testing.TB) *record.Schema {
	t.Helper()
	fields := []record.Field{
		{Name: "events_total", Class: record.Metric, Len: 1},
		{Name: "events_total_value", Class: record.Metric, Len: 1},
		{Name: "x_bucket", Class: record.Metric, Type: record.Uint64, Len: 1, Unit: `"\{}`},
		{Name: "x_count", Class: record.Metric, Type: record.Int64, Len: 1},
		{Name: "x_sum", Class: record.Metric, Len: 1},
		{Name: "x_created", Class: record.Metric, Len: 1},
		{Name: "x_info", Class: record.Metric, Len: 1},
		{Name: "alarm", Class: record.Flag, Type: record.Uint64, Len: 2},
		{Name: "alarm_set_total", Class: record.Metric, Len: 1},
		{Name: "run", Class: record.Metric, Len: 1},
		{Name: "index", Class: record.Metric, Len: 3},
		{Name: "a__", Class: record.Metric, Len: 1},
		{Name: "long", Class: record.Metric, Len: 200},
		{Name: "wide", Class: record.Flag, Type: record.Uint64, Len: 100},
	}
	s, err := record.NewSchema("hostile.v1", fields...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAccepted has the parsers of Prometheus, and its linter, read what is shown of hostile runs.
func TestAccepted(t *testing.T) {
	schema := hostile(t)
	emits := ring.Durations{Sum: 200 * time.Millisecond, Longest: 100 * time.Millisecond}
	emits.Counts[0], emits.Counts[16], emits.Counts[len(emits.Counts)-1] = 3, 40, 1 // 0 ns, 32 to 39 ns, 17 ms and more
	s := prometheus.New(prometheus.Options{
		Live: func() (prometheus.Live, bool) {
			return prometheus.Live{Emitted: 9, Held: 2, Fault: true, Emits: emits}, true
		},
		Lags: func() []prometheus.Lag { return []prometheus.Lag{{Sink: "par\"quet\n", Frames: 12, Fault: true}} },
	})
	if _, err := s.Begin(t.Context(), sink.Run{ID: "a\"b\\c\nd\xff", Schema: schema}, sink.Cursor{}); err != nil {
		t.Fatal(err)
	}
	row := sinktest.Payload(schema, 1)
	for i, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		row[schema.Offset(4)+i] = math.Float64bits(v)
	}
	b := &sink.Batch{Next: 1, Schema: schema, Seq: []uint64{0}, Words: row}
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	got := values(t, s)
	for name, word := range map[string]int{"usp_field_events_total_value_value": 0, "usp_field_events_total_value": 1, "usp_field_alarm_set_total_value": 9} {
		wantValue(t, got, name, math.Float64frombits(row[2+word]))
	}
	wantValue(t, got, "usp_elements_hidden", (200-64)+(100-64))
	wantValue(t, got, "usp_live_held_records", 2)
	wantValue(t, got, "usp_live_fault", 1)
	for le, want := range map[string]float64{"1.6e-08": 3, "3.2e-08": 3, "6.4e-08": 43, "0.016777216": 43} {
		wantValue(t, got, fmt.Sprintf("usp_live_emit_seconds_bucket{le=%q}", le), want)
	}
	wantValue(t, got, "usp_live_emit_seconds_count", 44)
	wantValue(t, got, "usp_live_emit_seconds_sum", .2)
	wantValue(t, got, "usp_sink_lag_frames{sink=\"par\\\"quet\\n\"}", 12)
	if _, ok := got[`usp_field_long{index="64"}`]; ok {
		t.Error("more than 64 elements are shown")
	}
	if _, ok := got[`usp_field_wide_set_total{bit="0",index="0"}`]; ok {
		t.Error("the bits of more than 16 flag words are counted")
	}
	text, _ := scrape(t, s, "text/plain")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("the linter says %+v, %v", problems, err)
	}
}

// TestOpenMetrics asks for the other format and reads it back with the same library's parser where it has one, and by the
// rules that the format adds.
func TestOpenMetrics(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(3)
	s := prometheus.New(prometheus.Options{})
	bring(t, r, s)
	text, header := scrape(t, s, openMetrics)
	if ct := header.Get("Content-Type"); !strings.HasPrefix(ct, "application/openmetrics-text") {
		t.Fatalf("it is %q", ct)
	}
	if !strings.HasSuffix(text, "# EOF\n") || !strings.Contains(text, "# TYPE usp_records_stored counter\n") || !strings.Contains(text, "usp_records_stored_total{run=") {
		t.Errorf("no OpenMetrics:\n%s", text)
	}
}

// TestLiveOnly shows what others say also where they say that there is nothing.
func TestLiveOnly(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(1)
	recorded := false
	s := prometheus.New(prometheus.Options{Live: func() (prometheus.Live, bool) { return prometheus.Live{Emitted: 5}, recorded }})
	if text, _ := scrape(t, s, "text/plain"); text != "" {
		t.Errorf("before a run is known it shows %s", text)
	}
	bring(t, r, s)
	got := values(t, s)
	wantValue(t, got, "usp_live", 0)
	if _, ok := got["usp_live_emitted_records"]; ok {
		t.Error("it shows emitted records of a run that is not recorded")
	}
	recorded = true
	got = values(t, s)
	wantValue(t, got, "usp_live", 1)
	wantValue(t, got, "usp_live_emitted_records", 5)
}

// TestRuns shows several runs together, whose fields have the same names and are not of the same kind.
func TestRuns(t *testing.T) {
	var all []*prometheus.Sink
	for i, field := range []record.Field{
		{Name: "a", Class: record.Metric, Unit: "s"},
		{Name: "a", Class: record.Metric, Unit: "ms", Len: 2},
		{Name: "a", Class: record.Flag, Type: record.Uint64},
	} {
		schema, err := record.NewSchema("a.v1", field)
		if err != nil {
			t.Fatal(err)
		}
		s := prometheus.New(prometheus.Options{})
		if _, err := s.Begin(t.Context(), sink.Run{ID: fmt.Sprint("run-", i), Schema: schema}, sink.Cursor{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), &sink.Batch{Next: 1, Schema: schema, Seq: []uint64{0}, Words: sinktest.Payload(schema, 1)}); err != nil {
			t.Fatal(err)
		}
		all = append(all, s, prometheus.New(prometheus.Options{})) // one of them has not begun
	}
	text, _ := scrape(t, prometheus.Handler(func() []*prometheus.Sink { return all }, nil), openMetrics)
	for _, want := range []string{`usp_field_a{run="run-0"} `, `usp_field_a{index="1",run="run-1"} `, `usp_field_a_set_total{bit="7",index="0",run="run-2"} `, `usp_step{run="run-2"} 1.0`} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s in\n%s", want, text)
		}
	}
}

// TestMethods refuses what is no reading.
func TestMethods(t *testing.T) {
	s := prometheus.New(prometheus.Options{})
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST gives %d", w.Code)
	}
}

// TestScrapedMeanwhile scrapes while records come in; the counter never goes back.
func TestScrapedMeanwhile(t *testing.T) {
	r := sinktest.Record(t)
	s := prometheus.New(prometheus.Options{})
	r.Emit(1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	o := options(r)
	o.Poll = 1
	o.Follow = func() bool { return true }
	go func() { done <- sink.Bring(ctx, o, s) }()
	last := 0.0
	for n := 1.0; n < 200 || last == 0 && n < 20_000; n++ {
		r.Emit(1)
		v := values(t, s)["usp_records_stored_total"]
		if v < last || v > n+1 {
			t.Fatalf("the counter went from %v to %v of %v", last, v, n+1)
		}
		last = v
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if last == 0 {
		t.Error("nothing was counted meanwhile")
	}
}

// BenchmarkWrite is what a batch of the predictor's size costs.
func BenchmarkWrite(b *testing.B) {
	schema := sinktest.Schema()
	s := prometheus.New(prometheus.Options{})
	if _, err := s.Begin(b.Context(), sink.Run{ID: "x", Schema: schema}, sink.Cursor{}); err != nil {
		b.Fatal(err)
	}
	batch := &sink.Batch{Schema: schema}
	for i := range uint64(8192) {
		batch.Seq = append(batch.Seq, i)
		batch.Words = append(batch.Words, sinktest.Payload(schema, i)[:schema.StoredWords()]...)
	}
	n := 0
	for b.Loop() {
		batch.First, batch.Next = batch.Next, batch.Next+8192
		if err := s.Write(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		n += batch.Records()
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkScrape is what a scrape of that costs.
func BenchmarkScrape(b *testing.B) {
	schema := sinktest.Schema()
	s := prometheus.New(prometheus.Options{})
	if _, err := s.Begin(b.Context(), sink.Run{ID: "x", Schema: schema}, sink.Cursor{}); err != nil {
		b.Fatal(err)
	}
	row := sinktest.Payload(schema, 1)[:schema.StoredWords()]
	if err := s.Write(b.Context(), &sink.Batch{Next: 1, Schema: schema, Seq: []uint64{0}, Words: row}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		_, _ = io.Copy(io.Discard, w.Body)
	}
}
