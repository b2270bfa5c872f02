package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStoppedRecorder stops the recorder under a run whose ring is much too small for it: the loop must not notice, and
// what was lost must be counted exactly once the recorder continues.
func TestStoppedRecorder(t *testing.T) {
	w := newWorld(t)
	n := long(20_000)
	input := w.writeSeries("series.csv", n, 3)
	w.env = append(w.env, "USP_RING_SLOTS=1024")
	free := w.summary("run", input, "--dir", "free")

	cmd := w.command("run", input, "--dir", "stopped", "--json")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	pid := w.recorderPID(done)
	if pid == 0 {
		t.Fatal("the run ended before its recorder could be stopped")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer kill(pid)
	<-done
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Fatalf("exit code %d with a stopped recorder, want 3 (partial)\n%s", code, out.String())
	}
	var stopped map[string]any
	if err := json.Unmarshal(out.Bytes(), &stopped); err != nil {
		t.Fatal(err)
	}
	if stopped["emitted"].(float64) != float64(n) || stopped["complete"].(bool) {
		t.Errorf("summary with a stopped recorder: %s", out.String())
	}
	// Figures for the reader; a test is no place to judge time.
	t.Logf("seconds free %v, recorder stopped %v; emit p99 %v and %v ns", free["seconds"], stopped["seconds"], free["emit_ns_p99"], stopped["emit_ns_p99"])

	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.idle()
	report := w.summary("verify", "latest", "--dir", "stopped")
	c := report["completeness"].(map[string]any)
	if c["stored"].(float64)+c["lost"].(float64) != float64(n) || c["lost"].(float64) == 0 {
		t.Errorf("stored %v + lost %v, want %d with a loss", c["stored"], c["lost"], n)
	}
	t.Logf("stored %v, lost %v", c["stored"], c["lost"])
}

// TestNothingLeaks plants canaries, in the input and in the environment, and searches everything that a run leaves
// outside its snapshots.
func TestNothingLeaks(t *testing.T) {
	w := newWorld(t)
	secret := "canary-4f1c9a77e2"
	w.env = append(w.env, "SECRET_TOKEN="+secret, "AWS_SECRET_ACCESS_KEY=x"+secret)
	rnd := rand.New(rand.NewPCG(11, 12))
	var needles [][]byte
	var csv strings.Builder
	csv.WriteString("time,value\n")
	for i := range 400 {
		v := math.Round(1e9*(1234.5+rnd.Float64()))/1e9 + float64(i%7)
		text := fmt.Sprint(v)
		fmt.Fprintf(&csv, "%d,%s\n", i*3_600_000_000_000, text)
		needles = append(needles, []byte(text), binary.LittleEndian.AppendUint64(nil, math.Float64bits(v)), binary.BigEndian.AppendUint64(nil, math.Float64bits(v)))
	}
	needles = append(needles, []byte(secret))
	for _, e := range os.Environ() { // and no value of this process's own environment, as far as it is distinctive
		if _, v, _ := strings.Cut(e, "="); len(v) >= 8 && strings.HasPrefix(v, "/") {
			needles = append(needles, []byte(v))
		}
	}
	if err := os.WriteFile(filepath.Join(w.dir, "in.csv"), []byte(csv.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s := w.summary("run", "in.csv", "--log-level", "debug")
	searched := 0
	err := filepath.WalkDir(s["run_dir"].(string), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) == ".snap" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		searched++
		for _, n := range needles {
			if i := bytes.Index(b, n); i >= 0 {
				t.Errorf("%s holds %q at byte %d", path, n, i)
			}
		}
		return nil
	})
	if err != nil || searched < 4 {
		t.Errorf("%d files searched, error %v", searched, err)
	}
	// The search itself works: the snapshots, which must hold the state, hold the last value.
	snaps, err := filepath.Glob(filepath.Join(s["run_dir"].(string), "snapshots", "*.snap"))
	if err != nil || len(snaps) == 0 {
		t.Fatalf("no snapshots: %v", err)
	}
	b, err := os.ReadFile(snaps[len(snaps)-1])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, needles[3*399+1]) {
		t.Error("the last value is not in the last snapshot: the search would find nothing anywhere")
	}
	for _, p := range snaps {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o400 {
			t.Errorf("%s: mode %v, error %v, want 0400", p, info.Mode(), err)
		}
	}
}

// TestFlippedByte changes bytes of a closed run, some in every file, one at a time.
func TestFlippedByte(t *testing.T) {
	w := newWorld(t)
	s := w.summary("run", "example:nile", "--snapshot-interval", "40")
	dir := s["run_dir"].(string)
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5))
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, offset := range []int{0, len(b) / 2, len(b) - 1, rnd.IntN(len(b)), rnd.IntN(len(b))} {
			flipped := bytes.Clone(b)
			flipped[offset] ^= 1 << rnd.IntN(8)
			overwrite(t, path, flipped)
			_, out := w.want([]int{20}, "verify", dir)
			if name := filepath.Base(path); !strings.Contains(out, name) {
				t.Errorf("byte %d of %s changed; verify does not name the file:\n%s", offset, path, out)
			}
		}
		overwrite(t, path, b)
	}
	w.want([]int{0}, "verify", dir)
}

// TestCutLog cuts frames off the end of a closed run's digest log, at every length that leaves a header.
func TestCutLog(t *testing.T) {
	w := newWorld(t)
	dir := w.summary("run", "example:nile")["run_dir"].(string)
	path := filepath.Join(dir, "digests", "00000000000000000000.seg")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stride := 512
	if raceDetector {
		stride = 4096 // each is a process of its own
	}
	for cut := 8; cut < len(b)-4096; cut += stride {
		overwrite(t, path, b[:len(b)-cut])
		w.want([]int{20}, "verify", dir)
	}
	overwrite(t, path, b)
	w.want([]int{0}, "verify", dir)
}

// overwrite changes a read-only file.
func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyWhileRecording judges a run again and again while its recorder seals, prunes and publishes: nothing of that is
// damage.
func TestVerifyWhileRecording(t *testing.T) {
	w := newWorld(t)
	input := w.writeSeries("series.csv", long(10_000), 5)
	cmd := w.command("run", input, "--dir", "runs", "--snapshot-interval", "20")
	cmd.Env = append(cmd.Env, "USP_RECORDER_SEGMENT_SIZE=1MiB")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	w.recorderPID(done)
	looks := 0
	for running := true; running; looks++ {
		select {
		case <-done:
			running = false
		default:
		}
		w.want([]int{0, 21}, "verify", "latest", "--dir", "runs")
		w.want([]int{0}, "show", "latest", "--dir", "runs", "--json")
	}
	if looks < 2 {
		t.Errorf("looked %d times only", looks)
	}
	w.want([]int{0}, "verify", "latest", "--dir", "runs")
}

// TestInterrupted interrupts a run as a terminal does: it is closed in order, and yet nothing may call it complete until it
// was resumed to the end of its input.
func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	input := w.writeSeries("series.csv", 25_000, 5)
	cmd := w.command("run", input, "--json")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() { kill(cmd.Process.Pid); <-done })
	list := func() (rows []map[string]any) {
		_, out := w.want([]int{0}, "runs", "--json")
		if err := json.Unmarshal([]byte(out), &rows); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return rows
	}
	signal := func(s syscall.Signal) {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if w.recorderPID(done) == 0 {
		t.Fatal("the run has ended before it was listed")
	}
	for deadline := time.Now().Add(30 * time.Second); ; { // until it has begun; it stands still meanwhile, for it could end before it is listed
		signal(syscall.SIGSTOP)
		if rows := list(); len(rows) == 1 && rows[0]["step"].(float64) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the run does not get under way")
		}
		signal(syscall.SIGCONT)
		time.Sleep(5 * time.Millisecond)
	}
	signal(syscall.SIGINT)
	signal(syscall.SIGCONT)
	<-done
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Fatalf("exit code %d of an interrupted run, want 130", code)
	}
	rows := list()
	id := rows[0]["run_id"].(string)
	if rows[0]["status"] != "interrupted" || rows[0]["resume"] != "usp run --resume "+id {
		t.Errorf("an interrupted run is listed as %v", rows[0])
	}
	_, out, errw := w.run("runs")
	if !strings.Contains(out, " interrupted ") || !strings.Contains(errw, "usp run --resume "+id) {
		t.Errorf("usp runs prints\n%s%s", out, errw)
	}
	if _, out := w.want([]int{0}, "show", "latest"); !strings.HasPrefix(out, "run "+id+"  interrupted") {
		t.Errorf("usp show prints\n%s", out)
	}
	w.want([]int{0}, "verify", "latest")
	w.want([]int{0}, "run", "--resume", "latest")
	if _, out := w.want([]int{0}, "runs"); !strings.Contains(out, " clean ") {
		t.Errorf("usp runs prints\n%s", out)
	}
}
