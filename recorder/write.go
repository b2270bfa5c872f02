package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// entryCall asks the writer to log an entry and sync it.
type entryCall struct {
	entry digestlog.Entry
	done  chan error
}

// snapshotJob is a snapshot whose records are synced, with the tree they are in.
type snapshotJob struct {
	work
	treeSize uint64
	treeRoot [32]byte
}

// write commits batches and logs entries for the persister until the drainer has closed r.work and the persister has
// closed persisted. It alone touches the telemetry segment and the log.
func (r *Recorder) write(failed context.Context, persisted <-chan struct{}) error {
	in := r.work
	for {
		select {
		case w, ok := <-in:
			if !ok {
				in = nil
				close(r.jobs)
				continue
			}
			if w.staged != nil {
				r.jobs <- snapshotJob{work: w, treeSize: r.log.Size(), treeRoot: r.log.Root()} // never blocks: room for every area
				continue
			}
			if err := r.commit(w.batch); err != nil {
				return err
			}
			r.free <- w.batch // never blocks: room for every batch
		case call := <-r.entries:
			err := r.logNow(&call.entry)
			call.done <- err
			if err != nil {
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

// commit makes one batch durable: telemetry first, then the digests of what is stored.
func (r *Recorder) commit(b *batch) error {
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
	for e := range b.entries(r.generation) {
		if err := r.append(e); err != nil {
			return err
		}
	}
	if err := r.log.Sync(); err != nil {
		return fmt.Errorf("sync the digest log: %w", err)
	}
	r.stats.stored.Add(b.stored)
	r.stats.lost.Add(b.lost)
	r.stats.digests.Add(b.digests)
	r.stats.synced.Store(b.next)
	if now := r.opts.Now(); now.Sub(r.headAt) >= r.opts.HeadInterval {
		if _, err := r.log.SignHead(); err != nil {
			return fmt.Errorf("sign the tree head: %w", err)
		}
		r.headAt = now
	}
	if r.telemetry.Size() >= r.opts.SegmentSize {
		return r.roll()
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

func (r *Recorder) logNow(e *digestlog.Entry) error {
	if err := r.append(e); err != nil {
		return err
	}
	if err := r.log.Sync(); err != nil {
		return fmt.Errorf("sync the digest log: %w", err)
	}
	return nil
}

// roll seals the telemetry segment and begins the next.
func (r *Recorder) roll() error {
	if err := r.seal(); err != nil {
		return err
	}
	if err := r.log.Sync(); err != nil {
		return fmt.Errorf("sync the digest log: %w", err)
	}
	return r.beginSegment(r.telemetryNext)
}

// seal closes the telemetry segment for good and logs its digest; the caller syncs the log.
func (r *Recorder) seal() error {
	sealed, err := r.telemetry.Seal()
	r.memory = r.telemetry.Memory()
	r.telemetry = nil
	if err != nil {
		return fmt.Errorf("seal telemetry: %w", err)
	}
	if sealed.Count == 0 {
		return nil // a segment without frames leaves no file
	}
	return r.logSeal(sealed)
}

func (r *Recorder) logSeal(s segment.Sealed) error {
	r.telemetryNext = s.Base + s.Count
	_, err := r.log.Append(&digestlog.Entry{
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
	meta := record.StreamMeta{Generation: r.generation, Stored: r.stats.stored.Load(), Lost: r.stats.lost.Load(), Schema: r.schema}
	w, err := segment.Create(r.dir.Telemetry(), base, segment.Options{
		FS: r.fs(), Kind: segment.KindTelemetry, RunID: r.header.RunID, Meta: meta.Append(nil), Size: r.opts.SegmentSize, Now: r.opts.Now,
		Memory: r.memory,
	})
	r.memory = nil
	if err != nil {
		return fmt.Errorf("begin a telemetry segment: %w", err)
	}
	r.telemetry = w
	return nil
}

// persist writes snapshots, one at a time, until the writer closes r.jobs.
func (r *Recorder) persist(failed context.Context) error {
	for {
		select {
		case job, ok := <-r.jobs:
			if !ok {
				return nil
			}
			if err := r.persistOne(failed, job); err != nil {
				return err
			}
		case <-failed.Done():
			return nil
		}
	}
}

// persistOne publishes one snapshot and gives its area back. If that fails the area is kept: the next recorder finds the
// state there and tries again. A request that does not hold a well-formed state is reported and dropped: the run goes on.
func (r *Recorder) persistOne(failed context.Context, job snapshotJob) error {
	s := job.staged
	err := r.publishSnapshot(failed, job)
	if errors.Is(err, snapshot.ErrSections) || errors.Is(err, ring.ErrTruncated) {
		r.logger().Error("snapshot request dropped: it holds no state", "step", s.Step, "err", err)
		err = nil
	}
	if err == nil {
		r.released <- s // never blocks: room for every area
	}
	return err
}

// publishSnapshot makes the file durable under its name, has its digest logged and synced, and prunes older ones. A state
// that is published already is left alone: a recorder died before it gave the area back, or the producer asked twice.
func (r *Recorder) publishSnapshot(failed context.Context, job snapshotJob) error {
	s := job.staged
	name := snapshot.FileName(s.Step, r.generation)
	if slices.ContainsFunc(r.kept, func(k snapshot.Info) bool { return k.Name == name }) {
		r.logger().Info("snapshot is there already", "step", s.Step)
		return r.prune(failed)
	}
	info, err := r.writeSnapshot(job)
	if err != nil {
		return fmt.Errorf("write the snapshot of step %d: %w", s.Step, err)
	}
	err = r.call(failed, digestlog.Entry{
		Kind: digestlog.KindSnapshot, Generation: r.generation, Step: s.Step, Seq: s.Seq,
		SHA256: info.SHA256, Size: uint64(info.Size), Name: info.Name,
	})
	if err != nil {
		return err
	}
	r.stats.snapshots.Add(1)
	r.kept = append(r.kept, info)
	return r.prune(failed)
}

// writeSnapshot reads the state where the producer has put it: there is no other copy of it in this process.
func (r *Recorder) writeSnapshot(job snapshotJob) (info snapshot.Info, err error) {
	s := job.staged
	err = s.View(func(content []byte) error {
		sections, err := snapshot.ParseSections(content)
		if err != nil {
			return err
		}
		info, err = snapshot.Write(r.dir.Snapshots(), snapshot.Meta{
			RunID: r.header.RunID, Generation: r.generation, Step: s.Step, Seq: s.Seq, Reason: s.Reason,
			Schema: r.schema.Sum(), TreeSize: job.treeSize, TreeRoot: job.treeRoot, Created: r.opts.Now(),
		}, sections, snapshot.Options{FS: r.fs(), Codec: r.opts.Snapshot.Codec, Level: r.opts.Snapshot.Level})
		return err
	})
	return info, err
}

// prune removes the snapshots that retention gives up: logged first, then unlinked, so that a kill in between leaves a
// file too many and never a log that misses one.
func (r *Recorder) prune(failed context.Context) error {
	for _, info := range snapshot.Plan(r.kept, r.opts.Snapshot.Retention, r.opts.Now()) {
		if err := r.call(failed, *r.pruneEntry(&info)); err != nil {
			return err
		}
		if err := r.unlink(&info); err != nil {
			return err
		}
		r.kept = slices.DeleteFunc(r.kept, func(k snapshot.Info) bool { return k.Name == info.Name })
	}
	return nil
}

func (r *Recorder) pruneEntry(info *snapshot.Info) *digestlog.Entry {
	return &digestlog.Entry{
		Kind: digestlog.KindPrune, Generation: r.generation, Step: info.Step, Target: info.Step, SHA256: info.SHA256, Name: info.Name,
	}
}

func (r *Recorder) unlink(info *snapshot.Info) error {
	if err := r.fs().Remove(r.dir.Snapshot(info.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("prune snapshot %s: %w", info.Name, err)
	}
	return nil
}

// call has the writer log and sync an entry.
func (r *Recorder) call(failed context.Context, e digestlog.Entry) error {
	c := entryCall{entry: e, done: make(chan error, 1)}
	select {
	case r.entries <- c:
		return <-c.done
	case <-failed.Done():
		return context.Cause(failed)
	}
}
