// Package segment stores a stream of frames in numbered, append-only files that survive a crash at any
// moment. doc/format/segment.md specifies the bytes.
//
// A [Writer] gathers frames into checksummed batches and promises: what [Writer.Sync] has acknowledged
// is found again by a [Reader]. Each batch also records how much of the file was durable when it was
// written, so that a reader can tell a torn tail (never acknowledged, expected after a crash,
// [*TornError]) from damage to what had been promised ([*CorruptError]). Damage never costs the data
// behind it. The first failed write or sync poisons the Writer: the file is left alone from then on and
// the caller continues in a new one with what [Writer.Unsynced] returns.
//
// A segment that is complete is sealed: it ends in a footer, is read-only, and its SHA-256 can be put
// on record. [Repair] seals what a crash left. In front of the footer there may be an index: a summary of
// the frames that their owner has made with an [Indexer], so that [ReadEnds] knows a sealed segment
// without reading its frames.
package segment

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// Version is the format version that this package writes. It reads version 1 as well, which has no index.
const Version = 2

const firstVersion = 1

// Limits of the format. A reader refuses more, so its memory is bounded whatever a file says.
const (
	MaxFrame = 1 << 20  // bytes of one frame
	MaxBatch = 16 << 20 // bytes of one batch's payload
	MaxMeta  = 1 << 20  // bytes of the header's meta
	MaxIndex = 1 << 20  // bytes of the index of a sealed segment
	MaxRunID = 32       // bytes of the run id
)

// DefaultSize is the preallocated size of a file, in bytes, where the options name none.
const DefaultSize = 64 << 20

// Kind says what the frames of a segment are.
type Kind uint32

// The kinds of segments.
const (
	KindTelemetry Kind = 1 // telemetry frames; meta holds the schema
	KindDigests   Kind = 2 // digest log entries; meta holds the tree's state at the first of them
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case KindTelemetry:
		return "telemetry"
	case KindDigests:
		return "digests"
	}
	return fmt.Sprintf("kind(%d)", uint32(k))
}

var (
	// ErrNotSegment is wrapped by the error for a file that does not begin as a segment does.
	ErrNotSegment = errors.New("not a segment file")
	// ErrVersion is wrapped by the error for an intact file of a later format.
	ErrVersion = errors.New("segment format is too new for this program")
	// ErrPoisoned is wrapped, with its cause, by every call on a Writer after a write or sync failed.
	ErrPoisoned = errors.New("segment is poisoned by an earlier error; continue in a new one")
	// ErrClosed is wrapped by calls on a closed or sealed Writer.
	ErrClosed = errors.New("segment is closed")
	// ErrFrameTooLarge is wrapped by the error for a frame of more than MaxFrame bytes.
	ErrFrameTooLarge = fmt.Errorf("frame is larger than %d bytes", MaxFrame)
)

// CorruptError is a range of a file that is not what was written and acknowledged.
type CorruptError struct {
	File   string
	Offset int64 // first byte of the damaged range
	End    int64 // one past its last byte; equal to Offset where only something is missing
	Err    error // what is wrong with it
}

// Error names the file, the range and the cause.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("segment %s: corrupt at offset %d to %d: %v", e.File, e.Offset, e.End, e.Err)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// TornError is the end of a file that a crash has cut off while it was written. Nothing from Offset on
// was ever acknowledged. Repair removes it.
type TornError struct {
	File   string
	Offset int64 // end of the last good batch
	End    int64 // one past the last byte that is not zero
}

// Error names the file and the range.
func (e *TornError) Error() string {
	return fmt.Sprintf("segment %s: torn tail at offset %d: %d bytes were never acknowledged; repair removes them",
		e.File, e.Offset, e.End-e.Offset)
}

// Header is what a segment says about itself.
type Header struct {
	Version uint32
	Kind    Kind
	Base    uint64 // ordinal of the first frame
	RunID   string
	Created time.Time // UTC
	Meta    []byte
	Len     int // bytes of the header in the file
}

// Sealed describes a segment that will not change any more.
type Sealed struct {
	Name    string   // base name of the file
	Base    uint64   // ordinal of the first frame
	Count   uint64   // ordinals covered, those lost to damage included
	Size    int64    // bytes
	SHA256  [32]byte // of the whole file; zero with Options.NoSum
	Torn    int64    // bytes of torn tail that Repair set aside in NAME.torn
	Damaged int      // damaged ranges that Repair found and left in place
}

// Info is one file of a directory of segments.
type Info struct {
	Name string // base name
	Path string
	Base uint64
	Size int64 // bytes, preallocated ones included
}

const suffix = ".seg"

// FileName returns the base name of the segment whose first frame has ordinal base.
func FileName(base uint64) string { return fmt.Sprintf("%020d%s", base, suffix) }

// ParseName returns the ordinal in a segment's base name; ok is false for any other name.
func ParseName(name string) (base uint64, ok bool) {
	if len(name) != 20+len(suffix) || name[20:] != suffix {
		return 0, false
	}
	base, err := strconv.ParseUint(name[:20], 10, 64)
	return base, err == nil && FileName(base) == name
}

// List returns the segments in dir, sorted by base. Other files are passed over.
func List(fsys vfs.FS, dir string) ([]Info, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var infos []Info
	for _, e := range entries {
		base, ok := ParseName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("list segments: %w", err)
		}
		infos = append(infos, Info{Name: e.Name(), Path: filepath.Join(dir, e.Name()), Base: base, Size: fi.Size()})
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.Base, b.Base) })
	return infos, nil
}
