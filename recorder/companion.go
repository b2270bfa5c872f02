package recorder

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/usp-project/usp/internal/priority"
)

// CompanionOptions is a process that is started beside a recorder, for what is to follow the run without being able to
// disturb its recording: the sinks. It learns from the run's lock that the run has ended, and is to end then.
type CompanionOptions struct {
	Command []string      `json:"command,omitempty"` // the path of the run directory is appended; empty: none
	Wait    time.Duration `json:"wait,omitempty"`    // how long the recorder's process waits for it when the run has ended; default 10 s
}

// companion is that process.
type companion struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  *slog.Logger

	wait  time.Duration // from the end of the run until it is asked to end
	grace time.Duration // from then until it is killed
}

// startCompanion starts it. A run is recorded without it too; that it cannot be started is said. What it says
// goes to standard error.
func startCompanion(o Options, dir string) *companion {
	c := o.Companion
	if len(c.Command) == 0 {
		return nil
	}
	cmd := exec.Command(c.Command[0], append(c.Command[1:len(c.Command):len(c.Command)], dir)...)
	cmd.Stderr = struct{ io.Writer }{os.Stderr}           // by way of this process: a producer learns that a recorder is gone when its pipe is closed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is not for it
	if err := cmd.Start(); err != nil {
		o.Logger.Error("the sinks cannot be started; recording goes on", "command", c.Command, "err", err)
		return nil
	}
	// From its first instruction: to start takes time of a processor that the recorder may need. Those of its threads
	// that there are by now it sees to itself. It stays in the recorder's session, of whose share it gets what that leaves.
	priority.LowerProcess(cmd.Process.Pid)
	p := &companion{cmd: cmd, done: make(chan struct{}), log: o.Logger, wait: c.Wait, grace: 5 * time.Second}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // what was wrong it has said itself
	}()
	return p
}

// end waits for the companion, whose run has ended. Where the run was only left to another recorder, which has a companion of its
// own, it is asked to end at once, and so is one that takes too long.
func (p *companion) end(ctx context.Context) {
	if p == nil {
		return
	}
	late := time.NewTimer(p.wait)
	defer late.Stop()
	select {
	case <-p.done:
		return
	case <-ctx.Done():
	case <-late.C:
		p.log.Warn("the sinks take too long and are left behind; usp sink RUN brings the rest", "waited", p.wait)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
	if p.ended(p.grace) {
		return
	}
	_ = p.cmd.Process.Kill()
	if !p.ended(p.grace) { // a file system that does not answer holds even who was killed
		p.log.Warn("the sinks do not end, and are left to themselves", "pid", p.cmd.Process.Pid)
	}
}

// ended says whether the process ends within d.
func (p *companion) ended(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.done:
		return true
	case <-t.C:
		return false
	}
}
