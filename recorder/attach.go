package recorder

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/environ"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// RingMeta is the JSON in a ring's header that is meant for the recorder. A producer in another language may leave
// everything out.
type RingMeta struct {
	Producer any             `json:"producer,omitempty"` // copied into the manifest
	Resumed  *rundir.Resumed `json:"resumed,omitempty"`  // where a generation after the first continues

	// Environment is what the producer computes with, for the log's OPEN entry: keys and values as in doc/format/environment.md. What
	// does not fit there is left out.
	Environment map[string]string `json:"environment,omitempty"`
}

// openDirectory brings the run directory into a state in which the generation can be written: created, locked, tidied, its
// log open, the generation begun or taken up where an earlier recorder left it.
func (r *Recorder) openDirectory() error {
	fsys := r.fs()
	_, err := fsys.Stat(string(r.dir))
	made := errors.Is(err, fs.ErrNotExist)
	for _, dir := range []string{string(r.dir), r.dir.Telemetry(), r.dir.Snapshots()} {
		if err := vfs.MkdirAll(fsys, dir, 0o755); err != nil {
			return err
		}
	}
	if r.lock, err = takeLock(fsys, string(r.dir)); err != nil {
		return err
	}
	if made { // and no other recorder has begun the run, let alone ended it, while this one waited for the lock
		_, err := fsys.Stat(r.dir.Digests())
		r.fresh = errors.Is(err, fs.ErrNotExist)
	}
	h, err := r.openLog()
	if err != nil {
		return err
	}
	if err := r.tidy(h); err != nil {
		return err
	}
	g := h.generation(r.generation)
	r.stats.digests.Store(g.digests)
	r.stats.snapshots.Store(g.snapshots)
	r.saved = g.saved
	switch {
	case g.end != nil:
		return r.finishAgain(g.end)
	case g.opened:
		err = r.takeUp(h, g)
	default:
		err = r.beginGeneration(h)
	}
	if err != nil {
		return err
	}
	r.makeReserve()
	return r.keep(h)
}

// discard removes the run directory that this Attach made and could not finish: nothing was recorded in it.
func (r *Recorder) discard() error {
	if r.log != nil {
		r.log.Abort()
		r.log = nil
	}
	if r.telemetry != nil {
		r.telemetry.Abort()
		r.telemetry = nil
	}
	// In an order in which what a crash leaves of it is still a run that was just begun: the head goes before the log that
	// it covers, the log before the files that it vouches for.
	err := r.fs().Remove(r.dir.Head())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range []string{r.dir.Digests(), r.dir.Telemetry(), r.dir.Snapshots(), string(r.dir)} {
		if err := r.fs().SyncDir(string(r.dir)); err != nil {
			return err
		}
		if err := r.removeAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a directory and the files in it.
func (r *Recorder) removeAll(dir string) error {
	entries, err := r.fs().ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if r.opts.AppendOnly {
			_ = vfs.SetAppendOnly(r.fs(), name, false) // if that fails, so does what follows
		}
		if err := r.fs().Remove(name); err != nil {
			return err
		}
	}
	return r.fs().Remove(dir)
}

// takeLock takes a run's lock. A command that looks whether the run is being recorded holds it for an instant, so one
// refusal means nothing.
func takeLock(fsys vfs.FS, dir string) (io.Closer, error) {
	for range 20 {
		lock, err := fsys.Lock(dir)
		if !errors.Is(err, vfs.ErrLocked) {
			return lock, err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("run %s: %w: another recorder has it", filepath.Base(dir), vfs.ErrLocked)
}

// openLog opens the digest log for writing and returns what it says.
func (r *Recorder) openLog() (*history, error) {
	keyFile, err := r.opts.SigningKeyFile()
	if err != nil {
		return nil, err
	}
	signer, verifierKey, err := digestlog.LoadOrCreateKey(r.fs(), keyFile, r.opts.Rand)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	r.verifierKey = verifierKey
	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	r.tidyAnchor()
	kept, err := r.openAnchor(note.VerifierList(verifier))
	if err == nil {
		err = r.openWitness(note.VerifierList(verifier))
	}
	if err != nil {
		return nil, err
	}
	if r.log, err = digestlog.Open(r.dir.Digests(), digestlog.Options{
		FS: r.fs(), RunID: r.header.RunID, Signer: signer, Verifiers: note.VerifierList(verifier), Kept: kept,
		HeadPath: r.dir.Head(), AppendOnly: r.opts.AppendOnly, SegmentSize: r.opts.SegmentSize, MinSegment: r.opts.minSegment(), Reserve: r.opts.logReserve(), Now: r.opts.Now,
	}); err != nil {
		return nil, explainKept(fmt.Errorf("open the digest log: %w", err))
	}
	if rec := r.log.Recovery(); rec.Torn && rec.Entries > 0 {
		if _, err := r.log.Append(&digestlog.Entry{
			Kind: digestlog.KindEvent, Generation: r.generation, Code: digestlog.EventRecovered,
			Text: digestlog.CleanText(fmt.Sprintf("unacknowledged bytes from %d on were cut from digests/%s", rec.Offset, filepath.Base(rec.File))),
		}); err != nil {
			return nil, fmt.Errorf("log the recovery: %w", err)
		}
	}
	return readHistory(r.fs(), r.dir)
}

// tidy removes what a killed recorder can leave behind: temporary files, snapshots whose removal was logged but not
// done. A snapshot that was never logged is set aside under another name: the log does not vouch for it.
func (r *Recorder) tidy(h *history) error {
	for _, dir := range []string{string(r.dir), r.dir.Telemetry(), r.dir.Digests(), r.dir.Snapshots()} {
		if _, err := vfs.RemoveTemps(r.fs(), dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.tidySnapshots(h)
}

// tidySnapshots finishes removals that were logged, and sets aside what was not logged.
func (r *Recorder) tidySnapshots(h *history) error {
	entries, err := r.fs().ReadDir(r.dir.Snapshots())
	if err != nil {
		return err
	}
	for _, e := range entries {
		_, _, ok := snapshot.ParseFileName(e.Name())
		if _, live := h.snapshots[e.Name()]; !ok || live {
			continue
		}
		path := r.dir.Snapshot(e.Name())
		if h.pruned[e.Name()] {
			err = r.fs().Remove(path)
		} else {
			r.logger().Warn("snapshot was never logged; set aside", "file", path+rundir.OrphanSuffix)
			err = r.fs().Rename(path, path+rundir.OrphanSuffix)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keep lists the snapshots that retention is about: those on the effective timeline that are there. They were verified
// when they were written; their digests are the log's. What lies on an abandoned timeline was rejected by a resume; it
// stays as evidence, with all that it refers to, and must not count as newer than what the run goes on from.
func (r *Recorder) keep(h *history) error {
	infos, err := snapshot.List(r.fs(), r.dir.Snapshots())
	if err != nil {
		return err
	}
	sums := map[string][32]byte{}
	for _, e := range h.effective() {
		sums[e.Name] = e.SHA256
	}
	for _, info := range infos {
		if sum, ok := sums[info.Name]; ok {
			info.SHA256, info.Verified = sum, info.Err == nil
		} else if info.Err == nil {
			info.Err = errAbandoned
		}
		r.kept = append(r.kept, info)
	}
	return nil
}

var errAbandoned = errors.New("on an abandoned timeline")

// beginGeneration writes the manifest, the OPEN entry and, behind a resume, the REWIND entry.
func (r *Recorder) beginGeneration(h *history) error {
	if n := r.generation; n > 0 && h.generation(n-1).end == nil {
		return fmt.Errorf("generation %d cannot begin: generation %d has no end in the log; a resume ends it first (usp run --resume, usp.Resume)", n, n-1)
	}
	meta, producer, err := r.ringMeta()
	if err != nil {
		return err
	}
	if err := h.checkResumed(meta.Resumed); err != nil {
		return fmt.Errorf("ring %s: %w", r.ring.Path(), err)
	}
	// A manifest that no entry names is left over from a recorder killed between the two.
	if err := r.fs().Remove(r.dir.Manifest(r.generation)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sum, err := rundir.WriteManifest(r.fs(), r.dir, r.manifest(meta, producer))
	if err != nil {
		return err
	}
	entries := []digestlog.Entry{{
		Kind: digestlog.KindOpen, Generation: r.generation, Manifest: sum, Schema: r.schema.Sum(), Resumed: meta.Resumed != nil,
		Ext: r.openExt(meta.Environment),
	}}
	if to := meta.Resumed; to != nil {
		entries = append(entries, digestlog.Entry{
			Kind: digestlog.KindRewind, Generation: r.generation, Step: to.Step, Target: to.Step, FromGeneration: to.Generation, SHA256: to.SnapshotSHA256,
		})
	}
	for i := range entries {
		if _, err := r.log.Append(&entries[i]); err != nil {
			return err
		}
		if err := h.add(&entries[i]); err != nil {
			return err
		}
	}
	if err := r.repairTelemetry(h); err != nil {
		return err
	}
	if err := r.log.Sync(); err != nil {
		return err
	}
	if err := r.signHead(); err != nil {
		return err
	}
	r.headAt = r.opts.Now()
	if r.generation == 0 {
		if err := rundir.SetLatest(r.fs(), r.opts.Runs, r.header.RunID); err != nil {
			r.logger().Warn("the latest link was not set", "err", err)
		}
	}
	return r.beginSegment(r.telemetryNext)
}

// openExt is what the OPEN entry holds for one who has nothing but the log: what its entries are about, and what they were computed with.
func (r *Recorder) openExt(environment map[string]string) []byte {
	ext := digestlog.AppendBlock(nil, digestlog.TagPlan, r.steps.plan.Text())
	clean, dropped := environ.Clean(environment)
	if len(dropped) > 0 {
		r.logger().Warn("parts of the producer's environment are not logged", "keys", dropped)
	}
	text, err := environ.Encode(clean)
	if err != nil {
		panic("recorder: a clean environment is none: " + err.Error())
	}
	if len(text) > 0 {
		ext = digestlog.AppendBlock(ext, digestlog.TagEnvironment, text)
	}
	return ext
}

func (r *Recorder) ringMeta() (meta RingMeta, producer json.RawMessage, err error) {
	if len(r.header.Meta) == 0 {
		return meta, nil, nil
	}
	raw := struct {
		Producer    json.RawMessage   `json:"producer"`
		Resumed     *rundir.Resumed   `json:"resumed"`
		Environment map[string]string `json:"environment"`
	}{}
	if err := json.Unmarshal(r.header.Meta, &raw); err != nil {
		return meta, nil, fmt.Errorf("ring %s: its meta is not the JSON object it should be: %w", r.ring.Path(), err)
	}
	if raw.Resumed != nil && r.generation == 0 {
		return meta, nil, fmt.Errorf("ring %s: generation 0 cannot be resumed", r.ring.Path())
	}
	return RingMeta{Resumed: raw.Resumed, Environment: raw.Environment}, raw.Producer, nil
}

func (r *Recorder) manifest(meta RingMeta, producer json.RawMessage) rundir.Manifest {
	host, _ := os.Hostname()
	m := rundir.Manifest{
		RunID: r.header.RunID, Generation: r.generation, Created: r.opts.Now(),
		Host: rundir.Host{Name: host, OS: runtime.GOOS, Arch: runtime.GOARCH, CPU: cpuModel(), CPUs: runtime.NumCPU()},
		Go:   runtime.Version(), USP: r.opts.Version, Schema: string(r.schema.Text()), DigestEvery: r.steps.interval,
		Ring:     rundir.Ring{Name: filepath.Base(r.ring.Path()), Slots: r.header.Slots, SlotSize: r.header.SlotSize},
		Producer: producer, Signer: r.verifierKey, Resumed: meta.Resumed,
	}
	if b, err := hex.DecodeString(r.opts.ConfigSum); err == nil && len(b) == len(m.ConfigSHA256) {
		copy(m.ConfigSHA256[:], b)
	}
	return m
}

// finishAgain completes a close that was cut off behind its END entry: the head is signed and the ring removed.
func (r *Recorder) finishAgain(end *digestlog.Entry) error {
	r.next = end.Seq
	r.stats.stored.Store(end.Stored)
	r.stats.lost.Store(end.Lost)
	r.stats.synced.Store(end.Seq)
	if err := r.removeReserve(); err != nil {
		return err
	}
	if err := r.closeLog(); err != nil {
		return err
	}
	if err := r.dismissRing(); err != nil {
		return err
	}
	sum := r.summary(end.Status)
	sum.Emitted = end.Emitted
	return &FinishedError{sum}
}
