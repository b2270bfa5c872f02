//go:build linux && amd64

package largepages

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const childEnv = "USP_LARGEPAGES_TEST"

// some makes this program as large as those that have code to be moved: no piece of it is below 2 MiB.
var some = http.ListenAndServe

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := moveWhileBusy(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// moveWhileBusy moves everything while other threads execute it, make garbage and grow their stacks, and prints the process's memory.
func moveWhileBusy() error {
	var over, bad atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := 0; !over.Load(); i++ {
				text := bytes.Repeat([]byte{byte(i)}, 1+i%50_000)
				if sha256.Sum256(text) != sha256.Sum256(slices.Clone(text)) || deep(i%500) != i%500 {
					bad.Store(true)
				}
			}
		})
	}
	live := bytes.Repeat([]byte{1}, 8*Size) // what garbage was goes back to the system
	defer runtime.KeepAlive(live)
	more := Pieces()
	for more() {
		runtime.GC()
	}
	if more() {
		return fmt.Errorf("more when there was nothing")
	}
	over.Store(true)
	all.Wait()
	if bad.Load() || some == nil {
		return fmt.Errorf("something was computed wrong")
	}
	text, err := os.ReadFile("/proc/self/smaps")
	os.Stdout.Write(text)
	return err
}

func deep(n int) int {
	var room [256]byte
	if n == 0 {
		return int(room[0])
	}
	return 1 + deep(n-1)
}

func TestPieces(t *testing.T) {
	room, err := unix.Mmap(-1, 0, 2*Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	at := (uintptr(unsafe.Pointer(&room[0])) + Size - 1) &^ (Size - 1)
	memory(at)[0] = 1
	if !collapse(at) {
		t.Skip("NOT CHECKED: large pages; this system gives none")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	large := map[string]bool{} // by the rights that the mapping has
	rights := ""
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			rights = fields[1]
		case fields[0] == "AnonHugePages:" && fields[1] != "0":
			large[rights] = true
		}
	}
	if !large["rw-p"] || !large["r-xp"] || !large["r--p"] {
		t.Errorf("large pages are in %v", large)
	}
}

// TestParse: only whole pieces of the heap and of the program's code and constants are moved.
func TestParse(t *testing.T) {
	const maps = `00400000-00d4f000 r-xp 00000000 fe:00 12 /x/usp
00d4f000-01300000 r--p 0094f000 fe:00 12 /x/usp
02000000-02400000 rw-p 01c00000 fe:00 12 /x/usp
10100000-10700000 r-xp 00000000 fe:00 13 /lib/other usp
1000000000-1000500000 rw-p 00000000 00:00 0
1000500000-1004000000 ---p 00000000 00:00 0
7f0000100000-7f0000900000 rw-p 00000000 00:00 0 
`
	const code = unix.PROT_READ | unix.PROT_EXEC
	want := []piece{
		{0x400000, code}, {0x600000, code}, {0x800000, code}, {0xa00000, code}, {0xe00000, unix.PROT_READ}, {0x1000000, unix.PROT_READ},
		{0x1000000000, 0}, {0x1000200000, 0},
	}
	if got := parse(strings.NewReader(maps), "/x/usp", 0x1000300000); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	const much = "00400000-02800000 r-xp 00000000 fe:00 12 /x/usp\n1000000000-1000200000 rw-p 00000000 00:00 0\n"
	if got := parse(strings.NewReader(much), "/x/usp", 0x1000000000); !slices.Equal(got, []piece{{0x1000000000, 0}}) {
		t.Errorf("of a program with much code: %v", got)
	}
	if got := parse(strings.NewReader("nonsense\n"+maps), "/x/us", 5); got != nil {
		t.Errorf("of another program: %v", got)
	}
}

// TestNoCode: where a piece of the program cannot be moved, no more of it is tried.
func TestNoCode(t *testing.T) {
	left := ofHeap([]piece{{1, 5}, {2, 0}, {3, 1}, {4, 0}})
	if !slices.Equal(left, []piece{{2, 0}, {4, 0}}) {
		t.Errorf("%v", left)
	}
}
