//go:build linux

package ring

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const pythonDir = "../python/src/usp"

// foreignWriter starts a producer in another language: how it emits, how many records (0: for ever), through how many
// slots, and whether it waits for the reader.
type foreignWriter func(path, how string, count, slots int, paced bool) *exec.Cmd

// foreignWriters are those that can be had here; the rest skip their tests, aloud.
func foreignWriters() map[string]func(*testing.T) foreignWriter {
	return map[string]func(*testing.T) foreignWriter{
		"c":             cWriter,
		"python-pure":   func(t *testing.T) foreignWriter { return pythonWriter(t, "pure") },
		"python-native": func(t *testing.T) foreignWriter { return pythonWriter(t, "native") },
	}
}

func arguments(path, how string, count, slots int, paced bool) []string {
	args := []string{path, how, strconv.Itoa(count), strconv.Itoa(slots)}
	if paced {
		args = append(args, "paced")
	}
	return args
}

// compile calls the C compiler; without one the test is skipped.
func compile(t *testing.T, args ...string) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skipf("SKIPPED: there is no C compiler to build the native writer with: %v", err)
	}
	args = append([]string{"-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"}, args...)
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		t.Fatalf("cc %q: %v\n%s", args, err, out)
	}
}

func cWriter(t *testing.T) foreignWriter {
	native, program := filepath.Join(pythonDir, "native"), filepath.Join(t.TempDir(), "writer")
	compile(t, "-o", program, "-I", native, "testdata/writer.c", filepath.Join(native, "writer.c"), filepath.Join(native, "crc.c"))
	return func(path, how string, count, slots int, paced bool) *exec.Cmd {
		return exec.Command(program, arguments(path, how, count, slots, paced)...)
	}
}

// pythonWriter copies the package and, for the native one, builds the extension beside it: what lies in the working
// tree may be of yesterday.
func pythonWriter(t *testing.T, which string) foreignWriter {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skipf("SKIPPED: there is no python3 to write records with: %v", err)
	}
	const ask = "import sys, sysconfig; assert sys.version_info >= (3, 11), sys.version; print(sysconfig.get_path('include'))"
	include, err := exec.Command(python, "-c", ask).Output()
	if err != nil {
		t.Skipf("SKIPPED: python3 is older than 3.11, which the package needs: %v", err)
	}
	if which == "pure" && runtime.GOARCH != "amd64" {
		t.Skipf("SKIPPED: pure Python writes rings on amd64 only, this is %s", runtime.GOARCH)
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "usp"), 0o700); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob(filepath.Join(pythonDir, "*.py"))
	if err != nil || len(sources) == 0 {
		t.Fatalf("no package in %s: %v", pythonDir, err)
	}
	for _, name := range sources {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "usp", filepath.Base(name)), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if which == "native" {
		header := filepath.Join(strings.TrimSpace(string(include)), "Python.h")
		if _, err := os.Stat(header); err != nil {
			t.Skipf("SKIPPED: python3 has no headers to build the extension with: %v", err)
		}
		files, err := filepath.Glob(filepath.Join(pythonDir, "native", "*.c"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources: %v", err)
		}
		compile(t, append([]string{
			"-shared", "-fPIC", "-DPy_LIMITED_API=0x030B0000", "-I", filepath.Dir(header), "-o", filepath.Join(root, "usp", "_native.abi3.so"),
		}, files...)...)
	}
	return func(path, how string, count, slots int, paced bool) *exec.Cmd {
		args := arguments(path, how, count, slots, paced)
		cmd := exec.Command(python, slices.Concat([]string{"testdata/writer.py", path, which}, args[1:])...)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+root, "PYTHONDONTWRITEBYTECODE=1")
		return cmd
	}
}

// startForeign starts a producer, and returns when its ring is there, with what else it says.
func startForeign(t *testing.T, cmd *exec.Cmd) *bufio.Reader {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // has ended already, unless the test failed
		_ = cmd.Wait()
	})
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%s said %q, %v", cmd.Path, line, err)
	}
	return r
}

// foreignDir is in memory if possible: ten million records through a disk would measure the disk.
func foreignDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "usp-ring-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// foreignRecord checks record seq of a writer that emits in that way. threads counts the records of each thread.
func foreignRecord(how string, w []uint64, seq uint64, threads *[3]uint64, lossy bool) error {
	switch how {
	case "emitter":
		if !slices.Equal(w, []uint64{seq, 3*seq + 1, 7 * seq, math.Float64bits(float64(seq) / 3)}) {
			return fmt.Errorf("record %d is %x", seq, w)
		}
	case "threads":
		k, i := w[0], w[1]
		if k > 2 || w[2] != k*0x9e3779b97f4a7c15^i || i < threads[k] || (i > threads[k] && !lossy) {
			return fmt.Errorf("record %d is %x, after %d of the threads", seq, w, *threads)
		}
		threads[k] = i + 1
	default:
		if !slices.Equal(w, fill(make([]uint64, 3), seq)) {
			return fmt.Errorf("record %d is %x", seq, w)
		}
	}
	return nil
}

// readForeign reads until the producer is gone, and says where it is from time to time.
func readForeign(c *Consumer, how string, lossy bool) (got, lost uint64, err error) {
	words := c.Header().Words()
	buf := make([]uint64, 256*words)
	var threads [3]uint64
	for {
		alive, err := c.ProducerAlive()
		if err != nil {
			return got, lost, err
		}
		for {
			first, n, st := c.NextBatch(buf)
			if st == Empty {
				break
			}
			switch st {
			case Got:
				for i := range uint64(n) {
					if err := foreignRecord(how, buf[i*uint64(words):][:words], first+i, &threads, lossy); err != nil {
						return got, lost, err
					}
				}
				got += uint64(n)
			case Lost:
				from, to, _ := c.LostRange()
				lost += to - from
			default:
				return got, lost, c.Err()
			}
			c.Publish(ConsumerState{Phase: ConsumerAttached, Position: c.Position()})
		}
		if !alive {
			return got, lost, nil
		}
		runtime.Gosched()
	}
}

func foreignCount() int {
	if os.Getenv("TORTURE") != "" {
		return 10_000_000
	}
	return 30_000
}

// TestForeign: producers in Python and C, each built once, and what Go reads of them.
func TestForeign(t *testing.T) {
	for name, build := range foreignWriters() {
		t.Run(name, func(t *testing.T) {
			writer := build(t)
			t.Run("records", func(t *testing.T) { testForeignRecords(t, name, writer) })
			t.Run("killed", func(t *testing.T) { testForeignKilled(t, writer) })
			if name != "c" {
				t.Run("fork", func(t *testing.T) { testForeignFork(t, writer) })
				t.Run("staged", func(t *testing.T) { testForeignStaged(t, writer) })
			}
		})
	}
}

// testForeignRecords: what is emitted is what Go reads, bit for bit. Paced by the reader nothing is lost; without, what
// is delivered and what is lost are all there is.
func testForeignRecords(t *testing.T, name string, writer foreignWriter) {
	hows := []string{"emit", "block", "emitter"}
	if name == "c" {
		hows[2] = "threads"
	}
	for _, how := range hows {
		for _, paced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s paced=%v", how, paced), func(t *testing.T) {
				count := foreignCount()
				if how == "threads" {
					count -= count % 3
				}
				path := filepath.Join(foreignDir(t), "a.ring")
				cmd := writer(path, how, count, 1024, paced)
				startForeign(t, cmd)
				c := mustOpen(t, path)
				got, lost, err := readForeign(c, how, !paced)
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err != nil {
					t.Error(err)
				}
				if paced && lost != 0 || got+lost != uint64(count) || c.Produced() != uint64(count) || c.State() != StateClosed {
					t.Errorf("read %d, lost %d, produced %d, state %v; want %d", got, lost, c.Produced(), c.State(), count)
				}
				if err := c.Remove(); err != nil {
					t.Error(err)
				}
				t.Logf("read %d, lost %d", got, lost)
			})
		}
	}
}

// testForeignKilled: killed at any moment, a writer leaves a ring that is read without an error, and all adds up.
func testForeignKilled(t *testing.T, writer foreignWriter) {
	times, torn := 5, 0
	if os.Getenv("TORTURE") != "" {
		times = 100
	}
	for i := range times {
		path := filepath.Join(foreignDir(t), "a.ring")
		cmd := writer(path, []string{"emit", "block"}[i%2], 0, 64, false)
		startForeign(t, cmd)
		c := mustOpen(t, path)
		for until := uint64(100 + i*7919%20000); c.Produced() < until; {
			runtime.Gosched()
		}
		kill(t, cmd)
		rest := drainDead(t, c, 0)
		for _, l := range rest.Lost {
			if l.reason == Torn {
				torn++
				if l.to != c.Produced() || l.to != l.from+1 {
					t.Errorf("torn: %v of %d", l, c.Produced())
				}
			}
		}
		if len(rest.Got) < 62 {
			t.Errorf("only %d records of 64 slots", len(rest.Got))
		}
	}
	t.Logf("%d of %d died in the middle of a record", torn, times)
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("it ended by itself")
	}
}

// testForeignFork: a producer that is killed while a child that it forked lives is gone.
func testForeignFork(t *testing.T, writer foreignWriter) {
	path := filepath.Join(foreignDir(t), "a.ring")
	cmd := writer(path, "fork", 0, 64, false)
	line, err := startForeign(t, cmd).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(child, unix.SIGKILL)
	c := mustOpen(t, path)
	if alive, err := c.ProducerAlive(); err != nil || !alive {
		t.Fatalf("alive %v, %v", alive, err)
	}
	kill(t, cmd)
	if err := unix.Kill(child, 0); err != nil {
		t.Fatalf("the child is gone: %v", err)
	}
	if alive, err := c.ProducerAlive(); err != nil || alive {
		t.Errorf("alive %v, %v: the child holds the lock", alive, err)
	}
}

// testForeignStaged: states that Python stages are those that Go takes.
func testForeignStaged(t *testing.T, writer foreignWriter) {
	path := filepath.Join(foreignDir(t), "a.ring")
	cmd := writer(path, "stage", 0, 64, false)
	said, err := io.ReadAll(startForeign(t, cmd))
	if err := errors.Join(err, cmd.Wait()); err != nil || string(said) != "True\nTrue\nFalse\n" {
		t.Fatalf("%q, %v", said, err)
	}
	c := mustOpen(t, path)
	for k := range uint64(2) {
		s, ok := c.Staged()
		if !ok {
			t.Fatalf("state %d is not there", k)
		}
		want := strings.Repeat(string(rune('A'+k)), int(5000-k))
		if s.Step != 40+k || s.Seq != 2 || s.Reason != uint32(2+k) || string(s.Bytes()) != want {
			t.Errorf("%d: step %d, seq %d, reason %d, %d bytes", k, s.Step, s.Seq, s.Reason, len(s.Bytes()))
		}
		if err := s.Release(); err != nil {
			t.Error(err)
		}
	}
	if _, ok := c.Staged(); ok || c.Discarded() != 0 || c.Drops() != 1 {
		t.Errorf("one more: %v, %d discarded, %d dropped", ok, c.Discarded(), c.Drops())
	}
}
