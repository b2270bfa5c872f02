package usp

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/ring"
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

// The first recorder begins at ordinary priority, for which its run waits; one that takes over gives way from its beginning on.
func TestTakeoverGivesWay(t *testing.T) {
	if !priority.Sessions() {
		t.Skip("NOT CHECKED: the priority of a recorder that takes over; this system does not schedule sessions as groups")
	}
	const script = `
		has() { read group word nice < /proc/self/autogroup && test $nice = $1; }
		if test -e "$0.first"; then
			for i in 1 2 3 4 5 6 7 8 9 10; do has 18 && break; sleep .1; done
			has 18 && touch "$0.low"; echo {}
		else
			touch "$0.first"; sleep .3; has 0 && touch "$0.ordinary"; false
		fi`
	if os.Geteuid() != 0 {
		t.Skip("NOT CHECKED: the priority of a recorder that takes over; who is not privileged may change one only ten times a second, with all others")
	}
	path := filepath.Join(t.TempDir(), "ring")
	r, err := ring.Create(ring.Config{Path: path, RunID: "r", Schema: []byte("s"), PayloadLen: 8, Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(true)
	o := Options{Now: time.Now, Logger: slog.New(slog.DiscardHandler), Stderr: io.Discard}
	s := newSupervisor([]string{"sh", "-c", script}, path, o, nil)
	p, err := s.launch()
	if err != nil {
		t.Fatal(err)
	}
	s.watch(p)
	if _, err := os.Stat(path + ".ordinary"); err != nil {
		t.Error("the first one was lowered: ", err)
	}
	if _, err := os.Stat(path + ".low"); err != nil {
		t.Error("the second one was not: ", err)
	}
}
