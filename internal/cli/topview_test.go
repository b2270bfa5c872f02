package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/tui"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/sink/sinktest"
)

// topped is a run that a test records, and who looks at it.
type topped struct {
	*sinktest.Recording
	t     *testing.T
	app   *app
	watch *watcher
	now   time.Time
}

func newTopped(t *testing.T) *topped {
	r := sinktest.Record(t)
	w := &topped{Recording: r, t: t, now: time.Unix(1.8e9, 0)}
	w.app = &app{fs: vfs.OS(), cfg: &config.Loaded{}, now: func() time.Time { return w.now }}
	w.app.cfg.Run.Dir, w.app.cfg.Ring.Dir = filepath.Dir(r.Dir.Path()), t.TempDir()
	w.watch = &watcher{app: w.app}
	t.Cleanup(w.watch.close)
	return w
}

// look looks, and returns the run.
func (w *topped) look() tui.Run {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	v, err := w.watch.look()
	check(w.t, err)
	if len(v.Runs) != 1 {
		w.t.Fatalf("%d runs", len(v.Runs))
	}
	return v.Runs[0]
}

// TestTopView wants of a run what its files and its ring say, while it is recorded, over a roll and a rewind, and behind its end.
func TestTopView(t *testing.T) {
	w := newTopped(t)
	w.Emit(10)
	lock, err := vfs.OS().Lock(w.Dir.Path())
	check(t, err)
	r := w.look()
	if r.Status != tui.Recording || r.Step != 10 || r.Rate != nil || r.Error != "" || len(r.Values) != 7 || len(r.Values[0].History) != 10 {
		t.Errorf("of 10 records: %+v", r)
	}
	w.Emit(500)
	r = w.look()
	payload := sinktest.Payload(w.Schema, 510)
	for i, want := range []struct {
		name string
		flag bool
		now  tui.Number
	}{
		{"loss", false, number(payload[2], 1)}, {"small", false, number(payload[3], 1)}, {"count", false, tui.Number(fmt.Sprint(payload[4]))},
		{"delta", false, tui.Number(fmt.Sprint(int64(payload[5])))}, {"pair/0", false, number(payload[6], 1)}, {"pair/1", false, number(payload[7], 1)},
		{"flags", true, tui.Number(fmt.Sprint(payload[8]))},
	} {
		v := r.Values[i]
		if v.Name != want.name || v.Flag != want.flag || v.Now != want.now || len(v.History) != topRecords {
			t.Errorf("value %d is %s = %s, flag %v, of %d records; want %+v", i, v.Name, v.Now, v.Flag, len(v.History), want)
		}
	}
	first := asFloat(sinktest.Payload(w.Schema, 510-topRecords+1)[5], 3)
	if got := r.Values[3].History; got[0] != first || got[topRecords-1] != float64(int64(payload[5])) {
		t.Errorf("the history of delta goes from %g to %g", got[0], got[topRecords-1])
	}

	w.Lose(5)
	w.Roll()
	w.Emit(5)
	check(t, vfs.MkdirAll(vfs.OS(), w.Dir.Sinks(), 0o700))
	check(t, os.WriteFile(w.Dir.Sink("otlp"), []byte(`{"sink":"otlp","next":500,"fault":"refused"}`), 0o600))
	check(t, vfs.MkdirAll(vfs.OS(), w.Dir.Snapshots(), 0o700))
	for _, name := range []string{"a.snap", "b.snap", "c.orphan"} {
		check(t, os.WriteFile(w.Dir.Snapshot(name), nil, 0o600))
	}
	r = w.look()
	if r.Step != 520 || r.Snapshots != 2 || len(r.Sinks) != 1 || r.Sinks[0] != (tui.Sink{Name: "otlp", Lag: w.Frames() - 500, Fault: "refused"}) {
		t.Errorf("behind a roll: %+v", r)
	}
	if n := len(r.Values[0].History); n != topRecords {
		t.Errorf("behind a roll %d records are known, want %d", n, topRecords)
	}

	w.Rewind(300)
	w.Emit(2)
	if r = w.look(); r.Step != 302 || r.Generation != 1 {
		t.Errorf("behind a rewind: step %d of generation %d", r.Step, r.Generation)
	}
	w.Emit(1)
	check(t, lock.Close())
	if r = w.look(); r.Status != "unfinished" || r.Step != 303 || len(r.Values) != 7 {
		t.Errorf("behind its end: %+v", r)
	}
	if f := w.watch.runs[w.Dir.ID()].newest.follower; f != nil {
		t.Error("a file of a run that nobody records is held open")
	}
	check(t, os.Remove(w.Dir.Snapshot("a.snap")))
	if r = w.look(); r.Snapshots != 2 {
		t.Error("a run that nobody records is read at each look")
	}
	lock, err = vfs.OS().Lock(w.Dir.Path())
	check(t, err)
	w.Emit(1)
	if r = w.look(); r.Status != tui.Recording || r.Step != 304 || r.Snapshots != 1 {
		t.Errorf("recorded again: %+v", r)
	}
	check(t, os.Remove(w.Dir.Snapshot("b.snap")))
	check(t, lock.Close())
	if r = w.look(); r.Status != "unfinished" || r.Snapshots != 0 {
		t.Errorf("ended again: %+v", r)
	}
}

// TestTopRate wants the speed between two looks from the ring.
func TestTopRate(t *testing.T) {
	w := newTopped(t)
	lock, err := vfs.OS().Lock(w.Dir.Path())
	check(t, err)
	defer lock.Close()
	p, err := ring.Create(ring.Config{
		Path: filepath.Join(w.app.cfg.Ring.Dir, rundir.RingName(w.Dir.ID())), RunID: w.Dir.ID(), Schema: w.Schema.Text(), PayloadLen: 8 * w.Schema.Words(), Slots: 64,
	})
	check(t, err)
	defer p.Close(true)
	emit := func(n int) {
		for range n {
			p.Emit(sinktest.Payload(w.Schema, 1))
		}
	}
	emit(7)
	if r := w.look(); r.Rate != nil {
		t.Errorf("a rate of %g after one look", *r.Rate)
	}
	emit(30)
	if r := w.look(); r.Rate == nil || *r.Rate != 30 {
		t.Errorf("30 steps in a second are %+v", r)
	}
	if r := w.look(); r.Rate == nil || *r.Rate != 0 {
		t.Errorf("no steps in a second are %+v", r)
	}
	w.Rewind(1)
	emit(100)
	if r := w.look(); r.Rate != nil {
		t.Errorf("across generations the rate is %g", *r.Rate)
	}
}

// TestTopPrint wants one document, or lines, or a table, and nothing of a digest field in any.
func TestTopPrint(t *testing.T) {
	w := newTopped(t)
	w.Emit(3)
	var out bytes.Buffer
	w.app.out, w.app.stdout = &out, &out
	for _, asJSON := range []bool{true, false} {
		out.Reset()
		w.app.json = asJSON
		check(t, w.app.top(t.Context(), topFlags{interval: time.Second}))
		s := out.String()
		if asJSON {
			var v struct {
				Runs []struct {
					Step   uint64
					Values []struct{ Name string }
				}
			}
			check(t, json.Unmarshal([]byte(s), &v))
			if len(v.Runs) != 1 || v.Runs[0].Step != 3 || len(v.Runs[0].Values) != 7 {
				t.Errorf("got %s", s)
			}
		} else if lines := strings.Split(s, "\n"); len(lines) != 3 || !strings.HasPrefix(lines[1], w.Dir.ID()+"  unfinished  3 ") {
			t.Errorf("got %s", s)
		}
		if strings.Contains(s, "rho") {
			t.Errorf("a digest field is shown: %s", s)
		}
	}
	out.Reset()
	w.app.cfg.Run.Dir = t.TempDir()
	check(t, w.app.top(t.Context(), topFlags{interval: time.Second}))
	if !strings.Contains(out.String(), "no runs in ") {
		t.Errorf("of no runs: %s", out.String())
	}
}
