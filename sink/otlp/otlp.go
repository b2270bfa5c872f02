// Package otlp sends a run's records as OpenTelemetry metrics, by OTLP over HTTP in its binary form, to a collector or to a
// store that takes OTLP itself.
//
// A store of metrics is not made for every record of a fast loop. So of each interval of the input's time only the newest
// record is sent, as a gauge per element, with the counters of what was stored and lost up to there; the counters leave
// nothing out. Every point is made of the record alone: its time is the record's, no clock of this machine is in it. What
// is sent again after a failure is therefore the same points, of the same attributes and times, which a store keeps once.
//
// Within a generation the times of the points rise. A generation is an attribute: a run that was resumed earlier in its
// input does not write over what it had sent.
package otlp

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/bits"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// Bounds.
const (
	defaultInterval = 10 * time.Second
	minInterval     = time.Millisecond // stores round times to that
	defaultElements = 64               // of a vector
	maxGauges       = 4096             // points of a record
	maxSets         = 16               // flag words whose bits are counted
	maxRequest      = 1 << 20          // bytes, from which a request is sent, uncompressed
)

// Options say where to and what. The zero value of each field but the endpoint is replaced by its default. Environ fills
// in what the usual variables say.
type Options struct {
	Endpoint string        // URL of the receiver: /v1/metrics is added unless it ends so
	Interval time.Duration // of the input's time, of which the newest record is sent; at least 1 ms; default 10 s
	Elements int           // of a vector that are sent, each a series; default 64

	Headers    Headers       // of each request, such as a token
	Timeout    time.Duration // of each request; default 10 s
	Plain      bool          // requests are not compressed
	Attributes []Attribute   // of the resource, besides service.name and service.instance.id
	Service    string        // service.name; default usp
	Version    string        // of the program, for the scope

	Transport http.RoundTripper // default: TLS as the system, or the environment, trusts it, and no proxy
	Logger    *slog.Logger      // default discards
	Now       func() time.Time  // for waits that a server asks for; default time.Now
	Jitter    func() float64    // in [0,1): part of the wait between tries that is left out, halved; default none

	exact bool        // the endpoint is the whole URL
	tls   *tls.Config // of the default transport
}

// Attribute is one of the resource.
type Attribute struct{ Key, Value string }

// Headers of requests are secrets: they print as their number.
type Headers map[string]string

func (h Headers) String() string       { return fmt.Sprintf("%d headers", len(h)) }
func (h Headers) GoString() string     { return h.String() }
func (h Headers) LogValue() slog.Value { return slog.StringValue(h.String()) }

// Sink sends one run.
type Sink struct {
	opts      Options
	url       *url.URL
	client    *http.Client
	notBefore time.Time // the server has asked for silence until then
	warned    time.Time // of points that were refused

	run     string
	state   state
	before  sink.Cursor    // where to go on if the newest record is not sent
	schema  *record.Schema // of the newest record and of the points
	newest  []uint64       // the record that waits; nil: none does, or a process before has sent it
	seq     uint64         // of that
	layout  []element
	flags   []element // whose bits are counted
	request request
}

// state is what the cursor keeps: all that a point is made of besides its record.
type state struct {
	Next       uint64     `json:"next"`
	Generation uint32     `json:"generation"`
	Start      int64      `json:"start"` // time of the generation's first record, ns
	Stored     uint64     `json:"stored"`
	Lost       [5]uint64  `json:"lost"`     // by record.LostReason
	Sets       [][]uint64 `json:"sets"`     // for each flag word how often each bit was set, up to the highest that ever was
	Last       int64      `json:"last"`     // time of the newest point, ns
	Untold     bool       `json:"untold"`   // a loss stands behind the newest point
	Waits      bool       `json:"waits"`    // the newest record waits for its interval to be over
	Time       int64      `json:"time"`     // of that, ns
	Left       uint64     `json:"left"`     // records that had their turn and were not sent: no time after 1970, and in a later millisecond than the point before
	Rejected   uint64     `json:"rejected"` // points that the receiver did not take
}

// New makes a sink. It sends nothing yet.
func New(o Options) (*Sink, error) {
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	if o.Interval < minInterval {
		return nil, fmt.Errorf("otlp: an interval of %v; want at least %v, to which stores round", o.Interval, minInterval)
	}
	if o.Elements <= 0 {
		o.Elements = defaultElements
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Service == "" {
		o.Service = "usp"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Jitter == nil {
		o.Jitter = func() float64 { return 0 }
	}
	to, err := receiver(o.Endpoint, o.exact)
	if err != nil {
		return nil, err
	}
	s := &Sink{opts: o, url: to}
	s.client = o.client()
	return s, nil
}

// Rejected is how many points the receiver did not take, and Left how many records it was not offered because they have no
// time that can be sent. It is for the goroutine that uses the sink.
func (s *Sink) Rejected() (points, left uint64) { return s.state.Rejected, s.state.Left }

// Begin goes on where the cursor stands; without a state that can be read, at the beginning: the receiver knows the points
// that it has.
func (s *Sink) Begin(_ context.Context, run sink.Run, at sink.Cursor) (sink.Cursor, error) {
	s.run, s.schema, s.newest = strings.ToValidUTF8(run.ID, "\uFFFD"), nil, nil
	s.request.reset()
	s.state = state{}
	if at.Next > 0 {
		err := json.Unmarshal(at.State, &s.state)
		if err == nil && s.state.Next != at.Next {
			err = fmt.Errorf("it is of frame %d, the cursor at %d", s.state.Next, at.Next)
		}
		if err != nil {
			s.opts.Logger.Warn("the state of the cursor cannot be used; the run is sent again from its beginning", "err", err)
			s.state = state{}
		}
	}
	if len(s.opts.Headers) > 0 && s.url.Scheme == "http" && !loopback(s.url.Hostname()) {
		s.opts.Logger.Warn("headers are sent without encryption; use an https endpoint", "host", s.url.Host)
	}
	s.before = s.cursor()
	return s.before, nil
}

func (s *Sink) cursor() sink.Cursor {
	if s.state.Next == 0 {
		return sink.Cursor{}
	}
	b, err := json.Marshal(s.state)
	if err != nil {
		panic("otlp: " + err.Error()) // there is nothing in it that could not be
	}
	return sink.Cursor{Next: s.state.Next, State: b}
}

// Write takes what is to be sent of a batch, and sends it where that has become much.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if err := s.turn(ctx, b); err != nil {
		return err
	}
	begun := s.cursor()
	losses := b.Losses
	at := -1 // the newest record, if it is in this batch
	for i := range b.Records() {
		for ; len(losses) > 0 && losses[0].Before <= i; losses = losses[1:] {
			s.lose(losses[0])
		}
		row := b.Row(i)
		t := int64(row[1])
		if s.state.Waits && s.interval(t) != s.interval(s.state.Time) {
			if err := s.point(ctx); err != nil {
				return err
			}
		}
		s.newest, s.seq, at = row, b.Seq[i], i
		s.state.Waits, s.state.Time = true, t
		if s.state.Stored == 0 {
			s.state.Start = t
		}
		s.state.Stored++
		s.countSets(row)
	}
	for _, l := range losses {
		s.lose(l)
	}
	s.state.Next = b.Next
	if b.End {
		return s.end(ctx)
	}
	if at >= 0 {
		s.newest, s.before = slices.Clone(b.Row(at)), begun
	}
	return nil
}

// turn begins a generation or another schema, what was gathered of the one before being sent.
func (s *Sink) turn(ctx context.Context, b *sink.Batch) error {
	fresh := s.state.Next == 0 || s.state.Generation != b.Generation
	if fresh && s.state.Next > 0 {
		if err := s.end(ctx); err != nil {
			return err
		}
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	if s.schema == nil || s.schema.Sum() != b.Schema.Sum() { // which is the same through a generation
		s.schema, s.layout = b.Schema, layout(b.Schema, s.opts.Elements)
		s.flags = flags(b.Schema, s.opts.Elements)
	}
	if fresh {
		s.state = state{Next: s.state.Next, Generation: b.Generation, Left: s.state.Left, Rejected: s.state.Rejected}
	}
	for len(s.state.Sets) < len(s.flags) {
		s.state.Sets = append(s.state.Sets, nil)
	}
	return nil
}

// countSets counts the bits of the flags, so that one that was set between two points is seen.
func (s *Sink) countSets(row []uint64) {
	for i := range s.flags {
		for w := row[s.flags[i].word]; w != 0; w &= w - 1 {
			bit := bits.TrailingZeros64(w)
			for len(s.state.Sets[i]) <= bit {
				s.state.Sets[i] = append(s.state.Sets[i], 0)
			}
			s.state.Sets[i][bit]++
		}
	}
}

func (s *Sink) lose(l sink.Loss) {
	if int(l.Reason) < len(s.state.Lost) {
		s.state.Lost[l.Reason] += l.To - l.From
	}
	s.state.Untold = true
}

func (s *Sink) interval(t int64) int64 {
	n := int64(s.opts.Interval)
	q := t / n
	if t%n < 0 {
		q--
	}
	return q
}

// end is where a segment ends: its last record is the newest that its interval will have of it. Losses behind the last
// record have no time of their own. They stand as little behind it as a store can tell.
func (s *Sink) end(ctx context.Context) error {
	if s.state.Waits {
		if err := s.point(ctx); err != nil {
			return err
		}
	}
	if !s.state.Untold || s.state.Last == 0 {
		return nil
	}
	return s.counters(ctx, s.state.Last+int64(minInterval))
}

// point takes the record that waits into the request, if its millisecond is a later one than the last's, and than 1970's first. Where this process began behind it, the one before has sent it.
func (s *Sink) point(ctx context.Context) error {
	row, t := s.newest, s.state.Time
	s.newest, s.state.Waits = nil, false
	if t/int64(minInterval) <= s.state.Last/int64(minInterval) {
		if s.state.Left++; s.state.Left == 1 {
			s.opts.Logger.Warn("a record is not sent, nor are others like it: it is from before 1970, or in no later millisecond than the point before", "run", s.run, "time", time.Unix(0, t).UTC())
		}
		return nil
	}
	if row != nil {
		s.request.row(s.layout, row, s.seq, t, s.attributes())
	}
	return s.counters(ctx, t)
}

func (s *Sink) counters(ctx context.Context, t int64) error {
	s.request.counters(&s.state, s.flags, t, s.attributes())
	s.state.Last, s.state.Untold = t, false
	if s.request.size < maxRequest {
		return nil
	}
	return s.flush(ctx)
}

// Sync sends what is left. A newest record whose interval may get a newer one is not sent: the cursor stays before it.
func (s *Sink) Sync(ctx context.Context) (sink.Cursor, error) {
	if err := s.flush(ctx); err != nil {
		return sink.Cursor{}, err
	}
	if s.newest != nil {
		return s.withCounts(s.before), nil
	}
	return s.cursor(), nil
}

// withCounts brings what has been found out since into an older cursor.
func (s *Sink) withCounts(at sink.Cursor) sink.Cursor {
	if at.Next == 0 {
		return at
	}
	var old state
	if err := json.Unmarshal(at.State, &old); err != nil || old.Rejected == s.state.Rejected {
		return at
	}
	old.Rejected = s.state.Rejected
	b, err := json.Marshal(old)
	if err != nil {
		return at
	}
	return sink.Cursor{Next: at.Next, State: b}
}

// Close lets go of idle connections.
func (s *Sink) Close() error {
	s.client.CloseIdleConnections()
	return nil
}
