package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runtimeCalls are system calls that the Go runtime makes for itself. An error in one of them ends every Go program or
// means nothing to it, so EIO is not injected there; a kill can come at these like anywhere else.
var runtimeCalls = []string{
	"execve", "brk", "arch_prctl", "prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "uname", "sysinfo",
	"mmap", "munmap", "mprotect", "madvise", "mincore", "futex", "nanosleep", "clock_nanosleep", "restart_syscall",
	"clone", "clone3", "gettid", "getpid", "tgkill", "exit", "exit_group", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
	"sched_getaffinity", "sched_yield", "epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "pipe2",
}

// fault is what happens to the recorder at the when-th system call of a kind: EIO in each thread that makes so many, or a
// SIGKILL right behind the call, counted over all threads.
type fault struct {
	call string
	kill bool
	ring bool // only calls on the ring's file: the mmap of the ring can be told from the runtime's by the file behind it
	when int
}

func (f fault) String() string {
	kind, where := "EIO", ""
	if f.kill {
		kind = "SIGKILL"
	}
	if f.ring {
		where = " of the ring"
	}
	return fmt.Sprintf("%s at %s%s number %d", kind, f.call, where, f.when)
}

// strace runs usp record on a bench under strace, which writes to the named file, and returns what was said on standard
// error.
func (b *bench) strace(w *world, file string, options ...string) (stderr string, err error) {
	args := append([]string{"-f", "-qq", "-o", file}, options...)
	cmd := exec.Command("strace", append(args, w.bin, "record", b.ring(), "--dir", b.runs(), "--key-file", b.key())...)
	cmd.Dir = b.dir
	// One thread makes most system calls, because strace counts by thread where it injects an error.
	cmd.Env = append(slices.Clone(w.env), "GOMAXPROCS=1")
	cmd.Env = append(cmd.Env, recorderSettings...)
	var errw bytes.Buffer
	cmd.Stderr = &errw
	hung := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() }) // it has ended if that fails
	err = cmd.Run()
	if !hung.Stop() {
		return errw.String(), errors.New("the recorder hangs")
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return errw.String(), err
	}
	for _, bad := range []string{"panic:", "fatal error:", "goroutine "} {
		// A runtime that cannot start ends before there is a recorder.
		if strings.Contains(errw.String(), bad) && !strings.Contains(errw.String(), "runtime.schedinit()") {
			return errw.String(), errors.New("the recorder panicked")
		}
	}
	return errw.String(), nil
}

// inject runs the recorder with one fault and reports whether there was a call to fail.
func (b *bench) inject(w *world, f fault) (felt bool, err error) {
	var stderr string
	if f.kill {
		felt, stderr, err = b.killAt(w, f)
	} else {
		felt, stderr, err = b.failAt(w, f)
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, stderr)
	}
	return felt, err
}

func (b *bench) failAt(w *world, f fault) (felt bool, stderr string, err error) {
	file := filepath.Join(b.dir, "trace")
	options := []string{"--seccomp-bpf", "-e", "trace=" + f.call, "-e", fmt.Sprintf("inject=%s:error=EIO:when=%d", f.call, f.when)}
	if f.ring {
		options = append(options, "-P", b.ring())
	}
	if stderr, err = b.strace(w, file, options...); err != nil {
		return false, stderr, err
	}
	trace, err := os.ReadFile(file)
	return bytes.Contains(trace, []byte("(INJECTED)")), stderr, err
}

// killAt kills the recorder behind a call. strace counts by thread, so this counts the lines that it writes, and strace
// holds every thread for a moment behind its call, so that the kill comes before the next.
func (b *bench) killAt(w *world, f fault) (felt bool, stderr string, err error) {
	pipe := filepath.Join(b.dir, "calls")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return false, "", err
	}
	r, err := os.OpenFile(pipe, os.O_RDWR, 0) // for writing too: opening does not wait, and there is no end before Close
	if err != nil {
		return false, "", err
	}
	read := make(chan error, 1)
	go func() {
		in, n := bufio.NewScanner(r), 0
		for in.Scan() {
			thread, rest, _ := strings.Cut(in.Text(), " ")
			if rest = strings.TrimSpace(rest); strings.HasSuffix(rest, "<unfinished ...>") || !strings.HasPrefix(rest, f.call+"(") && !strings.HasPrefix(rest, "<... "+f.call+" resumed>") {
				continue // the call is not over, or it is none
			}
			if n++; n != f.when {
				continue
			}
			pid, err := strconv.Atoi(thread)
			if err != nil {
				read <- err
				return
			}
			felt = unix.Kill(pid, unix.SIGKILL) == nil // else it has just ended
		}
		read <- nil
	}()
	stderr, err = b.strace(w, pipe, "--seccomp-bpf", "-e", "trace="+f.call, "-e", "inject="+f.call+":delay_exit=1000")
	err = errors.Join(err, r.Close(), <-read)
	return felt, stderr, err
}

// callCounts is how often each system call comes up in a trace: in the thread that makes it most often, and in all.
func callCounts(trace string) (most, all map[string]int) {
	perThread := map[string]int{}
	most, all = map[string]int{}, map[string]int{}
	for line := range strings.Lines(trace) {
		thread, rest, _ := strings.Cut(line, " ")
		name, _, call := strings.Cut(strings.TrimSpace(rest), "(")
		if !call || strings.ContainsAny(name, " <+-") || name == "execve" {
			continue // the second half of an interrupted line, a signal, an exit; and before execve there is no recorder
		}
		perThread[thread+name]++
		most[name] = max(most[name], perThread[thread+name])
		all[name]++
	}
	return most, all
}

// TestSystemCallFaults lets a recorder be killed at, or fail with EIO, each of its system calls, one after the other: as
// the first recorder of a run, as the one that takes up what a killed one left, and as that of a second generation. The
// list of calls is that of a recorder without a fault. Whatever happens, the run must verify as closed or as a crash tail,
// and the next recorder must bring it to its end: after a kill with every record, digest and snapshot, after EIO with
// nothing missing but what is accounted for as refused by storage. A sample in the normal run, all with TORTURE=1.
func TestSystemCallFaults(t *testing.T) {
	needStrace(t)
	w := newWorld(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	var plans []faultPlan
	for _, s := range []*stage{w.freshStage(), w.takenUpStage(), w.resumedStage()} {
		plans = append(plans, s.plans(rnd)...)
	}
	tally := runPlans(t, plans)
	t.Logf("%d recorders were run, %d of them felt the fault", tally.ran.Load(), tally.felt.Load())
	if tally.felt.Load() < tally.ran.Load()/2 {
		t.Error("most faults were not felt: little was tested")
	}
}

// faultPlan is a series of faults of one kind on one stage.
type faultPlan struct {
	stage *stage
	fault fault
	whens []int // nil: one after the other, until no thread gets that far
}

// plans lists the faults for a stage.
func (s *stage) plans(rnd *rand.Rand) (plans []faultPlan) {
	s.w.t.Helper()
	b := s.bench()
	file := filepath.Join(b.dir, "trace")
	stderr, err := b.strace(s.w, file)
	if err != nil {
		s.w.t.Fatalf("%v\n%s", err, stderr)
	}
	trace, err := os.ReadFile(file)
	if err != nil {
		s.w.t.Fatal(err)
	}
	if err := b.judge(false); err != nil {
		s.w.t.Fatalf("%s without a fault: %v\n%s", s.name, err, stderr)
	}
	b.checkBusy(s.w.t)
	most, all := callCounts(string(trace))
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	if torture() {
		s.w.t.Logf("%s: system calls: %v", s.name, all)
	}
	add := func(f fault, last int) {
		p := faultPlan{stage: s, fault: f}
		if !torture() {
			if rnd.IntN(2) == 0 {
				return
			}
			p.whens = []int{1 + rnd.IntN((last+1)/2)} // threads do not always share the calls as they did here
		}
		plans = append(plans, p)
	}
	for _, name := range names {
		// The runtime's own calls share one place in the sample: they are many, and all alike.
		if runtimes := slices.Contains(runtimeCalls, name); !runtimes {
			add(fault{call: name}, most[name])
		} else if !torture() && rnd.IntN(8) > 0 {
			continue
		}
		if torture() || rnd.IntN(2) == 0 {
			add(fault{call: name, kill: true}, all[name])
		}
	}
	add(fault{call: "mmap", ring: true}, 1)
	return plans
}

type faultTally struct{ ran, felt atomic.Int64 }

// runPlans works plans off, two at a time.
func runPlans(t *testing.T, plans []faultPlan) *faultTally {
	t.Helper()
	tally := &faultTally{}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for !t.Failed() {
				i := int(next.Add(1)) - 1
				if i >= len(plans) {
					return
				}
				if err := plans[i].run(tally); err != nil {
					t.Error(err)
				}
				if torture() && i%20 == 19 {
					t.Logf("%d of %d plans, %d recorders", i+1, len(plans), tally.ran.Load())
				}
			}
		})
	}
	wg.Wait()
	return tally
}

func (p *faultPlan) run(tally *faultTally) error {
	one := func(when int) (bool, error) {
		f := p.fault
		f.when = when
		b := p.stage.bench()
		felt, err := b.inject(p.stage.w, f)
		if err == nil {
			err = b.judge(!f.kill)
		}
		if err != nil { // what it left stays for inspection
			return felt, fmt.Errorf("%s, %v: %w", p.stage.name, f, err)
		}
		tally.ran.Add(1)
		if felt {
			tally.felt.Add(1)
		}
		return felt, b.remove()
	}
	for _, when := range p.whens {
		if _, err := one(when); err != nil {
			return err
		}
	}
	if p.whens != nil {
		return nil
	}
	for when, beyond := 1, 0; beyond < 3; when++ { // threads share the work anew each time: three times beyond is beyond
		felt, err := one(when)
		if err != nil {
			return err
		}
		if beyond++; felt {
			beyond = 0
		}
	}
	return nil
}
