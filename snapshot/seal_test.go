package snapshot_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func seal(t testing.TB, fsys vfs.FS, m snapshot.Meta, s []snapshot.Section, codec snapshot.Codec, to ...age.Recipient) snapshot.Info {
	t.Helper()
	info, err := snapshot.Write("/", m, s, snapshot.Options{FS: fsys, Codec: codec, Recipients: to})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func with(ids ...age.Identity) snapshot.LoadOptions { return snapshot.LoadOptions{Identities: ids} }

func TestEncryptedRoundTrip(t *testing.T) {
	const c = snapshot.ChunkSize
	id, second, stranger := identity(t), identity(t), identity(t)
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		// 65536-4 bytes fill an age chunk to the byte; c-300 lets the age file pass a piece.
		for _, sizes := range [][]int{{}, {0}, {1}, {65532, 65533, 0}, {c - 300, c}, {c + 1, 3*c + 5}} {
			t.Run(fmt.Sprintf("codec=%v/sizes=%v", codec, sizes), func(t *testing.T) {
				mem := vfs.NewMem()
				var want []snapshot.Section
				for i, n := range sizes {
					data := noise(n)
					if i%2 == 0 {
						clear(data[n/2:])
					}
					want = append(want, snapshot.Section{Name: fmt.Sprintf("part.%d", i), Data: data})
				}
				info := seal(t, mem, meta(9), want, codec, id.Recipient(), second.Recipient())
				for _, key := range []age.Identity{id, second} {
					m, got, err := snapshot.LoadWith(mem, "/"+info.Name, &info.SHA256, with(stranger, key))
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(meta(9), m); diff != "" || len(got) != len(want) {
						t.Fatalf("%d sections, meta (-want +got):\n%s", len(got), diff)
					}
					for i := range want {
						if got[i].Name != want[i].Name || !bytes.Equal(got[i].Data, want[i].Data) {
							t.Errorf("section %d differs", i)
						}
					}
				}
				checkWithoutKey(t, mem, info, want, codec)
			})
		}
	}
}

// checkWithoutKey wants everything but the state from someone who has no key.
func checkWithoutKey(t *testing.T, fsys vfs.FS, info snapshot.Info, want []snapshot.Section, codec snapshot.Codec) {
	t.Helper()
	path := "/" + info.Name
	if _, s, err := snapshot.Load(fsys, path, nil); !errors.Is(err, snapshot.ErrEncrypted) || s != nil {
		t.Errorf("load without a key: %v, want ErrEncrypted", err)
	}
	state := 0
	for _, s := range want {
		state += len(s.Data)
	}
	if _, s, err := snapshot.LoadWith(fsys, path, nil, with(identity(t))); state > 0 && (!errors.Is(err, snapshot.ErrWrongIdentity) || s != nil) {
		t.Errorf("load with another key: %v, want ErrWrongIdentity", err)
	}
	got, err := snapshot.Verify(fsys, path, &info.SHA256)
	if diff := cmp.Diff(info, got); err != nil || diff != "" || !got.Encrypted {
		t.Errorf("verify: %v (-want +got):\n%s", err, diff)
	}
	list, err := snapshot.List(fsys, "/")
	if err != nil || len(list) != 1 || list[0].Err != nil || !list[0].Encrypted {
		t.Errorf("list: %+v, %v", list, err)
	}
	_, sections, err := snapshot.Inspect(fsys, path)
	if err != nil || len(sections) != len(want) {
		t.Fatalf("inspect: %d sections, %v", len(sections), err)
	}
	for i, s := range sections {
		if s.Name != want[i].Name || s.Size != int64(len(want[i].Data)) || !s.Encrypted || s.Codec != codec {
			t.Errorf("section %d: %+v", i, s)
		}
	}
}

func TestEncryptedRapid(t *testing.T) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		mem := vfs.NewMem()
		var want []snapshot.Section
		for _, n := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,64}`), 0, 3, rapid.ID).Draw(t, "names") {
			want = append(want, snapshot.Section{Name: n, Data: rapid.SliceOf(rapid.Byte()).Draw(t, "data")})
		}
		o := snapshot.Options{FS: mem, Codec: rapid.SampledFrom([]snapshot.Codec{snapshot.None, snapshot.Zstd}).Draw(t, "codec"), Recipients: []age.Recipient{id.Recipient()}}
		info, err := snapshot.Write("/", meta(1), want, o)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := snapshot.LoadWith(mem, "/"+info.Name, &info.SHA256, with(id))
		if err != nil || len(got) != len(want) {
			t.Fatalf("load: %v, %d sections", err, len(got))
		}
		for i := range want {
			if got[i].Name != want[i].Name || !bytes.Equal(got[i].Data, want[i].Data) {
				t.Fatalf("section %d differs", i)
			}
		}
	})
}

// TestNothingLeaks wants two snapshots of one state to have no stored byte in
// common that depends on it, and the state and its digests nowhere.
func TestNothingLeaks(t *testing.T) {
	id := identity(t)
	data := bytes.Repeat([]byte("the same state. "), 1000)
	var files [2][]byte
	for i := range files {
		mem := vfs.NewMem()
		info := seal(t, mem, meta(1), []snapshot.Section{{Name: "s", Data: data}}, snapshot.Zstd, id.Recipient())
		files[i] = get(t, mem, "/"+info.Name)
		sum := sha256.Sum256(data)
		if bytes.Contains(files[i], data[:16]) || bytes.Contains(files[i], sum[:]) {
			t.Error("the state or its SHA-256 is in the file")
		}
	}
	if len(files[0]) != len(files[1]) {
		t.Fatalf("%d and %d bytes", len(files[0]), len(files[1]))
	}
	a, b := files[0], files[1]
	index := binary.LittleEndian.Uint64(a[len(a)-128+16:])
	if bytes.Equal(a[index+128:], b[index+128:]) || bytes.Equal(a[index-128:index], b[index-128:index]) {
		t.Error("checksums or stored bytes tell that two states are equal")
	}
}

// TestAgeReads takes a section out of the file as doc/format/snapshot.md says and
// decrypts it with age alone.
func TestAgeReads(t *testing.T) {
	id := identity(t)
	mem := vfs.NewMem()
	data := noise(snapshot.ChunkSize + 10)
	info := seal(t, mem, meta(1), []snapshot.Section{{Name: "s", Data: data}}, snapshot.None, id.Recipient())
	_, sections, err := snapshot.Inspect(mem, "/"+info.Name)
	if err != nil {
		t.Fatal(err)
	}
	file := get(t, mem, "/"+info.Name)[sections[0].Offset:][:sections[0].StoredSize]
	r, err := age.Decrypt(bytes.NewReader(file), id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	want := binary.LittleEndian.AppendUint32(nil, snapshot.ChunkSize)
	want = append(want, data[:snapshot.ChunkSize]...)
	want = binary.LittleEndian.AppendUint32(want, 10)
	want = append(want, data[snapshot.ChunkSize:]...)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
}

func TestEncryptedEveryByteFlipped(t *testing.T) {
	id := identity(t)
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		mem := vfs.NewMem()
		zip := make([]byte, 300)
		info := seal(t, mem, meta(3), []snapshot.Section{{Name: "zip", Data: zip}, {Name: "raw", Data: noise(70)}, {Name: "empty"}}, codec, id.Recipient())
		good := get(t, mem, "/"+info.Name)
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			put(t, mem, "/x.snap", bad)
			_, sections, err := snapshot.LoadWith(mem, "/x.snap", nil, with(id))
			if err == nil || sections != nil {
				t.Fatalf("codec %v: byte %d flipped: loaded, err %v", codec, i, err)
			}
			if cerr := classified(err); cerr != nil {
				t.Fatalf("codec %v: byte %d flipped: %v", codec, i, cerr)
			}
			checkPlace(t, good, i, err)
			if _, verr := snapshot.Verify(mem, "/x.snap", nil); verr == nil || verr.Error() != err.Error() {
				t.Fatalf("byte %d: Verify says %v, LoadWith %v", i, verr, err)
			}
		}
		for n := range good {
			put(t, mem, "/x.snap", good[:n])
			if _, s, err := snapshot.LoadWith(mem, "/x.snap", nil, with(id)); !errors.Is(err, snapshot.ErrTruncated) || s != nil {
				t.Fatalf("cut to %d bytes: %v, want ErrTruncated", n, err)
			}
		}
	}
}

// TestEncryptedReadBack lets the disk store another byte than it was given.
func TestEncryptedReadBack(t *testing.T) {
	mem := vfs.NewMem()
	_, err := snapshot.Write("/", meta(1), []snapshot.Section{{Name: "s", Data: noise(5000)}},
		snapshot.Options{FS: &flipFS{FS: mem}, Recipients: []age.Recipient{identity(t).Recipient()}})
	if err == nil {
		t.Error("a write that stored other bytes was not found")
	}
	if list, _ := mem.ReadDir("/"); len(list) != 0 {
		t.Errorf("left behind %v", list)
	}
}

// brokenRecipient fails, or wraps nothing that is a key.
type brokenRecipient struct{ err error }

func (r brokenRecipient) Wrap([]byte) ([]*age.Stanza, error) {
	return []*age.Stanza{{Type: "broken"}}, r.err
}

func TestRecipientsRefused(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no card in the reader")
	for name, tc := range map[string]struct {
		to   []age.Recipient
		want string
	}{
		"nil":      {[]age.Recipient{identity(t).Recipient(), nil}, "recipient 2 is nil"},
		"failing":  {[]age.Recipient{brokenRecipient{broken}}, broken.Error()},
		"mixed":    {[]age.Recipient{identity(t).Recipient(), hybrid.Recipient()}, "post-quantum"},
		"mixed 2":  {[]age.Recipient{hybrid.Recipient(), identity(t).Recipient()}, "post-quantum"},
		"too many": {many(identity(t).Recipient(), 1025), "reading back"},
	} {
		mem := vfs.NewMem()
		_, err := snapshot.Write("/", meta(1), []snapshot.Section{{Name: "s", Data: noise(10)}}, snapshot.Options{FS: mem, Recipients: tc.to})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if list, _ := mem.ReadDir("/"); len(list) != 0 {
			t.Errorf("%s: left behind %v", name, list)
		}
	}
}

func many(r age.Recipient, n int) []age.Recipient {
	all := make([]age.Recipient, n)
	for i := range all {
		all[i] = r
	}
	return all
}

// TestEncryptedMemory writes and verifies a state of 32 MiB in a few chunks of memory.
func TestEncryptedMemory(t *testing.T) {
	state := make([]byte, 32<<20)
	dir := t.TempDir()
	id := identity(t)
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info, err := snapshot.Write(dir, snapshot.Meta{RunID: "r", Step: uint64(codec)}, []snapshot.Section{{Name: "state", Data: state}},
			snapshot.Options{Codec: codec, Recipients: []age.Recipient{id.Recipient()}})
		if err == nil {
			_, err = snapshot.Verify(vfs.OS(), filepath.Join(dir, info.Name), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		// The decryption of age allocates each of its 64 KiB anew: that is garbage, not memory held.
		if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20+24<<20 {
			t.Errorf("codec %v: %d MiB allocated", codec, n>>20)
		}
	}
}

func TestParseRecipients(t *testing.T) {
	id := identity(t)
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	public, pq := id.Recipient().String(), hybrid.Recipient().String()
	for _, tc := range []struct {
		keys []string
		want string // part of the error; empty: none
	}{
		{nil, ""},
		{[]string{public, " " + identity(t).Recipient().String() + "\n"}, ""},
		{[]string{pq}, ""},
		{[]string{public, ""}, "recipient 2: is empty"},
		{[]string{public[:20]}, "recipient 1: malformed"},
		{[]string{public, id.String()}, "recipient 2: is a secret key"},
		{[]string{strings.ToLower(hybrid.String())}, "recipient 1: is a secret key"},
		{[]string{"ssh-ed25519 AAAA"}, "recipient 1: is no age public key"},
		{[]string{public, pq}, "1 of 2 recipients"},
	} {
		got, err := snapshot.ParseRecipients(tc.keys...)
		if tc.want == "" && (err != nil || len(got) != len(tc.keys)) || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || got != nil) {
			t.Errorf("%.30q: %d recipients, %v; want %q", tc.keys, len(got), err, tc.want)
		}
		if err != nil && strings.Contains(strings.ToUpper(err.Error()), id.String()[20:40]) {
			t.Errorf("%v shows a secret key", err)
		}
	}
}

func TestReadIdentities(t *testing.T) {
	id := identity(t)
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	secret := id.String()
	damaged := secret[:30] + "B" + secret[31:40] + "\n"
	for name, tc := range map[string]struct {
		text string
		mode fs.FileMode
		n    int
		want string
	}{
		"one":        {"# created: today\n# public key: x\n" + secret + "\n", 0o600, 1, ""},
		"two":        {secret + "\r\n\n" + hybrid.String(), 0o400, 2, ""},
		"group":      {secret, 0o640, 0, "mode 0640"},
		"others":     {secret, 0o604, 0, "mode 0604"},
		"empty":      {"# nothing\n", 0o600, 0, "holds no secret key"},
		"public":     {id.Recipient().String(), 0o600, 0, "line 1 is a public key"},
		"damaged":    {"\n" + damaged, 0o600, 0, "line 2 is a damaged"},
		"plugin":     {"AGE-PLUGIN-X-1ABC", 0o600, 0, "plugin"},
		"other":      {"hunter2", 0o600, 0, "line 1 is no age secret key"},
		"encrypted":  {"age-encryption.org/v1\n", 0o600, 0, "itself encrypted"},
		"armored":    {"-----BEGIN AGE ENCRYPTED FILE-----\n", 0o600, 0, "itself encrypted"},
		"large":      {strings.Repeat("# ", 1<<20), 0o600, 0, "too large"},
		"not there":  {"", 0, 0, "no such file"},
		"directory/": {"", 0, 0, "not a regular file"},
	} {
		path := filepath.Join(t.TempDir(), "identity.txt")
		switch {
		case strings.HasSuffix(name, "/"):
			path = filepath.Dir(path)
		case tc.mode != 0:
			if err := errors.Join(os.WriteFile(path, []byte(tc.text), 0o600), os.Chmod(path, tc.mode)); err != nil {
				t.Fatal(err)
			}
		}
		ids, err := snapshot.ReadIdentities(vfs.OS(), path)
		if tc.want == "" && err != nil || len(ids) != tc.n || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %d identities, %v; want %d, %q", name, len(ids), err, tc.n, tc.want)
		}
		if tc.mode&0o077 != 0 && !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v does not wrap fs.ErrPermission", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), secret[20:30]) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%v shows a secret", err)
		}
	}
}

func ExampleLoadWith() {
	dir, err := os.MkdirTemp("", "snapshots")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	key, err := age.GenerateX25519Identity() // of the one who may read; the writer needs the public half only
	if err != nil {
		panic(err)
	}
	recipients, err := snapshot.ParseRecipients(key.Recipient().String())
	if err != nil {
		panic(err)
	}
	state := []snapshot.Section{{Name: "weights", Data: []byte("0.25 0.25 0.25 0.25")}}
	info, err := snapshot.Write(dir, snapshot.Meta{RunID: "demo", Step: 42}, state, snapshot.Options{Recipients: recipients})
	if err != nil {
		panic(err)
	}
	path := filepath.Join(dir, info.Name)
	_, _, err = snapshot.Load(vfs.OS(), path, &info.SHA256)
	fmt.Println("without a key it", errors.Unwrap(err))
	_, sections, err := snapshot.LoadWith(vfs.OS(), path, &info.SHA256, snapshot.LoadOptions{Identities: []age.Identity{key}})
	if err != nil {
		panic(err)
	}
	fmt.Printf("with it: %s = %s\n", sections[0].Name, sections[0].Data)
	// Output:
	// without a key it is encrypted; an age identity is needed to load it
	// with it: weights = 0.25 0.25 0.25 0.25
}
