package audit

import (
	"fmt"

	"github.com/usp-project/usp/internal/rundir"
)

const maxLostRanges = 100

// balance compares what the log and the telemetry say of one generation: losses,
// reach, and the sums in the END entry.
func (j *judge) balance(generation uint32) {
	a, g := j.book.account(generation), j.found(generation)
	if j.opt.Index {
		j.compareSums(generation, a, g)
	} else {
		j.compareLosses(generation, a, g)
	}
	bad := func(class, format string, args ...any) {
		gen := generation
		j.problem(Problem{Class: class, File: logFile(a.vouch.file), Offset: a.vouch.at, Generation: &gen, Detail: fmt.Sprintf(format, args...)})
	}
	if a.next > g.next && !g.unchecked && !j.InProgress {
		bad(Missing, "the log (entry %d, %v) vouches for the records of generation %d below %d, telemetry ends at %d",
			a.vouch.index, a.vouch.kind, generation, a.next, g.next)
		g.unchecked = true
	}
	lost := total(g.lost)
	if j.opt.Index {
		lost = g.lostSum
	}
	out := Generation{
		Generation: generation, Stored: g.stored, Lost: lost, Emitted: g.stored + lost,
		FirstStep: g.first, LastStep: g.last, Digests: g.digests, DigestsMissing: g.missing,
	}
	for _, s := range g.lost[:min(len(g.lost), maxLostRanges)] {
		out.LostRanges = append(out.LostRanges, LostRange{s.from, s.to, s.reason.String()})
	}
	if e := a.rewind; e != nil {
		out.Resumed = &Resumed{e.Target, e.FromGeneration, rundir.Hash(e.SHA256)}
	}
	if e := a.end; e != nil {
		out.End, out.EmittedKnown = e.Status.String(), e.EmittedKnown
		a.vouch = e.place()
		switch {
		case g.unchecked: // reported already
		case e.Stored != g.stored || e.Lost != lost:
			bad(Inconsistent, "the END entry says %d stored and %d lost, telemetry has %d and %d", e.Stored, e.Lost, g.stored, lost)
		case e.EmittedKnown && e.Emitted != g.stored+lost:
			bad(Inconsistent, "the END entry says %d emitted, telemetry has %d stored and %d lost", e.Emitted, g.stored, lost)
		}
	}
	c := &j.Completeness
	c.Generations = append(c.Generations, out)
	c.Stored += out.Stored
	c.Lost += out.Lost
	c.Digests += a.steps
	c.DigestsMissing += out.DigestsMissing
}

// compareLosses wants the lost ranges of log and telemetry to be the same. Until
// the generation has ended the log may lag behind: telemetry is synced first.
func (j *judge) compareLosses(generation uint32, a *account, g *found) {
	if g.unchecked {
		return
	}
	i := 0
	for i < len(a.lost) && i < len(g.lost) && a.lost[i] == g.lost[i] {
		i++
	}
	if i == len(a.lost) && i == len(g.lost) {
		return
	}
	lagging := i == len(a.lost) || // the log has a part of what telemetry has
		i == len(a.lost)-1 && i < len(g.lost) && a.lost[i].from == g.lost[i].from && a.lost[i].to < g.lost[i].to && a.lost[i].reason == g.lost[i].reason
	if lagging && a.end == nil {
		j.tail("generation %d: losses from %v on are in the telemetry and not yet in the log", generation, g.lost[i])
		return
	}
	if j.InProgress && a.end == nil {
		return
	}
	var in, out span
	if i < len(a.lost) {
		in = a.lost[i]
	}
	if i < len(g.lost) {
		out = g.lost[i]
	}
	gen := generation
	j.problem(Problem{Class: Inconsistent, File: rundir.DigestDir, Generation: &gen,
		Detail: fmt.Sprintf("loss %d of generation %d is %v in the log and %v in the telemetry", i, generation, in, out)})
}
