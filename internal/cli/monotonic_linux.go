package cli

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the time since the boot, as the service manager wants it.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // it cannot fail
	}
	return time.Duration(t.Nano())
}
