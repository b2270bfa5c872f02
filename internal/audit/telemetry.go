package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// found is one generation in the telemetry.
type found struct {
	words     int    // of a stored record, by the manifest; 0 before it was looked up, -1 if not known
	next      uint64 // next sequence number
	stored    uint64
	lost      []span
	lostSum   uint64 // from summaries, which do not know the ranges
	first     uint64
	last      uint64
	digests   uint64
	missing   uint64 // records that were due a digest and have none
	every     uint64 // digest interval; 0: not known
	begun     bool
	unchecked bool // damage was passed: what is missing was reported as damage
}

// telemetry reads the telemetry stream and, beside it, the STEP entries.
type telemetry struct {
	*judge
	frame  record.Frame
	cur    uint32 // generation of the last frame
	any    bool
	broken bool // damage was passed, so numbers may be missing before the next frame

	sum  *record.Summarizer // of the file being read
	step digestlog.StepEntry
	have bool
	err  error // of reading the log
}

// readTelemetry checks every segment against its SEAL entry, every frame against
// its place, and every STEP entry against its record.
func (j *judge) readTelemetry() error {
	t := &telemetry{judge: j}
	defer j.steps.close()
	t.advance()
	for i, info := range j.inv.telemetry {
		limit := uint64(math.MaxUint64)
		if i+1 < len(j.inv.telemetry) {
			limit = j.inv.telemetry[i+1].Base
		}
		if err := t.segment(info, limit); err != nil {
			return err
		}
	}
	for t.have {
		t.unmatched()
		t.advance()
	}
	if t.err != nil {
		return t.err
	}
	j.closeTelemetry()
	return nil
}

// closeTelemetry looks for segments that are gone, and balances the generations.
func (j *judge) closeTelemetry() {
	for name, e := range j.book.seals {
		gone := !slices.ContainsFunc(j.inv.telemetry, func(i segment.Info) bool { return i.Name == name })
		if gone && e.Size > 0 && !j.InProgress { // a segment that held nothing is removed when it is sealed
			j.problemf(Missing, inDir(rundir.TelemetryDir, name), 0, "sealed with %d frames in the log, but gone", e.Count)
		}
	}
	for _, g := range j.generations() {
		j.balance(g)
	}
}

// generations are all that log or telemetry know, ascending.
func (j *judge) generations() []uint32 {
	list := slices.Clone(j.book.order)
	for g := range j.gens {
		list = append(list, g)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (j *judge) found(generation uint32) *found {
	g := j.gens[generation]
	if g == nil {
		g = new(found)
		if m := j.mans[generation]; m != nil {
			g.every = m.DigestEvery
		}
		j.gens[generation] = g
	}
	return g
}

// segment checks one file and reads its frames.
func (t *telemetry) segment(info segment.Info, limit uint64) error {
	file := inDir(rundir.TelemetryDir, info.Name)
	seal, sealed := t.book.seals[info.Name]
	before := len(t.Integrity.Problems) + t.Integrity.Dropped
	t.sum = new(record.Summarizer)
	var beside sync.WaitGroup
	var sum [32]byte
	var size int64
	var hashErr error
	if sealed {
		beside.Go(func() { sum, size, hashErr = t.hash(info.Path) })
	}
	ends, err := t.read(info, file, limit, sealed)
	beside.Wait()
	if err != nil {
		return err
	}
	if len(t.Integrity.Problems)+t.Integrity.Dropped == before {
		if err := t.compareSummary(info, file, ends); err != nil {
			return err
		}
	}
	if !sealed {
		t.unsealed(file, info.Name)
		return nil
	}
	if hashErr != nil {
		return hashErr
	}
	intact := len(t.Integrity.Problems)+t.Integrity.Dropped == before
	switch {
	case sum == seal.SHA256 && uint64(size) == seal.Size:
		if ends != seal.Base+seal.Count && limit > seal.Base+seal.Count && intact {
			t.problemf(Inconsistent, file, 0, "holds frames up to %d, the log says %d", ends, seal.Base+seal.Count)
		}
	case intact:
		t.problemf(Mismatch, file, min(size, int64(seal.Size)), "%d bytes with SHA-256 %x, the log has %d bytes with %x", size, sum, seal.Size, seal.SHA256)
	}
	return nil
}

// unsealed judges a segment that no SEAL entry vouches for.
func (t *telemetry) unsealed(file, name string) {
	given := slices.ContainsFunc(t.book.poisoned, func(text string) bool { return strings.Contains(text, name) })
	switch {
	case !t.closedLog():
		t.tail("%s is not sealed in the log", file)
	case given:
		t.note("%s was given up after a write error; what follows it is in the next file", file)
	default:
		t.problemf(Inconsistent, file, 0, "the run is closed, but no SEAL entry vouches for this file")
	}
}

// read goes through one file's frames below limit and returns the ordinal behind the last.
func (t *telemetry) read(info segment.Info, file string, limit uint64, sealed bool) (uint64, error) {
	r, err := segment.Open(t.fsys, info.Path)
	if err != nil {
		return 0, t.unreadable(file, err)
	}
	defer r.Close()
	h := r.Header()
	if h.Base != info.Base || h.Kind != segment.KindTelemetry || h.RunID != t.RunID {
		t.problemf(NotOurs, file, 0, "%v segment of run %q with base %d", h.Kind, h.RunID, h.Base)
		t.broken = true
		return 0, nil
	}
	r.Limit(limit)
	for n := 0; ; n++ {
		b, _, err := r.Next()
		switch {
		case err == io.EOF:
			return r.Ordinal(), nil
		case err != nil:
			if done, err := t.damage(file, r, err, limit, sealed); done || err != nil {
				return r.Ordinal(), err
			}
			continue
		}
		if n%65536 == 0 {
			if err := t.ctx.Err(); err != nil {
				return 0, err
			}
		}
		if t.sum.Add(0, b); t.opt.Index {
			continue
		}
		if err := record.DecodeFrame(b, &t.frame); err != nil {
			t.problemf(Corrupt, file, r.Position(), "%v", err)
			t.broken = true
			continue
		}
		t.take(file, r.Position())
	}
}

// compareSummary holds the summary at the end of a sealed file against its frames, which end at ordinal next.
func (t *telemetry) compareSummary(info segment.Info, file string, next uint64) error {
	ends, err := segment.ReadEnds(t.fsys, info.Path)
	if err != nil {
		return t.unreadable(file, err)
	}
	if !ends.Sealed || ends.Next != next || ends.Index == nil {
		return nil // not sealed, or without index; or there are frames in it that do not count
	}
	if got, err := record.ParseSummary(ends.Index); errors.Is(err, record.ErrSummaryVersion) {
		return nil
	} else if want, ok := t.sum.Summary(); err != nil || !ok || got != want {
		t.problemf(Corrupt, file, ends.Size, "the summary at its end is not that of its frames: %+v, %v", got, err)
	}
	return nil
}

// unreadable reports a segment that does not open, unless it is the file system's fault.
func (t *telemetry) unreadable(file string, err error) error {
	var corrupt *segment.CorruptError
	t.broken = true
	switch {
	case errors.As(err, &corrupt):
		t.problemf(Corrupt, file, corrupt.Offset, "%v", corrupt.Err)
	case errors.Is(err, segment.ErrNotSegment):
		t.problemf(NotOurs, file, 0, "%v", err)
	case errors.Is(err, segment.ErrVersion):
		t.problemf(TooNew, file, 0, "%v", err)
	case errors.Is(err, os.ErrNotExist) && t.InProgress: // an empty file that was replaced
	default:
		return err
	}
	return nil
}

// damage reports what Next could not read. done: nothing is behind it.
func (t *telemetry) damage(file string, r *segment.Reader, err error, limit uint64, sealed bool) (done bool, _ error) {
	var corrupt *segment.CorruptError
	var torn *segment.TornError
	switch {
	case errors.As(err, &corrupt):
		t.broken = true
		t.problemf(Corrupt, file, corrupt.Offset, "%v", corrupt.Err)
		return false, nil
	case errors.As(err, &torn):
		switch {
		case sealed || t.closedLog() && r.Ordinal() < limit && limit == math.MaxUint64:
			t.broken = true
			t.problemf(Corrupt, file, torn.Offset, "the file was sealed, but ends in %d bytes that are no batch", torn.End-torn.Offset)
		case r.Ordinal() < limit:
			t.tail("%s: %d bytes from byte %d on were never acknowledged", file, torn.End-torn.Offset, torn.Offset)
		}
		return true, nil
	}
	return true, err
}

func (t *telemetry) hash(path string) (sum [32]byte, size int64, err error) {
	f, err := t.fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.CopyBuffer(h, onlyReader{f}, make([]byte, 256<<10))
	h.Sum(sum[:0])
	return sum, size, err
}

// onlyReader hides other methods, so that CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }

// take checks the frame's place in its generation and matches STEP entries.
func (t *telemetry) take(file string, offset int64) {
	f := &t.frame
	bad := func(format string, args ...any) {
		g, seq := f.Generation, f.Seq
		t.problem(Problem{Class: Inconsistent, File: file, Offset: offset, Generation: &g, Seq: &seq, Detail: fmt.Sprintf(format, args...)})
	}
	g := t.enter(f.Generation, f.Seq, bad)
	if g == nil {
		return
	}
	if f.Kind == record.KindLost {
		g.lost = appendSpan(g.lost, span{f.Seq, f.To, f.Reason})
		g.next = f.To
		return
	}
	if g.words == 0 {
		g.words = t.storedWords(f.Generation)
	}
	if g.words > 0 && len(f.Words) != g.words {
		bad("a record of %d words, its schema has %d", len(f.Words), g.words)
	}
	step := f.Step()
	t.steps(g, f.Generation, step, step, bad)
	g.next = f.Seq + 1
	g.stored++
	t.match(g, step)
}

// enter checks that what begins with the sequence number is next in its generation, which it returns; nil if it is not.
func (t *telemetry) enter(generation uint32, seq uint64, bad func(format string, args ...any)) *found {
	if t.any && generation < t.cur {
		bad("a frame of generation %d behind one of generation %d", generation, t.cur)
		return nil
	}
	t.cur, t.any = generation, true
	g := t.found(generation)
	switch {
	case seq == g.next:
	case seq > g.next && t.broken:
		g.unchecked = true // reported as damage
	case seq > g.next:
		bad("records %d to %d of generation %d are neither stored nor noted as lost", g.next, seq-1, generation)
	default:
		bad("sequence number %d again; %d was next", seq, g.next)
		return nil
	}
	t.broken = false
	return g
}

// steps checks that the steps from first to last go on from those before.
func (t *telemetry) steps(g *found, generation uint32, first, last uint64, bad func(format string, args ...any)) {
	a := t.book.gens[generation]
	switch {
	case g.begun && first <= g.last:
		bad("step %d behind step %d", first, g.last)
	case !g.begun && a != nil && a.rewind != nil && !cold(&a.rewind.Entry) && first <= a.rewind.Target:
		bad("step %d although the generation was resumed behind step %d", first, a.rewind.Target)
	}
	if !g.begun {
		g.begun, g.first = true, first
	}
	g.last = last
}

// storedWords is how many words a stored record of a generation has, -1 if no manifest says so.
func (t *telemetry) storedWords(generation uint32) int {
	if m := t.mans[generation]; m != nil {
		if s, err := m.ParsedSchema(); err == nil {
			return s.StoredWords()
		}
	}
	return -1
}

// match finds the record's STEP entry. Entries of earlier records that are passed
// on the way have no record.
func (t *telemetry) match(g *found, step uint64) {
	f := &t.frame
	for t.have && (t.step.Generation < f.Generation || t.step.Generation == f.Generation && t.step.Seq < f.Seq) {
		t.unmatched()
		t.advance()
	}
	if !t.have || t.step.Generation != f.Generation || t.step.Seq != f.Seq {
		if g.every > 0 && step%g.every == 0 {
			g.missing++
		}
		return
	}
	g.digests++
	if t.step.Step != step {
		gen, seq, at := f.Generation, f.Seq, step
		t.problem(Problem{Class: Inconsistent, File: rundir.DigestDir, Generation: &gen, Seq: &seq, Step: &at,
			Detail: fmt.Sprintf("the log has the digest of step %d for record %d, which is step %d", t.step.Step, seq, at)})
	}
	t.advance()
}

// unmatched judges a STEP entry whose record is not in the telemetry. Telemetry
// is synced before the log, so a digest proves that its record was stored, or
// that storage refused it.
func (t *telemetry) unmatched() {
	e := &t.step
	g := t.found(e.Generation)
	if s := covering(g.lost, e.Seq); s != nil && s.reason == record.LostStorage {
		g.digests++
		return
	}
	if g.unchecked || t.broken || t.InProgress && e.Seq >= g.next {
		return
	}
	gen, seq, step := e.Generation, e.Seq, e.Step
	t.problem(Problem{Class: Missing, File: rundir.TelemetryDir, Generation: &gen, Seq: &seq, Step: &step,
		Detail: fmt.Sprintf("the log has the digest of record %d of generation %d, the record is not there", seq, gen)})
	g.unchecked = true // one report for a whole stretch
}

// advance moves to the next STEP entry. Damage of the log was reported by the first pass.
func (t *telemetry) advance() {
	t.have = false
	if t.err == nil {
		t.have, t.err = t.nextStep(&t.step)
	}
}
