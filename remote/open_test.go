package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

var place = Address{"bucket", "fleet"}

// stored is a store with a run of two snapshots, the second of which refers to the first.
func stored(t testing.TB) (*local, *memStore) {
	t.Helper()
	l, s := newLocal(t, testRun), newMemStore()
	l.reuse = &snapshot.Reuse{}
	stays := make([]byte, 70<<10)
	l.snapshot(1, 50, stays...)
	l.snapshot(2, 50, stays...)
	l.sign()
	o := l.options(s)
	o.Part = 1 << 20
	check(t, Send(t.Context(), o))
	return l, s
}

// load has the newest snapshot that verifies, as a resume does; the steps of those that were passed over are rejected.
func load(ctx context.Context, l *local, s Store) (step uint64, rejected []uint64, err error) {
	r, err := Open(ctx, s, place, testRun, l.keys())
	if err != nil {
		return 0, nil, err
	}
	fsys := vfs.NewMem()
	if err := vfs.MkdirAll(fsys, "/x", 0o700); err != nil {
		return 0, nil, err
	}
	for _, c := range r.Snapshots {
		path, err := r.Fetch(ctx, fsys, c, "/x")
		if err == nil {
			_, _, err = snapshot.Load(fsys, path, &c.SHA256)
		}
		switch {
		case err == nil:
			if c.SHA256 != l.sums[c.Name] {
				return 0, nil, errors.New("another snapshot was loaded")
			}
			return c.Step, rejected, nil
		case errors.Is(err, ErrDamaged):
			rejected = append(rejected, c.Step)
		default:
			return 0, rejected, err
		}
	}
	return 0, rejected, nil
}

// TestOpen has the newest one, with what it refers to.
func TestOpen(t *testing.T) {
	l, s := stored(t)
	step, rejected, err := load(t.Context(), l, s)
	if step != 2 || len(rejected) != 0 || err != nil {
		t.Errorf("step %d, rejected %v, %v", step, rejected, err)
	}
	id, err := FindLatest(t.Context(), s, place)
	if id != testRun || err != nil {
		t.Errorf("latest is %q, %v", id, err)
	}
	for _, a := range []Address{{"bucket", "other"}, {"bucket", "flee"}, {"bucket", ""}} {
		if _, err := FindLatest(t.Context(), s, a); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v: %v", a, err)
		}
	}
	if _, err := Open(t.Context(), s, place, "nowhere", nil); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := Open(t.Context(), s, place, testRun, newLocal(t, testRun).keys()); !errors.Is(err, digestlog.ErrWrongKey) {
		t.Error(err)
	}
	r, err := Open(t.Context(), s, place, testRun, nil)
	if err != nil || r.Manifests[0].Signer != l.key || !bytes.Equal(r.ManifestText(0), s.objects["fleet/"+testRun+"/manifest.json"].data) {
		t.Errorf("with the store's own key: %v", err)
	}
}

// TestAltered changes the store in every way that one byte, one object or one name allows: what is loaded then is one of the run's snapshots, to the bit, or nothing
// is, and that is said.
func TestAltered(t *testing.T) {
	l, s := stored(t)
	keys := []string{}
	for key := range s.objects {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	if len(keys) != 6 {
		t.Fatalf("%v", keys)
	}
	loaded, passed, refused := 0, 0, 0
	try := func(what string) {
		t.Helper()
		step, rejected, err := load(t.Context(), l, s)
		switch {
		case err != nil && (errors.Is(err, ErrDamaged) || errors.Is(err, digestlog.ErrWrongKey)):
			refused++
		case err != nil:
			t.Errorf("%s: %v", what, err)
		case step == 0 && len(rejected) == 2, step == 1 && len(rejected) == 0 && s.objects[keys[5]].data == nil, step == 1 && slices.Equal(rejected, []uint64{2}):
			passed++
		case step == 2 && len(rejected) == 0:
			loaded++
		default:
			t.Errorf("%s: step %d, rejected %v", what, step, rejected)
		}
	}
	for i, key := range keys {
		was := s.objects[key]
		unused := i == 3 // the proof of the older one, which the newer refers to by its sum
		stride := 1
		if strings.HasSuffix(key, rundir.SnapshotSuffix) {
			stride = max(stride, len(was.data)/300)
		}
		for at := 0; at < len(was.data); at += stride {
			data := bytes.Clone(was.data)
			data[at] ^= 1 << (at % 8)
			s.objects[key] = memObject{data: data}
			before := loaded
			try(fmt.Sprintf("%s, byte %d", key, at))
			if loaded > before && !unused {
				t.Errorf("%s: byte %d was changed, and nothing was found", key, at)
			}
		}
		for _, n := range []int{0, 1, len(was.data) / 2, len(was.data) - 1} {
			s.objects[key] = memObject{data: was.data[:n]}
			before := loaded
			try(fmt.Sprintf("%s, cut to %d", key, n))
			if loaded > before && !unused {
				t.Errorf("%s: cut to %d bytes, and nothing was found", key, n)
			}
		}
		s.objects[key] = memObject{data: append(bytes.Clone(was.data), 'x')}
		before := loaded
		try(key + ", longer")
		if loaded > before && !unused {
			t.Errorf("%s: a longer one was not found", key)
		}
		delete(s.objects, key)
		before = loaded
		try(key + ", gone")
		if loaded > before && !strings.Contains(key, "snapshots/") {
			t.Errorf("%s: that it is gone was not found", key)
		}
		for _, other := range keys { // one in the place of another
			if other != key {
				s.objects[key] = s.objects[other]
				before := loaded
				try(key + " is " + other)
				if loaded > before && !unused {
					t.Errorf("%s in the place of %s was not found", other, key)
				}
			}
		}
		s.objects[key] = was
	}
	if least := 500; passed < least || refused < least {
		t.Errorf("%d were passed over, %d refused, %d loaded", passed, refused, loaded)
	}
}

// TestAnotherRun does not take the proofs of another run, or of another key, for its own.
func TestAnotherRun(t *testing.T) {
	l, s := stored(t)
	for what, o := range map[string]*local{"another run of the same key": newLocal(t, "20260101T000000-bbbbb", l), "the same run of another key": newLocal(t, testRun)} {
		other := newMemStore()
		name := o.snapshot(2, 50)
		o.sign()
		check(t, Send(t.Context(), o.options(other)))
		mixed := newMemStore()
		for key, object := range s.objects {
			mixed.objects[key] = object
		}
		for _, suffix := range []string{"", ".json"} {
			object := other.objects["fleet/"+o.dir.ID()+"/snapshots/"+name+suffix]
			if suffix != "" {
				object.data = bytes.Replace(object.data, []byte(o.dir.ID()), []byte(testRun), 1) // in the JSON, not in what is signed
			}
			mixed.objects["fleet/"+testRun+"/snapshots/"+name+suffix] = object
		}
		step, rejected, err := load(t.Context(), l, mixed)
		if o.key != l.key {
			if !errors.Is(err, digestlog.ErrWrongKey) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if step != 1 || !slices.Equal(rejected, []uint64{2}) || err != nil {
			t.Errorf("%s: step %d, rejected %v, %v", what, step, rejected, err)
		}
	}
}

// TestForged puts what is proven under another name, and says other things of it than its proof.
func TestForged(t *testing.T) {
	l, s := stored(t)
	names := s.names()
	key := func(i int) string { return "fleet/" + testRun + "/snapshots/" + names[i] }
	doc := func(i int) *snapshotDoc {
		d, err := parseSnapshotDoc(s.objects[key(i)+".json"].data, testRun, names[i])
		check(t, err)
		return d
	}
	for what, forge := range map[string]func(d *snapshotDoc) []byte{
		"the older one in the place of the newer": func(d *snapshotDoc) []byte {
			older := doc(0)
			d.Proof, d.SHA256, d.Size = older.Proof, older.SHA256, older.Size
			return s.objects[key(0)].data
		},
		"another size": func(d *snapshotDoc) []byte { d.Size--; return s.objects[key(1)].data[1:] },
		"another sum":  func(d *snapshotDoc) []byte { d.SHA256[0] ^= 1; return s.objects[key(1)].data },
		"a proof of the manifest": func(d *snapshotDoc) []byte {
			m, err := parseManifestsDoc(s.objects["fleet/"+testRun+"/manifest.proof.json"].data, testRun)
			check(t, err)
			d.Proof = m.Manifests[0].Proof
			return s.objects[key(1)].data
		},
		"a base of itself": func(d *snapshotDoc) []byte { d.Bases = []string{d.Name}; return s.objects[key(1)].data },
		"another format":   func(d *snapshotDoc) []byte { d.Version++; return s.objects[key(1)].data },
	} {
		mixed := newMemStore()
		for key, object := range s.objects {
			mixed.objects[key] = object
		}
		d := doc(1)
		data := forge(d)
		b, err := encode(d)
		check(t, err)
		mixed.objects[key(1)], mixed.objects[key(1)+".json"] = memObject{data: data}, memObject{data: b}
		r, err := Open(t.Context(), mixed, place, testRun, l.keys())
		check(t, err)
		if !errors.Is(r.Snapshots[0].Err, ErrDamaged) || r.Snapshots[0].Name != names[1] {
			t.Errorf("%s: %v", what, r.Snapshots[0].Err)
		}
		if step, rejected, err := load(t.Context(), l, mixed); step != 1 || !slices.Equal(rejected, []uint64{2}) || err != nil {
			t.Errorf("%s: step %d, rejected %v, %v", what, step, rejected, err)
		}
	}
	d, err := parseManifestsDoc(s.objects["fleet/"+testRun+"/manifest.proof.json"].data, testRun)
	check(t, err)
	d.Manifests[0].Proof = doc(0).Proof
	b, err := encode(d)
	check(t, err)
	s.objects["fleet/"+testRun+"/manifest.proof.json"] = memObject{data: b}
	if _, _, err := load(t.Context(), l, s); !errors.Is(err, ErrDamaged) {
		t.Errorf("a manifest with the proof of a snapshot: %v", err)
	}
}

// TestAway tells a store that does not answer from one that is damaged.
func TestAway(t *testing.T) {
	l, s := stored(t)
	_, _, err := load(t.Context(), l, s)
	check(t, err)
	calls := len(s.calls)
	s.calls = nil
	_, _, err = load(t.Context(), l, s)
	check(t, err)
	calls = min(calls, len(s.calls))
	for _, class := range []error{ErrUnreachable, ErrDenied} {
		for n := range calls {
			count := 0
			s.before = func(context.Context, string, string) error {
				if count++; count == n+1 {
					return fmt.Errorf("%w: test", class)
				}
				return nil
			}
			if step, rejected, err := load(t.Context(), l, s); !errors.Is(err, class) || len(rejected) > 0 {
				t.Errorf("call %d: step %d, rejected %v, %v", n, step, rejected, err)
			}
			if count < n+1 {
				t.Errorf("only %d calls", count)
			}
		}
	}
}

// TestPrune removes what retention gives up, and first says which.
func TestPrune(t *testing.T) {
	l, s := newLocal(t, testRun), newMemStore()
	names := []string{l.snapshot(1, 10), l.snapshot(2, 10), l.snapshot(3, 10), l.snapshot(4, 10)}
	l.sign()
	check(t, Send(t.Context(), l.options(s)))
	open := func() *Run {
		r, err := Open(t.Context(), s, place, testRun, l.keys())
		check(t, err)
		return r
	}
	keep := snapshot.Retention{KeepLast: 1}
	got, err := open().Prune(t.Context(), keep, time.Hour, time.Now(), false)
	if len(got) != 0 || err != nil {
		t.Errorf("locked ones went: %v %v", got, err)
	}
	got, err = open().Prune(t.Context(), keep, 0, time.Now(), true)
	if !slices.Equal(got, names[:2]) || err != nil {
		t.Errorf("it would remove %v, %v", got, err)
	}
	s.holds(t, l, names...)
	got, err = open().Prune(t.Context(), keep, 0, time.Now(), false)
	if !slices.Equal(got, names[:2]) || err != nil {
		t.Errorf("it removed %v, %v", got, err)
	}
	s.holds(t, l, names[2:]...)

	// A damaged one is evidence, and holds no place.
	s.objects["fleet/"+testRun+"/snapshots/"+names[3]] = memObject{data: []byte("x")}
	got, err = open().Prune(t.Context(), keep, 0, time.Now(), false)
	if len(got) != 0 || err != nil {
		t.Errorf("it removed %v, %v", got, err)
	}
}

// TestAddress reads addresses, and repeats nothing of what is none.
func TestAddress(t *testing.T) {
	const secret = "s3cr3t"
	for text, want := range map[string]Address{
		"s3://bucket": {"bucket", ""}, "s3://bucket/": {"bucket", ""}, "s3://my.bucket-1/a/b": {"my.bucket-1", "a/b"}, "s3://bucket/a/": {"bucket", "a"},
	} {
		if got, err := ParseAddress(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "bucket", "http://bucket/" + secret, "S3://bucket", "s3://", "s3:///" + secret, "s3://b/x", "s3://Bucket/" + secret, "s3://-bucket", "s3://a..b/x", "s3://bucket/a//b", "s3://bucket/../" + secret,
		"s3://me:" + secret + "@bucket/x", "s3://bucket/x?key=" + secret, "s3://bucket/x#" + secret, "s3://bucket/a b", "s3://bucket/%2e", "s3://bucket/" + strings.Repeat("x", 600), "s3://bucket/ü" + secret,
	} {
		if _, err := ParseAddress(text); !errors.Is(err, ErrAddress) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{"s3://bucket/run-1": "run-1", "s3://bucket/a/b/latest": Latest} {
		if a, run, err := ParseRun(text); run != want || err != nil || a.OfRun(run) != text {
			t.Errorf("%q: %v %q, %v", text, a, run, err)
		}
	}
	for _, text := range []string{"s3://bucket", "s3://bucket/", "s3://bucket/a/.x", "s3://bucket/" + strings.Repeat("x", 40)} {
		if _, _, err := ParseRun(text); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: %v", text, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a := Address{rapid.StringMatching(`[a-z0-9][a-z0-9-]{1,20}[a-z0-9]`).Draw(t, "bucket"), rapid.StringMatching(`([a-zA-Z0-9_-]{1,5}(/[a-zA-Z0-9_-]{1,5}){0,3})?`).Draw(t, "prefix")}
		if got, err := ParseAddress(a.String()); got != a || err != nil {
			t.Fatalf("%v becomes %v, %v", a, got, err)
		}
	})
}

// TestEndpoint refuses what would send a state in the clear, and repeats nothing.
func TestEndpoint(t *testing.T) {
	const secret = "s3cr3t"
	for _, text := range []string{"https://s3.example", "https://s3.example:9000/", "http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"} {
		if err := CheckEndpoint(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{
		"", "s3.example:9000", "http://s3.example", "http://10.0.0.1:9000", "http://127.0.0.1.example:9000", "https://me:" + secret + "@s3.example", "https://s3.example/" + secret, "https://s3.example?" + secret, "https://s3.example#" + secret, "ftp://s3.example", "https://", "http://%zz" + secret,
	} {
		if err := CheckEndpoint(text); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := OpenS3(S3Options{Bucket: "bucket", Env: []string{"AWS_ENDPOINT_URL=http://s3.example"}}); !errors.Is(err, ErrAddress) {
		t.Errorf("from the environment: %v", err)
	}
}

// FuzzSnapshotProof reads what a store can make of a snapshot's proof: an error, or the entry that was signed.
func FuzzSnapshotProof(f *testing.F) {
	l, s := stored(f)
	name := s.names()[0]
	was := s.objects["fleet/"+testRun+"/snapshots/"+name+".json"].data
	keys := l.keys()
	f.Add(was)
	f.Add([]byte(`{}`))
	f.Add(bytes.ReplaceAll(was, []byte(`"size": `), []byte(`"size": 1`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseSnapshotDoc(b, testRun, name)
		if err != nil {
			return
		}
		e, err := d.entry(keys)
		if err != nil {
			return
		}
		if e.SHA256 != l.sums[name] || d.SHA256 != l.sums[name] || e.Name != name {
			t.Errorf("proven: %+v", e)
		}
	})
}

// FuzzManifestsProof likewise.
func FuzzManifestsProof(f *testing.F) {
	l, s := stored(f)
	keys := l.keys()
	f.Add(s.objects["fleet/"+testRun+"/manifest.proof.json"].data)
	f.Add([]byte(`{"format":"usp-remote-manifests","version":1,"run_id":"` + testRun + `","manifests":[{"generation":0,"proof":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseManifestsDoc(b, testRun)
		if err != nil {
			return
		}
		for _, m := range d.Manifests {
			if e, err := proven([]byte(m.Proof), testRun, digestlog.KindOpen, keys); err == nil && e.Generation != 0 {
				t.Errorf("proven: %+v", e)
			}
		}
	})
}

// FuzzStatus reads any status file.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"to":"s3://bucket","next":7,"sent":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fsys, dir := vfs.NewMem(), rundir.At("/r")
		check(t, vfs.MkdirAll(fsys, dir.Sinks(), 0o700))
		check(t, vfs.Replace(fsys, statusFile(dir), b, 0o600))
		s, ok, err := ReadStatus(fsys, dir)
		if err != nil {
			return
		}
		if !ok {
			t.Fatal("a status that is there is not")
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
	})
}
