package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/snapshot"
)

const day = 24 * time.Hour

// openStore prepares access to a bucket, with the settings of this machine.
func (a *app) openStore(bucket string) (remote.Store, error) {
	c := &a.cfg.Snapshot
	store, err := remote.OpenS3(remote.S3Options{
		Bucket: bucket, Endpoint: c.RemoteEndpoint, Lock: c.RemoteLock, LockFor: time.Duration(c.RemoteLockDays) * day,
		Timeout: time.Duration(a.cfg.Sinks.Timeout), Env: a.env, Now: a.now,
	})
	return store, remoteError(err)
}

// lockFor is how long an object cannot be removed; 0 without a lock.
func (a *app) lockFor() time.Duration {
	if a.cfg.Snapshot.RemoteLock == remote.LockNone {
		return 0
	}
	return time.Duration(a.cfg.Snapshot.RemoteLockDays) * day
}

// retention is which snapshots stay; the zero value keeps all.
func (a *app) retention() snapshot.Retention {
	c := &a.cfg.Snapshot
	return snapshot.Retention{KeepLast: c.KeepLast, KeepEvery: c.KeepEvery, MaxAge: time.Duration(c.MaxAge)}
}

// remoteError gives an error of a remote store its exit code.
func remoteError(err error) error {
	var code *codeError
	switch {
	case err == nil || errors.As(err, &code):
		return err
	case errors.Is(err, remote.ErrAddress):
		return usageError(err)
	case errors.Is(err, digestlog.ErrWrongKey):
		return withCode(exitWrongKey, err)
	case errors.Is(err, remote.ErrDamaged), errors.Is(err, remote.ErrConflict), errors.Is(err, remote.ErrLocal):
		return withCode(exitFailed, err)
	case errors.Is(err, remote.ErrNotFound):
		return withCode(exitNotFound, err)
	case errors.Is(err, remote.ErrUnreachable):
		return withCode(exitUnreachable, err)
	}
	return err
}

// sendRemote brings the snapshots of a run to the remote store.
func (a *app) sendRemote(ctx context.Context, dir rundir.Dir, f sinkFlags) error {
	c := &a.cfg.Snapshot
	to, err := remote.ParseAddress(c.Remote)
	if err != nil {
		return usageError(err)
	}
	store, err := a.openStore(to.Bucket)
	if err != nil {
		return err
	}
	err = remote.Send(ctx, remote.Options{
		Dir: dir, Store: store, To: to, Part: int64(c.RemotePart), Retention: a.retention(), LockFor: a.lockFor(), Pace: a.pace(dir, f),
	})
	if errors.Is(err, sink.ErrPatience) {
		return err // sinkError says what to do
	}
	return remoteError(err)
}

// remoteReport is how far the snapshots of a run are in the remote store, if they ever were sent.
func (a *app) remoteReport(dir rundir.Dir) (*remote.Status, error) {
	s, ok, err := remote.ReadStatus(a.fs, dir)
	if err != nil || !ok {
		return nil, err
	}
	return &s, nil
}

// remoteText is the status on one line.
func remoteText(s *remote.Status) string {
	text := fmt.Sprintf("%s sent, %d waiting", count(s.Sent, "snapshot"), s.Waiting)
	if s.Waiting > 0 && !s.Oldest.IsZero() {
		text += " since " + s.Oldest.Format(time.RFC3339)
	}
	if s.Missed > 0 {
		text += fmt.Sprintf(", %d pruned here before they were sent", s.Missed)
	}
	if s.Refused > 0 {
		text += fmt.Sprintf(", %d damaged here and not sent", s.Refused)
	}
	if s.Pruned > 0 {
		text += fmt.Sprintf(", %d pruned there", s.Pruned)
	}
	if s.Newest != "" {
		text += fmt.Sprintf("; newest of step %d", s.Step)
	}
	text += ", at " + s.To
	if s.Fault != "" {
		text += fmt.Sprintf("; since %s: %s", s.Since.Format(time.RFC3339), s.Fault)
	}
	return text
}

// remoteRun opens the run that an address names, and says who has signed it. With a key only what that one has signed counts; without, what this
// user's own has, if it is the one that the run names, and else whatever the run names itself.
func (a *app) remoteRun(ctx context.Context, text, key string) (r *remote.Run, trust string, err error) {
	at, id, err := remote.ParseRun(text)
	if err != nil {
		return nil, "", usageError(err)
	}
	store, err := a.openStore(at.Bucket)
	if err != nil {
		return nil, "", err
	}
	if id == remote.Latest {
		if id, err = remote.FindLatest(ctx, store, at); err != nil {
			return nil, "", remoteError(err)
		}
	}
	var keys note.Verifiers
	v, trust, err := a.proofKey(key)
	if err != nil {
		return nil, "", err
	}
	if trust == trustGiven {
		keys = verifierList(v)
	}
	r, err = remote.Open(ctx, store, at, id, keys)
	if err != nil {
		if errors.Is(err, digestlog.ErrWrongKey) && trust == trustGiven {
			return nil, "", withCode(exitWrongKey, fmt.Errorf("%s: signed %s", at.OfRun(id), whoseKey(trust, err)))
		}
		return nil, "", remoteError(err)
	}
	if trust == trustGiven {
		return r, trust, nil
	}
	if signer, err := note.NewVerifier(r.Manifests[0].Signer); err == nil && v != nil && signer.Name() == v.Name() && signer.KeyHash() == v.KeyHash() && r.Manifests[0].Signer == a.ownKey() {
		return r, trustOwn, nil
	}
	fmt.Fprintf(a.err, "usp: warning: no --key: the key that the store itself names is believed, %s; whoever can write there can have made all of it\n", r.Manifests[0].Signer)
	return r, trustManifest, nil
}

// ownKey is this user's verifier key, or "".
func (a *app) ownKey() string {
	opts, err := a.recorderOptions()
	if err != nil {
		return ""
	}
	path, err := opts.SigningKeyFile()
	if err != nil {
		return ""
	}
	_, own, err := digestlog.LoadKey(a.fs, path)
	if err != nil {
		return ""
	}
	return own
}

// fetchDir makes a private directory for what is fetched, beside the runs if there is such a place.
func (a *app) fetchDir() (dir string, remove func(), err error) {
	parent := a.cfg.Run.Dir
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		parent = ""
	}
	if dir, err = os.MkdirTemp(parent, ".usp-remote-"); err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil // what is left is private and said to be temporary
}

// candidates are the snapshots that a resume would look at, best first; with a step only that one's.
func candidates(r *remote.Run, step *uint64) (list []*remote.Snapshot) {
	for _, s := range r.Snapshots {
		if (s.Current || s.Err != nil) && (step == nil || s.Step == *step) {
			list = append(list, s)
		}
	}
	return list
}

// noneOf is the error where no snapshot could be loaded.
func noneOf(r *remote.Run, rejected int, step *uint64) error {
	where := r.Address.OfRun(r.ID)
	switch {
	case rejected > 0:
		return withCode(exitFailed, fmt.Errorf("%s: no snapshot of the run can be loaded", where))
	case step != nil:
		return withCode(exitNotFound, fmt.Errorf("%s has no snapshot of step %d; usp snapshot ls %s lists them", where, *step, quoteArg(where)))
	}
	return withCode(exitNotFound, fmt.Errorf("%s has no snapshot", where))
}

// tryEach fetches one snapshot after the other, the best first, until use takes one. What is damaged is passed over and named; anything else, such as a
// store that does not answer or a missing key, ends it.
func (a *app) tryEach(ctx context.Context, r *remote.Run, step *uint64, dir string, use func(path string, s *remote.Snapshot) error) (found *remote.Snapshot, rejected []rejection, err error) {
	list := candidates(r, step)
	for i, s := range list {
		path, err := r.Fetch(ctx, a.fs, s, dir)
		if err == nil {
			err = use(path, s)
		}
		var damage *snapshot.CorruptError
		switch {
		case err == nil:
			return s, rejected, nil
		case errors.Is(err, remote.ErrDamaged), errors.As(err, &damage), errors.Is(err, snapshot.ErrMismatch), errors.Is(err, snapshot.ErrNotSnapshot):
		default:
			return nil, rejected, remoteError(err)
		}
		next := ""
		if i+1 < len(list) {
			next = fmt.Sprintf("; trying the one of step %d", list[i+1].Step)
		}
		fmt.Fprintf(a.err, "usp: warning: snapshot of step %d not loaded: %v%s\n", s.Step, err, next)
		rejected = append(rejected, rejection{Snapshot: s.Name, Step: s.Step, Generation: s.Generation, Reason: err.Error()})
	}
	return nil, rejected, noneOf(r, len(rejected), step)
}

// trustText says whose key it is that was checked.
func trustText(trust string) string {
	return map[string]string{trustGiven: "the key that was given", trustOwn: "your own key", trustManifest: "the key that the store itself names"}[trust]
}

// showPath is a path as a user would write it.
func showPath(path string) string { return cmp.Or(display(filepath.Clean(path)), path) }
