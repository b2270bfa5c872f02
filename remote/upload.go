package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// errPruned says that a snapshot went away while it was looked at: the log will say so.
var errPruned = errors.New("remote: the snapshot was pruned")

// partial is an upload that was begun and is not ended: what of it the store has need not be sent again.
type partial struct {
	name string
	id   string
	tags []string // of the parts that are there
}

// send brings a snapshot there: what it refers to, itself, then its proof.
func (s *sender) send(ctx context.Context, l *ledger, head *digestlog.SignedTreeHead, e logged) error {
	name := e.entry.Name
	path := s.Dir.Snapshot(name)
	if _, err := s.FS.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return s.gone(name)
	}
	info, err := describe(s.FS, path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.gone(name)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLocal, err)
	}
	d := &snapshotDoc{
		Format: snapshotFormat, Version: formatVersion, RunID: s.run, Name: name, Size: int64(e.entry.Size), SHA256: e.entry.SHA256,
		Created: info.Created.UTC(), Reason: info.Reason, Encrypted: info.Encrypted,
	}
	for _, b := range info.Bases {
		d.Bases = append(d.Bases, b.Name)
		if err := s.sendBase(ctx, l, head, b); err != nil {
			return err
		}
	}
	if err := s.object(ctx, e.entry); err != nil {
		return err
	}
	proof, err := digestlog.Prove(s.FS, s.Dir.Digests(), head, e.index)
	if err != nil {
		return fmt.Errorf("prove snapshot %s: %w", name, err)
	}
	d.Proof = string(proof.Append(nil))
	b, err := encode(d)
	if err != nil {
		return err
	}
	if err := s.put(ctx, snapshotDir+name+proofSuffix, b); err != nil {
		return err
	}
	s.there[name] = d
	s.newest()
	return nil
}

// gone is the error for a snapshot that is not in the run directory: pruned, as long as somebody can have pruned it, else lost.
func (s *sender) gone(name string) error {
	if l, err := readLedger(s.FS, s.Dir); s.Recorded() || err == nil && l.pruned[name] {
		return errPruned
	}
	return fmt.Errorf("%w: %s is gone", ErrLocal, s.Dir.Snapshot(name))
}

// describe reads header and index of a snapshot.
func describe(fsys vfs.FS, path string) (snapshot.Info, error) {
	m, sections, err := snapshot.Inspect(fsys, path)
	if err != nil {
		return snapshot.Info{}, err
	}
	info := snapshot.Info{Meta: m}
	seen := map[string]bool{}
	for i := range sections {
		info.Encrypted = info.Encrypted || sections[i].Encrypted
		if b := sections[i].Base; b.Name != "" && !seen[b.Name] {
			seen[b.Name] = true
			info.Bases = append(info.Bases, b)
		}
	}
	return info, nil
}

// sendBase sees that a snapshot is there before what refers to it.
func (s *sender) sendBase(ctx context.Context, l *ledger, head *digestlog.SignedTreeHead, b snapshot.Base) error {
	if d := s.there[b.Name]; d != nil && d.SHA256 == b.SHA256 {
		return nil
	}
	i, ok := l.byName[b.Name]
	if !ok || l.snapshots[i].entry.SHA256 != b.SHA256 {
		return fmt.Errorf("%w: it refers to %s, which the log does not have", ErrLocal, b.Name)
	}
	if err := s.send(ctx, l, head, l.snapshots[i]); err != nil {
		return fmt.Errorf("%s, which it refers to: %w", b.Name, err)
	}
	return nil
}

// object makes the object of a snapshot, in parts if it is large. What is sent is read once more from the disk and held against the log.
func (s *sender) object(ctx context.Context, e digestlog.Entry) error {
	key := s.key(snapshotDir + e.Name)
	sum := hex.EncodeToString(e.SHA256[:])
	o, err := s.Store.Stat(ctx, key)
	switch {
	case err == nil && o.Size == int64(e.Size) && o.SHA256 == sum && !s.resend[e.Name]:
		s.drop(ctx)
		return nil // of a try whose answer was lost
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	}
	f, err := s.FS.OpenFile(s.Dir.Snapshot(e.Name), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s.gone(e.Name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	t := Tags{SHA256: sum}
	if int64(e.Size) <= s.Part {
		b, err := io.ReadAll(io.LimitReader(f, int64(e.Size)+1))
		if err != nil {
			return err
		}
		if len(b) != int(e.Size) || sha256.Sum256(b) != e.SHA256 {
			return fmt.Errorf("%w: %s is not what the log names", ErrLocal, f.Name())
		}
		return s.Store.Put(ctx, key, b, t)
	}
	return s.parts(ctx, key, e, f, t)
}

// parts sends a large snapshot. One that was cut off in this process goes on behind the last part that arrived.
func (s *sender) parts(ctx context.Context, key string, e digestlog.Entry, f io.Reader, t Tags) error {
	if p := s.partial; p == nil || p.name != e.Name {
		s.drop(ctx)
		if err := s.abort(ctx, key); err != nil { // one that was begun, and whose answer was lost
			return err
		}
		id, err := s.Store.Begin(ctx, key, t)
		if err != nil {
			return err
		}
		s.partial = &partial{name: e.Name, id: id}
	}
	p := s.partial
	sum, left := sha256.New(), int64(e.Size)
	buf := make([]byte, min(partSize(s.Part, left), left))
	for n := 1; left > 0; n++ {
		b := buf[:min(int64(len(buf)), left)]
		if _, err := io.ReadFull(f, b); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return err
		} else if err != nil {
			s.drop(ctx)
			return fmt.Errorf("%w: %s is too short", ErrLocal, e.Name)
		}
		sum.Write(b)
		left -= int64(len(b))
		if n <= len(p.tags) {
			continue
		}
		tag, err := s.Store.Part(ctx, key, p.id, n, b)
		if err != nil {
			return s.broken(err)
		}
		p.tags = append(p.tags, tag)
	}
	if !bytes.Equal(sum.Sum(nil), e.SHA256[:]) {
		s.drop(ctx)
		return fmt.Errorf("%w: %s is not what the log names", ErrLocal, e.Name)
	}
	if err := s.Store.Finish(ctx, key, p.id, p.tags, t); err != nil {
		return s.broken(err)
	}
	s.partial = nil
	return nil
}

// maxParts is how many parts S3 takes.
const maxParts = 10_000

// partSize is the size of the parts of an object: larger ones than wanted where they would be too many.
func partSize(want, size int64) int64 { return max(want, (size+maxParts-1)/maxParts) }

// broken forgets an upload that the store does not know any more: the next try begins anew.
func (s *sender) broken(err error) error {
	if errors.Is(err, ErrNotFound) && !isNoBucket(err) {
		s.partial = nil
		return fmt.Errorf("%w: the upload was given up there: %v", ErrUnreachable, err)
	}
	return err
}

// drop gives up an upload, as well as it can: what stays is cleared when the next process looks.
func (s *sender) drop(ctx context.Context) {
	if p := s.partial; p != nil {
		s.partial = nil
		if err := s.Store.Abort(ctx, s.key(snapshotDir+p.name), p.id); err != nil {
			s.Logger.Info("an upload could not be given up yet", "run", s.run, "snapshot", p.name, "err", err)
		}
	}
}

// abort gives up all uploads of keys that begin so.
func (s *sender) abort(ctx context.Context, prefix string) error {
	uploads, err := s.Store.Uploads(ctx, prefix)
	if err != nil {
		return err
	}
	for _, u := range uploads {
		if err := s.Store.Abort(ctx, u.Key, u.ID); err != nil {
			return err
		}
		s.Logger.Info("an upload that was cut off was given up", "run", s.run, "key", u.Key)
	}
	return nil
}

// put makes a JSON object.
func (s *sender) put(ctx context.Context, name string, b []byte) error {
	sum := sha256.Sum256(b)
	return s.Store.Put(ctx, s.key(name), b, Tags{SHA256: hex.EncodeToString(sum[:]), Text: true})
}

// surveyManifests says for how many OPEN entries the manifests are there, as they are here.
func (s *sender) surveyManifests(ctx context.Context, l *ledger, sizes map[string]int64) (int, error) {
	if _, ok := sizes[manifestProof]; !ok {
		return 0, nil
	}
	b, err := fetch(ctx, s.Store, s.key(manifestProof), maxManifestsProof)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	d, err := parseManifestsDoc(b, s.run)
	if err != nil {
		s.Logger.Warn("the proof of the manifests in the remote store is damaged; it is written anew", "run", s.run, "err", err)
		return 0, nil
	}
	for i, m := range d.Manifests {
		p, err := digestlog.ParseProof([]byte(m.Proof))
		if err != nil {
			return 0, nil
		}
		if i >= len(l.opens) || !bytes.Equal(p.Entry, l.opens[i].raw) {
			return 0, fmt.Errorf("%w: %s is of another one than this run's log has; two copies of one run may have gone on", ErrConflict, s.To.OfRun(s.run)+"/"+manifestProof)
		}
		name := rundir.ManifestName(m.Generation)
		local, err := vfs.ReadFile(s.FS, s.Dir.Manifest(m.Generation), rundir.MaxManifest)
		if err != nil {
			return 0, err
		}
		stored, err := fetch(ctx, s.Store, s.key(name), rundir.MaxManifest)
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
			return 0, err
		}
		if !bytes.Equal(local, stored) {
			s.Logger.Warn("a manifest in the remote store is damaged or gone; it is written anew", "run", s.run, "manifest", name)
			return 0, nil
		}
	}
	return len(d.Manifests), nil
}

// sendManifests brings the manifests of all generations that have begun, and their proofs behind them.
func (s *sender) sendManifests(ctx context.Context, l *ledger, head *digestlog.SignedTreeHead) error {
	covered := 0
	for covered < len(l.opens) && l.opens[covered].index < head.Size {
		covered++
	}
	if covered <= s.manifests {
		return nil
	}
	d := manifestsDoc{Format: manifestsFormat, Version: formatVersion, RunID: s.run}
	for i, o := range l.opens[:covered] {
		g := o.entry.Generation
		if i >= s.manifests {
			b, err := vfs.ReadFile(s.FS, s.Dir.Manifest(g), rundir.MaxManifest)
			if err != nil {
				return err
			}
			if sha256.Sum256(b) != o.entry.Manifest {
				return fmt.Errorf("%w: %s is not what the log names", ErrLocal, s.Dir.Manifest(g))
			}
			if err := s.put(ctx, rundir.ManifestName(g), b); err != nil {
				return err
			}
		}
		p, err := digestlog.Prove(s.FS, s.Dir.Digests(), head, o.index)
		if err != nil {
			return fmt.Errorf("prove manifest %d: %w", g, err)
		}
		d.Manifests = append(d.Manifests, manifestProofDoc{g, string(p.Append(nil))})
	}
	b, err := encode(&d)
	if err != nil {
		return err
	}
	if err := s.put(ctx, manifestProof, b); err != nil {
		return err
	}
	s.manifests = covered
	return nil
}

// prune removes there what retention gives up: the proof first, so that nothing counts that is half gone.
func (s *sender) prune(ctx context.Context, l *ledger) error {
	var infos []snapshot.Info
	for name, d := range s.there {
		infos = append(infos, d.info(name, l.rewinds.effective(name)))
	}
	for _, info := range snapshot.Plan(infos, s.Retention, s.Now()) {
		if s.LockFor > 0 && s.Now().Sub(info.Created) < s.LockFor {
			continue
		}
		err := remove(ctx, s.Store, s.To, s.run, info.Name)
		if errors.Is(err, ErrDenied) { // credentials that may add and not remove make sense
			if !s.kept {
				s.Logger.Warn("the remote store lets nothing be removed; more is kept there than the settings say", "run", s.run, "err", err)
			}
			s.kept = true
			return nil
		}
		if err != nil {
			return err
		}
		delete(s.there, info.Name)
		s.status.Pruned++
	}
	return nil
}

var errAbandoned = errors.New("on an abandoned timeline")

// info is what retention wants to know of a snapshot. What no resume would load stays as evidence.
func (d *snapshotDoc) info(name string, effective bool) snapshot.Info {
	step, generation, _ := snapshot.ParseFileName(name)
	info := snapshot.Info{Name: name, Size: d.Size, Verified: effective, Meta: snapshot.Meta{Step: step, Generation: generation, Created: d.Created}}
	for _, b := range d.Bases {
		info.Bases = append(info.Bases, snapshot.Base{Name: b})
	}
	if !effective {
		info.Err = errAbandoned
	}
	return info
}

// remove removes a snapshot from a store.
func remove(ctx context.Context, store Store, to Address, run, name string) error {
	if err := store.Remove(ctx, to.key(run, snapshotDir+name+proofSuffix)); err != nil {
		return err
	}
	return store.Remove(ctx, to.key(run, snapshotDir+name))
}

// fetch reads a whole object of at most limit bytes; a larger one is damaged.
func fetch(ctx context.Context, store Store, key string, limit int64) ([]byte, error) {
	r, size, err := store.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrDamaged, key, size, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrDamaged, key, limit)
	}
	return b, nil
}
