package recorder

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/priority"
)

func TestCompanion(t *testing.T) {
	tests := []struct {
		name, script string
		cancel       bool // the run is left to another recorder
		wait         time.Duration
		within       time.Duration
		file, said   string
	}{
		{"ends by itself", `echo "run $0" > "$0/out"`, false, time.Minute, 20 * time.Second, "run DIR", ""},
		{"takes too long", `trap 'echo asked > "$0/out"; exit' TERM; : > "$0/up"; while :; do sleep 0.01; done`, false, time.Second, 20 * time.Second, "asked", "left behind"},
		{"is asked at once", `trap 'echo asked > "$0/out"; exit' TERM; : > "$0/up"; while :; do sleep 0.01; done`, true, time.Minute, 20 * time.Second, "asked", ""},
		{"does not listen", `trap '' TERM; : > "$0/up"; while :; do sleep 0.01; done`, true, time.Minute, 20 * time.Second, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			var said bytes.Buffer
			o := Options{Logger: slog.New(slog.NewTextHandler(&said, nil))}
			o.Companion = CompanionOptions{Command: []string{"/bin/sh", "-c", test.script}, Wait: test.wait}
			p := startCompanion(o, dir)
			if p == nil {
				t.Fatal(said.String())
			}
			p.grace = 2 * time.Second
			for began := time.Now(); strings.Contains(test.script, "/up") && time.Since(began) < 10*time.Second; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(filepath.Join(dir, "up")); err == nil {
					break
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.cancel {
				cancel()
			}
			began := time.Now()
			p.end(ctx)
			if took := time.Since(began); took > test.within {
				t.Errorf("took %v", took)
			}
			out, _ := os.ReadFile(filepath.Join(dir, "out"))
			if got := strings.TrimSpace(strings.ReplaceAll(string(out), dir, "DIR")); got != test.file {
				t.Errorf("it wrote %q, want %q", got, test.file)
			}
			if !strings.Contains(said.String(), test.said) || test.said == "" && said.Len() > 0 {
				t.Errorf("said %q, want %q", said.String(), test.said)
			}
			if p.cmd.ProcessState == nil {
				t.Error("it is still there")
			}
		})
	}
}

// TestCompanionStuck has one that is not even gone when it was killed: whatever does not answer, a recorder ends. Who has inherited
// standard error holds it open here, as a process in a system call that does not return does.
func TestCompanionStuck(t *testing.T) {
	dir := t.TempDir()
	var said bytes.Buffer
	o := Options{Logger: slog.New(slog.NewTextHandler(&said, nil))}
	o.Companion = CompanionOptions{Command: []string{"/bin/sh", "-c", `trap '' TERM; sleep 30 & : > "$0/up"; wait`}, Wait: time.Minute}
	p := startCompanion(o, dir)
	if p == nil {
		t.Fatal(said.String())
	}
	p.grace = 100 * time.Millisecond
	defer syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what is left of its group
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "up")); err == nil {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan struct{})
	go func() { p.end(ctx); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the recorder waits for it for ever")
	}
	if !strings.Contains(said.String(), "left to themselves") {
		t.Errorf("said %q", said.String())
	}
}

// TestCompanionPriority: a companion has the lowest priority from the beginning.
func TestCompanionPriority(t *testing.T) {
	if mine, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0); err != nil || runtime.GOOS == "linux" && mine == 20-priority.Lowest {
		t.Skipf("NOT CHECKED: this process has the lowest priority itself (%d, %v)", mine, err)
	}
	o := Options{Logger: slog.New(slog.DiscardHandler), Companion: CompanionOptions{Command: []string{"/bin/sh", "-c", `while :; do sleep 0.01; done`}}} // until it is asked to end
	p := startCompanion(o, t.TempDir())
	defer p.end(t.Context())
	want := priority.Lowest
	if runtime.GOOS == "linux" {
		want = 20 - priority.Lowest // as the system call has it
	}
	if got, err := syscall.Getpriority(syscall.PRIO_PROCESS, p.cmd.Process.Pid); err != nil || got != want {
		t.Errorf("its priority is %d, %v; want %d", got, err, want)
	}
}

func TestNoCompanion(t *testing.T) {
	var said bytes.Buffer
	o := Options{Logger: slog.New(slog.NewTextHandler(&said, nil))}
	startCompanion(o, t.TempDir()).end(t.Context()) // none
	o.Companion.Command = []string{filepath.Join(t.TempDir(), "nothing")}
	startCompanion(o, t.TempDir()).end(t.Context())
	if !strings.Contains(said.String(), "recording goes on") {
		t.Errorf("said %q", said.String())
	}
	if o.CommitWait() != 10*time.Second {
		t.Errorf("a run's end may take %v longer", o.CommitWait())
	}
}
