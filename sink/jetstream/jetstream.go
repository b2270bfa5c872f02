// Package jetstream mirrors runs in a stream of NATS JetStream, reads what is there, and holds it against the runs.
//
// The run directory is the truth and the stream a copy of it. A JetStream server acknowledges a message before it is on
// its disk, unless it is told otherwise (sync_interval: always, see ReadDurability), so what was acknowledged can be lost
// there when several servers lose their power. A sink that begins therefore asks the stream what it has, and goes on
// there, whatever its own cursor says.
//
// Each run has the subject usp.telemetry.RUN with its telemetry frames and usp.audit.RUN with the entries and signed heads
// of its digest log. doc/format/stream.md specifies the messages. Each message names the one that it must stand behind,
// so none is ever in the stream twice, out of order, or behind a gap; each has the SHA-256 of the subject's whole history, so a
// sink notices a run directory that is not the one whose beginning the stream has, and refuses. Who may write to the
// stream can still forge what is behind the newest message: Check finds that.
package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// DefaultStream is the name of the stream where the options have none.
const DefaultStream = "usp"

const (
	defaultMessage = 64 << 10
	minMessage     = 1 << 10
	headerRoom     = 4 << 10 // bytes of headers that a message has at most
)

// Options say where the stream is. Each field but URL has a working zero value.
type Options struct {
	URL             string // addresses of servers, nats:// or tls://, with commas, without secrets
	CredentialsFile string // NATS credentials or the seed of an nkey; "": none
	CAFile          string // certificates that servers are checked with; "": those of the system

	Stream       string // default "usp"
	Replicas     int    // servers that are to hold the stream, default 1; one that fewer hold is refused
	Storage      natsjs.StorageType
	Duplicates   time.Duration // window in which the server knows message ids again; default the server's
	MessageBytes int           // largest payload, if a frame is not larger; default 64 KiB

	Dir     rundir.Dir // the run; "": its digest log is not mirrored, and a stream that has more than the run is not noticed
	NoAudit bool       // mirror the telemetry alone, not the digest log

	FS     vfs.FS       // default vfs.OS()
	Logger *slog.Logger // default discards
}

func (o Options) withDefaults() Options {
	if o.Stream == "" {
		o.Stream = DefaultStream
	}
	if o.MessageBytes <= 0 {
		o.MessageBytes = defaultMessage
	}
	o.MessageBytes = max(o.MessageBytes, minMessage)
	o.Replicas = max(o.Replicas, 1)
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Sink mirrors one run.
type Sink struct {
	opts Options
	conn *Conn
	run  string

	telemetry *lane
	audit     *auditor // nil: there is none

	buffer [2][]byte // the message that is put together, and the one that may be under way
	open   header    // of the former
	schema [32]byte  // the last one of which a message tells, and the generation it is of
	of     uint32
	frame  record.Frame
	counts []byte
}

// New returns a sink that is not connected yet.
func New(o Options) *Sink { return &Sink{opts: o.withDefaults()} }

// Begin connects, makes the stream if need be, and finds out what it has of the run.
func (s *Sink) Begin(ctx context.Context, run sink.Run, at sink.Cursor) (from sink.Cursor, err error) {
	_ = s.Close() // nothing of it is used again
	if s.conn, err = Connect(ctx, s.opts); err != nil {
		return at, err
	}
	stream, err := openStream(ctx, s.conn.JS, &s.opts)
	if err != nil {
		return at, s.conn.explain(err)
	}
	s.run, s.schema, s.open = run.ID, [32]byte{}, header{}
	s.buffer[0], s.buffer[1] = s.buffer[0][:0], s.buffer[1][:0]
	telemetry, audit := tapes(at.State, run.ID)
	if telemetry.next != at.Next {
		telemetry = newTape(telemetryPrefix + token(run.ID))
	}
	if s.telemetry, err = openLane(ctx, s.conn, stream, run.ID, telemetryPrefix+token(run.ID), telemetry); err != nil {
		return at, s.conn.explain(err)
	}
	if s.telemetry.tail != nil {
		s.schema, s.of = s.telemetry.tail.schema, s.telemetry.tail.generation
	}
	if err := s.local(); err != nil {
		return at, err
	}
	if s.telemetry.next < at.Next {
		s.opts.Logger.Warn("the stream has less of the run than the cursor says, or the cursor is of no use: what is there is compared, and the rest brought again",
			"run", run.ID, "stream", s.opts.Stream, "cursor", at.Next, "stream has", s.telemetry.has())
	}
	if !s.opts.NoAudit && s.opts.Dir != "" {
		lane, err := openLane(ctx, s.conn, stream, run.ID, auditPrefix+token(run.ID), audit)
		if err != nil {
			return at, s.conn.explain(err)
		}
		s.audit = newAuditor(&s.opts, lane)
		if err := s.audit.match(); err != nil {
			return at, err
		}
	}
	return s.cursor(), nil
}

// local holds the end of what the stream has against the run directory.
func (s *Sink) local() error {
	if s.opts.Dir == "" {
		return nil
	}
	end, err := sink.End(s.opts.FS, s.opts.Dir)
	if err != nil {
		return err
	}
	if s.telemetry.has() > end {
		return fmt.Errorf("%w: stream %s has the frames before %d of %s, and the run ends at %d", sink.ErrAhead, s.opts.Stream, s.telemetry.has(), s.telemetry.subject, end)
	}
	return s.telemetry.match(frames{fsys: s.opts.FS, dir: s.opts.Dir.Telemetry()})
}

// cursor is up to where the stream has the run.
func (s *Sink) cursor() sink.Cursor {
	at := state{Telemetry: s.telemetry.acked}
	if s.audit != nil {
		at.Audit = s.audit.lane.acked
	}
	return sink.Cursor{Next: at.Telemetry.Next, State: at.encode()}
}

// Write puts the frames into messages and sends those that are full.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	l := s.telemetry
	ordinals, err := s.ordinals(b)
	if err != nil {
		return err
	}
	if b.First < l.next {
		return fmt.Errorf("jetstream: frames %d to %d do not follow on %d", b.First, b.Next, l.next)
	}
	vague := ordinals == nil && b.First+frameCount(b) != b.Next
	if vague || s.open.segment != b.Segment || s.open.generation != b.Generation || s.open.schema != b.Schema.Sum() {
		if err := s.cut(ctx, l.next); err != nil {
			return err
		}
	}
	losses, at := b.Losses, b.First
	take := func() error {
		if ordinals != nil {
			at, ordinals = ordinals[0], ordinals[1:]
		}
		if err := s.hole(ctx, b, at); err != nil {
			return err
		}
		at++
		return s.put(ctx, b, vague)
	}
	for i := 0; i <= len(b.Seq); i++ {
		for len(losses) > 0 && losses[0].Before == i {
			x := &losses[0]
			losses = losses[1:]
			s.frame = record.Frame{Kind: record.KindLost, Generation: b.Generation, Seq: x.From, To: x.To, Reason: x.Reason, Words: s.frame.Words[:0]}
			if err := take(); err != nil {
				return err
			}
		}
		if i < len(b.Seq) {
			s.frame = record.Frame{Kind: record.KindRecord, Generation: b.Generation, Seq: b.Seq[i], Words: append(s.frame.Words[:0], b.Row(i)...)}
			if err := take(); err != nil {
				return err
			}
		}
	}
	if err := s.hole(ctx, b, b.Next); err != nil {
		return err
	}
	if l.next <= l.has() {
		l.acked = l.place()
	}
	return nil
}

func frameCount(b *sink.Batch) uint64 { return uint64(len(b.Seq) + len(b.Losses)) }

// ordinals finds out which frames the batch has, where some between its ends could not be read; nil if they are all, or
// if that cannot be known.
func (s *Sink) ordinals(b *sink.Batch) (list []uint64, err error) {
	if n := frameCount(b); b.First+n == b.Next || n == 0 || s.opts.Dir == "" {
		return nil, nil
	}
	local := frames{fsys: s.opts.FS, dir: s.opts.Dir.Telemetry()}
	defer local.close()
	local.seek(b.First)
	for {
		_, at, err := local.read()
		switch {
		case err == nil && at < b.Next:
			list = append(list, at)
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err
		case uint64(len(list)) != frameCount(b):
			return nil, fmt.Errorf("of the frames %d to %d of the run directory %d could be read, and then %d", b.First, b.Next, frameCount(b), len(list))
		}
		return list, nil
	}
}

// hole takes the frames up to an ordinal as such that cannot be read.
func (s *Sink) hole(ctx context.Context, b *sink.Batch, to uint64) error {
	l := s.telemetry
	if l.next == to {
		return nil
	}
	if l.behind() {
		return l.skip(to)
	}
	if !s.open.incomplete {
		if err := s.cut(ctx, l.next); err != nil {
			return err
		}
	}
	if err := s.begin(ctx, b, true); err != nil {
		return err
	}
	l.next = to
	return s.cut(ctx, to)
}

// put takes s.frame.
func (s *Sink) put(ctx context.Context, b *sink.Batch, incomplete bool) error {
	l, f := s.telemetry, &s.frame
	size := 4 + 16 + 8*max(2, len(f.Words))
	if !l.behind() && len(s.buffer[0]) > 0 && len(s.buffer[0])+size > s.opts.MessageBytes {
		if err := s.cut(ctx, l.next); err != nil {
			return err
		}
	}
	if !l.behind() {
		if err := s.begin(ctx, b, incomplete); err != nil {
			return err
		}
	}
	s.counts = s.counts[:0]
	if f.Kind == record.KindLost {
		s.counts = record.AppendLost(s.counts, f.Generation, f.Seq, f.To, f.Reason)
	} else {
		s.counts = record.AppendRecord(s.counts, f.Generation, f.Seq, f.Words)
	}
	from := len(s.buffer[0])
	s.buffer[0] = appendFrame(s.buffer[0], s.counts)
	counted := s.buffer[0][from:]
	l.count(f)
	if l.behind() {
		s.buffer[0] = s.buffer[0][:from]
		return l.known(counted)
	}
	l.add(counted)
	if most := s.conn.nc.MaxPayload() - headerRoom; int64(len(s.buffer[0])) > most {
		return fmt.Errorf("%w: frame %d has %d bytes, and the server takes messages of %d (max_payload)", sink.ErrRefused, l.next-1, len(counted), most)
	}
	return nil
}

// recorded says where a generation is recorded, and by what, if its manifest does.
func (s *Sink) recorded(generation uint32) (host, program string) {
	if s.opts.Dir == "" {
		return "", ""
	}
	m, _, err := rundir.ReadManifest(s.opts.FS, s.opts.Dir, generation)
	if err != nil {
		return "", "" // usp verify says more
	}
	var producer struct {
		Program string `json:"program"`
	}
	_ = json.Unmarshal(m.Producer, &producer) // it may be of any form
	return m.Host.Name, producer.Program
}

// begin begins a message, if none is begun, with one that tells of the schema in front of it where that, or the generation, is another one.
func (s *Sink) begin(ctx context.Context, b *sink.Batch, incomplete bool) error {
	l, sum := s.telemetry, b.Schema.Sum()
	if s.open.kind != "" {
		return nil
	}
	if s.schema != sum || s.of != b.Generation {
		h := header{kind: kindSchema, first: l.next, next: l.next, generation: b.Generation, schema: sum, tally: l.tally}
		h.host, h.program = s.recorded(b.Generation)
		if err := l.send(ctx, h, stored(b.Schema)); err != nil {
			return err
		}
		s.schema, s.of = sum, b.Generation
	}
	s.open = header{kind: kindFrames, first: l.next, generation: b.Generation, schema: sum, segment: b.Segment, incomplete: incomplete}
	return nil
}

// stored is the text of a schema without the digest fields, which have no place in the stream, not even by their names.
func stored(s *record.Schema) []byte {
	var fields []record.Field
	for _, f := range s.Fields() {
		if f.Class != record.Digest {
			fields = append(fields, f)
		}
	}
	rest, err := record.NewSchema(s.Name(), fields...)
	if err != nil {
		return nil // no field is stored: a record is step and time
	}
	return rest.Text()
}

// cut sends the message that was begun, if one was.
func (s *Sink) cut(ctx context.Context, next uint64) error {
	if s.open.kind == "" {
		return nil
	}
	h := s.open
	h.next, h.tally = next, s.telemetry.tally
	if err := s.telemetry.send(ctx, h, s.buffer[0]); err != nil {
		return err
	}
	s.open.kind = ""
	s.buffer[0], s.buffer[1] = s.buffer[1][:0], s.buffer[0]
	return nil
}

// Sync sends what is left, waits until all is acknowledged, and brings the digest log up to its signed head.
func (s *Sink) Sync(ctx context.Context) (sink.Cursor, error) {
	l := s.telemetry
	if err := s.cut(ctx, l.next); err != nil {
		return sink.Cursor{}, err
	}
	if err := l.wait(ctx); err != nil {
		return sink.Cursor{}, err
	}
	if s.audit != nil {
		if err := s.audit.bring(ctx); err != nil {
			return sink.Cursor{}, err
		}
	}
	return s.cursor(), nil
}

// Trails says whether a head was signed since the digest log was brought: it is signed after the records that it is about.
func (s *Sink) Trails() bool { return s.audit != nil && s.audit.trails() }

// Close closes the connection.
func (s *Sink) Close() error {
	if s.audit != nil {
		s.audit.close()
	}
	if s.conn != nil {
		s.conn.Close()
	}
	s.conn, s.telemetry, s.audit = nil, nil, nil
	return nil
}
