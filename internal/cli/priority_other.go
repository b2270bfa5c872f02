//go:build !linux

package cli

// yieldProcessor does nothing where the threads of a process cannot be listed.
func yieldProcessor() {}

// yieldThread does nothing where a thread has no priority of its own.
func yieldThread() {}
