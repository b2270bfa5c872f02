package prometheus

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	client "github.com/prometheus/client_golang/prometheus"

	"github.com/usp-project/usp/record"
)

// A metric is one that does not depend on the run's schema. Each has the label run, and those named.
type metric struct {
	name   string
	kind   client.ValueType // histogram is none of the library's
	labels []string
	help   string
}

func (m metric) desc(run string) *client.Desc {
	return client.NewDesc(m.name, m.help, m.labels, client.Labels{"run": run})
}

const histogram client.ValueType = 0

// The metrics of every run. doc/metrics.md tells more; a test holds it to them.
var (
	ready      = metric{"usp_ready", client.GaugeValue, nil, "1 if all that the run had stored when this process began is counted; until then what rests on its records is left out."}
	step       = metric{"usp_step", client.GaugeValue, nil, "Step of the newest stored record."}
	sequence   = metric{"usp_sequence", client.GaugeValue, nil, "Sequence number of the newest stored record in its generation, from 0."}
	seconds    = metric{"usp_time_seconds", client.GaugeValue, nil, "Time of the newest stored record, as the input has it, in seconds since 1970."}
	generation = metric{"usp_generation", client.GaugeValue, nil, "Generation of the newest frame: how often the run has been resumed."}
	stored     = metric{"usp_records_stored_total", client.CounterValue, nil, "Records of the run that are stored, of all generations."}
	lost       = metric{"usp_records_lost_total", client.CounterValue, []string{"reason"}, "Records of the run that were not stored, of all generations, by reason."}
	hidden     = metric{"usp_elements_hidden", client.GaugeValue, nil, "Elements of vectors that are not shown because the vector is long."}

	live          = metric{"usp_live", client.GaugeValue, nil, "1 if the run is being recorded."}
	liveEmitted   = metric{"usp_live_emitted_records", client.GaugeValue, nil, "Records emitted in the generation that is being recorded."}
	liveStored    = metric{"usp_live_stored_records", client.GaugeValue, nil, "Records stored in the generation that is being recorded."}
	liveLost      = metric{"usp_live_lost_records", client.GaugeValue, nil, "Records lost in the generation that is being recorded."}
	liveUnstored  = metric{"usp_live_lost_to_storage_records", client.GaugeValue, nil, "Of the records lost in the generation that is being recorded, those that storage did not take."}
	liveHeld      = metric{"usp_live_held_records", client.GaugeValue, nil, "Records in the recorder's memory until storage is well."}
	liveFault     = metric{"usp_live_fault", client.GaugeValue, nil, "1 if storage takes nothing from the recorder."}
	liveSnapshots = metric{"usp_live_snapshots", client.GaugeValue, nil, "Snapshots taken in the generation that is being recorded."}
	liveUnsaved   = metric{"usp_live_unsaved_snapshots", client.GaugeValue, nil, "Snapshots given up in the generation that is being recorded because storage did not take them."}
	liveEmits     = metric{"usp_live_emit_seconds", histogram, nil, "How long handing over a record took the loop, of those records in the generation that is being recorded whose producer timed it."}

	sinkLag   = metric{"usp_sink_lag_frames", client.GaugeValue, []string{"sink"}, "Frames of the run that the sink's destination does not have for good."}
	sinkFault = metric{"usp_sink_fault", client.GaugeValue, []string{"sink"}, "1 if the sink's destination takes nothing."}

	remoteSnapshots = metric{"usp_remote_snapshots", client.GaugeValue, []string{"state"}, "Snapshots of the run, by what became of them on the way to the remote store: sent, waiting, missed, refused, pruned there."}
	remoteWaiting   = metric{"usp_remote_waiting_seconds", client.GaugeValue, nil, "How long the oldest snapshot that waits for the remote store has been waiting."}
)

func metrics() []metric {
	return []metric{ready, step, sequence, seconds, generation, stored, lost, hidden,
		live, liveEmitted, liveStored, liveLost, liveUnstored, liveHeld, liveFault, liveSnapshots, liveUnsaved, liveEmits, sinkLag, sinkFault, remoteSnapshots, remoteWaiting}
}

// Names of the metrics that come from the fields of a schema: fieldPrefix and the field's name, and for a flag also one
// that counts how often each bit was set.
const (
	fieldPrefix = "usp_field_"
	setSuffix   = "_set_total"
)

// suffixes end names that mean something to Prometheus.
var suffixes = []string{"_total", "_created", "_info", "_count", "_sum", "_bucket"}

// fieldMetrics are the names of the metrics of a schema's fields, in their order. A field's name fits as it is, but where
// it would promise another kind of metric: such a one has _value behind it, as often as it takes to be the only one.
func fieldMetrics(s *record.Schema) []string {
	names := make([]string, s.Len())
	taken := make(map[string]bool, s.Len())
	reserved := func(name string) bool {
		return slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
	}
	for i := range names {
		if name := s.Field(i).Name; !reserved(name) {
			names[i], taken[name] = fieldPrefix+name, true
		}
	}
	for i := range names {
		if names[i] != "" {
			continue
		}
		name := s.Field(i).Name + "_value"
		for taken[name] {
			name += "_value"
		}
		names[i], taken[name] = fieldPrefix+name, true
	}
	return names
}

// A gauge shows one word of a row.
type gauge struct {
	desc  *client.Desc
	typ   record.Type
	word  int
	index []string // nothing, or the label's value
}

func (g *gauge) value(row []uint64) float64 {
	switch w := row[g.word]; g.typ {
	case record.Int64:
		return float64(int64(w))
	case record.Uint64:
		return float64(w)
	default:
		return math.Float64frombits(w)
	}
}

// gauges are those of a schema's stored fields, at most limit of each vector and maxGauges in all, and how many words have
// none.
func gauges(s *record.Schema, run string, limit int) (list []gauge, without int) {
	names := fieldMetrics(s)
	for i := range s.Len() {
		f := s.Field(i)
		if f.Class == record.Digest {
			continue
		}
		var labels []string
		if f.Len > 1 {
			labels = []string{"index"}
		}
		desc := client.NewDesc(names[i], fieldHelp(f.Name), labels, client.Labels{"run": run})
		for j := range f.Len {
			if j >= limit || len(list) == maxGauges {
				without += f.Len - j
				break
			}
			g := gauge{desc: desc, typ: f.Type, word: s.Offset(i) + j}
			if labels != nil {
				g.index = []string{strconv.Itoa(j)}
			}
			list = append(list, g)
		}
	}
	return list, without
}

// fieldHelp has no unit in it: the text of a metric has to be the same for all runs, whatever they measure in.
func fieldHelp(name string) string {
	return fmt.Sprintf("Field %s of the newest stored record.", name)
}

// setDesc is of the metric that counts how often the bits of a flag were set.
func setDesc(field, run string) *client.Desc {
	return client.NewDesc(fieldPrefix+field+setSuffix, fmt.Sprintf("Stored records in which a bit of the flags %s was set.", field),
		[]string{"index", "bit"}, client.Labels{"run": run})
}
