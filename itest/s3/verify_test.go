package s3

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/usp-project/usp/snapshot"
)

// runs are the run directories of a machine.
func (m *machine) runs() (list []string) {
	m.t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.dir, "runs"))
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "latest" {
			list = append(list, e.Name())
		}
	}
	return list
}

// signer is the key that has signed a machine's runs.
func (m *machine) signer(run string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "runs", run, "manifest.json"))
	check(m.t, err)
	var manifest struct{ Signer string }
	check(m.t, json.Unmarshal(b, &manifest))
	return manifest.Signer
}

// TestAltered alters what is in the store, an object after the other and each kind of byte in it: what is damaged is named and never loaded, and a resume takes
// the next older snapshot, or nothing at all.
func TestAltered(t *testing.T) {
	s := newStore(t)
	one := newMachine(t, s, "USP_SNAPSHOT_ON_EVENTS=false", "USP_SNAPSHOT_INTERVAL=200")
	one.usp(0, "309 stored", "run")
	id, whole := one.latest(), one.digests("latest")
	far := place + "/" + id
	base := "fleet/" + id + "/"
	newest, older := base+"snapshots/"+snapshot.FileName(309, 0), base+"snapshots/"+snapshot.FileName(200, 0)
	if keys := s.keys(t); len(keys) != 6 || !slices.Contains(keys, newest) || !slices.Contains(keys, older) {
		t.Fatalf("the store has %v", keys)
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			b[(at+len(b))%len(b)] ^= 4
			return b
		}
	}
	within := func(text string, behind int) func([]byte) []byte {
		return func(b []byte) []byte {
			i := bytes.Index(b, []byte(text))
			if i < 0 {
				t.Fatalf("no %q in %s", text, b)
			}
			return flip(i + len(text) + behind)(b)
		}
	}
	short := func(b []byte) []byte { return b[:len(b)-1] }
	long := func(b []byte) []byte { return append(bytes.Clone(b), 0) }
	empty := func([]byte) []byte { return nil }
	for _, tt := range []struct {
		key    string
		alter  func([]byte) []byte
		passes bool // the next older one is loaded; else the whole run is refused
	}{
		{newest, flip(0), true}, {newest, flip(100), true}, {newest, flip(-1), true}, {newest, flip(-70), true}, {newest, func(b []byte) []byte { return flip(len(b) / 2)(b) }, true},
		{newest, short, true}, {newest, long, true}, {newest, empty, true},
		{newest, func([]byte) []byte { return s.get(t, older) }, true},
		{newest + ".json", flip(0), true}, {newest + ".json", short, true}, {newest + ".json", long, true}, {newest + ".json", empty, true},
		{newest + ".json", within(`"sha256": "`, 3), true}, {newest + ".json", within(`"size": `, 0), true}, {newest + ".json", within(`extra `, 9), true}, {newest + ".json", within("\\nindex ", 0), true},
		{newest + ".json", within(`\n— `, 1), true}, {newest + ".json", flip(-10), true}, {newest + ".json", within(`"name": "`, 4), true}, {newest + ".json", within(`"run_id": "`, 4), true},
		{newest + ".json", func([]byte) []byte { return s.get(t, older+".json") }, true},
		{base + "manifest.json", flip(0), false}, {base + "manifest.json", within(`"config_sha256"`, 5), false}, {base + "manifest.json", short, false}, {base + "manifest.json", empty, false},
		{base + "manifest.proof.json", flip(0), false}, {base + "manifest.proof.json", within(`extra `, 9), false}, {base + "manifest.proof.json", flip(-20), false}, {base + "manifest.proof.json", empty, false},
	} {
		was := s.get(t, tt.key)
		altered := tt.alter(was)
		if bytes.Equal(was, altered) {
			continue // a line end behind the JSON
		}
		s.putObject(t, tt.key, altered)
		other := newMachine(t, s, "USP_SNAPSHOT_REMOTE=")
		r := other.try("run", "--resume", far)
		switch {
		case !tt.passes:
			if r.code != 20 && r.code != 12 || !strings.Contains(r.err, strings.TrimPrefix(tt.key, base)) || len(other.runs()) > 0 {
				t.Errorf("%s: exit %d, runs %v: %s", tt.key, r.code, other.runs(), r.err)
			}
		case strings.HasSuffix(tt.key, ".json") && r.code == 12: // the signature's key id was hit: it is no known key any more
		case r.code != 0 || !strings.Contains(r.err, "snapshot of step 309 not loaded: "+snapshot.FileName(309, 0)) || !strings.Contains(r.err, "trying the one of step 200"):
			t.Errorf("%s: exit %d: %s", tt.key, r.code, r.err)
		default:
			for step, sum := range other.digests("latest") {
				if whole[step] != sum || step <= 200 {
					t.Fatalf("%s: step %v is another one", tt.key, step)
				}
			}
		}
		if r := other.try("snapshot", "verify", far); r.code != 20 && r.code != 12 {
			t.Errorf("%s: snapshot verify exits with %d: %s%s", tt.key, r.code, r.out, r.err)
		}
		s.putObject(t, tt.key, was)
	}

	// All of them: nothing is loaded, nothing is begun.
	other := newMachine(t, s)
	for _, key := range []string{newest, older} {
		s.putObject(t, key, flip(200)(s.get(t, key)))
	}
	r := other.usp(20, "no snapshot of the run can be loaded", "run", "--resume", far)
	if len(other.runs()) > 0 || !strings.Contains(r.err, "step 309 not loaded") || !strings.Contains(r.err, "step 200 not loaded") {
		t.Errorf("runs %v: %s", other.runs(), r.err)
	}
	other.usp(20, "no snapshot of the run can be loaded", "snapshot", "load", far, "--to", "state")
	if _, err := os.Stat(filepath.Join(other.dir, "state")); err == nil {
		t.Error("a state was written")
	}
	other.usp(20, "", "snapshot", "pull", far, "--to", "pulled")
}

// TestKey has the key of the log decide whose snapshots are loaded.
func TestKey(t *testing.T) {
	s := newStore(t)
	one := newMachine(t, s)
	one.usp(0, "309 stored", "run")
	id := one.latest()
	key := one.signer(id)
	other := newMachine(t, s, "USP_SNAPSHOT_REMOTE=")
	other.usp(0, "309 stored", "run", "-q")
	wrong := other.signer(other.latest())

	other.usp(0, "is complete: 309 of 309 rows were predicted; nothing to resume", "run", "--resume", place+"/"+id, "--key", key)
	if runs := other.runs(); len(runs) != 1 {
		t.Errorf("a run was begun: %v", runs)
	}
	s.remove(t, "fleet/"+id+"/snapshots/"+snapshot.FileName(309, 0)+".json")
	r := other.usp(0, "checked with the key that was given", "run", "--resume", place+"/"+id, "--key", key)
	if strings.Contains(r.err, "no --key") {
		t.Errorf("a key was given: %s", r.err)
	}
	before := len(other.runs())
	for _, args := range [][]string{{"run", "--resume", place + "/" + id}, {"snapshot", "ls", place + "/latest"}, {"snapshot", "verify", place + "/latest"}, {"snapshot", "load", place + "/latest", "--to", "x"}, {"snapshot", "pull", place + "/latest", "--to", "y"}, {"snapshot", "prune", place + "/latest"}} {
		r := other.usp(12, "not by the key that was given, but signed by "+strings.Join(strings.SplitN(key, "+", 3)[:2], "+"), append(args, "--key", wrong)...)
		if strings.Count(strings.TrimSpace(r.err), "\n") > 0 {
			t.Errorf("%v: not one line: %s", args, r.err)
		}
	}
	if len(other.runs()) != before {
		t.Error("a run was begun with the wrong key")
	}
	other.usp(2, "", "snapshot", "ls", place+"/latest", "--key", "no key")
	other.usp(2, "--key is for s3://", "snapshot", "ls", "latest", "--key", key)
	other.usp(2, "--key is for --resume s3://", "run", "--key", key)

	// On the machine itself its own key is known.
	if r := one.usp(0, "with your own key", "snapshot", "verify", place+"/latest"); strings.Contains(r.err, "no --key") {
		t.Errorf("its own key is not taken: %s", r.err)
	}
	if r := other.usp(0, "with the key that the store itself names", "snapshot", "verify", place+"/latest"); !strings.Contains(r.err, "no --key: the key that the store itself names is believed, "+key) {
		t.Errorf("%s", r.err)
	}
}

// TestEncrypted sends what is encrypted as it is; a resume needs the secret key.
func TestEncrypted(t *testing.T) {
	s := newStore(t)
	identity, err := age.GenerateX25519Identity()
	check(t, err)
	one := newMachine(t, s, "USP_SNAPSHOT_RECIPIENTS="+identity.Recipient().String())
	one.usp(0, "309 stored", "run")
	whole, id := one.digests("latest"), one.latest()
	one.usp(0, "ok as stored; not decrypted", "snapshot", "verify", place+"/latest")
	if r := one.usp(0, "answers", "doctor"); strings.Contains(r.out, "not encrypted") {
		t.Errorf("%s", r.out)
	}
	s.lose(t, id, 309)
	other := newMachine(t, s)
	check(t, os.WriteFile(filepath.Join(other.dir, "secret.txt"), []byte(identity.String()+"\n"), 0o600))
	other.usp(12, "name the file with its secret key", "run", "--resume", place+"/"+id)
	if len(other.runs()) > 0 {
		t.Errorf("runs %v", other.runs())
	}
	other.usp(0, "continuing run "+id+" behind step 300", "run", "--resume", place+"/"+id, "--identity", "secret.txt")
	for step, sum := range other.digests("latest") {
		if whole[step] != sum {
			t.Errorf("step %v is another one", step)
		}
	}
	other.usp(0, "ok, decrypted", "snapshot", "verify", place+"/"+id, "--identity", "secret.txt")
	stranger, err := age.GenerateX25519Identity()
	check(t, err)
	check(t, os.WriteFile(filepath.Join(other.dir, "stranger.txt"), []byte(stranger.String()+"\n"), 0o600))
	other.usp(12, "intact, but", "snapshot", "verify", place+"/"+id, "--identity", "stranger.txt")
}

// TestBases loads snapshots that refer to an older one, which was sent before them and is not pruned while it is needed.
func TestBases(t *testing.T) {
	s := newStore(t)
	m := newMachine(t, s, "USP_SNAPSHOT_KEEP_LAST=1")
	run := m.recordLarge(200_000, 1000, 1001, 1002, 1003, 1004, 1005, 1006) // whole: 1 and 6
	m.usp(0, "7 snapshots sent, 0 waiting", "sink", run)
	one := func(step uint64) string { return "fleet/" + run + "/snapshots/" + snapshot.FileName(step, 0) }
	keys := s.keys(t)
	for step, stays := range []bool{1: true, 2: false, 3: false, 4: false, 5: true, 6: true, 7: true} {
		if step > 0 && slices.Contains(keys, one(uint64(step))) != stays {
			t.Errorf("step %d stays: %v, want %v", step, !stays, stays)
		}
	}
	if n := len(s.get(t, one(7))); n > 100_000 {
		t.Fatalf("the snapshot of step 7 refers to nothing: it has %d bytes", n)
	}
	other := newMachine(t, s)
	for _, step := range []string{"7", "5"} {
		m.usp(0, "loaded", "snapshot", "load", run, "--step", step, "--to", "here"+step)
		other.usp(0, "loaded", "snapshot", "load", place+"/"+run, "--step", step, "--to", "there"+step)
		a, err := os.ReadFile(filepath.Join(m.dir, "here"+step))
		check(t, err)
		b, err := os.ReadFile(filepath.Join(other.dir, "there"+step))
		check(t, err)
		if sha256.Sum256(a) != sha256.Sum256(b) || len(a) < 200_000 {
			t.Errorf("step %s: another state, of %d and %d bytes", step, len(a), len(b))
		}
	}
	other.usp(10, "no snapshot of step 3", "snapshot", "load", place+"/"+run, "--step", "3", "--to", "there3")
	other.usp(0, "4 of 4 verified", "snapshot", "verify", place+"/"+run)

	// A base that is damaged takes with it what refers to it, which is said.
	was := s.get(t, one(6))
	b := bytes.Clone(was)
	b[len(b)/2] ^= 1
	s.putObject(t, one(6), b)
	r := other.usp(0, "snapshot of step 7 not loaded", "snapshot", "load", place+"/"+run, "--to", "older")
	if !strings.Contains(r.err, "refers to "+snapshot.FileName(6, 0)) || !strings.Contains(r.out, snapshot.FileName(5, 0)) {
		t.Errorf("%s%s", r.out, r.err)
	}
	s.remove(t, one(6))
	other.usp(0, "refers to "+snapshot.FileName(6, 0)+": damaged in the remote store: it is gone", "snapshot", "load", place+"/"+run, "--to", "older2")
	s.putObject(t, one(6), was)

	// And by hand.
	other.env = append(other.env, "USP_SNAPSHOT_KEEP_LAST=1")
	other.usp(0, "nothing to remove", "snapshot", "prune", place+"/"+run)
	m.usp(0, "", "snapshot", "prune", run)
	m.usp(0, "", "snapshot", "load", run, "--step", "7", "--to", "again")
}

// TestPull brings snapshots with proofs that stand by themselves.
func TestPull(t *testing.T) {
	s := newStore(t)
	one := newMachine(t, s)
	one.usp(0, "309 stored", "run")
	id := one.latest()
	key := one.signer(id)
	other := newMachine(t, s)
	other.usp(0, "1 snapshot of run "+id, "snapshot", "pull", place+"/latest", "--to", "p", "--key", key)
	name := snapshot.FileName(309, 0)
	info, err := os.Stat(filepath.Join(other.dir, "p", name))
	check(t, err)
	if info.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v", info.Mode())
	}
	other.usp(0, "is in the log of run "+id, "verify", "--proof", filepath.Join("p", name+".proof"), "--key", key)
	other.usp(0, "1 snapshot of run "+id, "snapshot", "pull", place+"/latest", "--to", "p", "--key", key) // it is there already
	other.usp(0, "5 snapshots of run "+id, "snapshot", "pull", place+"/"+id, "--to", "p", "--all", "--key", key)
	sum := func(path string) [32]byte {
		b, err := os.ReadFile(path)
		check(t, err)
		return sha256.Sum256(b)
	}
	for _, file := range []string{"manifest.json", "snapshots/" + name} {
		if sum(filepath.Join(one.dir, "runs", id, file)) != sum(filepath.Join(other.dir, "p", filepath.Base(file))) {
			t.Errorf("%s is another one", file)
		}
	}
	check(t, os.Remove(filepath.Join(other.dir, "p", name)))
	s.putObject(t, "fleet/"+id+"/snapshots/"+name, []byte("forged"))
	other.usp(20, "snapshot of step 309 left out", "snapshot", "pull", place+"/"+id, "--to", "p", "--all", "--key", key)
	if _, err := os.Stat(filepath.Join(other.dir, "p", name)); err == nil {
		t.Error("the damaged one was kept")
	}
	other.usp(0, "trying the one of step 300", "snapshot", "pull", place+"/"+id, "--to", "q", "--key", key)
	other.usp(2, "--to DIR", "snapshot", "pull", place+"/"+id)
	other.usp(0, fmt.Sprintf("%q: %q", "run_id", id), "snapshot", "ls", place+"/latest", "--json")
}
