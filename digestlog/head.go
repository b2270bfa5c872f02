package digestlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/vfs"
)

// Errors of reading a signed head. Each is wrapped with the file's name; a file that is not there is fs.ErrNotExist.
var (
	ErrHead      = errors.New("digestlog: not a signed tree head")
	ErrSignature = errors.New("digestlog: the signature of the tree head is wrong: the head was changed or forged")
	ErrWrongKey  = errors.New("digestlog: the tree head is not signed with a known key; give the verifier key of the machine that wrote it")
)

// originPrefix comes before the run id in the first line of a head.
const originPrefix = "usp/"

// maxHeadFile bounds what is read of a head file; a head with a dozen cosignatures has a few kilobytes.
const maxHeadFile = 64 << 10

// A SignedTreeHead is the commitment to the first Size entries of one log.
type SignedTreeHead struct {
	Origin string   // "usp/" and the run id
	Size   uint64   // entries
	Root   [32]byte // RFC 6962 root over them
	Note   []byte   // the signed note, as in the file
}

// RunID returns the run id in the origin, or "" if the origin is not one of a run.
func (h *SignedTreeHead) RunID() string {
	id, ok := strings.CutPrefix(h.Origin, originPrefix)
	if !ok {
		return ""
	}
	return id
}

// ReadHead reads the signed head in the file path and checks its signature. The error wraps [ErrHead] (the file is not a head, or has bytes
// that no head has), [ErrWrongKey] (signed, but by none of verifiers), [ErrSignature] (signed by one of them, and wrong), or what the file
// system said.
func ReadHead(fsys vfs.FS, path string, verifiers note.Verifiers) (SignedTreeHead, error) {
	b, err := vfs.ReadFile(orOS(fsys), path, maxHeadFile)
	if err != nil {
		return SignedTreeHead{}, fmt.Errorf("digestlog: read head: %w", err)
	}
	h, err := ParseHead(b, verifiers)
	if err != nil {
		return SignedTreeHead{}, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// ParseHead is [ReadHead] for a head that is already in memory. It does not keep b.
func ParseHead(b []byte, verifiers note.Verifiers) (SignedTreeHead, error) {
	if verifiers == nil {
		verifiers = note.VerifierList()
	}
	n, err := note.Open(b, verifiers)
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified):
		return SignedTreeHead{}, fmt.Errorf("%w (%s)", ErrWrongKey, signers(unverified.Note.UnverifiedSigs))
	case errors.As(err, &invalid):
		return SignedTreeHead{}, fmt.Errorf("%w (key %s+%08x)", ErrSignature, invalid.Name, invalid.Hash)
	case err != nil:
		return SignedTreeHead{}, fmt.Errorf("%w: %w", ErrHead, err)
	}
	if err := checkCanonical(b, n); err != nil {
		return SignedTreeHead{}, err
	}
	h, err := parseBody(n.Text)
	if err != nil {
		return SignedTreeHead{}, err
	}
	h.Note = bytes.Clone(b)
	return h, nil
}

// peekHead reads what a head says without checking who signed it.
func peekHead(b []byte) (SignedTreeHead, error) {
	text, _, ok := strings.Cut(string(b), "\n\n")
	if !ok {
		return SignedTreeHead{}, fmt.Errorf("%w: no signatures", ErrHead)
	}
	h, err := parseBody(text + "\n")
	h.Note = bytes.Clone(b)
	return h, err
}

// checkCanonical refuses what note.Open lets pass: base64 whose unused last bits are set, and repeated signature lines. Without
// this a byte of the file could change and nothing would be found.
func checkCanonical(b []byte, n *note.Note) error {
	want := len(n.Text) + len("\n")
	for _, sig := range append(n.Sigs[:len(n.Sigs):len(n.Sigs)], n.UnverifiedSigs...) {
		raw, err := base64.StdEncoding.DecodeString(sig.Base64)
		if err != nil || base64.StdEncoding.EncodeToString(raw) != sig.Base64 {
			return fmt.Errorf("%w: signature of %s is not in canonical base64", ErrSignature, sig.Name)
		}
		want += len("— ") + len(sig.Name) + len(" ") + len(sig.Base64) + len("\n")
	}
	if want != len(b) {
		return fmt.Errorf("%w: repeated signature lines", ErrHead)
	}
	return nil
}

func signers(sigs []note.Signature) string {
	if len(sigs) == 0 {
		return "no signature"
	}
	names := make([]string, len(sigs))
	for i, s := range sigs {
		names[i] = fmt.Sprintf("%s+%08x", s.Name, s.Hash)
	}
	return "signed by " + strings.Join(names, ", ")
}

// parseBody reads the text of a tlog-checkpoint: origin, size, root, and extension lines, which are signed but not looked at.
func parseBody(text string) (SignedTreeHead, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] == "" {
		return SignedTreeHead{}, fmt.Errorf("%w: want the lines origin, size and root", ErrHead)
	}
	h := SignedTreeHead{Origin: lines[0]}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] || size > maxSize {
		return SignedTreeHead{}, fmt.Errorf("%w: size %.32q", ErrHead, lines[1])
	}
	h.Size = size
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return SignedTreeHead{}, fmt.Errorf("%w: root %.64q", ErrHead, lines[2])
	}
	copy(h.Root[:], root)
	return h, nil
}

// signHead makes the signed note of a tree.
func signHead(signer note.Signer, runID string, size uint64, root [32]byte) (SignedTreeHead, error) {
	h := SignedTreeHead{Origin: originPrefix + runID, Size: size, Root: root}
	text := fmt.Sprintf("%s\n%d\n%s\n", h.Origin, size, base64.StdEncoding.EncodeToString(root[:]))
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		return SignedTreeHead{}, fmt.Errorf("digestlog: sign head of size %d: %w", size, err)
	}
	h.Note = signed
	return h, nil
}
