package jetstream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/sink"
)

// lane is what one subject of a run gets. At most one message of it is under way: a server of a cluster takes no other
// one of that subject before it has said where the last one is, and only so can each message name the one that it must
// stand behind. While it is under way the next one is put together.
type lane struct {
	conn    *Conn
	run     string
	stream  string
	subject string

	*tape          // of everything that the run has up to here, sent or not
	last   uint64  // stream sequence of the subject's last message that is known; 0: there is none
	tail   *header // of that message; nil: there is none
	newest []byte  // its payload, when the lane is opened
	acked  place   // up to where the stream has everything that the tape has
	flight *flight
	failed error // nothing more can be sent: it is not known what the stream has
}

// flight is a message that is under way.
type flight struct {
	future natsjs.PubAckFuture
	header header
	after  place
}

// openLane asks the stream what it has of the subject. The tape is the one of the cursor; where the stream has less than
// that, or it is of no use, it begins anew.
func openLane(ctx context.Context, c *Conn, s natsjs.Stream, run, subject string, at *tape) (*lane, error) {
	l := &lane{conn: c, run: run, stream: s.CachedInfo().Config.Name, subject: subject, tape: at}
	m, err := s.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, natsjs.ErrMsgNotFound):
	case err != nil:
		return nil, fmt.Errorf("last message of %s: %w", subject, err)
	default:
		h, err := decode(m.Header, m.Data)
		if err != nil {
			return nil, fmt.Errorf("%w: message %d of stream %s, the last of %s: %w", sink.ErrRefused, m.Sequence, l.stream, subject, err)
		}
		l.last, l.tail, l.newest = m.Sequence, &h, m.Data
	}
	if l.has() < l.next {
		l.tape = newTape(subject)
	}
	l.acked = l.place()
	return l, l.compare()
}

// has is the ordinal behind the last frame that the stream has.
func (l *lane) has() uint64 {
	if l.tail == nil {
		return 0
	}
	return l.tail.next
}

// compare holds the tape against the stream where that ends.
func (l *lane) compare() error {
	if l.tail == nil || l.next < l.tail.next || l.sum() == l.tail.chain {
		return nil
	}
	return l.fork()
}

// match holds the frames of the stream's last message against those that the run directory has now: a cursor may vouch
// for frames that went with the power before they were on the disk, and others are in their place.
func (l *lane) match(local frames) error {
	defer local.close()
	if l.tail == nil || l.tail.incomplete || l.tail.next == l.tail.first {
		return nil
	}
	local.seek(l.tail.first)
	for counted, err := range split(l.newest) {
		if err != nil {
			return l.fork()
		}
		frame, _, err := local.read()
		if errors.Is(err, io.EOF) || err == nil && !equalFrame(counted, frame) {
			return l.fork()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *lane) fork() error {
	return fmt.Errorf("%w: what stream %s has in %s up to ordinal %d, its message %d, is not the history of this run directory: one of them was changed or damaged, or put back to an older state, and the other went on; usp verify names the first difference", sink.ErrRefused, l.stream, l.subject, l.tail.next, l.last)
}

// behind says whether the stream has the next frame already; then it only goes into the tape.
func (l *lane) behind() bool { return l.next < l.has() }

// known takes a frame that the stream has, with its length in front.
func (l *lane) known(counted []byte) error {
	l.add(counted)
	if l.next == l.has() {
		return l.compare()
	}
	return nil
}

// skip takes frames that cannot be read, up to an ordinal.
func (l *lane) skip(to uint64) error {
	over := l.behind() && to > l.has()
	l.next = max(l.next, to)
	if over {
		return l.fork()
	}
	if l.tail != nil && l.next == l.has() {
		return l.compare()
	}
	return nil
}

// send sends a message that stands behind all before it, when the one before was acknowledged. The payload must be left
// alone until then.
func (l *lane) send(ctx context.Context, h header, payload []byte) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	h.payload, h.chain = sha256.Sum256(payload), l.sum()
	m := &nats.Msg{Subject: l.subject, Header: h.encode(l.run, l.stream, l.last), Data: payload}
	sent := l.conn.sending(ctx)
	future, err := l.conn.JS.PublishMsgAsync(m)
	if !sent() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		l.failed = fmt.Errorf("publish to %s: %w", l.subject, l.conn.explain(err))
		return l.failed
	}
	l.flight = &flight{future: future, header: h, after: l.place()}
	return nil
}

// wait waits for the acknowledgement of what is under way.
func (l *lane) wait(ctx context.Context) error {
	f := l.flight
	if f == nil || l.failed != nil {
		return l.failed
	}
	select {
	case ack := <-f.future.Ok():
		l.flight = nil
		if ack.Duplicate {
			// A copy of this message that an earlier process sent was just stored. Beginning anew finds it.
			l.failed = fmt.Errorf("publish to %s: the server had message %s already", l.subject, f.future.Msg().Header.Get("Nats-Msg-Id"))
			return l.failed
		}
		l.last, l.tail, l.acked = ack.Sequence, &f.header, f.after
		return nil
	case err := <-f.future.Err():
		l.failed = fmt.Errorf("publish to %s: %w", l.subject, l.conn.explain(err))
		return l.failed
	case <-l.conn.lost:
		l.failed = fmt.Errorf("publish to %s: no acknowledgement: %w", l.subject, l.conn.explain(cmp.Or(l.conn.nc.LastError(), nats.ErrConnectionClosed)))
		return l.failed
	case <-ctx.Done():
		return fmt.Errorf("publish to %s: no acknowledgement: %w", l.subject, l.conn.explain(context.Cause(ctx)))
	}
}
