// Package prometheus shows a run to Prometheus: its newest record, and what has been counted since its beginning.
//
// Nothing is counted twice: the metrics are read out of the sink's own state at each scrape. The counters are those of the
// whole run, over all processes: the state is in the cursor, and a process that has none counts from the first frame on.
// Until it has caught up with what was there when it began, it shows no counter, so that a scrape never sees one go back.
package prometheus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/sink"
)

// What bounds the series of a run and the state in its cursor.
const (
	defaultElements = 64   // of a vector
	maxGauges       = 4096 // for all fields together
	maxSets         = 16   // flag words whose bits are counted
	maxRow          = 2048 // words of a newest record that the cursor keeps
)

// Live is what a recorder that is at work says of its generation.
type Live struct {
	Emitted, Stored, Lost, LostToStorage, Held uint64 // records
	Snapshots, Unsaved                         uint64
	Fault                                      bool // storage takes nothing
	Emits                                      ring.Durations
}

// Lag is how far the destination of a sink is behind.
type Lag struct {
	Sink   string
	Frames uint64
	Fault  bool // it takes nothing

	Snapshots *Snapshots // of the remote store, which gets these and no frames
}

// Snapshots is what became of a run's snapshots on the way to a remote store.
type Snapshots struct {
	Sent, Waiting, Missed, Refused, Pruned uint64
	Oldest                                 time.Duration // how long the oldest one has been waiting
}

// Options say what else is shown. The zero value shows the records alone.
type Options struct {
	Elements int // of a vector that are shown, each a series; default 64

	End  func() (uint64, error) // the ordinal behind the run's last frame; asked by Begin. nil: the run is shown while it is caught up with
	Live func() (Live, bool)    // false: the run is not being recorded. Asked at each scrape
	Lags func() []Lag           // of the run's sinks; asked at each scrape

	Logger *slog.Logger // default discards
}

// Sink is both the sink of one run and what Prometheus scrapes.
type Sink struct {
	opts    Options
	handler http.Handler

	mu     sync.Mutex
	run    string // "" before Begin
	target uint64 // the end of the run when the sink began; reached: the counters are shown
	state  state
	schema *record.Schema // of the row
	row    []uint64       // the newest record; nil: there is none yet
	gauges []gauge
	hidden int
}

// state is what the cursor keeps.
type state struct {
	Next       uint64                `json:"next"`
	Generation uint32                `json:"generation"`
	Stored     uint64                `json:"stored"`
	Seq        uint64                `json:"seq"`  // of the newest record
	Lost       map[string]uint64     `json:"lost"` // by reason
	Sets       map[string][][]uint64 `json:"sets"` // by flag field: for each element how often each bit was set, up to the highest that ever was
	Schema     []byte                `json:"schema,omitempty"`
	Row        []byte                `json:"row,omitempty"` // the newest record's words, little-endian
}

// reasons are those of a loss.
func reasons() []record.LostReason {
	return []record.LostReason{record.LostOverrun, record.LostTorn, record.LostStorage, record.LostVanished}
}

func newState() state {
	s := state{Lost: map[string]uint64{}, Sets: map[string][][]uint64{}}
	for _, r := range reasons() {
		s.Lost[r.String()] = 0
	}
	return s
}

// New makes a sink. It serves from then on.
func New(o Options) *Sink {
	if o.Elements <= 0 {
		o.Elements = defaultElements
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sink{opts: o, state: newState()}
	s.handler = Handler(func() []*Sink { return []*Sink{s} }, o.Logger)
	return s
}

// ServeHTTP answers a scrape of this run alone.
func (s *Sink) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Handler answers a scrape of all runs that runs returns, each another one, and of what else is collected: as OpenMetrics if it is
// asked for, else as Prometheus' own text. A nil logger discards.
func Handler(runs func() []*Sink, logger *slog.Logger, more ...client.Collector) http.Handler {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	registry := client.NewRegistry()
	registry.MustRegister(collector(runs))
	registry.MustRegister(more...)
	scrape := promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "metrics are only read", http.StatusMethodNotAllowed)
			return
		}
		scrape.ServeHTTP(w, r)
	})
}

// Begin goes on where the process is, if it has begun before; else where the cursor stands. A cursor without a state that
// can be read, or of a run that has lost its end since, is of no use: all is counted again.
func (s *Sink) Begin(_ context.Context, run sink.Run, at sink.Cursor) (sink.Cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strings.ToValidUTF8(run.ID, "\uFFFD")
	if s.run != "" {
		if s.run != id {
			return at, fmt.Errorf("%w: this shows run %s, and is asked to show %s too", sink.ErrRefused, s.run, id)
		}
		return s.cursor()
	}
	var end uint64
	if s.opts.End != nil {
		var err error
		if end, err = s.opts.End(); err != nil {
			return at, fmt.Errorf("look for the end of the run: %w", err)
		}
	}
	s.state = s.restore(at, end)
	s.run, s.target = id, end
	if words := unpack(s.state.Row); len(words) == run.Schema.StoredWords() && string(s.state.Schema) == schemaSum(run.Schema) {
		s.show(run.Schema, words)
	}
	return s.cursor()
}

// restore is the state of a cursor, or a new one.
func (s *Sink) restore(at sink.Cursor, end uint64) state {
	if at.Next == 0 {
		return newState()
	}
	got := newState()
	err := json.Unmarshal(at.State, &got)
	switch {
	case err != nil:
	case got.Lost == nil || got.Sets == nil:
		err = errors.New("the state has no counts")
	case got.Next != at.Next:
		err = fmt.Errorf("the state is of frame %d, the cursor at %d", got.Next, at.Next)
	case s.opts.End != nil && at.Next > end:
		err = fmt.Errorf("the cursor is at frame %d, and the run ends at %d", at.Next, end)
	default:
		return got
	}
	s.opts.Logger.Warn("the run is counted from its beginning", "err", err)
	return newState()
}

func schemaSum(s *record.Schema) string {
	sum := s.Sum()
	return string(sum[:])
}

// show makes words the newest record.
func (s *Sink) show(schema *record.Schema, words []uint64) {
	if s.schema == nil || s.schema != schema && s.schema.Sum() != schema.Sum() {
		s.gauges, s.hidden = gauges(schema, s.run, s.opts.Elements)
	}
	s.schema = schema
	s.row = append(s.row[:0], words...)
}

// Write counts a batch and keeps its last record.
func (s *Sink) Write(_ context.Context, b *sink.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Next <= s.state.Next {
		return nil // counted already
	}
	s.state.Next, s.state.Generation = b.Next, b.Generation
	s.state.Stored += uint64(b.Records())
	for _, l := range b.Losses {
		s.state.Lost[l.Reason.String()] += l.To - l.From
	}
	if n := b.Records(); n > 0 {
		s.countSets(b)
		s.state.Seq = b.Seq[n-1]
		s.show(b.Schema, b.Row(n-1))
	}
	return nil
}

// countSets counts the bits of the flags, so that one that was set between two scrapes is seen.
func (s *Sink) countSets(b *sink.Batch) {
	for i := range b.Schema.Len() {
		f := b.Schema.Field(i)
		if f.Class != record.Flag || f.Type != record.Uint64 && f.Type != record.Int64 {
			continue
		}
		n := min(f.Len, s.opts.Elements)
		counts := s.state.Sets[f.Name]
		if counts == nil && !s.roomFor(n) {
			continue
		}
		for len(counts) < n {
			counts = append(counts, nil)
		}
		s.state.Sets[f.Name] = counts
		for j := range n {
			counts[j] = countBits(counts[j], b, b.Schema.Offset(i)+j)
		}
	}
}

func (s *Sink) roomFor(n int) bool {
	for _, have := range s.state.Sets {
		n += len(have)
	}
	return n <= maxSets
}

func countBits(counts []uint64, b *sink.Batch, word int) []uint64 {
	for r := range b.Records() {
		for w := b.Row(r)[word]; w != 0; w &= w - 1 {
			bit := bits.TrailingZeros64(w)
			for len(counts) <= bit {
				counts = append(counts, 0)
			}
			counts[bit]++
		}
	}
	return counts
}

// Sync returns the newest place at once: what Prometheus asks for next is there.
func (s *Sink) Sync(context.Context) (sink.Cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursor()
}

func (s *Sink) cursor() (sink.Cursor, error) {
	if s.state.Next == 0 {
		return sink.Cursor{}, nil
	}
	st := s.state
	st.Schema, st.Row = nil, nil
	if s.row != nil && len(s.row) <= maxRow {
		st.Schema, st.Row = []byte(schemaSum(s.schema)), pack(s.row)
	}
	b, err := json.Marshal(st)
	return sink.Cursor{Next: st.Next, State: b}, err
}

// Close has nothing to do: who serves the sink ends that.
func (s *Sink) Close() error { return nil }

func pack(words []uint64) []byte {
	b := make([]byte, 0, 8*len(words))
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func unpack(b []byte) []uint64 {
	var words []uint64
	for c := range slices.Chunk(b, 8) {
		if len(c) == 8 {
			words = append(words, binary.LittleEndian.Uint64(c))
		}
	}
	return words
}
