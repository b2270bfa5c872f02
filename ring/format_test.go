//go:build unix

package ring

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const formatPage = "../doc/format/ring.md"

// TestPageExample: the bytes on the format page are those of the vector.
func TestPageExample(t *testing.T) {
	page, err := os.ReadFile(formatPage)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := os.ReadFile(filepath.Join(vectorDir, "plain.ring"))
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^([0-9a-f]{4})  ((?:[0-9a-f]{2} {1,2})+)`).FindAllStringSubmatch(string(page), -1)
	if len(lines) < 15 {
		t.Fatalf("%d lines of bytes on the page", len(lines))
	}
	for _, l := range lines {
		off, err := strconv.ParseInt(l[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(l[2], " ", "")
		if got := hex.EncodeToString(ring[off : off+int64(len(want)/2)]); got != want {
			t.Errorf("page at %s has %s, the vector %s", l[1], want, got)
		}
	}
}

// TestPageProducer runs the producer that is printed on the format page.
func TestPageProducer(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil || runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		t.Skipf("python3 on linux/amd64 is not here (%v): the producer on the format page is not run", err)
	}
	page, err := os.ReadFile(formatPage)
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(page), "```python\n")
	code, _, found := strings.Cut(code, "```")
	if !found {
		t.Fatal("no Python on the page")
	}
	path := filepath.Join(t.TempDir(), "p.ring")
	if out, err := exec.Command(python, "-c", code, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := mustOpen(t, path)
	if alive, err := c.ProducerAlive(); err != nil || alive || c.State() != StateClosed || c.Header().RunID != "python" {
		t.Errorf("alive %v %v, state %v, header %+v", alive, err, c.State(), c.Header())
	}
	w := make([]uint64, 2)
	if _, st := c.Next(w); st != Lost || c.Position() != 2 {
		t.Errorf("%v, position %d, want the first two lost", st, c.Position())
	}
	for n := uint64(2); n < 6; n++ {
		if seq, st := c.Next(w); st != Got || seq != n || !slices.Equal(w, []uint64{n, n * n}) {
			t.Errorf("%d: %v %d %v", n, st, seq, w)
		}
	}
	if _, err := Create(Config{Path: path, PayloadLen: 8}); err == nil {
		t.Error("created over it")
	}
}
