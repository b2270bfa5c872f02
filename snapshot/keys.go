package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
)

// maxIdentityFile is the largest identity file that is read, in bytes.
const maxIdentityFile = 1 << 20

// ParseRecipients reads age public keys ("age1…", or "age1pq1…" for the kind that
// withstands quantum computers; the two cannot be mixed) for Options.Recipients.
// No key gives no recipients. The error says which one of the list is wrong.
func ParseRecipients(keys ...string) ([]age.Recipient, error) {
	recipients := make([]age.Recipient, 0, len(keys))
	quantum := 0
	for i, key := range keys {
		r, err := parseRecipient(strings.TrimSpace(key))
		if err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
		if _, ok := r.(*age.HybridRecipient); ok {
			quantum++
		}
		recipients = append(recipients, r)
	}
	if quantum != 0 && quantum != len(keys) {
		return nil, fmt.Errorf("%d of %d recipients are of the kind age1pq1…: use either that kind or age1… for all", quantum, len(keys))
	}
	return recipients, nil
}

func parseRecipient(key string) (r age.Recipient, err error) {
	switch {
	case key == "":
		return nil, errors.New(`is empty: want an age public key, "age1…"`)
	case strings.HasPrefix(strings.ToUpper(key), "AGE-"):
		// Not shown: whoever reads the message must not learn it.
		return nil, errors.New(`is a secret key: give the public key that belongs to it, "age1…", and take this one out of the configuration`)
	case strings.HasPrefix(key, "age1pq1"):
		r, err = age.ParseHybridRecipient(key)
	case strings.HasPrefix(key, "age1"):
		r, err = age.ParseX25519Recipient(key)
	default:
		return nil, errors.New(`is no age public key: want "age1…" as age-keygen prints it; keys of ssh and of plugins are not supported`)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// ReadIdentities reads the secret keys of a file as age-keygen writes it, for
// LoadOptions.Identities. A file that others than its owner may read, write or
// execute is refused; the error then wraps fs.ErrPermission. No error shows any
// part of a key.
func ReadIdentities(fsys vfs.FS, path string) ([]age.Identity, error) {
	st, err := fsys.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("identity file %s is not a regular file", path)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("identity file %s has mode %04o, want 0600: other users have access to the secret key; run chmod 600: %w", path, mode, fs.ErrPermission)
	}
	b, err := vfs.ReadFile(fsys, path, maxIdentityFile)
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	ids, err := parseIdentities(b)
	if err != nil {
		return nil, fmt.Errorf("identity file %s: %w", path, err)
	}
	return ids, nil
}

func parseIdentities(b []byte) ([]age.Identity, error) {
	if bytes.HasPrefix(b, []byte("age-encryption.org/v1")) || bytes.HasPrefix(b, []byte("-----BEGIN AGE ENCRYPTED FILE-----")) {
		return nil, errors.New("is itself encrypted: decrypt it to a file of mode 0600 first (age --decrypt)")
	}
	var ids []age.Identity
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		id, err := parseIdentity(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d %w", n, err)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, errors.New(`holds no secret key: want a line "AGE-SECRET-KEY-1…" as age-keygen writes it`)
	}
	return ids, nil
}

// parseIdentity leaves out what the parser says, which may quote the key.
func parseIdentity(key string) (age.Identity, error) {
	switch {
	case strings.HasPrefix(key, "AGE-SECRET-KEY-PQ-1"):
		if id, err := age.ParseHybridIdentity(key); err == nil {
			return id, nil
		}
	case strings.HasPrefix(key, "AGE-SECRET-KEY-1"):
		if id, err := age.ParseX25519Identity(key); err == nil {
			return id, nil
		}
	case strings.HasPrefix(key, "age1"):
		return nil, errors.New("is a public key: want the secret key that belongs to it")
	case strings.HasPrefix(key, "AGE-PLUGIN-"):
		return nil, errors.New("is for a plugin, which is not supported")
	default:
		return nil, errors.New(`is no age secret key: want "AGE-SECRET-KEY-1…"`)
	}
	return nil, errors.New("is a damaged age secret key: copy it anew")
}
