package cli

import (
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestRunMetrics: a run is shown while it is recorded, with what is new at each scrape, and for some minutes after its end.
func TestRunMetrics(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(10)
	now := time.Unix(1_700_000_000, 0)
	cfg := &config.Loaded{Config: config.Default()}
	cfg.Run.Dir, cfg.Ring.Dir = filepath.Dir(r.Dir.Path()), t.TempDir()
	a := &app{fs: vfs.OS(), cfg: cfg, err: t.Output(), now: func() time.Time { return now }}
	m := a.runMetrics()
	scrape := func() string {
		t.Helper()
		w := httptest.NewRecorder()
		m.handler(nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	want := func(what, line string, there bool) {
		t.Helper()
		got := scrape()
		if strings.Contains(got, line) != there {
			t.Errorf("%s: %q is there: %v\n%.2000s", what, line, !there, got)
		}
		for _, c := range sinktest.Canaries() {
			if strings.Contains(got, c) {
				t.Errorf("%s: %s is in the metrics", what, c)
			}
		}
	}
	stored := `usp_records_stored_total{run="` + r.Dir.ID() + `"} `
	want("not recorded", stored, false)
	lock, err := vfs.OS().Lock(r.Dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	want("recorded", stored+"10\n", true)
	r.Emit(5)
	want("more of it", stored+"15\n", true)
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	r.Emit(1)
	now = now.Add(endedFor)
	want("ended", stored+"16\n", true)
	now = now.Add(time.Second)
	want("ended long ago", stored, false)
}
