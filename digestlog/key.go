package digestlog

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/vfs"
)

// Errors of the signing key. None of them says anything of the key itself.
var (
	ErrKeyMode = errors.New("digestlog: signing key can be read by others; make it private with chmod 600, or replace it if others had access")
	ErrKey     = errors.New("digestlog: not a signing key")
)

const (
	keyMode    = 0o600
	keyDirMode = 0o700
	maxKeyFile = 1 << 10
	algEd25519 = 1 // key type byte of a signed note (C2SP signed-note)
)

// LoadOrCreateKey reads the signing key in the file path, or makes one if there is none: an Ed25519 key named "usp-" and four random hex
// digits, in the text form of golang.org/x/mod/sumdb/note, mode 0600, in a directory it makes with mode 0700 if need be. rnd is where a
// new key comes from; nil means crypto/rand. verifierKey is the public half, for note.NewVerifier and for the run's manifest.
//
// A file that its group or others may access is refused with [ErrKeyMode], a file with anything else in it with [ErrKey].
func LoadOrCreateKey(fsys vfs.FS, path string, rnd io.Reader) (signer note.Signer, verifierKey string, err error) {
	fsys = orOS(fsys)
	signer, verifierKey, err = LoadKey(fsys, path)
	if !errors.Is(err, fs.ErrNotExist) {
		return signer, verifierKey, err
	}
	text, err := newKey(rnd)
	if err != nil {
		return nil, "", fmt.Errorf("digestlog: make signing key: %w", err)
	}
	if err := vfs.MkdirAll(fsys, filepath.Dir(path), keyDirMode); err != nil {
		return nil, "", fmt.Errorf("digestlog: make signing key: %w", err)
	}
	err = vfs.Create(fsys, path, keyMode, func(f vfs.File) error {
		_, err := io.WriteString(f, text)
		return err
	})
	// Another process may have been faster: then its key is the key.
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, "", fmt.Errorf("digestlog: make signing key: %w", err)
	}
	return LoadKey(fsys, path)
}

// LoadKey is [LoadOrCreateKey] for a key that must be there; otherwise the error wraps fs.ErrNotExist.
func LoadKey(fsys vfs.FS, path string) (signer note.Signer, verifierKey string, err error) {
	fsys = orOS(fsys)
	info, err := fsys.Stat(path)
	if err != nil {
		return nil, "", fmt.Errorf("digestlog: read signing key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, "", fmt.Errorf("%w: %s is not a regular file", ErrKey, path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, "", fmt.Errorf("%w: %s has mode %04o", ErrKeyMode, path, info.Mode().Perm())
	}
	b, err := vfs.ReadFile(fsys, path, maxKeyFile)
	if err != nil {
		return nil, "", fmt.Errorf("digestlog: read signing key: %w", err)
	}
	skey := strings.TrimSuffix(string(b), "\n")
	signer, err = note.NewSigner(skey)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s: %w", ErrKey, path, err)
	}
	verifierKey, err = publicHalf(skey)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s: %w", ErrKey, path, err)
	}
	return signer, verifierKey, nil
}

// newKey makes the text of a key file.
func newKey(rnd io.Reader) (string, error) {
	if rnd == nil {
		rnd = rand.Reader
	}
	var b [2 + ed25519.SeedSize]byte
	if _, err := io.ReadFull(rnd, b[:]); err != nil {
		return "", err
	}
	name, seed := "usp-"+hex.EncodeToString(b[:2]), b[2:]
	vkey, err := note.NewEd25519VerifierKey(name, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	if err != nil {
		return "", err
	}
	hash := strings.Split(vkey, "+")[1]
	data := base64.StdEncoding.EncodeToString(append([]byte{algEd25519}, seed...))
	return fmt.Sprintf("PRIVATE+KEY+%s+%s+%s\n", name, hash, data), nil
}

// publicHalf derives the verifier key from a signer key that note.NewSigner has accepted.
func publicHalf(skey string) (string, error) {
	parts := strings.SplitN(skey, "+", 5) // base64 may hold a '+' itself
	if len(parts) != 5 {
		return "", errors.New("malformed")
	}
	data, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(data) != 1+ed25519.SeedSize {
		return "", errors.New("malformed")
	}
	return note.NewEd25519VerifierKey(parts[2], ed25519.NewKeyFromSeed(data[1:]).Public().(ed25519.PublicKey))
}
