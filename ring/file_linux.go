package ring

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openHidden opens a new file in path's directory that has no name yet, so that
// a producer killed before it is done leaves nothing behind. Where the file
// system or a missing /proc does not allow that, the file gets a temporary name.
func openHidden(path string) (*newFile, error) {
	dir, _ := splitPath(path)
	if unix.Access("/proc/self/fd", unix.X_OK) == nil {
		fd, err := openFile(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err == nil {
			return &newFile{fd: fd, path: path}, nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
	}
	return openNamed(path)
}

// linkAs adds a name; a file without one is reached through its descriptor.
func (f *newFile) linkAs(path string) error {
	if f.temp != "" {
		return unix.Link(f.temp, path)
	}
	return retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	})
}

// reserve allocates in steps: tmpfs gives up a whole fallocate on any signal. It
// asks for the free space first, so as not to fill the memory before it fails.
func reserve(fd int, size int64) error {
	const step = 64 << 20
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err == nil && st.Blocks > 0 && uint64(size) > st.Bavail*uint64(st.Bsize) {
		return unix.ENOSPC
	}
	for off := int64(0); off < size; off += step {
		err := retry(func() error { return unix.Fallocate(fd, 0, off, min(step, size-off)) })
		if err != nil {
			return err
		}
	}
	return nil
}

// bootID identifies the boot of this machine; zero if it does not say.
func bootID() (id [16]byte) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	text := strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")
	if len(text) == 2*len(id) {
		if _, err := hex.Decode(id[:], []byte(text)); err != nil {
			return [16]byte{}
		}
	}
	return id
}

// The magic numbers of statfs(2) that mean memory.
const (
	magicTmpfs = 0x01021994
	magicRamfs = 0x858458f6
)

func fileSystem(dir string) (kind string, memory bool, free uint64, err error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return "", false, 0, err
	}
	free = st.Bavail * uint64(st.Bsize)
	switch uint32(st.Type) {
	case magicTmpfs:
		return "tmpfs", true, free, nil
	case magicRamfs:
		return "ramfs", true, free, nil
	}
	return "disk", false, free, nil
}
