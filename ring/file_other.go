//go:build unix && !linux

package ring

import "golang.org/x/sys/unix"

// openHidden opens a new file under a temporary name: only Linux has nameless ones.
func openHidden(path string) (*newFile, error) { return openNamed(path) }

// linkAs adds a name.
func (f *newFile) linkAs(path string) error { return unix.Link(f.temp, path) }

// reserve leaves it to the caller to write zeros.
func reserve(int, int64) error { return unix.EOPNOTSUPP }

// bootID is not to be had here.
func bootID() (id [16]byte) { return id }

// fileSystem says "disk" of everything: these systems have no shared-memory file system by default.
func fileSystem(dir string) (kind string, memory bool, free uint64, err error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return "", false, 0, err
	}
	return "disk", false, uint64(st.Bavail) * uint64(st.Bsize), nil
}
