package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRecorderKilledOften kills every recorder that comes up while one producer goes on: nothing that the ring still
// holds may be lost, and the count must be exact.
func TestRecorderKilledOften(t *testing.T) {
	w := newWorld(t)
	n := long(60_000)
	input := w.writeSeries("series.csv", n, 9)
	cmd := w.command("run", input, "--json", "--dir", "runs")
	out, err := os.Create(filepath.Join(w.dir, "out.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	killed, last := 0, 0
	for killed < 4 {
		pid := w.recorderPID(done)
		if pid == 0 {
			break
		}
		if pid != last {
			time.Sleep(20 * time.Millisecond) // let it do something: this is the moment of the kill, not a wait for a result
			kill(pid)
			killed, last = killed+1, pid
		}
		select {
		case <-done:
			pid = 0
		case <-time.After(time.Millisecond):
		}
		if pid == 0 {
			break
		}
	}
	<-done
	if killed < 2 {
		t.Errorf("only %d recorders were killed", killed)
	}
	w.idle()
	report := w.summary("verify", "latest", "--dir", "runs")
	c := report["completeness"].(map[string]any)
	if got := c["stored"].(float64) + c["lost"].(float64); got != float64(n) {
		t.Errorf("stored %v + lost %v = %v, want %d", c["stored"], c["lost"], got, n)
	}
	t.Logf("killed %d recorders: stored %v, lost %v", killed, c["stored"], c["lost"])
}
