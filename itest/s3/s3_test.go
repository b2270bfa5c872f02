// Package s3 holds the remote copy of snapshots against a real S3 server in this process, with the program itself.
package s3

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/usp-project/usp/snapshot"
)

// program is usp, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "usp-itest-s3-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "usp")
		build := exec.Command("go", "build", "-o", program, "./cmd/usp")
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

const (
	bucket = "snapshots"
	prefix = "fleet"
	place  = "s3://" + bucket + "/" + prefix

	keyID     = "AKIDUSPTEST"
	secretKey = "s3cr3t-canary-of-the-store"
)

// store is an S3 server with a layer before it that can fail.
type store struct {
	*httptest.Server
	backend *s3mem.Backend
	handler http.Handler     // the server itself, without the layer
	inner   *httptest.Server // likewise

	mu       sync.Mutex
	requests []string                                          // METHOD /path?query
	headers  []http.Header                                     // of each request
	fault    func(w http.ResponseWriter, r *http.Request) bool // true: it has answered, or not
}

func newStore(t *testing.T) *store {
	t.Helper()
	s := &store{backend: s3mem.New()}
	if err := s.backend.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	faker := gofakes3.New(s.backend, gofakes3.WithLogger(gofakes3.DiscardLog()))
	s.handler = faker.Server()
	s.inner = httptest.NewServer(s.handler)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
		s.headers = append(s.headers, r.Header.Clone())
		fault := s.fault
		s.mu.Unlock()
		if fault != nil && fault(w, r) {
			return
		}
		if authorize(w, r) {
			s.handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		s.inner.Close()
	})
	return s
}

func (s *store) set(fault func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// asked counts the requests that begin with a text.
func (s *store) asked(prefix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// keys lists the objects.
func (s *store) keys(t *testing.T) (list []string) {
	t.Helper()
	all, err := s.backend.ListBucket(bucket, nil, gofakes3.ListBucketPage{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all.Contents {
		list = append(list, o.Key)
	}
	slices.Sort(list)
	return list
}

func (s *store) get(t *testing.T, key string) []byte {
	t.Helper()
	o, err := s.backend.GetObject(bucket, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Contents.Close()
	b, err := io.ReadAll(o.Contents)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *store) putObject(t *testing.T, key string, b []byte) {
	t.Helper()
	if _, err := s.backend.PutObject(bucket, key, map[string]string{}, bytes.NewReader(b), int64(len(b)), nil); err != nil {
		t.Fatal(err)
	}
}

// clear empties the bucket.
func (s *store) clear(t *testing.T) {
	t.Helper()
	s.set(nil)
	for _, key := range s.keys(t) {
		s.remove(t, key)
	}
}

func (s *store) remove(t *testing.T, key string) {
	t.Helper()
	if _, err := s.backend.DeleteObject(bucket, key); err != nil {
		t.Fatal(err)
	}
}

// lose removes the snapshots of these steps of run id, with their proofs, by their whole names: a part of one may stand in the time that is
// in a run's id.
func (s *store) lose(t *testing.T, id string, steps ...uint64) {
	t.Helper()
	for _, step := range steps {
		key := prefix + "/" + id + "/snapshots/" + snapshot.FileName(step, 0)
		for _, key := range []string{key, key + ".json"} {
			if !slices.Contains(s.keys(t), key) {
				t.Fatalf("%s is not in the store: %q", key, s.keys(t))
			}
			s.remove(t, key)
		}
	}
}

// machine is one with its own home and runs.
type machine struct {
	t   *testing.T
	dir string
	env []string
}

func newMachine(t *testing.T, s *store, env ...string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	m.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir, "XDG_CONFIG_HOME=" + filepath.Join(m.dir, "config"), "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ACCESS_KEY_ID=" + keyID, "AWS_SECRET_ACCESS_KEY=" + secretKey, "USP_SNAPSHOT_REMOTE_ENDPOINT=" + s.URL, "USP_SNAPSHOT_REMOTE=" + place,
		"USP_RING_DIR=" + filepath.Join(m.dir, "rings"), "USP_SNAPSHOT_KEEP_LAST=0", "USP_SINKS_PATIENCE=20s",
	}, env...)
	if err := os.Mkdir(filepath.Join(m.dir, "rings"), 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

// result is what a command came to.
type result struct {
	code     int
	out, err string
}

func (m *machine) try(args ...string) result {
	m.t.Helper()
	var out, errw bytes.Buffer
	c := m.command(args...)
	c.Stdout, c.Stderr = &out, &errw
	err := c.Run()
	r := result{0, out.String(), errw.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else if err != nil {
		m.t.Fatal(err)
	}
	if strings.Contains(r.out+r.err, secretKey) {
		m.t.Fatalf("usp %s prints the secret key", strings.Join(args, " "))
	}
	return r
}

// usp runs a command, which must exit with a code and say something.
func (m *machine) usp(code int, says string, args ...string) result {
	m.t.Helper()
	r := m.try(args...)
	if r.code != code || !strings.Contains(r.out+r.err, says) {
		m.t.Fatalf("usp %s exits with %d, want %d and %q:\n%s%s", strings.Join(args, " "), r.code, code, says, r.out, r.err)
	}
	return r
}

// latest is the id of the newest run.
func (m *machine) latest() string {
	m.t.Helper()
	id, err := os.Readlink(filepath.Join(m.dir, "runs", "latest"))
	if err != nil {
		m.t.Fatal(err)
	}
	return id
}

// digests are the digests of each step on a run's effective timeline, as text.
func (m *machine) digests(run string) map[float64]string {
	m.t.Helper()
	r := m.usp(0, "", "log", run, "--json", "--effective", "--kind", "STEP")
	steps := map[float64]string{}
	for line := range strings.Lines(r.out) {
		var e struct {
			Step    *float64 `json:"step"`
			Digests any      `json:"digests"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			m.t.Fatalf("%v: %s", err, line)
		}
		if e.Step == nil || e.Digests == nil {
			continue
		}
		text, err := json.Marshal(e.Digests)
		if err != nil {
			m.t.Fatal(err)
		}
		steps[*e.Step] = string(text)
	}
	if len(steps) == 0 {
		m.t.Fatalf("no digests of %s in:\n%.2000s", run, r.out)
	}
	return steps
}
