package tensorboard

import (
	"fmt"
	"math"
	"slices"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// Tags beside the fields, which have no name with a slash and letters behind it.
const (
	tagLost   = "usp/lost"   // records of the run that were not stored, so far
	tagRanges = "usp/losses" // which, and why
)

// maxBuffer is how much of a file is held in memory, in bytes, but for the last event.
const maxBuffer = 256 << 10

// place is what an encoder knows of the frames before: all that the next event depends on.
type place struct {
	Any        bool     `json:"any"`   // there was a frame
	Begun      bool     `json:"begun"` // there was a record of the generation
	Generation uint32   `json:"generation"`
	Step       uint64   `json:"step"` // of the last record
	Time       int64    `json:"time"`
	Lost       uint64   `json:"lost"`
	Skipped    uint64   `json:"skipped"`         // records since the last that has an event
	Flags      []uint64 `json:"flags,omitempty"` // what was set in those
}

// An encoder makes event records of batches. The bytes depend on the frames alone, not on how they are cut into batches: what
// a reader has seen of a file that is cut back is written again as it was.
type encoder struct {
	place
	every     uint64
	fields    []string
	schema    *record.Schema
	layout    *layout
	narrowing Narrowing
	events    uint64

	out  []byte
	emit func([]byte) error // takes what has gathered in out
}

// resume goes on at a place.
func (e *encoder) resume(p place) {
	e.place, e.schema, e.layout = p, nil, nil
	e.out = e.out[:0]
}

// where is the place that the encoder has come to.
func (e *encoder) where() place {
	p := e.place
	if e.every > 1 && e.layout != nil {
		p.Flags = slices.Clone(e.layout.held)
	}
	return p
}

// write takes in a batch.
func (e *encoder) write(b *sink.Batch) error {
	e.enter(b)
	losses := b.Losses
	for i := range b.Records() {
		for len(losses) > 0 && losses[0].Before <= i {
			if err := e.lose(losses[0]); err != nil {
				return err
			}
			losses = losses[1:]
		}
		if err := e.record(b.Row(i), b.Seq[i]); err != nil {
			return err
		}
	}
	for _, l := range losses {
		if err := e.lose(l); err != nil {
			return err
		}
	}
	return nil
}

// enter looks whether a batch begins a generation or has another schema.
func (e *encoder) enter(b *sink.Batch) {
	if e.schema != b.Schema {
		if e.schema == nil || e.schema.Sum() != b.Schema.Sum() {
			held := e.Flags
			e.layout = newLayout(b.Schema, e.fields)
			copy(e.layout.held, held)
			e.Flags = nil
		}
		e.schema = b.Schema
	}
	if e.Any && b.Generation != e.Generation {
		e.Begun, e.Skipped = false, 0
		clear(e.layout.held)
	}
	e.Generation = b.Generation
}

// record takes in one record.
func (e *encoder) record(row []uint64, seq uint64) error {
	step := row[0]
	if step > math.MaxInt64 {
		return fmt.Errorf("tensorboard: step %d is larger than any that an event can have: %w", step, sink.ErrRefused)
	}
	first := !e.Begun
	if first && e.Any {
		e.restart(step, int64(row[1]), seq)
	}
	e.Any, e.Begun, e.Step, e.Time = true, true, step, int64(row[1])
	if first {
		e.Skipped = 0
	}
	if e.Skipped > 0 {
		e.layout.hold(row)
		if e.Skipped++; e.Skipped >= e.every {
			e.Skipped = 0
		}
		return nil
	}
	if e.every > 1 {
		e.Skipped = 1
	}
	if len(e.layout.columns) == 0 {
		return nil
	}
	e.out = e.layout.appendEvent(e.out, row, first, &e.narrowing)
	e.events++
	return e.flush(maxBuffer)
}

// restart makes TensorBoard drop what a generation overrides: the steps from its first on. If records were lost before the
// first one that is stored, they had steps too, each one more than the last at least.
func (e *encoder) restart(step uint64, ns int64, seq uint64) {
	begin := step - min(step, seq)
	e.out = appendStart(e.out, ns, begin, fmt.Sprintf("generation %d", e.Generation))
	e.events++
	if e.Lost > 0 {
		e.out = appendSummary(e.out, ns, begin, scalar(tagLost, "", float32(e.Lost)))
		e.events++
	}
}

// lose takes in a loss. It has the step of the record before it.
func (e *encoder) lose(l sink.Loss) error {
	e.Any = true
	e.Lost += l.To - l.From
	text := fmt.Sprintf("generation %d, records %d to %d: %v", e.Generation, l.From, l.To-1, l.Reason)
	e.out = appendSummary(e.out, e.Time, e.Step, scalar(tagLost, "", float32(e.Lost)), line(tagRanges, text))
	e.events++
	return e.flush(maxBuffer)
}

// flush hands on what has gathered, if it is as much. What could not be handed on is kept.
func (e *encoder) flush(least int) error {
	if len(e.out) < least || len(e.out) == 0 {
		return nil
	}
	if err := e.emit(e.out); err != nil {
		return err
	}
	if cap(e.out) > 4*maxBuffer {
		e.out = nil // of a very wide record
	}
	e.out = e.out[:0]
	return nil
}
