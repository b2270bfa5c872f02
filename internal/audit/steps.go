package audit

import (
	"errors"
	"io"
	"io/fs"

	"github.com/usp-project/usp/digestlog"
)

// stepRuns is how many runs of STEP entries a verification keeps in memory.
const stepRuns = 4096

// A stepRun is STEP entries in a row whose steps and sequence numbers grow evenly.
type stepRun struct {
	generation        uint32
	count             uint64
	step, seq         uint64 // of the first
	dStep, dSeq       uint64 // from one to the next
	behind            uint64 // index behind the last
	nextStep, nextSeq uint64 // of what goes on with it, if there are two or more
}

// A stepList is the STEP entries of the log, so that it need not be read again to match them with the telemetry: the entries of the first
// runs from memory, what was too much for that from the log.
type stepList struct {
	runs []stepRun
	full bool // entries behind runs were not kept

	at, in uint64 // next run, next entry in it
	log    *digestlog.StepReader
}

// add takes in an entry as the log is read.
func (l *stepList) add(s *digestlog.StepEntry) {
	if l.full {
		return
	}
	if n := len(l.runs); n > 0 && l.runs[n-1].add(s) {
		return
	}
	if l.full = len(l.runs) == stepRuns; !l.full {
		l.runs = append(l.runs, stepRun{generation: s.Generation, count: 1, step: s.Step, seq: s.Seq, behind: s.Index + 1})
	}
}

// add reports whether the entry goes on with the run.
func (r *stepRun) add(s *digestlog.StepEntry) bool {
	switch {
	case s.Generation != r.generation:
		return false
	case r.count == 1:
		r.dStep, r.dSeq = s.Step-r.step, s.Seq-r.seq
	case s.Step != r.nextStep || s.Seq != r.nextSeq:
		return false
	}
	r.count++
	r.behind, r.nextStep, r.nextSeq = s.Index+1, s.Step+r.dStep, s.Seq+r.dSeq
	return true
}

// nextStep returns generation, step and sequence number of the next entry; the rest of s is not set. ok is false at the end.
func (j *judge) nextStep(s *digestlog.StepEntry) (ok bool, _ error) {
	l := &j.steps
	if l.at < uint64(len(l.runs)) {
		r := &l.runs[l.at]
		s.Generation, s.Step, s.Seq = r.generation, r.step+l.in*r.dStep, r.seq+l.in*r.dSeq
		if l.in++; l.in == r.count {
			l.at, l.in = l.at+1, 0
		}
		return true, nil
	}
	if !l.full && !j.InProgress {
		return false, nil
	}
	if l.log == nil { // there is more: it was too much, or has come meanwhile
		if _, err := j.fsys.Stat(j.dir.Digests()); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		l.log = digestlog.NewStepReader(j.fsys, j.dir.Digests())
	}
	from := uint64(0)
	if n := len(l.runs); n > 0 {
		from = l.runs[n-1].behind
	}
	for {
		e, err := l.log.Next()
		switch {
		case err == nil && e.Index >= from:
			*s = e
			return true, nil
		case err == io.EOF:
			return false, nil
		case err != nil:
			if f := new(digestlog.Fault); !errors.As(err, &f) {
				return false, err
			}
		}
	}
}

// close closes the log, if it had to be read again.
func (l *stepList) close() error {
	if l.log == nil {
		return nil
	}
	return l.log.Close()
}
