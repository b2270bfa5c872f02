package priority

import (
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Unhurried calls start, which starts a process, so that the timers of that process may be late by Slack: its threads take after
// the one that calls.
func Unhurried(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(Slack), 0, 0, 0)
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // what this thread began with
	return start()
}

// UnhurriedSelf lets the timers of this process be late by Slack, but those of threads for which that takes a privilege that it
// does not have: who starts it sees to these.
func UnhurriedSelf() {
	eachThread(func(id int) {
		_ = os.WriteFile("/proc/"+strconv.Itoa(id)+"/timerslack_ns", strconv.AppendInt(nil, int64(Slack), 10), 0)
	})
}

const longSlice = 100 * time.Millisecond // the longest that Linux gives

// Preemptible asks for long slices for this process: for the threads that it has, and by these for those that come. Linux lets a
// thread that it has just chosen run for a slice before it looks again, however low its priority, if the one that wakes meanwhile has
// slept for so long that neither is owed anything; but one with a shorter slice may interrupt it (EEVDF, Linux 6.12).
func Preemptible() {
	eachThread(func(id int) {
		attr, err := unix.SchedGetAttr(id, 0)
		if err != nil || attr.Policy != unix.SCHED_NORMAL { // others have no slice, or another meaning for it
			return
		}
		attr.Runtime = uint64(longSlice)
		_ = unix.SchedSetAttr(id, attr, 0)
	})
}
