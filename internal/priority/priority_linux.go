package priority

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// LowerProcess makes a process that begins, and what it will start, give way to all others.
func LowerProcess(pid int) { _ = syscall.Setpriority(syscall.PRIO_PROCESS, pid, Lowest) } // of Linux, its first thread

// LowerSelf makes every thread of this process give way to all others. Threads that are made later take after the one that
// makes them.
func LowerSelf() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, Lowest) // it may have ended
		}
	}
}

// LowerThread makes the calling thread give way to all others.
func LowerThread() { _ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, Lowest) } // of Linux, 0 is the calling thread alone

const sessionFile = "/proc/self/autogroup"

// Session returns what lowers the priority of all that runs in this process's session, and raises it to what it was. It returns nil
// where sessions have none, and where this process does not lead its session: the others there have not asked for it.
// An error may pass: of unprivileged processes the system takes ten such calls a second, all together.
func Session() func(low bool) error {
	if id, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0); errno != 0 || int(id) != os.Getpid() {
		return nil
	}
	if on, err := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled"); err != nil || !bytes.HasPrefix(on, []byte("1")) {
		return nil
	}
	text, err := os.ReadFile(sessionFile)
	if err != nil || syscall.Access(sessionFile, 2) != nil { // 2: writing; /proc may be mounted without
		return nil
	}
	var group, was int
	if _, err := fmt.Sscanf(string(text), "/autogroup-%d nice %d", &group, &was); err != nil || was >= Low {
		return nil
	}
	return func(low bool) error {
		nice := was
		if low {
			nice = Low
		}
		return os.WriteFile(sessionFile, strconv.AppendInt(nil, int64(nice), 10), 0)
	}
}
