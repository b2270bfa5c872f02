package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// judge is one verification in the making.
type judge struct {
	Report
	ctx   context.Context
	fsys  vfs.FS
	dir   rundir.Dir
	opt   Options
	inv   inventory
	log   digestlog.Report
	book  *ledger
	mans  map[uint32]*rundir.Manifest // readable manifests
	sums  map[uint32]rundir.Hash      // of every manifest file
	metas map[string]snapshot.Meta    // of snapshot files, as far as readable
	parts map[string][]snapshot.SectionInfo
	gens  map[uint32]*found
	steps stepList
	wrong bool // signed, but with another key than those given
}

// looks is how often Verify looks again at a run that a recorder changes under
// its eyes.
const looks = 10

// Verify checks the run directory dir and returns what it found. The error is
// only for what kept it from looking: an I/O error, or ctx being done. What is
// wrong with the run is in the report, and so is a directory that is not there.
//
// A recorder may be at work meanwhile, and what was listed a moment ago may be
// gone, sealed or overtaken. So what looks like damage then is looked at again,
// until the same is found twice or no recorder has the directory.
func Verify(ctx context.Context, fsys vfs.FS, dir string, o Options) (*Report, error) {
	if o.MaxProblems <= 0 {
		o.MaxProblems = 100
	}
	var before *Report
	for range looks {
		busy := rundir.Locked(fsys, rundir.At(dir))
		r, err := look(ctx, fsys, dir, o)
		if err == nil && r.Verdict != Failed || ctx.Err() != nil {
			return r, err
		}
		if !busy && !rundir.Locked(fsys, rundir.At(dir)) {
			return r, err
		}
		if err == nil && before != nil && slices.EqualFunc(before.Integrity.Problems, r.Integrity.Problems, sameProblem) {
			return r, nil
		}
		before = r
	}
	return look(ctx, fsys, dir, o)
}

func sameProblem(a, b Problem) bool { return a.String() == b.String() }

// look is Verify of a directory that holds still.
func look(ctx context.Context, fsys vfs.FS, dir string, o Options) (*Report, error) {
	j := &judge{
		ctx: ctx, fsys: fsys, dir: rundir.At(dir), opt: o, book: newLedger(),
		mans: map[uint32]*rundir.Manifest{}, sums: map[uint32]rundir.Hash{}, metas: map[string]snapshot.Meta{}, parts: map[string][]snapshot.SectionInfo{}, gens: map[uint32]*found{},
	}
	j.Dir, j.IndexOnly = j.dir.Path(), o.Index
	info, err := fsys.Stat(j.Dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return j.conclude(NotFound), nil
	}
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", dir, err)
	}
	j.InProgress = rundir.Locked(fsys, j.dir)
	passes := []func() error{j.takeInventory, j.readManifests, j.inspectSnapshots, j.readKept, j.readLog, j.checkKept, j.checkManifests, j.readTelemetry, j.checkSnapshots}
	if o.Index {
		passes = []func() error{j.takeInventory, j.readManifests, j.readKept, j.readLogIndex, j.checkKept, j.checkManifests, j.readTelemetryIndex, j.checkSnapshots}
	}
	for _, pass := range passes {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("verify %s: %w", dir, err)
		}
		if err := pass(); err != nil {
			return nil, fmt.Errorf("verify %s: %w", dir, err)
		}
	}
	if !j.inv.ours && !(j.inv.empty && rundir.ValidID(j.dir.ID())) {
		return j.conclude(NotFound), nil
	}
	j.settle()
	return j.conclude(j.verdict()), nil
}

func (j *judge) verdict() Verdict {
	switch {
	case len(j.Integrity.Problems) > 0:
		return Failed
	case j.wrong:
		return WrongKey
	case j.Completeness.Closed || j.InProgress:
		return OK
	}
	return CrashTail
}

func (j *judge) conclude(v Verdict) *Report {
	j.Verdict, j.Exit = v, v.ExitCode()
	j.Integrity.OK = v != NotFound && len(j.Integrity.Problems) == 0
	return &j.Report
}

// problem adds one unless the list is full.
func (j *judge) problem(p Problem) {
	if len(j.Integrity.Problems) >= j.opt.MaxProblems {
		j.Integrity.Dropped++
		return
	}
	j.Integrity.Problems = append(j.Integrity.Problems, p)
}

func (j *judge) problemf(class, file string, offset int64, format string, args ...any) {
	j.problem(Problem{Class: class, File: file, Offset: offset, Detail: fmt.Sprintf(format, args...)})
}

func (j *judge) tail(format string, args ...any) {
	j.Completeness.Tail = append(j.Completeness.Tail, fmt.Sprintf(format, args...))
}

func (j *judge) note(format string, args ...any) {
	j.Notes = append(j.Notes, fmt.Sprintf(format, args...))
}

func (j *judge) takeInventory() (err error) {
	j.inv, err = takeInventory(j.fsys, j.dir, &j.Files)
	return err
}

// readManifests reads all manifests: the log names their digests, they name the
// key of the log's head.
func (j *judge) readManifests() error {
	for _, g := range j.inv.manifests {
		m, sum, err := rundir.ReadManifest(j.fsys, j.dir, g)
		var path *fs.PathError
		switch {
		case err == nil:
			j.mans[g] = m
			if j.RunID == "" {
				j.RunID = m.RunID
			}
		case errors.Is(err, fs.ErrNotExist): // replaced meanwhile by a recorder
			continue
		case errors.As(err, &path):
			return err
		case errors.Is(err, rundir.ErrVersion):
			j.problemf(TooNew, rundir.ManifestName(g), 0, "%v", err)
		case errors.Is(err, rundir.ErrNotManifest):
			j.problemf(NotOurs, rundir.ManifestName(g), 0, "%v", err)
		default:
			j.problemf(Corrupt, rundir.ManifestName(g), 0, "%v", err)
		}
		j.sums[g] = sum
	}
	return nil
}

// anyOf looks a key up in several places.
type anyOf []note.Verifiers

func (a anyOf) Verifier(name string, hash uint32) (note.Verifier, error) {
	for _, v := range a {
		found, err := v.Verifier(name, hash)
		var unknown *note.UnknownVerifierError
		if !errors.As(err, &unknown) {
			return found, err
		}
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

// keys are the given ones and those that the manifests name.
func (j *judge) keys() anyOf {
	var named []note.Verifier
	for _, m := range j.mans {
		v, err := note.NewVerifier(m.Signer)
		if err == nil && !slices.ContainsFunc(named, func(o note.Verifier) bool { return o.Name() == v.Name() && o.KeyHash() == v.KeyHash() }) {
			named = append(named, v)
		}
	}
	keys := anyOf{note.VerifierList(named...)}
	if j.opt.Verifiers != nil {
		keys = append(anyOf{j.opt.Verifiers}, keys...)
	}
	return keys
}

// readLog verifies the digest log against its head and fills the ledger.
func (j *judge) readLog() error {
	o := digestlog.VerifyOptions{FS: j.fsys, Dir: j.dir.Digests(), HeadPath: j.dir.Head(), Verifiers: j.keys(), RootsAt: j.keptSizes()}
	for _, m := range j.metas {
		o.RootsAt = append(o.RootsAt, m.TreeSize)
	}
	var d doubts
	report := d.add(j)
	o.Each = func(it digestlog.Item) error {
		j.book.add(it, report)
		return j.ctx.Err()
	}
	o.Steps = func(s *digestlog.StepEntry) error {
		j.book.addStep(s, report)
		j.steps.add(s)
		if s.Index%4096 == 0 {
			return j.ctx.Err()
		}
		return nil
	}
	var err error
	j.log, err = digestlog.VerifyWith(o)
	return j.judgeLog(d, err)
}

// doubts are problems of log entries. They count only if the log is whole; else they follow from what is missing.
type doubts []Problem

func (d *doubts) add(j *judge) func(Problem) {
	return func(p Problem) {
		if len(*d) < j.opt.MaxProblems {
			*d = append(*d, p)
		}
	}
}

// judgeLog takes over what digestlog has found.
func (j *judge) judgeLog(d doubts, err error) error {
	if errors.Is(err, fs.ErrNotExist) && len(j.inv.digests) == 0 {
		return j.withoutLog()
	}
	if err != nil {
		return err
	}
	for _, f := range j.log.Faults {
		j.logFault(f)
	}
	j.Integrity.Dropped += int(j.log.Dropped)
	if j.log.Err() == nil {
		for _, p := range d {
			j.problem(p)
		}
	}
	j.Integrity.LogEntries, j.Integrity.LogRoot = j.log.Size, hexa(j.log.Root)
	if j.log.RunID != "" {
		j.RunID = j.log.RunID // rather than a manifest's: the log's headers have checksums
	}
	return j.checkHead()
}

// withoutLog handles a run whose recorder died before it made the log, or whose
// log someone has removed.
func (j *judge) withoutLog() error {
	_, err := j.fsys.Stat(j.dir.Head())
	if err == nil {
		j.problemf(Missing, rundir.DigestDir, 0, "there is a signed head, but no digest log")
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (j *judge) logFault(f *digestlog.Fault) {
	file := logFile(f.File)
	class := ""
	switch f.Class {
	case digestlog.ClassCorrupt:
		class = Corrupt
	case digestlog.ClassMissing:
		class = Missing
	case digestlog.ClassMismatch:
		class = Mismatch
	case digestlog.ClassNotOurs:
		class = NotOurs
	case digestlog.ClassTooNew:
		class = TooNew
	case digestlog.ClassHead, digestlog.ClassWrongKey:
		// A key that not even the manifest knows is no key of this run.
		class, file = Forged, rundir.HeadFile
	case digestlog.ClassTorn:
		j.tail("%s: the log's last %s were never acknowledged (from byte %d)", file, "bytes", f.Offset)
		return
	case digestlog.ClassNoHead:
		return // settle says so
	case digestlog.ClassUnknown, digestlog.ClassVoid:
		j.note("%v", f)
		return
	default:
		class = Corrupt
	}
	j.problem(Problem{Class: class, File: file, Offset: f.Offset, Detail: f.Error()})
}

// checkHead finds out who signed the head.
func (j *judge) checkHead() error {
	h := j.log.Head
	if h == nil {
		return nil
	}
	j.Integrity.Head = &Head{Size: h.Size, Root: hexa(h.Root), Signer: signer(h.Note)}
	if h.RunID() != j.RunID {
		j.problemf(NotOurs, rundir.HeadFile, 0, "the head is of %q, the run is %q", h.Origin, j.RunID)
	}
	if j.opt.Verifiers == nil {
		j.note("the head was checked with the key in the manifest; give a verifier key to know who signed it")
		return nil
	}
	_, err := digestlog.ParseHead(h.Note, j.opt.Verifiers)
	switch {
	case err == nil:
		j.Integrity.Head.Trusted = true
	case errors.Is(err, digestlog.ErrWrongKey):
		j.wrong = true
		j.note("%v", err)
	default:
		j.problemf(Forged, rundir.HeadFile, 0, "%v", err)
	}
	return nil
}

// signer is the name in a note's first signature line.
func signer(b []byte) string {
	_, sigs, _ := strings.Cut(string(b), "\n\n")
	name, _, _ := strings.Cut(strings.TrimPrefix(sigs, "— "), " ")
	return name
}

// checkManifests compares manifests and OPEN entries in both directions.
func (j *judge) checkManifests() error {
	last, any := j.book.last()
	for _, g := range j.inv.manifests {
		name := rundir.ManifestName(g)
		a := j.book.gens[g]
		switch {
		case j.sums[g] == rundir.Hash{}: // gone again
		case a == nil || a.open == nil:
			if (!any || g > last) && !j.closedLog() {
				j.tail("%s: generation %d was never opened in the log", name, g)
			} else {
				j.note("%s: generation %d was never opened in the log; nothing vouches for this file", name, g)
			}
		case j.sums[g] != rundir.Hash(a.open.Manifest):
			j.problemf(Mismatch, name, 0, "SHA-256 is %v, the log has %v", j.sums[g], rundir.Hash(a.open.Manifest))
		}
		if m := j.mans[g]; m != nil {
			j.checkManifest(m, a)
		}
	}
	for _, g := range j.book.order {
		if _, there := j.sums[g]; !there {
			j.problemf(Missing, rundir.ManifestName(g), 0, "the log opens generation %d, its manifest is gone", g)
		}
	}
	return nil
}

func (j *judge) checkManifest(m *rundir.Manifest, a *account) {
	name := rundir.ManifestName(m.Generation)
	if m.RunID != j.RunID {
		j.problemf(NotOurs, name, 0, "of run %q in the directory of run %q", m.RunID, j.RunID)
	}
	if a == nil || a.open == nil {
		return
	}
	if m.SchemaSHA256 != rundir.Hash(a.open.Schema) {
		j.problemf(Inconsistent, name, 0, "the schema is not the one in the log's OPEN entry")
	}
	if a.open.Resumed != (m.Resumed != nil) {
		j.problemf(Inconsistent, name, 0, "manifest and OPEN entry disagree on whether generation %d was resumed", m.Generation)
	}
	if r := m.Resumed; r != nil && a.rewind != nil {
		e := a.rewind
		if r.Step != e.Target || r.Generation != e.FromGeneration || r.SnapshotSHA256 != rundir.Hash(e.SHA256) {
			j.problemf(Inconsistent, name, 0, "manifest and REWIND entry name different snapshots")
		}
	}
}

// settle decides what is left open: is the run closed, and if not, why not.
func (j *judge) settle() {
	c := &j.Completeness
	last, opened := j.book.last()
	switch {
	case !opened:
		j.tail("nothing was recorded: the log has no OPEN entry")
	case j.book.gens[last].end == nil:
		j.tail("generation %d has no END entry", last)
	case !j.book.ended:
		j.tail("entries follow the END of generation %d", last)
	}
	if opened {
		switch h := j.log.Head; {
		case h == nil:
			if !j.has(rundir.HeadFile) {
				j.tail("the log has no signed head")
			}
		case h.Size < j.log.Size:
			j.tail("the signed head covers %d of %d log entries", h.Size, j.log.Size)
		}
		if !j.log.Sealed && !j.log.Has(digestlog.ClassTorn) {
			j.tail("the log's last file is not sealed")
		}
	}
	c.Closed = len(c.Tail) == 0 && len(j.Integrity.Problems) == 0
}

// has says whether there is a problem with a file.
func (j *judge) has(file string) bool {
	return slices.ContainsFunc(j.Integrity.Problems, func(p Problem) bool { return p.File == file })
}

// closedLog says that the log was brought to its end, whatever the rest is like:
// from then on nothing may be open or unaccounted for.
func (j *judge) closedLog() bool {
	return j.book.ended && j.log.Sealed && j.log.Head != nil && j.log.Head.Size == j.log.Size
}
