package cli

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/vfs"
)

// terminal returns both ends of a pseudo-terminal of 100 columns.
func terminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals here (%v): what a terminal is shown cannot be tested", err)
	}
	t.Cleanup(func() { user.Close() })
	fd := int(user.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return user, program
}

// TestBacktestProgress compares two long series on a terminal: every tenth of a second a line says which of them is at
// which step, and it is gone in the end. The clock goes on by 10 ms whenever it is looked at, so that the lines are the
// same however fast the machine is.
func TestBacktestProgress(t *testing.T) {
	t.Chdir(t.TempDir())
	const rows = 5000
	text := bytes.NewBufferString("time,value\n")
	for i := range rows {
		fmt.Fprintf(text, "%d,%.6f\n", i*1_000_000_000, math.Sin(float64(i*i)))
	}
	names := []string{"a.csv", "b.csv"}
	for _, name := range names {
		if err := os.WriteFile(name, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	user, program := terminal(t)
	shown := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(user) // ends with an error when nobody has the other end any more
		shown <- string(b)
	}()
	at := time.Unix(0, 0)
	a := &app{out: io.Discard, err: program, fs: vfs.OS(), now: func() time.Time { at = at.Add(10 * time.Millisecond); return at }}
	if err := a.loadConfig(); err != nil {
		t.Fatal(err)
	}
	if err := a.backtest(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	program.Close()
	lines := strings.Split(<-shown, "\r")
	for _, line := range lines {
		if len(line) >= 100 {
			t.Errorf("a line of %d columns would stay: %q", len(line), line)
		}
	}
	rest := lines
	for _, name := range names { // the clock is looked at with every 64th step
		for step := 640; step <= rows; step += 640 {
			want := fmt.Sprintf("%s: step %d of %d (%d %%), 6400 steps/s", name, step, rows, 100*step/rows)
			for len(rest) > 0 && strings.TrimSpace(rest[0]) == "" {
				rest = rest[1:]
			}
			if len(rest) == 0 || !strings.HasPrefix(rest[0], want) {
				t.Fatalf("want a line %q in its place in %q", want, lines)
			}
			rest = rest[1:]
		}
	}
	if n := len(rest); n < 2 || rest[n-1] != "" || strings.TrimSpace(strings.Join(rest, "")) != "" {
		t.Errorf("the last line is left, or followed by others: %q", rest)
	}
}
