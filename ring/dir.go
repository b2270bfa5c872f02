//go:build unix

package ring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// DirInfo says what kind of directory DefaultDir chose.
type DirInfo struct {
	Source  string // what named it: "USP_RING_DIR", "/dev/shm", "XDG_RUNTIME_DIR" or "temp"
	Kind    string // file system: "tmpfs", "ramfs", "disk", or "unknown"
	Memory  bool   // memory-backed: no write-back of dirty pages can stall the producer
	Free    uint64 // bytes free there for this user
	Warning string // what to know before relying on it, "" if nothing
}

// DefaultDir chooses the directory for rings: $USP_RING_DIR, or else
// /dev/shm/usp-UID, $XDG_RUNTIME_DIR/usp, or usp-UID in the temporary
// directory, whichever exists or can be made first. It makes nothing: that is
// for [PrepareDir]. Producer and consumer find the same directory if they run
// as the same user with the same environment.
func DefaultDir() (string, DirInfo) {
	return chooseDir(os.Getenv, os.Getuid(), "/dev/shm", os.TempDir())
}

// Describe says of a directory that was configured what DefaultDir says of the one it chose.
func Describe(dir string) DirInfo { return describe(dir, "the configuration") }

func chooseDir(getenv func(string) string, uid int, shm, temp string) (string, DirInfo) {
	user := "usp-" + strconv.Itoa(uid)
	if dir := getenv("USP_RING_DIR"); dir != "" {
		return dir, describe(dir, "USP_RING_DIR")
	}
	var passed string
	for _, c := range []struct{ parent, name, source string }{
		{shm, user, "/dev/shm"}, {getenv("XDG_RUNTIME_DIR"), "usp", "XDG_RUNTIME_DIR"},
	} {
		if c.parent == "" {
			continue
		}
		dir := filepath.Join(c.parent, c.name)
		if err := usable(c.parent, dir, uid); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				passed = fmt.Sprintf("%s passed over: %v", dir, err)
			}
			continue
		}
		info := describe(dir, c.source)
		info.Warning = joinWarnings(passed, info.Warning)
		return dir, info
	}
	dir := filepath.Join(temp, user)
	info := describe(dir, "temp")
	info.Warning = joinWarnings(passed, info.Warning)
	return dir, info
}

func joinWarnings(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// usable reports what speaks against dir: it is not ours, or parent is not a place to make it in.
func usable(parent, dir string, uid int) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
			return &fs.PathError{Op: "access", Path: parent, Err: err}
		}
		return nil
	}
	if err != nil {
		return err
	}
	return private(dir, info, uid)
}

// private refuses a directory in which another user could put a ring.
func private(dir string, info fs.FileInfo, uid int) error {
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != uid {
		return fmt.Errorf("%s belongs to user %d, not %d", dir, st.Uid, uid)
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("%s has mode %04o: others may write to it: chmod 700 it", dir, perm)
	}
	return nil
}

// describe looks at the file system that dir is, or will be, in.
func describe(dir, source string) DirInfo {
	info := DirInfo{Source: source, Kind: "unknown"}
	at := dir
	kind, memory, free, err := fileSystem(at)
	for errors.Is(err, unix.ENOENT) && at != filepath.Dir(at) {
		at = filepath.Dir(at)
		kind, memory, free, err = fileSystem(at)
	}
	if err != nil {
		info.Warning = fmt.Sprintf("file system of %s: %v", dir, err)
		return info
	}
	info.Kind, info.Memory, info.Free = kind, memory, free
	if !memory {
		info.Warning = dir + " is not in a memory-backed file system: write-back to disk can stall a producer; set USP_RING_DIR to one that is"
	}
	return info
}

// PrepareDir makes dir, mode 0700, if it is missing, and refuses one that
// belongs to another user or that others may write to.
func PrepareDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("ring: prepare %s: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("ring: prepare %s: %w", dir, err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("ring: prepare %s: %w", dir, err)
	}
	if err := private(dir, info, os.Getuid()); err != nil {
		return fmt.Errorf("ring: prepare: %w", err)
	}
	return nil
}

// List returns the paths of the rings in dir, sorted by name: regular files
// that begin with a ring's magic and are not hidden. A directory that does not
// exist has none.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ring: list %s: %w", dir, err)
	}
	var rings []string
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name()[0] == '.' {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if isRing(path) {
			rings = append(rings, path)
		}
	}
	return rings, nil
}

// isRing looks at the magic. A file that vanishes or may not be read is none of ours.
func isRing(path string) bool {
	fd, err := openFile(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	b, err := readAt(fd, 0, int64(len(magic)))
	return err == nil && string(b) == magic
}
