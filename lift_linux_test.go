package usp

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/ring"
)

// TestLifter: a recorder's session that has low priority is raised when the ring shows that it needs more, and not before.
func TestLifter(t *testing.T) {
	if !priority.Sessions() {
		t.Skip("NOT CHECKED: whether a recorder is raised; this system does not schedule sessions as groups")
	}
	const slots, behind = 64, 2
	for name, test := range map[string]struct {
		records int
		finish  func(*ring.Producer) error
		want    string
	}{
		"keeps up":           {behind - 1, nil, "10"},
		"does not keep up":   {behind, nil, "0"},
		"is to end":          {0, func(p *ring.Producer) error { return p.Finish(true) }, "0"},
		"is to end a failed": {0, func(p *ring.Producer) error { return p.Finish(false) }, "0"},
		"ring was let go":    {0, func(p *ring.Producer) error { return p.Close(true) }, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ring.Create(ring.Config{Path: filepath.Join(t.TempDir(), "ring"), RunID: "r", Schema: []byte("s"), PayloadLen: 8, Slots: slots})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close(true)
			cmd := exec.Command("sleep", "60")
			cmd.SysProcAttr = ownSession()
			cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			file := fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid)
			if err := os.WriteFile(file, []byte("10"), 0); err != nil {
				t.Skip("NOT CHECKED: whether a recorder is raised: ", err)
			}
			lift := newLifter(p.Path())
			defer lift.close()
			for range test.records {
				p.Emit([]uint64{0})
			}
			if test.finish != nil {
				if err := test.finish(p); err != nil {
					t.Fatal(err)
				}
			}
			lift.look(cmd.Process.Pid)
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
