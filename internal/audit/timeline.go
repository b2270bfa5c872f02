package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"path/filepath"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// Timeline is a run as if it had never been interrupted: of each step the newest
// generation that has it. It holds no file open and grows with generations only.
type Timeline struct {
	RunID     string
	Dir       rundir.Dir
	Manifests []*rundir.Manifest // of the opened generations, ascending

	fsys    vfs.FS
	schemas map[uint32]*record.Schema
	limits  map[uint32]uint64 // steps from here on were overridden by a later generation
}

// Open reads the manifests of a run and where its generations begin. It does not
// verify anything; see Verify. A directory without a readable manifest is an error.
func Open(fsys vfs.FS, dir string) (*Timeline, error) {
	t := &Timeline{Dir: rundir.At(dir), fsys: fsys, schemas: map[uint32]*record.Schema{}, limits: map[uint32]uint64{}}
	last, err := rundir.LastGeneration(fsys, t.Dir)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", dir, err)
	}
	for g := range last + 1 {
		m, _, err := rundir.ReadManifest(fsys, t.Dir, g)
		if g > 0 && errors.Is(err, fs.ErrNotExist) {
			continue // the generation never got as far
		}
		if err != nil {
			return nil, err
		}
		t.Manifests = append(t.Manifests, m)
		if t.schemas[g], err = m.ParsedSchema(); err != nil {
			return nil, err
		}
	}
	t.RunID = t.Manifests[0].RunID
	if len(t.Manifests) > 1 {
		return t, t.readRewinds()
	}
	return t, nil
}

// Schema is the schema of a generation's records, nil if it was never opened.
func (t *Timeline) Schema(generation uint32) *record.Schema { return t.schemas[generation] }

// readRewinds finds out which generations were opened and what they override.
func (t *Timeline) readRewinds() error {
	opened := map[uint32]bool{}
	begins := map[uint32]uint64{} // first step of a generation
	for it, err := range entries(t.fsys, t.Dir) {
		if err := passable(err); err != nil {
			return err
		}
		switch e := &it.Entry; e.Kind {
		case digestlog.KindOpen:
			opened[e.Generation] = true
		case digestlog.KindRewind:
			switch {
			case cold(e):
				begins[e.Generation] = 0
			case e.Target == math.MaxUint64:
				begins[e.Generation] = e.Target
			default:
				begins[e.Generation] = e.Target + 1
			}
		}
	}
	t.Manifests = slices.DeleteFunc(t.Manifests, func(m *rundir.Manifest) bool { return m.Generation > 0 && !opened[m.Generation] })
	limit := uint64(math.MaxUint64)
	for _, m := range slices.Backward(t.Manifests) {
		g := m.Generation
		t.limits[g] = limit
		if g == 0 {
			break
		}
		begin, rewound := begins[g]
		if !rewound { // a cold start overrides from its first step on
			var err error
			if begin, err = t.firstStep(g); err != nil {
				return err
			}
		}
		limit = min(limit, begin)
	}
	return nil
}

// firstStep is the first step stored in a generation, or the largest number.
// A generation begins with a segment of its own.
func (t *Timeline) firstStep(generation uint32) (uint64, error) {
	infos, err := segment.List(t.fsys, t.Dir.Telemetry())
	if err != nil {
		return 0, err
	}
	for _, info := range infos {
		step, ok, err := t.firstOf(info.Path, generation)
		if err != nil || ok {
			return step, err
		}
	}
	return math.MaxUint64, nil
}

func (t *Timeline) firstOf(path string, generation uint32) (step uint64, ok bool, err error) {
	r, err := segment.Open(t.fsys, path)
	if err != nil {
		return 0, false, err
	}
	defer r.Close()
	var f record.Frame
	for {
		b, _, err := r.Next()
		var corrupt *segment.CorruptError
		switch {
		case errors.As(err, &corrupt):
			continue
		case err != nil: // the end, or a torn one
			return 0, false, nil
		}
		if err := record.DecodeFrame(b, &f); err != nil {
			return 0, false, err
		}
		if f.Generation != generation {
			return 0, false, nil
		}
		if f.Kind == record.KindRecord {
			return f.Step(), true, nil
		}
	}
}

// entries are those of a run's log; a log that was not made yet has none.
func entries(fsys vfs.FS, dir rundir.Dir) iter.Seq2[digestlog.Item, error] {
	if _, err := fsys.Stat(dir.Digests()); errors.Is(err, fs.ErrNotExist) {
		return func(func(digestlog.Item, error) bool) {}
	}
	return digestlog.Entries(fsys, dir.Digests())
}

// passable is nil for what a reader of an unfinished log goes past.
func passable(err error) error {
	var f *digestlog.Fault
	if errors.As(err, &f) && f.Benign() {
		return nil
	}
	return err
}

// counts says whether a step of a generation is on the timeline.
func (t *Timeline) counts(generation uint32, step uint64) bool {
	limit, ok := t.limits[generation]
	return t.schemas[generation] != nil && (!ok || step < limit || limit == math.MaxUint64)
}

// Superseded says whether a later generation overrides a step of an earlier one:
// it began again at that step or before, whether or not it got as far.
func (t *Timeline) Superseded(generation uint32, step uint64) bool {
	limit, ok := t.limits[generation]
	return ok && limit != math.MaxUint64 && step >= limit
}

// Begin is the step behind which a generation continues; 0 if it starts fresh.
func (t *Timeline) Begin(generation uint32) uint64 {
	for _, m := range t.Manifests {
		if m.Generation == generation && m.Resumed != nil {
			return m.Resumed.Step
		}
	}
	return 0
}

// Record is one stored record and where it lies.
type Record struct {
	*record.Frame        // valid until the next step of the iteration
	File          string // relative to the run directory
	Offset        int64
}

// Records iterates over the stored records by ascending step. An error that is a
// *segment.CorruptError does not end the iteration: records behind it follow.
func (t *Timeline) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var f record.Frame
		last, any := uint64(0), false
		for raw, err := range segment.Frames(t.fsys, t.Dir.Telemetry()) {
			var torn *segment.TornError
			if errors.As(err, &torn) || errors.Is(err, fs.ErrNotExist) {
				continue // nothing was acknowledged there, or nothing is there yet
			}
			file := filepath.Join(rundir.TelemetryDir, filepath.Base(raw.File))
			if err == nil {
				if err = record.DecodeFrame(raw.Data, &f); err != nil {
					err = fmt.Errorf("%s: offset %d: %w", file, raw.Offset, err)
				}
			}
			switch {
			case err != nil:
				if !yield(Record{}, err) {
					return
				}
			case f.Kind != record.KindRecord || !t.counts(f.Generation, f.Step()) || any && f.Step() <= last:
			default:
				last, any = f.Step(), true
				if !yield(Record{&f, file, raw.Offset}, nil) {
					return
				}
			}
		}
	}
}

// Digests iterates over the STEP entries by ascending step. An error that is a
// *digestlog.Fault does not end the iteration: entries behind it follow.
func (t *Timeline) Digests() iter.Seq2[digestlog.Item, error] {
	return func(yield func(digestlog.Item, error) bool) {
		last, any := uint64(0), false
		for it, err := range entries(t.fsys, t.Dir) {
			e := &it.Entry
			switch err := passable(err); {
			case err != nil:
				if !yield(it, err) {
					return
				}
			case e.Kind != digestlog.KindStep || !t.counts(e.Generation, e.Step) || any && e.Step <= last:
			default:
				last, any = e.Step, true
				if !yield(it, nil) {
					return
				}
			}
		}
	}
}

// State is what a run looks like at a glance.
type State string

// The states.
const (
	Recording  State = "recording"  // a recorder holds the directory
	Closed     State = "closed"     // the last entry is an END
	Unfinished State = "unfinished" // neither: killed, or waiting for a recorder
	Unreadable State = "unreadable" // the end of its log cannot be read
)

// Status is what the end of a run's log says.
type Status struct {
	State      State            `json:"state"`
	Generation uint32           `json:"generation"`
	LastStep   uint64           `json:"last_step"`     // of the last STEP entry
	End        *digestlog.Entry `json:"end,omitempty"` // END of the newest generation
}

// Glance reads the last file of a run's digest log. It is quick and proves nothing.
func Glance(fsys vfs.FS, dir string) Status {
	d := rundir.At(dir)
	s := Status{State: Unfinished}
	infos, err := segment.List(fsys, d.Digests())
	for i := len(infos) - 1; i >= 0 && err == nil; i-- {
		var found bool
		if found, err = s.read(fsys, infos[i].Path); found {
			break
		}
	}
	switch {
	case rundir.Locked(fsys, d):
		s.State = Recording
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		s.State = Unreadable
	case s.End != nil:
		s.State = Closed
	}
	return s
}

// read takes in the entries of one file; found says that there were any.
func (s *Status) read(fsys vfs.FS, path string) (found bool, err error) {
	r, err := segment.Open(fsys, path)
	if err != nil {
		return false, err
	}
	defer r.Close()
	for {
		b, _, err := r.Next()
		var corrupt *segment.CorruptError
		if errors.As(err, &corrupt) {
			return found, err
		}
		if err != nil { // the end, or a torn one
			return found, nil
		}
		e, err := digestlog.ParseEntry(b)
		if err != nil {
			continue
		}
		found = true
		switch e.Kind {
		case digestlog.KindEnd:
			s.Generation, s.End = e.Generation, &e
		case digestlog.KindOpen:
			s.Generation, s.End = e.Generation, nil
		case digestlog.KindStep:
			s.Generation, s.LastStep, s.End = e.Generation, e.Step, nil
		}
	}
}
