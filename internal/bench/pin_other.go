//go:build !linux

package bench

import (
	"os"
	"os/exec"
)

// startPinned starts cmd with one processor for its Go code: the system has no way to bind a process to one.
func startPinned(cmd *exec.Cmd) error {
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	return cmd.Start()
}

// maxRSS is in bytes.
func maxRSS(kernel int64) int64 { return kernel }
