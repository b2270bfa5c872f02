package ring

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	quietTurns = 10
	quietEmits = 10_000 // in each turn
)

// roleQuiet emits on one locked thread in turns, each between two system calls
// that a trace shows.
func roleQuiet(path string) error {
	p, err := childRing(path, 1<<10)
	if err != nil {
		return err
	}
	null, err := unix.Open(os.DevNull, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	// Raw: the runtime must not use the call to have other threads take over.
	mark := func(b []byte) {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(null), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != 0 {
			err = errno
		}
	}
	begin, end := []byte("usp-begin"), []byte("usp-end")
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	w := make([]uint64, p.words)
	for range quietTurns {
		mark(begin)
		for range quietEmits {
			w[0]++
			p.Emit(w)
			p.Beat()
		}
		mark(end)
	}
	if p.Position() != quietTurns*quietEmits {
		return errors.New("not all were emitted")
	}
	return errors.Join(err, p.Close(true))
}

// TestEmitMakesNoSystemCall traces a child that emits 100000 records on one
// thread. The Go scheduler may take turns with the thread, by futex, when the
// machine is busy: so no other call may be in any turn, and most turns must be
// without any call. One of Emit's own would be in all of them.
func TestEmitMakesNoSystemCall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes system calls of its own: that Emit makes none is shown without -race only")
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: that Emit makes no system call is not shown here")
	}
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	cmd := exec.Command(strace, "-f", "-o", trace, os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=quiet", pathEnv+"="+filepath.Join(dir, "a.ring"), "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(strings.ToLower(string(out)), "ptrace") {
			t.Skipf("strace may not trace here: that Emit makes no system call is not shown: %s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	turns := betweenMarks(strings.Split(string(text), "\n"))
	if len(turns) != quietTurns {
		t.Fatalf("%d turns in a trace of %d bytes, want %d", len(turns), len(text), quietTurns)
	}
	clean := 0
	for _, calls := range turns {
		if len(calls) == 0 {
			clean++
		}
		for _, call := range calls {
			if !strings.Contains(call, "futex") {
				t.Errorf("system call during %d emits: %s", quietEmits, call)
			}
		}
	}
	if clean <= quietTurns/2 {
		t.Errorf("only %d of %d turns are without a system call: %v", clean, quietTurns, turns)
	}
}

// betweenMarks returns the lines of a trace between each pair of marks, of the thread that wrote them.
func betweenMarks(lines []string) (turns [][]string) {
	var thread string
	var calls []string
	for _, line := range lines {
		id, rest, _ := strings.Cut(line, " ")
		switch {
		case strings.Contains(line, `"usp-begin"`):
			thread, calls = id, nil
		case id != thread || strings.Contains(line, "<... write resumed>"):
		case strings.Contains(line, `"usp-end"`):
			turns, thread = append(turns, calls), ""
		default:
			calls = append(calls, strings.TrimSpace(rest))
		}
	}
	return turns
}
