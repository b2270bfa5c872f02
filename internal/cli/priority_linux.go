package cli

import (
	"os"
	"strconv"
	"syscall"
)

// lowest is the lowest priority of those that get some of a processor for sure.
const lowest = 19

// yieldProcessor makes every thread of this process give way to others: what runs beside a step loop and its recorder is
// to take what they leave. Threads that are made later take after the one that makes them. It is best effort.
func yieldProcessor() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, lowest) // it may have ended
		}
	}
}

// yieldThread makes the calling thread give way to all others: what it does has time. It is best effort.
func yieldThread() { _ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, lowest) } // of Linux, 0 is the calling thread alone
