//go:build !linux

package usp

// stopped is not known here; a stopped recorder is waited for until it has made no progress for the drain timeout.
func stopped(int) bool { return false }
