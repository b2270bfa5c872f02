package priority

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv makes this test's program do what one of the children is for, and print what came of it.
const childEnv = "USP_PRIORITY_TEST"

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		children[name]()
		return
	}
	os.Exit(m.Run())
}

var children = map[string]func(){
	"session": inSession,
	"begun": func() { // by a parent that lowers it before it may go on
		fmt.Println()
		_, _ = fmt.Scanln()
		inSession()
	},
	"unbegun": func() { // likewise
		fmt.Println()
		_, _ = fmt.Scanln()
		EndBeginning(context.Background())
		nice, _ := readSession(sessionFile("self"))
		fmt.Println(nice)
	},
	"late": func() { // by a parent that lowers it when it has begun to look
		done := make(chan struct{})
		go func() { EndBeginning(context.Background()); close(done) }()
		runtime.Gosched()
		fmt.Println()
		_, _ = fmt.Scanln()
		<-done
		nice, _ := readSession(sessionFile("self"))
		fmt.Println(nice)
	},
	"raised": func() { // the parent raises it, between two lines
		set := Session()
		for _, low := range []bool{true, true, false} {
			var before bool
			err := patiently(func() (err error) { before, err = set(low); return err })
			fmt.Println(before, err)
			if low {
				_, _ = fmt.Scanln()
			}
		}
	},
	"self": func() { // threads that there are, and one that is made later
		around(LowerSelf, func(id string) { fmt.Println(niceOf(id)) })
	},
	"preemptible": func() { // likewise
		around(Preemptible, func(id string) {
			n, _ := strconv.Atoi(id)
			attr, err := unix.SchedGetAttr(n, 0)
			fmt.Println(attr.Runtime, attr.Nice, err)
		})
	},
	"unhurried": func() { // two of its threads; who is not privileged is told only its own thread's
		tell := func() {
			slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
			fmt.Println(slack, err)
		}
		runtime.LockOSThread()
		there, over := make(chan struct{}), make(chan struct{})
		go func() { runtime.LockOSThread(); there <- struct{}{}; <-over; tell(); close(there) }()
		<-there
		if len(os.Args) > 1 { // this one is privileged, perhaps
			UnhurriedSelf()
		}
		tell()
		close(over)
		<-there
	},
	"thread": func() {
		runtime.LockOSThread()
		LowerThread()
		mine, first := niceOf(fmt.Sprint(syscall.Gettid())), niceOf(fmt.Sprint(os.Getpid()))
		fmt.Println(mine, syscall.Gettid() == os.Getpid() || first != Lowest)
	},
}

// inSession lowers its session twice, raises it, lowers it again, and prints what it had before, what it has then, and the error.
func inSession() {
	set := Session()
	if set == nil {
		fmt.Print("none")
		return
	}
	for _, low := range []bool{true, true, false, true} {
		var before bool
		err := patiently(func() (err error) { before, err = set(low); return err })
		nice, _ := readSession(sessionFile("self"))
		fmt.Println(before, nice, err)
	}
}

// patiently tries again while the system has had enough: of who is not privileged it takes ten such calls a second, all together.
func patiently(do func() error) error {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err := do(); !errors.Is(err, syscall.EAGAIN) || time.Since(began) > 20*time.Second {
			return err
		}
	}
}

func niceOf(task string) int {
	text, _ := os.ReadFile("/proc/self/task/" + task + "/stat")
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	n := 0
	fmt.Sscan(fields[16], &n) // nice is field 19 of proc_pid_stat(5), the third is the first here
	return n
}

// child runs this program as one of the children and returns what it printed.
func child(t *testing.T, name string, attr *syscall.SysProcAttr) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestSession: who leads a session lowers and raises it; nobody else does.
func TestSession(t *testing.T) {
	if got := child(t, "session", nil); got != "none" {
		t.Errorf("in another's session: %q", got)
	}
	needSessions(t)
	if got, want := child(t, "session", &syscall.SysProcAttr{Setsid: true}), "false 19 <nil>\ntrue 19 <nil>\ntrue 0 <nil>\nfalse 19 <nil>\n"; got != want {
		t.Errorf("in its own session: %q, want %q", got, want)
	}
}

// needSessions does not ask the package.
func needSessions(t *testing.T) {
	if on, err := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled"); err != nil || !bytes.HasPrefix(on, []byte("1")) {
		t.Skip("NOT CHECKED: what a session of its own does; this system does not schedule sessions as groups")
	}
}

// TestBegun: who was lowered by who started it gives way as it is, may be raised, and is lowered as any other then.
func TestBegun(t *testing.T) {
	if got, want := begun(t, "begun", LowerSession), "true 18 <nil>\ntrue 18 <nil>\ntrue 0 <nil>\nfalse 19 <nil>\n"; got != want {
		t.Errorf("in a session that was lowered: %q, want %q", got, want)
	}
}

// TestEndBeginning: who cannot do that is raised, unless it was its user who lowered it.
func TestEndBeginning(t *testing.T) {
	if got := begun(t, "unbegun", LowerSession); got != "0\n" {
		t.Errorf("one that was lowered has %q", got)
	}
	if got := begun(t, "late", LowerSession); got != "0\n" {
		t.Errorf("one that was lowered after it had looked has %q", got)
	}
	users := func(pid int) error { return writeSession(sessionFile(strconv.Itoa(pid)), Lowest) }
	if got := begun(t, "unbegun", users); got != "19\n" {
		t.Errorf("one whose user gave it 19 has %q", got)
	}
}

// begun starts a child that leads a session, waits for its first line, lets it go on when lower has been called, and returns what it printed then.
func begun(t *testing.T, name string, lower func(pid int) error) string {
	t.Helper()
	needSessions(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // where it has not ended
	out := bufio.NewReader(pipe)
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := patiently(func() error { return lower(cmd.Process.Pid) }); err != nil {
		t.Errorf("lowered: %v", err)
	}
	fmt.Fprintln(in)
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return string(said)
}

// TestRaiseSession: who has the lowest priority, or that of a beginning, is raised and finds that out, who has the ordinary one is lowered;
// all others stay as they are.
func TestRaiseSession(t *testing.T) {
	needSessions(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"=raised")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	nice := func() int {
		n, err := readSession(sessionFile(strconv.Itoa(cmd.Process.Pid)))
		if err != nil {
			t.Error(err)
		}
		return n
	}
	for i, want := range []string{"false <nil>", "false <nil>", "true <nil>"} {
		if lines.Scan(); lines.Text() != want {
			t.Fatalf("line %d: %q, want %q", i, lines.Text(), want)
		}
		if i == 0 {
			if err := patiently(func() error { return RaiseSession(cmd.Process.Pid) }); err != nil || nice() != ordinary {
				t.Errorf("raised: %v, it has %d", err, nice())
			}
		}
		fmt.Fprintln(in)
	}
	for _, c := range []struct{ has, raised, lowered int }{
		{ordinary, ordinary, Beginning}, {5, 5, 5}, {Beginning - 1, Beginning - 1, Beginning - 1}, {Beginning, ordinary, Beginning}, {Lowest, ordinary, Lowest},
	} {
		for _, change := range []struct {
			name string
			do   func(pid int) error
			want int
		}{{"raised", RaiseSession, c.raised}, {"lowered", LowerSession, c.lowered}} {
			if err := patiently(func() error { return writeSession(sessionFile(strconv.Itoa(cmd.Process.Pid)), c.has) }); err != nil {
				t.Skip("NOT CHECKED: whether others stay as they are: ", err)
			}
			if err := patiently(func() error { return change.do(cmd.Process.Pid) }); err != nil || nice() != change.want {
				t.Errorf("one that has %d, %s: %v, it has %d, want %d", c.has, change.name, err, nice(), change.want)
			}
		}
	}
	if RaiseSession(1<<30) == nil || LowerSession(1<<30) == nil {
		t.Error("no error of a process that is not there")
	}
}

// around calls act between the beginnings of two threads, and then show with each of the process's.
func around(act func(), show func(id string)) {
	there, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	thread := func() { runtime.LockOSThread(); there <- struct{}{}; <-over }
	go thread()
	<-there
	act()
	go thread()
	<-there
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		show(task.Name())
	}
}

func TestPreemptible(t *testing.T) {
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil || own.Runtime == 0 {
		t.Skip("NOT CHECKED: long slices; this system has none that can be asked for: ", err)
	}
	got := child(t, "preemptible", nil)
	want := fmt.Sprintf("%d %d <nil>\n", longSlice.Nanoseconds(), own.Nice)
	if n := strings.Count(got, want); n < 4 || n*len(want) != len(got) { // two of them, and some of the runtime's
		t.Errorf("slice and nice of its threads:\n%s", got)
	}
}

func TestLower(t *testing.T) {
	if niceOf(fmt.Sprint(os.Getpid())) == Lowest {
		t.Skip("NOT CHECKED: this process has the lowest priority itself")
	}
	if got := child(t, "self", nil); strings.Trim(got, "19\n") != "" || strings.Count(got, "19\n") < 3 {
		t.Errorf("a process lowered itself, its threads have %q", got)
	}
	if got := child(t, "thread", nil); got != "19 true\n" {
		t.Errorf("a thread lowered itself: %q", got)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	LowerProcess(cmd.Process.Pid)
	if got, err := syscall.Getpriority(syscall.PRIO_PROCESS, cmd.Process.Pid); err != nil || got != 20-Lowest { // as the system call has it
		t.Errorf("another process lowered: %d, %v", got, err)
	}
}

// TestUnhurried: every thread of a process that was started so is late, of one that asks for it itself too where it may, and the
// one that starts is not.
func TestUnhurried(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	slack := func(start func(*exec.Cmd) error, args ...string) []string {
		cmd := exec.Command(self, args...)
		cmd.Env = append(os.Environ(), childEnv+"=unhurried")
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		got := strings.FieldsFunc(strings.ReplaceAll(out.String(), " <nil>", ""), func(r rune) bool { return r == '\n' })
		if len(got) < 2 {
			t.Fatalf("one thread has a slack: %q", got)
		}
		slices.Sort(got)
		return slices.Compact(got)
	}
	before := slack((*exec.Cmd).Start)
	late := fmt.Sprint(Slack.Nanoseconds())
	if slices.Contains(before, late) {
		t.Skipf("NOT CHECKED: timers of who gives way; here they have that much slack before, %v", before)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if got := slack(func(c *exec.Cmd) error { return Unhurried(c.Start) }); !slices.Equal(got, []string{late}) {
		t.Errorf("started unhurried: slacks %v", got)
	}
	if got := slack((*exec.Cmd).Start); !slices.Equal(got, before) {
		t.Errorf("afterwards: slacks %v, were %v", got, before)
	}
	if os.Getuid() != 0 {
		t.Skip("NOT CHECKED: a process that asks for it itself; that takes a privilege")
	}
	if got := slack((*exec.Cmd).Start, "self"); !slices.Equal(got, []string{late}) {
		t.Errorf("asked for it: slacks %v", got)
	}
}
