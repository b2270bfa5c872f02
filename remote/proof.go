package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/snapshot"
)

// Formats and version of the JSON files.
const (
	snapshotFormat  = "usp-remote-snapshot"
	manifestsFormat = "usp-remote-manifests"
	formatVersion   = 1
)

// Limits of what is read of a store.
const (
	maxSnapshotProof  = 4*digestlog.MaxProofFile + 64<<10
	maxManifestsProof = 16 << 20
	maxBases          = 1 << 10
	maxGenerations    = 1 << 16
)

// snapshotDoc is X.snap.json. Only what the proof shows is believed; the rest is for who lists or prunes.
type snapshotDoc struct {
	Format    string      `json:"format"`
	Version   int         `json:"version"`
	RunID     string      `json:"run_id"`
	Name      string      `json:"name"`
	Size      int64       `json:"size"`
	SHA256    rundir.Hash `json:"sha256"`
	Created   time.Time   `json:"created"`
	Reason    uint32      `json:"reason,omitempty"`
	Encrypted bool        `json:"encrypted,omitempty"`
	Bases     []string    `json:"bases,omitempty"` // names of the snapshots that it cannot be loaded without
	Proof     string      `json:"proof"`           // C2SP tlog-proof of the SNAPSHOT entry
}

// manifestsDoc is manifest.proof.json.
type manifestsDoc struct {
	Format    string             `json:"format"`
	Version   int                `json:"version"`
	RunID     string             `json:"run_id"`
	Manifests []manifestProofDoc `json:"manifests"` // by generation; one that never began is left out
}

type manifestProofDoc struct {
	Generation uint32 `json:"generation"`
	Proof      string `json:"proof"` // C2SP tlog-proof of the OPEN entry
}

// decode reads one JSON document strictly: there is one text of it, that of encode, so that no byte of it can change unseen.
func decode(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%d bytes, at most %d", len(b), limit)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errors.New("it is not the JSON that it should be")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON")
	}
	if again, err := encode(v); err != nil || !bytes.Equal(again, b) {
		return errors.New("it is not written as it should be")
	}
	return nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}

// parseSnapshotDoc reads X.snap.json of a run and checks its form, not its proof.
func parseSnapshotDoc(b []byte, run, name string) (*snapshotDoc, error) {
	d := new(snapshotDoc)
	if err := decode(b, maxSnapshotProof, d); err != nil {
		return nil, err
	}
	switch {
	case d.Format != snapshotFormat || d.Version != formatVersion:
		return nil, fmt.Errorf("format %.40q version %d, want %q version %d", d.Format, d.Version, snapshotFormat, formatVersion)
	case d.RunID != run || d.Name != name:
		return nil, fmt.Errorf("it is of run %.40q, %.40q", d.RunID, d.Name)
	case d.Size <= 0 || len(d.Bases) > maxBases:
		return nil, fmt.Errorf("a size of %d bytes, %d bases", d.Size, len(d.Bases))
	}
	for _, base := range d.Bases {
		if !isSnapshot(base) || base == name {
			return nil, fmt.Errorf("a base %.40q", base)
		}
	}
	return d, nil
}

// entry is the SNAPSHOT entry that the document is about, once its proof holds.
func (d *snapshotDoc) entry(keys note.Verifiers) (digestlog.Entry, error) {
	e, err := proven([]byte(d.Proof), d.RunID, digestlog.KindSnapshot, keys)
	if err != nil {
		return e, err
	}
	step, generation, _ := snapshot.ParseFileName(d.Name)
	switch {
	case e.Name != d.Name || e.Step != step || e.Generation != generation:
		return e, fmt.Errorf("its proof is of %.40q, step %d", e.Name, e.Step)
	case e.Size != uint64(d.Size) || e.SHA256 != d.SHA256:
		return e, errors.New("it names another size or SHA-256 than its proof")
	}
	return e, nil
}

// parseManifestsDoc reads manifest.proof.json of a run and checks its form, not its proofs.
func parseManifestsDoc(b []byte, run string) (*manifestsDoc, error) {
	d := new(manifestsDoc)
	if err := decode(b, maxManifestsProof, d); err != nil {
		return nil, err
	}
	switch {
	case d.Format != manifestsFormat || d.Version != formatVersion:
		return nil, fmt.Errorf("format %.40q version %d, want %q version %d", d.Format, d.Version, manifestsFormat, formatVersion)
	case d.RunID != run:
		return nil, fmt.Errorf("it is of run %.40q", d.RunID)
	case len(d.Manifests) == 0 || len(d.Manifests) > maxGenerations:
		return nil, fmt.Errorf("proofs of %d manifests", len(d.Manifests))
	}
	for i, m := range d.Manifests {
		if i == 0 && m.Generation != 0 || i > 0 && m.Generation <= d.Manifests[i-1].Generation {
			return nil, fmt.Errorf("generation %d in place %d", m.Generation, i)
		}
	}
	return d, nil
}

// proven is the entry that a proof shows to be in a run's log.
func proven(text []byte, run string, kind digestlog.Kind, keys note.Verifiers) (digestlog.Entry, error) {
	p, err := digestlog.ParseProof(text)
	if err != nil {
		return digestlog.Entry{}, err
	}
	v, err := p.Verify(keys)
	switch {
	case err != nil:
		return digestlog.Entry{}, err
	case v.Unknown != nil:
		return digestlog.Entry{}, v.Unknown
	case v.Head.RunID() != run:
		return digestlog.Entry{}, fmt.Errorf("its proof is of run %.40q", v.Head.RunID())
	case v.Entry.Kind != kind:
		return digestlog.Entry{}, fmt.Errorf("its proof is of a %v entry, want %v", v.Entry.Kind, kind)
	}
	return v.Entry, nil
}
