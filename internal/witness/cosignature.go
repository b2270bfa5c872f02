// Package witness has the newest signed head of a log cosigned by somebody else: the client's half of C2SP tlog-witness, and the
// cosignatures of C2SP tlog-cosignature in their Ed25519 form.
//
// A witness keeps, for each log, the largest tree that it has seen, and signs a head with the time only if that head's tree contains
// that one. So a head with its cosignature says that at this time no other history of the log was known to the witness, and a log that is
// shorter than a cosigned head, or has another root at its size, was put back or written again.
//
// Nothing here is trusted because a server says so: a cosignature counts only if it verifies with a key that the caller has named.
package witness

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// algCosignature is the key type of an Ed25519 cosignature; that of a plain signature is 1.
const algCosignature = 4

// sigSize is a cosignature behind its key hash: the time in seconds, big-endian, and the signature.
const sigSize = 8 + ed25519.SignatureSize

// ErrKey says that a text is not the verifier key of a witness.
var ErrKey = errors.New("witness: not the verifier key of a witness")

// verifier checks the cosignatures of one witness.
type verifier struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// ParseKey reads a verifier key as witnesses publish it, NAME+HASH+KEY with key type 4. The error wraps [ErrKey].
func ParseKey(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hashText, keyText, ok := strings.Cut(rest, "+")
	hash, err := strconv.ParseUint(hashText, 16, 32)
	if !ok || err != nil || len(hashText) != 8 || !validName(name) {
		return nil, fmt.Errorf("%w: want NAME+HASH+KEY", ErrKey)
	}
	raw, err := base64.StdEncoding.DecodeString(keyText)
	switch {
	case err != nil || len(raw) == 0:
		return nil, fmt.Errorf("%w: its last part is not base64", ErrKey)
	case raw[0] == 1:
		return nil, fmt.Errorf("%w: it is one of a log (type 1); that of a witness has type 4", ErrKey)
	case raw[0] != algCosignature || len(raw) != 1+ed25519.PublicKeySize:
		return nil, fmt.Errorf("%w: type %d with %d bytes; only Ed25519 cosignatures (type 4) are known", ErrKey, raw[0], len(raw)-1)
	}
	v := &verifier{name: name, key: raw[1:]}
	if v.hash = keyHash(name, v.key); uint64(v.hash) != hash {
		return nil, fmt.Errorf("%w: the hash in it is not that of the name and the key", ErrKey)
	}
	return v, nil
}

// validName is what a signed note allows for the name of a key.
func validName(name string) bool {
	return name != "" && utf8.ValidString(name) && strings.IndexFunc(name, unicode.IsSpace) < 0 && !strings.Contains(name, "+")
}

func keyHash(name string, key ed25519.PublicKey) uint32 {
	h := sha256.Sum256(append(append([]byte(name), '\n', algCosignature), key...))
	return binary.BigEndian.Uint32(h[:])
}

func (v *verifier) Name() string    { return v.name }
func (v *verifier) KeyHash() uint32 { return v.hash }

// Verify checks a cosignature over the text of a head.
func (v *verifier) Verify(text, sig []byte) bool {
	if len(sig) != sigSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at <= math.MaxInt64 && ed25519.Verify(v.key, message(at, text), sig[8:])
}

// message is what is signed at a time over the text of a head.
func message(at uint64, text []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", at), text...)
}

// Time returns when a cosignature was made. It is only as true as the signature, which is for [note.Open] to check.
func Time(sig note.Signature) (time.Time, error) {
	raw, err := base64.StdEncoding.DecodeString(sig.Base64)
	if err != nil || len(raw) != 4+sigSize {
		return time.Time{}, fmt.Errorf("witness: the signature of %s is not a cosignature", sig.Name)
	}
	at := binary.BigEndian.Uint64(raw[4:])
	if at > math.MaxInt64 {
		return time.Time{}, fmt.Errorf("witness: the time in the cosignature of %s is out of range", sig.Name)
	}
	return time.Unix(int64(at), 0).UTC(), nil
}

// A Signer makes cosignatures.
type Signer struct {
	verifier
	private ed25519.PrivateKey
	now     func() time.Time
}

// NewSigner returns the signer of the witness of that name. now is the clock of its cosignatures.
func NewSigner(name string, key ed25519.PrivateKey, now func() time.Time) (*Signer, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok || !validName(name) {
		return nil, fmt.Errorf("witness: %q cannot be the name of a witness, or its key is none", name)
	}
	return &Signer{verifier{name, keyHash(name, public), public}, key, now}, nil
}

// VerifierKey returns the text that [ParseKey] reads.
func (s *Signer) VerifierKey() string {
	return fmt.Sprintf("%s+%08x+%s", s.name, s.hash, base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, s.key...)))
}

// Sign cosigns the text of a head, at the present time.
func (s *Signer) Sign(text []byte) ([]byte, error) {
	now := s.now().Unix()
	if now < 0 {
		return nil, errors.New("witness: the clock is before 1970")
	}
	at := uint64(now)
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(s.private, message(at, text))...), nil
}

// Cosignatures returns the valid cosignatures of the given witnesses on a signed note, none if there is none. The error says that a
// signature in a witness's name is wrong, or that b is no signed note.
func Cosignatures(b []byte, keys ...note.Verifier) ([]note.Signature, error) {
	n, err := note.Open(b, note.VerifierList(keys...))
	var none *note.UnverifiedNoteError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	return n.Sigs, nil
}

// withSignatures puts signature lines behind those of a note, unless they are there.
func withSignatures(b []byte, sigs []note.Signature) []byte {
	b = bytes.Clone(b)
	for _, s := range sigs {
		line := fmt.Appendf(nil, "— %s %s\n", s.Name, s.Base64)
		if !bytes.Contains(b, append([]byte("\n"), line...)) {
			b = append(b, line...)
		}
	}
	return b
}
