package snapshot_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

func meta(step uint64) snapshot.Meta {
	return snapshot.Meta{
		RunID: "20261122T201833-9f3kq", Generation: 2, Step: step, Seq: 40 + step,
		Schema: sha256.Sum256([]byte("schema")), TreeSize: 77, TreeRoot: sha256.Sum256([]byte("root")),
		Created: time.Unix(1764187200, 123456789).UTC(), Reason: 3,
	}
}

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func write(t testing.TB, fsys vfs.FS, m snapshot.Meta, s []snapshot.Section, codec snapshot.Codec) snapshot.Info {
	t.Helper()
	info, err := snapshot.Write("/", m, s, snapshot.Options{FS: fsys, Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestRoundTrip(t *testing.T) {
	const c = snapshot.ChunkSize
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		for _, sizes := range [][]int{{}, {0}, {1}, {63, 64, 65}, {c - 1, 0, c}, {c + 1, 3*c + 5}} {
			t.Run(fmt.Sprintf("codec=%v/sizes=%v", codec, sizes), func(t *testing.T) {
				mem := vfs.NewMem()
				var want []snapshot.Section
				for i, n := range sizes {
					data := noise(n)
					if i%2 == 0 {
						clear(data[n/2:]) // half of it compresses, some chunks as a whole
					}
					want = append(want, snapshot.Section{Name: fmt.Sprintf("part.%d", i), Data: data})
				}
				info := write(t, mem, meta(9), want, codec)
				m, got, err := snapshot.Load(mem, "/"+info.Name, &info.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(meta(9), m); diff != "" {
					t.Errorf("meta differs (-want +got):\n%s", diff)
				}
				if len(got) != len(want) {
					t.Fatalf("%d sections, want %d", len(got), len(want))
				}
				for i := range want {
					if got[i].Name != want[i].Name || !bytes.Equal(got[i].Data, want[i].Data) {
						t.Errorf("section %d differs", i)
					}
				}
			})
		}
	}
}

func TestRoundTripRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := vfs.NewMem()
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[A-Za-z0-9._-]{1,64}`), 0, 5, rapid.ID).Draw(t, "names")
		var want []snapshot.Section
		for _, n := range names {
			want = append(want, snapshot.Section{Name: n, Data: rapid.SliceOf(rapid.Byte()).Draw(t, "data")})
		}
		codec := rapid.SampledFrom([]snapshot.Codec{snapshot.None, snapshot.Zstd}).Draw(t, "codec")
		m := meta(rapid.Uint64().Draw(t, "step"))
		info, err := snapshot.Write("/", m, want, snapshot.Options{FS: mem, Codec: codec, Level: rapid.IntRange(0, 22).Draw(t, "level")})
		if err != nil {
			t.Fatal(err)
		}
		gotMeta, got, err := snapshot.Load(mem, "/"+info.Name, &info.SHA256)
		if err != nil || gotMeta != m || len(got) != len(want) {
			t.Fatalf("load: %v, %d sections", err, len(got))
		}
		for i := range want {
			if got[i].Name != want[i].Name || !bytes.Equal(got[i].Data, want[i].Data) {
				t.Fatalf("section %d differs", i)
			}
		}
		container := snapshot.AppendSections(nil, want)
		if len(container) != snapshot.SectionsSize(want) {
			t.Fatalf("container has %d bytes, SectionsSize says %d", len(container), snapshot.SectionsSize(want))
		}
		views, err := snapshot.ParseSections(container)
		if err != nil || len(views) != len(want) {
			t.Fatalf("parse: %v, %d sections", err, len(views))
		}
		for i := range want {
			if views[i].Name != want[i].Name || !bytes.Equal(views[i].Data, want[i].Data) {
				t.Fatalf("staged section %d differs", i)
			}
		}
	})
}

func TestWriteOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := []snapshot.Section{{Name: "state", Data: noise(100)}}
	info, err := snapshot.Write(dir, meta(5), s, snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "00000000000000000005-0002.snap")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(b); sum != info.SHA256 || int64(len(b)) != info.Size {
		t.Errorf("info says %x and %d bytes, the file has %x and %d", info.SHA256, info.Size, sum, len(b))
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o400 {
		t.Errorf("mode %v, %v; want 0400", st.Mode(), err)
	}
	if _, err := snapshot.Write(dir, meta(5), nil, snapshot.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second write: %v, want fs.ErrExist", err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, b) {
		t.Error("second write changed the file")
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("directory holds %v", list)
	}
}

func TestWriteRefuses(t *testing.T) {
	one := func(name string) []snapshot.Section { return []snapshot.Section{{Name: name}} }
	noRun := meta(1)
	noRun.RunID = ""
	longRun := meta(1)
	longRun.RunID = strings.Repeat("x", 33)
	for _, tc := range []struct {
		name string
		m    snapshot.Meta
		s    []snapshot.Section
		o    snapshot.Options
		want string
	}{
		{"no name", meta(1), one(""), snapshot.Options{}, "section name"},
		{"bad name", meta(1), one("a/b"), snapshot.Options{}, "section name"},
		{"long name", meta(1), one(strings.Repeat("x", 65)), snapshot.Options{}, "section name"},
		{"twice", meta(1), append(one("a"), one("a")...), snapshot.Options{}, "twice"},
		{"no run", noRun, nil, snapshot.Options{}, "run id"},
		{"long run", longRun, nil, snapshot.Options{}, "run id"},
		{"codec", meta(1), nil, snapshot.Options{Codec: 9}, "codec"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.FS = vfs.NewMem()
			_, err := snapshot.Write("/", tc.m, tc.s, tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
			if list, _ := tc.o.FS.ReadDir("/"); len(list) != 0 {
				t.Errorf("left behind %v", list)
			}
		})
	}
}

func TestLoadMismatch(t *testing.T) {
	mem := vfs.NewMem()
	info := write(t, mem, meta(1), nil, snapshot.None)
	other := sha256.Sum256(nil)
	if _, s, err := snapshot.Load(mem, "/"+info.Name, &other); !errors.Is(err, snapshot.ErrMismatch) || s != nil {
		t.Errorf("load: %v, want ErrMismatch and nothing else", err)
	}
	if _, err := snapshot.Verify(mem, "/"+info.Name, &other); !errors.Is(err, snapshot.ErrMismatch) {
		t.Errorf("verify: %v, want ErrMismatch", err)
	}
	if _, _, err := snapshot.Load(mem, "/none.snap", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v, want fs.ErrNotExist", err)
	}
	if _, _, err := snapshot.Load(mem, "/", nil); !errors.Is(err, snapshot.ErrNotSnapshot) {
		t.Errorf("directory: %v, want ErrNotSnapshot", err)
	}
}

func TestInspectAndList(t *testing.T) {
	mem := vfs.NewMem()
	s := []snapshot.Section{{Name: "a", Data: make([]byte, 5000)}, {Name: "b", Data: noise(10)}}
	late := write(t, mem, meta(10), s, snapshot.None)
	early := write(t, mem, meta(9), s, snapshot.Zstd)
	_, infos, err := snapshot.Inspect(mem, "/"+early.Name)
	if err != nil {
		t.Fatal(err)
	}
	want := []snapshot.SectionInfo{
		{Name: "a", Offset: 256, Size: 5000, StoredSize: infos[0].StoredSize, Codec: snapshot.Zstd},
		{Name: "b", Offset: infos[1].Offset, Size: 10, StoredSize: 10},
	}
	if diff := cmp.Diff(want, infos); diff != "" || infos[0].StoredSize > 100 || infos[1].Offset%64 != 0 {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
	put(t, mem, "/00000000000000000011-0000.snap", []byte("USPSNAP1 and then nothing"))
	put(t, mem, "/00000000000000000012-0002.snap", get(t, mem, "/"+late.Name)) // renamed by hand
	put(t, mem, "/notes.txt", nil)
	list, err := snapshot.List(mem, "/")
	if err != nil || len(list) != 4 {
		t.Fatalf("list: %v, %v", list, err)
	}
	var names []string
	for _, i := range list {
		names = append(names, fmt.Sprint(i.Step, i.Err != nil))
	}
	if got := strings.Join(names, " "); got != "9 false 10 false 11 true 10 true" && got != "9 false 10 false 10 true 11 true" {
		t.Errorf("list: %s", got)
	}
}

func put(t testing.TB, fsys vfs.FS, name string, b []byte) {
	t.Helper()
	if err := fsys.Chmod(name, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, fsys vfs.FS, name string) []byte {
	t.Helper()
	b, err := vfs.ReadFile(fsys, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ExampleWrite() {
	dir, err := os.MkdirTemp("", "snapshots")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	state := []snapshot.Section{{Name: "weights", Data: []byte("0.25 0.25 0.25 0.25")}}
	info, err := snapshot.Write(dir, snapshot.Meta{RunID: "demo", Step: 42}, state, snapshot.Options{Codec: snapshot.Zstd})
	if err != nil {
		panic(err)
	}
	meta, sections, err := snapshot.Load(vfs.OS(), filepath.Join(dir, info.Name), &info.SHA256)
	if err != nil {
		panic(err)
	}
	fmt.Println(info.Name)
	fmt.Printf("step %d: %s = %s\n", meta.Step, sections[0].Name, sections[0].Data)
	// Output:
	// 00000000000000000042-0000.snap
	// step 42: weights = 0.25 0.25 0.25 0.25
}
