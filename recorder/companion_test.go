//go:build unix

package recorder

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// TestCompanion ends processes that end by themselves, when asked, when killed, and not even then: whatever destinations do not
// answer, a recorder ends.
func TestCompanion(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		said   string
	}{
		"by itself":  {"echo $1 begun >$1/begun", ""},
		"when asked": {"echo >$1/begun; sleep 600 & trap 'kill $!; exit' TERM; wait", "left behind"},
		"killed":     {"trap '' TERM; echo >$1/begun; exec sleep 600", "left behind"},
		// Who has inherited standard error holds it open, as a process in a system call that does not return does.
		"not even then": {"trap '' TERM; sleep 30 & echo $! >$1/begun; wait", "do not end"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var said bytes.Buffer
			o := Options{Logger: slog.New(slog.NewTextHandler(&said, nil))}
			o.Companion = CompanionOptions{Command: []string{"sh", "-c", c.script, "sh"}, Wait: 100 * time.Millisecond}
			p := startCompanion(o, dir)
			if p == nil {
				t.Fatal("it did not start")
			}
			p.grace = 100 * time.Millisecond
			defer syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what is left of its group, if anything is
			for {                                                   // until it has set its trap
				if _, err := vfs.OS().Stat(filepath.Join(dir, "begun")); err == nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if c.said == "" {
				<-p.done
			}
			ended := make(chan struct{})
			go func() { p.end(context.Background()); close(ended) }()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("the recorder waits for it for ever")
			}
			if (said.Len() > 0) != (c.said != "") || !strings.Contains(said.String(), c.said) {
				t.Errorf("it says %q, want %q", said.String(), c.said)
			}
		})
	}
}
