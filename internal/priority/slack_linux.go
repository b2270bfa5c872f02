package priority

import (
	"os"
	"runtime"
	"strconv"

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
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		_ = os.WriteFile("/proc/"+task.Name()+"/timerslack_ns", strconv.AppendInt(nil, int64(Slack), 10), 0) // it may have ended
	}
}
