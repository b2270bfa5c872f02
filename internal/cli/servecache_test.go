package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// TestOpenCache: aggregates are kept in the user's cache directory, elsewhere or nowhere; where that cannot be, it is said, and runs are
// shown all the same.
func TestOpenCache(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "xdg"))
	file := filepath.Join(home, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(home, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ set, dir, said string }{
		"default":        {"", filepath.Join(home, "xdg", "usp", "aggregates"), ""},
		"elsewhere":      {filepath.Join(home, "mine"), filepath.Join(home, "mine"), ""},
		"none":           {"none", "", ""},
		"not possible":   {filepath.Join(file, "x"), "", "not a directory"},
		"open to others": {open, "", "chmod 700"},
	} {
		t.Run(name, func(t *testing.T) {
			var said bytes.Buffer
			a := &app{err: &said, fs: vfs.OS(), now: time.Now, env: []string{"USP_SERVE_CACHE=" + c.set, "USP_SERVE_CACHE_SIZE=1GiB"}}
			if err := a.loadConfig(); err != nil {
				t.Fatal(err)
			}
			k, fault := a.openCache()
			if (k == nil) != (c.dir == "") || (fault == "") != (c.said == "") || !strings.Contains(said.String(), c.said) || c.said == "" && said.Len() > 0 {
				t.Fatalf("%v, %q, said %q", k, fault, said.String())
			}
			if k == nil {
				return
			}
			if k.Dir() != c.dir {
				t.Errorf("in %s", k.Dir())
			}
			if info, err := os.Stat(c.dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info, err)
			}
		})
	}
	a := &app{err: new(bytes.Buffer), fs: vfs.OS(), now: time.Now}
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	if err := a.loadConfig(); err != nil {
		t.Fatal(err)
	}
	if k, fault := a.openCache(); k != nil || fault == "" {
		t.Errorf("without a home: %v, %q", k, fault)
	}
}
