// Package snapshot keeps a predictor's whole state in single files that are
// either completely there and verified, or not there at all.
//
// A snapshot is a list of named sections with a header that says which step of
// which run they belong to and how large the run's digest log was at that step.
// [Write] goes through a temporary file in the same directory, forces it to
// stable storage, reads it back and compares it with the state it was given,
// and only then links it to its name; an existing snapshot is never replaced.
// [Load] checks every byte before it returns anything.
//
// A file alone proves nothing: a snapshot counts when the SHA-256 of the whole
// file is also in the run's digest log. Pass that sum to [Load].
//
// With recipients the state is encrypted with age (age-encryption.org/v1). What a
// snapshot is of, the names and sizes of its sections and all checksums, which
// are of the stored bytes, stay readable, so [Verify], [Inspect] and [List] need
// no key. Nothing that is stored tells whether two states are equal.
//
// With [Reuse] a snapshot may refer to older ones of its run for large sections
// that did not change. It then needs those files, which [Plan] keeps for it.
//
// The layout is specified in doc/format/snapshot.md.
package snapshot

import (
	"errors"
	"fmt"
	"time"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
)

// The classes of failure. Load, Verify and Inspect wrap exactly one of them or
// return an error of the file system.
var (
	// ErrNotSnapshot says that the file does not begin like a snapshot.
	ErrNotSnapshot = errors.New("not a usp snapshot")
	// ErrVersion says that the file is whole but uses a version, a flag or a
	// codec that this program does not know.
	ErrVersion = errors.New("snapshot is of a newer format version; use a newer usp")
	// ErrTruncated says that the file ends before its footer. It always comes
	// inside a *CorruptError.
	ErrTruncated = errors.New("file ends before its footer")
	// ErrSections says that bytes handed to ParseSections are no container.
	ErrSections = errors.New("staged sections are malformed")
	// ErrMismatch says that the file is consistent in itself but is not the one
	// whose SHA-256 was asked for.
	ErrMismatch = errors.New("not the snapshot the digest log names")
	// ErrEncrypted says that the snapshot can only be loaded with a key. Verify,
	// Inspect and List need none.
	ErrEncrypted = errors.New("is encrypted; an age identity is needed to load it")
	// ErrWrongIdentity says that the snapshot is encrypted to other recipients than
	// those whose identities were given.
	ErrWrongIdentity = errors.New("none of the given age identities can decrypt it")
	// ErrNoSection says that LoadTo was asked for a section that is not there.
	ErrNoSection = errors.New("has no such section")
)

// CorruptError reports the first damaged place of a snapshot.
type CorruptError struct {
	File   string
	Offset int64 // bytes from the start of the file
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("snapshot %s is damaged at byte %d: %v", e.File, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Codec is how sections are stored.
type Codec uint32

// The codecs. With Zstd each chunk is compressed on its own and is stored as it
// is when compression does not make it smaller.
const (
	None Codec = 0
	Zstd Codec = 1
)

func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint32(c))
}

// MarshalText writes the codec's name.
func (c Codec) MarshalText() ([]byte, error) {
	if c > Zstd {
		return nil, fmt.Errorf("unknown %v", c)
	}
	return []byte(c.String()), nil
}

// UnmarshalText reads the codec's name.
func (c *Codec) UnmarshalText(b []byte) (err error) {
	*c, err = ParseCodec(string(b))
	return err
}

// ParseCodec is the reverse of Codec.String.
func ParseCodec(s string) (Codec, error) {
	switch s {
	case "none":
		return None, nil
	case "zstd":
		return Zstd, nil
	}
	return 0, fmt.Errorf("unknown codec %q: want none or zstd", s)
}

// Meta says what a snapshot is a snapshot of.
type Meta struct {
	RunID      string    // 1 to 32 printable ASCII bytes
	Generation uint32    // restart inside the run, from 0
	Step       uint64    // last step contained in the state
	Seq        uint64    // producer position: records with a smaller number are durable
	Schema     [32]byte  // SHA-256 of the schema's canonical text
	TreeSize   uint64    // entries in the digest log when the snapshot was taken
	TreeRoot   [32]byte  // root of the digest log at TreeSize
	Created    time.Time // wall clock, nanoseconds; Write fills a zero value from Options.Now
	Reason     uint32    // producer's own code for why it was taken
}

// Section is one named part of the state.
type Section struct {
	Name string // 1 to 64 bytes of [A-Za-z0-9._-], unique in a snapshot
	Data []byte
}

// SectionInfo describes a stored section.
type SectionInfo struct {
	Name       string
	Offset     int64 // of its first stored byte in the file, a multiple of 64
	Size       int64 // bytes of state
	StoredSize int64 // bytes in the file
	Codec      Codec // None when no chunk is compressed; of an encrypted section what the writer was set to
	Encrypted  bool
	Base       Base // where Offset is in, if that is another file; else the zero value
}

// Info describes a snapshot file.
type Info struct {
	Meta
	Name     string   // file name without directory
	Size     int64    // bytes
	SHA256   [32]byte // of the whole file; zero from List, which does not read it
	Verified bool     // every byte was checked; set by Write and Verify
	Err      error    // from List: why the file cannot be read; Meta then has step and generation of its name only

	Encrypted bool   // the state needs a key; all else here does not
	Bases     []Base // older snapshots that hold sections of this one; it cannot be loaded without them
	BaseErr   error  // from Write: why an older copy that might have been referred to was not
}

// Options configure Write. The zero value writes uncompressed to the operating
// system's files.
type Options struct {
	FS    vfs.FS           // nil: the operating system
	Codec Codec            // None by default
	Level int              // zstd level 1 to 22 as of the zstd program; 0 means 3
	Now   func() time.Time // nil: time.Now; only used when Meta.Created is zero

	// Recipients are the age public keys to encrypt the state to, each of which can
	// then load it alone; none: it is not encrypted. See ParseRecipients.
	Recipients []age.Recipient

	// Reuse lets large sections that did not change lie in the older snapshot that
	// holds them; nil: all is written. An encrypted snapshot never refers to another,
	// since that would tell which sections are equal.
	Reuse *Reuse
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Level == 0 {
		o.Level = 3
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}
