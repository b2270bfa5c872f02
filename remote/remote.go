// Package remote keeps the snapshots of runs in S3-compatible object storage, and has them back from there.
//
// Under PREFIX/RUN/ lie the run's manifests, manifest.proof.json, and for each snapshot X.snap and X.snap.json. The JSON
// files hold proofs (C2SP tlog-proof) that the manifest, or the snapshot's SHA-256, is in the run's digest log, with the
// signed head of that log; so who has the log's key needs nothing else to know a snapshot for the run's. The proof is
// written after the snapshot: a snapshot counts only with it.
//
// [Send] follows a run directory and brings there what the log vouches for and a signed head covers. It runs beside the
// recorder, which knows nothing of it. [Open] reads a run from storage; what does not verify is never handed out.
//
// What a store says is not believed: every name, size, sum and proof is checked before it means anything. A store can still
// hold back what is newest, see doc/remote.md.
package remote

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/snapshot"
)

// The classes of failure. Errors of this package wrap one of them, or come from the run directory or the context.
var (
	// ErrAddress says that an address or endpoint is none. The error never repeats it: it may hold a secret.
	ErrAddress = errors.New("no address of a remote store")
	// ErrUnreachable says that the store did not answer, or said that it cannot now. A later try may succeed.
	ErrUnreachable = errors.New("the remote store does not answer")
	// ErrDenied says that there are no credentials, or that the store refuses them.
	ErrDenied = errors.New("the remote store refuses")
	// ErrNotFound says that the bucket, the run or the object is not there.
	ErrNotFound = errors.New("not in the remote store")
	// ErrDamaged says that what is there is not what the run's log vouches for.
	ErrDamaged = errors.New("damaged in the remote store")
	// ErrConflict says that under the run's name there is something of another run, or of another copy of this one.
	ErrConflict = errors.New("the remote store has another run of that name")
	// ErrLocal says that a snapshot in the run directory is not what the log vouches for, so it was not sent.
	ErrLocal = errors.New("the local snapshot is damaged")
)

// Scheme begins an address.
const Scheme = "s3://"

// Names beside a run's manifests and snapshots.
const (
	manifestProof = "manifest.proof.json"
	snapshotDir   = rundir.SnapshotDir + "/"
	proofSuffix   = ".json" // behind the name of a snapshot
)

// Latest, in the place of a run's id, is the newest run that has a snapshot.
const Latest = rundir.Latest

// IsAddress reports whether an argument means a remote place and no path.
func IsAddress(arg string) bool { return strings.HasPrefix(strings.ToLower(arg), Scheme) }

// Address is a place for runs: a bucket, and what comes before the run in each key.
type Address struct {
	Bucket string
	Prefix string // without slashes at its ends; may be empty
}

func (a Address) String() string { return Scheme + path.Join(a.Bucket, a.Prefix) }

// key is the key of something in a run.
func (a Address) key(run, name string) string {
	if a.Prefix == "" {
		return run + "/" + name
	}
	return a.Prefix + "/" + run + "/" + name
}

// OfRun is the address of a run.
func (a Address) OfRun(run string) string { return a.String() + "/" + run }

// ParseAddress reads s3://BUCKET or s3://BUCKET/PREFIX.
func ParseAddress(text string) (Address, error) {
	bad := func(what string) (Address, error) {
		return Address{}, fmt.Errorf("%w: %s; write one such as s3://bucket/prefix", ErrAddress, what)
	}
	rest, ok := strings.CutPrefix(text, Scheme)
	if !ok {
		return bad("it does not begin with s3://")
	}
	if strings.ContainsAny(rest, "@?#") {
		return bad("it holds a user name, a query or a fragment: credentials come from the environment, and never stand in an address")
	}
	bucket, prefix, _ := strings.Cut(rest, "/")
	if !validBucket(bucket) {
		return bad("the bucket's name is not 3 to 63 lower-case letters, digits, dots and dashes")
	}
	prefix = strings.Trim(prefix, "/")
	if len(prefix) > 512 {
		return bad("the prefix is longer than 512 bytes")
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if prefix != "" && !validPart(part) {
			return bad("the parts of the prefix are not letters, digits, '.', '_' and '-'")
		}
	}
	return Address{bucket, prefix}, nil
}

// ParseRun reads the address of one run, s3://BUCKET/PREFIX/RUN. RUN may be Latest.
func ParseRun(text string) (a Address, run string, err error) {
	if a, err = ParseAddress(text); err != nil {
		return a, "", err
	}
	prefix, run := path.Split(a.Prefix)
	if run != Latest && !rundir.ValidID(run) {
		return a, "", fmt.Errorf("%w: no run is named; write s3://bucket/prefix/RUN, or /latest in the place of RUN", ErrAddress)
	}
	a.Prefix = strings.TrimSuffix(prefix, "/")
	return a, run, nil
}

func validBucket(s string) bool {
	if len(s) < 3 || len(s) > 63 || strings.Contains(s, "..") {
		return false
	}
	for i, c := range []byte(s) {
		edge := i == 0 || i == len(s)-1
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == '-' || c == '.') && !edge:
		default:
			return false
		}
	}
	return true
}

func validPart(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return s != "" && s != "." && s != ".."
}

// isSnapshot says whether a key's last part is the name of a snapshot.
func isSnapshot(name string) bool {
	_, _, ok := snapshot.ParseFileName(name)
	return ok
}
