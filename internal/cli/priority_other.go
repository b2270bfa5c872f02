//go:build !linux

package cli

// yieldProcessor does nothing where the threads of a process cannot be listed.
func yieldProcessor() {}
