package web

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// streamed is a NATS server, a machine that records, and one that has no runs and shows the fleet.
type streamed struct {
	*place // the machine that records; URL is of the other one
	nats   *server.Server
	signer string // of the first run
	id     string // the first run, which has ended
}

func newStreamed(t testing.TB) *streamed {
	t.Helper()
	n, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir()})
	must(t, err)
	n.Start()
	t.Cleanup(func() { n.Shutdown(); n.WaitForShutdown() })
	if !n.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	s := &streamed{place: &place{t: t, dir: t.TempDir(), usp: build(t)}, nats: n}
	must(t, os.WriteFile(filepath.Join(s.dir, "usp.toml"), []byte("[jetstream]\nurl = \""+n.ClientURL()+"\"\n[sinks]\nsync_interval = \"50ms\"\n[digest]\nhead_interval = \"100ms\"\n"), 0o600))
	s.id = s.run()
	m, _, err := rundir.ReadManifest(vfs.OS(), rundir.At(filepath.Join(s.dir, "runs", s.id)), 0)
	must(t, err)
	s.signer = m.Signer
	shows := t.TempDir()
	must(t, os.WriteFile(filepath.Join(shows, "usp.toml"), []byte("[serve]\nfleet_keys = [\""+s.signer+"\"]\n"), 0o600))
	s.Process, err = Serve(s.usp, shows, "--fleet", n.ClientURL())
	must(t, err)
	t.Cleanup(func() {
		if code, err := s.End(); code != 130 || err != nil {
			t.Errorf("usp serve ended with %d, %v", code, err)
		}
	})
	return s
}

// publish writes to the stream as anybody may who has the right to.
func (s *streamed) publish(subject, kind string, fields map[string]string, payload []byte) {
	s.t.Helper()
	nc, err := nats.Connect(s.nats.ClientURL())
	must(s.t, err)
	defer nc.Close()
	sum := sha256.Sum256(payload)
	h := nats.Header{"Usp-Version": {"1"}, "Usp-Kind": {kind}, "Usp-Sha256": {hex.EncodeToString(sum[:])}, "Usp-Chain": {strings.Repeat("0", 64)}, "Usp-Schema": {strings.Repeat("0", 64)}}
	for _, name := range []string{"First", "Next", "Generation", "Records", "Lost", "Step", "Time", "Segment"} {
		h["Usp-"+name] = []string{"0"}
	}
	for name, v := range fields {
		h["Usp-"+name] = []string{v}
	}
	_, err = nc.RequestMsg(&nats.Msg{Subject: subject, Header: h, Data: payload}, 5*time.Second)
	must(s.t, err)
}

// row is the line of a run in the list.
func row(id string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("tbody tr")].find(e => e.querySelector("th").innerText == %q)`, id)
}

func TestFleet(t *testing.T) {
	s := newStreamed(t)
	host, err := os.Hostname()
	must(t, err)
	tab := browser(t)
	do(t, tab, chromedp.Navigate(s.URL), chromedp.Click(`//a[text()="Fleet"]`), chromedp.WaitVisible(chromedp.CSS("tbody a")))
	text := ask[string](t, tab, row(s.id)+".innerText")
	for _, want := range []string{"clean", host, "usp run", "309", "verified"} {
		if !strings.Contains(text, want) {
			t.Errorf("the line %q has no %q", text, want)
		}
	}

	// A run that begins is listed, and found by its state.
	l := s.live()
	l.feed(50)
	until(t, tab, `[...document.querySelectorAll("tbody .status")].some(e => e.innerText == "recording")`)
	do(t, tab, chromedp.SendKeys(chromedp.CSS("#state"), "recording"), chromedp.Click("//main//button[text()='Show']"))
	until(t, tab, `location.search.includes("state=recording")`)
	until(t, tab, `document.querySelectorAll("tbody tr").length == 1`)
	do(t, tab, chromedp.Click(chromedp.CSS("tbody a")), chromedp.WaitVisible(chromedp.CSS("[data-part=fleet-facts]")))
	for _, expression := range []string{
		`document.querySelector("[data-part=chart-cusum] svg .line.threshold") != null`,
		`document.querySelector("[data-part=chart-entropy] svg") != null`,
		`document.querySelector("[data-part=chart-ot-cost] svg") != null`,
		`document.querySelectorAll("figure svg").length > 10`,
	} {
		if !ask[bool](t, tab, expression) {
			t.Errorf("not so: %s", expression)
		}
	}

	// A record is on the page within a second of its row, over the recorder, the sink, the server and the stream.
	stored := func() string {
		return fmt.Sprintf(`[...document.querySelectorAll("dt")].find(e => e.innerText == "Stored").nextElementSibling.innerText == "%d" && document.querySelector("[data-chart] svg").dataset.until == "%d"`, l.rows, l.rows)
	}
	until(t, tab, stored())
	until(t, tab, `document.querySelector("[data-live-state]").innerText == "Following."`)
	follows(t, func() time.Duration {
		l.feed(1)
		return until(t, tab, stored())
	})
	// The head comes there though no record does, and says how much it is over.
	until(t, tab, fmt.Sprintf(`(document.querySelector("[data-part=fleet-facts]").innerText.match(/verified: (\d+) entries/) || [0, 0])[1] > %d`, l.rows))
	must(t, l.in.Close())
	until(t, tab, `document.querySelector("[data-live-state]").innerText.includes("has ended: clean")`)
	until(t, tab, `document.querySelector("[data-part=fleet-facts] .status").innerText == "clean"`)

	// Counts that nothing vouches for do not look as if something did.
	s.publish("usp.telemetry."+strings.ReplaceAll(s.id, ".", "%2E"), "frames", map[string]string{"Records": "18446744073709551615", "Lost": "7"}, nil)
	do(t, tab, chromedp.Navigate(s.URL+"fleet/run/"+s.id), chromedp.WaitVisible(chromedp.CSS("[data-part=fleet-facts]")))
	until(t, tab, `document.querySelector("[data-part=fleet-facts]").innerText.includes("All else here is what the stream says.")`)
}

func TestFleetWithoutScript(t *testing.T) {
	s := newStreamed(t)
	tab := browser(t)
	_, err := chromedp.Call(tab, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	must(t, err)
	do(t, tab, chromedp.Navigate(s.URL+"fleet"), chromedp.SendKeys(chromedp.CSS("#q"), strings.ToUpper(s.id)+kb.Enter), chromedp.WaitVisible(chromedp.CSS(`input[value]`)))
	do(t, tab, chromedp.Click(`//a[text()="`+s.id+`"]`), chromedp.WaitVisible(chromedp.CSS(`[data-part="chart-cusum"] svg`)),
		chromedp.SendKeys(chromedp.CSS("#from"), "20"), chromedp.SendKeys(chromedp.CSS("#until"), "40"+kb.Enter), chromedp.WaitVisible(chromedp.CSS(`svg[data-from="20"][data-until="40"]`)),
		chromedp.Click(chromedp.CSS("summary")), chromedp.WaitVisible(chromedp.CSS("details tbody tr")),
		chromedp.Navigate(s.URL+"fleet?q=nobody"), chromedp.WaitVisible(chromedp.CSS("h1")), chromedp.WaitNotVisible(chromedp.CSS("[data-live-pause]")))
	found, err := chromedp.Run(tab, chromedp.Text(chromedp.CSS("[data-part=fleet-rows]")))
	must(t, err)
	if !strings.Contains(found, "no such run") {
		t.Errorf("a filter that leaves nothing: %q", found)
	}
}

// What somebody writes to the stream is text on every page, and in a stream of events.
func TestFleetHostile(t *testing.T) {
	s := newStreamed(t)
	const name = `x"><img src=x onerror=alert(1)><svg onload=alert(2)>';alert(3);'`
	schema, err := record.NewSchema("x", record.Field{Name: "a", Class: record.Metric, Type: record.Float64, Len: 1, Unit: "<b>"})
	must(t, err)
	s.publish("usp.telemetry.evil", "schema", map[string]string{"Host": url.PathEscape(name), "Program": url.PathEscape(name)}, schema.Text())
	s.publish("usp.telemetry.evil", "frames", map[string]string{"Step": "18446744073709551615", "Time": "-1", "Records": "5", "Generation": "4294967295"}, []byte(name))
	s.publish("usp.audit.evil", "head", map[string]string{"Status": name, "First": "7", "Next": "7"}, []byte(name+"\n\n— "+name+" AAAA\n"))
	s.publish("usp.telemetry.worse", name, nil, nil)
	s.publish("usp.telemetry.drawn", "schema", map[string]string{"Host": url.PathEscape(name), "Program": url.PathEscape(name)}, schema.Text())
	frame := record.AppendRecord(nil, 0, 0, []uint64{1, 0, math.Float64bits(math.Inf(1))})
	s.publish("usp.telemetry.drawn", "frames", map[string]string{"Next": "1", "Records": "1", "Step": "1"}, append(binary.LittleEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	s.publish("usp.audit.-", "entries", map[string]string{"Next": "18446744073709551615"}, []byte{255, 255, 255, 255})
	tab := browser(t)
	do(t, tab, chromedp.Navigate(s.URL+"fleet"), chromedp.WaitVisible(chromedp.CSS("tbody a")))
	until(t, tab, `document.querySelector("[data-live-state]").innerText == "Following."`)
	until(t, tab, row("worse")+` != null`)
	time.Sleep(1200 * time.Millisecond) // of which the events are
	if text := ask[string](t, tab, row("evil")+".innerText"); strings.Contains(text, "verified:") || !strings.Contains(text, "false:") {
		t.Errorf("the forged head is %q", text)
	}
	if text := ask[string](t, tab, row("drawn")+".children[2].textContent"); text != name {
		t.Errorf("the machine of the run that is drawn is %q, want %q", text, name)
	}
	for _, path := range []string{"fleet", "fleet/run/drawn", "fleet/run/evil", "fleet/run/worse", "fleet/run/-", "fleet?q=" + escape(name), "fleet?state=" + escape(name) + "&page=99999999999"} {
		do(t, tab, chromedp.Navigate(s.URL+path), chromedp.WaitVisible(chromedp.CSS("h1")))
		time.Sleep(600 * time.Millisecond)
		if n := ask[int](t, tab, `document.querySelectorAll("img, [onload], [onerror], main b").length`); n != 0 {
			t.Errorf("%s: %d elements were made", path, n)
		}
	}

	// A run that is as it should be beside it is shown all the same, and what is asked for is bounded.
	do(t, tab, chromedp.Navigate(s.URL+"fleet/run/"+s.id), chromedp.WaitVisible(chromedp.CSS(`[data-part="chart-cusum"] svg`)))
	for path, want := range map[string]int{"fleet/run/nobody": 404, "fleet/run/" + escape(name): 404, "fleet/events/nobody": 404, "fleet/run/" + s.id + "?from=9&until=1": 400, "fleet/run/" + s.id + "?from=%zz": 400, "fleet": 200, "metrics": 200, "readyz": 503} {
		r, err := http.Get(s.URL + path)
		must(t, err)
		b, err := io.ReadAll(r.Body)
		must(t, errors.Join(err, r.Body.Close()))
		if r.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, r.Status, want)
		}
		if path == "metrics" && !regexp.MustCompile(`(?m)^usp_fleet_heads\{verdict="verified"\} 1$`).Match(b) {
			t.Errorf("metrics: %s", b)
		}
	}
}

func TestFleetAccessible(t *testing.T) {
	s := newStreamed(t)
	s.publish("usp.telemetry.worse", "hello", nil, nil)
	wantAccessible(t, []string{s.URL + "fleet", s.URL + "fleet?q=nobody", s.URL + "fleet/run/" + s.id, s.URL + "fleet/run/worse"})
}

// A sink that falls behind shows on its run's page, in frames and since when.
func TestSinkLag(t *testing.T) {
	s := newStreamed(t)
	here, err := Serve(s.usp, s.dir)
	must(t, err)
	t.Cleanup(func() { _, _ = here.End() })
	l := s.live()
	l.feed(50)
	tab := browser(t)
	until := func(expression string) { t.Helper(); until(t, tab, expression) }
	do(t, tab, chromedp.Navigate(here.URL+"run/latest"), chromedp.WaitVisible(chromedp.CSS("[data-part=sinks]")))
	until(`document.querySelector("[data-part=sinks] tbody tr") != null`)
	cell := func(n int) string {
		return fmt.Sprintf(`document.querySelector("[data-part=sinks] tbody tr").children[%d].innerText`, n)
	}
	until(cell(1) + ` == "0" && ` + cell(2) + ` == "0 s"`)
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	l.feed(7)
	until(cell(1) + ` == "7"`)
	until(`/^[1-9]\d* s$/.test(` + cell(2) + `)`)
}
