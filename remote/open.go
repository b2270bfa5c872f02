package remote

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// Run is a run in a store. What it says was held against the run's log, by the keys that Open was given.
type Run struct {
	ID        string
	Address   Address
	Manifests []*rundir.Manifest // of the generations that have begun, by generation
	Snapshots []*Snapshot        // with a proof, the one to go on from first; those that no resume would load, and damaged ones, behind
	Partial   []string           // snapshots without a proof: their upload was not ended, or their removal

	store Store
	texts map[uint32][]byte // of the manifests
}

// ManifestText is the file of a generation's manifest, as it was checked.
func (r *Run) ManifestText(generation uint32) []byte { return r.texts[generation] }

// Snapshot is one of a run. With Err only Name, Step and Generation mean anything.
type Snapshot struct {
	Name       string
	Step       uint64
	Generation uint32
	Size       int64
	SHA256     [32]byte
	Seq        uint64
	Created    time.Time // as the store says
	Reason     uint32    // likewise
	Encrypted  bool      // likewise
	Bases      []string  // likewise; Fetch holds all of this against the snapshot itself
	Stored     int64     // bytes there; -1: it is gone
	Current    bool      // a resume would load it: no generation went back behind it
	Proof      []byte    // C2SP tlog-proof of the SNAPSHOT entry
	Err        error     // what is wrong with its proof, or that it is gone
}

// FindLatest is the id of the newest run that has a snapshot with a proof.
func FindLatest(ctx context.Context, store Store, a Address) (string, error) {
	prefix := ""
	if a.Prefix != "" {
		prefix = a.Prefix + "/"
	}
	list, err := store.List(ctx, prefix)
	if err != nil {
		return "", err
	}
	newest := ""
	for _, o := range list {
		id, rest, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
		name, proof := strings.CutSuffix(strings.TrimPrefix(rest, snapshotDir), proofSuffix)
		if proof && strings.HasPrefix(rest, snapshotDir) && isSnapshot(name) && rundir.ValidID(id) && id > newest {
			newest = id
		}
	}
	if newest == "" {
		return "", fmt.Errorf("%w: no run with a snapshot is in %v", ErrNotFound, a)
	}
	return newest, nil
}

// Open reads the manifests and proofs of a run and checks them. keys are who may have signed; nil: whoever the run's own first manifest names, which
// shows that everything belongs together, and not whose it is. Its error is ErrNotFound if nothing of the run is there,
// ErrDamaged if its manifests do not verify, digestlog.ErrWrongKey if somebody else has signed them.
func Open(ctx context.Context, store Store, a Address, id string, keys note.Verifiers) (*Run, error) {
	r := &Run{ID: id, Address: a, store: store, texts: map[uint32][]byte{}}
	list, err := store.List(ctx, a.key(id, ""))
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no run %s is in %v", ErrNotFound, id, a)
	}
	if err := r.readManifests(ctx, &keys); err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	for _, o := range list {
		if name, ok := strings.CutPrefix(o.Key, a.key(id, snapshotDir)); ok {
			sizes[name] = o.Size
		}
	}
	back := r.rewinds()
	for name := range sizes {
		snap, proof := strings.CutSuffix(name, proofSuffix)
		if !isSnapshot(snap) {
			continue
		}
		if !proof {
			if _, ok := sizes[snap+proofSuffix]; !ok {
				r.Partial = append(r.Partial, snap)
			}
			continue
		}
		s, err := r.readSnapshot(ctx, snap, keys)
		if err != nil {
			return nil, err
		}
		s.Current = s.Err == nil && back.effective(snap)
		s.stored(sizes)
		r.Snapshots = append(r.Snapshots, s)
	}
	slices.Sort(r.Partial)
	slices.SortFunc(r.Snapshots, func(a, b *Snapshot) int {
		return cmp.Or(-cmp.Compare(rank(back, a), rank(back, b)), -cmp.Compare(a.Generation, b.Generation), -cmp.Compare(a.Step, b.Step))
	})
	return r, nil
}

// rank puts what a resume would look at first, also where it turns out to be damaged.
func rank(back rewinds, s *Snapshot) int {
	if back.effective(s.Name) {
		return 1
	}
	return 0
}

// stored notes how much of a snapshot is there.
func (s *Snapshot) stored(sizes map[string]int64) {
	size, ok := sizes[s.Name]
	switch {
	case !ok:
		s.Stored = -1
		s.fail(errors.New("it is gone, only its proof is there"))
	case s.Err == nil && size != s.Size:
		s.Stored = size
		s.fail(fmt.Errorf("it has %d bytes, want %d", size, s.Size))
	default:
		s.Stored = size
	}
}

func (s *Snapshot) fail(err error) {
	if s.Err == nil {
		s.Err = fmt.Errorf("%s: %w: %w", s.Name, ErrDamaged, err)
	}
}

// rewinds are where the generations of a run went on, as their manifests say.
func (r *Run) rewinds() rewinds {
	back := rewinds{}
	for _, m := range r.Manifests {
		if to := m.Resumed; to != nil {
			back[m.Generation] = rewind{to.Step, to.SnapshotSHA256 == rundir.Hash{}}
		}
	}
	return back
}

// damaged says what is wrong with an object. A wrong key stays one.
func (r *Run) damaged(name string, err error) error {
	if errors.Is(err, digestlog.ErrWrongKey) {
		return fmt.Errorf("%s/%s: %w", r.Address.OfRun(r.ID), name, err)
	}
	return fmt.Errorf("%s/%s: %w: %w", r.Address.OfRun(r.ID), name, ErrDamaged, err)
}

// gone makes an object that has to be there, and is not, a damage; other errors are not about the object.
func gone(err error) (damage, other error) {
	switch {
	case isNoBucket(err):
		return nil, err
	case errors.Is(err, ErrNotFound):
		return errors.New("it is gone"), nil
	case errors.Is(err, ErrDamaged):
		return err, nil
	}
	return nil, err
}

// readManifests reads and checks the manifests. Without keys it fills in those that they name.
func (r *Run) readManifests(ctx context.Context, keys *note.Verifiers) error {
	b, err := fetch(ctx, r.store, r.Address.key(r.ID, manifestProof), maxManifestsProof)
	if err != nil {
		damage, other := gone(err)
		if other != nil {
			return other
		}
		return r.damaged(manifestProof, damage)
	}
	d, err := parseManifestsDoc(b, r.ID)
	if err != nil {
		return r.damaged(manifestProof, err)
	}
	for _, p := range d.Manifests {
		name := rundir.ManifestName(p.Generation)
		text, err := fetch(ctx, r.store, r.Address.key(r.ID, name), rundir.MaxManifest)
		if err != nil {
			damage, other := gone(err)
			if other != nil {
				return other
			}
			return r.damaged(name, damage)
		}
		m, err := rundir.ParseManifest(text)
		if err != nil {
			return r.damaged(name, err)
		}
		if *keys == nil {
			v, err := note.NewVerifier(m.Signer)
			if err != nil {
				return r.damaged(name, errors.New("the signer is not a verifier key"))
			}
			*keys = note.VerifierList(v)
		}
		e, err := proven([]byte(p.Proof), r.ID, digestlog.KindOpen, *keys)
		if err != nil {
			return r.damaged(manifestProof, err)
		}
		if e.Manifest != sha256.Sum256(text) || e.Generation != p.Generation || m.Generation != p.Generation || m.RunID != r.ID {
			return r.damaged(name, errors.New("it is not the manifest that the run's log names"))
		}
		r.Manifests, r.texts[m.Generation] = append(r.Manifests, m), text
	}
	return nil
}

// readSnapshot reads and checks the proof of a snapshot. The error is of the store, or of a wrong key; what is damaged is in the snapshot.
func (r *Run) readSnapshot(ctx context.Context, name string, keys note.Verifiers) (*Snapshot, error) {
	s := &Snapshot{Name: name}
	s.Step, s.Generation, _ = snapshot.ParseFileName(name)
	b, err := fetch(ctx, r.store, r.Address.key(r.ID, snapshotDir+name+proofSuffix), maxSnapshotProof)
	if err != nil {
		damage, other := gone(err)
		if other != nil {
			return nil, other
		}
		s.fail(fmt.Errorf("its proof: %w", damage))
		return s, nil
	}
	d, err := parseSnapshotDoc(b, r.ID, name)
	if err != nil {
		s.fail(fmt.Errorf("its proof: %w", err))
		return s, nil
	}
	e, err := d.entry(keys)
	if errors.Is(err, digestlog.ErrWrongKey) {
		return nil, r.damaged(snapshotDir+name+proofSuffix, err)
	}
	if err != nil {
		s.fail(fmt.Errorf("its proof: %w", err))
		return s, nil
	}
	s.Size, s.SHA256, s.Seq = int64(e.Size), e.SHA256, e.Seq
	s.Created, s.Reason, s.Encrypted, s.Bases, s.Proof = d.Created, d.Reason, d.Encrypted, d.Bases, []byte(d.Proof)
	return s, nil
}

// Fetch brings a snapshot, and what it refers to, into a directory, where they are files of mode 0600 under their own names. Files that are there already,
// whole, are not fetched again. What is not what the log vouches for is removed, and the error is ErrDamaged.
func (r *Run) Fetch(ctx context.Context, fsys vfs.FS, s *Snapshot, dir string) (path string, err error) {
	if s.Err != nil {
		return "", s.Err
	}
	path = filepath.Join(dir, s.Name)
	if err := r.fetch(ctx, fsys, s.Name, path, s.Size, s.SHA256); err != nil {
		return "", err
	}
	info, err := describe(fsys, path)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", s.Name, ErrDamaged, err)
	}
	if !s.describes(&info) {
		return "", fmt.Errorf("%s: %w: what is said of it beside its proof is not so", s.Name, ErrDamaged)
	}
	for _, b := range info.Bases {
		if err := r.fetch(ctx, fsys, b.Name, filepath.Join(dir, b.Name), b.Size, b.SHA256); err != nil {
			return "", fmt.Errorf("%s refers to %w", s.Name, err)
		}
	}
	return path, nil
}

// describes says whether what the store says of a snapshot beside the proof is what the snapshot says itself.
func (s *Snapshot) describes(info *snapshot.Info) bool {
	return s.Created.Equal(info.Created) && s.Reason == info.Reason && s.Encrypted == info.Encrypted &&
		slices.EqualFunc(s.Bases, info.Bases, func(name string, b snapshot.Base) bool { return name == b.Name })
}

// fetch brings one object into a file, if its bytes have the sum.
func (r *Run) fetch(ctx context.Context, fsys vfs.FS, name, path string, size int64, want [32]byte) error {
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w: %s", name, ErrDamaged, fmt.Sprintf(format, args...))
	}
	if have, err := fileSum(fsys, path); err == nil && have == want {
		return nil
	}
	in, stored, err := r.store.Open(ctx, r.Address.key(r.ID, snapshotDir+name))
	if err != nil {
		damage, other := gone(err)
		if other != nil {
			return other
		}
		return damaged("%v", damage)
	}
	defer in.Close()
	if stored != size {
		return damaged("it has %d bytes, want %d", stored, size)
	}
	sum := sha256.New()
	var broken, damage error // of the store; of the object
	err = vfs.Create(fsys, path, 0o600, func(f vfs.File) error {
		n, err := io.Copy(io.MultiWriter(f, sum), &noting{Reader: io.LimitReader(in, size+1), err: &broken})
		switch {
		case err != nil:
			return err
		case n != size:
			damage = damaged("it has %d bytes, want %d", n, size)
		case [32]byte(sum.Sum(nil)) != want:
			damage = damaged("its SHA-256 is %s, the log has %s", hex.EncodeToString(sum.Sum(nil)), hex.EncodeToString(want[:]))
		}
		return damage
	})
	return cmp.Or(broken, damage, err)
}

// noting remembers an error of reading, to tell it from one of writing.
type noting struct {
	io.Reader
	err *error
}

func (n *noting) Read(b []byte) (int, error) {
	c, err := n.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		*n.err = err
	}
	return c, err
}

func fileSum(fsys vfs.FS, path string) (sum [32]byte, err error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [32]byte(h.Sum(nil)), nil
}

// Prune removes the snapshots that retention gives up, as Send does while a run is recorded, and says which. With dry it removes nothing. Damaged ones stay:
// they are evidence.
func (r *Run) Prune(ctx context.Context, keep snapshot.Retention, lockFor time.Duration, now time.Time, dry bool) (names []string, err error) {
	var infos []snapshot.Info
	for _, s := range r.Snapshots {
		info := snapshot.Info{Name: s.Name, Size: s.Size, Verified: s.Current && s.Err == nil, Err: s.Err}
		info.Step, info.Generation, info.Created = s.Step, s.Generation, s.Created
		for _, b := range s.Bases {
			info.Bases = append(info.Bases, snapshot.Base{Name: b})
		}
		if s.Err == nil && !s.Current {
			info.Err = errAbandoned
		}
		infos = append(infos, info)
	}
	for _, info := range snapshot.Plan(infos, keep, now) {
		if lockFor > 0 && now.Sub(info.Created) < lockFor {
			continue
		}
		if !dry {
			if err := remove(ctx, r.store, r.Address, r.ID, info.Name); err != nil {
				return names, err
			}
		}
		names = append(names, info.Name)
	}
	return names, nil
}
