package recorder

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// Progress is how far the log of a run says it got.
type Progress struct {
	Generation uint32
	Step       uint64           // newest step with a digest or a snapshot on the effective timeline
	Status     digestlog.Status // how the newest generation ended; 0 if it has not
	Lost       uint64           // records that could not be stored, over all generations
}

// LastStep reads the log of a run directory. A run without entries is at step 0.
func LastStep(fsys vfs.FS, dir string) (Progress, error) {
	h, err := readHistory(fsys, rundir.Dir(dir))
	if err != nil {
		return Progress{}, err
	}
	n, g := h.last()
	if g == nil {
		return Progress{}, nil
	}
	p := Progress{Generation: n, Step: g.lastStep, Lost: h.lost}
	if g.rewind != nil {
		p.Step = max(p.Step, g.rewind.Target)
	}
	if g.end != nil {
		p.Status = g.end.Status
	}
	return p, nil
}

// LoggedSnapshots returns the SHA-256 of every snapshot that the log of a run directory vouches for, by file name.
func LoggedSnapshots(fsys vfs.FS, dir string) (map[string][32]byte, error) {
	h, err := readHistory(fsys, rundir.Dir(dir))
	if err != nil {
		return nil, err
	}
	sums := make(map[string][32]byte, len(h.snapshots))
	for name, e := range h.snapshots {
		sums[name] = e.SHA256
	}
	return sums, nil
}

// Prune removes the snapshots that retention gives up, of a run that has ended, as its recorder would: logged first. It
// also finishes removals that were logged and cut off. The two newest that verify now, every byte, stay. With dry it only says which it would remove. It returns their names.
func Prune(dir string, o Options, dry bool) ([]string, error) {
	o = o.withDefaults()
	o.Runs = filepath.Dir(dir)
	id := filepath.Base(dir)
	r := &Recorder{opts: o, dir: rundir.Dir(dir), header: ring.Header{RunID: id}}
	defer r.release()
	var err error
	if r.lock, err = takeLock(r.fs(), dir); err != nil {
		return nil, err
	}
	h, err := readHistory(r.fs(), r.dir)
	if err != nil {
		return nil, err
	}
	n, g := h.last()
	if g == nil || g.end == nil {
		return nil, fmt.Errorf("run %s: %w: its recorder prunes", id, ErrNotEnded)
	}
	r.generation = n
	if err := r.keep(h); err != nil {
		return nil, err
	}
	r.verifyNewest()
	plan := snapshot.Plan(r.kept, o.Snapshot.Retention, o.Now())
	names := make([]string, len(plan))
	for i := range plan {
		names[i] = plan[i].Name
	}
	if dry {
		return names, nil
	}
	if err := r.tidy(h); err != nil {
		return nil, err
	}
	if len(plan) == 0 {
		return names, nil
	}
	if _, err := r.openLog(); err != nil {
		return nil, err
	}
	for i := range plan {
		if _, err := r.log.Append(r.pruneEntry(&plan[i])); err != nil {
			return nil, err
		}
	}
	if err := r.closeLog(); err != nil {
		return nil, err
	}
	for i := range plan {
		if err := r.unlink(&plan[i]); err != nil {
			return names, err
		}
	}
	return names, nil
}

// verifyNewest reads the newest snapshots until two are intact. A damaged one stays, as evidence, and holds no other's place.
func (r *Recorder) verifyNewest() {
	for i, intact := len(r.kept)-1, 0; i >= 0 && intact < 2; i-- {
		k := &r.kept[i]
		if _, k.Err = snapshot.Verify(r.fs(), r.dir.Snapshot(k.Name), &k.SHA256); k.Err == nil {
			intact++
		}
		k.Verified = k.Err == nil
	}
}

// Logged is a snapshot that the log vouches for.
type Logged struct {
	Name       string
	Step       uint64
	Generation uint32
	SHA256     [32]byte
}

// EffectiveSnapshots returns the snapshots of a run directory that lie on its effective timeline, oldest first.
func EffectiveSnapshots(fsys vfs.FS, dir string) ([]Logged, error) {
	h, err := readHistory(fsys, rundir.At(dir))
	if err != nil {
		return nil, err
	}
	var out []Logged
	for _, e := range h.effective() {
		out = append(out, Logged{Name: e.Name, Step: e.Step, Generation: e.Generation, SHA256: e.SHA256})
	}
	slices.Reverse(out)
	return out, nil
}
