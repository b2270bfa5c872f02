package cli

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/pyramid"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/web"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/otlp"
	"github.com/usp-project/usp/sink/parquet"
	"github.com/usp-project/usp/sink/prometheus"
	"github.com/usp-project/usp/sink/tensorboard"
)

// destination is a kind of sink: where its settings are, and how it is opened.
type destination struct {
	name string
	live bool                                            // it shows what is, so it makes sense only while a run is recorded
	at   func(c *config.Config) string                   // where it goes; empty: nowhere
	open func(a *app, dir rundir.Dir) (sink.Sink, error) // nil: it gets the snapshots
}

// destinations are all kinds, in the order of the settings.
func destinations() []destination {
	return []destination{
		{pyramid.Name, false, atPyramid, func(a *app, dir rundir.Dir) (sink.Sink, error) { return pyramid.NewSink(a.fs, dir), nil }},
		{"parquet", false, func(c *config.Config) string { return c.Parquet.Dir }, func(a *app, _ rundir.Dir) (sink.Sink, error) {
			return parquet.New(parquet.Options{Dir: a.cfg.Parquet.Dir, FS: a.fs}), nil
		}},
		{"prometheus", true, func(c *config.Config) string { return c.Prometheus.Listen }, (*app).openPrometheus},
		{"otlp", false, func(c *config.Config) string { return c.OTLP.Endpoint }, (*app).openOTLP},
		{"tensorboard", false, func(c *config.Config) string { return c.TensorBoard.Dir }, func(a *app, _ rundir.Dir) (sink.Sink, error) {
			return tensorboard.New(tensorboard.Options{Dir: a.cfg.TensorBoard.Dir, Every: a.cfg.TensorBoard.Every, FS: a.fs}), nil
		}},
		{"jetstream", false, func(c *config.Config) string { return c.JetStream.URL }, func(a *app, dir rundir.Dir) (sink.Sink, error) {
			return jetstream.New(a.streamOptions(dir)), nil
		}},
		{remote.Name, false, func(c *config.Config) string { return c.Snapshot.Remote }, nil}, // snapshots, and no telemetry: see sendRemote
	}
}

func (a *app) streamOptions(dir rundir.Dir) jetstream.Options {
	c := &a.cfg.JetStream
	return jetstream.Options{
		URL: c.URL, Stream: c.Stream, Replicas: c.Replicas, CredentialsFile: c.CredentialsFile, CAFile: c.CAFile, Dir: dir, FS: a.fs, Logger: a.logger(),
	}
}

// atPyramid says where the aggregates for drawing go, which is in the run directory.
func atPyramid(c *config.Config) string {
	if c.Serve.Aggregates {
		return "the run directory"
	}
	return ""
}

func (a *app) openOTLP(rundir.Dir) (sink.Sink, error) {
	o := otlp.Options{
		Endpoint: a.cfg.OTLP.Endpoint, Interval: time.Duration(a.cfg.OTLP.Interval), Version: version(), Logger: a.logger(), Now: a.now, Jitter: rand.Float64,
	}
	if err := o.Environ(a.env, a.fs); err != nil {
		return nil, err
	}
	return otlp.New(o)
}

// prometheusOptions are those of one run.
func (a *app) prometheusOptions(dir rundir.Dir) prometheus.Options {
	return prometheus.Options{
		End:    func() (uint64, error) { return sink.End(a.fs, dir) },
		Live:   func() (prometheus.Live, bool) { return a.live(dir.ID()).metrics() },
		Lags:   func() []prometheus.Lag { return a.lags(dir) },
		Logger: a.logger(),
	}
}

// metrics is what a ring says, for Prometheus; false if there is no ring.
func (l *live) metrics() (prometheus.Live, bool) {
	if l == nil {
		return prometheus.Live{}, false
	}
	return prometheus.Live{
		Emitted: l.Emitted, Stored: l.Stored, Lost: l.Lost, LostToStorage: l.LostStorage, Held: l.Held,
		Snapshots: l.Snapshots, Unsaved: l.Unsaved, Fault: l.Fault != "",
		Emits: l.emits,
	}, true
}

// lags says how far each sink of a run is behind.
func (a *app) lags(dir rundir.Dir) (list []prometheus.Lag) {
	reports, err := a.sinkReports(dir)
	if err != nil {
		return nil // the run is being removed, perhaps; the next scrape sees
	}
	for _, r := range reports {
		if s := r.Remote; s != nil {
			n := &prometheus.Snapshots{Sent: s.Sent, Waiting: s.Waiting, Missed: s.Missed, Refused: s.Refused, Pruned: s.Pruned}
			if !s.Oldest.IsZero() {
				n.Oldest = max(0, a.now().Sub(s.Oldest))
			}
			list = append(list, prometheus.Lag{Sink: r.Sink, Fault: s.Fault != "", Snapshots: n})
			continue
		}
		list = append(list, prometheus.Lag{Sink: r.Sink, Frames: r.Of - min(r.Of, r.Frames), Fault: r.Fault != ""})
	}
	return list
}

// served is a sink that a server shows.
type served struct {
	*prometheus.Sink
	server *http.Server
}

// Close ends the server.
func (s *served) Close() error { return s.server.Close() }

// openPrometheus serves /metrics of one run on loopback.
func (a *app) openPrometheus(dir rundir.Dir) (sink.Sink, error) {
	s := prometheus.New(a.prometheusOptions(dir))
	l, err := net.Listen("tcp", a.cfg.Prometheus.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w; each run needs an address of its own, or usp serve for all", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", here(s))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 1 << 14}
	go func() { _ = server.Serve(l) }() // until Close
	a.logger().Info("metrics are served", "run", dir.ID(), "url", "http://"+l.Addr().String()+"/metrics")
	return &served{s, server}, nil
}

// here answers only requests that name this machine, so that no page elsewhere can read metrics through a browser on it.
func here(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !web.Local(r.Host) {
			http.Error(w, "metrics of a run are given under the name localhost and its addresses alone; usp serve --host NAME gives those of all runs under another", http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}
