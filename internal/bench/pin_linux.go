package bench

import (
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// startPinned starts cmd so that it runs on one processor only, the last of those that this process may use; the runtime
// of a Go program then takes itself to be on a machine with one.
func startPinned(cmd *exec.Cmd) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := range 64 * len(all) {
		if all.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
		}
	}
	runtime.LockOSThread() // a child inherits from the thread that starts it
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	err := cmd.Start()
	if back := unix.SchedSetaffinity(0, &all); err == nil && back != nil {
		_ = cmd.Process.Kill() // the caller gets no process to end
		_ = cmd.Wait()
		return back
	}
	return err
}

// maxRSS is in bytes.
func maxRSS(kernel int64) int64 { return kernel << 10 }
