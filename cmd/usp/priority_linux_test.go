package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/priority"
)

// sessionNice is the priority of the session that a process is in. That of the system's first process has no group, and
// its file is empty.
func sessionNice(t testing.TB, pid int) (group, nice int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(text) == 0 {
		return 0, 0
	}
	if _, err := fmt.Sscanf(string(text), "/autogroup-%d nice %d", &group, &nice); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	return group, nice
}

// setNice gives the session that a process is in that priority. Of who is not privileged the system takes ten such calls a second, of all together.
func setNice(t testing.TB, pid, nice int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Second / 10) {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), fmt.Append(nil, nice), 0)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func needSessions(t testing.TB) {
	t.Helper()
	if on, err := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled"); err != nil || !bytes.HasPrefix(on, []byte("1")) {
		t.Skip("NOT CHECKED: which priority a recorder has; this system does not schedule sessions as groups")
	}
}

// untilNice waits for the priority of a recorder's session.
func untilNice(t testing.TB, pid, want int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		_, nice := sessionNice(t, pid)
		if nice == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the recorder's session has the priority %d, never %d", nice, want)
		}
	}
}

// TestRecorderYields: a recorder gives way to its loop as long as it keeps up, and has its share when it does not, also
// without privileges: from the loop, where it cannot do anything itself, and from itself, where there is no loop that could.
func TestRecorderYields(t *testing.T) {
	needSessions(t)
	users := map[string]*syscall.Credential{"as this user": nil}
	if os.Geteuid() == 0 {
		users["as nobody"] = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	for name, as := range users {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			runs := filepath.Join(w.dir, "runs")
			if err := os.Mkdir(runs, 0o700); err != nil {
				t.Fatal(err)
			}
			if as != nil {
				w.readableBy(int(as.Uid), runs, w.ring)
			}
			l := w.startLoop(runs, as)
			l.steps(20, time.Millisecond)
			pid := w.recorderPID(nil)
			mine, _ := sessionNice(t, os.Getpid())
			if group, _ := sessionNice(t, pid); group == mine {
				t.Fatal("the recorder is in its loop's session")
			}
			untilNice(t, pid, priority.Lowest)
			l.steps(1100, time.Millisecond) // in the first second more may wait for it than a few thousand records
			signal := func(pid int, s syscall.Signal) {
				if err := syscall.Kill(pid, s); err != nil {
					t.Fatal(err)
				}
			}
			signal(pid, syscall.SIGSTOP)
			l.steps(5000, 0)
			untilNice(t, pid, 0)

			signal(l.cmd.Process.Pid, syscall.SIGSTOP)
			setNice(t, pid, priority.Lowest)
			signal(pid, syscall.SIGCONT)
			untilNice(t, pid, 0)
			signal(l.cmd.Process.Pid, syscall.SIGCONT)
			untilNice(t, pid, priority.Lowest)
			if e := l.close(); e.Error != "" || e.Summary.Lost != 0 {
				t.Errorf("the loop ended with %+v", e)
			}
		})
	}
}

// TestWrappedRecorder: one that takes over within another program, which leads the session and was lowered, has ordinary priority: it could not
// raise itself when it has to.
func TestWrappedRecorder(t *testing.T) {
	needSessions(t)
	w := newWorld(t)
	w.recorder = filepath.Join(w.dir, "wrapper")
	if err := os.WriteFile(w.recorder, fmt.Appendf(nil, "#!/bin/sh\n'%s' \"$@\"\nexit $?\n", w.bin), 0o700); err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(w.dir, "runs")
	if err := os.Mkdir(runs, 0o700); err != nil {
		t.Fatal(err)
	}
	l := w.startLoop(runs, nil)
	l.steps(20, time.Millisecond)
	first := w.recorderPID(nil)
	kill(first)
	second := first
	l.until("taken over", func(phase) bool { second = w.recorderPID(nil); return second != first })
	leader, err := unix.Getsid(second)
	if err != nil || !slices.Contains(children(l.cmd.Process.Pid), leader) || !slices.Contains(children(leader), second) {
		t.Fatalf("process %d leads the session of the recorder %d: it is not the program around it (%v)", leader, second, err)
	}
	untilNice(t, second, 0)
	if e := l.close(); e.Error != "" || e.Summary.Lost != 0 || e.Summary.Stored != e.Summary.Emitted {
		t.Errorf("the loop ended with %+v", e)
	}
}

// TestTortureBusyMachine: on a machine that others keep busy, a recorder that gives way loses nothing of a loop that takes thousands of
// steps a second there. Of 17,000 a second one of ordinary priority loses a quarter too.
func TestTortureBusyMachine(t *testing.T) {
	if os.Getenv("TORTURE") != "1" {
		t.Skip("NOT CHECKED: a recorder beside programs that compute on every processor; make torture does")
	}
	w := newWorld(t)
	runs := filepath.Join(w.dir, "runs")
	if err := os.Mkdir(runs, 0o700); err != nil {
		t.Fatal(err)
	}
	l := w.startLoop(runs, nil)
	for range 2 * runtime.NumCPU() {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { kill(cmd.Process.Pid); _ = cmd.Wait() })
	}
	began := time.Now()
	var most uint64
	const turns, steps = 1000, 100
	for range turns {
		time.Sleep(time.Second / 100)
		p := l.steps(steps, 0)
		most = max(most, p.Position-p.Stored-p.Lost)
	}
	took := time.Since(began)
	e := l.close()
	t.Logf("%.0f steps/s, at most %d not yet stored; the end took %v", turns*steps/took.Seconds(), most, e.Took)
	if e.Error != "" || e.Summary.Lost != 0 || e.Summary.Stored != e.Summary.Emitted {
		t.Errorf("the loop ended with %+v", e)
	}
}
