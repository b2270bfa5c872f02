package s3

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

// TestLock asks for object lock with every object that it makes, until a day that the settings give.
func TestLock(t *testing.T) {
	s := newStore(t)
	for _, mode := range []string{"governance", "compliance"} {
		s.clear(t)
		s.forget()
		m := newMachine(t, s, "USP_SNAPSHOT_REMOTE_LOCK="+mode, "USP_SNAPSHOT_REMOTE_LOCK_DAYS=7", "USP_SNAPSHOT_REMOTE_PART=5MiB", "USP_SNAPSHOT_KEEP_LAST=1")
		run := m.recordLarge(0, 6*mebibyte, 100, 200)
		m.usp(0, "3 snapshots sent, 0 waiting", "sink", run)
		made := 0
		s.each(func(method, uri string, h http.Header) {
			if method == http.MethodDelete {
				t.Errorf("%s: %s is removed, though it is locked", mode, uri)
			}
			makes := method == http.MethodPut && !strings.Contains(uri, "partNumber") || method == http.MethodPost && strings.HasSuffix(uri, "?uploads=")
			if !makes {
				return
			}
			made++
			until, err := time.Parse(time.RFC3339, h.Get("X-Amz-Object-Lock-Retain-Until-Date"))
			if got := h.Get("X-Amz-Object-Lock-Mode"); got != strings.ToUpper(mode) || err != nil || time.Until(until) < 6*24*time.Hour || time.Until(until) > 8*24*time.Hour {
				t.Errorf("%s: %s %s: mode %q until %v, %v", mode, method, uri, got, until, err)
			}
		})
		if made != 8 {
			t.Errorf("%s: %d objects were made, want 8", mode, made)
		}
		m.usp(0, "nothing to remove", "snapshot", "prune", place+"/"+run)
		m.usp(0, "object lock is not offered", "doctor")
		m.usp(0, "the bucket was not made with object lock", "doctor")
	}
	s.clear(t)
	s.forget()
	m := newMachine(t, s)
	m.usp(0, "", "run", "-q")
	s.each(func(method, uri string, h http.Header) {
		if h.Get("X-Amz-Object-Lock-Mode") != "" {
			t.Errorf("%s %s asks for a lock", method, uri)
		}
	})
}

// TestLockOffered has doctor say that a bucket has object lock.
func TestLockOffered(t *testing.T) {
	s := newStore(t)
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !r.URL.Query().Has("object-lock") {
			return false
		}
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>`)
		return true
	})
	m := newMachine(t, s, "USP_SNAPSHOT_REMOTE_LOCK=compliance")
	m.usp(0, "object lock is offered", "doctor")
}

// TestRetention keeps there what the settings keep here.
func TestRetention(t *testing.T) {
	s := newStore(t)
	m := newMachine(t, s, "USP_SNAPSHOT_KEEP_LAST=3")
	run := m.recordLarge(0, 100, 101, 102, 103, 104, 105)
	m.usp(0, "6 snapshots sent, 0 waiting, 3 pruned there; newest of step 6", "sink", run)
	names := []string{snapshot.FileName(4, 0), snapshot.FileName(5, 0), snapshot.FileName(6, 0)}
	m.whole(s, run, names...)
	m.env = append(m.env, "USP_SNAPSHOT_KEEP_LAST=1")
	if r := m.usp(0, "would remove "+names[0], "snapshot", "prune", "-n", place+"/"+run); strings.Contains(r.out, names[1]) {
		t.Errorf("two always stay: %s", r.out)
	}
	m.usp(0, "removed "+names[0], "snapshot", "prune", place+"/"+run)
	m.whole(s, run, names[1:]...)

	// Where nothing may be removed, more stays, and that is all.
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodDelete && !refuse(w, http.StatusForbidden, "AccessDenied")
	})
	run = m.recordLarge(0, 100, 101, 102)
	m.usp(0, "3 snapshots sent, 0 waiting; newest", "sink", run)
	m.whole(s, run, snapshot.FileName(1, 0), snapshot.FileName(2, 0), snapshot.FileName(3, 0))

	// What retention took here before it was sent is counted, and said.
	run = m.recordLarge(0, 100, 101, 102, 103, 104)
	m.usp(0, "removed", "snapshot", "prune", run)
	r := m.usp(0, "2 snapshots sent, 0 waiting, 3 pruned here before they were sent", "sink", run)
	for _, name := range []string{snapshot.FileName(1, 0), snapshot.FileName(2, 0), snapshot.FileName(3, 0)} {
		if !strings.Contains(r.err, name) {
			t.Errorf("%s is not named: %s", name, r.err)
		}
	}
	m.whole(s, run, snapshot.FileName(4, 0), snapshot.FileName(5, 0))
}

// TestKilled kills the recorder and what sends beside it, again and again while a run goes on: every snapshot that is here in the end is there, once.
func TestKilled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the processes of a run are found in /proc")
	}
	s := newStore(t)
	m := newMachine(t, s, "USP_SNAPSHOT_INTERVAL=25", "USP_SNAPSHOT_ON_EVENTS=false")
	var input bytes.Buffer
	fmt.Fprintln(&input, "time,value")
	for i := range 400 {
		fmt.Fprintf(&input, "%d,%d\n", (i+1)*1e9, i*i%97)
	}
	lines := bytes.SplitAfter(input.Bytes(), []byte("\n"))
	c := m.command("run", "-")
	in, err := c.StdinPipe()
	check(t, err)
	var out, errw bytes.Buffer
	c.Stdout, c.Stderr = &out, &errw
	check(t, c.Start())
	var held atomic.Bool
	var killed atomic.Int32
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && held.CompareAndSwap(true, false) {
			killed.Add(1)
			for _, pid := range descendants(t, c.Process.Pid) { // the recorder, and its companion in the middle of a request
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill() // it may have ended
				}
			}
			return true
		}
		return false
	})
	kills := 0
	for i, line := range lines {
		if i%100 == 50 {
			held.Store(true)
			kills++
		}
		_, err := in.Write(line)
		check(t, err)
		if i%25 == 0 {
			s.settle()
		}
	}
	check(t, in.Close())
	if err := c.Wait(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), errw.String())
	}
	held.Store(false)
	run := m.latest()
	m.usp(0, "0 waiting", "sink", run)
	var names []string
	files, err := os.ReadDir(filepath.Join(m.dir, "runs", run, "snapshots"))
	check(t, err)
	for _, f := range files {
		names = append(names, f.Name())
	}
	if len(names) < 10 || killed.Load() != int32(kills) || kills != 4 {
		t.Errorf("%d snapshots, %d kills of %d", len(names), killed.Load(), kills)
	}
	m.whole(s, run, names...)
	m.usp(0, fmt.Sprintf("%d snapshots sent, 0 waiting", len(names)), "sink", "--status", run)
	m.usp(0, "", "verify", run)
}

// settle gives what sends the time to see a snapshot: until the store was asked once more, and for a while at most.
func (s *store) settle() {
	before := s.asked("PUT ")
	for range 40 {
		if s.asked("PUT ") > before {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// descendants are the processes that a process has started, and those that these have.
func descendants(t *testing.T, pid int) (list []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			list = append(append(list, n), descendants(t, n)...)
		}
	}
	return list
}

// TestCanary looks for an input value, for a secret, and for where the machine keeps things, in all that a store is given and all that is said, but for the states
// themselves; and with recipients in these too.
func TestCanary(t *testing.T) {
	s := newStore(t)
	const value = "73.313373133"
	recipient := "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
	m := newMachine(t, s, "USP_SNAPSHOT_RECIPIENTS="+recipient, "AWS_SESSION_TOKEN=t0ken-canary", "USP_LOG_LEVEL=debug")
	var input bytes.Buffer
	fmt.Fprintln(&input, "time,value,password")
	for i := range 200 {
		fmt.Fprintf(&input, "%d,%s,hunter2-canary\n", (i+1)*1e9, value)
	}
	check(t, os.WriteFile(filepath.Join(m.dir, "input.csv"), input.Bytes(), 0o600))
	said := m.usp(0, "200 stored", "run", "input.csv")
	more := m.usp(0, "", "sink", "latest", "--json")
	other := newMachine(t, s, "USP_LOG_LEVEL=debug")
	last := other.usp(12, "", "run", "--resume", place+"/latest", "input.csv")
	bits := float64Bytes(t, value)
	canaries := map[string][]byte{"value": []byte(value), "value as float64": bits, "column": []byte("hunter2"), "secret key": []byte(secretKey), "token": []byte("t0ken-canary"), "directory": []byte(m.dir)}
	look := func(where string, b []byte) {
		t.Helper()
		for what, canary := range canaries {
			if bytes.Contains(b, canary) {
				t.Errorf("%s holds the %s", where, what)
			}
		}
	}
	keys := s.keys(t)
	if len(keys) < 6 {
		t.Fatalf("the store has %v", keys)
	}
	for _, key := range keys {
		look("the name "+key, []byte(key))
		look(key, s.get(t, key))
	}
	s.each(func(method, uri string, h http.Header) {
		h = h.Clone()
		if h.Get("X-Amz-Security-Token") == "t0ken-canary" {
			h.Del("X-Amz-Security-Token") // that is where it belongs
		}
		look("request "+uri, []byte(fmt.Sprint(method, uri, h)))
	})
	for _, r := range []result{more, last} {
		look("what is said", []byte(strings.ReplaceAll(r.out+r.err, m.dir, "")))
	}
	look("what the run says beside its forecasts", []byte(strings.ReplaceAll(said.err, m.dir, "")))
	status, err := os.ReadFile(filepath.Join(m.dir, "runs", m.latest(), "sinks", "remote.status"))
	check(t, err)
	look("the status", status)

	// The canary can be found: without recipients the states hold it.
	s.clear(t)
	plain := newMachine(t, s)
	check(t, os.WriteFile(filepath.Join(plain.dir, "input.csv"), input.Bytes(), 0o600))
	plain.usp(0, "200 stored", "run", "-q", "input.csv")
	found := false
	for _, key := range s.keys(t) {
		found = found || bytes.Contains(s.get(t, key), bits)
	}
	if !found {
		t.Error("not even a state in the clear holds the value: the test looks for the wrong bytes")
	}
	plain.usp(0, "are not encrypted", "doctor")
}

func float64Bytes(t *testing.T, text string) []byte {
	t.Helper()
	x, err := strconv.ParseFloat(text, 64)
	check(t, err)
	return binary.LittleEndian.AppendUint64(nil, math.Float64bits(x))
}

// each goes through the requests that were made.
func (s *store) each(see func(method, uri string, h http.Header)) {
	s.mu.Lock()
	requests, headers := slices.Clone(s.requests), slices.Clone(s.headers)
	s.mu.Unlock()
	for i, r := range requests {
		method, uri, _ := strings.Cut(r, " ")
		see(method, uri, headers[i])
	}
}

func (s *store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.headers = nil, nil
}

// TestVersions has a bucket that keeps versions give up all of them, where object lock is asked for: else nothing would ever go.
func TestVersions(t *testing.T) {
	s := newStore(t)
	check(t, s.backend.SetVersioningConfiguration(bucket, gofakes3.VersioningConfiguration{Status: gofakes3.VersioningEnabled}))
	for _, lock := range []string{remote.LockNone, remote.LockGovernance} {
		store, err := remote.OpenS3(remote.S3Options{Bucket: bucket, Endpoint: s.URL, Lock: lock, LockFor: time.Hour, Creds: credentials.NewStaticV4(keyID, secretKey, "")})
		check(t, err)
		for _, text := range []string{"one", "two"} {
			check(t, store.Put(t.Context(), "key", []byte(text), remote.Tags{}))
			check(t, store.Put(t.Context(), "key2", []byte(text), remote.Tags{}))
		}
		check(t, store.Remove(t.Context(), "key"))
		check(t, store.Remove(t.Context(), "nothing"))
		list, err := store.List(t.Context(), "")
		check(t, err)
		if len(list) != 1 || list[0].Key != "key2" {
			t.Errorf("%s: there is %v", lock, list)
		}
		versions, err := s.backend.ListBucketVersions(bucket, nil, nil)
		check(t, err)
		left := 0
		for _, v := range versions.Versions {
			if v, ok := v.(*gofakes3.Version); ok && v.Key == "key" {
				left++
			}
		}
		if want := map[string]int{remote.LockNone: 2, remote.LockGovernance: 0}[lock]; left != want {
			t.Errorf("%s: %d versions are left, want %d", lock, left, want)
		}
	}
}

// TestBack has a store that refuses for a while be given everything by the same run when it is back, and each of both said once.
func TestBack(t *testing.T) {
	s := newStore(t)
	m := newMachine(t, s, "USP_SNAPSHOT_ON_EVENTS=false")
	var refused atomic.Int32
	s.set(func(w http.ResponseWriter, _ *http.Request) bool {
		return refused.Add(1) <= 4 && !refuse(w, http.StatusServiceUnavailable, "SlowDown")
	})
	r := m.usp(0, "309 stored", "run")
	for _, once := range []string{"the remote store takes nothing; recording goes on", "the remote store takes snapshots again"} {
		if strings.Count(r.err, once) != 1 {
			t.Errorf("%q is not said once:\n%s", once, r.err)
		}
	}
	if n := refused.Load(); n <= 4 {
		t.Errorf("only %d requests", n)
	}
	run := m.latest()
	m.usp(0, "4 snapshots sent, 0 waiting; newest of step 309", "sink", "--status", run)
	m.whole(s, run, snapshot.FileName(100, 0), snapshot.FileName(200, 0), snapshot.FileName(300, 0), snapshot.FileName(309, 0))
}
