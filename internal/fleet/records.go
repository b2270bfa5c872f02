package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink/jetstream"
)

const (
	openRuns    = 4       // whose records are kept
	mostAll     = 4 << 20 // words of the records of a run
	mostLosses  = 1 << 16 // ranges of them
	readFor     = 700 * time.Millisecond
	freshFor    = 50 * time.Millisecond
	mostReading = 8 // messages that are none, in a row, before it is left for the next time
)

// Records is the newest records of one run, in memory that does not grow with it. It is used by many goroutines.
type Records struct {
	fleet *Fleet
	id    string

	mu        sync.Mutex
	read      time.Time
	at        uint64 // stream sequence of the newest message that was read
	begun     bool
	behind    bool // there is more to read
	newest    jetstream.Message
	how       jetstream.Description
	known     bool // how the records are to be read
	described bool // that is known, or why it is not
	sum       [32]byte
	of        uint32
	chunks    []chunk
	words     int
	number    int
	losses    int
	fault     string
}

// chunk is the frames of one message.
type chunk struct {
	schema     *record.Schema
	generation uint32
	width      int // words of a record
	words      []uint64
	losses     []Loss
}

// Loss is records that are lost.
type Loss struct {
	Before int // index of the record that they stand before
	N      uint64
}

// Part is a stretch of the records of a run, in order.
type Part struct {
	Schema *record.Schema // of the stored fields; nil: there are none
	Words  []uint64       // records one after the other, of Width words each
	Width  int
	Losses []Loss
}

// Open is the records of a run. They are kept while they are asked for, those of a few runs at a time.
func (f *Fleet) Open(id string) *Records {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.IndexFunc(f.open, func(r *Records) bool { return r.id == id }); i >= 0 {
		r := f.open[i]
		f.open = append(slices.Delete(f.open, i, i+1), r)
		return r
	}
	r := &Records{fleet: f, id: id}
	if len(f.open) == openRuns {
		f.open = slices.Delete(f.open, 0, 1)
	}
	f.open = append(f.open, r)
	return r
}

// current is the reader of the connection that there is now.
func (f *Fleet) current() (*jetstream.Reader, error) {
	// A look holds the lock for as long as the server takes; what is read of a run need not wait for that.
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != "" || f.shared == nil {
		return nil, fmt.Errorf("the stream %s is not read at the moment: %s", f.o.Stream.Stream, f.fault)
	}
	return f.shared, nil
}

// Refresh reads what is new, for a short while: where a run has much, it is read over several calls. more says that there is.
func (r *Records) Refresh(ctx context.Context) (more bool, err error) {
	reader, err := r.fleet.current()
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.behind && r.begun && r.fleet.o.Now().Sub(r.read) < freshFor {
		return false, nil
	}
	if !r.begun {
		if err := r.begin(ctx, reader); err != nil || !r.begun {
			return false, err
		}
	}
	deadline := r.fleet.o.Now().Add(readFor)
	r.behind = true
	for garbled := 0; ; {
		if r.fleet.o.Now().After(deadline) || garbled > mostReading {
			return true, nil
		}
		m, err := reader.Behind(ctx, r.id, false, r.at)
		switch {
		case m == nil && err != nil:
			return true, err
		case m == nil:
			r.behind, r.read = false, r.fleet.o.Now()
			return false, nil
		}
		r.at = m.Sequence
		if err != nil {
			r.fault, garbled = clip(err.Error(), mostFault), garbled+1
			continue
		}
		if err := r.take(ctx, reader, m); err != nil {
			return true, err
		}
	}
}

// begin finds the place from which to read.
func (r *Records) begin(ctx context.Context, reader *jetstream.Reader) error {
	m, err := reader.Newest(ctx, r.id, false)
	if m == nil {
		return err
	}
	r.begun = true
	if err != nil {
		r.at = m.Sequence // what comes behind it may be better
		r.fault = clip(err.Error(), mostFault)
		return nil
	}
	r.at, err = reader.Before(ctx, m, uint64(r.fleet.o.Records))
	return err
}

// take takes in a message.
func (r *Records) take(ctx context.Context, reader *jetstream.Reader, m *jetstream.Message) error {
	r.newest = *m
	r.newest.Payload = nil
	if d, ok, err := m.Describes(); ok {
		r.describe(m, d, err)
		return nil
	}
	if !r.described || r.sum != m.Schema || r.of != m.Generation {
		d, err := reader.Describe(ctx, m)
		if err != nil && !errors.Is(err, jetstream.ErrNoSchema) {
			return err
		}
		r.describe(m, d, err)
	}
	if r.known {
		r.fault = ""
	}
	c := chunk{schema: r.how.Schema, generation: m.Generation, width: r.how.Words()}
	var f record.Frame
	for frame, err := range m.Frames() {
		if err == nil {
			err = record.DecodeFrame(frame, &f)
		}
		switch {
		case err != nil:
			r.fault = clip(err.Error(), mostFault)
			return nil
		case f.Generation != m.Generation:
			r.fault = fmt.Sprintf("message %d of the stream has frames of another generation", m.Sequence)
			return nil
		case f.Kind == record.KindLost:
			if len(c.losses) < mostLosses {
				c.losses = append(c.losses, Loss{len(c.words) / c.width, f.To - f.Seq})
			}
		case !r.known: // why was said
		case len(f.Words) != c.width:
			r.fault = fmt.Sprintf("message %d of the stream has records of %d words, and their schema has %d", m.Sequence, len(f.Words), c.width)
			return nil
		default:
			if last, ok := r.last(&c); ok && f.Words[0] <= last {
				continue // steps only grow
			}
			c.words = append(c.words, f.Words...)
		}
	}
	r.add(c)
	return nil
}

// last is the newest step of the generation of c, with what is in c.
func (r *Records) last(c *chunk) (uint64, bool) {
	if n := len(c.words); n > 0 {
		return c.words[n-c.width], true
	}
	for i := len(r.chunks) - 1; i >= 0 && r.chunks[i].generation == c.generation; i-- {
		if o := &r.chunks[i]; len(o.words) > 0 {
			return o.words[len(o.words)-o.width], true
		}
	}
	return 0, false
}

func (r *Records) describe(m *jetstream.Message, d jetstream.Description, err error) {
	r.how, r.known, r.described, r.sum, r.of = d, err == nil, true, m.Schema, m.Generation
	if err != nil {
		r.fault = clip(err.Error(), mostFault)
	}
}

// add puts a chunk behind the others, where what a later generation computed again is taken away, and lets go of the oldest.
func (r *Records) add(c chunk) {
	if len(c.words) == 0 && len(c.losses) == 0 {
		return
	}
	if len(c.words) > 0 {
		r.rewind(c.generation, c.words[0])
	}
	r.chunks = append(r.chunks, c)
	r.words, r.number, r.losses = r.words+len(c.words), r.number+len(c.words)/c.width, r.losses+len(c.losses)
	n := 0
	for n < len(r.chunks)-1 {
		o := &r.chunks[n]
		if r.number-len(o.words)/o.width < r.fleet.o.Records && r.words <= mostAll && r.losses <= mostLosses {
			break
		}
		r.words, r.number, r.losses = r.words-len(o.words), r.number-len(o.words)/o.width, r.losses-len(o.losses)
		n++
	}
	r.chunks = slices.Delete(r.chunks, 0, n)
}

// rewind takes away the records of earlier generations from a step on.
func (r *Records) rewind(generation uint32, step uint64) {
	for i := len(r.chunks) - 1; i >= 0; i-- {
		c := &r.chunks[i]
		if len(c.words) > 0 && (c.generation >= generation || c.words[len(c.words)-c.width] < step) {
			return
		}
		if c.generation >= generation {
			continue // losses alone
		}
		keep := 0
		for keep < len(c.words) && c.words[keep] < step {
			keep += c.width
		}
		r.words, r.number = r.words-(len(c.words)-keep), r.number-(len(c.words)-keep)/c.width
		c.words = c.words[:keep:keep]
		kept := c.losses[:0]
		for _, l := range c.losses {
			if keep > 0 && l.Before <= keep/c.width {
				kept = append(kept, l)
			}
		}
		r.losses -= len(c.losses) - len(kept)
		if c.losses = kept; keep == 0 {
			r.chunks = slices.Delete(r.chunks, i, i+1)
		}
	}
}

// Extent is how far the records go.
type Extent struct {
	First, Last uint64 // steps, if there are records
	Records     int
	Schema      *record.Schema // of the newest
	Sequence    uint64         // in the stream, of the newest message that was read
	Fault       string         // why there is less than there could be
}

// Extent says how far they go now.
func (r *Records) Extent() Extent {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := Extent{Records: r.number, Schema: r.how.Schema, Sequence: r.at, Fault: r.fault}
	first := true
	for i := range r.chunks {
		c := &r.chunks[i]
		if len(c.words) == 0 {
			continue
		}
		if first {
			e.First, first = c.words[0], false
		}
		e.Last = c.words[len(c.words)-c.width]
	}
	return e
}

// Each calls take with the records, part by part, in the order of their steps. Parts must not be kept nor changed.
func (r *Records) Each(take func(Part)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.chunks {
		c := &r.chunks[i]
		take(Part{Schema: c.schema, Words: c.words, Width: c.width, Losses: c.losses})
	}
}
