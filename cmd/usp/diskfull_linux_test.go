package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a small file system in memory. Where that is not allowed the test runs once more in a name space in
// which it is, and the result is returned as done.
func smallDisk(t testing.TB, size string) (dir string, done bool) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount("usp-test", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0777,size="+size)
	if err == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		return dir, false
	}
	const again = "USP_TEST_IN_NAMESPACE"
	if os.Getenv(again) != "" || exec.Command("unshare", "-rm", "true").Run() != nil {
		t.Skipf("NOT CHECKED: no file system can be mounted here (%v), and no name space made: a full disk cannot be tested", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-rm", self, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), again+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("in a name space of its own:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	return "", true
}

// fill takes all the space that is left.
func fill(t testing.TB, dir string) (ballast string) {
	t.Helper()
	ballast = filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size >>= 1 {
		for err = error(nil); err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return ballast
}

// times compares the steps with and without a fault. Figures are for the reader: on a machine that does other things no
// test can judge them, but for a step that has waited.
func times(t testing.TB, what string, before, during phase) {
	t.Helper()
	t.Logf("steps before and %s: median %v and %v, p99 %v and %v (%.2f), longest %v and %v", what, time.Duration(before.P50), time.Duration(during.P50),
		time.Duration(before.P99), time.Duration(during.P99), float64(during.P99)/float64(before.P99), time.Duration(before.Max), time.Duration(during.Max))
	if during.Max > int64(time.Second) {
		t.Errorf("%s: a step took %v", what, time.Duration(during.Max))
	}
}

// saidOnce wants that the recorder said what has happened, and did not go on about it.
func saidOnce(t testing.TB, l *loop, word string) {
	t.Helper()
	said, lines := l.stderr.String(), 0
	for line := range strings.Lines(said) {
		if strings.Contains(line, word) {
			lines++
		}
	}
	if lines == 0 || strings.Count(said, "\n") > 20 {
		t.Errorf("%q was said %d times, %d lines in all:\n%.4000s", word, lines, strings.Count(said, "\n"), said)
	}
}

// wholeAgain wants a closed run that verifies, in which every record is stored or was refused by storage, and the last
// ones are stored.
func wholeAgain(t testing.TB, dir string, e ending) {
	t.Helper()
	if e.Error != "" {
		t.Errorf("the end of the run: %s", e.Error)
	}
	v, err := verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := v.Completeness
	if v.Exit != 0 || !c.Closed || len(c.Generations) != 1 {
		t.Fatalf("verify exits with %d\n%s", v.Exit, v.text)
	}
	g := c.Generations[0]
	s := e.Summary
	if !g.EmittedKnown || g.Stored+g.Lost != g.Emitted || g.Lost == 0 || s.Emitted != g.Emitted || s.Stored != g.Stored || s.Lost != g.Lost {
		t.Errorf("the run is said to be %+v, and is %+v", s, g)
	}
	if err := g.lostOnlyTo("storage"); err != nil {
		t.Errorf("%v\n%s", err, v.text)
	}
	for _, l := range g.LostRanges {
		if l.To >= g.Emitted {
			t.Errorf("the last records are lost: %+v", l)
		}
	}
	t.Logf("emitted %d, stored %d, lost %d in %d ranges, %d digests missing", g.Emitted, g.Stored, g.Lost, len(g.LostRanges), c.DigestsMissing)
}

const faultSteps = 40_000 // of 20 µs: more than what the recorder holds in memory until storage is well

// untilLost has the loop take quick steps until a recorder whose storage takes nothing has taken more records than it may hold. One that others
// leave little of a processor is late to take them; until then the ring has them, and none is lost.
func (w *world) untilLost(l *loop) phase {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; l.steps(20, time.Millisecond) { // half the pace in all, which the ring holds for two seconds
		p := l.steps(faultSteps/20, 0)
		if taken := w.published().Position; taken > p.Stored+faultSteps/2 {
			return p
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("storage took nothing, and nothing is lost\n%s", l.stderr.String())
		}
	}
}

// skipRace leaves a test out, aloud, whose steps the race detector would make longer than what it measures.
func skipRace(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("NOT CHECKED: this test measures steps of 20 µs: without -race")
	}
}

// TestDiskFull fills the disk under a recorder in the middle of a run, and gives the space back.
func TestDiskFull(t *testing.T) {
	skipRace(t)
	disk, done := smallDisk(t, "64m")
	if done {
		return
	}
	w := newWorld(t)
	l := w.startLoop(disk, nil)
	before := l.steps(faultSteps, 0)
	l.caughtUp()
	ballast := fill(t, disk)
	during := l.steps(faultSteps, 0)
	full := w.untilLost(l)
	times(t, "with the disk full", before, during)
	shown := w.summary("show", l.Dir)["live"].(map[string]any)
	if shown["fault"] != "no space left on device" || shown["held"].(float64) == 0 || shown["emitted"].(float64) < 2*faultSteps {
		t.Errorf("usp show: %v", shown)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.until("stored again", func(p phase) bool { return p.Stored > full.Stored+100 })
	after := l.caughtUp()
	if after.Snapshots <= before.Snapshots && l.steps(4000, 0).Snapshots <= before.Snapshots {
		l.until("a snapshot again", func(p phase) bool { return p.Snapshots > before.Snapshots })
	}
	e := l.close()
	wholeAgain(t, l.Dir, e)
	saidOnce(t, l, "no space left")
}

// BenchmarkStepDiskFull is the ratio of step times with a full disk and with space, in rounds of both.
func BenchmarkStepDiskFull(b *testing.B) {
	disk, done := smallDisk(b, "512m")
	if done {
		return
	}
	w := newWorld(b)
	l := w.startLoop(disk, nil)
	var p50, p99 []float64
	for b.Loop() {
		l.caughtUp()
		space := l.steps(faultSteps, 0)
		l.caughtUp()
		ballast := fill(b, disk)
		full := l.steps(faultSteps, 0)
		if err := os.Remove(ballast); err != nil {
			b.Fatal(err)
		}
		p50 = append(p50, float64(full.P50)/float64(space.P50))
		p99 = append(p99, float64(full.P99)/float64(space.P99))
	}
	slices.Sort(p50)
	slices.Sort(p99)
	b.ReportMetric(p50[len(p50)/2], "p50-full/space")
	b.ReportMetric(p99[len(p99)/2], "p99-full/space")
	if e := l.close(); e.Error != "" {
		b.Error(e.Error)
	}
}

// TestDirectoryGone takes the run directory away from under a recorder, and gives it back.
func TestDirectoryGone(t *testing.T) {
	skipRace(t)
	w := newWorld(t)
	l := w.startLoop(filepath.Join(w.dir, "runs"), nil)
	before := l.steps(faultSteps/4, 0)
	l.caughtUp()
	if err := os.Rename(l.Dir, l.Dir+".away"); err != nil {
		t.Fatal(err)
	}
	during := l.steps(faultSteps, 0)
	gone := w.untilLost(l)
	times(t, "without the directory", before, during)
	if err := os.Rename(l.Dir+".away", l.Dir); err != nil {
		t.Fatal(err)
	}
	l.until("stored again", func(p phase) bool { return p.Stored > gone.Stored+100 })
	wholeAgain(t, l.Dir, l.close())
	saidOnce(t, l, "no such file")
}

// TestDirectoryRemoved removes the run directory for good: the loop goes on, and is told at its end.
func TestDirectoryRemoved(t *testing.T) {
	skipRace(t)
	w := newWorld(t)
	l := w.startLoop(filepath.Join(w.dir, "runs"), nil)
	before := l.steps(faultSteps/4, 0)
	l.caughtUp()
	// The recorder may create a file in a directory that has just been emptied; who removes it then tries again.
	err := os.RemoveAll(l.Dir)
	for range 20 {
		if !errors.Is(err, syscall.ENOTEMPTY) {
			break
		}
		err = os.RemoveAll(l.Dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	during := l.steps(faultSteps/4, 0)
	times(t, "without the directory", before, during)
	e := l.close()
	t.Logf("the end took %v: %q, %+v", e.Took, e.Error, e.Summary)
	if e.Took > 30*time.Second {
		t.Error("the loop had to wait at its end")
	}
	if s := e.Summary; s.Stored+s.Lost > s.Emitted || e.Error == "" && s.Stored+s.Lost != s.Emitted {
		t.Error("the summary counts records that there were not, or not all there were")
	}
	if e.Error != "" {
		return // there is nothing left to judge, and the loop knows
	}
	if v, err := verify(l.Dir); err != nil || v.Exit != 0 || v.balanced() != nil {
		t.Errorf("the run is said to have ended well; verify exits with %d, %v\n%s", v.Exit, err, v.text)
	}
}

// TestPermissionLost takes the right to write the run directory away from a recorder, and gives it back. As root, whom no
// mode keeps out, it runs loop and recorder as nobody.
func TestPermissionLost(t *testing.T) {
	skipRace(t)
	w := newWorld(t)
	runs := filepath.Join(w.dir, "runs")
	if err := os.Mkdir(runs, 0o755); err != nil {
		t.Fatal(err)
	}
	var as *syscall.Credential
	if os.Geteuid() == 0 {
		as = &syscall.Credential{Uid: 65534, Gid: 65534}
		w.readableBy(65534, runs, w.ring)
	}
	l := w.startLoop(runs, as)
	before := l.steps(faultSteps/4, 0)
	l.caughtUp()
	dirs := []string{l.Dir, filepath.Join(l.Dir, "telemetry"), filepath.Join(l.Dir, "digests"), filepath.Join(l.Dir, "snapshots")}
	mode := func(m os.FileMode) {
		for _, d := range dirs {
			if err := os.Chmod(d, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	mode(0o555)
	during := l.steps(faultSteps, 0)
	denied := w.untilLost(l)
	times(t, "without the right to write", before, during)
	mode(0o755)
	l.until("stored again", func(p phase) bool { return p.Stored > denied.Stored+100 })
	wholeAgain(t, l.Dir, l.close())
	saidOnce(t, l, "permission denied")
}

// readableBy lets another user run what is in the test's directories, and write those that are named.
func (w *world) readableBy(uid int, owned ...string) {
	w.t.Helper()
	for _, dir := range owned {
		if err := os.Chown(dir, uid, uid); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, path := range append(owned, w.dir, w.bin) {
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				w.t.Fatal(err)
			}
			if info.Mode().Perm()&0o011 != 0o011 {
				if err := os.Chmod(dir, info.Mode()|0o011); err != nil {
					w.t.Fatal(fmt.Errorf("let another user in: %w", err))
				}
			}
		}
	}
}
