// Package rundir knows how one execution lies on disk: the files of a run
// directory, its manifests, and how runs are named, listed and found again.
//
// It promises that a manifest, once written, is never changed, and that the
// digest of a manifest covers every byte of the file, including what this
// program does not know. It reads no record, log entry or snapshot; what a run
// directory claims is checked by package audit.
//
// The layout is specified in doc/format/run-directory.md.
package rundir

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Names inside a run directory and, for Latest, beside the run directories.
const (
	ManifestFile = "manifest.json" // of generation 0; see ManifestName
	TelemetryDir = "telemetry"
	DigestDir    = "digests"
	SnapshotDir  = "snapshots"
	SinkDir      = "sinks"               // how far other places have the telemetry; no part of the record
	HeadFile     = "checkpoint"          // the signed head of the digest log
	CosignedFile = "checkpoint.cosigned" // the newest signed head that a witness has cosigned
	ReserveFile  = ".reserve"            // space kept for the end of a run; there only while it is recorded, or after a crash
	Latest       = "latest"              // symbolic link to the newest run

	SegmentSuffix  = ".seg"
	TornSuffix     = ".torn"   // bytes cut off a torn tail, kept for inspection
	SnapshotSuffix = ".snap"   //
	CursorSuffix   = ".json"   // a cursor in SinkDir
	OrphanSuffix   = ".orphan" // a snapshot that no log entry names, kept for inspection
)

// Dir is the path of a run directory.
type Dir string

// At is the run directory with that path.
func At(path string) Dir { return Dir(filepath.Clean(path)) }

// Path is the directory itself.
func (d Dir) Path() string { return string(d) }

// Telemetry is the directory of the telemetry segments.
func (d Dir) Telemetry() string { return filepath.Join(string(d), TelemetryDir) }

// Digests is the directory of the digest log's segments.
func (d Dir) Digests() string { return filepath.Join(string(d), DigestDir) }

// Snapshots is the directory of the snapshots.
func (d Dir) Snapshots() string { return filepath.Join(string(d), SnapshotDir) }

// Sinks is the directory of the sinks' cursors.
func (d Dir) Sinks() string { return filepath.Join(string(d), SinkDir) }

// Sink is the cursor file of a sink.
func (d Dir) Sink(name string) string { return filepath.Join(d.Sinks(), name+CursorSuffix) }

// Snapshot is the path of a snapshot file.
func (d Dir) Snapshot(name string) string { return filepath.Join(d.Snapshots(), name) }

// Head is the file of the signed tree head.
func (d Dir) Head() string { return filepath.Join(string(d), HeadFile) }

// Cosigned is the file of the newest head that a witness has cosigned.
func (d Dir) Cosigned() string { return filepath.Join(string(d), CosignedFile) }

// Reserve is the file that keeps space for the end of the run.
func (d Dir) Reserve() string { return filepath.Join(string(d), ReserveFile) }

// Manifest is the manifest file of a generation.
func (d Dir) Manifest(generation uint32) string {
	return filepath.Join(string(d), ManifestName(generation))
}

// ID is the run id: the directory's own name.
func (d Dir) ID() string { return filepath.Base(string(d)) }

// ManifestName is the file name of a generation's manifest: manifest.json, then
// manifest-0001.json and so on.
func ManifestName(generation uint32) string {
	if generation == 0 {
		return ManifestFile
	}
	return fmt.Sprintf("manifest-%04d.json", generation)
}

// ParseManifestName is the reverse of ManifestName; ok is false for other names.
func ParseManifestName(name string) (generation uint32, ok bool) {
	if name == ManifestFile {
		return 0, true
	}
	digits, found := strings.CutPrefix(name, "manifest-")
	digits, json := strings.CutSuffix(digits, ".json")
	n, err := strconv.ParseUint(digits, 10, 32)
	if !found || !json || err != nil || n == 0 || ManifestName(uint32(n)) != name {
		return 0, false
	}
	return uint32(n), true
}

// MaxID is the length of the longest run id in bytes.
const MaxID = 32

const (
	idTime     = "20060102T150405"
	idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz" // Crockford's base 32: no i, l, o, u
	idRandom   = 5
)

// NewID makes a run id such as 20261122T201833-9f3kq: the UTC second, so that
// ids sort by time, and five random letters from rnd.
func NewID(now time.Time, rnd io.Reader) (string, error) {
	var b [idRandom]byte
	if _, err := io.ReadFull(rnd, b[:]); err != nil {
		return "", fmt.Errorf("making a run id: %w", err)
	}
	for i := range b {
		b[i] = idAlphabet[b[i]%byte(len(idAlphabet))]
	}
	return now.UTC().Format(idTime) + "-" + string(b[:]), nil
}

// ValidID says whether a string can be a run id: 1 to MaxID bytes of letters,
// digits, '.', '_' and '-', not beginning with a dot, and not "latest".
func ValidID(id string) bool {
	if id == "" || len(id) > MaxID || id[0] == '.' || id == Latest {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// AnchorPath is the file in the anchor directory that holds a copy of the run's
// newest signed head.
func AnchorPath(anchorDir, id string) string { return filepath.Join(anchorDir, id+"."+HeadFile) }

const ringSuffix = ".ring"

// RingName is the name of a run's ring in the ring directory: ID.ring. Each
// generation's ring has the same name, so that two producers of one run cannot be.
func RingName(id string) string { return id + ringSuffix }

// ParseRingName is the reverse of RingName; ok is false for other names.
func ParseRingName(name string) (id string, ok bool) {
	id, found := strings.CutSuffix(name, ringSuffix)
	return id, found && ValidID(id)
}
