package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/snapshot"
)

// Options say what is sent where. The zero value of each field but Dir, Store and To is replaced by its default.
type Options struct {
	Dir   rundir.Dir
	Store Store
	To    Address

	Part      int64              // size from which an object is made in parts, and of each part; default 16 MiB
	Retention snapshot.Retention // which ones stay there
	LockFor   time.Duration      // no object is removed that is younger: the store would keep it anyway

	sink.Pace
}

func (o Options) withDefaults() Options {
	o.Pace = o.Pace.WithDefaults(500*time.Millisecond, 500*time.Millisecond)
	if o.Part <= 0 {
		o.Part = 16 << 20
	}
	return o
}

// sender brings the snapshots of one run to a store.
type sender struct {
	Options
	run    string
	status Status

	known     bool                    // what is there was looked at
	there     map[string]*snapshotDoc // complete snapshots
	manifests int                     // OPEN entries whose manifests are there
	resend    map[string]bool         // settled, and to be sent once more: what is there is damaged
	partial   *partial                // an upload that was cut off

	seen     mark    // what the run directory looked like when all in it was settled
	ledger   *ledger // as it was read when the run directory looked like ledgerAt
	ledgerAt mark
	quiet    bool // and nothing was left to wait for
	kept     bool // the store has refused to remove something
	tries    sink.Tries
}

// Send brings the snapshots of a run to a store, each with its proof, and removes there what retention gives up. What fails is tried
// again, later and later; the recorder notices nothing of it. It returns when all of a run that has ended is there, when ctx
// ends (with its error), or with an error that no retry mends: while the run is recorded only an ErrConflict, later also ErrDenied
// and ErrNotFound, and after Options.Patience any other, with sink.ErrPatience.
//
// One process alone may do so for a run.
func Send(ctx context.Context, o Options) error {
	s := &sender{Options: o.withDefaults(), run: o.Dir.ID()}
	var err error
	if s.status, _, err = ReadStatus(s.FS, s.Dir); err != nil {
		return err
	}
	if to := s.To.String(); s.status.To != to {
		s.status = Status{To: to} // another store has nothing of what was sent to the last one
	}
	for {
		more := s.Recorded() // asked before the end is looked for, so that nothing comes in unseen
		done, err := s.work(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && done && !more:
			return s.ended()
		case err == nil:
			s.tries.Well(ctx, &s.Pace)
			continue
		}
		s.fault(err)
		if errors.Is(err, ErrConflict) || !more && (errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound)) {
			return fmt.Errorf("%s: %w", Name, err)
		}
		if err := s.tries.Failed(ctx, &s.Pace, err); err != nil {
			return fmt.Errorf("%s: %w", Name, err)
		}
	}
}

// ended says whether what was refused makes the end of a run an error.
func (s *sender) ended() error {
	if s.status.Refused > 0 {
		return fmt.Errorf("%s: %w: %d not sent: %s", Name, ErrLocal, s.status.Refused, s.status.Fault)
	}
	return nil
}

// mark is what a run directory looks like. It changes whenever there can be something to do.
type mark struct {
	snapshots  []string // names
	generation uint32
}

func (m mark) equal(o mark) bool {
	return m.generation == o.generation && slices.Equal(m.snapshots, o.snapshots)
}

func (s *sender) look() (at mark, err error) {
	entries, err := s.FS.ReadDir(s.Dir.Snapshots())
	if err != nil {
		return at, err
	}
	for _, e := range entries {
		if isSnapshot(e.Name()) {
			at.snapshots = append(at.snapshots, e.Name())
		}
	}
	at.generation, err = rundir.LastGeneration(s.FS, s.Dir)
	return at, err
}

// work does what there is to do. done: nothing is left of what the log has now.
func (s *sender) work(ctx context.Context) (done bool, err error) {
	at, err := s.look()
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // the run has only just begun
	}
	if err != nil || s.quiet && at.equal(s.seen) {
		return err == nil, err
	}
	head, _, err := signedHead(s.FS, s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return !s.Recorded(), nil // nothing is signed yet
	}
	if err != nil {
		return false, err
	}
	l, err := s.readLedger(at)
	if err != nil {
		return false, err
	}
	if len(l.snapshots) == 0 { // nothing of the run has to be there
		s.quiet, s.seen = l.knows(at) || !s.Recorded(), at
		return true, s.save()
	}
	s.count(l)
	if err := s.begin(ctx, l, &head); err != nil {
		return false, err
	}
	if done, err = s.settle(ctx, l, &head); err != nil {
		return false, err
	}
	if err := s.prune(ctx, l); err != nil {
		return false, err
	}
	s.quiet, s.seen = done && (l.knows(at) || !s.Recorded()), at
	s.well()
	return done, s.save()
}

// readLedger reads what the log says of snapshots, or has it still: an entry that matters comes with a file that comes or goes. A snapshot has its file
// before its entry, so one whose entry is missing has the log read again; its PRUNE entry comes before its file goes.
func (s *sender) readLedger(at mark) (*ledger, error) {
	if s.ledger != nil && at.equal(s.ledgerAt) && s.ledger.knows(at) {
		return s.ledger, nil
	}
	var err error
	s.ledger, err = readLedger(s.FS, s.Dir)
	s.ledgerAt = at
	return s.ledger, err
}

// settle sends what waits, in the order of the log. It stops at the first entry that no signed head covers yet.
func (s *sender) settle(ctx context.Context, l *ledger, head *digestlog.SignedTreeHead) (done bool, err error) {
	for _, e := range l.snapshots {
		name := e.entry.Name
		switch {
		case e.index < s.status.Next && !s.resend[name]:
			continue
		case e.index >= head.Size:
			return false, nil
		case s.there[name] != nil:
			s.status.Sent++ // and the status was not saved any more
		case l.pruned[name], l.snapshots[l.byName[name]].index != e.index:
			s.missed(&e.entry, "retention has removed it here")
		case !l.rewinds.effective(name):
			s.missed(&e.entry, "a resume went back behind it")
		default:
			err := s.send(ctx, l, head, e)
			switch {
			case err == nil && !s.resend[name]:
				s.status.Sent++
			case errors.Is(err, errPruned):
				return false, nil // the log says so at the next look
			case errors.Is(err, ErrLocal):
				s.refuse(&e.entry, err)
			case err != nil:
				return false, err
			}
		}
		delete(s.resend, name)
		s.status.Next = max(s.status.Next, e.index+1)
		s.count(l)
		if err := s.save(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// count says how many wait.
func (s *sender) count(l *ledger) {
	s.status.Waiting = 0
	for i := range l.snapshots {
		if e := &l.snapshots[i]; e.index >= s.status.Next && !l.pruned[e.entry.Name] && l.rewinds.effective(e.entry.Name) && s.there[e.entry.Name] == nil {
			s.status.Waiting++
		}
	}
	switch {
	case s.status.Waiting == 0:
		s.status.Oldest = time.Time{}
	case s.status.Oldest.IsZero():
		s.status.Oldest = s.Now().UTC()
	}
}

func (s *sender) missed(e *digestlog.Entry, why string) {
	s.status.Missed++
	s.Logger.Warn("a snapshot was not sent", "run", s.run, "snapshot", e.Name, "step", e.Step, "why", why, "missed", s.status.Missed)
}

func (s *sender) refuse(e *digestlog.Entry, err error) {
	s.status.Refused++
	s.status.Fault, s.status.Since = err.Error(), s.Now().UTC()
	s.Logger.Error("a snapshot cannot be sent", "run", s.run, "snapshot", e.Name, "step", e.Step, "err", err)
}

// fault notes what is wrong, once aloud, and in the status for who looks.
func (s *sender) fault(err error) {
	said := s.status.Tries > 0
	if !said {
		s.status.Since = s.Now().UTC()
	}
	s.status.Fault, s.status.Tries = err.Error(), s.status.Tries+1
	if !said {
		s.Logger.Warn("the remote store takes nothing; recording goes on, and it is tried again", "run", s.run, "to", s.To.String(), "err", err)
	}
	if err := s.save(); err != nil {
		s.Logger.Warn("the status cannot be saved", "sink", Name, "err", err)
	}
}

// well ends a fault.
func (s *sender) well() {
	if s.status.Tries == 0 {
		return
	}
	s.Logger.Warn("the remote store takes snapshots again", "run", s.run, "tries", s.status.Tries, "after", s.Now().Sub(s.status.Since).Round(time.Millisecond))
	s.status.Fault, s.status.Since, s.status.Tries = "", time.Time{}, 0
	s.tries.Progress()
}

func (s *sender) save() error {
	s.status.Updated = s.Now().UTC()
	return s.status.write(s.FS, s.Dir)
}

// begin looks at what is there, once, and sees that the manifests of all generations are.
func (s *sender) begin(ctx context.Context, l *ledger, head *digestlog.SignedTreeHead) error {
	if !s.known {
		if err := s.survey(ctx, l); err != nil {
			return err
		}
		s.known = true
	}
	return s.sendManifests(ctx, l, head)
}

// key is the key of something in this run.
func (s *sender) key(name string) string { return s.To.key(s.run, name) }

// survey finds out what of the run is there, and clears away what an earlier process left half done.
func (s *sender) survey(ctx context.Context, l *ledger) error {
	list, err := s.Store.List(ctx, s.key(""))
	if err != nil {
		return err
	}
	sizes := map[string]int64{}
	for _, o := range list {
		sizes[strings.TrimPrefix(o.Key, s.key(""))] = o.Size
	}
	if s.manifests, err = s.surveyManifests(ctx, l, sizes); err != nil {
		return err
	}
	s.there = map[string]*snapshotDoc{}
	for name := range sizes {
		snap, ok := strings.CutPrefix(name, snapshotDir)
		snap, isProof := strings.CutSuffix(snap, proofSuffix)
		if !ok || !isProof || !isSnapshot(snap) {
			continue
		}
		d, err := s.surveySnapshot(ctx, l, snap, sizes)
		if err != nil {
			return err
		}
		if d != nil {
			s.there[snap] = d
		}
	}
	s.missing(l)
	if err := s.clear(ctx, l, sizes); err != nil {
		return err
	}
	s.newest()
	return nil
}

// surveySnapshot reads the proof of a snapshot that is there. It is nil where it, or its size, is not what was sent: then it is sent again if it can be.
func (s *sender) surveySnapshot(ctx context.Context, l *ledger, name string, sizes map[string]int64) (*snapshotDoc, error) {
	b, err := fetch(ctx, s.Store, s.key(snapshotDir+name+proofSuffix), maxSnapshotProof)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	var d *snapshotDoc
	if err == nil {
		d, err = parseSnapshotDoc(b, s.run, name)
	}
	var p *digestlog.Proof
	if err == nil {
		p, err = digestlog.ParseProof([]byte(d.Proof))
	}
	if err != nil {
		s.Logger.Warn("a proof in the remote store is damaged", "run", s.run, "snapshot", name, "err", err)
		return nil, nil
	}
	i, ok := l.byName[name]
	if !ok || !bytes.Equal(l.snapshots[i].raw, p.Entry) {
		return nil, fmt.Errorf("%w: %s is another one than this run's log has; two copies of one run may have gone on", ErrConflict, s.To.OfRun(s.run)+"/"+snapshotDir+name)
	}
	if sizes[snapshotDir+name] != d.Size {
		s.Logger.Warn("a snapshot in the remote store is damaged or gone", "run", s.run, "snapshot", name, "size", sizes[snapshotDir+name], "want", d.Size)
		return nil, nil
	}
	return d, nil
}

// missing has those sent once more that were settled, are still here, and are not there any more, though retention would keep them: somebody has
// removed or damaged them.
func (s *sender) missing(l *ledger) {
	var all []snapshot.Info
	for name, d := range s.there {
		all = append(all, d.info(name, l.rewinds.effective(name)))
	}
	lost := map[string]bool{}
	for name, i := range l.byName {
		if s.there[name] != nil || l.pruned[name] || l.snapshots[i].index >= s.status.Next || !l.rewinds.effective(name) {
			continue
		}
		info, err := describe(s.FS, s.Dir.Snapshot(name))
		if err != nil {
			continue // it was refused, and is refused again where it is sent
		}
		info.Name, info.Verified, lost[name] = name, true, true
		all = append(all, info)
	}
	for _, info := range snapshot.Plan(all, s.Retention, s.Now()) {
		delete(lost, info.Name)
	}
	for name := range lost {
		s.Logger.Warn("a snapshot is not in the remote store any more, or damaged there; it is sent again", "run", s.run, "snapshot", name)
	}
	s.resend = lost
}

// clear removes what is of no use: uploads that nobody will end, snapshots whose proof never came, or whose removal was cut off.
func (s *sender) clear(ctx context.Context, l *ledger, sizes map[string]int64) error {
	if err := s.abort(ctx, s.key(snapshotDir)); err != nil {
		return err
	}
	for name := range sizes {
		snap, ok := strings.CutPrefix(name, snapshotDir)
		if !ok || !isSnapshot(snap) || s.there[snap] != nil {
			continue
		}
		if _, proof := sizes[name+proofSuffix]; proof {
			continue // a damaged one: evidence, until it is sent again
		}
		if i, logged := l.byName[snap]; logged && (l.snapshots[i].index >= s.status.Next || s.resend[snap]) && !l.pruned[snap] {
			continue // its proof is yet to be written
		}
		if err := s.Store.Remove(ctx, s.key(name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *sender) newest() {
	var best snapshot.Meta
	s.status.Newest, s.status.Step = "", 0
	for name := range s.there {
		step, generation, _ := snapshot.ParseFileName(name)
		if s.status.Newest == "" || generation > best.Generation || generation == best.Generation && step > best.Step {
			s.status.Newest, s.status.Step = name, step
			best.Generation, best.Step = generation, step
		}
	}
}
