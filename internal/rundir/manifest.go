package rundir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// The manifest's own format name and version.
const (
	Format  = "usp-run"
	Version = 1
)

// MaxManifest is the size of the largest manifest read, in bytes.
const MaxManifest = 1 << 20

// The classes of manifest failures. Each is wrapped in an error that names the file.
var (
	ErrNotManifest = errors.New("not a usp run manifest")
	ErrVersion     = errors.New("manifest is of a newer format version; use a newer usp")
	ErrManifest    = errors.New("malformed manifest")
)

// Hash is a SHA-256 that is 64 hexadecimal digits in JSON.
type Hash [32]byte

// MarshalText writes lower-case hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads exactly 64 lower-case hexadecimal digits.
func (h *Hash) UnmarshalText(b []byte) error {
	got, err := hex.AppendDecode(nil, b)
	if err != nil || len(got) != len(h) || string(b) != hex.EncodeToString(got) {
		return fmt.Errorf("%.70q is not 64 lower-case hexadecimal digits", b)
	}
	copy(h[:], got)
	return nil
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Manifest says what a generation of a run is: what program wrote it, where, and
// how its records are laid out. It holds no secret and no environment.
type Manifest struct {
	Format     string    `json:"format"`  // Format
	Version    int       `json:"version"` // Version
	RunID      string    `json:"run_id"`
	Generation uint32    `json:"generation"` // restart inside the run, from 0
	Created    time.Time `json:"created"`    // wall clock, UTC

	Host         Host   `json:"host"`
	Go           string `json:"go"`            // Go version of the recorder
	USP          string `json:"usp"`           // usp version of the recorder
	ConfigSHA256 Hash   `json:"config_sha256"` // of the effective configuration

	Schema       string `json:"schema"` // canonical text of the records' schema
	SchemaSHA256 Hash   `json:"schema_sha256"`
	// DigestEvery is the interval of STEP entries: a step has one when it is a
	// multiple of DigestEvery. 0: not known to the recorder.
	DigestEvery uint64 `json:"digest_every,omitempty"`

	Ring     Ring            `json:"ring"`
	Producer json.RawMessage `json:"producer,omitempty"` // what the producer put in the ring's meta, as it was
	Signer   string          `json:"signer"`             // verifier key of the log's heads, as of golang.org/x/mod/sumdb/note
	Resumed  *Resumed        `json:"resumed,omitempty"`  // where this generation continues; nil when it starts fresh
}

// Host is the machine a generation ran on.
type Host struct {
	Name string `json:"name"`
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPU  string `json:"cpu"` // model name
	CPUs int    `json:"cpus"`
}

// Ring is the ring a generation was read from.
type Ring struct {
	Name     string `json:"name"` // file name in the ring directory
	Slots    int    `json:"slots"`
	SlotSize int    `json:"slot_size"` // bytes
}

// Resumed names the snapshot that a generation continues from.
type Resumed struct {
	Generation     uint32 `json:"generation"`
	Step           uint64 `json:"step"`
	SnapshotSHA256 Hash   `json:"snapshot_sha256"`
}

// Check reports the first field of m that cannot be. It wraps ErrManifest.
func (m *Manifest) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...))
	}
	schema, err := record.ParseSchema([]byte(m.Schema))
	switch {
	case m.Format != Format || m.Version != Version:
		return bad("format %q version %d, want %q version %d", m.Format, m.Version, Format, Version)
	case !ValidID(m.RunID):
		return bad("run_id %q", m.RunID)
	case m.Created.IsZero():
		return bad("created is missing")
	case err != nil:
		return bad("schema: %v", err)
	case Hash(schema.Sum()) != m.SchemaSHA256:
		return bad("schema_sha256 is %v, the schema has %v", m.SchemaSHA256, Hash(schema.Sum()))
	case len(m.Producer) > 0 && !json.Valid(m.Producer):
		return bad("producer is not JSON")
	case m.Resumed != nil && m.Resumed.Generation >= m.Generation:
		return bad("generation %d resumed from generation %d", m.Generation, m.Resumed.Generation)
	}
	return nil
}

// ParsedSchema is the schema of the records; it must not be called on a manifest
// that Check refuses.
func (m *Manifest) ParsedSchema() (*record.Schema, error) {
	return record.ParseSchema([]byte(m.Schema))
}

// WriteManifest makes m durable under its name in dir, read-only, and returns the
// SHA-256 of the file. Format, Version and SchemaSHA256 are filled in. A manifest
// that is there already is left alone: the error then is fs.ErrExist.
func WriteManifest(fsys vfs.FS, dir Dir, m Manifest) (Hash, error) {
	m.Format, m.Version = Format, Version
	m.SchemaSHA256 = sha256.Sum256([]byte(m.Schema))
	m.Created = m.Created.UTC()
	name := dir.Manifest(m.Generation)
	if err := m.Check(); err != nil {
		return Hash{}, fmt.Errorf("manifest %s: %w", name, err)
	}
	b, err := json.MarshalIndent(&m, "", "  ")
	if err != nil {
		return Hash{}, fmt.Errorf("manifest %s: %w", name, err)
	}
	b = append(b, '\n')
	err = vfs.Create(fsys, name, 0o444, func(f vfs.File) error {
		_, err := f.Write(b)
		return err
	})
	if err != nil {
		return Hash{}, fmt.Errorf("manifest %s: %w", name, err)
	}
	return sha256.Sum256(b), nil
}

// ReadManifest reads the manifest of a generation and the SHA-256 of its file.
// It wants every field it knows to have its type and lets unknown fields be; they
// are part of the digest. Errors wrap ErrNotManifest, ErrVersion or ErrManifest,
// or come from the file system.
func ReadManifest(fsys vfs.FS, dir Dir, generation uint32) (*Manifest, Hash, error) {
	name := dir.Manifest(generation)
	b, err := vfs.ReadFile(fsys, name, MaxManifest)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("reading manifest: %w", err)
	}
	m, err := ParseManifest(b)
	if err == nil && m.Generation != generation {
		err = fmt.Errorf("%w: generation %d in the file of generation %d", ErrManifest, m.Generation, generation)
	}
	if err != nil {
		return nil, sha256.Sum256(b), fmt.Errorf("%s: %w", name, err)
	}
	return m, sha256.Sum256(b), nil
}

// ParseManifest reads the text of a manifest.
func ParseManifest(b []byte) (*Manifest, error) {
	var head struct {
		Format  *string `json:"format"`
		Version *int    `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil || head.Format == nil || *head.Format != Format || head.Version == nil {
		return nil, ErrNotManifest
	}
	if *head.Version > Version {
		return nil, fmt.Errorf("version %d: %w", *head.Version, ErrVersion)
	}
	m := new(Manifest)
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("%w: at byte %d: %w", ErrManifest, dec.InputOffset(), err)
	}
	return m, m.Check()
}

// LastGeneration is the number of the newest manifest in a run directory.
func LastGeneration(fsys vfs.FS, dir Dir) (uint32, error) {
	list, err := fsys.ReadDir(string(dir))
	if err != nil {
		return 0, err
	}
	last, found := uint32(0), false
	for _, d := range list {
		if g, ok := ParseManifestName(d.Name()); ok {
			last, found = max(last, g), true
		}
	}
	if !found {
		return 0, &os.PathError{Op: "open", Path: filepath.Join(string(dir), ManifestFile), Err: os.ErrNotExist}
	}
	return last, nil
}
