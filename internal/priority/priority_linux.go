package priority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// LowerProcess makes a process that begins, and what it will start, give way to all others.
func LowerProcess(pid int) { _ = syscall.Setpriority(syscall.PRIO_PROCESS, pid, Lowest) } // of Linux, its first thread

// LowerSelf makes every thread of this process give way to all others. Threads that are made later take after the one that
// makes them.
func LowerSelf() {
	eachThread(func(id int) { _ = syscall.Setpriority(syscall.PRIO_PROCESS, id, Lowest) })
}

// eachThread calls f with the id of each thread of this process. One may have ended by then.
func eachThread(f func(id int)) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			f(id)
		}
	}
}

// LowerThread makes the calling thread give way to all others.
func LowerThread() { _ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, Lowest) } // of Linux, 0 is the calling thread alone

// ordinary is the priority that a new session has.
const ordinary = 0

// sessionFile holds the priority of the session that a process is in.
func sessionFile(pid string) string { return "/proc/" + pid + "/autogroup" }

// readSession fails for the session of the system's first process, which is in no group: its file is empty.
func readSession(file string) (nice int, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var group int
	if _, err := fmt.Sscanf(string(text), "/autogroup-%d nice %d", &group, &nice); err != nil {
		return 0, fmt.Errorf("%s: %q: %w", file, text, err)
	}
	return nice, nil
}

func writeSession(file string, nice int) error {
	return os.WriteFile(file, strconv.AppendInt(nil, int64(nice), 10), 0)
}

// Sessions reports whether this system schedules sessions as groups that have a priority.
func Sessions() bool {
	on, err := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled")
	return err == nil && bytes.HasPrefix(on, []byte("1"))
}

// Session returns what gives all that runs in this process's session the lowest priority, or the one that it has now, and
// says whether it gave way before. The one that it has now is taken to be the ordinary one where LowerSession gave it. It returns nil where sessions have
// none, and where this process does not lead its session: the others there have not asked for it. An error may pass: of
// unprivileged processes the system takes ten such calls a second, all together.
func Session() func(low bool) (before bool, err error) {
	if id, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0); errno != 0 || int(id) != os.Getpid() || !Sessions() {
		return nil
	}
	file := sessionFile("self")
	was, err := readSession(file)
	if err != nil || was >= Lowest || syscall.Access(file, 2) != nil { // 2: writing; /proc may be mounted without
		return nil
	}
	if was == Beginning {
		was = ordinary
	}
	return func(low bool) (before bool, err error) {
		nice, err := readSession(file)
		if err != nil {
			return false, err
		}
		before, want := nice >= Beginning, was
		switch {
		case low && before:
			want = nice
		case low:
			want = Lowest
		}
		if nice != want {
			err = writeSession(file, want)
		}
		return before, err
	}
}

// EndBeginning gives this process's session ordinary priority if LowerSession has lowered it: for who has no Session to do so by, such as a
// process that does not lead it. Whoever lowers it may do so a little later than this looks, for two seconds; and the system may refuse a call that
// comes soon after another one's, whoever's that was: then it is tried again. It returns when nothing is left to do, or when ctx is done.
func EndBeginning(ctx context.Context) {
	if !Sessions() {
		return
	}
	file := sessionFile("self")
	const pause, looks = 70 * time.Millisecond, 30
	for look := 1; ; look++ {
		nice, err := readSession(file)
		switch {
		case err != nil, nice != ordinary && nice != Beginning, nice == ordinary && look >= looks:
			return
		case nice == Beginning:
			if err := writeSession(file, ordinary); !errors.Is(err, syscall.EAGAIN) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// LowerSession has the session of another process give way from its start, if it has ordinary priority: for one that will ask for its
// Session or EndBeginning. An error may pass, as there.
func LowerSession(pid int) error {
	file := sessionFile(strconv.Itoa(pid))
	if nice, err := readSession(file); err != nil || nice != ordinary {
		return err
	}
	return writeSession(file, Beginning)
}

// RaiseSession gives the session of another process ordinary priority, if it has the lowest, or that of its beginning. An error
// may pass, as with Session.
func RaiseSession(pid int) error {
	file := sessionFile(strconv.Itoa(pid))
	if nice, err := readSession(file); err != nil || nice < Beginning {
		return err
	}
	return writeSession(file, ordinary)
}
