package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/internal/rundir"
)

// FleetRun is what a stream knows of a run at once, from the newest message of each of its subjects.
type FleetRun struct {
	ID         string      `json:"run_id"`
	Generation uint32      `json:"generation"`
	Frames     uint64      `json:"frames"`
	Records    uint64      `json:"records"`
	Lost       uint64      `json:"lost"`
	Step       uint64      `json:"step"` // of the newest record, if there is one
	Time       time.Time   `json:"time"` // of the newest record, by the input's clock
	Schema     rundir.Hash `json:"schema_sha256"`
	Messages   uint64      `json:"messages"` // of telemetry
	Received   time.Time   `json:"received"` // when the server got the newest message, by its clock

	LogEntries uint64 `json:"log_entries"`     // of the digest log
	Ended      string `json:"ended,omitempty"` // how the run ended, as its log says; "": it has not, or its log is not mirrored
	Err        error  `json:"-"`               // why a message cannot be read
	Fault      string `json:"fault,omitempty"` // the same as text
	Sequence   uint64 `json:"stream_sequence"` // of the newest telemetry message
}

// Lag is the time since the stream got something of a run that has not ended: of one that is recorded, about how far it is
// behind. now is the time by the server's clock.
func (r *FleetRun) Lag(now time.Time) time.Duration {
	if r.Ended != "" || r.Received.IsZero() {
		return 0
	}
	return max(0, now.Sub(r.Received))
}

// Fleet lists the runs of a stream by id, in about two requests for each run. A run with a message that cannot be read is
// listed with Err. The error wraps natsjs.ErrStreamNotFound if there is no such stream.
func Fleet(ctx context.Context, js natsjs.JetStream, stream string) ([]FleetRun, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	info, err := s.Info(ctx, natsjs.WithSubjectFilter(telemetryPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("subjects of stream %s: %w", stream, err)
	}
	var runs []FleetRun
	for subject, n := range info.State.Subjects {
		id, ok := runOf(subject, telemetryPrefix)
		if !ok {
			continue
		}
		r := FleetRun{ID: id, Messages: n}
		if r.Err = errors.Join(r.telemetry(ctx, s), r.audit(ctx, s)); r.Err != nil {
			r.Fault = r.Err.Error()
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b FleetRun) int { return cmp.Compare(a.ID, b.ID) })
	return runs, nil
}

func (r *FleetRun) telemetry(ctx context.Context, s natsjs.Stream) error {
	m, h, err := newest(ctx, s, telemetryPrefix+token(r.ID))
	if err != nil || m == nil {
		return err
	}
	r.Sequence, r.Received = m.Sequence, m.Time
	r.Generation, r.Frames, r.Schema = h.generation, h.next, h.schema
	r.Records, r.Lost, r.Step, r.Time = h.Records, h.Lost, h.Step, time.Unix(0, h.Time).UTC()
	return nil
}

func (r *FleetRun) audit(ctx context.Context, s natsjs.Stream) error {
	m, h, err := newest(ctx, s, auditPrefix+token(r.ID))
	if err != nil || m == nil {
		return err
	}
	r.LogEntries, r.Ended = h.next, h.status
	return nil
}

// newest reads the last message of a subject; nil if there is none.
func newest(ctx context.Context, s natsjs.Stream, subject string) (m *natsjs.RawStreamMsg, h header, err error) {
	m, err = s.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		return nil, h, nil
	}
	if err == nil {
		h, err = decode(m.Header, m.Data)
	}
	if err != nil {
		return nil, h, fmt.Errorf("newest message of %s: %w", subject, err)
	}
	return m, h, nil
}
