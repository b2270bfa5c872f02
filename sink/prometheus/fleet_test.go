package prometheus

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestFleet scrapes a fleet beside no runs.
func TestFleet(t *testing.T) {
	f := Fleet{
		Up: true, Runs: map[string]int{"recording": 3, "silent": 0}, Hidden: 7, Stored: 1e18, Lost: 5, Heads: map[string]int{"verified": 2, "false": 1},
		Messages: 99, Look: 250 * time.Millisecond,
	}
	h := Handler(func() []*Sink { return nil }, nil, FleetCollector(func() Fleet { return f }))
	scrape := func() string {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		return w.Body.String()
	}
	text := scrape()
	for _, line := range []string{
		"usp_fleet_up 1", `usp_fleet_runs{state="recording"} 3`, `usp_fleet_runs{state="silent"} 0`, "usp_fleet_runs_hidden 7",
		"usp_fleet_reported_stored_records 1e+18", "usp_fleet_reported_lost_records 5", `usp_fleet_heads{verdict="verified"} 2`, `usp_fleet_heads{verdict="false"} 1`,
		"usp_fleet_stream_sequence 99", "usp_fleet_look_seconds 0.25",
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	for _, m := range fleetMetrics() {
		if !strings.Contains(text, "# HELP "+m.name+" "+m.help+"\n") {
			t.Errorf("%s is not shown, or not explained", m.name)
		}
	}
	f = Fleet{}
	if !strings.Contains(scrape(), "\nusp_fleet_up 0\n") {
		t.Error("a fleet that was not read is up")
	}
}
