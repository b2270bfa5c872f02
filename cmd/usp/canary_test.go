package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	pq "github.com/parquet-go/parquet-go"
)

// canaries are what must not come out: the values of an input, in text and as words, and secrets, one of each way in which
// usp may be given one.
type canaries struct {
	w       *world
	needles [][]byte
	bytes   int
}

// plant writes the input and the secrets.
func plant(w *world) *canaries {
	w.t.Helper()
	c := &canaries{w: w}
	rnd := rand.New(rand.NewPCG(21, 12))
	var csv strings.Builder
	csv.WriteString("time,value\n")
	for i := range 200 {
		v := math.Round(1e9*(1234.5+rnd.Float64()))/1e9 + float64(i%7)
		text := fmt.Sprint(v)
		fmt.Fprintf(&csv, "%d,%s\n", i*3_600_000_000_000, text)
		c.needles = append(c.needles, []byte(text), binary.LittleEndian.AppendUint64(nil, math.Float64bits(v)), binary.BigEndian.AppendUint64(nil, math.Float64bits(v)))
	}
	c.file("in.csv", csv.String())
	secret := func(name string) string {
		s := "canary-" + name + "-4f1c9a77e2"
		c.needles = append(c.needles, []byte(s))
		return s
	}
	w.env = append(w.env,
		"SECRET_TOKEN="+secret("env"), "AWS_SECRET_ACCESS_KEY="+secret("aws"), "USP_TOKEN="+secret("unknown"), "USP_SERVE_TOKEN="+secret("serve"),
		"OTEL_EXPORTER_OTLP_HEADERS=authorization="+secret("otlp"), "USP_OTLP_ENDPOINT=http://127.0.0.1:1",
		"USP_JETSTREAM_URL=nats://127.0.0.1:1", "USP_JETSTREAM_CREDENTIALS_FILE="+filepath.Join(w.dir, "nats.creds"),
		"USP_PARQUET_DIR=lake", "USP_TENSORBOARD_DIR=boards", "USP_SINKS_PATIENCE=100ms", "USP_LOG_LEVEL=debug")
	c.file("nats.creds", secret("nats")+"\n")
	c.file("token", secret("token")+"\n")
	return c
}

func (c *canaries) file(name, text string) {
	c.w.t.Helper()
	if err := os.WriteFile(filepath.Join(c.w.dir, name), []byte(text), 0o600); err != nil {
		c.w.t.Fatal(err)
	}
}

// search looks for what must not be there.
func (c *canaries) search(where string, b []byte) {
	c.w.t.Helper()
	c.bytes += len(b)
	for _, n := range c.needles {
		if i := bytes.Index(b, n); i >= 0 {
			c.w.t.Errorf("%s holds %q: …%q…", where, n, b[max(0, i-60):min(len(b), i+60)])
		}
	}
}

// say runs a command and searches what it says.
func (c *canaries) say(args ...string) string {
	c.w.t.Helper()
	_, out, errw := c.w.run(args...)
	c.search("usp "+strings.Join(args, " "), []byte(out))
	c.search("usp "+strings.Join(args, " ")+", standard error", []byte(errw))
	return out
}

// tree searches all files of a directory, Parquet files value by value, and returns how many there are.
func (c *canaries) tree(dir string) (files int) {
	c.w.t.Helper()
	err := filepath.WalkDir(filepath.Join(c.w.dir, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		c.search(path, []byte(path))
		b, err := os.ReadFile(path)
		if err == nil && filepath.Ext(path) == ".parquet" {
			b, err = unpacked(b)
		}
		c.search(path, b)
		return err
	})
	if err != nil {
		c.w.t.Error(err)
	}
	return files
}

// unpacked is what is in a Parquet file: its metadata, and each value as bytes and as text.
func unpacked(b []byte) (all []byte, err error) {
	file, err := pq.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	all = fmt.Append(nil, file.Schema(), file.Metadata().KeyValueMetadata)
	reader := pq.NewReader(file)
	rows, n := make([]pq.Row, 100), 0
	for err == nil {
		n, err = reader.ReadRows(rows)
		for _, r := range rows[:n] {
			for _, v := range r {
				all = append(append(append(all, v.Bytes()...), ' '), v.String()...)
			}
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}

// TestNothingLeaksOut plants values and secrets and searches all that usp writes and says, but for the run directory, see
// TestNothingLeaks: exports, what sinks write, logs at their most talkative, the output of every command that shows a run or
// the settings.
func TestNothingLeaksOut(t *testing.T) {
	w := newWorld(t)
	c := plant(w)
	c.say("run", "in.csv", "--log-level", "debug")
	for _, args := range [][]string{
		{"runs"}, {"show", "latest"}, {"log", "latest"}, {"verify", "latest"}, {"top"}, {"snapshot", "ls", "latest"}, {"compare", "latest", "latest"},
		{"config", "show"}, {"config", "show", "--origin"}, {"config", "check"}, {"doctor"}, {"version"}, {"sink", "--status", "latest"}, {"sink", "latest"},
		{"verify", "latest", "--stream"},
	} {
		c.say(args...)
		c.say(append(args, "--json")...)
	}
	for _, format := range []string{"csv", "jsonl", "parquet", "tensorboard", "tiles"} {
		c.say("export", "latest", "--to", format, "-o", "out."+format)
		if n := c.tree("out." + format); n == 0 {
			t.Errorf("nothing was exported as %s", format)
		}
	}
	for _, dir := range []string{"lake", "boards"} {
		if n := c.tree(dir); n == 0 {
			t.Errorf("no sink has written to %s", dir)
		}
	}
	if b, err := os.ReadFile(filepath.Join(w.dir, "out.csv")); err != nil || !bytes.Contains(b, []byte("cusum_pos")) || c.bytes < 200_000 {
		t.Errorf("%d bytes were searched, %v; there is nothing to find", c.bytes, err)
	}
}

// TestNothingLeaksServed searches the pages, metrics, answers and log of usp serve with a token.
func TestNothingLeaksServed(t *testing.T) {
	w := newWorld(t)
	c := plant(w)
	w.want([]int{0, 3}, "run", "in.csv")
	cmd := w.command("serve", "--listen", "127.0.0.1:0", "--token-file", "token", "--json", "--log-level", "debug")
	var errw bytes.Buffer
	cmd.Stderr = &errw
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd.Process.Pid) })
	lines := bufio.NewReader(out)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	c.search("usp serve", first)
	var at struct{ URL string }
	if err := json.Unmarshal(first, &at); err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(w.dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *http.Request, auth string) int {
		t.Helper()
		if auth != "" {
			r.Header.Set("Authorization", auth)
		}
		client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		c.search(r.Method+" "+r.URL.Path, fmt.Append(b, resp.Header))
		return resp.StatusCode
	}
	get := func(path, auth string) int {
		t.Helper()
		r, err := http.NewRequest("GET", at.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ask(r, auth)
	}
	shown := "Bearer " + strings.TrimSpace(string(token))
	_, listed := w.want([]int{0}, "runs", "--json")
	var runs []struct {
		ID string `json:"run_id"`
	}
	if err := json.Unmarshal([]byte(listed), &runs); err != nil || len(runs) != 1 {
		t.Fatal(err, listed)
	}
	id := runs[0].ID
	for _, path := range []string{"", "run/" + id, "run/" + id + "?from=3&until=4", "compare?a=" + id + "&b=" + id, "events/" + id, "metrics", "readyz", "healthz", "version", "login"} {
		if code := get(path, shown); code != 200 {
			t.Errorf("/%s: %d", path, code)
		}
	}
	for _, path := range []string{"run/none", "run/" + id + "?from=x", "debug/pprof/", "run/" + url.PathEscape("a\x1b[31m")} {
		get(path, shown)
	}
	before := c.bytes
	get("run/"+id, shown+"x") // a wrong one, of which nothing is said either
	form := url.Values{"token": {strings.TrimSpace(string(token))}, "next": {"/"}}
	r, err := http.NewRequest("POST", at.URL+"login", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if code := ask(r, ""); code != http.StatusSeeOther || c.bytes == before {
		t.Errorf("logging in: %d", code)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // ended by the signal
	c.search("usp serve", rest)
	c.search("usp serve, standard error", errw.Bytes())
	if c.bytes < 100_000 {
		t.Errorf("only %d bytes were searched", c.bytes)
	}
}
