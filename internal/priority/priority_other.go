//go:build !linux

package priority

import (
	"context"
	"syscall"
)

// LowerProcess makes the process with the given id give way to all others.
func LowerProcess(pid int) { _ = syscall.Setpriority(syscall.PRIO_PROCESS, pid, Lowest) }

// LowerSelf makes this process give way to all others.
func LowerSelf() { LowerProcess(0) }

// LowerThread does nothing where a thread has no priority of its own.
func LowerThread() {}

// Unhurried calls start.
func Unhurried(start func() error) error { return start() }

// UnhurriedSelf does nothing.
func UnhurriedSelf() {}

// Preemptible does nothing.
func Preemptible() {}

// Sessions reports false: sessions are not scheduled as groups.
func Sessions() bool { return false }

// Session returns nil: the session's share of the processors cannot be changed.
func Session() func(low bool) (before bool, err error) { return nil }

// EndBeginning does nothing.
func EndBeginning(ctx context.Context) {}

// LowerSession does nothing.
func LowerSession(pid int) error { return nil }

// RaiseSession does nothing.
func RaiseSession(pid int) error { return nil }
