package usp

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/priority"
)

// A recorder of Go code is not interrupted by signals, from its first instruction.
func TestLaunchUnsignalled(t *testing.T) {
	t.Setenv("GODEBUG", "gctrace=0")
	out := filepath.Join(t.TempDir(), "debug")
	s := newSupervisor([]string{"sh", "-c", `echo $GODEBUG > "$0"`}, out, Options{}, nil)
	p, err := s.launch()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-p.exited; err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(out); err != nil || string(text) != "gctrace=0,asyncpreemptoff=1\n" {
		t.Errorf("started with GODEBUG=%q, %v", text, err)
	}
}

// A recorder's timers may be late from its first instruction, whatever it may set itself.
func TestLaunchUnhurried(t *testing.T) {
	if _, err := os.Stat("/proc/self/timerslack_ns"); err != nil {
		t.Skip("NOT CHECKED: a recorder's timers; this system does not tell how late they may be: ", err)
	}
	out := filepath.Join(t.TempDir(), "slack")
	s := newSupervisor([]string{"sh", "-c", `read slack < /proc/self/timerslack_ns && echo $slack > "$0"`}, out, Options{}, nil)
	p, err := s.launch()
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
	if got := strings.TrimSpace(string(text)); got != strconv.FormatInt(priority.Slack.Nanoseconds(), 10) {
		t.Errorf("a slack of %s ns", got)
	}
}
