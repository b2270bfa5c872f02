package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// TestBacktestProgress compares two long series: on a terminal a line says which of them is at which step, and is gone in
// the end; into a pipe there is nothing but the result.
func TestBacktestProgress(t *testing.T) {
	w := newWorld(t)
	const rows = 8000
	for _, name := range []string{"a.csv", "b.csv"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), disturbed(rows), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out, piped := w.run("backtest", "a.csv", "b.csv", "--json")
	var doc struct {
		Series []struct {
			Series   string
			N        int
			Relative float64
			Events   map[string]int `json:"event_counts"`
		}
		Mean map[string]any `json:"geometric_mean"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != 0 || piped != "" {
		t.Fatalf("exit code %d, %v, standard error %q", code, err, piped)
	}
	mean, _ := doc.Mean["relative"].(float64) // of two equal numbers, but for rounding
	if len(doc.Series) != 2 || doc.Series[1].Series != "b.csv" || doc.Series[0].N != rows || doc.Series[0].Events["outlier"] < 10 || math.Abs(mean-doc.Series[0].Relative) > 1e-14 {
		t.Errorf("result %+v", doc)
	}

	user, program := terminal(t)
	shown := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(user) // ends with an error when nobody has the other end any more
		shown <- string(b)
	}()
	cmd := w.command("backtest", "a.csv", "b.csv")
	cmd.Stderr = program
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	program.Close()
	lines := strings.Split(<-shown, "\r")
	for _, name := range []string{"a.csv", "b.csv"} {
		n := 0
		for _, line := range lines {
			if strings.HasPrefix(line, name+": step ") && strings.Contains(line, fmt.Sprintf(" of %d (", rows)) {
				n++
			}
			if len(line) >= 100 {
				t.Errorf("a line of %d columns would stay: %q", len(line), line)
			}
		}
		if n == 0 {
			t.Errorf("nothing is said of %s in %q", name, lines)
		}
	}
	if n := len(lines); n < 2 || lines[n-1] != "" || strings.TrimSpace(lines[n-2]) != "" {
		t.Errorf("the last line is left: %q", lines[max(0, n-2):])
	}
}
