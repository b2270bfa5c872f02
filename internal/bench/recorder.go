package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// experts is how many weights the records have: with them a record is 30 words, 240 bytes.
const experts = 12

// RecorderConfig says what to record. Command and Dir are required.
type RecorderConfig struct {
	Dir     string           // where the run directories lie while they are needed: on the disk that matters
	Command []string         // starts a recorder; the ring's path is added, the options go to its standard input
	Options recorder.Options // Runs and KeyFile are replaced
	RingDir string           // memory-backed; "" = ring.DefaultDir()
	Slots   int              // records the ring holds; 0 = 65536
	Records uint64           // in each round

	StateEvery uint64 // records between two snapshots; 0: none are taken
	StateSize  int    // bytes of each

	Watch func(emitted uint64, pid int)
}

// RecorderRound is what recording so many records took.
type RecorderRound struct {
	Elapsed time.Duration // from the first record emitted to all of them synced, and their digests
	Ending  time.Duration // from then until the process has ended, and what it has started
	CPU     time.Duration // user and system time of the recorder's process, its start and end included
	MaxRSS  int64         // most memory of the recorder's process in bytes, mapped parts of the ring included
	Bytes   int64         // of all files of telemetry and digests
	Sample  []byte        // one of these files
	Lost    uint64
}

// Record has a recorder process, on one core, record what this process emits as fast as the recorder takes it: never so
// far ahead that something would be lost.
func Record(ctx context.Context, c RecorderConfig) (round RecorderRound, err error) {
	dir, err := os.MkdirTemp(c.Dir, "usp-bench-")
	if err != nil {
		return round, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir), syncDir(c.Dir)) }()
	schema := predictor.Schema(experts)
	p, path, err := c.createRing(schema)
	if err != nil {
		return round, err
	}
	defer func() { err = errors.Join(err, removeRing(p, path)) }()
	o := c.Options
	o.Runs, o.KeyFile = filepath.Join(dir, "runs"), filepath.Join(dir, "key")
	child, err := startRecorder(c.Command, path, o)
	if err != nil {
		return round, err
	}
	defer child.end()
	if err := child.until(ctx, func() bool { return p.Consumer().Phase != ring.ConsumerNone }); err != nil {
		return round, err
	}
	begun := time.Now()
	if err := c.emit(ctx, p, schema, child); err != nil {
		return round, err
	}
	if err := p.Finish(true); err != nil { // the last batch is not to wait for more
		return round, err
	}
	if err := child.until(ctx, func() bool { return p.Consumer().Synced == c.Records }); err != nil {
		return round, err
	}
	synced := time.Now()
	round.Elapsed = synced.Sub(begun)
	if err := errors.Join(p.Close(true), child.until(ctx, func() bool { return false })); err != nil {
		return round, err
	}
	round.Ending = time.Since(synced)
	return round, round.read(child, o.Runs)
}

// read takes the rest of a round from what the recorder left behind.
func (r *RecorderRound) read(child *child, runs string) error {
	var sum recorder.Summary
	if err := json.Unmarshal(child.out.Bytes(), &sum); err != nil {
		return fmt.Errorf("what the recorder said: %w", err)
	}
	state := child.cmd.ProcessState
	r.Lost, r.CPU = sum.Lost, state.UserTime()+state.SystemTime()
	if u, ok := state.SysUsage().(*syscall.Rusage); ok {
		r.MaxRSS = maxRSS(u.Maxrss)
	}
	run := rundir.At(filepath.Join(runs, sum.RunID))
	for _, dir := range []string{run.Telemetry(), run.Digests()} {
		infos, err := segment.List(vfs.OS(), dir)
		if err != nil {
			return err
		}
		for _, info := range infos {
			st, err := os.Stat(info.Path)
			if err != nil {
				return err
			}
			r.Bytes += st.Size()
			if r.Sample == nil {
				if r.Sample, err = os.ReadFile(info.Path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *RecorderConfig) createRing(schema *record.Schema) (p *ring.Producer, path string, err error) {
	dir := c.RingDir
	if dir == "" {
		dir, _ = ring.DefaultDir()
	}
	if err := ring.PrepareDir(dir); err != nil {
		return nil, "", err
	}
	id := fmt.Sprintf("bench-%d-%d", os.Getpid(), time.Now().UnixNano()%1e9)
	slots := c.Slots
	if slots == 0 {
		slots = 1 << 16
	}
	areas, capacity := 0, int64(0)
	if c.StateEvery > 0 {
		areas, capacity = 4, int64(c.StateSize)+1<<16
	}
	path = filepath.Join(dir, rundir.RingName(id))
	p, err = ring.Create(ring.Config{Path: path, RunID: id, Schema: schema.Text(), PayloadLen: 8 * schema.Words(), Slots: slots,
		StagingAreas: areas, StagingCapacity: capacity})
	return p, path, err
}

// removeRing removes what a recorder that failed has left.
func removeRing(p *ring.Producer, path string) error {
	_ = p.Close(false) // closed already if all went well
	c, err := ring.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(c.Remove(), c.Close())
}

// burst is how many records are emitted before the recorder's position is looked at.
const burst = 256

// emit keeps the ring as full as it can be without a loss.
func (c *RecorderConfig) emit(ctx context.Context, p *ring.Producer, schema *record.Schema, child *child) error {
	values := record.NewValues(schema)
	payload := values.Payload(0, 0)
	for i := range payload {
		payload[i] = 0x3ff0000000000000 + uint64(i)*0x9e3779b97f4a7>>4
	}
	state := []snapshot.Section{{Name: "state", Data: make([]byte, c.StateSize)}}
	room := uint64(p.Header().Slots) - 2*burst
	for n := uint64(0); n < c.Records; {
		if c.Watch != nil {
			c.Watch(n, child.cmd.Process.Pid)
		}
		err := child.until(ctx, func() bool { return n-p.Consumer().Position < room })
		if err != nil {
			return err
		}
		for end := min(n+burst, c.Records); n < end; {
			n++
			payload[0], payload[1] = n, n*1e9
			for i := 2; i < len(payload); i += 4 {
				payload[i]++
			}
			p.Emit(payload)
		}
		if e := c.StateEvery; e > 0 && n/e != (n-min(n, burst))/e { // one that no area is free for is dropped
			state[0].Data[0]++
			p.Stage(n, 1, snapshot.SectionsSize(state), func(dst []byte) { snapshot.AppendSections(dst[:0], state) })
		}
	}
	if c.Watch != nil {
		c.Watch(c.Records, child.cmd.Process.Pid)
	}
	return nil
}

// child is a recorder's process.
type child struct {
	cmd    *exec.Cmd
	out    bytes.Buffer
	errs   bytes.Buffer
	exited chan struct{}
	err    error
}

func startRecorder(command []string, path string, o recorder.Options) (*child, error) {
	options, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(command[0], append(command[1:len(command):len(command)], path)...), exited: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = bytes.NewReader(options), &c.out, &c.errs
	if err := startPinned(c.cmd); err != nil {
		return nil, fmt.Errorf("start the recorder: %w", err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	return c, nil
}

// until waits for what is asked for, or for the process to have ended well. That it ends otherwise is an error, and
// before what is asked for has come about too if that can still come about.
func (c *child) until(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case <-c.exited:
			if c.err != nil || !c.cmd.ProcessState.Success() {
				return fmt.Errorf("the recorder failed: %w\n%s", c.err, bytes.TrimSpace(c.errs.Bytes()))
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Microsecond):
		}
	}
	return nil
}

// end kills the process if it is still there.
func (c *child) end() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.exited
}
