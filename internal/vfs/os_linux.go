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

func dropCache(fd int, off, n int64) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) }

// startWriteback only begins. The flags that wait would also take note of a write error, and the fsync
// after them would then return nil.
func startWriteback(fd int, off, n int64) error {
	return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

const zfsMagic = 0x2fc12fc1

// nextData is ENXIO where there are no data. Zeros that somebody has read, or that were read ahead, count as data as long as
// they are in memory; there is no use for them.
func nextData(fd int, off int64) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type == zfsMagic || st.Type == unix.FUSE_SUPER_MAGIC {
		return off, err // these may not know, or wait for the device to know, of data that are not written back yet
	}
	page := off &^ (1<<16 - 1)                        // of whatever size
	_ = unix.Fadvise(fd, page, 0, unix.FADV_DONTNEED) // advice: without it more is read
	return unix.Seek(fd, off, unix.SEEK_DATA)
}

const directFlag = unix.O_DIRECT

// directly reports whether the file system says of a file that it can be written directly in blocks of DirectBlock bytes. One in memory
// does not, although it may be opened so; nor does Linux before 6.1, of any.
func directly(f osFile) bool {
	var st unix.Statx_t
	err := control(f.File, func(fd int) error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) })
	return err == nil && st.Mask&unix.STATX_DIOALIGN != 0 && fits(st.Dio_mem_align) && fits(st.Dio_offset_align)
}

// fits reports whether what is aligned to DirectBlock is aligned to this.
func fits(align uint32) bool { return align > 0 && DirectBlock%align == 0 }
