package audit

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/snapshot"
)

// readLogIndex is readLog by the outline.
func (j *judge) readLogIndex() error {
	j.note("index only: what lies between the ends of files was not read; verify without --index to have every byte checked")
	o := digestlog.IndexOptions{FS: j.fsys, Dir: j.dir.Digests(), HeadPath: j.dir.Head(), Verifiers: j.keys(), RootsAt: j.keptSizes()}
	var d doubts
	n := 0
	o.Each = func(s digestlog.Span) error {
		if n++; n%4096 == 0 {
			if err := j.ctx.Err(); err != nil {
				return err
			}
		}
		j.book.addSpan(s, d.add(j))
		return nil
	}
	var err error
	j.log, err = digestlog.VerifyIndex(o)
	if err = j.judgeLog(d, err); j.log.Head == nil {
		j.Integrity.LogRoot = "" // only what is signed is computed
	}
	return err
}

// addSpan takes in a run of STEP entries as if they had come one by one.
func (l *ledger) addSpan(s digestlog.Span, report func(Problem)) {
	run := s.Run
	if run.Count == 0 {
		l.add(s.Item, report)
		return
	}
	s.Entry = digestlog.Entry{Kind: digestlog.KindStep, Generation: run.Generation, Step: run.LastStep, Seq: run.LastSeq}
	s.Index += run.Count - 1
	l.add(s.Item, report)
	l.account(run.Generation).steps += run.Count - 1
}

// readTelemetryIndex checks the two ends of every segment: against the SEAL entry that names it, against its
// neighbours, and the sums of all against the END entries. Segments without a summary are read.
func (j *judge) readTelemetryIndex() error {
	t := &telemetry{judge: j}
	next := uint64(0)
	for i, info := range j.inv.telemetry {
		if err := j.ctx.Err(); err != nil {
			return err
		}
		limit := uint64(math.MaxUint64)
		if i+1 < len(j.inv.telemetry) {
			limit = j.inv.telemetry[i+1].Base
		}
		if info.Base > next && !t.broken && !j.InProgress {
			t.problemf(Missing, inDir(rundir.TelemetryDir, info.Name), 0, "it begins at frame %d, those before it end at %d", info.Base, next)
			t.broken = true
		}
		end, err := t.ends(info, limit)
		if err != nil {
			return err
		}
		next = max(next, min(end, limit))
	}
	for _, n := range j.book.order {
		g, a := j.found(n), j.book.gens[n]
		g.digests = a.steps
		g.unchecked = g.unchecked || t.broken && g.next < a.next // what is missing was in the damaged segments at the end
	}
	j.closeTelemetry()
	return nil
}

// ends checks one segment and returns the ordinal behind its last frame.
func (t *telemetry) ends(info segment.Info, limit uint64) (next uint64, err error) {
	file := inDir(rundir.TelemetryDir, info.Name)
	seal, logged := t.book.seals[info.Name]
	if !logged {
		t.unsealed(file, info.Name)
	}
	e, err := segment.ReadEnds(t.fsys, info.Path)
	if err != nil {
		return info.Base, t.unreadable(file, err)
	}
	if h := e.Header; h.Base != info.Base || h.Kind != segment.KindTelemetry || h.RunID != t.RunID {
		t.problemf(NotOurs, file, 0, "%v segment of run %q with base %d", h.Kind, h.RunID, h.Base)
		t.broken = true
		return info.Base, nil
	}
	if logged && !t.asSealed(file, &seal.Entry, &e) {
		t.broken = true
		return seal.Base + seal.Count, nil
	}
	if !e.Sealed || e.Next > limit || e.Index == nil {
		return t.summarize(info, file, limit, logged)
	}
	sum, err := record.ParseSummary(e.Index)
	if errors.Is(err, record.ErrSummaryVersion) {
		return t.summarize(info, file, limit, logged)
	}
	if err == nil && sum.Frames != e.Next-info.Base {
		err = fmt.Errorf("of %d frames, the segment has %d", sum.Frames, e.Next-info.Base)
	}
	if err != nil {
		t.problemf(Corrupt, file, e.Size, "the summary at its end: %v", err)
		t.broken = true
		return e.Next, nil
	}
	t.takeSummary(file, &sum)
	return e.Next, nil
}

// asSealed compares a segment with the SEAL entry that vouches for it.
func (t *telemetry) asSealed(file string, seal *digestlog.Entry, e *segment.Ends) bool {
	switch {
	case uint64(e.Size) != seal.Size:
		t.problemf(Mismatch, file, min(e.Size, int64(seal.Size)), "%d bytes, the log has %d", e.Size, seal.Size)
	case !e.Sealed:
		t.problemf(Corrupt, file, e.Size, "sealed in the log, but it does not end in a footer")
	case e.Header.Base != seal.Base || e.Next != seal.Base+seal.Count:
		t.problemf(Inconsistent, file, e.Size, "holds frames %d to %d, the log says %d to %d", e.Header.Base, e.Next, seal.Base, seal.Base+seal.Count)
	default:
		return true
	}
	return false
}

// summarize reads a segment whose ends do not say what is in it.
func (t *telemetry) summarize(info segment.Info, file string, limit uint64, sealed bool) (next uint64, err error) {
	before := len(t.Integrity.Problems) + t.Integrity.Dropped
	t.sum = new(record.Summarizer)
	if next, err = t.read(info, file, limit, sealed); err != nil {
		return next, err
	}
	if sealed {
		t.note("%s has no summary and was read", file)
	}
	next = min(next, limit)
	sum, ok := t.sum.Summary()
	switch {
	case len(t.Integrity.Problems)+t.Integrity.Dropped > before || next <= info.Base:
	case !ok:
		t.problemf(Inconsistent, file, 0, "its frames do not follow each other; verify the run without --index to see where")
		t.broken = true
	default:
		t.takeSummary(file, &sum)
	}
	return next, nil
}

// takeSummary checks the place of a segment in its generation.
func (t *telemetry) takeSummary(file string, s *record.Summary) {
	bad := func(format string, args ...any) {
		g, seq := s.Generation, s.From
		t.problem(Problem{Class: Inconsistent, File: file, Generation: &g, Seq: &seq, Detail: fmt.Sprintf(format, args...)})
	}
	g := t.enter(s.Generation, s.From, bad)
	if g == nil {
		return
	}
	if s.Stored > 0 {
		t.steps(g, s.Generation, s.FirstStep, s.LastStep, bad)
	}
	g.stored += s.Stored
	g.lostSum += s.Lost
	g.next = s.To
}

// compareSums is compareLosses for one who knows how much was lost, and the ranges from the log only.
func (j *judge) compareSums(generation uint32, a *account, g *found) {
	g.lost = a.lost
	in := total(a.lost)
	switch {
	case g.unchecked || in == g.lostSum || j.InProgress && a.end == nil:
	case in < g.lostSum && a.end == nil:
		j.tail("generation %d: %d of %d losses in the telemetry are not yet in the log", generation, g.lostSum-in, g.lostSum)
	default:
		gen := generation
		j.problem(Problem{Class: Inconsistent, File: rundir.DigestDir, Generation: &gen,
			Detail: fmt.Sprintf("generation %d lost %d records by the log and %d by the telemetry", generation, in, g.lostSum)})
	}
}

// inspectSnapshot checks what a snapshot says of itself, and its size.
func (j *judge) inspectSnapshot(path string, want *digestlog.Entry) (snapshot.Meta, error) {
	m, _, err := snapshot.Inspect(j.fsys, path)
	if err != nil {
		return m, err
	}
	f, err := j.fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return m, err
	}
	info, err := f.Stat()
	if err = errors.Join(err, f.Close()); err == nil && uint64(info.Size()) != want.Size {
		err = fmt.Errorf("%w: %d bytes, the log has %d", snapshot.ErrMismatch, info.Size(), want.Size)
	}
	return m, err
}
