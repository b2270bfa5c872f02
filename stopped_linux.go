package usp

import (
	"bytes"
	"fmt"
	"os"
)

// stopped reports whether a process is stopped (SIGSTOP, a debugger): waiting for it would be waiting for a person.
func stopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the command's name, which is in parentheses and may hold any byte.
	i := bytes.LastIndexByte(b, ')')
	return i >= 0 && i+2 < len(b) && (b[i+2] == 'T' || b[i+2] == 't')
}
