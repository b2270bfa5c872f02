// Package recorder is the consumer of a ring: it drains records, owns the run directory, and brings everything that
// was emitted to stable storage, in a process of its own, without the producer ever waiting for it.
//
// One Recorder serves one generation of one run. Attach opens the ring and the run directory, creating the directory
// or continuing where an earlier recorder died; Run drains until the producer has closed or died, then closes the
// generation: telemetry sealed, END entry logged, tree head signed, ring removed.
//
// It promises:
//   - exact accounting: stored + lost = emitted, every loss written as a range with its reason, in-band in the
//     telemetry and in the digest log;
//   - order: a record's telemetry is synced before its digest is logged, a tree head is signed only over synced
//     entries, a snapshot is published only after every record before it is synced;
//   - storage that fails does not end it: until it is well again records stay in the ring, what has to leave that is held
//     in memory, what memory cannot hold is a lost range, and a full disk always has room for the end of the run;
//   - a kill at any moment leaves a directory that verifies as complete or as an unsealed crash tail, and that the
//     next Attach continues;
//   - bounded memory: three commit batches, Options.HoldBytes, and what the ring and the staging areas hold.
//
// Three goroutines, all inside Run: the drainer alone reads the ring; the writer alone owns the telemetry segment and
// the digest log; the persister alone writes snapshots.
package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"filippo.io/age"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// FinishedError is returned by Attach when the ring's generation has been closed in the log already: the ring was left
// over by a recorder that died between logging the end and removing it. Attach has signed the head and removed the ring.
type FinishedError struct{ Summary Summary }

// Error says which generation is closed.
func (e *FinishedError) Error() string {
	return fmt.Sprintf("generation %d of run %s is closed already", e.Summary.Generation, e.Summary.RunID)
}

// Recorder drains one ring into one run directory. Its fields are grouped by the goroutine that owns them during Run.
type Recorder struct {
	// Immutable after Attach.
	opts        Options
	dir         rundir.Dir
	header      ring.Header
	schema      *record.Schema
	generation  uint32
	lock        io.Closer
	fresh       bool   // Attach made the run directory and found nothing of another recorder in it
	verifierKey string // public half of the signing key
	recipients  []age.Recipient

	// The drainer's.
	ring    *ring.Consumer
	steps   *stepMaker
	encoder digestlog.Encoder
	waiting *ring.Staged // a snapshot request taken before all its records were
	low     bool         // it has given way since it took over from another recorder
	narrow  narrower     // whether it may use one processor alone
	made    int          // batches
	next    uint64       // next sequence number to take from the ring

	// The writer's.
	telemetry     *segment.Writer
	telemetryNext uint64   // ordinal of the first frame of the next segment
	left          []string // segments given up and not sealed yet
	memory        []byte   // of the last segment's writer, for the next one's
	log           *digestlog.Log
	headAt        time.Time
	answers       []chan error // of calls whose entries are not durable yet
	trouble       trouble
	reserveOpen   bool // the reserve is given back: files are small now, and what segments keep free may be used
	jobsClosed    bool
	outlets       []*outlet // of signed heads
	ended         []*outlet // those that have taken the last head

	// The persister's.
	kept      []snapshot.Info // on the effective timeline: logged, not pruned, in the order written; with Err set: others
	saved     uint64          // position of the newest snapshot of the generation that is in the log, whether pruned or not
	reuse     snapshot.Reuse
	condemned []snapshot.Info // pruned in the log, their files still there
	unsaved   []*snapshotJob  // states that wait until storage takes them, the oldest first
	refused   bool            // storage did not take the last one, and that was said

	// Between them.
	work     chan work         // drainer → writer, in ring order
	free     chan *batch       // writer → drainer
	entries  chan entryCall    // persister → writer
	jobs     chan *snapshotJob // writer → persister
	released chan *ring.Staged // persister → drainer
	tried    chan struct{}     // closed by the writer when it has tried once more for a recorder that is asked to stop
	stats    stats
}

// stats are the live counts: written by the writer and the persister, published into the ring by the drainer.
type stats struct {
	stored, lost, synced, digests, snapshots atomic.Uint64

	lostStorage, held, unsaved atomic.Uint64
	fault                      atomic.Uint64 // errno
	ended                      atomic.Bool   // the producer is gone or done; the drainer's
	gaveUp                     atomic.Bool   // storage has not come back for a run that has ended; the writer's
	saving                     atomic.Int64  // since when a snapshot is being written, ns since 1970; 0: none is
}

// Summary is what a generation amounted to. Stored + Lost = Emitted.
type Summary struct {
	RunID       string           `json:"run_id"`
	Dir         string           `json:"run_dir"`
	Generation  uint32           `json:"generation"`
	Emitted     uint64           `json:"emitted"`
	Stored      uint64           `json:"stored"`
	Lost        uint64           `json:"lost"`
	LostStorage uint64           `json:"lost_storage"`      // of those lost, since the last recorder attached: storage did not take them
	Digests     uint64           `json:"digests"`           // STEP entries logged
	Snapshots   uint64           `json:"snapshots"`         // published
	Unsaved     uint64           `json:"snapshots_unsaved"` // given up because storage did not take them
	Status      digestlog.Status `json:"status"`
	Anchor      *Committed       `json:"anchor,omitempty"`  // nil: none is configured
	Witness     *Committed       `json:"witness,omitempty"` // likewise
}

// Attach opens the ring at path and the run directory it belongs to. The directory is created for generation 0 and
// continued otherwise, whatever state an earlier recorder left it in. It starts nothing; call Run, which releases it.
// Errors: vfs.ErrLocked if another recorder has the run, *FinishedError, those of the packages ring, segment and digestlog.
func Attach(path string, o Options) (*Recorder, error) {
	o = o.withDefaults()
	c, err := ring.Open(path)
	if err != nil {
		return nil, err
	}
	r := &Recorder{opts: o, ring: c, header: c.Header()}
	if o.Yield != nil && c.Published().Phase == ring.ConsumerAttached { // a loop at work, that does not wait for this
		_, err := o.Yield(true)
		r.low = err == nil
	}
	r.narrow = narrower{set: o.Narrow}
	r.narrow.look(r.low, false)
	if err := r.open(); err != nil {
		if r.fresh {
			err = errors.Join(err, r.discard())
		}
		r.release()
		return nil, err
	}
	return r, nil
}

func (r *Recorder) open() error {
	var err error
	if !rundir.ValidID(r.header.RunID) { // it becomes a path
		return fmt.Errorf("ring %s: %q cannot be a run id", r.ring.Path(), r.header.RunID)
	}
	if r.schema, err = record.ParseSchema(r.header.Schema); err != nil {
		return fmt.Errorf("ring %s: %w", r.ring.Path(), err)
	}
	if got, want := r.header.PayloadLen, 8*r.schema.Words(); got != want {
		return fmt.Errorf("ring %s: payload of %d bytes, its schema %q needs %d", r.ring.Path(), got, r.schema.Name(), want)
	}
	if r.recipients, err = snapshot.ParseRecipients(r.opts.Snapshot.Recipients...); err != nil {
		return fmt.Errorf("keys for snapshots: %w", err)
	}
	r.generation = r.header.Generation
	if r.steps, err = newStepMaker(r.schema, r.generation, &r.opts); err != nil {
		return err
	}
	r.dir = rundir.Dir(filepath.Join(r.opts.Runs, r.header.RunID))
	if err := r.openDirectory(); err != nil {
		return fmt.Errorf("run %s: %w", r.header.RunID, err)
	}
	r.ring.Seek(r.next)
	r.publish(ring.ConsumerAttached)
	return nil
}

// RunID returns the id of the run being recorded.
func (r *Recorder) RunID() string { return r.header.RunID }

// Run drains the ring until its producer has closed or died and everything is stored, then closes the generation
// and removes the ring. If ctx ends first it makes durable what it has drained and returns ctx's error, leaving ring and
// generation open for the next Attach. Run releases everything the Recorder holds; call it once.
func (r *Recorder) Run(ctx context.Context) (Summary, error) {
	defer r.release()
	failed, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	defer fail(nil)
	r.work = make(chan work, batches)
	r.free = make(chan *batch, batches)
	r.tried = make(chan struct{})
	r.entries = make(chan entryCall)
	r.jobs = make(chan *snapshotJob, r.header.StagingAreas)
	r.released = make(chan *ring.Staged, r.header.StagingAreas)
	persisted := make(chan struct{})
	for _, o := range r.outlets {
		r.beginOutlet(o)
	}

	var status digestlog.Status
	var drainErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(r.work)
		status, drainErr = r.drain(ctx, failed)
		if drainErr != nil && !errors.Is(drainErr, errDetached) {
			fail(drainErr)
		}
	})
	wg.Go(func() { // works until the drainer has closed its channel and the persister has finished
		if err := r.write(ctx, failed, persisted); err != nil {
			fail(err)
		}
	})
	wg.Go(func() {
		defer close(persisted)
		if err := r.persist(failed); err != nil {
			fail(err)
		}
	})
	wg.Wait()
	r.releaseAreas()
	r.publish(ring.ConsumerAttached)
	if err := context.Cause(failed); err != nil {
		return r.summary(0), err
	}
	if drainErr != nil {
		return r.summary(0), context.Cause(ctx)
	}
	return r.finish(status)
}

// finish closes the generation after everything has been written: SEAL, END, sync, sign, and the ring goes last, so that
// a kill in between leaves a ring from which the next Attach can tell what is still to do.
func (r *Recorder) finish(status digestlog.Status) (Summary, error) {
	if r.telemetry != nil {
		r.seal()
	}
	r.sealLeft()
	sum := r.summary(status)
	end := digestlog.Entry{
		Kind: digestlog.KindEnd, Generation: r.generation, Seq: sum.Emitted,
		Status: status, Emitted: sum.Emitted, Stored: sum.Stored, Lost: sum.Lost, EmittedKnown: true,
	}
	if err := r.append(&end); err != nil {
		return sum, fmt.Errorf("log the end of generation %d: %w", r.generation, err)
	}
	if err := r.removeReserve(); err != nil {
		return sum, err
	}
	err := r.closeLog()
	if isStorage(err) {
		r.log.UseReserve()
		err = r.closeLog()
	}
	if err != nil {
		return sum, err
	}
	r.addCommitted(&sum)
	return sum, r.dismissRing()
}

// dismissRing tells the producer that all is done and removes the ring. The producer says that it ended an instant before
// it gives up its lock; until then the ring is not to be removed. One that somebody else has removed is no loss any more.
func (r *Recorder) dismissRing() error {
	r.publish(ring.ConsumerDone)
	err := r.ring.Remove()
	for range 200 {
		if !errors.Is(err, ring.ErrAlive) {
			break
		}
		time.Sleep(5 * time.Millisecond)
		err = r.ring.Remove()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the ring: %w", err)
	}
	return nil
}

func (r *Recorder) closeLog() error {
	if err := r.log.Sync(); err != nil {
		return fmt.Errorf("sync the digest log: %w", err)
	}
	if err := r.signHead(); err != nil {
		return fmt.Errorf("sign the tree head: %w", err)
	}
	if err := r.log.Close(); err != nil {
		return fmt.Errorf("close the digest log: %w", err)
	}
	r.log = nil
	r.closeOutlets()
	return nil
}

// summary counts what is there. A record that its producer died in was begun but not emitted; once the recorder has
// accounted for it, it counts, also with a later recorder that never meets it.
func (r *Recorder) summary(status digestlog.Status) Summary {
	sum := Summary{
		RunID: r.header.RunID, Dir: string(r.dir), Generation: r.generation, Status: status,
		Emitted: max(r.ring.Produced(), r.next), Stored: r.stats.stored.Load(), Lost: r.stats.lost.Load(), LostStorage: r.stats.lostStorage.Load(),
		Digests: r.stats.digests.Load(), Snapshots: r.stats.snapshots.Load(), Unsaved: r.stats.unsaved.Load(),
	}
	r.addCommitted(&sum)
	return sum
}

// addCommitted says how far the signed heads got.
func (r *Recorder) addCommitted(sum *Summary) {
	sum.Anchor, sum.Witness = r.committedTo(anchorName), r.committedTo(witnessName)
}

// publish shows the live counts to the producer, which reads them for display only.
func (r *Recorder) publish(phase ring.ConsumerPhase) {
	r.ring.Publish(ring.ConsumerState{
		Phase: phase, Position: r.next, Stored: r.stats.stored.Load(), Lost: r.stats.lost.Load(),
		Synced: r.stats.synced.Load(), Snapshots: r.stats.snapshots.Load(), PID: os.Getpid(),
		LostStorage: r.stats.lostStorage.Load(), Fault: syscall.Errno(r.stats.fault.Load()), Held: r.stats.held.Load(), Unsaved: r.stats.unsaved.Load(),
	})
}

// release lets go of files, mapping and lock. What was not synced by then was never acknowledged.
func (r *Recorder) release() {
	r.dropOutlets()
	if r.telemetry != nil {
		r.telemetry.Abort()
		r.telemetry = nil
	}
	if r.log != nil {
		r.log.Abort()
		r.log = nil
	}
	if r.ring != nil {
		r.ring.Close()
	}
	if r.lock != nil {
		r.lock.Close()
		r.lock = nil
	}
}

func (r *Recorder) logger() *slog.Logger { return r.opts.Logger }

func (r *Recorder) fs() vfs.FS { return r.opts.FS }
