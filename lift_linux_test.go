package usp

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/ring"
)

// idleSession starts a process that leads a session and does nothing until the test ends, and returns the file of that session's priority too.
func idleSession(t *testing.T) (pid int, file string) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = ownSession()
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid, fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid)
}

// TestLifter: a recorder's session that has the lowest priority is raised when the ring shows that it needs more, and not before.
func TestLifter(t *testing.T) {
	if !priority.Sessions() {
		t.Skip("NOT CHECKED: whether a recorder is raised; this system does not schedule sessions as groups")
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT CHECKED: whether a recorder is raised; who is not privileged may change a priority only ten times a second, with all others")
	}
	const slots, behind = 64, 2
	for name, test := range map[string]struct {
		records int
		states  int // staged, one before each of the first looks
		taken   bool
		looks   int
		finish  func(*ring.Producer) error
		want    string
		fault   syscall.Errno // what storage says
		gone    bool          // to a recorder before this one
		pace    int           // more records before each look but the first
		new     bool          // it was not seen before
	}{
		"keeps up":               {behind - 1, 0, false, 3, nil, "19", 0, false, 0, false},
		"does not keep up":       {behind, 0, false, 1, nil, "0", 0, false, 0, false},
		"is beginning":           {8*behind - 1, 0, false, 4, nil, "19", 0, false, 0, true},
		"began, and is behind":   {8*behind - 1, 0, false, 5, nil, "0", 0, false, 0, true},
		"begins far behind":      {8 * behind, 0, false, 1, nil, "0", 0, false, 0, true},
		"storage is full":        {slots/4*3 + behind - 1, 0, false, 3, nil, "19", syscall.ENOSPC, false, 0, false},
		"and so is the ring":     {slots/4*3 + behind, 0, false, 1, nil, "0", syscall.ENOSPC, false, 0, false},
		"full, and quick":        {0, 0, false, 2, nil, "0", syscall.ENOSPC, false, slots / 2, false},
		"full, and not so quick": {0, 0, false, 2, nil, "19", syscall.ENOSPC, false, slots / 4, false},
		"another was in trouble": {behind, 0, false, 1, nil, "0", syscall.ENOSPC, true, 0, false},
		"full, and to end":       {slots, 0, false, 1, func(p *ring.Producer) error { return p.Finish(true) }, "0", syscall.ENOSPC, false, 0, false},
		"a state is new":         {0, 1, false, 1, nil, "19", 0, false, 0, false},
		"a state waits":          {0, 1, false, 2, nil, "0", 0, false, 0, false},
		"states are taken":       {0, 3, true, 3, nil, "19", 0, false, 0, false},
		"is to end":              {0, 0, false, 1, func(p *ring.Producer) error { return p.Finish(true) }, "0", 0, false, 0, false},
		"is to end a failed":     {0, 0, false, 1, func(p *ring.Producer) error { return p.Finish(false) }, "0", 0, false, 0, false},
		"ring was let go":        {0, 0, false, 1, func(p *ring.Producer) error { return p.Close(true) }, "0", 0, false, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ring.Create(ring.Config{Path: filepath.Join(t.TempDir(), "ring"), RunID: "r", Schema: []byte("s"), PayloadLen: 8, Slots: slots, StagingAreas: 1, StagingCapacity: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close(true)
			pid, file := idleSession(t)
			if err := os.WriteFile(file, []byte("19"), 0); err != nil {
				t.Skip("NOT CHECKED: whether a recorder is raised: ", err)
			}
			lift := newLifter(p.Path())
			defer lift.close()
			began := time.Unix(1_800_000_000, 0)
			if !test.new {
				lift.pid, lift.since = pid, began.Add(-time.Second)
			}
			emit := func(n int) {
				for range n {
					p.Emit([]uint64{0})
				}
			}
			emit(test.records)
			if test.finish != nil {
				if err := test.finish(p); err != nil {
					t.Fatal(err)
				}
			}
			recorder, err := ring.Open(p.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer recorder.Close()
			said := ring.ConsumerState{Phase: ring.ConsumerAttached, PID: pid, Fault: test.fault}
			if test.gone {
				said.PID = os.Getpid()
			}
			recorder.Publish(said)
			for n := range test.looks {
				if n > 0 {
					emit(test.pace)
				}
				if n < test.states {
					if !p.Stage(1, 0, 1, func([]byte) {}) {
						t.Fatal("no free staging area")
					}
				}
				lift.look(pid, began.Add(time.Duration(n)*liftInterval))
				if test.taken {
					if s, ok := recorder.Staged(); !ok || s.Release() != nil {
						t.Fatal("no state to take")
					}
				}
			}
			text, err := os.ReadFile(file)
			if err != nil || !strings.HasSuffix(string(text), " nice "+test.want+"\n") {
				t.Errorf("%q, %v; want nice %s", text, err, test.want)
			}
		})
	}
	if newLifter(filepath.Join(t.TempDir(), "none")) != nil {
		t.Error("a ring that is not there can be looked at")
	}
	var none *lifter
	none.close()
}

// TestBegun: who takes over is lowered, but not if it would be raised at once, nor where nobody looks at it.
func TestBegun(t *testing.T) {
	if os.Geteuid() != 0 || !priority.Sessions() {
		t.Skip("NOT CHECKED: whether a recorder that takes over is lowered; sessions are no groups here, or who is not privileged may change few")
	}
	const slots = 64
	for name, c := range map[string]struct {
		waiting int
		closed  bool
		alone   bool
		want    string
	}{
		"few wait":        {slots/4 - 1, false, false, "18"},
		"many wait":       {slots / 4, false, false, "0"},
		"the run is over": {0, true, false, "0"},
		"nobody looks":    {0, false, true, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ring.Create(ring.Config{Path: filepath.Join(t.TempDir(), "ring"), RunID: "r", Schema: []byte("s"), PayloadLen: 8, Slots: slots})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close(true)
			for range c.waiting {
				p.Emit([]uint64{0})
			}
			if c.closed {
				if err := p.Finish(true); err != nil {
					t.Fatal(err)
				}
			}
			pid, file := idleSession(t)
			var lift *lifter
			if !c.alone {
				lift = newLifter(p.Path())
			}
			defer lift.close()
			lift.begun(pid, time.Unix(1_800_000_000, 0))
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Fields(string(text)); got[len(got)-1] != c.want {
				t.Errorf("it has %q, want %s", text, c.want)
			}
		})
	}
}
