//go:build unix && !linux

package ring

import "errors"

// roleQuiet is for strace, which is Linux's.
func roleQuiet(string) error { return errors.New("not on this system") }
