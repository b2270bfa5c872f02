package digestlog

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/vfs"
)

func TestLoadOrCreateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "usp.key")
	signer, vkey, err := LoadOrCreateKey(nil, path, nil)
	must(t, err)
	if !regexp.MustCompile(`^usp-[0-9a-f]{4}$`).MatchString(signer.Name()) {
		t.Errorf("key name %q", signer.Name())
	}
	info, err := vfs.OS().Stat(path)
	must(t, err)
	dir, err := vfs.OS().Stat(filepath.Dir(path))
	must(t, err)
	if info.Mode().Perm() != 0o600 || dir.Mode().Perm() != 0o700 {
		t.Errorf("modes %v and %v, want 0600 in 0700", info.Mode(), dir.Mode())
	}
	verifier, err := note.NewVerifier(vkey)
	must(t, err)
	again, vkey2, err := LoadKey(nil, path)
	must(t, err)
	if vkey2 != vkey || again.KeyHash() != signer.KeyHash() {
		t.Errorf("loaded %s, made %s", vkey2, vkey)
	}
	sig, err := again.Sign([]byte("text"))
	must(t, err)
	if !verifier.Verify([]byte("text"), sig) {
		t.Error("the verifier key does not verify what the signer signs")
	}
}

func TestKeyRefused(t *testing.T) {
	m := vfs.NewMem()
	_, _, err := LoadOrCreateKey(m, "/k/key", bytes.NewReader(bytes.Repeat([]byte{3}, 34)))
	must(t, err)
	text, err := vfs.ReadFile(m, "/k/key", 1000)
	must(t, err)
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o620, 0o644} {
		must(t, m.Chmod("/k/key", mode))
		if _, _, err := LoadOrCreateKey(m, "/k/key", nil); !errors.Is(err, ErrKeyMode) {
			t.Errorf("mode %v: %v, want ErrKeyMode", mode, err)
		}
	}
	secret := strings.TrimSpace(strings.SplitN(string(text), "+", 5)[4])
	for name, content := range map[string]string{
		"empty": "", "cut": string(text[:len(text)-9]), "other text": "PRIVATE+KEY+x+00000000+" + secret, "two keys": string(text) + string(text),
		"large": strings.Repeat("a", maxKeyFile+1),
	} {
		must(t, vfs.Replace(m, "/k/key", []byte(content), 0o600))
		_, _, err := LoadOrCreateKey(m, "/k/key", nil)
		if !errors.Is(err, ErrKey) && !errors.Is(err, vfs.ErrTooLarge) {
			t.Errorf("%s: %v, want ErrKey", name, err)
		}
		if err != nil && strings.Contains(err.Error(), secret[:8]) {
			t.Errorf("%s: the error tells the key", name)
		}
	}
	if _, _, err := LoadKey(m, "/k/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
	if _, _, err := LoadKey(m, "/k"); !errors.Is(err, ErrKey) {
		t.Errorf("a directory: %v", err)
	}
	if _, _, err := LoadOrCreateKey(m, "/k/short", bytes.NewReader(make([]byte, 20))); err == nil {
		t.Error("a key was made of too little randomness")
	}
	if _, err := m.Stat("/k/short"); err == nil {
		t.Error("half a key was left behind")
	}
}

// TestKeyRace: of two processes that make the key at once, both get the one that is there.
func TestKeyRace(t *testing.T) {
	m := vfs.NewMem()
	var rival string
	m.SetHook(func(op vfs.Op) {
		if op.Kind == vfs.OpLink && rival == "" {
			rival = "busy"
			var err error
			_, rival, err = LoadOrCreateKey(m, "/key", bytes.NewReader(bytes.Repeat([]byte{7}, 34)))
			must(t, err)
		}
	})
	_, vkey, err := LoadOrCreateKey(m, "/key", bytes.NewReader(bytes.Repeat([]byte{8}, 34)))
	must(t, err)
	if vkey != rival {
		t.Errorf("got %s, the other process %s", vkey, rival)
	}
}
