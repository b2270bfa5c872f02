package cli

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestPrometheusHost asks the sink's own server under names that a page elsewhere could have made lead here.
func TestPrometheusHost(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(3)
	cfg := &config.Loaded{Config: config.Default()}
	cfg.Prometheus.Listen, cfg.Log.Level, cfg.Ring.Dir = "127.0.0.1:0", "info", t.TempDir()
	var said bytes.Buffer
	a := &app{fs: vfs.OS(), cfg: cfg, err: &said, now: time.Now}
	s, err := a.openPrometheus(r.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Bring(t.Context(), sink.Options{Dir: r.Dir, Name: "x"}, leftOpen{s}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // the test is over
	url := regexp.MustCompile(`http://127\S*/metrics`).FindString(said.String())
	if url == "" {
		t.Fatalf("it does not say where it listens: %s", &said)
	}
	for host, want := range map[string]int{"": 200, "localhost:9464": 200, "[::1]:9464": 200, "127.0.0.1": 200, "evil.example": 421, "evil.example:9464": 421, "127.0.0.1.evil.example": 421, "10.0.0.1": 421} {
		for _, method := range []string{"GET", "POST"} {
			q, err := http.NewRequest(method, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			q.Host = host
			resp, err := http.DefaultClient.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close() // read
			if method == "POST" {
				if resp.StatusCode != http.StatusMethodNotAllowed {
					t.Errorf("POST under %q: %d", host, resp.StatusCode)
				}
				continue
			}
			if resp.StatusCode != want || strings.Contains(string(b), "usp_step") != (want == 200) {
				t.Errorf("under %q: %d, want %d: %.200s", host, resp.StatusCode, want, b)
			}
		}
	}
}

// leftOpen is a sink that is closed by somebody else.
type leftOpen struct{ sink.Sink }

func (leftOpen) Close() error { return nil }
