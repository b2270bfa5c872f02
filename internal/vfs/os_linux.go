package vfs

import "golang.org/x/sys/unix"

func datasync(fd int) error { return unix.Fdatasync(fd) }

// preallocate also extends the size, so that later fdatasyncs have no size change to write.
func preallocate(fd int, size int64) error {
	if size <= 0 {
		return nil
	}
	return unix.Fallocate(fd, 0, 0, size)
}

func dropCache(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) }

// startWriteback only begins. The flags that wait would also take note of a write error, and the fsync
// after them would then return nil.
func startWriteback(fd int, off, n int64) error {
	return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}
