package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var built struct {
	once sync.Once
	dir  string
	usp  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func build(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "usp-web-"); built.err == nil {
			built.usp, built.err = Build(context.Background(), built.dir)
		}
	})
	must(t, built.err)
	return built.usp
}

// place is a directory with runs and a server that shows them.
type place struct {
	t   testing.TB
	dir string
	usp string
	*Process
}

func newPlace(t testing.TB, args ...string) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir(), usp: build(t)}
	must(t, os.WriteFile(filepath.Join(p.dir, "usp.toml"), []byte("[telemetry]\nweights = true\n"), 0o600))
	must(t, os.Mkdir(filepath.Join(p.dir, "runs"), 0o700))
	var err error
	p.Process, err = Serve(p.usp, p.dir, args...)
	must(t, err)
	t.Cleanup(func() {
		if code, err := p.End(); code != 130 || err != nil {
			t.Errorf("usp serve ended with %d, %v", code, err)
		}
	})
	return p
}

// run records a series, and returns the id.
func (p *place) run(args ...string) string {
	p.t.Helper()
	cmd := exec.Command(p.usp, append([]string{"run", "--json", "-q"}, args...)...)
	cmd.Dir = p.dir
	out, err := cmd.Output()
	must(p.t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var sum struct {
		RunID string `json:"run_id"`
	}
	must(p.t, json.Unmarshal([]byte(lines[len(lines)-1]), &sum))
	return sum.RunID
}

// browser is a tab in which nothing may go wrong that the page is to blame for.
func browser(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	tab, end, err := Browser(ctx)
	if errors.Is(err, ErrNoBrowser) {
		t.Skipf("NOT CHECKED in a browser: %v", err)
	}
	must(t, err)
	console, dialogs := chromedp.Console(tab), chromedp.Events(tab, page.JavascriptDialogOpening)
	var done sync.WaitGroup
	done.Go(func() {
		for m, err := range console {
			if err != nil {
				return
			}
			if (m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleException) && !strings.Contains(m.URL, "favicon") {
				t.Errorf("the console says: %s (%s)", m.Text, m.URL)
			}
		}
	})
	done.Go(func() {
		for e, err := range dialogs {
			if err != nil {
				return
			}
			t.Errorf("a dialog: %s", e.Message)
			if _, err := chromedp.Call(tab, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true}); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { end(); done.Wait() })
	return tab
}

// do goes through steps. A page that is followed live is replaced in pieces, also between the finding of a node and the
// looking at it; such a step has done nothing and is done again.
func do(t testing.TB, tab context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	for _, step := range steps {
		must(t, doOne(tab, step))
	}
}

func doOne(tab context.Context, step chromedp.Action[chromedp.Void]) error {
	err := chromedp.Do(tab, step)
	for tries := 0; err != nil && tries < 5 && strings.Contains(err.Error(), "node with given id"); tries++ {
		err = chromedp.Do(tab, step)
	}
	return err
}

// Only a step whose node was replaced is done again, and not for ever.
func TestStepAgain(t *testing.T) {
	tab := browser(t)
	for _, tt := range []struct {
		text         string
		fails, calls int
	}{{"Could not find node with given id (-32000)", 2, 3}, {"No node with given id found (-32000)", 99, 6}, {"the page is gone", 1, 1}} {
		calls := 0
		err := doOne(tab, func(context.Context, *chromedp.Target) (v chromedp.Void, err error) {
			if calls++; calls <= tt.fails {
				err = errors.New(tt.text)
			}
			return v, err
		})
		if calls != tt.calls || (err == nil) != (calls > tt.fails) {
			t.Errorf("%q, %d times: done %d times, %v", tt.text, tt.fails, calls, err)
		}
	}
}

// ask evaluates an expression.
func ask[T any](t testing.TB, tab context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(tab, chromedp.Evaluate[T](expression))
	must(t, err)
	return v
}

// until waits for an expression to be true, and says how long it took.
func until(t testing.TB, tab context.Context, expression string) time.Duration {
	t.Helper()
	began := time.Now()
	for !ask[bool](t, tab, expression) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("still not: %s\n%.3000s", expression, ask[string](t, tab, "document.body.innerText"))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// follows wants ten records in a row to be shown within a second of their rows. What else the machine has to do may be in the way of
// one of them: there are three rounds.
func follows(t testing.TB, shown func() time.Duration) {
	t.Helper()
	for range 3 {
		worst := time.Duration(0)
		for range 10 {
			worst = max(worst, shown())
		}
		t.Logf("a record is shown at most %v after its row was written", worst)
		if worst <= time.Second {
			return
		}
	}
	t.Error("records are shown too late")
}

func TestRenders(t *testing.T) {
	p := newPlace(t)
	id := p.run()
	tab := browser(t)
	do(t, tab, chromedp.Navigate(p.URL), chromedp.Click(`//a[text()="`+id+`"]`), chromedp.WaitVisible(chromedp.CSS(`[data-part="chart-weights"] svg`)))
	for expression, want := range map[string]bool{
		`document.title.includes("` + id + `")`: true,
		// what is drawn is there, in its colours
		`document.querySelectorAll("figure svg").length > 15`: true,
		`[...document.querySelectorAll("svg .line.c1")].some(e => e.getBBox().width > 500 && e.getBBox().height > 20 && getComputedStyle(e).stroke != "none")`: true,
		`document.querySelectorAll("svg .area").length == 8`:                                                                                                                        true,
		`document.querySelectorAll("svg .alarmtip").length == 3`:                                                                                                                    true,
		`[...document.querySelectorAll("svg")].every(e => e.querySelector("title").textContent && e.querySelector("desc").textContent)`:                                             true,
		`getComputedStyle(document.body).fontFamily.includes("system-ui")`:                                                                                                          true, // the style sheet is there
		`document.querySelectorAll("style, [style], script:not([src])").length == 0`:                                                                                                true,
		`performance.getEntriesByType("resource").every(e => e.name.startsWith("` + p.URL + `"))`:                                                                                   true,
		`document.querySelector("[data-live]").hidden`:                                                                                                                              true, // it has ended
		`new Set([...document.querySelectorAll("[id]")].map(e => e.id)).size == document.querySelectorAll("[id]").length`:                                                           true,
		`document.documentElement.scrollWidth <= innerWidth`:                                                                                                                        true,
		`[...document.querySelectorAll("svg text")].every(e => { const b = e.getBBox(), v = e.ownerSVGElement.viewBox.baseVal; return b.x >= 0 && b.x + b.width <= v.width + 12 })`: true,
	} {
		if ask[bool](t, tab, expression) != want {
			t.Errorf("not %v: %s", want, expression)
		}
	}
	do(t, tab, chromedp.EmulateViewport(360, 700))
	if !ask[bool](t, tab, `document.documentElement.scrollWidth <= innerWidth`) {
		t.Error("on a small screen the page scrolls sideways")
	}
}

// live is usp run that reads a pipe.
type live struct {
	t    testing.TB
	in   io.WriteCloser
	rows int
}

func (p *place) live() *live {
	p.t.Helper()
	cmd := exec.Command(p.usp, "run", "-q", "-")
	cmd.Dir = p.dir
	in, err := cmd.StdinPipe()
	must(p.t, err)
	must(p.t, cmd.Start())
	p.t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("usp run: %v", err)
		}
	})
	l := &live{t: p.t, in: in}
	_, err = io.WriteString(in, "time,value\n")
	must(p.t, err)
	return l
}

// feed writes so many rows.
func (l *live) feed(n int) {
	l.t.Helper()
	for range n {
		l.rows++
		_, err := fmt.Fprintf(l.in, "%d,%d\n", l.rows*1_000_000_000, (l.rows*7919)%101)
		must(l.t, err)
	}
}

// A record is on the page within a second of its row, at each of several tries.
func TestFollows(t *testing.T) {
	p := newPlace(t)
	l := p.live()
	l.feed(50)
	tab := browser(t)
	stored := func() string {
		return fmt.Sprintf(`document.querySelector("[data-part=facts]").innerText.includes("%d stored")`, l.rows)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		do(t, tab, chromedp.Navigate(p.URL))
		if ask[bool](t, tab, `document.querySelector("tbody a") != null`) {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("the run is not listed")
		}
	}
	do(t, tab, chromedp.Click(chromedp.CSS("tbody a")), chromedp.WaitVisible(chromedp.CSS("[data-part=facts]")))
	until(t, tab, stored())
	until(t, tab, `document.querySelector("[data-live-state]").innerText == "Following."`)
	follows(t, func() time.Duration {
		l.feed(1)
		took := until(t, tab, stored())
		if !ask[bool](t, tab, fmt.Sprintf(`[...document.querySelectorAll("[data-chart] svg")].every(e => e.dataset.until == "%d")`, l.rows)) {
			t.Error("the charts are not those of the facts")
		}
		return took
	})

	// paused, nothing moves
	do(t, tab, chromedp.Click(chromedp.CSS("[data-live-pause]")))
	l.feed(1)
	time.Sleep(700 * time.Millisecond)
	if ask[bool](t, tab, stored()) {
		t.Error("a paused page was updated")
	}
	do(t, tab, chromedp.Click(chromedp.CSS("[data-live-pause]")))
	until(t, tab, stored())

	// an open table stays open and is brought up to date
	do(t, tab, chromedp.Click(chromedp.CSS("summary")))
	l.feed(20)
	until(t, tab, fmt.Sprintf(`document.querySelector("details").open && document.querySelector("details tbody tr:last-child th").innerText.endsWith("%d")`, l.rows))

	must(t, l.in.Close())
	until(t, tab, `document.querySelector("[data-live-state]").innerText.includes("has ended: clean")`)
	until(t, tab, `document.querySelector("[data-part=facts] .status").innerText == "clean"`)
}

func TestZooms(t *testing.T) {
	p := newPlace(t)
	id := p.run()
	tab := browser(t)
	at := func(from, until int) {
		t.Helper()
		if !ask[bool](t, tab, fmt.Sprintf(`document.querySelector("svg").dataset.from == "%d" && document.querySelector("svg").dataset.until == "%d"`, from, until)) {
			t.Errorf("steps %s, want %d to %d", ask[string](t, tab, `document.querySelector("svg").dataset.from + " to " + document.querySelector("svg").dataset.until`), from, until)
		}
	}
	do(t, tab, chromedp.Navigate(p.URL+"run/"+id))
	at(1, 309)
	// by the form, with the keyboard alone
	do(t, tab, chromedp.SendKeys(chromedp.CSS("#from"), "100"+kb.Tab), chromedp.KeyEvent("200"+kb.Enter), chromedp.WaitVisible(chromedp.CSS(`svg[data-from="100"]`)))
	at(100, 200)
	do(t, tab, chromedp.Click(`//a[text()="zoom in"]`), chromedp.WaitVisible(chromedp.CSS(`svg[data-from="125"]`)))
	at(125, 175)
	do(t, tab, chromedp.Click(`//a[text()="whole run"]`), chromedp.WaitVisible(chromedp.CSS(`svg[data-from="1"]`)))
	at(1, 309)
	// by dragging over the middle half of a chart
	box := ask[map[string]float64](t, tab, `(() => { const e = document.querySelector("svg"); e.scrollIntoView(); const b = e.getBoundingClientRect(), s = b.width / e.dataset.wide;
		return { left: b.left + e.dataset.left * s, width: e.dataset.plot * s, y: b.top + b.height / 2 } })()`)
	mouse := func(kind input.DispatchMouseEventType, share float64) chromedp.Action[chromedp.Void] {
		return chromedp.MouseEvent(kind, box["left"]+share*box["width"], box["y"], chromedp.ButtonLeft)
	}
	do(t, tab, mouse(chromedp.MousePressed, .25), mouse(chromedp.MouseMoved, .5), mouse(chromedp.MouseMoved, .75))
	if !ask[bool](t, tab, `document.querySelector("svg .choice").getBBox().width > 300`) {
		t.Error("what is chosen is not shown")
	}
	do(t, tab, mouse(chromedp.MouseReleased, .75), chromedp.WaitVisible(chromedp.CSS(`svg[data-from="78"]`)))
	at(78, 232)
	if q := ask[string](t, tab, `location.search`); !strings.Contains(q, "from=78") || !strings.Contains(q, "until=232") {
		t.Errorf("the address is %s", q)
	}
}

func TestKeyboard(t *testing.T) {
	p := newPlace(t)
	id := p.run()
	tab := browser(t)
	do(t, tab, chromedp.Navigate(p.URL+"run/"+id), chromedp.KeyEvent(kb.Tab))
	if !ask[bool](t, tab, `(() => { const e = document.activeElement, b = e.getBoundingClientRect(); return e.className == "skip" && b.left >= 0 && getComputedStyle(e).outlineStyle == "solid" })()`) {
		t.Error("the first stop is not the skip link, to be seen and with its focus shown")
	}
	do(t, tab, chromedp.KeyEvent(kb.Enter))
	if !ask[bool](t, tab, `document.activeElement.id == "main"`) {
		t.Error("the skip link does not lead to the content")
	}
	stops := map[string]bool{}
	for range 200 {
		do(t, tab, chromedp.KeyEvent(kb.Tab))
		what := ask[string](t, tab, `(() => { const e = document.activeElement; if (e == document.body) return ""; const s = getComputedStyle(e); return (s.outlineStyle == "solid" && parseFloat(s.outlineWidth) >= 2 ? "" : "UNSEEN ") + e.tagName + " " + (e.id || e.innerText.slice(0, 20)) })()`)
		if what == "" {
			break
		}
		if stops[what] = true; strings.HasPrefix(what, "UNSEEN") {
			t.Errorf("the focus on %s is not shown", what)
		}
	}
	for _, want := range []string{"INPUT from", "INPUT until", "BUTTON Show", "A zoom in"} {
		if !stops[want] {
			t.Errorf("%s cannot be reached by Tab; reached are %v", want, stops)
		}
	}
}

func TestWithoutScript(t *testing.T) {
	p := newPlace(t)
	id, other := p.run(), p.run("example:nile")
	l := p.live()
	l.feed(30)
	tab := browser(t)
	_, err := chromedp.Call(tab, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	must(t, err)
	do(t, tab, chromedp.Navigate(p.URL), chromedp.Click(`//a[text()="`+id+`"]`), chromedp.WaitVisible(chromedp.CSS(`[data-part="chart-cusum"] svg`)))
	must(t, chromedp.Do(tab,
		chromedp.SendKeys(chromedp.CSS("#from"), "20"), chromedp.SendKeys(chromedp.CSS("#until"), "40"+kb.Enter), chromedp.WaitVisible(chromedp.CSS(`svg[data-from="20"][data-until="40"]`)),
		chromedp.Click(chromedp.CSS("summary")), chromedp.WaitVisible(chromedp.CSS("details tbody tr")),
		chromedp.Click(`//a[text()="Compare with another run"]`), chromedp.WaitVisible(chromedp.CSS("#b")),
		chromedp.SendKeys(chromedp.CSS("#b"), other), chromedp.Click("//main//button"), chromedp.WaitVisible(chromedp.CSS(".s-parted")),
		chromedp.Navigate(p.URL), chromedp.WaitNotVisible(chromedp.CSS("[data-live-pause]"))))
	verdict, err := chromedp.Run(tab, chromedp.Text(chromedp.CSS("tbody .status")))
	must(t, err)
	if verdict != "recording" {
		t.Errorf("the newest run is %s", verdict)
	}
}

// A directory's name is text on every page, and in a stream.
func TestHostileName(t *testing.T) {
	p := newPlace(t)
	id := p.run()
	const name = `x"><img src=x onerror=alert(1)><svg onload=alert(2)>';alert(3);'`
	must(t, os.CopyFS(filepath.Join(p.dir, "runs", name), os.DirFS(filepath.Join(p.dir, "runs", id))))
	must(t, os.RemoveAll(filepath.Join(p.dir, "runs", name, "digests"))) // so that it has not ended, and is followed
	must(t, os.Mkdir(filepath.Join(p.dir, "runs", name, "digests"), 0o700))
	tab := browser(t)
	do(t, tab, chromedp.Navigate(p.URL+"run/"+escape(name)), chromedp.WaitVisible(chromedp.CSS("h1")))
	until(t, tab, `document.querySelector("[data-live-state]").innerText == "Following."`)
	time.Sleep(600 * time.Millisecond)
	if got := ask[string](t, tab, `document.querySelector("h1 .id").textContent`); got != name {
		t.Errorf("the name is %q, shown as %q", name, got)
	}
	if n := ask[int](t, tab, `document.querySelectorAll("img, [onload], [onerror]").length`); n != 0 {
		t.Errorf("%d elements were made by the name", n)
	}
	do(t, tab, chromedp.Navigate(p.URL+"compare?a="+escape(name)+"&b="+escape(name)), chromedp.WaitVisible(chromedp.CSS("h1")))
	if n := ask[int](t, tab, `document.querySelectorAll("img, [onload], [onerror]").length`); n != 0 {
		t.Errorf("%d elements were made by the name", n)
	}
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// No number of the input is on any page or in any stream.
func TestCanary(t *testing.T) {
	p := newPlace(t)
	var rows strings.Builder
	rows.WriteString("time,value\n")
	for i := range 200 {
		fmt.Fprintf(&rows, "%d,%d.25\n", (i+1)*1_000_000_000, 7391800+(i*7919)%97)
	}
	must(t, os.WriteFile(filepath.Join(p.dir, "in.csv"), []byte(rows.String()), 0o600))
	id, other := p.run("in.csv"), p.run("in.csv")
	all := 0
	for _, path := range []string{"", "run/" + id, "run/" + id + "?from=5&until=6", "run/" + id + "?last=1", "compare?a=" + id + "&b=" + other, "events/" + id, "readyz", "version"} {
		r, err := http.Get(p.URL + path)
		must(t, err)
		b, err := io.ReadAll(r.Body)
		must(t, errors.Join(err, r.Body.Close()))
		if r.StatusCode != 200 {
			t.Errorf("%s: %s", path, r.Status)
		}
		all += len(b)
		if found := regexp.MustCompile(`\b73918\d\d\b|7\.39\d*e(\+|&#43;|\\u002b)?0?6|in\.csv|` + regexp.QuoteMeta(p.dir)).FindString(string(b)); found != "" {
			t.Errorf("%s holds %q", path, found)
		}
	}
	if all < 100_000 {
		t.Errorf("the pages have %d bytes only", all)
	}
}

// axe is the accessibility checker, fetched from the registry of its makers.
func axe(t testing.TB) string {
	t.Helper()
	if file := os.Getenv("AXE_JS"); file != "" {
		b, err := os.ReadFile(file)
		must(t, err)
		return string(b)
	}
	dir := t.TempDir()
	for _, c := range [][]string{{"npm", "pack", "--silent", "axe-core@4.14.1"}, {"tar", "-xzf", "axe-core-4.14.1.tgz", "package/axe.min.js"}} {
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("NOT CHECKED for accessibility: %s: %v\n%s\nget axe.min.js of axe-core and name it by AXE_JS", strings.Join(c, " "), err, out)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "package", "axe.min.js"))
	must(t, err)
	return string(b)
}

const accessible = `axe.run(document, { runOnly: { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] } }).then(r => ({
	passed: r.passes.length, wrong: r.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 150) + " " + n.any.concat(n.all, n.none).map(c => c.message).join("; ")).join(" | ")),
	unsure: r.incomplete.map(v => v.id) }))`

type findings struct {
	Passed int      `json:"passed"`
	Wrong  []string `json:"wrong"`
	Unsure []string `json:"unsure"`
}

// prefer sets the colour scheme that the browser asks for.
func prefer(t testing.TB, tab context.Context, scheme string) {
	t.Helper()
	_, err := chromedp.Call(tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	must(t, err)
}

func TestAccessible(t *testing.T) {
	p := newPlace(t)
	id, other := p.run(), p.run("example:nile")
	l := p.live()
	l.feed(30)
	secret := filepath.Join(p.dir, "token")
	must(t, os.WriteFile(secret, []byte("0123456789abcdef0123456789abcdef\n"), 0o600))
	guarded, err := Serve(p.usp, p.dir, "--token-file", secret)
	must(t, err)
	t.Cleanup(func() { guarded.End() })
	wantAccessible(t, []string{p.URL, p.URL + "run/" + id, p.URL + "run/" + id + "?from=20&until=60", p.URL + "run/latest", p.URL + "compare", p.URL + "compare?a=" + id + "&b=" + other, guarded.URL + "login"})
}

// wantAccessible has axe look at pages, light and dark, with all that can be opened on them open.
func wantAccessible(t *testing.T, pages []string) {
	t.Helper()
	script := axe(t)
	tab := browser(t)
	for _, scheme := range []string{"light", "dark"} {
		for _, url := range pages {
			prefer(t, tab, scheme)
			do(t, tab, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("h1")))
			ask[int](t, tab, `document.querySelectorAll("details").forEach(e => e.open = true), 0`)
			ask[int](t, tab, script+";0")
			got, err := chromedp.Run(tab, chromedp.Evaluate[findings](accessible, chromedp.EvalAwaitPromise))
			must(t, err)
			if got.Passed < 15 {
				t.Errorf("%s in %s: only %d rules had anything to look at", url, scheme, got.Passed)
			}
			for _, w := range got.Wrong {
				t.Errorf("%s in %s: %s", url, scheme, w)
			}
			t.Logf("%s in %s: %d rules passed, unsure of %v", url, scheme, got.Passed, got.Unsure)
		}
	}
}

// Lines and areas differ from what they are drawn on by 3 to 1 at least, which axe does not look at.
func TestContrast(t *testing.T) {
	p := newPlace(t)
	id := p.run()
	tab := browser(t)
	for _, scheme := range []string{"light", "dark"} {
		prefer(t, tab, scheme)
		do(t, tab, chromedp.Navigate(p.URL+"run/"+id))
		got := ask[map[string]float64](t, tab, `(() => {
			const light = c => { const [r, g, b] = c.match(/[\d.]+/g).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
			const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05) };
			const all = {};
			for (const e of document.querySelectorAll("svg .line, svg .area, svg .set, svg .alarmtip, svg text")) {
				const s = getComputedStyle(e), ink = e.classList.contains("line") ? s.stroke : s.fill;
				all[e.tagName + "." + e.getAttribute("class")] = ratio(ink, getComputedStyle(e.ownerSVGElement).backgroundColor);
			}
			return all })()`)
		if len(got) < 12 {
			t.Errorf("only %v was looked at", got)
		}
		for what, ratio := range got {
			if least := map[bool]float64{true: 4.5, false: 3}[strings.HasPrefix(what, "text")]; ratio < least {
				t.Errorf("%s in %s has a contrast of %.2f, want %v", what, scheme, ratio, least)
			}
		}
	}
}
