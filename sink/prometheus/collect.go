package prometheus

import (
	"strconv"
	"time"

	client "github.com/prometheus/client_golang/prometheus"

	"github.com/usp-project/usp/ring"
)

// collector reads the state of sinks. It describes nothing beforehand, since the fields are those of the runs.
type collector func() []*Sink

func (collector) Describe(chan<- *client.Desc) {}

func (runs collector) Collect(out chan<- client.Metric) {
	for _, s := range runs() {
		for _, m := range s.collect() {
			out <- m
		}
	}
}

// scrape gathers the metrics of one run.
type scrape struct {
	run  string
	list []client.Metric
}

func (c *scrape) add(m metric, v float64, labels ...string) {
	c.list = append(c.list, client.MustNewConstMetric(m.desc(c.run), m.kind, v, labels...))
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// collect reads all under the lock and asks others outside of it.
func (s *Sink) collect() []client.Metric {
	c := s.ofRecords()
	if c.run == "" {
		return nil
	}
	if s.opts.Live != nil {
		l, ok := s.opts.Live()
		c.add(live, flag(ok))
		if ok {
			c.live(l)
		}
	}
	if s.opts.Lags != nil {
		for _, l := range s.opts.Lags() {
			c.add(sinkFault, flag(l.Fault), l.Sink)
			if l.Snapshots != nil {
				c.snapshots(l.Snapshots)
				continue
			}
			c.add(sinkLag, float64(l.Frames), l.Sink)
		}
	}
	return c.list
}

func (c *scrape) snapshots(s *Snapshots) {
	c.add(remoteSnapshots, float64(s.Sent), "sent")
	c.add(remoteSnapshots, float64(s.Waiting), "waiting")
	c.add(remoteSnapshots, float64(s.Missed), "missed")
	c.add(remoteSnapshots, float64(s.Refused), "refused")
	c.add(remoteSnapshots, float64(s.Pruned), "pruned")
	c.add(remoteWaiting, s.Oldest.Seconds())
}

func (c *scrape) live(l Live) {
	c.add(liveEmitted, float64(l.Emitted))
	c.add(liveStored, float64(l.Stored))
	c.add(liveLost, float64(l.Lost))
	c.add(liveUnstored, float64(l.LostToStorage))
	c.add(liveHeld, float64(l.Held))
	c.add(liveFault, flag(l.Fault))
	c.add(liveSnapshots, float64(l.Snapshots))
	c.add(liveUnsaved, float64(l.Unsaved))
	if n := l.Emits.Counted(); n > 0 {
		c.list = append(c.list, client.MustNewConstHistogram(liveEmits.desc(c.run), n, l.Emits.Sum.Seconds(), emitBuckets(&l.Emits)))
	}
}

// The bounds of usp_live_emit_seconds are powers of two in nanoseconds, so that each is one of the ring's too.
const (
	shortestBound = 4  // 16 ns
	longestBound  = 24 // 17 ms
)

// emitBuckets counts what is below each bound. What takes a whole number of nanoseconds that is a bound itself counts
// in the next one.
func emitBuckets(d *ring.Durations) map[float64]uint64 {
	buckets := make(map[float64]uint64, longestBound-shortestBound+1)
	below, next := uint64(0), 0
	for power := shortestBound; power <= longestBound; power++ {
		bound := time.Duration(1) << power
		for ; next < len(d.Counts) && ring.DurationBound(next) < bound; next++ {
			below += d.Counts[next]
		}
		buckets[bound.Seconds()] = below
	}
	return buckets
}

func (s *Sink) ofRecords() *scrape {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &scrape{run: s.run}
	if s.run == "" {
		return c
	}
	caughtUp := s.state.Next >= s.target
	c.add(ready, flag(caughtUp))
	if !caughtUp {
		return c
	}
	c.add(stored, float64(s.state.Stored))
	for _, r := range reasons() {
		c.add(lost, float64(s.state.Lost[r.String()]), r.String())
	}
	c.add(generation, float64(s.state.Generation))
	if s.row == nil {
		return c
	}
	c.add(step, float64(s.row[0]))
	c.add(sequence, float64(s.state.Seq))
	ns := int64(s.row[1])
	c.add(seconds, float64(ns/1e9)+float64(ns%1e9)/1e9) // apart, or they are rounded to 256 ns first
	c.add(hidden, float64(s.hidden))
	for i := range s.gauges {
		g := &s.gauges[i]
		c.list = append(c.list, client.MustNewConstMetric(g.desc, client.GaugeValue, g.value(s.row), g.index...))
	}
	c.sets(s.state.Sets)
	return c
}

// sets shows the bits of each flag up to the highest byte that ever had one: a series is there, at 0, before its first bit.
func (c *scrape) sets(sets map[string][][]uint64) {
	for field, elements := range sets {
		desc := setDesc(field, c.run)
		for j, counts := range elements {
			for bit := range max(8, (len(counts)+7)/8*8) {
				var n uint64
				if bit < len(counts) {
					n = counts[bit]
				}
				c.list = append(c.list, client.MustNewConstMetric(desc, client.CounterValue, float64(n), strconv.Itoa(j), strconv.Itoa(bit)))
			}
		}
	}
}
