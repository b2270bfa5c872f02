// Package sink brings the stored telemetry of a run to other places: files of other formats, metric stores, streams.
//
// It follows the segments of the run directory, not the ring: the recorder knows nothing of sinks and never waits for
// one. Each sink has a cursor of its own in the run directory, which says how far the destination has the run for good.
// So a destination that is slow, away or stuck costs nothing but its own delay, and a process that was killed goes on
// where the cursor stands.
//
// A Sink is told of records at least once and in order. It is up to the sink that what it is told twice is at the
// destination once: by names that are replaced, positions that are cut back, or identities that the destination knows.
// Only what a record's schema declares as metric or flag can reach a sink: digest fields and states are not in the
// segments.
package sink

import (
	"context"
	"errors"

	"github.com/usp-project/usp/record"
)

// ErrRefused is wrapped by an error of a sink that no retry will mend: wrong credentials, a stream that is not this
// run's. The sink is left alone until it is started again.
var ErrRefused = errors.New("sink: refused")

// Run is what a sink may know of the run beside its records.
type Run struct {
	ID     string
	Schema *record.Schema // of the newest generation; a Batch has its own
}

// Cursor is a place in the stream of a run's telemetry frames.
type Cursor struct {
	Next  uint64 // ordinal of the first frame that the destination does not have for good
	State []byte // what the sink itself wants to know again, such as the length of its file; opaque, at most 64 KiB
}

// Batch is a stretch of frames of one telemetry segment, and thus of one generation, in the order in which they were
// stored. It is valid until Write returns.
type Batch struct {
	First, Next uint64 // ordinals of the frames: [First, Next)
	Segment     uint64 // ordinal of the first frame of the segment
	End         bool   // the segment ends with this batch and will not change any more; then the batch may have no frames
	Generation  uint32
	Schema      *record.Schema

	// Records, one after the other: record i has sequence number Seq[i] and the words
	// Words[i*Schema.StoredWords():][:Schema.StoredWords()], which are step, time in Unix ns, then the stored fields at
	// Schema.Offset; see record.Frame.
	Seq   []uint64
	Words []uint64

	// Losses among them, in order.
	Losses []Loss
}

// Loss is a range of sequence numbers that were not stored.
type Loss struct {
	From, To uint64
	Reason   record.LostReason
	Before   int // index of the record that it stands before; len(Seq) if it is the last
}

// Records is the number of records.
func (b *Batch) Records() int { return len(b.Seq) }

// Row is the words of record i.
func (b *Batch) Row(i int) []uint64 {
	w := b.Schema.StoredWords()
	return b.Words[i*w : (i+1)*w]
}

// A Sink is one destination of one run. It is used by one goroutine. Each call is to return soon after ctx has ended.
type Sink interface {
	// Begin opens the destination, at a place that Sync has returned once, or at the zero Cursor for a run that it has
	// not seen. It returns the place from which it wants frames, which may be before or behind that: the destination may
	// know better what it has. It is called again after an error of any call.
	Begin(ctx context.Context, run Run, at Cursor) (from Cursor, err error)

	// Write takes a batch that follows the last one. What it holds back is bounded.
	Write(ctx context.Context, b *Batch) error

	// Sync makes as much as can be of what was written durable at the destination, and returns up to where it is.
	Sync(ctx context.Context) (Cursor, error)

	// Close lets go of the destination. What was not synced may be there or not.
	Close() error
}

// A Trailing sink brings more of a run than its frames, such as signed heads, which may come after them.
type Trailing interface {
	Sink

	// Trails says whether there is more for Sync to bring though nothing was written since the last one. It is asked about as
	// often as a run that is recorded would be synced, and costs next to nothing.
	Trails() bool
}
