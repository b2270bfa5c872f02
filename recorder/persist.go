package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
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
	written  *snapshot.Info // its file is durable, the log entry is not
}

// persist writes snapshots, one at a time, until the writer closes r.jobs. What storage does not take waits and is tried
// again; the oldest is given up when no area would be left for the producer's next, if there can be one.
func (r *Recorder) persist(failed context.Context) error {
	pause := retryFirst
	for {
		var again <-chan time.Time
		if len(r.unsaved) > 0 {
			again = time.After(pause)
		}
		select {
		case job, ok := <-r.jobs:
			if !ok {
				return r.persistLast(failed)
			}
			r.unsaved = append(r.unsaved, job)
			if r.tooManyWait(len(r.unsaved)) {
				r.giveUpSnapshot(r.unsaved[0].staged)
				r.unsaved = r.unsaved[1:]
			}
			pause = retryFirst
		case <-again:
			pause = min(2*pause, retryLongest)
		case <-failed.Done():
			return nil
		}
		if err := r.persistWaiting(failed); err != nil {
			return err
		}
	}
}

// persistWaiting publishes what waits, the oldest first, as far as storage takes it.
func (r *Recorder) persistWaiting(failed context.Context) error {
	for len(r.unsaved) > 0 {
		if refused, err := r.persistOne(failed, r.unsaved[0]); refused || err != nil {
			return err
		}
		r.unsaved = r.unsaved[1:]
	}
	return nil
}

// persistLast tries a last time what could not be stored. The areas are kept: if the run cannot be closed either, the next
// recorder finds the states there.
func (r *Recorder) persistLast(failed context.Context) error {
	if err := r.persistWaiting(failed); err != nil || len(r.unsaved) == 0 {
		return err
	}
	r.endWithout(r.unsaved[len(r.unsaved)-1].staged.Step, len(r.unsaved))
	return nil
}

// tooManyWait says whether n states that wait for storage leave no area for the producer's next, if there can be one.
func (r *Recorder) tooManyWait(n int) bool {
	return n > max(1, r.header.StagingAreas-1) && !r.stats.ended.Load()
}

// giveUpSnapshot counts a state that storage did not take, and gives its area back.
func (r *Recorder) giveUpSnapshot(s *ring.Staged) {
	r.stats.unsaved.Add(1)
	r.released <- s // never blocks: room for every area
}

// endWithout reports n states, the newest of them of the given step, that the run ends without.
func (r *Recorder) endWithout(step uint64, n int) {
	all := r.stats.unsaved.Add(uint64(n))
	r.logger().Error("the run ends without its last snapshot: storage did not take it", "step", step, "given_up", all)
}

// persistOne publishes one snapshot and gives its area back, or reports that storage refused it. A request that does not
// hold a well-formed state is reported and dropped: the run goes on.
func (r *Recorder) persistOne(failed context.Context, job *snapshotJob) (refused bool, err error) {
	s := job.staged
	r.stats.saving.Store(r.opts.Now().UnixNano())
	defer r.stats.saving.Store(0)
	err = r.publishSnapshot(failed, job)
	if !r.refused && isStorage(err) {
		err = r.publishSnapshot(failed, job) // an error of one file says nothing about the next
	}
	switch {
	case errors.Is(err, snapshot.ErrSections), errors.Is(err, ring.ErrTruncated):
		r.logger().Error("snapshot request dropped: it holds no state", "step", s.Step, "err", err)
	case isStorage(err):
		if !r.refused {
			r.logger().Error("storage does not take a snapshot; it is tried again", "step", s.Step, "err", err)
		}
		r.refused = true
		return true, nil
	case err != nil:
		return false, err
	case r.refused:
		r.logger().Warn("storage takes snapshots again", "step", s.Step, "given_up", r.stats.unsaved.Load())
		r.refused = false
	}
	r.released <- s // never blocks: room for every area
	return false, nil
}

// publishSnapshot makes the file durable under its name, has its digest logged and synced, and prunes older ones. A state
// that is published already is left alone: a recorder died before it gave the area back, or the producer asked twice. So is one that was
// published and pruned: written anew it would be another file (when it was made is in it) under the name that the log has given up.
func (r *Recorder) publishSnapshot(failed context.Context, job *snapshotJob) error {
	s := job.staged
	name := snapshot.FileName(s.Step, r.generation)
	if slices.ContainsFunc(r.kept, func(k snapshot.Info) bool { return k.Name == name }) {
		r.logger().Info("snapshot is there already", "step", s.Step)
		return r.prune(failed)
	}
	if s.Seq < r.saved { // states come in their order, so its turn was before the newest's
		r.logger().Info("snapshot was saved and pruned before, or given up", "step", s.Step)
		return r.prune(failed)
	}
	if job.written == nil {
		info, err := r.writeSnapshot(job)
		if errors.Is(err, fs.ErrExist) { // of a try that failed behind it: nothing vouches for that file
			path := r.dir.Snapshot(name)
			if err = r.fs().Rename(path, path+rundir.OrphanSuffix); err == nil {
				info, err = r.writeSnapshot(job)
			}
		}
		if err != nil {
			return fmt.Errorf("write the snapshot of step %d: %w", s.Step, err)
		}
		job.written = &info
	}
	info := *job.written
	err := r.call(failed, digestlog.Entry{
		Kind: digestlog.KindSnapshot, Generation: r.generation, Step: s.Step, Seq: s.Seq,
		SHA256: info.SHA256, Size: uint64(info.Size), Name: info.Name,
	})
	if err != nil {
		r.reuse = snapshot.Reuse{} // nothing may refer to a file that the log does not have
		return err
	}
	r.stats.snapshots.Add(1)
	r.kept, r.saved = append(r.kept, info), max(r.saved, s.Seq)
	return r.prune(failed)
}

// writeSnapshot reads the state where the producer has put it: there is no other copy of it in this process.
func (r *Recorder) writeSnapshot(job *snapshotJob) (info snapshot.Info, err error) {
	s := job.staged
	err = s.View(func(content []byte) error {
		sections, err := snapshot.ParseSections(content)
		if err != nil {
			return err
		}
		info, err = snapshot.Write(r.dir.Snapshots(), snapshot.Meta{
			RunID: r.header.RunID, Generation: r.generation, Step: s.Step, Seq: s.Seq, Reason: s.Reason,
			Schema: r.schema.Sum(), TreeSize: job.treeSize, TreeRoot: job.treeRoot, Created: r.opts.Now(),
		}, sections, snapshot.Options{FS: r.fs(), Codec: r.opts.Snapshot.Codec, Level: r.opts.Snapshot.Level, Recipients: r.recipients, Reuse: r.reuseOption()})
		return err
	})
	if info.BaseErr != nil {
		r.logger().Warn("sections written anew: an older snapshot cannot be read", "step", s.Step, "err", info.BaseErr)
	}
	return info, err
}

func (r *Recorder) reuseOption() *snapshot.Reuse {
	if r.opts.Snapshot.Reuse <= 0 {
		return nil
	}
	r.reuse.Limit = r.opts.Snapshot.Reuse
	return &r.reuse
}

// prune removes the snapshots that retention gives up: logged first, then unlinked, so that a kill in between leaves a
// file too many and never a log that misses one. A file that storage does not let go is tried again at the next prune.
func (r *Recorder) prune(failed context.Context) error {
	for _, info := range snapshot.Plan(r.kept, r.opts.Snapshot.Retention, r.opts.Now()) {
		if err := r.call(failed, *r.pruneEntry(&info)); err != nil {
			return err
		}
		r.kept = slices.DeleteFunc(r.kept, func(k snapshot.Info) bool { return k.Name == info.Name })
		r.condemned = append(r.condemned, info)
	}
	still := r.condemned[:0]
	for _, info := range r.condemned {
		if err := r.unlink(&info); isStorage(err) {
			r.logger().Warn("a pruned snapshot cannot be removed yet", "file", info.Name, "err", err)
			still = append(still, info)
		} else if err != nil {
			return err
		}
	}
	r.condemned = still
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
	case <-failed.Done():
		return context.Cause(failed)
	}
	select {
	case err := <-c.done:
		return err
	case <-failed.Done():
		return context.Cause(failed)
	}
}
