package otlp

import (
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usp-project/usp/record"
)

// metric is one of the metrics' frame: what it is, in OTLP's terms.
type metric struct {
	name, unit, help string
	sum              bool // a counter, cumulative; else a gauge
}

// The metrics of every run. Prometheus makes of these names the ones that package prometheus has.
var (
	step     = metric{name: "usp.step", help: "Step of the record."}
	sequence = metric{name: "usp.sequence", help: "Sequence number of the record in its generation, from 0."}
	stored   = metric{name: "usp.records.stored", unit: "{record}", help: "Records of the generation that are stored, up to this one.", sum: true}
	lost     = metric{name: "usp.records.lost", unit: "{record}", help: "Records of the generation that were not stored, up to the record of the same time, by reason.", sum: true}
)

func metrics() []metric { return []metric{step, sequence, stored, lost} }

// Names of the metrics that come from the fields of a schema: fieldPrefix and the field's name, and for a flag also one
// that counts how often each bit was set. No field's name has a dot in it.
const (
	fieldPrefix = "usp.field."
	setSuffix   = ".set"
)

func reasons() []record.LostReason {
	return []record.LostReason{record.LostOverrun, record.LostTorn, record.LostStorage, record.LostVanished}
}

// element is one word of a row that is sent.
type element struct {
	metric     metric
	typ        record.Type
	word       int
	attributes []byte   // encoded: the index, for a vector
	bits       [][]byte // encoded: index and bit, where bits are counted
}

func layout(s *record.Schema, limit int) []element {
	list := []element{{metric: step, typ: record.Uint64, word: 0}}
	for i := range s.Len() {
		f := s.Field(i)
		if f.Class == record.Digest {
			continue
		}
		m := metric{name: fieldPrefix + f.Name, unit: unit(f.Unit), help: "Field " + f.Name + " of the record."}
		for j := range min(f.Len, limit, maxGauges-len(list)) {
			e := element{metric: m, typ: f.Type, word: s.Offset(i) + j}
			if f.Len > 1 {
				e.attributes = attribute(nil, fieldPointAttributes, "index", strconv.Itoa(j))
			}
			list = append(list, e)
		}
	}
	return list
}

// flags are the flag words whose bits are counted, each with the metric of that.
func flags(s *record.Schema, limit int) (list []element) {
	for i := range s.Len() {
		f := s.Field(i)
		if f.Class != record.Flag || f.Type != record.Uint64 && f.Type != record.Int64 {
			continue
		}
		n := min(f.Len, limit)
		if len(list)+n > maxSets {
			continue
		}
		m := metric{name: fieldPrefix + f.Name + setSuffix, unit: "{record}", sum: true,
			help: "Records of the generation in which a bit of the flags " + f.Name + " was set, up to the record of the same time."}
		for j := range n {
			e := element{metric: m, word: s.Offset(i) + j}
			for bit := range 64 {
				b := attribute(nil, fieldPointAttributes, "index", strconv.Itoa(j))
				e.bits = append(e.bits, attribute(b, fieldPointAttributes, "bit", strconv.Itoa(bit)))
			}
			list = append(list, e)
		}
	}
	return list
}

// unit is a schema's unit as an annotation, which promises nothing: a schema may call its units as it likes, and stores
// put one that they take for their own behind the metric's name.
func unit(name string) string {
	if name = strings.NewReplacer("{", "", "}", "").Replace(name); name == "" {
		return ""
	}
	return "{" + name + "}"
}

// Field numbers of opentelemetry/proto, v1.
const (
	fieldResourceMetrics = 1 // ExportMetricsServiceRequest

	fieldResource, fieldScopeMetrics = 1, 2 // ResourceMetrics
	fieldResourceAttributes          = 1    // Resource

	fieldScope, fieldMetrics = 1, 2 // ScopeMetrics
	fieldName, fieldVersion  = 1, 2 // InstrumentationScope

	fieldMetricName, fieldDescription, fieldUnit, fieldGauge, fieldSum = 1, 2, 3, 5, 7 // Metric
	fieldPoints, fieldTemporality, fieldMonotonic                      = 1, 2, 3       // Gauge, Sum
	cumulative                                                         = 2

	fieldStart, fieldTime, fieldDouble, fieldInt, fieldPointAttributes = 2, 3, 4, 6, 7 // NumberDataPoint

	fieldKey, fieldValue, fieldString = 1, 2, 1 // KeyValue, AnyValue
)

// request gathers points by metric, each metric's encoded already.
type request struct {
	metrics []metricPoints
	slot    map[string]int
	size    int // of all points
	points  int
}

type metricPoints struct {
	metric metric
	points []byte
}

func (r *request) reset() {
	r.metrics, r.slot, r.size, r.points = nil, nil, 0, 0
}

func (r *request) add(m metric, point []byte) {
	i, ok := r.slot[m.name]
	if !ok {
		if r.slot == nil {
			r.slot = map[string]int{}
		}
		i = len(r.metrics)
		r.slot[m.name] = i
		r.metrics = append(r.metrics, metricPoints{metric: m})
	}
	p := &r.metrics[i]
	old := len(p.points)
	p.points = message(p.points, fieldPoints, point)
	r.size += len(p.points) - old
	r.points++
}

// row adds the point of each element.
func (r *request) row(layout []element, row []uint64, seq uint64, t int64, attributes []byte) {
	b := fixed(append([]byte(nil), attributes...), fieldTime, uint64(t))
	r.add(sequence, number(b, record.Uint64, seq))
	for i := range layout {
		e := &layout[i]
		b = append(append(b[:0], attributes...), e.attributes...)
		b = fixed(b, fieldTime, uint64(t))
		b = number(b, e.typ, row[e.word])
		r.add(e.metric, b)
	}
}

// counters adds what was counted up to the time.
func (r *request) counters(s *state, flags []element, t int64, attributes []byte) {
	start := min(max(s.Start, 1), t) // it may not be later than the point
	var b []byte
	add := func(m metric, v uint64, more []byte) {
		b = append(append(b[:0], attributes...), more...)
		b = fixed(fixed(b, fieldStart, uint64(start)), fieldTime, uint64(t))
		r.add(m, number(b, record.Uint64, v))
	}
	add(stored, s.Stored, nil)
	for _, reason := range reasons() {
		add(lost, s.Lost[reason], attribute(nil, fieldPointAttributes, "reason", reason.String()))
	}
	for i := range flags {
		counts := s.Sets[i]
		for bit := range max(8, (len(counts)+7)/8*8) { // a series is there, at 0, before its first bit
			var n uint64
			if bit < len(counts) {
				n = counts[bit]
			}
			add(flags[i].metric, n, flags[i].bits[bit])
		}
	}
}

// attributes tell a point's run and generation: stores do not always make labels of what only the resource has.
func (s *Sink) attributes() []byte {
	b := attribute(nil, fieldPointAttributes, "run", s.run)
	return attribute(b, fieldPointAttributes, "generation", strconv.FormatUint(uint64(s.state.Generation), 10))
}

// encode is the whole message.
func (s *Sink) encode() []byte {
	var scope []byte
	id := text(nil, fieldName, "github.com/usp-project/usp")
	scope = message(scope, fieldScope, text(id, fieldVersion, s.opts.Version))
	for i := range s.request.metrics {
		p := &s.request.metrics[i]
		b := text(nil, fieldMetricName, p.metric.name)
		b = text(b, fieldDescription, p.metric.help)
		b = text(b, fieldUnit, p.metric.unit)
		if p.metric.sum {
			data := protowire.AppendVarint(protowire.AppendTag(p.points, fieldTemporality, protowire.VarintType), cumulative)
			data = protowire.AppendVarint(protowire.AppendTag(data, fieldMonotonic, protowire.VarintType), 1)
			b = message(b, fieldSum, data)
		} else {
			b = message(b, fieldGauge, p.points)
		}
		scope = message(scope, fieldMetrics, b)
	}
	all := message(nil, fieldResource, s.resource())
	return message(nil, fieldResourceMetrics, message(all, fieldScopeMetrics, scope))
}

func (s *Sink) resource() []byte {
	b := attribute(nil, fieldResourceAttributes, "service.name", s.opts.Service)
	b = attribute(b, fieldResourceAttributes, "service.instance.id", s.run)
	for _, a := range s.opts.Attributes {
		if a.Key != "service.name" && a.Key != "service.instance.id" {
			b = attribute(b, fieldResourceAttributes, a.Key, a.Value)
		}
	}
	return b
}

// number is a value: an integer where it is one and fits, else a double.
func number(b []byte, typ record.Type, word uint64) []byte {
	switch {
	case typ == record.Int64, typ == record.Uint64 && word <= math.MaxInt64:
		return fixed(b, fieldInt, word)
	case typ == record.Uint64:
		word = math.Float64bits(float64(word))
	}
	return fixed(b, fieldDouble, word)
}

func fixed(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, field, protowire.Fixed64Type), v)
}

func message(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func text(b []byte, field protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func attribute(b []byte, field protowire.Number, key, value string) []byte {
	kv := text(nil, fieldKey, key)
	return message(b, field, message(kv, fieldValue, protowire.AppendString(protowire.AppendTag(nil, fieldString, protowire.BytesType), value)))
}
