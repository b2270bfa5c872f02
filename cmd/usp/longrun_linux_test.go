package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// longRun writes the directory of a run of so many steps with so many metrics and a flag, as a recorder leaves it, without digests.
func longRun(t *testing.T, dir rundir.Dir, steps uint64, metrics int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	list := []record.Field{{Name: "flags", Class: record.Flag, Type: record.Uint64}}
	for i := range metrics {
		list = append(list, record.Field{Name: fmt.Sprintf("metric_%c", 'a'+i), Class: record.Metric})
	}
	schema, err := record.NewSchema("long.v1", list...)
	must(err)
	must(os.MkdirAll(dir.Telemetry(), 0o755))
	signer, key, err := digestlog.LoadOrCreateKey(vfs.OS(), filepath.Join(dir.Path(), "..", "key"), rand.NewChaCha8([32]byte{7}))
	must(err)
	log, err := digestlog.Open(dir.Digests(), digestlog.Options{RunID: dir.ID(), Signer: signer})
	must(err)
	entry := func(e digestlog.Entry) {
		_, err := log.Append(&e)
		must(err)
	}
	sum, err := rundir.WriteManifest(vfs.OS(), dir, rundir.Manifest{RunID: dir.ID(), Created: time.Now(), Schema: string(schema.Text()), Signer: key})
	must(err)
	entry(digestlog.Entry{Kind: digestlog.KindOpen, Manifest: sum, Schema: schema.Sum()})
	var w *segment.Writer
	seal := func() {
		s, err := w.Seal()
		must(err)
		entry(digestlog.Entry{Kind: digestlog.KindSeal, Stream: uint8(segment.KindTelemetry), Base: s.Base, Count: s.Count, Size: uint64(s.Size), SHA256: s.SHA256, Name: s.Name})
		w = nil
	}
	var frame []byte
	row := make([]uint64, 3+metrics)
	for n := range steps {
		if w != nil && w.Size() > 16<<20-2<<20 {
			seal()
		}
		if w == nil {
			meta := record.StreamMeta{Stored: n, Schema: schema}
			w, err = segment.Create(dir.Telemetry(), n, segment.Options{Kind: segment.KindTelemetry, RunID: dir.ID(), Meta: meta.Append(nil), Size: 16 << 20, Index: new(record.Summarizer)})
			must(err)
		}
		row[0], row[1], row[2] = n+1, (n+1)*1e6, 0
		if n%99_991 == 99_990 {
			row[2] = 4
		}
		for i := range metrics {
			row[3+i] = math.Float64bits(float64(n%uint64(1000*(i+1)))/1000 + float64(n*0x9e3779b97f4a7c15>>40)*1e-8)
		}
		frame = record.AppendRecord(frame[:0], 0, n, row)
		must(w.Append(frame))
		if n%4096 == 4095 {
			must(w.Flush())
		}
	}
	seal()
	entry(digestlog.Entry{Kind: digestlog.KindEnd, Status: digestlog.StatusClean, Emitted: steps, Stored: steps, EmittedKnown: true})
	must(log.Sync())
	_, err = log.SignHead()
	must(err)
	must(log.Close())
}

// served is a usp serve that was started.
type served struct {
	t   *testing.T
	cmd *exec.Cmd
	url string
}

func (w *world) serve(t *testing.T) *served {
	t.Helper()
	s := &served{t: t, cmd: w.command("serve", "--listen", "127.0.0.1:0", "--json")}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	s.cmd.Stderr = &errs
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var said struct{ URL string }
	if err != nil || json.Unmarshal(line, &said) != nil {
		_ = s.cmd.Process.Kill()
		t.Fatalf("%q, %v, %s", line, err, errs.String())
	}
	s.url = strings.TrimSuffix(said.URL, "/")
	return s
}

// page asks for one, and says how long it took.
func (s *served) page(path string) (body string, took time.Duration) {
	s.t.Helper()
	began := time.Now()
	resp, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if took = time.Since(began); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %d, %v, %.500s", path, resp.StatusCode, err, b)
	}
	return string(b), took
}

// most is the most memory that the server has had, in MiB.
func (s *served) most() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "VmHWM:")
	kb, _ := strconv.ParseFloat(strings.Fields(text)[0], 64)
	return kb / 1024
}

func (s *served) end() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		s.t.Fatal(err)
	}
	_ = s.cmd.Wait() // interrupted, as was asked
}

// TestTortureLongRun shows a run of 10⁸ steps (TORTURE_STEPS) that has no aggregates: the page is there at once and says what it lacks, it
// becomes whole, a second server has it so at once, and any range has its records. What everything took is logged.
func TestTortureLongRun(t *testing.T) {
	if os.Getenv("TORTURE") == "" {
		t.Skip("NOT CHECKED: a run of 10⁸ steps takes minutes and 5 GB of disk: make torture")
	}
	steps, err := strconv.ParseUint(cmp.Or(os.Getenv("TORTURE_STEPS"), "100000000"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		metrics int
		steps   uint64
	}{{1, steps}, {18, steps / 10}} {
		t.Run(fmt.Sprintf("%d steps, %d metrics", c.steps, c.metrics), func(t *testing.T) {
			const id = "20261129T000000-aaaaa"
			w := newWorld(t)
			dir := rundir.At(filepath.Join(w.dir, "runs", id))
			need := c.steps * uint64(60+8*c.metrics)
			if free, err := vfs.OS().Free(w.dir); err != nil || free < 2*need {
				t.Skipf("NOT CHECKED: a run of %d steps: %d bytes of disk are free, %d are wanted (%v)", c.steps, free, 2*need, err)
			}
			longRun(t, dir, c.steps, c.metrics)
			w.env = append(w.env, "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"))
			looked := look(t, w, id, c.steps)
			again := look(t, w, id, c.steps)
			t.Logf("nothing made: %s\nmade before: %s", looked, again)
		})
	}
}

// look starts a server, has it show a run, and returns what that took.
func look(t *testing.T, w *world, id string, steps uint64) string {
	t.Helper()
	s := w.serve(t)
	defer s.end()
	stored := fmt.Sprintf("%s stored, 1 to %d", thousands(steps), steps)
	body, first := s.page("/run/" + id)
	if !strings.Contains(body, stored) {
		t.Errorf("no %q in the first page: %.2000s", stored, body)
	}
	report := fmt.Sprintf("first page %v, whole: %v", first.Round(time.Millisecond), !strings.Contains(body, "prepared for drawing"))
	began, slowest := time.Now(), time.Duration(0)
	for pages := 0; strings.Contains(body, "prepared for drawing"); pages++ {
		var took time.Duration
		body, took = s.page("/run/" + id)
		slowest = max(slowest, took)
		time.Sleep(100 * time.Millisecond)
	}
	report += fmt.Sprintf("; whole after %v, pages until then at most %v", time.Since(began).Round(time.Millisecond), slowest.Round(time.Millisecond))
	if !strings.Contains(body, stored) {
		t.Errorf("no %q in the page: %.2000s", stored, body)
	}
	slowest = 0
	for n := steps; n >= 10; n /= 7 {
		from := (steps - n) / 3
		body, took := s.page(fmt.Sprintf("/run/%s?from=%d&until=%d", id, from+1, from+n))
		slowest = max(slowest, took)
		if strings.Contains(body, "a part of its records") || !strings.Contains(body, fmt.Sprintf(`data-from="%d"`, from+1)) {
			t.Errorf("%d steps from %d: %.2000s", n, from+1, body)
		}
		report += fmt.Sprintf("\n  %d steps in %v", n, took.Round(100*time.Microsecond))
	}
	return report + fmt.Sprintf("\n  any range at most %v, memory %.0f MiB", slowest.Round(time.Millisecond), s.most())
}

func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}
