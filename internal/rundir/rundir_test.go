package rundir_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

var now = time.Date(2026, 11, 22, 20, 18, 33, 5, time.FixedZone("CET", 3600))

func schema(t testing.TB) *record.Schema {
	t.Helper()
	s, err := record.NewSchema("test.v1", record.Field{Name: "loss", Class: record.Metric})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func manifest(t testing.TB, id string, generation uint32) rundir.Manifest {
	m := rundir.Manifest{
		RunID: id, Generation: generation, Created: now, Host: rundir.Host{Name: "host", OS: "linux", Arch: "amd64", CPU: "a cpu", CPUs: 2},
		Go: "go1.26", USP: "devel", ConfigSHA256: sha256.Sum256([]byte("config")), Schema: string(schema(t).Text()), DigestEvery: 10,
		Ring: rundir.Ring{Name: rundir.RingName(id), Slots: 16384, SlotSize: 256}, Producer: json.RawMessage(`{"input":"example:sunspots"}`), Signer: "usp-0a1b+x",
	}
	if generation > 0 {
		m.Resumed = &rundir.Resumed{Generation: generation - 1, Step: 9, SnapshotSHA256: sha256.Sum256([]byte("snapshot"))}
	}
	return m
}

func TestNames(t *testing.T) {
	d := rundir.At("runs/x/")
	for got, want := range map[string]string{
		d.Path(): "runs/x", d.ID(): "x", d.Telemetry(): "runs/x/telemetry", d.Digests(): "runs/x/digests", d.Snapshots(): "runs/x/snapshots",
		d.Snapshot("a.snap"): "runs/x/snapshots/a.snap", d.Head(): "runs/x/checkpoint", d.Manifest(0): "runs/x/manifest.json",
		d.Manifest(12): "runs/x/manifest-0012.json", rundir.RingName("x"): "x.ring",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for _, name := range []string{"manifest.JSON", "manifest-0000.json", "manifest-1.json", "manifest-00001.json", "manifest-0001.json.bak", "manifest", ""} {
		if g, ok := rundir.ParseManifestName(name); ok {
			t.Errorf("%q is the manifest of generation %d", name, g)
		}
	}
	for _, name := range []string{"x", ".ring", "..ring", "a b.ring", "latest.ring"} {
		if id, ok := rundir.ParseRingName(name); ok {
			t.Errorf("%q is the ring of %q", name, id)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		g := rapid.Uint32().Draw(t, "generation")
		if got, ok := rundir.ParseManifestName(rundir.ManifestName(g)); !ok || got != g {
			t.Fatalf("manifest of generation %d parsed as %d, %v", g, got, ok)
		}
	})
}

func TestNewID(t *testing.T) {
	id, err := rundir.NewID(now, bytes.NewReader([]byte{0, 31, 32, 63, 255}))
	if err != nil || id != "20261122T191833-0z0zz" || !rundir.ValidID(id) {
		t.Errorf("%q, %v", id, err)
	}
	if _, err := rundir.NewID(now, iotest.ErrReader(errors.New("no entropy"))); err == nil {
		t.Error("an id without randomness")
	}
	for _, id := range []string{"", "latest", ".x", "a/b", "a b", "é", strings.Repeat("x", 33)} {
		if rundir.ValidID(id) {
			t.Errorf("%q is valid", id)
		}
	}
}

func TestManifestRoundTrip(t *testing.T) {
	for g := range uint32(2) {
		mem := vfs.NewMem()
		want := manifest(t, "run-1", g)
		sum, err := rundir.WriteManifest(mem, "/", want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := vfs.ReadFile(mem, "/"+rundir.ManifestName(g), 1<<20)
		if err != nil || rundir.Hash(sha256.Sum256(b)) != sum {
			t.Errorf("the file's digest is not %v: %v", sum, err)
		}
		if st, err := mem.Stat("/" + rundir.ManifestName(g)); err != nil || st.Mode().Perm() != 0o444 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		got, again, err := rundir.ReadManifest(mem, "/", g)
		if err != nil || again != sum {
			t.Fatalf("%v, digest %v", err, again)
		}
		want.Format, want.Version, want.SchemaSHA256, want.Created = rundir.Format, rundir.Version, schema(t).Sum(), now.UTC()
		var compact bytes.Buffer
		if err := json.Compact(&compact, got.Producer); err != nil {
			t.Fatal(err)
		}
		got.Producer = compact.Bytes()
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if _, err := rundir.WriteManifest(mem, "/", want); !errors.Is(err, fs.ErrExist) {
			t.Errorf("written twice: %v", err)
		}
	}
}

func TestManifestErrors(t *testing.T) {
	mem := vfs.NewMem()
	if _, err := rundir.WriteManifest(mem, "/", manifest(t, "run-1", 0)); err != nil {
		t.Fatal(err)
	}
	good, err := vfs.ReadFile(mem, "/manifest.json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, old, new string
		want           error
	}{
		{"unknown field", `"go":`, `"later": [1, {}], "go":`, nil},
		{"not json", `{`, `[`, rundir.ErrNotManifest},
		{"other format", `"usp-run"`, `"usp-ran"`, rundir.ErrNotManifest},
		{"newer", `"version": 1`, `"version": 2`, rundir.ErrVersion},
		{"older", `"version": 1`, `"version": 0`, rundir.ErrManifest},
		{"text for a number", `"slots": 16384`, `"slots": "many"`, rundir.ErrManifest},
		{"bad hash", `"config_sha256": "`, `"config_sha256": "0`, rundir.ErrManifest},
		{"upper-case hash", `"config_sha256": "b`, `"config_sha256": "B`, rundir.ErrManifest},
		{"bad id", `"run-1"`, `"run 1"`, rundir.ErrManifest},
		{"bad time", `"2026-11`, `"2026-13`, rundir.ErrManifest},
		{"other schema", `field loss`, `field lost`, rundir.ErrManifest},
		{"no schema", `usp-schema v1`, `usp-schema v9`, rundir.ErrManifest},
	} {
		bad := strings.Replace(string(good), tc.old, tc.new, 1)
		if bad == string(good) {
			t.Fatalf("%s: nothing replaced in\n%s", tc.name, good)
		}
		if _, err := rundir.ParseManifest([]byte(bad)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	for n := range len(good) - 2 {
		if _, err := rundir.ParseManifest(good[:n]); err == nil {
			t.Errorf("cut to %d bytes: parsed", n)
		}
	}
	if _, err := rundir.ParseManifest(append(good, "{}"...)); err == nil {
		t.Error("two documents in one file: parsed")
	}
	bad := manifest(t, "run-1", 1)
	bad.Resumed.Generation = 1
	if _, err := rundir.WriteManifest(mem, "/", bad); !errors.Is(err, rundir.ErrManifest) {
		t.Errorf("resumed from itself: %v", err)
	}
}

func FuzzParseManifest(f *testing.F) {
	mem := vfs.NewMem()
	for g := range uint32(2) {
		if _, err := rundir.WriteManifest(mem, "/", manifest(f, "run-1", g)); err != nil {
			f.Fatal(err)
		}
		b, err := vfs.ReadFile(mem, "/"+rundir.ManifestName(g), 1<<20)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := rundir.ParseManifest(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := rundir.ParseManifest(again)
		if err != nil {
			t.Fatalf("written again it does not parse: %v", err)
		}
		third, err := json.Marshal(m2)
		if err != nil || !bytes.Equal(third, again) {
			t.Fatalf("%v: written again as %s, then as %s", err, again, third)
		}
	})
}

// TestManifestCrash cuts the power before each operation of writing a manifest.
func TestManifestCrash(t *testing.T) {
	mem := vfs.NewMem()
	mem.SetHook(func(op vfs.Op) {
		for _, p := range []vfs.Policy{vfs.DropAll, vfs.KeepAll} {
			after := mem.Crash(nil, p)
			if _, _, err := rundir.ReadManifest(after, "/", 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("crash before %v: %v", op, err)
			}
		}
	})
	if _, err := rundir.WriteManifest(mem, "/", manifest(t, "run-1", 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := rundir.ReadManifest(mem.Crash(nil, vfs.DropAll), "/", 0); err != nil {
		t.Errorf("acknowledged and gone: %v", err)
	}
}

// runs makes run directories with the given ids in a new directory.
func runs(t testing.TB, fsys vfs.FS, ids ...string) string {
	t.Helper()
	dir := "/runs"
	if fsys == vfs.OS() {
		dir = t.TempDir()
	}
	for _, id := range ids {
		path := rundir.At(filepath.Join(dir, id))
		if err := vfs.MkdirAll(fsys, path.Path(), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := rundir.WriteManifest(fsys, path, manifest(t, id, 0)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var three = []string{"20261120T000000-aaaaa", "20261121T000000-bbbbb", "20261122T000000-ccccc"}

func TestResolve(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"os": vfs.OS(), "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := runs(t, fsys, three...)
			if err := fsys.Mkdir(filepath.Join(dir, "99999999T000000-zzzzz"), 0o755); err != nil {
				t.Fatal(err) // begun, killed before its manifest
			}
			for arg, want := range map[string]string{
				three[0]: three[0], "latest": three[2], filepath.Join(dir, three[1]): three[1], filepath.Join(dir, three[1]) + "/": three[1],
				"99999999T000000-zzzzz": "99999999T000000-zzzzz",
			} {
				if got, err := rundir.Resolve(fsys, dir, arg); err != nil || got.ID() != want {
					t.Errorf("%s: %s, %v", arg, got, err)
				}
			}
			if err := rundir.SetLatest(fsys, dir, three[0]); err != nil {
				t.Fatal(err)
			}
			want := three[2] // without symbolic links
			if fsys == vfs.OS() {
				want = three[0]
			}
			if got, err := rundir.Resolve(fsys, dir, "latest"); err != nil || got.ID() != want {
				t.Errorf("latest: %s, %v; want %s", got, err, want)
			}
			if list, err := rundir.List(fsys, dir); err != nil || len(list) != 3 {
				t.Errorf("%d runs, %v", len(list), err)
			}
		})
	}
}

func TestResolveNotFound(t *testing.T) {
	mem := vfs.NewMem()
	dir := runs(t, mem, three...)
	for arg, want := range map[string]string{
		"20261121T000000-bbbbx": `run "20261121T000000-bbbbx" not found in /runs; did you mean 20261121T000000-bbbbb?`,
		"ccccc":                 `run "ccccc" not found in /runs; did you mean 20261122T000000-ccccc?`,
		"20261120":              `run "20261120" not found in /runs; did you mean 20261120T000000-aaaaa?`,
		"entirely/else":         `run "entirely/else" not found in /runs`,
		"":                      `run "" not found in /runs`,
	} {
		_, err := rundir.Resolve(mem, dir, arg)
		if !errors.Is(err, rundir.ErrNotFound) || err.Error() != want {
			t.Errorf("%q: %v", arg, err)
		}
	}
	for _, empty := range []string{"/none", "/"} {
		if _, err := rundir.Resolve(mem, empty, "latest"); err == nil || err.Error() != "there is no run in "+empty+" yet" {
			t.Errorf("latest in %s: %v", empty, err)
		}
	}
	if _, err := rundir.Resolve(vfs.Inject(mem, vfs.Rule{Op: vfs.OpReadDir}), dir, "latest"); err == nil || errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("an I/O error is not a run that is not there: %v", err)
	}
}

func TestSetLatestTwice(t *testing.T) {
	dir := runs(t, vfs.OS(), three...)
	if err := os.Symlink("stale", filepath.Join(dir, ".latest.tmp-0")); err != nil {
		t.Fatal(err)
	}
	for _, id := range three {
		if err := rundir.SetLatest(vfs.OS(), dir, id); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(filepath.Join(dir, "latest")); err != nil || got != id {
			t.Errorf("latest -> %s, %v", got, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, three[2])); err != nil {
		t.Fatal(err)
	}
	if got, err := rundir.Resolve(vfs.OS(), dir, "latest"); err != nil || got.ID() != three[1] {
		t.Errorf("a link that leads nowhere: %s, %v", got, err)
	}
}

func TestList(t *testing.T) {
	mem := vfs.NewMem()
	dir := runs(t, mem, three...)
	second := rundir.At(filepath.Join(dir, three[1]))
	if _, err := rundir.WriteManifest(mem, second, manifest(t, three[1], 1)); err != nil {
		t.Fatal(err)
	}
	if err := vfs.Replace(mem, rundir.At(filepath.Join(dir, three[2])).Manifest(0), []byte("{}"), 0o444); err != nil {
		t.Fatal(err)
	}
	lock, err := mem.Lock(second.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	list, err := rundir.List(mem, dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list {
		got = append(got, fmt.Sprint(r.ID, " ", r.Generation, " ", r.Recording, " ", r.Err != nil, " ", r.Created.Equal(now)))
	}
	want := []string{three[0] + " 0 false false true", three[1] + " 1 true false true", three[2] + " 0 false true false"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if list, err := rundir.List(mem, "/none"); err != nil || list != nil {
		t.Errorf("a directory that is not there: %v, %v", list, err)
	}
}
