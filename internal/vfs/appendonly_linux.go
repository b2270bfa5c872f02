package vfs

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// fsAppend is FS_APPEND_FL of linux/fs.h.
const fsAppend = 0x20

// setAppendOnly implements attributer.
func (osFS) setAppendOnly(name string, on bool) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	err = setFlag(int(f.Fd()), on)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		err = errors.ErrUnsupported
		if !on { // what cannot be set is not set
			err = nil
		}
	}
	if err != nil {
		err = &fs.PathError{Op: "chattr", Path: name, Err: err}
	}
	return errors.Join(err, f.Close())
}

func setFlag(fd int, on bool) error {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	want := flags &^ fsAppend
	if on {
		want = flags | fsAppend
	}
	if want == flags {
		return nil
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(want))
}
