// Package usp records a step loop: every step's telemetry, digests and snapshots reach disk through a recorder in a
// process of its own, and the loop never waits for any of it.
//
//	schema, _ := record.NewSchema("train.v1",
//		record.Field{Name: "loss", Class: record.Metric},
//		record.Field{Name: "weights", Class: record.Digest, Len: 8})
//	run, err := usp.Start(ctx, usp.Options{Schema: schema})
//	…
//	for step := uint64(1); step <= n; step++ {
//		…
//		values.SetFloat64(loss, l)
//		run.Emit(step, time, values)         // about 50 ns, no system call, no allocation, no lock
//		if step%100 == 0 {
//			run.Snapshot(step, sections...)  // one copy; dropped and counted if the last ones are still being written
//		}
//	}
//	summary, err := run.Close()
//
// The recorder is another process: the program itself, if its main calls ServeRecorder first, or the usp binary. It is
// restarted when it dies and accounts for what was lost meanwhile; a run whose own process died is continued by Resume.
// What a run leaves is a run directory, which `usp verify` judges and `usp compare` holds against another.
package usp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/environ"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// Section is one named part of a state, as snapshots hold it.
type Section = snapshot.Section

// Summary says what a run amounted to: Stored + Lost = Emitted.
type Summary = recorder.Summary

// Why a snapshot was taken, as its header says.
const (
	ReasonCadence uint32 = 1 // the configured interval
	ReasonFinal   uint32 = 2 // the end of the run
	ReasonEvent   uint32 = 3 // something happened that is worth a snapshot
)

// ErrNoRecorder is returned by Start and Resume when no program could be found to record.
var ErrNoRecorder = errors.New("usp: no recorder: call usp.ServeRecorder at the start of main, put usp in PATH, or set USP_BIN")

// ErrIncomplete is returned by Close when the recorder had not stored everything by the time it was no longer waited for.
// The records wait in the ring; the recorder, or the next Resume, stores them.
var ErrIncomplete = errors.New("usp: the recorder has not finished")

// Options says what to record and how. Schema is required; the zero value of every other field is its default.
type Options struct {
	Schema   *record.Schema
	Recorder recorder.Options // intervals and destinations; Recorder.Runs defaults to $USP_DIR, else "runs"
	Ring     RingOptions
	Producer any // what the manifest says of the producer, as JSON: settings, versions; never secrets or raw data

	// Environment is what the log says of what the producer computes with: versions, flags, devices, whatever can make two runs differ; keys
	// as in doc/format/environment.md. It is added to what this program finds out about itself.
	Environment map[string]string

	Command      []string      // recorder command; default: this program if it serves, $USP_BIN, or usp in PATH, with "record --options-on-stdin"
	Outside      bool          // a recorder is started by someone else: only create the ring
	DrainTimeout time.Duration // how long Close waits for a recorder that makes no progress; default 5 s

	// Identities are the age secret keys with which Resume reads encrypted snapshots; see snapshot.ReadIdentities. The
	// public keys they are encrypted to are in Recorder.Snapshot.Recipients.
	Identities []age.Identity

	Stderr io.Writer    // of the recorder process; default os.Stderr
	Logger *slog.Logger // of this side; default discards
	Now    func() time.Time
	Rand   io.Reader
}

// RingOptions sizes the shared memory between the loop and the recorder.
type RingOptions struct {
	Dir             string // default ring.DefaultDir()
	Slots           int    // records the ring holds, a power of two; default 65536
	StagingAreas    int    // snapshots that can be in flight; default 4
	StagingCapacity int64  // largest state in bytes; default 1 MiB
}

func (o Options) withDefaults() (Options, error) {
	if o.Schema == nil {
		return o, errors.New("usp: Options.Schema is missing")
	}
	if o.Recorder.Runs == "" {
		o.Recorder.Runs = os.Getenv("USP_DIR")
	}
	if o.Recorder.Runs == "" {
		o.Recorder.Runs = "runs"
	}
	if o.Ring.Slots <= 0 {
		o.Ring.Slots = 1 << 16
	}
	if o.Ring.StagingAreas <= 0 {
		o.Ring.StagingAreas = 4
	}
	if o.Ring.StagingCapacity <= 0 {
		o.Ring.StagingCapacity = 1 << 20
	}
	if o.DrainTimeout <= 0 {
		o.DrainTimeout = 5 * time.Second
	}
	o.DrainTimeout += o.Recorder.CommitWait()
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = randReader()
	}
	return o, nil
}

// Run is one generation of one run, seen from its producer. Emit and Snapshot belong to one goroutine, the step loop's.
type Run struct {
	id         string
	generation uint32
	dir        string
	opts       Options
	ring       *ring.Producer
	recorder   *supervisor // nil when the recorder is somebody else's
}

// Start begins a new run: it creates the ring and starts a recorder, and returns when the recorder has the run directory
// open, so that a full disk or a missing right is an error here and not a loss later.
func Start(ctx context.Context, o Options) (*Run, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	id, err := rundir.NewID(o.Now(), o.Rand)
	if err != nil {
		return nil, err
	}
	return begin(ctx, o, id, 0, nil)
}

// begin creates the ring of a generation and sees that something records it.
func begin(ctx context.Context, o Options, id string, generation uint32, resumed *rundir.Resumed) (*Run, error) {
	command, err := o.command()
	if err != nil {
		return nil, err
	}
	dir := o.Ring.Dir
	if dir == "" {
		dir, _ = ring.DefaultDir()
	}
	environment := environ.Collect()
	maps.Copy(environment, o.Environment)
	meta, err := json.Marshal(recorder.RingMeta{Producer: o.Producer, Resumed: resumed, Environment: environment})
	if err != nil {
		return nil, fmt.Errorf("usp: Options.Producer: %w", err)
	}
	if err := ring.PrepareDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, rundir.RingName(id))
	p, err := ring.Create(ring.Config{
		Path: path, RunID: id, Generation: generation, Schema: o.Schema.Text(), Meta: meta,
		PayloadLen: 8 * o.Schema.Words(), Slots: o.Ring.Slots,
		StagingAreas: o.Ring.StagingAreas, StagingCapacity: o.Ring.StagingCapacity, Now: o.Now,
	})
	if err != nil {
		return nil, err
	}
	r := &Run{id: id, generation: generation, opts: o, ring: p, dir: filepath.Join(o.Recorder.Runs, id)}
	if o.Outside {
		return r, nil
	}
	r.recorder = newSupervisor(command, path, o, p)
	if err := r.recorder.start(ctx); err != nil {
		return nil, errors.Join(err, discard(p, path))
	}
	return r, nil
}

// ID returns the run's id.
func (r *Run) ID() string { return r.id }

// Dir returns the run directory.
func (r *Run) Dir() string { return r.dir }

// Generation returns how often the run has been resumed.
func (r *Run) Generation() uint32 { return r.generation }

// Emit hands one step's record to the recorder. step must be greater than the last one; time is the input's, in Unix
// nanoseconds. It copies the values and returns: it makes no system call, takes no lock, allocates nothing and waits for
// nobody. If the recorder is more than a ring behind, the oldest record is overwritten, and counted as lost.
func (r *Run) Emit(step uint64, time int64, v *record.Values) {
	if n := r.ring.Position(); n >= timedFirst && n%timedEvery != 0 {
		r.ring.Emit(v.Payload(step, time))
		return
	}
	began := r.opts.Now()
	r.ring.Emit(v.Payload(step, time))
	r.ring.Took(r.opts.Now().Sub(began))
}

// Which records are timed, for whoever looks at the run: all of a slow loop's first minutes, and of a fast one so few that
// neither the mean nor the 99th percentile of its steps shows the two looks at the clock.
const (
	timedFirst = 1024
	timedEvery = 256
)

// Snapshot hands the state after the given step to the recorder, in one copy, and reports whether it was taken: false
// means that the recorder is still busy with the last ones, or the state is larger than a staging area. Sections may be
// reused on return.
func (r *Run) Snapshot(step uint64, reason uint32, sections ...Section) bool {
	return r.ring.Stage(step, reason, snapshot.SectionsSize(sections), func(dst []byte) {
		snapshot.AppendSections(dst[:0], sections)
	})
}

// SnapshotLast is Snapshot for a loop that has ended: it waits for a free staging area as long as the recorder makes
// progress, at most Options.DrainTimeout without any.
func (r *Run) SnapshotLast(step uint64, sections ...Section) bool {
	patience := newPatience(r)
	for !r.ring.CanStage() && patience.left() {
		time.Sleep(pollInterval)
	}
	return r.Snapshot(step, ReasonFinal, sections...)
}

// Live returns what the recorder has done so far. Its fields may be of slightly different moments.
func (r *Run) Live() ring.ConsumerState { return r.ring.Consumer() }

// Emitted returns the number of records emitted in this generation.
func (r *Run) Emitted() uint64 { return r.ring.Position() }

// Close ends the run and waits until the recorder has stored everything and closed the run directory. It does not wait
// for a recorder that makes no progress: then, after Options.DrainTimeout, the error wraps ErrIncomplete and the summary
// holds what is known. It is called once, by the goroutine that emitted.
func (r *Run) Close() (Summary, error) { return r.end(true) }

// Fail is Close for a loop that could not go on: the end of the run is recorded as failed.
func (r *Run) Fail() (Summary, error) { return r.end(false) }

func (r *Run) end(clean bool) (Summary, error) {
	if err := r.ring.Finish(clean); err != nil {
		return Summary{}, err
	}
	sum, err := r.wait()
	return sum, errors.Join(err, r.ring.Close(clean))
}

// discard removes the ring of a run that could not begin.
func discard(p *ring.Producer, path string) error {
	if err := p.Close(false); err != nil {
		return err
	}
	c, err := ring.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(c.Remove(), c.Close())
}
