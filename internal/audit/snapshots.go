package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/snapshot"
)

// inspectSnapshots reads the snapshots' headers, to know at which tree sizes the
// log's root is wanted. Whether a file is good is decided in checkSnapshots.
func (j *judge) inspectSnapshots() error {
	for _, name := range j.inv.snapshots {
		m, sections, err := snapshot.Inspect(j.fsys, j.dir.Snapshot(name))
		if err == nil {
			j.metas[name] = m
			j.parts[name] = sections
		}
	}
	return nil
}

// checkSnapshots compares SNAPSHOT entries and snapshot files in both directions.
func (j *judge) checkSnapshots() error {
	for _, name := range j.inv.snapshots {
		if err := j.ctx.Err(); err != nil {
			return err
		}
		if err := j.checkSnapshot(name); err != nil {
			return err
		}
	}
	for name, e := range j.book.snapshots {
		_, pruned := j.book.pruned[name]
		if pruned || slices.Contains(j.inv.snapshots, name) || j.InProgress && (j.publishedSince(name) || j.prunedSince(name)) {
			continue
		}
		step := e.Step
		j.problem(Problem{Class: Missing, File: inDir(rundir.SnapshotDir, name), Step: &step,
			Detail: "in the log and not pruned, but gone"})
	}
	return nil
}

// publishedSince looks whether a snapshot has appeared after the directory was listed, which is before the log was read.
func (j *judge) publishedSince(name string) bool {
	_, err := j.fsys.Stat(j.dir.Snapshot(name))
	return err == nil
}

// prunedSince looks whether a recorder has logged a snapshot's removal after the
// log was read.
func (j *judge) prunedSince(name string) bool {
	for it, err := range outline(j.fsys, j.dir) {
		if err == nil && it.Entry.Kind == digestlog.KindPrune && it.Entry.Name == name {
			return true
		}
	}
	return false
}

func (j *judge) checkSnapshot(name string) error {
	file := inDir(rundir.SnapshotDir, name)
	e, known := j.book.snapshots[name]
	_, pruned := j.book.pruned[name]
	switch {
	case !known && j.closedLog():
		j.note("%s is in no log entry and will never be loaded", file)
		return nil
	case !known:
		if !j.InProgress {
			j.tail("%s is not in the log and will never be loaded", file)
		}
		return nil
	case pruned:
		j.note("%s was pruned in the log, but is still there", file)
	}
	m, err := j.loadSnapshot(j.dir.Snapshot(name), &e.Entry)
	if errors.Is(err, fs.ErrNotExist) && (pruned || j.InProgress) {
		return nil // removed while we looked
	}
	if errors.As(err, new(*snapshot.BaseError)) && (pruned || j.InProgress && j.prunedSince(name)) {
		return nil // given up, and what it refers to as well
	}
	if err != nil {
		return j.badSnapshot(file, e, err)
	}
	step := e.Step
	bad := func(class, format string, args ...any) {
		j.problem(Problem{Class: class, File: file, Step: &step, Detail: fmt.Sprintf(format, args...)})
	}
	man := j.mans[m.Generation]
	root, rooted := j.log.Roots[m.TreeSize]
	switch {
	case m.RunID != j.RunID:
		bad(NotOurs, "of run %q", m.RunID)
	case m.Step != e.Step || m.Generation != e.Generation || m.Seq != e.Seq:
		bad(Inconsistent, "holds step %d, generation %d, position %d; the log has %d, %d, %d", m.Step, m.Generation, m.Seq, e.Step, e.Generation, e.Seq)
	case man != nil && rundir.Hash(m.Schema) != man.SchemaSHA256:
		bad(Inconsistent, "its schema is not its generation's")
	case m.TreeSize > e.index:
		bad(Inconsistent, "made at log size %d, but logged as entry %d", m.TreeSize, e.index)
	case rooted && root != m.TreeRoot:
		bad(Mismatch, "the log's root at size %d is %x, the snapshot has %x", m.TreeSize, root, m.TreeRoot)
	case j.otherBase(name) != nil:
		bad(Inconsistent, "%v", j.otherBase(name))
	case !pruned:
		j.Completeness.Snapshots++
	}
	return nil
}

// otherBase says which file a snapshot refers to that is not the one in the log.
func (j *judge) otherBase(name string) error {
	for _, s := range j.parts[name] {
		if s.Base.Name == "" {
			continue
		}
		if e, ok := j.book.snapshots[s.Base.Name]; !ok || e.SHA256 != s.Base.SHA256 {
			return fmt.Errorf("section %q is kept in %s with SHA-256 %x, which is in no log entry", s.Name, s.Base.Name, s.Base.SHA256)
		}
	}
	return nil
}

func (j *judge) loadSnapshot(path string, want *digestlog.Entry) (snapshot.Meta, error) {
	switch {
	case j.opt.Index:
		return j.inspectSnapshot(path, want)
	case !j.opt.Deep:
		info, err := snapshot.Verify(j.fsys, path, &want.SHA256)
		return info.Meta, err
	}
	m, sections, err := snapshot.LoadWith(j.fsys, path, &want.SHA256, snapshot.LoadOptions{Identities: j.opt.Identities})
	if errors.Is(err, snapshot.ErrEncrypted) || errors.Is(err, snapshot.ErrWrongIdentity) {
		info, err := snapshot.Verify(j.fsys, path, &want.SHA256)
		if err == nil {
			j.Completeness.Undecrypted++
		}
		return info.Meta, err
	}
	if err == nil && j.opt.Snapshot != nil {
		if err := j.opt.Snapshot(m, sections); err != nil {
			return m, &snapshot.CorruptError{File: path, Err: fmt.Errorf("the state cannot be used: %w", err)}
		}
	}
	return m, err
}

// badSnapshot puts an error of loading into its class.
func (j *judge) badSnapshot(file string, e logged, err error) error {
	step := e.Step
	p := Problem{Class: Corrupt, File: file, Step: &step, Detail: err.Error()}
	var corrupt *snapshot.CorruptError
	var base *snapshot.BaseError
	if errors.As(err, &base) && errors.Is(base.Err, fs.ErrNotExist) {
		p.Class = Missing
	}
	switch {
	case errors.As(err, &corrupt):
		p.Offset, p.Detail = corrupt.Offset, corrupt.Err.Error()
	case errors.Is(err, snapshot.ErrMismatch):
		p.Class = Mismatch
	case errors.Is(err, snapshot.ErrNotSnapshot):
		p.Class = NotOurs
	case errors.Is(err, snapshot.ErrVersion):
		p.Class = TooNew
	default:
		return err
	}
	j.problem(p)
	return nil
}
