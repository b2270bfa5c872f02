package prometheus

import (
	"time"

	client "github.com/prometheus/client_golang/prometheus"
)

// Fleet is what a stream says of all runs in it. Who may write to the stream may have made up all counts but those of heads.
type Fleet struct {
	Up       bool           // the stream was read when it was last looked at
	Runs     map[string]int // by state
	Hidden   int            // that are not kept
	Stored   float64
	Lost     float64
	Heads    map[string]int // runs by what their signed head is worth
	Messages uint64         // stream sequence of the newest message
	Look     time.Duration  // that the last look took
}

// The metrics of a fleet, which have no label run.
var (
	fleetUp       = metric{"usp_fleet_up", client.GaugeValue, nil, "1 if the stream of the fleet was read when it was last looked at."}
	fleetRuns     = metric{"usp_fleet_runs", client.GaugeValue, []string{"state"}, "Runs in the stream of the fleet, by how it says that they stand."}
	fleetHidden   = metric{"usp_fleet_runs_hidden", client.GaugeValue, nil, "Runs in the stream of the fleet that are not kept because they are too many."}
	fleetStored   = metric{"usp_fleet_reported_stored_records", client.GaugeValue, nil, "Records that the stream says its runs have stored. Nothing vouches for it."}
	fleetLost     = metric{"usp_fleet_reported_lost_records", client.GaugeValue, nil, "Records that the stream says its runs have lost. Nothing vouches for it."}
	fleetHeads    = metric{"usp_fleet_heads", client.GaugeValue, []string{"verdict"}, "Runs in the stream of the fleet by what their newest signed head is worth: verified, unvouched, or false."}
	fleetMessages = metric{"usp_fleet_stream_sequence", client.GaugeValue, nil, "Stream sequence of the newest message in the stream of the fleet."}
	fleetLook     = metric{"usp_fleet_look_seconds", client.GaugeValue, nil, "Time that the last look at the stream of the fleet took."}
)

func fleetMetrics() []metric {
	return []metric{fleetUp, fleetRuns, fleetHidden, fleetStored, fleetLost, fleetHeads, fleetMessages, fleetLook}
}

// FleetCollector shows a fleet to Prometheus.
type FleetCollector func() Fleet

// Describe implements the collector of package prometheus.
func (FleetCollector) Describe(out chan<- *client.Desc) {
	for _, m := range fleetMetrics() {
		out <- m.fleet()
	}
}

// fleet is the description of a metric that is of no run.
func (m metric) fleet() *client.Desc { return client.NewDesc(m.name, m.help, m.labels, nil) }

// Collect implements the collector of package prometheus.
func (now FleetCollector) Collect(out chan<- client.Metric) {
	f := now()
	put := func(m metric, v float64, labels ...string) {
		out <- client.MustNewConstMetric(m.fleet(), m.kind, v, labels...)
	}
	put(fleetUp, flag(f.Up))
	for state, n := range f.Runs {
		put(fleetRuns, float64(n), state)
	}
	put(fleetHidden, float64(f.Hidden))
	put(fleetStored, f.Stored)
	put(fleetLost, f.Lost)
	for verdict, n := range f.Heads {
		put(fleetHeads, float64(n), verdict)
	}
	put(fleetMessages, float64(f.Messages))
	put(fleetLook, f.Look.Seconds())
}
