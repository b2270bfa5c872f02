package recorder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
)

// batches is how many commit batches circulate: one being filled, one being written, one between.
const batches = 3

// firstBatch is the bytes that a batch has room for before it grows: few producers fill a large one, and all of its memory is cleared.
const firstBatch = 64 << 10

// errDetached says that the drainer stopped because it was asked to, after handing over all it had.
var errDetached = errors.New("recorder: detached")

// batch is what one group commit writes: telemetry frames, then log entries. Its memory is reused. A batch that storage
// refused is stored later, from where it stopped; one that memory cannot hold becomes a batch of lost ranges.
type batch struct {
	frames  []byte            // encoded telemetry frames, back to back
	ends    []int             // end of each in frames
	entries digestlog.Encoded // log entries of the same records and losses
	ranges  []span            // the losses
	stored  uint64            // records among the frames
	lost    uint64            // sequence numbers in lost ranges among the frames
	digests uint64            // STEP entries
	first   uint64            // sequence number of the first item
	next    uint64            // sequence number after the last one accounted for
	began   time.Time         // of the look at the ring before the one that found the first item: none was emitted before

	// The writer's.
	spans   []span // of a batch that was written off: what it holds instead of frames, in order
	written bool   // its telemetry is durable
	logged  int    // entries handed to the log
}

func newBatch(size int) *batch {
	return &batch{frames: make([]byte, 0, size+size/8)}
}

// like returns an empty batch with room for as much as b has and an eighth more.
func (b *batch) like() *batch {
	return &batch{
		frames: make([]byte, 0, len(b.frames)+len(b.frames)/8), ends: make([]int, 0, len(b.ends)+len(b.ends)/8), entries: b.entries.Like(),
	}
}

func (b *batch) reset() {
	b.entries.Reset()
	*b = batch{frames: b.frames[:0], ends: b.ends[:0], entries: b.entries, ranges: b.ranges[:0], spans: b.spans[:0]}
}

func (b *batch) empty() bool { return len(b.ends) == 0 }

// size is about how many bytes the batch holds. Each item has its share: a record may be all digests.
func (b *batch) size() int { return len(b.frames) + 8*len(b.ends) + b.entries.Size() }

// work is one item in ring order: a batch to commit, or a snapshot whose turn has come.
type work struct {
	batch  *batch
	staged *ring.Staged
}

// drain moves records from the ring into batches until the producer is done (it returns how it ended), ctx asks it to
// detach (errDetached), or another part of the recorder failed. It alone touches the ring.
func (r *Recorder) drain(ctx, failed context.Context) (digestlog.Status, error) {
	payload := r.newPayload()
	slots := r.ring.Header().Slots
	pace := newPace(slots, r.opts.CommitInterval)
	keeper := NewKeeper(slots)
	yield := yielder{set: r.opts.Yield, low: r.low}
	looked := r.opts.Now()
	began := looked
	settle := settler{more: r.opts.Settle, from: began.Add(settles)}
	cur, err := r.takeFree(failed)
	if err != nil {
		return 0, err
	}
	for {
		if failed.Err() != nil {
			return 0, context.Cause(failed)
		}
		// Both questions are asked before the ring is read, so that nothing can come in unseen between answer and reading.
		stop := ctx.Err() != nil
		if stop {
			r.awaitTry(failed)
		}
		ended, status, err := r.producerDone(pace.slowest())
		if err != nil {
			return 0, err
		}
		r.stats.ended.Store(ended)
		since := looked
		looked = r.opts.Now()
		until := r.takeUntil(&keeper, looked, stop, ended)
		n, err := r.fill(cur, payload, until)
		if err != nil {
			return 0, err
		}
		if n > 0 && cur.began.IsZero() {
			cur.began = since
		}
		behind := n+r.backlog(until) >= Behind(slots, looked.Sub(began))
		yield.look(looked, stop || ended || behind || r.snapshotLate(looked))
		r.narrow.look(yield.low, r.stats.saving.Load() != 0)
		settle.look(looked, yield.low)
		r.releaseAreas()
		staged, ok := r.nextStaged(stop || ended)
		full := cur.size() >= r.opts.CommitBytes // and the ring has more, perhaps
		due := full || r.opts.Now().Sub(cur.began) >= r.opts.CommitInterval
		ends := full || ok || stop || ended && n == 0
		if !cur.empty() && (due || ends) && (ends || r.accepts(1)) {
			cur.next = r.next
			if err := r.push(failed, work{batch: cur}); err != nil {
				return 0, err
			}
			if cur, err = r.takeFree(failed); err != nil {
				return 0, err
			}
		}
		if ok {
			if err := r.push(failed, work{staged: staged}); err != nil {
				return 0, err
			}
		}
		r.publish(ring.ConsumerAttached)
		switch {
		case stop:
			return 0, errDetached
		case ended && n == 0 && !ok && until == math.MaxUint64:
			return status, nil
		case (!ended || n == 0) && !ok && !full:
			pace.wait(ctx, failed, n, r.untilDue(cur))
		}
	}
}

// backlog is how many of the records before until are still in the ring.
func (r *Recorder) backlog(until uint64) int {
	return int(max(min(r.ring.Produced(), until), r.next) - r.next)
}

// untilDue is how long the batch may still wait for more.
func (r *Recorder) untilDue(b *batch) time.Duration {
	if b.empty() || !r.accepts(1) {
		return r.opts.CommitInterval
	}
	return r.opts.CommitInterval - r.opts.Now().Sub(b.began)
}

// nextStaged returns the oldest snapshot request, once every record before it has been taken from the ring and it can be
// pushed, after a batch, without waiting for the writer; at the end it may wait.
func (r *Recorder) nextStaged(end bool) (*ring.Staged, bool) {
	if r.waiting == nil {
		r.waiting, _ = r.ring.Staged()
	}
	if s := r.waiting; s != nil && s.Seq <= r.next && (end || r.accepts(2)) {
		r.waiting = nil
		return s, true
	}
	return nil, false
}

// releaseAreas gives the staging areas of finished snapshots back to the producer. The persister does not do it itself:
// the ring is for one goroutine.
func (r *Recorder) releaseAreas() {
	for {
		select {
		case s := <-r.released:
			if err := s.Release(); err != nil {
				r.logger().Error("a staging area cannot be given back", "step", s.Step, "err", err)
			}
		default:
			return
		}
	}
}

// accepts reports whether so many items, a batch among them, can be pushed and another batch be had without waiting for the
// writer, or may wait: while storage takes nothing the writer may be in a call of it for long, and the ring is nearly full.
func (r *Recorder) accepts(items int) bool {
	return r.stats.fault.Load() == 0 || len(r.work)+items <= cap(r.work) && (len(r.free) > 0 || r.made < batches)
}

// awaitTry waits for the writer to try once more, if storage takes nothing, to store what it holds: a recorder that is asked
// to stop as storage gets well stores what is in the ring too.
func (r *Recorder) awaitTry(failed context.Context) {
	select {
	case <-r.tried:
	case <-failed.Done():
	}
}

func (r *Recorder) push(failed context.Context, w work) error {
	select {
	case r.work <- w:
		return nil
	case <-failed.Done():
		return context.Cause(failed)
	}
}

func (r *Recorder) takeFree(failed context.Context) (*batch, error) {
	var b *batch
	select {
	case b = <-r.free:
	default:
		if r.made < batches { // not before it is needed: in turns all would be used, and the processor would find none where it left it
			r.made++
			b = newBatch(min(r.opts.CommitBytes, firstBatch))
			break
		}
		select {
		case b = <-r.free:
		case <-failed.Done():
			return nil, context.Cause(failed)
		}
	}
	b.reset()
	b.first = r.next
	return b, nil
}

// payloadBytes bounds what is taken from the ring at once, but for a record that is larger itself.
const payloadBytes = 16 << 10

// newPayload returns room for as many records as are taken from the ring at once.
func (r *Recorder) newPayload() []uint64 {
	words := r.schema.Words()
	return make([]uint64, words*max(1, payloadBytes/(8*words)))
}

// fill takes the records before until, to the end of the ring or till the batch is full, and returns how many items it took.
func (r *Recorder) fill(b *batch, payload []uint64, until uint64) (int, error) {
	items, words := 0, r.schema.Words()
	most := 8*words + 128 + r.steps.size() // of one record in the batch
	for b.size() < r.opts.CommitBytes && r.next < until {
		room := max(1, min((r.opts.CommitBytes-b.size())/most, len(payload)/words))
		seq, n, st := r.ring.NextBatch(payload[:words*int(min(uint64(room), until-r.next))])
		switch st {
		case ring.Got:
			for i := range n {
				if err := r.add(b, seq+uint64(i), payload[words*i:][:words]); err != nil {
					return items, err
				}
			}
			r.next = seq + uint64(n)
			items += n
		case ring.Lost:
			from, to, why := r.ring.LostRange()
			reason := record.LostOverrun
			if why == ring.Torn {
				reason = record.LostTorn
			}
			r.next = to
			if err := r.addLost(&r.encoder, b, span{from, to, reason}); err != nil {
				return items, err
			}
			items++
		case ring.Empty:
			return items, nil
		default:
			return items, fmt.Errorf("ring %s: %w", r.ring.Path(), r.ring.Err())
		}
	}
	return items, nil
}

// add puts one record into the batch: its persisted prefix as a telemetry frame and, where one is due, its digests as a
// log entry, encoded and hashed, so that the writer has less to do between its syncs.
func (r *Recorder) add(b *batch, seq uint64, payload []uint64) error {
	b.frames = record.AppendRecord(b.frames, r.generation, seq, payload[:r.schema.StoredWords()])
	b.ends = append(b.ends, len(b.frames))
	b.stored++
	e := r.steps.entry(seq, payload)
	if e == nil {
		return nil
	}
	b.digests++
	return r.encoder.Append(&b.entries, e)
}

// addLost puts a range that could not be had or stored into the batch, for the telemetry and for the log.
func (r *Recorder) addLost(c *digestlog.Encoder, b *batch, s span) error {
	b.frames = record.AppendLost(b.frames, r.generation, s.from, s.to, s.reason)
	b.ends = append(b.ends, len(b.frames))
	b.lost += s.to - s.from
	b.ranges = append(b.ranges, s)
	e := lostEntry(r.generation, s.from, s.to, s.reason)
	return c.Append(&b.entries, &e)
}

func lostEntry(gen uint32, from, to uint64, reason record.LostReason) digestlog.Entry {
	return digestlog.Entry{Kind: digestlog.KindLost, Generation: gen, Seq: from, From: from, To: to, Reason: reason}
}

// producerDone reports whether no more records can come, and what that makes the end of the generation. The producer's
// lock, a system call, is probed only when little comes in.
func (r *Recorder) producerDone(quiet bool) (bool, digestlog.Status, error) {
	switch r.ring.State() {
	case ring.StateClosed:
		return true, digestlog.StatusClean, nil
	case ring.StateFailed:
		return true, digestlog.StatusFailed, nil
	}
	if !quiet {
		return false, 0, nil
	}
	alive, err := r.ring.ProducerAlive()
	if err != nil {
		return false, 0, fmt.Errorf("ring %s: is the producer alive? %w", r.ring.Path(), err)
	}
	if alive {
		return false, 0, nil
	}
	switch r.ring.State() { // it may have closed since
	case ring.StateClosed:
		return true, digestlog.StatusClean, nil
	case ring.StateFailed:
		return true, digestlog.StatusFailed, nil
	}
	return true, digestlog.StatusCrashed, nil
}
