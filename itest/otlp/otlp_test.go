// Package otlp holds what usp sends by OTLP against the types that OpenTelemetry generates from its protocol. It has tests only.
package otlp

import (
	"compress/gzip"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/otlp"
	"github.com/usp-project/usp/sink/sinktest"
)

// receiver decodes with the generated types and answers with them.
type receiver struct {
	t *testing.T

	mu       sync.Mutex
	requests []*collector.ExportMetricsServiceRequest
	rejected int64 // of each request
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	z, err := gzip.NewReader(q.Body)
	if err != nil {
		r.t.Error(err)
		return
	}
	body, err := io.ReadAll(z)
	if err != nil {
		r.t.Error(err)
	}
	in := new(collector.ExportMetricsServiceRequest)
	if err := proto.Unmarshal(body, in); err != nil {
		r.t.Errorf("OpenTelemetry's decoder: %v", err)
	}
	if err := known(in.ProtoReflect()); err != nil {
		r.t.Error(err)
	}
	r.requests = append(r.requests, in)
	out := new(collector.ExportMetricsServiceResponse)
	if r.rejected > 0 {
		out.PartialSuccess = &collector.ExportMetricsPartialSuccess{RejectedDataPoints: r.rejected, ErrorMessage: "too old"}
	}
	b, err := proto.Marshal(out)
	if err != nil {
		r.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(b) // the sender may have left
}

// known wants no field that the protocol does not have: a wrong number would be one, and be skipped by a decoder.
func known(m protoreflect.Message) (err error) {
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%s has fields that it does not know: %x", m.Descriptor().FullName(), m.GetUnknown())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				if err == nil {
					err = known(v.List().Get(i).Message())
				}
			}
		case err == nil:
			err = known(v.Message())
		}
		return err == nil
	})
	return err
}

// TestGolden is the first request of a small run, word for word.
func TestGolden(t *testing.T) {
	schema, err := record.NewSchema("golden.v1",
		record.Field{Name: "loss", Class: record.Metric, Unit: "nat"},
		record.Field{Name: "pair", Class: record.Metric, Type: record.Int64, Len: 2},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "rho", Class: record.Digest, Len: 3},
	)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{t: t}
	server := httptest.NewServer(r)
	defer server.Close()
	s, err := otlp.New(otlp.Options{Endpoint: server.URL, Version: "1.2.3", Attributes: []otlp.Attribute{{Key: "host.name", Value: "h"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin(t.Context(), sink.Run{ID: "20261129T000000-g0ld3", Schema: schema}, sink.Cursor{}); err != nil {
		t.Fatal(err)
	}
	const second = 1e9
	time := uint64(1_700_000_000 * second)
	minus := int64(-2)
	batch := &sink.Batch{Next: 3, End: true, Generation: 2, Schema: schema, Seq: []uint64{0, 5}, Words: []uint64{
		7, time, math.Float64bits(0.5), 1, uint64(minus), 3,
		12, time + 15*second, math.Float64bits(math.Inf(1)), 4, 5, math.MaxUint64,
	}, Losses: []sink.Loss{{From: 1, To: 5, Reason: record.LostOverrun, Before: 1}}}
	if err := s.Write(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.requests) != 1 {
		t.Fatalf("%d requests", len(r.requests))
	}
	text, err := os.ReadFile("testdata/golden.textproto")
	if err != nil {
		t.Fatal(err)
	}
	want := new(collector.ExportMetricsServiceRequest)
	if err := prototext.Unmarshal(text, want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(r.requests[0], want) {
		o := prototext.MarshalOptions{Multiline: true}
		t.Errorf("it is not testdata/golden.textproto:\n%s\n%s", cmp.Diff(plain(o.Format(want)), plain(o.Format(r.requests[0]))), o.Format(r.requests[0]))
	}
}

// plain undoes the spaces that prototext varies on purpose.
func plain(s string) []string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(l, ":  ", ": ")
	}
	return lines
}

// TestRun brings a run with losses and a rewind, and reads each value back through the generated types.
func TestRun(t *testing.T) {
	run := sinktest.Record(t)
	run.Emit(50)
	run.Lose(3)
	run.Emit(50)
	run.Rewind(80)
	run.Emit(9)
	run.Roll()
	r := &receiver{t: t, rejected: 2}
	server := httptest.NewServer(r)
	defer server.Close()
	s, err := otlp.New(otlp.Options{Endpoint: server.URL, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Bring(t.Context(), sink.Options{Dir: run.Dir, Name: "otlp"}, s); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.Rejected(); n != uint64(2*len(r.requests)) {
		t.Errorf("it understood that %d points were not taken, want %d", n, 2*len(r.requests))
	}
	got := map[string][]*metrics.NumberDataPoint{}
	for _, in := range r.requests {
		for _, m := range in.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			points := m.GetGauge().GetDataPoints()
			if sum := m.GetSum(); sum != nil {
				points = sum.DataPoints
				if !sum.IsMonotonic || sum.AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
					t.Errorf("%s is no cumulative counter", m.Name)
				}
			}
			got[m.Name] = append(got[m.Name], points...)
		}
	}
	check(t, run.Schema, got)
	newest := map[string]int64{}
	for _, p := range got["usp.records.stored"] {
		newest[value(p.Attributes, "generation")] = p.GetAsInt()
	}
	if want := map[string]int64{"0": 100, "1": 9}; !cmp.Equal(newest, want) {
		t.Errorf("stored by generation are %v, want %v", newest, want)
	}
}

// check compares every value with what the record of its step has.
func check(t *testing.T, schema *record.Schema, got map[string][]*metrics.NumberDataPoint) {
	t.Helper()
	for i := range schema.Len() {
		f := schema.Field(i)
		points := got["usp.field."+f.Name]
		if f.Class == record.Digest {
			if points != nil {
				t.Errorf("the digest field %s is there", f.Name)
			}
			continue
		}
		if len(points) != 109*f.Len {
			t.Fatalf("%s has %d points, want %d", f.Name, len(points), 109*f.Len)
		}
		for n, p := range points {
			step := got["usp.step"][n/f.Len]
			row := sinktest.Payload(schema, uint64(step.GetAsInt()))
			want := sinktest.Float(schema, row, i, n%f.Len)
			v := p.GetAsDouble()
			if _, ok := p.Value.(*metrics.NumberDataPoint_AsInt); ok {
				v = float64(p.GetAsInt())
			}
			if v != want || p.TimeUnixNano != row[1] || step.TimeUnixNano != row[1] {
				t.Fatalf("%s at step %d is %v, want %v at %d", f.Name, step.GetAsInt(), p, want, row[1])
			}
		}
	}
}

func value(list []*common.KeyValue, key string) string {
	i := slices.IndexFunc(list, func(kv *common.KeyValue) bool { return kv.Key == key })
	if i < 0 {
		return ""
	}
	return list[i].Value.GetStringValue()
}
