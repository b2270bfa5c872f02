package compare

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/environ"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// Log is the digest log of one side: of a run directory, or exported as tiles. It holds what is not of single steps, and no file open.
type Log struct {
	Path  string
	RunID string
	Tiles bool // an export; there are no snapshots and no telemetry beside it

	fsys        vfs.FS
	dir         rundir.Dir
	generations map[uint32]*generation
	order       []uint32 // of the generations, ascending
	lost        uint64   // records in LOST entries
	missing     uint64   // EVENT entries that say that digests are missing
	unknown     uint64   // entries of a kind that only a newer usp knows
	snapshots   []digestlog.Entry
	pruned      map[string]bool
	lastStep    uint64
	ended       bool // the last OPEN, STEP or END entry is an END
}

// generation is a restart inside a run.
type generation struct {
	number      uint32
	opened      bool
	ext         []byte            // of its OPEN entry
	plan        *record.Plan      // nil: not known
	environment map[string]string // nil: not known
	resumed     *uint64           // the step that it was resumed behind
	cold        bool              // it was resumed from nothing
	first       uint64            // its first step with a digest
	begun       bool
	limit       uint64 // steps from here on were overridden by a later generation, if limited
	limited     bool
}

// ErrNoLog is wrapped by the error of Open for a path that is neither a run directory nor an export.
var ErrNoLog = errors.New("there is no digest log")

// Open reads what a log says beside its steps. It verifies nothing. Damage is a *digestlog.Fault.
func Open(fsys vfs.FS, path string) (*Log, error) {
	l := &Log{Path: path, fsys: fsys, dir: rundir.At(path), generations: map[uint32]*generation{}, pruned: map[string]bool{}}
	if _, err := fsys.Stat(l.dir.Digests()); errors.Is(err, fs.ErrNotExist) {
		if l.Tiles = isTiles(fsys, path); !l.Tiles {
			return nil, fmt.Errorf("%s: %w: neither a run directory nor an export", path, ErrNoLog)
		}
	}
	if l.Tiles {
		t, err := digestlog.OpenTiles(fsys, path)
		if err != nil {
			return nil, err
		}
		l.RunID = t.Head.RunID()
	}
	for span, err := range l.spans() {
		var f *digestlog.Fault
		if errors.As(err, &f) && f.Benign() {
			if f.Class == digestlog.ClassUnknown {
				l.unknown++
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := l.take(&span); err != nil {
			return nil, fmt.Errorf("%s: entry %d: %w", path, span.Index, err)
		}
	}
	if err := l.settle(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// spans are the entries of the log, STEP entries in runs where that is cheaper.
func (l *Log) spans() iter.Seq2[digestlog.Span, error] {
	if !l.Tiles {
		return digestlog.Outline(l.fsys, l.dir.Digests())
	}
	return tileSpans(l.fsys, l.Path)
}

func (l *Log) at(number uint32) *generation {
	g := l.generations[number]
	if g == nil {
		g = &generation{number: number}
		l.generations[number] = g
		l.order = append(l.order, number)
	}
	return g
}

// maxGenerations bounds what a hostile log can make this package allocate.
const maxGenerations = 1 << 20

func (l *Log) take(s *digestlog.Span) error {
	e := &s.Entry
	if s.Run.Count > 0 {
		g := l.at(s.Run.Generation)
		if !g.begun {
			g.begun, g.first = true, s.Run.FirstStep
		}
		l.lastStep, l.ended = max(l.lastStep, s.Run.LastStep), false
		return nil
	}
	if len(l.generations) > maxGenerations {
		return fmt.Errorf("%w: more than %d generations", ErrContradiction, maxGenerations)
	}
	switch e.Kind {
	case digestlog.KindOpen:
		l.ended = false
		return l.open(e)
	case digestlog.KindEnd:
		l.ended = true
	case digestlog.KindRewind:
		g, to, cold := l.at(e.Generation), e.Target, e.SHA256 == [32]byte{}
		if g.resumed != nil && (*g.resumed != to || g.cold != cold) {
			return fmt.Errorf("%w: generation %d is resumed behind step %d and behind step %d", ErrContradiction, g.number, *g.resumed, to)
		}
		g.resumed, g.cold = &to, cold
	case digestlog.KindLost:
		l.lost += e.To - e.From
	case digestlog.KindSnapshot:
		l.snapshots = append(l.snapshots, *e)
		delete(l.pruned, e.Name)
	case digestlog.KindPrune:
		l.pruned[e.Name] = true
	case digestlog.KindEvent:
		if e.Code == digestlog.EventDigestsMissing {
			l.missing++
		}
	}
	return nil
}

// open takes in what the log's entries are about.
func (l *Log) open(e *digestlog.Entry) error {
	g := l.at(e.Generation)
	if g.opened && string(g.ext) != string(e.Ext) {
		return fmt.Errorf("%w: generation %d is opened twice, with another plan or environment", ErrContradiction, e.Generation)
	}
	g.opened, g.ext = true, e.Ext
	for b, err := range digestlog.Blocks(e.Ext) {
		if err == nil && b.Tag == digestlog.TagPlan {
			g.plan, err = record.ParsePlan(b.Data)
		} else if err == nil && b.Tag == digestlog.TagEnvironment {
			g.environment, err = environ.Decode(b.Data)
		}
		if err != nil {
			return fmt.Errorf("%w: OPEN of generation %d: %w", ErrContradiction, e.Generation, err)
		}
	}
	return nil
}

// settle finds out which steps of a generation a later one overrides, and asks manifests what the log does not say.
func (l *Log) settle() error {
	limit, limited := uint64(math.MaxUint64), false
	for i := len(l.order) - 1; i >= 0; i-- {
		g := l.generations[l.order[i]]
		if i+1 < len(l.order) && l.order[i] >= l.order[i+1] {
			return fmt.Errorf("%w: generation %d behind generation %d", ErrContradiction, l.order[i+1], l.order[i])
		}
		g.limit, g.limited = limit, limited
		if g.number == 0 || !g.opened {
			continue
		}
		begin, begins := uint64(0), true
		switch {
		case g.cold:
		case g.resumed != nil:
			begin, begins = *g.resumed+1, *g.resumed < math.MaxUint64
		default: // a start without a snapshot overrides from its first step on
			begin, begins = g.first, g.begun
		}
		if begins {
			limit, limited = min(limit, begin), true
		}
	}
	return l.readManifests()
}

// readManifests makes plans for generations of older recorders, whose logs do not name the fields.
func (l *Log) readManifests() error {
	if !l.Tiles {
		l.RunID = l.dir.ID()
	}
	for _, n := range l.order {
		g := l.generations[n]
		switch {
		case !g.opened:
			return fmt.Errorf("%w: generation %d was never opened", ErrContradiction, n)
		case g.plan != nil || l.Tiles:
			continue
		}
		m, _, err := rundir.ReadManifest(l.fsys, l.dir, g.number)
		if err != nil {
			return fmt.Errorf("generation %d: its log does not name the fields, and its manifest cannot be read: %w", g.number, err)
		}
		s, err := m.ParsedSchema()
		if err != nil {
			return err
		}
		if g.plan, err = record.NewPlan(s, record.PlanOptions{Every: m.DigestEvery}); err != nil {
			return err
		}
		g.plan.Flags = nil // its entries hold none
		if m.DigestEvery == 0 {
			g.plan.Every = 0 // not known
		}
	}
	return nil
}

// effective says whether a step of a generation is on the effective timeline.
func (g *generation) effective(step uint64) bool { return !g.limited || step < g.limit }

// last is the newest generation, nil if there is none.
func (l *Log) last() *generation {
	if len(l.order) == 0 {
		return nil
	}
	return l.generations[l.order[len(l.order)-1]]
}
