package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// write commits batches and logs entries for the persister until the drainer has closed r.work and the persister has
// closed persisted. It alone touches the telemetry segment and the log. Storage that fails does not end it, see trouble.
func (r *Recorder) write(ctx, failed context.Context, persisted <-chan struct{}) error {
	in, stopped := r.work, ctx.Done()
	for {
		if err := r.endWork(ctx, in == nil); err != nil {
			return err
		}
		select {
		case w, ok := <-in:
			if !ok {
				in = nil
			} else if err := r.take(w); err != nil {
				return err
			}
		case call := <-r.entries:
			if err := r.answer(call); err != nil {
				return err
			}
		case <-r.trouble.wake():
			if err := r.retry(); err != nil {
				return err
			}
		case <-r.trouble.giveUp():
			r.stats.gaveUp.Store(true) // for the drainer to take what it has left in the ring; then for endWork
		case <-stopped:
			stopped = nil
			if err := r.lastTry(); err != nil {
				return err
			}
		case <-persisted:
			if in == nil {
				return nil
			}
			persisted = nil // the persister failed; the drainer will hear of it
		case <-failed.Done():
			return nil
		}
	}
}

// lastTry is that of a recorder that is asked to stop, for which the drainer waits.
func (r *Recorder) lastTry() error {
	defer close(r.tried)
	if !r.trouble.on() {
		return nil
	}
	return r.retry()
}

// endWork lets the persister go when the drainer has ended and everything it handed over is stored. While storage takes
// nothing the drainer of a run that has ended waits, for as long as its patience lasts. A recorder that was asked to stop does
// not wait for storage: the next one finds in the ring what this one could not store.
func (r *Recorder) endWork(ctx context.Context, drained bool) error {
	t := &r.trouble
	if t.on() && r.stats.ended.Load() {
		t.arm(r.opts.Patience)
	}
	if !drained {
		return nil
	}
	if t.on() && ctx.Err() != nil {
		if err := r.retry(); err != nil {
			return err
		}
		if t.on() {
			return fmt.Errorf("%w while storage takes nothing: %w", context.Cause(ctx), t.err)
		}
	}
	if t.on() && r.stats.gaveUp.Load() {
		if err := r.lastResort(); err != nil {
			return err
		}
	}
	if t.on() {
		t.arm(r.opts.Patience)
	} else if !r.jobsClosed {
		r.jobsClosed = true
		close(r.jobs)
	}
	return nil
}

// take stores one item, or holds it while storage takes nothing.
func (r *Recorder) take(w work) error {
	if r.trouble.on() {
		r.hold(w)
		return nil
	}
	err := r.place(w)
	if isStorage(err) {
		// In a new file it may go on: an error of one file says nothing about the next.
		if again := r.place(w); !isStorage(again) {
			r.logger().Warn("a file could not be written; its records are in a new one", "err", err)
			return again
		}
		r.begin(err)
		r.hold(w)
		return nil
	}
	return err
}

// place brings one item to where it belongs: a batch to stable storage, a snapshot to the persister.
func (r *Recorder) place(w work) error {
	if w.staged != nil {
		r.jobs <- &snapshotJob{work: w, treeSize: r.log.Size(), treeRoot: r.log.Root()} // never blocks: room for every area
		return nil
	}
	if err := r.store(w.batch); err != nil {
		return err
	}
	select {
	case r.free <- w.batch:
	default: // it was made while others were held
	}
	return nil
}

// store makes one batch durable: telemetry first, then the digests of what is stored. After an error it can be called
// again and goes on where it stopped.
func (r *Recorder) store(b *batch) error {
	if err := b.fillSpans(r); err != nil {
		return err
	}
	if !b.written {
		if err := r.writeTelemetry(b); err != nil {
			return err
		}
		b.written = true
	}
	for b.logged < b.entries.Len() {
		n, err := r.log.AppendEncoded(&b.entries, b.logged)
		if b.logged += n; errors.Is(err, digestlog.ErrBacklog) {
			err = r.log.Sync()
		}
		if err != nil {
			return fmt.Errorf("append to the digest log: %w", err)
		}
	}
	if err := r.syncLog(); err != nil {
		return err
	}
	r.stats.stored.Add(b.stored)
	r.stats.lost.Add(b.lost)
	r.stats.lostStorage.Add(b.lostStorage())
	r.stats.digests.Add(b.digests)
	r.stats.synced.Store(b.next)
	return r.signInTime()
}

// writeTelemetry appends the batch's frames to a segment that has room for them, and syncs it.
func (r *Recorder) writeTelemetry(b *batch) error {
	if err := r.openSegment(len(b.frames)); err != nil {
		return err
	}
	from := 0
	for _, end := range b.ends {
		if err := r.telemetry.Append(b.frames[from:end]); err != nil {
			return fmt.Errorf("append telemetry: %w", err)
		}
		from = end
	}
	if err := r.telemetry.Sync(); err != nil {
		return fmt.Errorf("sync telemetry: %w", err)
	}
	return nil
}

// signInTime signs the head when it is due. A head that cannot be written is only late: the next interval tries again. At
// the same pace it looks whether the files are still where they are believed to be.
func (r *Recorder) signInTime() error {
	now := r.opts.Now()
	if now.Sub(r.headAt) < r.opts.HeadInterval {
		return nil
	}
	r.headAt = now
	err := r.present()
	if err != nil {
		err = r.present() // one error of one call is no fault of storage
	}
	if err != nil {
		if !r.trouble.on() {
			r.begin(err)
		}
		return nil // this batch is as durable as its file is
	}
	if err = r.signHead(); isStorage(err) {
		r.sayLate(err)
	} else if err != nil {
		return fmt.Errorf("sign the tree head: %w", err)
	}
	return nil
}

// append adds an entry to the log. The log bounds what it holds unsynced, so a batch of many large entries takes several syncs.
func (r *Recorder) append(e *digestlog.Entry) error {
	_, err := r.log.Append(e)
	if errors.Is(err, digestlog.ErrBacklog) {
		if err = r.log.Sync(); err == nil {
			_, err = r.log.Append(e)
		}
	}
	if err != nil {
		return fmt.Errorf("append to the digest log: %w", err)
	}
	return nil
}

// answer logs and syncs an entry for the persister, which waits for it as long as storage does.
func (r *Recorder) answer(call entryCall) error {
	err := r.append(&call.entry)
	if err == nil {
		r.answers = append(r.answers, call.done)
		if err = r.syncLog(); isStorage(err) {
			err = r.syncLog() // in a new file
		}
	} else {
		call.done <- err
	}
	if isStorage(err) {
		if !r.trouble.on() {
			r.begin(err)
		}
		return nil
	}
	return err
}

// syncLog makes durable what was appended to the log, and tells those who wait for it.
func (r *Recorder) syncLog() error {
	if err := r.log.Sync(); err != nil {
		return fmt.Errorf("sync the digest log: %w", err)
	}
	for _, done := range r.answers {
		done <- nil // never blocks: there is room for one answer
	}
	r.answers = nil
	return nil
}

// openSegment sees to it that there is a segment with room for n bytes: the one that is open, else the next. The next one
// has its space before the last is sealed, so that a full disk leaves the last one with its reserve.
func (r *Recorder) openSegment(n int) error {
	w := r.telemetry
	switch {
	case w == nil:
		return r.beginSegment(r.telemetryNext)
	case w.Err() != nil:
		return r.leaveSegment()
	case w.Next() == w.Base() || r.reserveOpen || w.Size()+int64(n)+batchRoom <= w.Room()-segmentReserve(w.Room()):
		return nil
	}
	next, err := segment.Prepare(r.dir.Telemetry(), w.Next(), r.segmentOptions())
	if err != nil {
		return fmt.Errorf("begin a telemetry segment: %w", err)
	}
	r.telemetryNext = w.Next()
	r.seal()
	if err = r.syncLog(); err == nil {
		next.Reuse(r.memory)
		r.memory = nil
		r.telemetry, err = next.Place()
	}
	if err != nil {
		_ = next.Discard() // best effort: it is a temporary file
		return fmt.Errorf("begin a telemetry segment: %w", err)
	}
	return nil
}

// batchRoom is what the batch around frames takes in a segment.
const batchRoom = 1 << 10

// leaveSegment goes on behind the last durable frame of a segment that failed, in a new one.
func (r *Recorder) leaveSegment() error {
	old := r.telemetry
	next, err := old.Successor(r.segmentOptions())
	if err != nil {
		return err
	}
	r.telemetry = next
	if old.Durable() {
		r.giveUpSegment(old.Path(), next.Base())
	}
	return nil
}

// giveUpSegment takes note of a segment that is to be repaired and sealed when storage is well, and tells the auditor.
func (r *Recorder) giveUpSegment(path string, next uint64) {
	r.left = append(r.left, path)
	_ = r.append(&digestlog.Entry{ // without it, the next file's base still says the same
		Kind: digestlog.KindEvent, Generation: r.generation, Code: digestlog.EventPoisoned,
		Text: digestlog.CleanText(fmt.Sprintf("%s given up at frame %d", filepath.Base(path), next)),
	})
}

// seal closes the telemetry segment for good and logs its digest; the caller syncs the log. One that cannot be sealed is
// left for sealLeft: all in it is durable.
func (r *Recorder) seal() {
	w := r.telemetry
	r.telemetry = nil
	sealed, err := w.Seal()
	r.memory = w.Memory()
	if err == nil && sealed.Count > 0 { // a segment without frames leaves no file
		err = r.logSeal(sealed)
	}
	if err != nil {
		r.logger().Warn("a telemetry segment could not be sealed yet", "file", w.Path(), "err", err)
		r.giveUpSegment(w.Path(), w.Next())
	}
}

// sealLeft repairs and seals the segments that were given up. What still cannot be is left for the next time.
func (r *Recorder) sealLeft() {
	still := r.left[:0]
	for _, path := range r.left {
		sealed, err := segment.RepairIndexed(r.fs(), path, summarizer)
		if err == nil && sealed.Count > 0 {
			err = r.logSeal(sealed)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.logger().Warn("a telemetry segment cannot be sealed", "file", path, "err", err)
			still = append(still, path)
		}
	}
	r.left = still
}

func (r *Recorder) logSeal(s segment.Sealed) error {
	r.telemetryNext = max(r.telemetryNext, s.Base+s.Count)
	err := r.append(&digestlog.Entry{
		Kind: digestlog.KindSeal, Generation: r.generation, Stream: uint8(segment.KindTelemetry),
		Base: s.Base, Count: s.Count, Size: uint64(s.Size), SHA256: s.SHA256, Name: s.Name,
	})
	if err != nil {
		return fmt.Errorf("log the seal of %s: %w", s.Name, err)
	}
	return nil
}

// beginSegment starts the telemetry segment whose first frame has the given ordinal.
func (r *Recorder) beginSegment(base uint64) error {
	w, err := segment.Create(r.dir.Telemetry(), base, r.segmentOptions())
	if err != nil {
		return fmt.Errorf("begin a telemetry segment: %w", err)
	}
	r.telemetry = w
	return nil
}

func (r *Recorder) segmentOptions() segment.Options {
	meta := record.StreamMeta{Generation: r.generation, Stored: r.stats.stored.Load(), Lost: r.stats.lost.Load(), Schema: r.schema}
	size := r.opts.SegmentSize
	if r.reserveOpen {
		size = min(size, smallSegment)
	}
	return segment.Options{
		FS: r.fs(), Kind: segment.KindTelemetry, RunID: r.header.RunID, Meta: meta.Append(nil), Size: size, MinSize: r.opts.minSegment(), Now: r.opts.Now,
		Index: new(record.Summarizer),
	}
}
