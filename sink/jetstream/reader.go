package jetstream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// Reader reads what a stream has of runs for who shows them, message by message and without a consumer: it leaves nothing
// behind at the server and holds one message at a time. What it gives is what the messages say; nothing of it is checked but
// that a message is one in itself. It is used by many goroutines.
type Reader struct {
	conn   *Conn
	stream natsjs.Stream
	name   string
}

// MaxSubjects is how many subjects a stream may have for a Reader to list them: who may write can make as many as they like.
const MaxSubjects = 200_000

// OpenReader opens a stream that is there. The error wraps natsjs.ErrStreamNotFound if there is none.
func OpenReader(ctx context.Context, c *Conn, stream string) (*Reader, error) {
	s, err := c.JS.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, c.explain(err))
	}
	return &Reader{c, s, stream}, nil
}

// Weaknesses says in what the stream keeps less than a mirror should.
func (r *Reader) Weaknesses() []string {
	o := Options{Stream: r.name}.withDefaults()
	return weaker(&r.stream.CachedInfo().Config, &o)
}

// Stand is how far a stream is.
type Stand struct {
	Last     uint64    // stream sequence of the newest message
	Subjects uint64    // with messages
	At       time.Time // by the server's clock
}

// Stand asks how far the stream is.
func (r *Reader) Stand(ctx context.Context) (Stand, error) {
	info, err := r.stream.Info(ctx)
	if err != nil {
		return Stand{}, fmt.Errorf("stream %s: %w", r.name, r.conn.explain(err))
	}
	return Stand{info.State.LastSeq, info.State.NumSubjects, info.TimeStamp}, nil
}

// Messages is how many messages a stream has of a run.
type Messages struct{ Telemetry, Audit uint64 }

// Runs lists the runs with how many messages there are of each. Subjects that are no run's are left out.
func (r *Reader) Runs(ctx context.Context) (map[string]Messages, error) {
	runs := map[string]Messages{}
	for _, prefix := range []string{telemetryPrefix, auditPrefix} {
		info, err := r.stream.Info(ctx, natsjs.WithSubjectFilter(prefix+"*"))
		if err != nil {
			return nil, fmt.Errorf("subjects of stream %s: %w", r.name, r.conn.explain(err))
		}
		for subject, n := range info.State.Subjects {
			id, ok := runOf(subject, prefix)
			if !ok {
				continue
			}
			m := runs[id]
			if prefix == telemetryPrefix {
				m.Telemetry = n
			} else {
				m.Audit = n
			}
			runs[id] = m
		}
	}
	return runs, nil
}

// Message is one of a run, as its headers have it.
type Message struct {
	Run      string
	Audit    bool      // of the digest log; else of the telemetry
	Sequence uint64    // in the stream
	Received time.Time // by the server's clock

	First, Next uint64 // ordinals of its frames or entries
	Head        bool   // it is a signed head: see Payload
	Status      string // of a head over the end of the run

	// Of telemetry.
	Generation uint32
	Schema     [32]byte
	Records    uint64 // of the run so far, like the others
	Lost       uint64
	Step       uint64 // of the newest record
	Time       int64  // of the newest record, Unix ns

	Payload []byte

	kind          string
	host, program string
}

// Frames splits the payload of a message with frames or entries.
func (m *Message) Frames() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if m.kind != kindFrames && m.kind != kindEntries {
			return
		}
		for f, err := range split(m.Payload) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(f[4:], nil) {
				return
			}
		}
	}
}

// errOther is wrapped by the error for a message that is not of the kind its subject is for.
var errOther = fmt.Errorf("%w: of another kind than its subject is for", errMessage)

// Decode reads a message; ok is false if its subject is no run's. One that is not of usp is given with the error: it has a
// place and a time, and nothing else.
func Decode(raw *natsjs.RawStreamMsg) (m *Message, ok bool, err error) {
	m = &Message{Sequence: raw.Sequence, Received: raw.Time}
	if m.Run, ok = runOf(raw.Subject, telemetryPrefix); !ok {
		if m.Run, ok = runOf(raw.Subject, auditPrefix); !ok {
			return nil, false, nil
		}
		m.Audit = true
	}
	h, err := decode(raw.Header, raw.Data)
	if err == nil && m.Audit != (h.kind == kindEntries || h.kind == kindHead) {
		err = errOther
	}
	if err != nil {
		return m, true, fmt.Errorf("message %d of the stream: %w", raw.Sequence, err)
	}
	m.First, m.Next, m.Head, m.Status = h.first, h.next, h.kind == kindHead, h.status
	m.Generation, m.Schema, m.Records, m.Lost, m.Step, m.Time = h.generation, h.schema, h.Records, h.Lost, h.Step, h.Time
	m.Payload, m.kind, m.host, m.program = raw.Data, h.kind, h.host, h.program
	return m, true, nil
}

// At reads the message of a stream sequence; nil if that is no run's, or there is none.
func (r *Reader) At(ctx context.Context, sequence uint64) (*Message, error) {
	return r.get(ctx, func() (*natsjs.RawStreamMsg, error) { return r.stream.GetMsg(ctx, sequence) })
}

// Newest reads the newest message of a run's telemetry, or of its log; nil if there is none. A message that is none of usp's
// is returned beside the error.
func (r *Reader) Newest(ctx context.Context, run string, audit bool) (*Message, error) {
	return r.get(ctx, func() (*natsjs.RawStreamMsg, error) {
		return r.stream.GetLastMsgForSubject(ctx, subject(run, audit))
	})
}

// Behind reads the first message of a run's telemetry, or of its log, behind a stream sequence; nil if there is none.
func (r *Reader) Behind(ctx context.Context, run string, audit bool, sequence uint64) (*Message, error) {
	return r.get(ctx, func() (*natsjs.RawStreamMsg, error) {
		return r.stream.GetMsg(ctx, sequence+1, natsjs.WithGetMsgSubject(subject(run, audit)))
	})
}

func subject(run string, audit bool) string {
	if audit {
		return auditPrefix + token(run)
	}
	return telemetryPrefix + token(run)
}

func (r *Reader) get(ctx context.Context, ask func() (*natsjs.RawStreamMsg, error)) (*Message, error) {
	raw, err := ask()
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", r.name, r.conn.explain(err))
	}
	m, ok, err := Decode(raw)
	if !ok {
		return nil, nil
	}
	return m, err
}

// Before finds a place from which the telemetry of a run has at most about that many records: the stream sequence behind which
// to read. newest is its newest message. It reads a few messages, however long the run is, since their counts grow. Where they
// do not, somebody has forged them, and what is found is some place of the run.
func (r *Reader) Before(ctx context.Context, newest *Message, records uint64) (sequence uint64, err error) {
	if newest.Records <= records {
		return 0, nil
	}
	return r.search(ctx, newest, func(m *Message) bool { return newest.Records-min(m.Records, newest.Records) <= records })
}

// search finds the first message of a run's telemetry, up to newest, of which is says yes and of those behind it too, and
// returns the sequence of the last one that is before it. Messages that are none of usp's count as before it.
func (r *Reader) search(ctx context.Context, newest *Message, is func(*Message) bool) (before uint64, err error) {
	var failed error
	at := sort.Search(int(min(newest.Sequence, 1<<62)), func(i int) bool {
		if failed != nil {
			return true
		}
		m, err := r.Behind(ctx, newest.Run, false, uint64(i))
		switch {
		case m == nil:
			failed = err
			return true
		case err != nil:
			return false
		case m.Sequence > newest.Sequence:
			return true
		}
		return is(m)
	})
	return uint64(at), failed
}
