//go:build !linux

package priority

import "syscall"

// LowerProcess makes the process with the given id give way to all others.
func LowerProcess(pid int) { _ = syscall.Setpriority(syscall.PRIO_PROCESS, pid, Lowest) }

// LowerSelf makes this process give way to all others.
func LowerSelf() { LowerProcess(0) }

// LowerThread does nothing where a thread has no priority of its own.
func LowerThread() {}

// Session returns nil: the session's share of the processors cannot be changed.
func Session() func(low bool) error { return nil }
