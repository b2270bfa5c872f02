package usp

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
)

// State is where a resumed run continues: behind Step, with the sections of the snapshot of that step. A run without a
// usable snapshot starts cold: Step is 0 and there are no sections.
type State struct {
	Step       uint64
	Generation uint32 // the generation that took the snapshot
	Snapshot   string // file name; empty for a cold start
	Sections   []Section
	Rejected   []error // newer snapshots that were not loaded, each a *recorder.RejectedError
}

// Section returns the data of the named section, or nil.
func (s *State) Section(name string) []byte {
	for i := range s.Sections {
		if s.Sections[i].Name == name {
			return s.Sections[i].Data
		}
	}
	return nil
}

// Resume continues a run whose process died or stopped. It first brings the run directory in order: what is still in the
// ring is stored, the interrupted generation is closed. Then it loads the newest snapshot that the digest log vouches
// for and begins a new generation, which the log introduces by a REWIND entry. run is a run id, the path of a run
// directory, or "latest". The schema must be the run's.
//
// A newest snapshot that is encrypted and that Options.Identities cannot read is an error that wraps snapshot.ErrEncrypted
// or snapshot.ErrWrongIdentity; one that is damaged is passed over, see State.Rejected.
func Resume(ctx context.Context, run string, o Options) (*Run, *State, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	if o.Recorder.FS == nil {
		o.Recorder.FS = vfs.OS()
	}
	found, err := rundir.Resolve(o.Recorder.FS, o.Recorder.Runs, run)
	if err != nil {
		return nil, nil, err
	}
	path := string(found)
	o.Recorder.Runs = filepath.Dir(path)
	last, err := recorder.Recover(ctx, path, o.Ring.Dir, o.Recorder)
	if err != nil {
		return nil, nil, err
	}
	if last.Schema != o.Schema.Sum() {
		return nil, nil, fmt.Errorf("usp: run %s was recorded with schema %x, this program has %x (%q)", last.RunID, last.Schema[:4], sumPrefix(o), o.Schema.Name())
	}
	state := &State{}
	snap, err := recorder.NewestSnapshot(o.Recorder.FS, path, func(err error) { state.Rejected = append(state.Rejected, err) }, o.Identities...)
	if err != nil && !errors.Is(err, recorder.ErrNoSnapshot) {
		return nil, nil, err
	}
	resumed := &rundir.Resumed{}
	if err == nil {
		state.Step, state.Generation, state.Snapshot, state.Sections = snap.Meta.Step, snap.Meta.Generation, snap.Name, snap.Sections
		*resumed = rundir.Resumed{Generation: snap.Meta.Generation, Step: snap.Meta.Step, SnapshotSHA256: snap.SHA256}
	}
	r, err := begin(ctx, o, last.RunID, last.Generation+1, resumed)
	if err != nil {
		return nil, nil, err
	}
	return r, state, nil
}

func sumPrefix(o Options) []byte {
	sum := o.Schema.Sum()
	return sum[:4]
}
