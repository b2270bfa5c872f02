package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

const mebibyte = 1 << 20

// recordLarge records a run of one step for each size, with a snapshot of that many bytes behind it, and returns its id. The state is noise, but for a section
// that stays.
func (m *machine) recordLarge(stays int, sizes ...int) string {
	m.t.Helper()
	schema, err := record.NewSchema("large.v1", record.Field{Name: "loss", Class: record.Metric})
	check(m.t, err)
	run, err := usp.Start(context.Background(), usp.Options{
		Schema: schema, Command: []string{program, "record", "--options-on-stdin"}, Stderr: io.Discard, DrainTimeout: time.Minute,
		Ring:     usp.RingOptions{Dir: filepath.Join(m.dir, "rings"), StagingCapacity: int64(slices.Max(sizes)+stays) + mebibyte},
		Recorder: recorder.Options{Runs: filepath.Join(m.dir, "runs"), KeyFile: filepath.Join(m.dir, "config", "usp", "signing.key"), Snapshot: recorder.SnapshotOptions{Reuse: 4, Retention: snapshot.Retention{KeepLast: 1000}}},
	})
	check(m.t, err)
	values := record.NewValues(schema)
	same := make([]byte, stays)
	for i, size := range sizes {
		step := uint64(i + 1)
		run.Emit(step, int64(step), values)
		state := make([]byte, size)
		random := rand.NewChaCha8([32]byte{byte(i)})
		_, _ = random.Read(state) // never an error
		sections := []usp.Section{{Name: "state", Data: state}}
		if stays > 0 {
			sections = append(sections, usp.Section{Name: "stays", Data: same})
		}
		if !run.SnapshotLast(step, sections...) {
			m.t.Fatalf("snapshot %d was not taken", step)
		}
	}
	sum, err := run.Close()
	check(m.t, err)
	if sum.Snapshots != uint64(len(sizes)) {
		m.t.Fatalf("%d snapshots, want %d", sum.Snapshots, len(sizes))
	}
	return sum.RunID
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// whole fails unless the store has all snapshots of a run, intact, and nothing half done.
func (m *machine) whole(s *store, run string, names ...string) {
	m.t.Helper()
	s.set(nil)
	var want []string
	for _, name := range append([]string{"manifest.json", "manifest.proof.json"}, names...) {
		key := "fleet/" + run + "/" + name
		if strings.HasSuffix(name, ".snap") {
			key = "fleet/" + run + "/snapshots/" + name
			want = append(want, key+".json")
			local, err := os.ReadFile(filepath.Join(m.dir, "runs", run, "snapshots", name))
			check(m.t, err)
			if far := s.get(m.t, key); sha256.Sum256(far) != sha256.Sum256(local) {
				m.t.Errorf("%s is another one", key)
			}
		}
		want = append(want, key)
	}
	slices.Sort(want)
	var got []string
	for _, key := range s.keys(m.t) {
		if strings.HasPrefix(key, "fleet/"+run+"/") {
			got = append(got, key)
		}
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("the store has %v, want %v", got, want)
	}
	if n := s.uploads(m.t); n != 0 {
		m.t.Errorf("%d uploads are half done", n)
	}
	m.usp(0, fmt.Sprintf("%d of %d verified", len(names), len(names)), "snapshot", "verify", place+"/"+run)
}

// uploads counts what was begun in parts and not ended.
func (s *store) uploads(t *testing.T) int {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, s.inner.URL+"/"+bucket+"?uploads", nil)
	check(t, err)
	answer, err := http.DefaultClient.Do(r)
	check(t, err)
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	check(t, err)
	return bytes.Count(b, []byte("<Upload>"))
}

// moment is one request of an upload.
type moment struct {
	name string
	is   func(r *http.Request) bool
}

func part(n int) moment {
	return moment{fmt.Sprint("part", n), func(r *http.Request) bool {
		return r.Method == http.MethodPut && r.URL.Query().Get("partNumber") == strconv.Itoa(n)
	}}
}

func moments() []moment {
	object := func(method, suffix string) func(r *http.Request) bool {
		return func(r *http.Request) bool {
			return r.Method == method && strings.HasSuffix(r.URL.Path, suffix) && r.URL.Query().Get("partNumber") == ""
		}
	}
	return []moment{
		{"list", func(r *http.Request) bool { return r.Method == http.MethodGet && r.URL.Query().Has("list-type") }},
		{"manifest", object(http.MethodPut, "/manifest.json")},
		{"manifest proof", object(http.MethodPut, "/manifest.proof.json")},
		{"begin", func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploads") }},
		part(1), part(2), part(3), part(4),
		{"finish", func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }},
		{"proof", object(http.MethodPut, ".snap.json")},
	}
}

// cut ends the connection: before the request is read, in the middle of it, or when all was done and nothing is said of it.
func cut(w http.ResponseWriter, r *http.Request, inner http.Handler, how string) {
	switch how {
	case "in the middle":
		_, _ = io.CopyN(io.Discard, r.Body, 100_000) // what there is of it
	case "behind":
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		inner.ServeHTTP(discard{http.Header{}}, r)
	}
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = conn.Close() // that is what is wanted
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// TestInterrupted interrupts the upload of a snapshot of four parts at each of its requests: the connection is cut before, in and behind it, the store answers with
// errors that pass, or the process is killed. In the end the store has it, once, and nothing else.
func TestInterrupted(t *testing.T) {
	for _, how := range []string{"before", "in the middle", "behind", "503", "500", "killed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel() // most of it is waiting to try again
			s := newStore(t)
			m := newMachine(t, s, "USP_SNAPSHOT_REMOTE_PART=5MiB", "USP_SINKS_TIMEOUT=5s")
			run := m.recordLarge(0, 18*mebibyte)
			for _, at := range moments() {
				m.interrupted(s, run, at, how)
			}
		})
	}
}

// interrupted uploads the snapshot of a run to an empty store, is interrupted at one of the requests, and checks that all is well in the end.
func (m *machine) interrupted(s *store, run string, at moment, how string) {
	t := m.t
	s.clear(t)
	check(t, os.RemoveAll(filepath.Join(m.dir, "runs", run, "sinks")))
	var hit atomic.Int32
	begin, over := make(chan struct{}), make(chan struct{})
	end := sync.OnceFunc(func() { close(over) })
	defer end()
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !at.is(r) || hit.Add(1) > 1 {
			return false
		}
		switch how {
		case "503":
			refuse(w, http.StatusServiceUnavailable, "SlowDown")
		case "500":
			refuse(w, http.StatusInternalServerError, "InternalError")
		case "killed":
			close(begin)
			<-over // it never gets an answer
		default:
			cut(w, r, s.handler, how)
		}
		return true
	})
	if how == "killed" {
		c := m.command("sink", run)
		check(t, c.Start())
		exited := make(chan struct{})
		go func() { _ = c.Wait(); close(exited) }() // it is killed
		select {
		case <-begin:
		case <-exited:
			t.Fatalf("%s, %s: never happened", at.name, how)
		}
		check(t, c.Process.Kill())
		<-exited
	}
	m.usp(0, "1 snapshot sent, 0 waiting", "sink", run)
	end()
	if hit.Load() == 0 {
		t.Errorf("%s, %s: never happened", at.name, how)
	}
	m.whole(s, run, snapshot.FileName(1, 0))
	if t.Failed() {
		t.Fatalf("%s, %s", at.name, how)
	}
}

// TestRefused has clear errors, each with its exit code, for what stands between a run and its store; and none of it touches the run.
func TestRefused(t *testing.T) {
	s := newStore(t)
	m := newMachine(t, s, "USP_SINKS_PATIENCE=500ms")
	m.usp(0, "309 stored", "run", "-q")
	run := m.latest()
	with := func(env ...string) *machine {
		other := *m
		other.env = append(slices.Clone(m.env), env...)
		return &other
	}
	gone := "USP_SNAPSHOT_REMOTE_ENDPOINT=http://127.0.0.1:1"
	for _, tt := range []struct {
		name, says string
		code       int
		env        []string
	}{
		{"no such key", "InvalidAccessKeyId", 1, []string{"AWS_ACCESS_KEY_ID=AKIDOTHER"}},
		{"another secret", "SignatureDoesNotMatch", 1, []string{"AWS_SECRET_ACCESS_KEY=other"}},
		{"no credentials", "set AWS_ACCESS_KEY_ID", 1, []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY="}},
		{"no bucket", "NoSuchBucket", 10, []string{"USP_SNAPSHOT_REMOTE=s3://nowhere/fleet"}},
		{"nobody there", "connection refused", 75, []string{gone}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			far := "s3://" + bucket + "/fleet/"
			for _, v := range tt.env {
				if at, ok := strings.CutPrefix(v, "USP_SNAPSHOT_REMOTE="); ok {
					far = at + "/"
				}
			}
			x := with(tt.env...)
			x.t = t
			check(t, os.RemoveAll(filepath.Join(m.dir, "runs", run, "sinks")))
			for _, args := range [][]string{{"sink", run}, {"snapshot", "ls", far + run}, {"snapshot", "verify", far + run}, {"snapshot", "prune", far + run}, {"snapshot", "pull", far + "latest", "--to", "pulled"}, {"run", "--resume", far + run}, {"run", "--resume", far + "latest"}} {
				r := x.usp(tt.code, tt.says, args...)
				if lines := strings.Count(strings.TrimSpace(lastError(r.err)), "\n"); lines > 1 || !strings.Contains(lastError(r.err), tt.says) {
					t.Errorf("usp %s: not one clear line:\n%s", strings.Join(args, " "), r.err)
				}
			}
			x.usp(1, tt.says, "doctor")
			// The run does not suffer.
			x.usp(0, "309 stored", "run")
			x.usp(0, tt.says, "sink", "--status", "latest")
			x.usp(0, "", "verify", "latest")
		})
	}
	m.usp(10, "no run nothing", "snapshot", "ls", place+"/nothing")
	m.usp(10, "no run with a snapshot", "run", "--resume", "s3://"+bucket+"/elsewhere/latest")
	m.usp(0, "answers, takes the credentials, has the bucket", "doctor")
}

// lastError is what a command says last, from "usp: " on.
func lastError(text string) string {
	if at := strings.LastIndex(text, "usp: "); at >= 0 {
		return text[at:]
	}
	return text
}

// TestNeverAnswers has a store that accepts and says nothing: the run ends as it would without, what waits is said, and comes later.
func TestNeverAnswers(t *testing.T) {
	s := newStore(t)
	m := newMachine(t, s, "USP_SINKS_TIMEOUT=300ms", "USP_SINKS_PATIENCE=300ms")
	hold := make(chan struct{})
	defer func() {
		if t.Failed() {
			close(hold)
		}
	}()
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		return true
	})
	m.usp(0, "309 emitted, 309 stored, 0 lost", "run")
	m.usp(0, "5 waiting", "sink", "--status", "latest")
	m.usp(0, `"unit": "snapshots"`, "top", "--json")
	m.usp(75, "nothing moved for 300ms", "sink", "latest")
	m.usp(75, "nothing moved for 300ms", "snapshot", "ls", place+"/latest")
	m.usp(0, "", "verify", "latest", "--deep")
	s.set(nil)
	close(hold)
	m.env = append(m.env, "USP_SINKS_TIMEOUT=20s", "USP_SINKS_PATIENCE=20s")
	m.usp(0, "5 snapshots sent, 0 waiting", "sink", "latest")
}

// TestLocalDamage sends no snapshot that is damaged here, and says which.
func TestLocalDamage(t *testing.T) {
	s := newStore(t)
	m := newMachine(t, s)
	run := m.recordLarge(0, 1000, 2000, 3000)
	path := filepath.Join(m.dir, "runs", run, "snapshots", snapshot.FileName(2, 0))
	b, err := os.ReadFile(path)
	check(t, err)
	b[len(b)/2] ^= 1
	check(t, os.Chmod(path, 0o600))
	check(t, os.WriteFile(path, b, 0o600))
	m.usp(20, snapshot.FileName(2, 0), "sink", run)
	m.usp(0, "2 snapshots sent, 0 waiting, 1 damaged here and not sent", "sink", "--status", run)
	m.whole(s, run, snapshot.FileName(1, 0), snapshot.FileName(3, 0))
}

// command is usp with the machine's environment, not started yet.
func (m *machine) command(args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Dir, c.Env = m.dir, m.env
	return c
}
