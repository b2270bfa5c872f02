package usp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

func randReader() io.Reader { return rand.Reader }

// How a recorder process is told what to do: its command line ends in the ring's path and its standard input holds the
// options as JSON. recorderEnv marks a recorder that a program started for itself: usp's, or the program itself once more.
const recorderEnv = "USP_RECORDER_CHILD"

// Restarts of a recorder that died: the first at once, then after a pause that doubles.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
	startTimeout = 30 * time.Second // for a recorder to open its run directory
	pollInterval = 2 * time.Millisecond
)

// command returns the recorder's command line without the ring's path.
func (o *Options) command() ([]string, error) {
	if len(o.Command) > 0 || o.Outside {
		return o.Command, nil
	}
	if serving.Load() {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("usp: where is this program? %w", err)
		}
		return []string{self}, nil
	}
	bin := os.Getenv("USP_BIN")
	if bin == "" {
		var err error
		if bin, err = exec.LookPath("usp"); err != nil {
			return nil, ErrNoRecorder
		}
	}
	return []string{bin, "record", "--options-on-stdin"}, nil
}

// supervisor keeps one recorder process running for as long as the ring is open.
type supervisor struct {
	command []string
	path    string
	opts    Options
	ring    *ring.Producer
	options []byte // for the recorder's standard input

	said repeats       // what its processes print, without what each says again
	done chan struct{} // closed when no recorder will run any more

	mu      sync.Mutex
	summary *recorder.Summary // what the recorder said when it had closed the generation
	err     error             // why the last recorder failed
}

func newSupervisor(command []string, path string, o Options, p *ring.Producer) *supervisor {
	return &supervisor{command: command, path: path, opts: o, ring: p, said: repeats{w: o.Stderr, now: o.Now}, done: make(chan struct{})}
}

// start launches the first recorder and returns when it has attached.
func (s *supervisor) start(ctx context.Context) error {
	var err error
	if s.options, err = json.Marshal(s.opts.Recorder); err != nil {
		return fmt.Errorf("usp: recorder options: %w", err)
	}
	p, err := s.launch()
	if err != nil {
		return err
	}
	deadline := s.opts.Now().Add(startTimeout)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for s.ring.Consumer().Phase == ring.ConsumerNone {
		select {
		case err := <-p.exited:
			return recorderError(err, p.out)
		case <-ctx.Done():
			p.kill()
			return ctx.Err()
		case <-tick.C:
			if s.opts.Now().After(deadline) {
				p.kill()
				return fmt.Errorf("usp: the recorder did not open its run directory in %v", startTimeout)
			}
		}
	}
	go s.watch(p)
	return nil
}

// process is a recorder that was started.
type process struct {
	pid    int
	kill   func()       // and wait
	exited <-chan error // what came of it, once
	out    *output
}

func (s *supervisor) launch() (*process, error) {
	cmd := exec.Command(s.command[0], append(s.command[1:len(s.command):len(s.command)], s.path)...)
	cmd.Env = priority.Unsignalled(append(os.Environ(), recorderEnv+"=1"))
	cmd.Stdin = bytes.NewReader(s.options)
	out := &output{forward: &s.said}
	cmd.Stdout = &out.stdout
	cmd.Stderr = out
	// A Ctrl-C in the terminal is for the loop; the recorder still has to store its end. And what a session gets of the
	// processors is its own affair: the recorder's gives way to the loop's.
	cmd.SysProcAttr = ownSession()
	if err := priority.Unhurried(cmd.Start); err != nil {
		return nil, fmt.Errorf("usp: start the recorder: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	kill := func() { cmd.Process.Kill(); <-exited }
	return &process{pid: cmd.Process.Pid, kill: kill, exited: exited, out: out}, nil
}

// watch replaces a recorder that died, with growing pauses, until one has closed the generation.
func (s *supervisor) watch(p *process) {
	defer close(s.done)
	lift := newLifter(s.path)
	defer lift.close()
	pause := time.Duration(0)
	for {
		began := s.opts.Now()
		err := p.wait(lift)
		if err == nil {
			var sum recorder.Summary
			if err = json.Unmarshal(p.out.stdout.Bytes(), &sum); err == nil {
				s.mu.Lock()
				s.summary, s.err = &sum, nil
				s.mu.Unlock()
				return
			}
		}
		err = recorderError(err, p.out)
		s.opts.Logger.Warn("recorder died; starting it again", "err", err, "pause", pause)
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		if s.opts.Now().Sub(began) > longestPause {
			pause = 0
		}
		time.Sleep(pause)
		pause = min(max(2*pause, firstPause), longestPause)
		if p, err = s.launch(); err != nil {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			return
		}
		lift.begun(p.pid, time.Now())
	}
}

// wait returns what came of the process when it has ended, and sees until then that it gets what it needs.
func (p *process) wait(lift *lifter) error {
	for {
		select {
		case err := <-p.exited:
			return err
		case <-lift.when():
			lift.look(p.pid, time.Now()) // a tick may be old
		}
	}
}

// patience says how long waiting for a recorder makes sense: while it makes progress, and for DrainTimeout without any,
// but not while its process is stopped.
type patience struct {
	run   *Run
	last  ring.ConsumerState
	since time.Time
}

func newPatience(r *Run) *patience {
	return &patience{run: r, last: r.ring.Consumer(), since: r.opts.Now()}
}

func (p *patience) left() bool {
	now := p.run.opts.Now()
	if c := p.run.ring.Consumer(); c != p.last {
		p.last, p.since = c, now
	}
	return !stopped(p.last.PID) && now.Sub(p.since) < p.run.opts.DrainTimeout
}

// wait returns when the recorder has closed the generation, or when waiting makes no more sense.
func (r *Run) wait() (Summary, error) {
	p := newPatience(r)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var done <-chan struct{} // never, for a recorder that somebody else runs
	if r.recorder != nil {
		done = r.recorder.done
	}
	for {
		select {
		case <-done:
			if sum, err := r.recorder.outcome(); err == nil {
				return sum, nil
			} else {
				return r.partial(err)
			}
		case <-tick.C:
			if r.recorder == nil && r.ring.Consumer().Phase == ring.ConsumerDone {
				return r.known(), nil
			}
			if p.left() {
				continue
			}
			var cause error
			if stopped(p.last.PID) {
				cause = fmt.Errorf("its process %d is stopped", p.last.PID)
			} else if p.last.Fault != 0 {
				cause = fmt.Errorf("its storage takes nothing: %w; it goes on when that is over, or after some time closes the run without what it holds", p.last.Fault)
			} else if r.recorder != nil {
				_, cause = r.recorder.outcome()
			}
			return r.partial(cause)
		}
	}
}

// outcome is what the recorder said, or why there is none.
func (s *supervisor) outcome() (Summary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.summary != nil {
		return *s.summary, nil
	}
	return Summary{}, s.err
}

// partial says how far the recorder got.
func (r *Run) partial(cause error) (Summary, error) {
	sum := r.known()
	err := fmt.Errorf("%w: %d of %d records are stored or accounted for; the rest waits in memory for it", ErrIncomplete, sum.Stored+sum.Lost, sum.Emitted)
	if cause != nil {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	return sum, err
}

// known is the summary as far as the ring tells.
func (r *Run) known() Summary {
	c := r.ring.Consumer()
	return Summary{RunID: r.id, Dir: r.dir, Generation: r.generation, Emitted: r.ring.Position(), Stored: c.Stored, Lost: c.Lost, LostStorage: c.LostStorage, Snapshots: c.Snapshots, Unsaved: c.Unsaved}
}

// repeatAfter is when a message that recorder after recorder prints is passed on again.
const repeatAfter = time.Minute

// repeats passes messages on, but not one that is the same as the last: a recorder that cannot begin is started again
// every few seconds, and says the same each time.
type repeats struct {
	w    io.Writer
	now  func() time.Time
	last string
	at   time.Time
}

func (r *repeats) Write(p []byte) (int, error) {
	now := r.now()
	if string(p) == r.last && now.Sub(r.at) < repeatAfter {
		return len(p), nil
	}
	r.last, r.at = string(p), now
	return r.w.Write(p)
}

// output keeps what a recorder printed last, for the error that explains its death, and passes its messages on.
type output struct {
	stdout  bytes.Buffer
	forward io.Writer
	last    []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.last = append(o.last, p...)
	if n := len(o.last) - 4096; n > 0 {
		o.last = o.last[n:]
	}
	return o.forward.Write(p)
}

// RecorderError says that a recorder process ended before its run did.
type RecorderError struct {
	ExitCode int    // -1 if a signal ended it
	Message  string // its last line on standard error
	Err      error
}

// Error says how the recorder ended and what it said.
func (e *RecorderError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("usp: the recorder ended: %v", e.Err)
	}
	return fmt.Sprintf("usp: the recorder ended: %s", e.Message)
}

// Unwrap returns the error of the process.
func (e *RecorderError) Unwrap() error { return e.Err }

func recorderError(err error, out *output) error {
	if err == nil {
		err = errors.New("it ended without a summary")
	}
	code := 1
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	lines := strings.Split(strings.TrimSpace(string(out.last)), "\n")
	return &RecorderError{ExitCode: code, Message: lines[len(lines)-1], Err: err}
}
