package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

var (
	// ErrRunning is wrapped by Recover's error when the run's producer is alive.
	ErrRunning = errors.New("the run is still running")
	// ErrNotEnded is wrapped by Prune's error when the run was not closed.
	ErrNotEnded = errors.New("the run has not ended")
	// ErrNoSnapshot is returned by NewestSnapshot when no snapshot can be loaded: a resume starts cold.
	ErrNoSnapshot = errors.New("the run has no snapshot that can be loaded")
)

// lockPatience is how long Recover waits for a recorder that is still storing the end of a dead producer.
const lockPatience = 10 * time.Second

// Last says what Recover found to be the last generation of a run.
type Last struct {
	RunID      string
	Generation uint32
	Schema     [32]byte
	Status     digestlog.Status
}

// Recover brings a run whose producer died into order, so that a new generation can begin: what is left in a ring is
// stored, telemetry is repaired and sealed, the interrupted generation gets its END entry, the log is closed. A run that
// ended well is left as it is. ringDir is where its ring would be; empty means the default. Errors: ErrRunning, vfs.ErrLocked.
func Recover(ctx context.Context, dir, ringDir string, o Options) (Last, error) {
	o = o.withDefaults()
	o.Runs = filepath.Dir(dir)
	id := filepath.Base(dir)
	if ringDir == "" {
		ringDir, _ = ring.DefaultDir()
	}
	if m, _, err := rundir.ReadManifest(o.FS, rundir.At(dir), 0); err != nil {
		return Last{}, err
	} else if m.RunID != id {
		return Last{}, fmt.Errorf("%s holds run %s: a run directory must have the run's name to be continued; rename it", dir, m.RunID)
	}
	if err := drainLeftRing(ctx, filepath.Join(ringDir, rundir.RingName(id)), o); err != nil {
		return Last{}, err
	}
	h, err := readHistory(o.FS, rundir.Dir(dir))
	if err != nil {
		return Last{}, err
	}
	n, g := h.last()
	if g == nil {
		return Last{}, fmt.Errorf("run %s: its log is empty: nothing was recorded, start a new run", id)
	}
	if g, err = closeLeft(id, n, o); err != nil {
		return Last{}, err
	}
	return Last{RunID: id, Generation: n, Schema: g.schema, Status: g.end.Status}, nil
}

// drainLeftRing records what a dead producer of this run left in memory.
func drainLeftRing(ctx context.Context, path string, o Options) error {
	r, err := attachPatiently(ctx, path, o)
	var finished *FinishedError
	switch {
	case errors.Is(err, ring.ErrCorrupt), errors.Is(err, ring.ErrNotRing), errors.Is(err, ring.ErrDigest), errors.Is(err, ring.ErrTruncated):
		return setAside(path, err, o)
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &finished): // its recorder has just finished it
		return nil
	case err != nil:
		return err
	}
	_, err = r.Run(ctx)
	return err
}

// setAside renames what stands in the place of a ring and cannot be read as one, unless somebody holds it: what was in it
// is gone, and must not keep the run from being continued.
func setAside(path string, why error, o Options) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%w: somebody holds its ring, which cannot be read: %w", ErrRunning, why)
	}
	o.Logger.Error("the run's ring cannot be read and was set aside; what was in it is lost", "ring", path+brokenSuffix, "err", why)
	return os.Rename(path, path+brokenSuffix)
}

// brokenSuffix marks a ring that could not be read.
const brokenSuffix = ".broken"

// attachPatiently attaches to the ring of a dead producer; the recorder that served it may need a moment to finish.
func attachPatiently(ctx context.Context, path string, o Options) (*Recorder, error) {
	deadline := o.Now().Add(lockPatience)
	for {
		if err := refuseAlive(path); err != nil {
			return nil, err
		}
		r, err := Attach(path, o)
		if !errors.Is(err, vfs.ErrLocked) || o.Now().After(deadline) {
			return r, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func refuseAlive(path string) error {
	c, err := ring.Open(path)
	if err != nil {
		return err
	}
	defer c.Close()
	alive, err := c.ProducerAlive()
	if err == nil && alive {
		err = fmt.Errorf("%w: its producer is alive (process %d)", ErrRunning, c.Header().PID)
	}
	return err
}

// closeLeft brings a run without a ring to its end. If the generation has none in the log, the ring is gone with whatever
// was in it: after a restart of the machine, say.
func closeLeft(id string, n uint32, o Options) (*generation, error) {
	r := &Recorder{opts: o, generation: n, dir: rundir.Dir(filepath.Join(o.Runs, id)), header: ring.Header{RunID: id, Generation: n}}
	defer r.release()
	var err error
	if r.lock, err = takeLock(r.fs(), string(r.dir)); err != nil {
		return nil, err
	}
	h, err := r.openLog()
	if err != nil {
		return nil, err
	}
	if err := r.tidy(h); err != nil {
		return nil, err
	}
	if err := r.removeReserve(); err != nil {
		return nil, err
	}
	g := h.generation(n)
	if g.end != nil {
		if rec := r.log.Recovery(); rec.File == "" && rec.Head != nil && rec.Head.Size == rec.Entries {
			r.commitHead(rec.Head) // its log is closed as well; the other places may not know
			r.closeOutlets()
			return &g, nil
		}
		return &g, r.closeLog()
	}
	if err := r.repairTelemetry(h); err != nil {
		return nil, err
	}
	t, err := r.readTail(g, r.promised(&g.open))
	if err != nil {
		return nil, err
	}
	entries := t.unlogged
	if t.undigested < t.next() {
		entries = append(entries, missingEntry(n, t.undigested, t.next()))
	}
	entries = append(entries, digestlog.Entry{
		Kind: digestlog.KindEnd, Generation: n, Seq: t.next(), Status: digestlog.StatusCrashed, Stored: t.stored, Lost: t.lost,
	})
	for i := range entries {
		if err := r.append(&entries[i]); err != nil {
			return nil, err
		}
	}
	g.end = &entries[len(entries)-1]
	return &g, r.closeLog()
}

// Found is a snapshot that was verified and loaded.
type Found struct {
	Name     string
	SHA256   [32]byte
	Meta     snapshot.Meta
	Sections []snapshot.Section
}

// RejectedError says which snapshot was not loaded, and why.
type RejectedError struct {
	Name       string // of its file
	Step       uint64
	Generation uint32
	Err        error
}

// Error names the snapshot by its step.
func (e *RejectedError) Error() string {
	return fmt.Sprintf("snapshot of step %d not loaded: %v", e.Step, e.Err)
}

// Unwrap returns the reason.
func (e *RejectedError) Unwrap() error { return e.Err }

// NewestSnapshot loads the newest snapshot on the effective timeline of the run directory that its own checksums and
// the digest log both vouch for; identities are the age secret keys to try on one that is encrypted. Every newer one that
// does not pass is passed to rejected, as a *RejectedError, and never loaded. With none left the error is ErrNoSnapshot.
//
// An intact snapshot for which the key is missing or wrong is not passed over, because that would throw away what was
// computed since the one before it: the error then wraps snapshot.ErrEncrypted or snapshot.ErrWrongIdentity.
func NewestSnapshot(fsys vfs.FS, dir string, rejected func(error), identities ...age.Identity) (*Found, error) {
	var sections []snapshot.Section
	found, err := FindSnapshot(fsys, dir, nil, rejected, func(path string, want *[32]byte) (meta snapshot.Meta, err error) {
		meta, sections, err = snapshot.LoadWith(fsysOr(fsys), path, want, snapshot.LoadOptions{Identities: identities})
		return meta, err
	})
	if err != nil {
		return nil, err
	}
	found.Sections = sections
	return found, nil
}

// FindSnapshot is NewestSnapshot for who reads the file in another way: load is called for one snapshot after the other, the
// newest first, with the SHA-256 that the file must have, until it returns one. With a step, only that step's come into
// question. Found.Sections is not set.
func FindSnapshot(fsys vfs.FS, dir string, step *uint64, rejected func(error), load func(path string, want *[32]byte) (snapshot.Meta, error)) (*Found, error) {
	fsys = fsysOr(fsys)
	h, err := readHistory(fsys, rundir.Dir(dir))
	if err != nil {
		return nil, err
	}
	for _, e := range h.effective() {
		if step != nil && e.Step != *step {
			continue
		}
		path := rundir.Dir(dir).Snapshot(e.Name)
		meta, err := load(path, &e.SHA256)
		if errors.Is(err, snapshot.ErrEncrypted) || errors.Is(err, snapshot.ErrWrongIdentity) {
			_, damage := snapshot.Verify(fsys, path, &e.SHA256)
			if damage == nil {
				return nil, err
			}
			err = damage
		}
		if err == nil && (meta.Step != e.Step || meta.Generation != e.Generation || meta.RunID != filepath.Base(dir)) {
			err = fmt.Errorf("%s: holds step %d of generation %d of run %s, the log says step %d of generation %d", path, meta.Step, meta.Generation, meta.RunID, e.Step, e.Generation)
		}
		if err != nil {
			rejected(&RejectedError{Name: e.Name, Step: e.Step, Generation: e.Generation, Err: err})
			continue
		}
		return &Found{Name: e.Name, SHA256: e.SHA256, Meta: meta}, nil
	}
	return nil, ErrNoSnapshot
}

func fsysOr(fsys vfs.FS) vfs.FS {
	if fsys == nil {
		return vfs.OS()
	}
	return fsys
}
