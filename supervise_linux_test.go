package usp

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/priority"
)

// launched starts a recorder that is this script of a shell, and returns what it wrote to the file "$0".
func launched(t *testing.T, script string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	p, err := newSupervisor([]string{"sh", "-c", script}, out, Options{}, nil).launch()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-p.exited; err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// A recorder of Go code is not interrupted by signals, from its first instruction.
func TestLaunchUnsignalled(t *testing.T) {
	t.Setenv("GODEBUG", "gctrace=0")
	if got := launched(t, `echo $GODEBUG > "$0"`); got != "gctrace=0,asyncpreemptoff=1" {
		t.Errorf("started with GODEBUG=%q", got)
	}
}

// A recorder's timers may be late from its first instruction, whatever it may set itself.
func TestLaunchUnhurried(t *testing.T) {
	if _, err := os.Stat("/proc/self/timerslack_ns"); err != nil {
		t.Skip("NOT CHECKED: a recorder's timers; this system does not tell how late they may be: ", err)
	}
	got := launched(t, `read slack < /proc/self/timerslack_ns && echo $slack > "$0"`)
	if got != strconv.FormatInt(priority.Slack.Nanoseconds(), 10) {
		t.Errorf("a slack of %s ns", got)
	}
}
