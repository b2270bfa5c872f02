package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

const id = "20261129T000000-aaaaa"

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Runs == "" {
		o.Runs = "/runs"
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeRuns)
	return s
}

// get asks a server as curl on this machine does.
func get(t testing.TB, s *Server, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	return do(t, s, httptest.NewRequest("GET", path, nil), headers...)
}

func do(t testing.TB, s *Server, r *http.Request, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r.Host = "localhost:8765"
	for i := 0; i < len(headers); i += 2 {
		if r.Header.Set(headers[i], headers[i+1]); headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

// full is a run with everything in it.
func full(t testing.TB, fsys vfs.FS, runs string) *fixture {
	f := predictorFixture(t, fsys, runs, id)
	f.emit(1, 50)
	f.lose(10)
	f.emit(61, 100)
	f.snapshot(100)
	f.cursor("parquet", `{"sink":"parquet","next":80,"records":79,"updated":"2026-11-29T00:00:00Z","fault":"disk <full>","tries":3}`)
	return f
}

func contains(t *testing.T, body string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(body, w) {
			t.Errorf("no %q in\n%.3000s", w, body)
		}
	}
}

func TestRunPage(t *testing.T) {
	mem := vfs.NewMem()
	f := full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem, Live: func(string) *Live {
		return &Live{Emitted: 110, Stored: 100, Lost: 10, Held: 7, Fault: "no space", EmitP50: 60, EmitP99: 1100, EmitMax: 2000}
	}, Experts: func(*rundir.Manifest) []string { return []string{"<i>ses</i>"} }})
	w := get(t, s, "/run/"+id)
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	contains(t, w.Body.String(),
		"recording", "90 stored, 1 to 100", `class="bad">10<`, "usp.predictor.v2.weights", "alarm+ at step 6", "CUSUM against its threshold", "Entropy, nat", "Optimal-transport cost",
		"Regime flags", "Weights of the experts", "&lt;i&gt;ses&lt;/i&gt;", "holder_se", `<rect class="lost"`, "Records lost in: steps 51 to 60",
		"110 emitted, 100 stored, 10 lost, 7 held in memory", "storage takes nothing: no space", "p50 60ns, p99 1.1µs, max 2µs",
		"parquet", `class="n bad">11<`, "disk &lt;full&gt; (3 tries)", fmt.Sprintf("%d entries", f.log.Size()), fmt.Sprintf("%x", f.log.Root()), "&lt;b id=&#34;host&#34;&gt;",
		`data-events="/events/`+id+`?at=`, "000000000000000100", // the snapshot's file
	)
	if strings.Contains(w.Body.String(), "<i>") || strings.Contains(w.Body.String(), `<b id`) {
		t.Error("text of the run is markup")
	}
	f.end()
	w = get(t, s, "/run/"+id)
	contains(t, w.Body.String(), "clean")
	if strings.Contains(w.Body.String(), "data-events") {
		t.Error("a run that has ended is followed")
	}
}

func TestRunPageRange(t *testing.T) {
	mem := vfs.NewMem()
	full(t, mem, "/runs").end()
	s := newServer(t, Options{FS: mem})
	body := get(t, s, "/run/"+id+"?from=20&until=39").Body.String()
	contains(t, body, `data-from="20" data-until="39"`, `value="20"`, `value="39"`, "?from=24&amp;until=35", ">whole run<", ">zoom out<", ">earlier<", ">later<")
	contains(t, get(t, s, "/run/"+id+"?last=10").Body.String(), `data-from="91" data-until="100"`)
	contains(t, get(t, s, "/run/"+id+"?from=&until=").Body.String(), `data-from="1" data-until="100"`)
	contains(t, get(t, s, "/run/"+id+"?from=5000&until=6000").Body.String(), "no values in this range")
	contains(t, get(t, s, "/run/"+id+"?until=18446744073709551615").Body.String(), "CUSUM")
	for _, bad := range []string{"from=x", "from=-1", "from=9&until=3", "last=0", "until=18446744073709551616", "from=%zz", "from=1;until=2", "from=1&from=%", "last=-1"} {
		if w := get(t, s, "/run/"+id+"?"+bad); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
}

func TestZooms(t *testing.T) {
	for _, z := range zooms("/run/x", "?", 20, 39, 1, 5000) {
		u, err := url.Parse(z.URL)
		if err != nil {
			t.Fatal(err)
		}
		part, err := stretchOf(u.Query())
		if err != nil {
			t.Fatal(err)
		}
		from, until := part.steps(1, 5000)
		if want := map[string][2]uint64{"whole run": {1, 5000}, "zoom in": {24, 35}, "zoom out": {10, 49}, "earlier": {10, 29}, "later": {30, 49}, "last 1000 steps": {4001, 5000}}[z.Name]; want != [2]uint64{from, until} {
			t.Errorf("%s leads to %d–%d, want %v", z.Name, from, until, want)
		}
	}
	for _, ends := range [][4]uint64{{0, 0, 0, 0}, {1, 1, 1, 1}, {1, 2, 1, 2}, {0, 1<<64 - 1, 0, 1<<64 - 1}, {1<<64 - 1, 1<<64 - 1, 5, 1<<64 - 1}, {7, 9, 100, 200}, {300, 400, 100, 200}, {0, 1<<64 - 1, 1, 300}, {250, 1<<64 - 1, 1, 300}, {1, 120, 100, 200}, {1 << 63, 1<<64 - 1, 1, 300}} {
		for _, z := range zooms("/r", "?", ends[0], ends[1], ends[2], ends[3]) {
			u, _ := url.Parse(z.URL)
			part, err := stretchOf(u.Query())
			if err != nil {
				t.Errorf("%v: %s leads to %s: %v", ends, z.Name, z.URL, err)
			}
			if from, until := part.steps(ends[2], ends[3]); from < ends[2] || until > ends[3] {
				t.Errorf("%v: %s leads to %d–%d, where the run is not", ends, z.Name, from, until)
			}
		}
	}
}

func TestRunsPage(t *testing.T) {
	mem := vfs.NewMem()
	now := created.Add(30 * time.Second)
	s := newServer(t, Options{FS: mem, Now: func() time.Time { return now }})
	contains(t, get(t, s, "/").Body.String(), "There are no runs yet")
	f := full(t, mem, "/runs")
	other := predictorFixture(t, mem, "/runs", "20261129T000000-bbbbb")
	other.emit(1, 5)
	other.end()
	body := get(t, s, "/").Body.String()
	contains(t, body, id, "recording", "20261129T000000-bbbbb", "clean", ">10<", ">3.333<", "30 s", "entries")
	if strings.Index(body, "bbbbb") > strings.Index(body, "aaaaa") {
		t.Error("the older run comes first")
	}
	f.emit(101, 500)
	now = now.Add(2 * time.Second)
	contains(t, get(t, s, "/").Body.String(), ">200<") // steps a second, between two looks
	if err := vfs.Replace(mem, rundir.At("/runs/20261129T000000-bbbbb").Manifest(0), []byte("<script>"), 0o444); err != nil {
		t.Fatal(err)
	}
	contains(t, get(t, s, "/").Body.String(), "unreadable")
	contains(t, get(t, s, "/run/20261129T000000-bbbbb").Body.String(), "unreadable", "No record is stored yet")
}

func TestNotFound(t *testing.T) {
	dir := t.TempDir()
	full(t, vfs.OS(), filepath.Join(dir, "runs")).end()
	full(t, vfs.OS(), filepath.Join(dir, "outside")).end()
	s := newServer(t, Options{Runs: filepath.Join(dir, "runs")})
	for _, name := range []string{"none", "..", "..%2Foutside%2F" + id, ".hidden", "a%00b", "%2e%2e%2foutside%2f" + id, strings.Repeat("x", 3000)} {
		r := httptest.NewRequest("GET", "/run/x", nil)
		r.URL.Path, r.URL.RawPath = "", "/run/"+name
		if p, err := url.PathUnescape("/run/" + name); err == nil {
			r.URL.Path = p
		}
		w := do(t, s, r)
		for range 3 { // a path with dots is cleaned
			if w.Code/100 == 3 {
				w = get(t, s, w.Header().Get("Location"))
			}
		}
		if w.Code != http.StatusNotFound && w.Code != http.StatusOK || strings.Contains(w.Body.String(), "CUSUM") || strings.Contains(w.Body.String(), dir) {
			t.Errorf("%.60s: %d, %.300s", name, w.Code, w.Body)
		}
	}
	w := get(t, s, "/run/latest")
	if w.Code != http.StatusFound || w.Header().Get("Location") != "/run/"+id {
		t.Errorf("latest: %d, to %s", w.Code, w.Header().Get("Location"))
	}
	for _, path := range []string{"/run/", "/assets/style.css", "/assets/none.css", "/metrics", "/debug/pprof/", "/favicon.ico"} {
		if w := get(t, s, path); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// A directory may have any name. None is markup, or leads out of its attribute.
func TestHostileNames(t *testing.T) {
	dir := t.TempDir()
	const name = `x"><script>alert(1)</script><a href='y&amp;`
	file := strings.ReplaceAll(name, "/", "\u2215")
	f := predictorFixture(t, vfs.OS(), dir, file)
	f.emit(1, 20)
	s := newServer(t, Options{Runs: dir})
	for _, path := range []string{"/run/" + url.PathEscape(file), "/compare?a=" + url.QueryEscape(file) + "&b=" + url.QueryEscape(file), "/events/" + url.PathEscape(file)} {
		patience := 20 * time.Second
		if strings.HasPrefix(path, "/events/") { // a stream, which does not end by itself
			patience = time.Second
			if raceEnabled {
				patience *= 10
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		w := do(t, s, httptest.NewRequest("GET", path, nil).WithContext(ctx))
		cancel()
		body := w.Body.String()
		if w.Code != 200 || strings.Contains(body, "<script>alert") || strings.Contains(body, "<a href='y") || !strings.Contains(body, "CUSUM") && !strings.Contains(body, "cusum") {
			t.Errorf("%s: %d, %.500s", path, w.Code, body)
		}
	}
	schema, err := record.NewSchema("evil.v1", record.Field{Name: "x", Class: record.Metric, Unit: `"><script>alert(1)</script>`})
	if err != nil {
		t.Fatal(err)
	}
	f = newFixture(t, vfs.OS(), dir, id, schema, func(v *record.Values, step uint64) { v.SetFloat64(0, float64(step)) })
	f.emit(1, 20)
	for _, path := range []string{"/run/" + id, "/compare?a=" + id + "&b=" + id} {
		if body := get(t, s, path).Body.String(); strings.Contains(body, "<script>alert") || !strings.Contains(body, "&lt;script&gt;alert") {
			t.Errorf("%s: the unit is markup, or is gone", path)
		}
	}
}

// What no record has declared as metric or flag is on no page, and neither is where the runs lie.
func TestCanary(t *testing.T) {
	dir := t.TempDir()
	f := full(t, vfs.OS(), dir)
	s := newServer(t, Options{Runs: dir})
	f.end()
	all := ""
	for _, path := range []string{"/", "/run/" + id, "/run/" + id + "?from=3&until=4", "/compare?a=" + id + "&b=" + id, "/events/" + id, "/readyz", "/version"} {
		w := get(t, s, path)
		if w.Code != 200 {
			t.Errorf("%s: %d", path, w.Code)
		}
		all += w.Body.String()
	}
	contains(t, all, "cusum_pos")
	for _, secret := range []string{"0.1234", "123456789", "rho", "ot_cost_digest", dir} {
		if i := strings.Index(all, secret); i >= 0 {
			t.Errorf("%q is there: …%s…", secret, all[max(0, i-80):min(len(all), i+80)])
		}
	}
}

func TestHeaders(t *testing.T) {
	mem := vfs.NewMem()
	full(t, mem, "/runs").end()
	s := newServer(t, Options{FS: mem, Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1\n") })})
	paths := []string{"/", "/run/" + id, "/compare", "/healthz", "/readyz", "/version", "/metrics", "/events/" + id, "/none", s.assets["style.css"].path}
	for _, path := range paths {
		h := get(t, s, path).Header()
		for name, want := range map[string]string{"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
			t.Error("the policy is unsafe")
		}
	}
	inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|<script[^>]*>[^<]|javascript:|https?://`)
	for _, path := range paths[:3] {
		if found := inline.FindString(get(t, s, path).Body.String()); found != "" {
			t.Errorf("%s has %q, which the policy forbids or which leads elsewhere", path, found)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		for _, path := range paths {
			if w := do(t, s, httptest.NewRequest(method, path, nil)); w.Code != http.StatusMethodNotAllowed && w.Code != http.StatusNotFound {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
	}
	if w := get(t, s, "/metrics"); w.Body.String() != "up 1\n" {
		t.Errorf("metrics: %s", w.Body)
	}
}

func TestAssets(t *testing.T) {
	mem := vfs.NewMem()
	full(t, mem, "/runs").end()
	s := newServer(t, Options{FS: mem})
	page := get(t, s, "/run/"+id).Body.String()
	for _, name := range []string{"style.css", "live.js"} {
		a := s.assets[name]
		contains(t, page, `"`+a.path+`"`)
		w := get(t, s, a.path)
		if w.Code != 200 || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") || !bytes.Equal(w.Body.Bytes(), a.body) {
			t.Errorf("%s: %d %s", name, w.Code, w.Header())
		}
		if kind := w.Header().Get("Content-Type"); !strings.HasPrefix(kind, "text/") {
			t.Errorf("%s is %s", name, kind)
		}
	}
	for _, path := range []string{"/run/" + id, s.assets["style.css"].path} {
		w := get(t, s, path, "Accept-Encoding", "br, gzip;q=0.8")
		z, err := gzip.NewReader(w.Body)
		if err != nil || w.Header().Get("Content-Encoding") != "gzip" {
			t.Fatalf("%s is not compressed: %v", path, err)
		}
		plain, err := io.ReadAll(z)
		if err != nil || len(plain) < 1000 {
			t.Errorf("%s: %d bytes, %v", path, len(plain), err)
		}
		again := get(t, s, path, "If-None-Match", w.Header().Get("ETag"))
		if again.Code != http.StatusNotModified || again.Body.Len() > 0 {
			t.Errorf("%s with its own ETag: %d", path, again.Code)
		}
		if w := get(t, s, path, "Accept-Encoding", "gzip;q=0"); w.Header().Get("Content-Encoding") != "" {
			t.Errorf("%s is compressed for who does not want it", path)
		}
	}
}

func TestReady(t *testing.T) {
	mem := vfs.NewMem()
	s := newServer(t, Options{FS: mem, Version: map[string]string{"version": "v1"}})
	if w := get(t, s, "/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "no directory of runs") {
		t.Errorf("without runs: %d %s", w.Code, w.Body)
	}
	full(t, mem, "/runs")
	if w := get(t, s, "/readyz"); w.Code != 200 || w.Body.String() != `{"ready":true,"reasons":[]}`+"\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	s.o.FS = vfs.Inject(mem, vfs.Rule{Op: vfs.OpReadDir})
	if w := get(t, s, "/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "cannot be read") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	s.o.FS = vfs.Inject(mem, vfs.Rule{Op: vfs.OpReadDir})
	if w := get(t, s, "/"); w.Code != http.StatusInternalServerError {
		t.Errorf("the list: %d", w.Code)
	}
	contains(t, get(t, s, "/version").Body.String(), `"version":"v1"`)
	contains(t, get(t, s, "/healthz").Body.String(), "ok")
}

func TestComparePage(t *testing.T) {
	mem := vfs.NewMem()
	a := full(t, mem, "/runs")
	a.end()
	const other = "20261129T000000-bbbbb"
	b := newFixture(t, mem, "/runs", other, a.schema, func(v *record.Values, step uint64) {
		a.set(v, step)
		if step >= 70 {
			v.SetFloat64s(v.Schema().Len()-2, make([]float64, experts))
			v.SetFloat64(0, 99)
		}
	})
	b.emit(1, 120)
	b.end()
	s := newServer(t, Options{FS: mem})
	contains(t, get(t, s, "/compare?a="+id).Body.String(), "<option selected>"+id, other)
	w := get(t, s, "/compare?a="+id+"&b="+other)
	contains(t, w.Body.String(), "parted", "<strong>70</strong>, field rho", "first divergent step at step 70", "cusum_pos, sd", "greatest 99", `data-until="120"`, "?a="+id+"&amp;b="+other+"&amp;from=")
	contains(t, get(t, s, "/compare?a="+id+"&b="+id).Body.String(), "identical")
	contains(t, get(t, s, "/compare?a="+id+"&b="+other+"&from=10&until=20").Body.String(), `data-from="10" data-until="20"`, `name="b" value="`+other)
	if w := get(t, s, "/compare?a="+id+"&b=none"); w.Code != http.StatusNotFound {
		t.Errorf("a run that is not there: %d", w.Code)
	}
}

// A damaged run is shown as far as it can be read, or says that it cannot.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	f := full(t, vfs.OS(), dir)
	f.end()
	s := newServer(t, Options{Runs: dir})
	segments, err := filepath.Glob(filepath.Join(f.dir.Telemetry(), "*"))
	if err != nil || len(segments) == 0 {
		t.Fatal(err, segments)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errorsOf(os.Chmod(segments[0], 0o600), os.WriteFile(segments[0], b, 0o600), os.WriteFile(f.dir.Head(), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	w := get(t, s, "/run/"+id)
	if w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
	contains(t, w.Body.String(), "CUSUM", `<span class="fault">`)
	if strings.Contains(w.Body.String(), dir) {
		t.Error("the page says where the runs lie")
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestStatus(t *testing.T) {
	mem := vfs.NewMem()
	f := full(t, mem, "/runs")
	s := newServer(t, Options{FS: mem})
	run, err := s.find(id)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.o.Status(run); got != "recording" {
		t.Errorf("%s", got)
	}
	f.unlock()
	if got := s.o.Status(run); got != "unfinished" {
		t.Errorf("%s", got)
	}
	f.end()
	if got := s.o.Status(run); got != digestlog.StatusClean.String() {
		t.Errorf("%s", got)
	}
}
