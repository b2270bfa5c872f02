//go:build unix

package environ

import "golang.org/x/sys/unix"

// release is the version of the kernel, or nothing.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
