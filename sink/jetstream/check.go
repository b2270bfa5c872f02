package jetstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// ErrNotMirrored is wrapped by the error for a run of which the stream has nothing.
var ErrNotMirrored = errors.New("the stream has nothing of this run")

// Against is what a stream is held against. Each field has a working zero value.
type Against struct {
	Dir         rundir.Dir     // the run; "": the stream is checked in itself, and against the heads that are signed
	Verifiers   note.Verifiers // keys one of which must have signed each head; nil: those that the manifests of the run name
	FS          vfs.FS         // default vfs.OS()
	MaxProblems int            // those beyond are only counted; default 100
}

// The classes of problems.
const (
	Malformed  = "malformed"  // a message that no sink makes
	Missing    = "missing"    // what lies before and behind it is there
	Repeated   = "repeated"   // it was there already, or comes behind what should follow it
	Differs    = "differs"    // the run directory has other bytes
	Absent     = "absent"     // the run directory ends before it
	Unreadable = "unreadable" // the run directory has it, and it is damaged there
	Forged     = "forged"     // it is not what the headers, the chain or a signed head say it is
)

// Problem is something that is wrong with what a stream has.
type Problem struct {
	Class    string `json:"class"`
	Subject  string `json:"subject"`
	Sequence uint64 `json:"stream_sequence"` // of the message, or of the one in front of which something is missing
	From     uint64 `json:"from"`            // ordinals of the frames, or indexes of the entries: [From, To)
	To       uint64 `json:"to"`
	Text     string `json:"text"`
}

func (p *Problem) String() string {
	what := fmt.Sprintf("%d to %d", p.From, p.To-1)
	if p.To <= p.From+1 {
		what = fmt.Sprint(p.From)
	}
	return fmt.Sprintf("%s: %s %s at stream sequence %d: %s", p.Class, p.Subject, what, p.Sequence, p.Text)
}

// Report is what Check found.
type Report struct {
	Run      string `json:"run_id"`
	Stream   string `json:"stream"`
	Messages uint64 `json:"messages"`
	Next     uint64 `json:"frames"`       // ordinal behind the last frame of the stream
	Local    uint64 `json:"local_frames"` // the same of the run directory; what it is ahead by has not been brought yet
	Records  uint64 `json:"records"`      // read from the stream
	Lost     uint64 `json:"lost"`

	Entries uint64                    `json:"log_entries"`
	Heads   int                       `json:"heads"`        // whose signature and root are right
	Signed  uint64                    `json:"signed"`       // entries under the newest of them
	Mine    uint64                    `json:"local_signed"` // entries under the head of the run directory
	Head    *digestlog.SignedTreeHead `json:"-"`            // the newest of them
	Notes   []string                  `json:"notes,omitempty"`

	Problems []Problem `json:"problems,omitempty"`
	Dropped  int       `json:"problems_dropped,omitempty"`
}

// OK says that what the stream has is what it was held against. It may have less: see Behind.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Behind is the number of frames that the run directory had and the stream had not.
func (r *Report) Behind() uint64 { return r.Local - min(r.Local, r.Next) }

// checker checks one subject of a run.
type checker struct {
	report  *Report
	most    int
	stream  natsjs.Stream
	subject string

	tape   *tape   // of what came in order
	broken bool    // something is wrong, so sums over everything say nothing more
	want   uint64  // ordinal that should come next
	local  *frames // nil: there is nothing to compare with
}

// Check reads what a stream has of a run, to the last message there is when it begins, and compares it with the run
// directory byte by byte; the run may be recorded and mirrored meanwhile. The entries of the digest log must make the
// trees that the heads among them are signed for, and the one whose head the run directory has. Whether the run directory itself is what was
// recorded is not asked here: for that there is package audit. The error is for what kept it from being read, or wraps
// ErrNotMirrored.
func Check(ctx context.Context, js natsjs.JetStream, stream, run string, a Against) (*Report, error) {
	if a.FS == nil {
		a.FS = vfs.OS()
	}
	if a.MaxProblems <= 0 {
		a.MaxProblems = 100
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	r := &Report{Run: run, Stream: stream}
	part := func(prefix, dir string) *checker {
		c := &checker{report: r, most: a.MaxProblems, stream: s, subject: prefix + token(run), tape: newTape(prefix + token(run))}
		if a.Dir != "" {
			c.local = &frames{fsys: a.FS, dir: dir}
		}
		return c
	}
	// The log is read first: what it says of the telemetry is older than that.
	log := &logChecker{checker: part(auditPrefix, a.Dir.Digests())}
	if err := log.check(ctx, &a); err != nil {
		return nil, err
	}
	telemetry := part(telemetryPrefix, a.Dir.Telemetry())
	if err := telemetry.check(ctx); err != nil {
		return nil, err
	}
	if r.Messages == 0 {
		return nil, fmt.Errorf("stream %s, run %s: %w", stream, run, ErrNotMirrored)
	}
	if r.Next = telemetry.want; a.Dir != "" {
		if r.Local, err = sink.End(a.FS, a.Dir); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (c *checker) problem(class string, sequence, from, to uint64, format string, args ...any) {
	c.broken = true
	p := Problem{Class: class, Subject: c.subject, Sequence: sequence, From: from, To: to, Text: fmt.Sprintf(format, args...)}
	list := c.report.Problems
	if n := len(list); n > 0 {
		if l := &list[n-1]; l.Class == class && l.Subject == c.subject && l.Sequence == sequence && l.To == from && l.Text == p.Text {
			l.To = to
			return
		}
	}
	if len(list) >= c.most {
		c.report.Dropped++
		return
	}
	c.report.Problems = append(list, p)
}

// messages calls take for each message of the subject that there is now. err says why it is none of usp's.
func (c *checker) messages(ctx context.Context, take func(sequence uint64, h header, err error, payload []byte) error) error {
	last, err := patiently(ctx, func() (*natsjs.RawStreamMsg, error) { return c.stream.GetLastMsgForSubject(ctx, c.subject) })
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("last message of %s: %w", c.subject, err)
	}
	// Each message is asked for by itself. A consumer would have them come faster from far away; a cluster that has just lost
	// a server may give it to one that does not answer.
	for sequence := uint64(0); sequence < last.Sequence; {
		m, err := patiently(ctx, func() (*natsjs.RawStreamMsg, error) {
			return c.stream.GetMsg(ctx, sequence+1, natsjs.WithGetMsgSubject(c.subject))
		})
		if err != nil {
			return fmt.Errorf("read %s behind stream sequence %d: %w", c.subject, sequence, err)
		}
		sequence = m.Sequence
		c.report.Messages++
		h, err := decode(m.Header, m.Data)
		if err := take(sequence, h, err, m.Data); err != nil {
			return err
		}
	}
	return nil
}

// patiently asks again when no answer comes, as while a cluster has no leader.
func patiently(ctx context.Context, ask func() (*natsjs.RawStreamMsg, error)) (m *natsjs.RawStreamMsg, err error) {
	for try := range 6 {
		m, err = ask()
		var said *natsjs.APIError
		if err == nil || ctx.Err() != nil || errors.Is(err, natsjs.ErrMsgNotFound) || errors.As(err, &said) && said.Code < 500 {
			break
		}
		select {
		case <-time.After(time.Duration(100<<try) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return m, err
}

// place checks where a message stands. inOrder: exactly where it should.
func (c *checker) place(sequence uint64, h *header) (inOrder bool) {
	switch {
	case h.first > c.want:
		c.problem(Missing, sequence, c.want, h.first, "the stream goes on behind them")
	case h.first < c.want:
		c.problem(Repeated, sequence, h.first, max(h.next, h.first+1), "the stream is at %d already", c.want)
	}
	return h.first == c.want
}

// chained checks the sum over everything up to the end of a message that came in order.
func (c *checker) chained(sequence uint64, h *header) {
	if !c.broken && c.tape.sum() != h.chain {
		c.problem(Forged, sequence, h.first, h.next, "its headers have another sum over everything up to its end than what is there")
	}
}

// frames splits the payload of a message.
func (c *checker) frames(sequence uint64, h *header, payload []byte) (list [][]byte, ok bool) {
	for f, err := range split(payload) {
		if err != nil {
			c.problem(Malformed, sequence, h.first, h.next, "%v", err)
			return nil, false
		}
		list = append(list, f)
	}
	if n := uint64(len(list)); n > h.next-h.first || n < h.next-h.first && !h.incomplete {
		c.problem(Malformed, sequence, h.first, h.next, "%d frames in it", n)
		return nil, false
	}
	return list, true
}

// compare holds the frames of a message against the run directory. inOrder: all before them were.
func (c *checker) compare(sequence uint64, h *header, list [][]byte, inOrder bool) error {
	if c.local == nil {
		return nil
	}
	if inOrder && c.local.next < h.first {
		if err := c.passed(sequence, h.first); err != nil {
			return err
		}
	}
	if !h.incomplete || !inOrder || c.local.next < h.first {
		c.local.seek(h.first)
	}
	for i := 0; i < len(list); i++ {
		raw, at, err := c.local.read()
		want := h.first + uint64(i)
		switch {
		case errors.Is(err, io.EOF):
			c.problem(Absent, sequence, want, h.next, "the run directory ends before them")
			return nil
		case err != nil:
			return err
		case h.incomplete:
			want = at
		case at > want:
			c.problem(Unreadable, sequence, want, min(at, h.next), "they cannot be read in the run directory; usp verify says more")
			if i += int(min(at-want, uint64(len(list)))); i >= len(list) {
				c.local.seek(at)
				return nil
			}
			want = at
		}
		if !equalFrame(list[i], raw) {
			c.problem(Differs, sequence, want, want+1, "the run directory has other bytes")
		}
	}
	return nil
}

// passed reports frames of the run directory that the stream has passed over as such that cannot be read.
func (c *checker) passed(sequence, to uint64) error {
	for {
		_, at, err := c.local.read()
		if errors.Is(err, io.EOF) || err == nil && at >= to {
			return nil
		}
		if err != nil {
			return err
		}
		c.problem(Missing, sequence, at, at+1, "the stream has them as unreadable, and the run directory has them")
	}
}
