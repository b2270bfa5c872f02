//go:build unix

package ring

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChooseDir(t *testing.T) {
	uid := os.Getuid()
	base := t.TempDir()
	shm, xdg, temp := filepath.Join(base, "shm"), filepath.Join(base, "xdg"), filepath.Join(base, "tmp")
	for _, d := range []string{shm, xdg, temp} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var ours DirInfo
	choose := func(env map[string]string, shm string) string {
		dir, info := chooseDir(func(k string) string { return env[k] }, uid, shm, temp)
		ours = info
		return strings.TrimPrefix(dir, base)
	}
	name := fmt.Sprintf("usp-%d", uid)
	none := filepath.Join(base, "none")
	withXDG := map[string]string{"XDG_RUNTIME_DIR": xdg}
	for what, c := range map[string]struct{ got, want string }{
		"set":     {choose(map[string]string{"USP_RING_DIR": base + "/mine"}, shm), "/mine"},
		"shm":     {choose(withXDG, shm), "/shm/" + name},
		"runtime": {choose(withXDG, none), "/xdg/usp"},
		"temp":    {choose(nil, none), "/tmp/" + name},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", what, c.got, c.want)
		}
	}
	if ours.Kind == "" || ours.Kind == "unknown" || ours.Memory != (ours.Kind != "disk") || ours.Memory == (ours.Warning != "") {
		t.Errorf("described as %+v", ours)
	}
	// A directory that others may write to, or a file, is passed over, aloud.
	if err := os.Mkdir(filepath.Join(shm, name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(shm, name), 0o777); err != nil {
		t.Fatal(err)
	}
	if got := choose(withXDG, shm); got != "/xdg/usp" || !strings.Contains(ours.Warning, "chmod 700") {
		t.Errorf("with an open directory in the way: %s, %+v", got, ours)
	}
	if err := PrepareDir(filepath.Join(shm, name)); err == nil {
		t.Error("an open directory was accepted")
	}
}

func TestPrepareDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := PrepareDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PrepareDir(file); err == nil {
		t.Error("a file was accepted as a directory")
	}
}

func TestDefaultDir(t *testing.T) {
	t.Setenv("USP_RING_DIR", "/proc")
	if dir, info := DefaultDir(); dir != "/proc" || info.Source != "USP_RING_DIR" || info.Memory || info.Warning == "" {
		t.Errorf("%s %+v", dir, info)
	}
	t.Setenv("USP_RING_DIR", "")
	if dir, info := DefaultDir(); dir == "" || info.Source == "" || info.Source == "USP_RING_DIR" {
		t.Errorf("%s %+v", dir, info)
	}
}
