//go:build unix

package ring

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	roleEnv = "USP_RING_TEST_ROLE"
	pathEnv = "USP_RING_TEST_PATH"
)

// TestMain plays a producer instead when the tests start their own binary again.
func TestMain(m *testing.M) {
	role, ok := roles[os.Getenv(roleEnv)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(os.Getenv(pathEnv)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var roles = map[string]func(path string) error{
	"emit":   roleEmit,
	"torn":   roleTorn,
	"ahead":  roleAhead,
	"stage":  roleStage,
	"quiet":  roleQuiet,
	"refuse": roleRefuse,
}

func childRing(path string, slots int) (*Producer, error) {
	return Create(Config{Path: path, RunID: "child", PayloadLen: 24, Slots: slots, StagingCapacity: 64})
}

// roleEmit emits until it is killed.
func roleEmit(path string) error {
	p, err := childRing(path, 64)
	if err != nil {
		return err
	}
	emitN(p, 10)
	fmt.Println("ready")
	for {
		emitN(p, 1000)
	}
}

// roleTorn dies in the middle of writing record 10.
func roleTorn(path string) error {
	p, err := childRing(path, 8)
	if err != nil {
		return err
	}
	emitN(p, 10)
	slot := p.ring.at(p.header.headerLen() + 2*int64(p.header.SlotSize))
	store(slot, 2*10+1)
	store(p.ring.at(p.header.headerLen()+2*int64(p.header.SlotSize)+slotHeaderLen), 0xdead)
	fmt.Println("ready")
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// roleAhead dies between finishing record 10 and moving its position.
func roleAhead(path string) error {
	p, err := childRing(path, 8)
	if err != nil {
		return err
	}
	emitN(p, 11)
	store(p.ring.at(offPosition), 10)
	fmt.Println("ready")
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// roleStage stages one state and dies while it fills another.
func roleStage(path string) error {
	p, err := childRing(path, 8)
	if err != nil {
		return err
	}
	stageText(p, 1, "whole")
	p.Stage(2, 0, 5, func(b []byte) {
		copy(b, "hal")
		fmt.Println("ready")
		err = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	})
	return err
}

// roleRefuse reports how the creation of a second ring fails.
func roleRefuse(path string) error {
	_, err := childRing(path, 8)
	if !errors.Is(err, ErrExist) {
		return fmt.Errorf("second producer: %w", err)
	}
	fmt.Println("ready")
	return nil
}

// startChild starts the test binary in a role and returns when it says that it is ready.
func startChild(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, pathEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return cmd
}

// drainDead reads everything a dead producer left, and checks that it adds up.
func drainDead(t *testing.T, c *Consumer, before uint64) tally {
	t.Helper()
	if alive, err := c.ProducerAlive(); err != nil || alive {
		t.Fatalf("producer alive: %v %v", alive, err)
	}
	rest := drain(t, c)
	if before+rest.total() != c.Produced() {
		t.Errorf("counted %d + %d, emitted %d", before, rest.total(), c.Produced())
	}
	if err := c.Remove(); err != nil {
		t.Error(err)
	}
	return rest
}

func TestProducerKilled(t *testing.T) {
	for i := range 5 {
		path := filepath.Join(memoryDir(t), "a.ring")
		cmd := startChild(t, "emit", path)
		c := mustOpen(t, path)
		if alive, err := c.ProducerAlive(); err != nil || !alive {
			t.Fatalf("alive: %v %v", alive, err)
		}
		before := drain(t, c)
		for range i * 100 {
			more := drain(t, c)
			before.Got, before.Lost = append(before.Got, more.Got...), append(before.Lost, more.Lost...)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // says that it was killed
		rest := drainDead(t, c, before.total())
		if c.State() != StateOpen {
			t.Errorf("state %v of a killed producer", c.State())
		}
		if len(before.Got)+len(rest.Got) == 0 {
			t.Error("nothing was delivered at all")
		}
	}
}

func TestProducerDiesInsideEmit(t *testing.T) {
	for role, want := range map[string]tally{
		// Record 10 is torn; it was on the way into the slot of record 2.
		"torn": {[]uint64{3, 4, 5, 6, 7, 8, 9}, []loss{{0, 2, Overrun}, {2, 3, Overrun}, {10, 11, Torn}}},
		// Record 10 is complete and only the position was not moved.
		"ahead": {[]uint64{3, 4, 5, 6, 7, 8, 9, 10}, []loss{{0, 2, Overrun}, {2, 3, Overrun}}},
	} {
		path := filepath.Join(t.TempDir(), "a.ring")
		cmd := startChild(t, role, path)
		_ = cmd.Wait() // killed itself
		c := mustOpen(t, path)
		got := drainDead(t, c, 0)
		if !slices.Equal(got.Got, want.Got) || !slices.Equal(got.Lost, want.Lost) {
			t.Errorf("%s: got %v lost %v, want %+v", role, got.Got, got.Lost, want)
		}
		if c.Produced() != 11 {
			t.Errorf("%s: produced %d, want 11", role, c.Produced())
		}
	}
}

// TestUnfinishedOfLiveProducer: what is being written is not lost, however often one looks.
func TestUnfinishedOfLiveProducer(t *testing.T) {
	p := mustCreate(t, Config{Slots: 8})
	c := mustOpen(t, p.Path())
	emitN(p, 2)
	slot := p.ring.at(p.header.headerLen() + 2*int64(p.header.SlotSize))
	store(slot, 2*2+1)
	for range 3 {
		if got := drain(t, c); len(got.Lost) != 0 {
			t.Fatalf("lost %v", got.Lost)
		}
	}
	emitN(p, 1) // finishes it
	if got := drain(t, c); !slices.Equal(got.Got, []uint64{2}) {
		t.Errorf("got %v lost %v", got.Got, got.Lost)
	}
	store(p.ring.at(p.header.headerLen()+3*int64(p.header.SlotSize)), 2*3+1)
	p.Close(false)
	drain(t, c)
	// Nobody asked whether the producer lives: a second look at the same record does.
	if got := drain(t, c); !slices.Equal(got.Lost, []loss{{3, 4, Torn}}) || c.Produced() != 4 {
		t.Errorf("after the producer is gone: lost %v, produced %d", got.Lost, c.Produced())
	}
}

// TestMarkedWhileWritten stops the writing of a record half way, by a payload
// that ends in memory that cannot be read, and looks at the slot.
func TestMarkedWhileWritten(t *testing.T) {
	pages, err := unix.Mmap(-1, 0, 2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(pages)
	if err := unix.Mprotect(pages[pageSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	const words, readable = 26, 16
	payload := unsafe.Slice((*uint64)(unsafe.Pointer(&pages[pageSize-8*readable])), words)
	fill(payload[:readable], 2)
	p := mustCreate(t, Config{PayloadLen: 8 * words, Slots: 2})
	emitN(p, 2)
	slot := p.ring.at(p.header.headerLen())
	ways := map[string]func(){
		"apart": func() { publish(slot, &payload[0], words, 2*2+1, p.length, p.position) },
	}
	if p.keys != nil {
		ways["fused"] = func() { p.emit(2, payload) }
	}
	for name, write := range ways {
		store(slot, 2*0+2)
		func() {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no fault", name)
				}
			}()
			write()
		}()
		if seq, pos := load(slot), load(p.position); seq != 2*2+1 || pos != 2 {
			t.Errorf("%s: half way the slot says %d and the position %d, want 5 and 2", name, seq, pos)
		}
		if got := load(unsafe.Add(slot, slotHeaderLen)); got != payload[0] {
			t.Errorf("%s: nothing was copied before the fault", name)
		}
	}
}

func TestProducerDiesInsideStage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.ring")
	cmd := startChild(t, "stage", path)
	_ = cmd.Wait() // killed itself
	c := mustOpen(t, path)
	if s, ok := c.Staged(); !ok || string(s.Bytes()) != "whole" {
		t.Error("the complete state is not there")
	}
	if alive, err := c.ProducerAlive(); err != nil || alive {
		t.Fatalf("alive: %v %v", alive, err)
	}
	if _, ok := c.Staged(); ok || c.Discarded() != 1 {
		t.Errorf("half a state given out, or not counted: discarded %d", c.Discarded())
	}
}

func TestSecondProcessRefused(t *testing.T) {
	p := mustCreate(t, Config{})
	if err := startChild(t, "refuse", p.Path()).Wait(); err != nil {
		t.Error(err)
	}
}
