package vfs

import "golang.org/x/sys/unix"

// datasync uses F_FULLFSYNC, as os.File.Sync does: fsync alone leaves the data in the drive's cache.
func datasync(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_FULLFSYNC, 0)
	return err
}

// preallocate reserves space past the end of the file and then extends the size over it.
func preallocate(fd int, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if size <= st.Size {
		return nil
	}
	store := unix.Fstore_t{Flags: unix.F_ALLOCATEALL, Posmode: unix.F_PEOFPOSMODE, Length: size - st.Size}
	if err := unix.FcntlFstore(uintptr(fd), unix.F_PREALLOCATE, &store); err != nil {
		return err
	}
	return unix.Ftruncate(fd, size)
}

// dropCache does nothing: the system has no such advice for a file.
func dropCache(int, int64, int64) error { return nil }

// startWriteback does nothing: the system has no such advice for a file.
func startWriteback(int, int64, int64) error { return nil }

// nextData says that there are data everywhere: what the system says of data that are not on the device yet is not known here.
func nextData(_ int, off int64) (int64, error) { return off, nil }

const directFlag = 0

// directly is not known here: what the system has past its cache keeps neither its cache nor blocks apart.
func directly(osFile) bool { return false }
