package cli

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/prometheus"
)

const (
	scrapeTime = 2 * time.Second // that a scrape may spend on catching up with the runs
	endedFor   = 5 * time.Minute // that a run is still shown after its end, so that the last scrape sees it whole
)

// runMetrics shows the runs that are recorded to Prometheus. It reads what is new of them when it is asked, so that nobody
// pays for what nobody asks for. A run that it has just met is caught up with over several scrapes if it has to be.
type runMetrics struct {
	app *app

	mu   sync.Mutex // held through a scrape's reading
	runs map[string]*shownRun
}

type shownRun struct {
	dir      rundir.Dir
	sink     *prometheus.Sink
	follower *sink.Follower
	seen     time.Time // when it was last found to be recorded
}

func (a *app) runMetrics() *runMetrics { return &runMetrics{app: a, runs: map[string]*shownRun{}} }

// handler answers scrapes, of a fleet too if there is one.
func (m *runMetrics) handler(f *fleet.Fleet) http.Handler {
	if f == nil {
		return prometheus.Handler(m.catchUp, m.app.logger())
	}
	return prometheus.Handler(m.catchUp, m.app.logger(), prometheus.FleetCollector(fleetMetrics(f)))
}

// catchUp looks for runs, reads what is new of each, and returns them.
func (m *runMetrics) catchUp() (sinks []*prometheus.Sink) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.find()
	deadline := m.app.now().Add(scrapeTime)
	for _, r := range m.runs {
		r.read(func() bool { return m.app.now().After(deadline) })
		sinks = append(sinks, r.sink)
	}
	return sinks
}

// find meets new runs and forgets those that have ended some time ago.
func (m *runMetrics) find() {
	now := m.app.now()
	list, err := rundir.List(m.app.fs, m.app.cfg.Run.Dir)
	if err != nil {
		return // there is no run yet, or /readyz says what is wrong
	}
	for _, run := range list {
		if !run.Recording || run.Err != nil {
			continue
		}
		if r := m.runs[run.ID]; r != nil {
			r.seen = now
		} else if r := m.meet(run.Dir); r != nil {
			r.seen = now
			m.runs[run.ID] = r
		}
	}
	for id, r := range m.runs {
		if now.Sub(r.seen) > endedFor {
			_ = r.follower.Close() // only read
			delete(m.runs, id)
		}
	}
}

// meet begins to follow a run; nil if it cannot be read yet.
func (m *runMetrics) meet(dir rundir.Dir) *shownRun {
	line, err := audit.Open(m.app.fs, dir.Path())
	if err != nil {
		return nil
	}
	s := prometheus.New(m.app.prometheusOptions(dir))
	newest := line.Manifests[len(line.Manifests)-1].Generation
	if _, err := s.Begin(context.Background(), sink.Run{ID: line.RunID, Schema: line.Schema(newest)}, sink.Cursor{}); err != nil {
		return nil
	}
	return &shownRun{dir: dir, sink: s, follower: sink.Follow(m.app.fs, dir, 0)}
}

// read takes what is new, until there is no time left.
func (r *shownRun) read(late func() bool) {
	for !late() {
		b, err := r.follower.Next()
		if err != nil || r.sink.Write(context.Background(), b) != nil {
			return // nothing more for now, or a file that cannot be read, which usp verify tells of
		}
	}
}
