// Package web shows runs in a browser: a list, each run's telemetry over any range of its steps, and two runs beside each
// other. Pages and charts are drawn here; a small script replaces parts of them while a run goes on, and nothing but
// that needs it.
//
// It reads run directories, and a stream if there is one, and changes nothing in them. What it shows of records comes through Data, which has stored
// fields alone: digest fields and states have no way here.
//
// It promises that no request changes anything, that no page holds text of a run as markup, that every answer forbids
// the browser to load anything from elsewhere, and that what requests may cost is bounded: their size and duration, the
// number of open streams, and of runs held in memory.
package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/internal/pyramid"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// Options configure a Server. The zero value shows the runs in ./runs to whoever asks under the name of this machine
// alone (localhost and its addresses).
type Options struct {
	FS     vfs.FS           // default the operating system's
	Runs   string           // directory of the run directories; default runs
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default none

	// Hosts are further names under which requests may come, without ports. Others are refused, so that a page
	// elsewhere whose name leads here cannot read anything.
	Hosts []string
	// Token, if not empty, is what a request must show, as a bearer token or by the cookie that the login page sets.
	Token string
	// Metrics answers /metrics; nil: there is none.
	Metrics http.Handler
	// Version is what /version says.
	Version any

	// Cache is where the aggregates of runs are kept that have none beside their segments, made while Run runs; nil: nowhere, long runs
	// are then read once for each server. CacheFault says why there is none though one was wanted.
	Cache      *pyramid.Cache
	CacheFault string
	// Yield has the thread that calls it give way to others: the one that makes aggregates does. nil: nothing.
	Yield func()

	// Open is where a run's telemetry comes from; default OpenPyramid. What it returns may be an io.Closer.
	Open func(dir string) (Data, error)
	// Status says how a run stands, in a word; default by the end of its log.
	Status func(r *rundir.Run) string
	// Live is what the ring of a run says that is being recorded; nil, or returning nil: not known.
	Live func(id string) *Live
	// Experts names the numbers of the field weights; nil: they have none.
	Experts func(m *rundir.Manifest) []string

	// Fleet is the runs of a stream, which are shown beside those of the directory; nil: there is none. Whoever gives it runs it.
	Fleet *fleet.Fleet

	// Interval is the least time between two messages of a stream; default 250 ms.
	Interval time.Duration
	// Streams is how many streams may be open; default 64.
	Streams int
}

// Live is the account of the generation being recorded, as its ring has it.
type Live struct {
	Emitted, Stored, Lost uint64
	Held                  uint64 // in the recorder's memory until storage is well
	Fault                 string // of storage
	// EmitP50, EmitP99 and EmitMax are what emitting a record cost the loop; 0: not known.
	EmitP50, EmitP99, EmitMax time.Duration
}

const (
	defaultInterval = 250 * time.Millisecond
	defaultStreams  = 64
	openRuns        = 16 // whose Data is kept
	comparisons     = 2  // at a time

	patienceOfEnd = 2 * time.Second // with requests under way
)

// Server answers requests. It is made by New.
type Server struct {
	o        Options
	pages    *template.Template
	assets   map[string]*asset // by the path that has its hash
	guard    *guard
	streams  chan struct{}
	compares chan struct{}

	background *background
	atOnce     int64 // bytes of a run that is read at once; 0: the default

	mu     sync.Mutex
	opened []*openRun // newest use last
	rates  map[string]sample
	facts  map[string]cached
	ends   map[string][]seenEnd

	ending chan struct{} // closed when Run begins to end: streams end then
	once   sync.Once
}

// New makes a Server. It does not listen yet, see Run and Handler.
func New(o Options) (*Server, error) {
	o.FS = cmp.Or[vfs.FS](o.FS, vfs.OS())
	o.Runs = cmp.Or(o.Runs, "runs")
	o.Interval = cmp.Or(o.Interval, defaultInterval)
	o.Streams = cmp.Or(o.Streams, defaultStreams)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Status == nil {
		o.Status = func(r *rundir.Run) string {
			last := audit.Glance(o.FS, r.Dir.Path())
			if last.State == audit.Closed {
				return last.End.Status.String()
			}
			return string(last.State)
		}
	}
	s := &Server{
		o: o, streams: make(chan struct{}, o.Streams), compares: make(chan struct{}, comparisons), ending: make(chan struct{}),
		rates: map[string]sample{}, facts: map[string]cached{}, ends: map[string][]seenEnd{},
	}
	s.background = newBackground(o.Yield)
	if s.o.Open == nil {
		s.o.Open = s.openPyramids
	}
	var err error
	if s.guard, err = newGuard(&s.o); err != nil {
		return nil, err
	}
	if s.assets, err = loadAssets(); err != nil {
		return nil, err
	}
	s.pages, err = s.parsePages()
	return s, err
}

// openPyramids is the default of Options.Open.
func (s *Server) openPyramids(dir string) (Data, error) {
	p := newPyramids(s.o.FS, dir, s.o.Now)
	p.cache, p.back, p.log, p.none, p.atOnce = s.o.Cache, s.background, s.o.Logger, s.o.CacheFault, s.atOnce
	return p, nil
}

// Handler is what answers requests, for who listens by other means than Run.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.runsPage)
	mux.HandleFunc("GET /run/{id}", s.runPage)
	mux.HandleFunc("GET /compare", s.comparePage)
	mux.HandleFunc("GET /events", s.runsEvents)
	mux.HandleFunc("GET /events/{id}", s.runEvents)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /version", s.version)
	mux.HandleFunc("GET /assets/{name}", s.asset)
	mux.HandleFunc("GET /login", s.loginPage)
	mux.HandleFunc("POST /login", s.login)
	mux.HandleFunc("POST /logout", s.logout)
	if s.o.Fleet != nil {
		mux.HandleFunc("GET /fleet", s.fleetPage)
		mux.HandleFunc("GET /fleet/run/{id}", s.fleetRunPage)
		mux.HandleFunc("GET /fleet/events", s.fleetEvents)
		mux.HandleFunc("GET /fleet/events/{id}", s.fleetRunEvents)
	}
	if s.o.Metrics != nil {
		mux.Handle("GET /metrics", s.o.Metrics)
	}
	return s.guard.protect(http.NewCrossOriginProtection().Handler(mux))
}

// SetToken replaces Options.Token; who was logged in with the old one has to log in again. A token that could be guessed is an error, and
// the old one stays. One cannot be taken away, nor be set where there was none.
func (s *Server) SetToken(token string) error {
	if (token == "") != (len(s.guard.secret()) == 0) {
		return errors.New("whether a token is wanted is decided when the server starts")
	}
	return s.guard.setToken(token)
}

// Run answers requests on a listener, which it closes, until ctx ends; then it lets those under way finish for a
// moment. The error is nil if ctx ended it.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
	}
	beside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.background.run(beside) })
	defer func() { stop(); wg.Wait(); s.closeRuns() }()
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.once.Do(func() { close(s.ending) })
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), patienceOfEnd)
	defer cancel()
	err := srv.Shutdown(bounded)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-failed
	return err
}
