package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/snapshot"
)

const testRun = "20260101T000000-aaaaa"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// local is a run directory in memory, as a recorder would leave it.
type local struct {
	t          testing.TB
	fs         *vfs.Mem
	dir        rundir.Dir
	signer     note.Signer
	key        string
	log        *digestlog.Log
	generation uint32
	reuse      *snapshot.Reuse
	sums       map[string][32]byte
}

// newLocal begins a run, with the key of another one or with one of its own.
func newLocal(t testing.TB, run string, like ...*local) *local {
	t.Helper()
	l := &local{t: t, fs: vfs.NewMem(), dir: rundir.At("/runs/" + run), sums: map[string][32]byte{}}
	check(t, vfs.MkdirAll(l.fs, l.dir.Snapshots(), 0o755))
	for _, other := range like {
		key, err := vfs.ReadFile(other.fs, "/signing.key", 1<<10)
		check(t, err)
		check(t, vfs.Replace(l.fs, "/signing.key", key, 0o600))
	}
	var err error
	l.signer, l.key, err = digestlog.LoadOrCreateKey(l.fs, "/signing.key", rand.Reader)
	check(t, err)
	l.log, err = digestlog.Open(l.dir.Digests(), digestlog.Options{FS: l.fs, RunID: run, Signer: l.signer, HeadPath: l.dir.Head(), SegmentSize: 64 << 10})
	check(t, err)
	l.open(nil)
	return l
}

// open begins a generation.
func (l *local) open(to *rundir.Resumed) {
	l.t.Helper()
	l.opened(l.manifest(to), to)
}

// manifest writes that of a generation, which its OPEN entry follows.
func (l *local) manifest(to *rundir.Resumed) rundir.Hash {
	l.t.Helper()
	schema, err := record.NewSchema("test.v1", record.Field{Name: "loss", Class: record.Metric})
	check(l.t, err)
	sum, err := rundir.WriteManifest(l.fs, l.dir, rundir.Manifest{
		RunID: l.dir.ID(), Generation: l.generation, Created: time.Now(), Schema: string(schema.Text()), Signer: l.key, Resumed: to,
	})
	check(l.t, err)
	return sum
}

func (l *local) opened(sum rundir.Hash, to *rundir.Resumed) {
	l.t.Helper()
	m, _, err := rundir.ReadManifest(l.fs, l.dir, l.generation)
	check(l.t, err)
	schema, err := m.ParsedSchema()
	check(l.t, err)
	l.append(&digestlog.Entry{Kind: digestlog.KindOpen, Generation: l.generation, Manifest: sum, Schema: schema.Sum(), Resumed: to != nil})
	if to != nil {
		l.append(&digestlog.Entry{Kind: digestlog.KindRewind, Generation: l.generation, Step: to.Step, Target: to.Step, FromGeneration: to.Generation, SHA256: to.SnapshotSHA256})
	}
	l.sign()
}

func (l *local) append(e *digestlog.Entry) {
	l.t.Helper()
	_, err := l.log.Append(e)
	check(l.t, err)
	check(l.t, l.log.Sync())
}

func (l *local) sign() {
	l.t.Helper()
	_, err := l.log.SignHead()
	check(l.t, err)
}

// snapshot takes one, whose state has size bytes, and logs it. What stays is a section that no snapshot changes.
func (l *local) snapshot(step uint64, size int, stays ...byte) string {
	l.t.Helper()
	return l.logged(l.write(step, size, stays...))
}

// write takes a snapshot, which its entry follows.
func (l *local) write(step uint64, size int, stays ...byte) snapshot.Info {
	l.t.Helper()
	state := make([]byte, size)
	for i, r := 0, mathrand.New(mathrand.NewPCG(step, 1)); i < size; i++ {
		state[i] = byte(r.Uint32())
	}
	sections := []snapshot.Section{{Name: "state", Data: state}}
	if len(stays) > 0 {
		sections = append(sections, snapshot.Section{Name: "stays", Data: stays})
	}
	info, err := snapshot.Write(l.dir.Snapshots(), snapshot.Meta{RunID: l.dir.ID(), Generation: l.generation, Step: step, Seq: step, Created: time.Now()}, sections,
		snapshot.Options{FS: l.fs, Reuse: l.reuse})
	check(l.t, err)
	return info
}

func (l *local) logged(info snapshot.Info) string {
	l.t.Helper()
	l.append(&digestlog.Entry{Kind: digestlog.KindSnapshot, Generation: l.generation, Step: info.Step, Seq: info.Step, SHA256: info.SHA256, Size: uint64(info.Size), Name: info.Name})
	l.sums[info.Name] = info.SHA256
	return info.Name
}

// prune removes one, as a recorder does.
func (l *local) prune(name string) {
	l.t.Helper()
	step, _, _ := snapshot.ParseFileName(name)
	l.append(&digestlog.Entry{Kind: digestlog.KindPrune, Generation: l.generation, Step: step, Target: step, SHA256: l.sums[name], Name: name})
	l.sign()
	check(l.t, l.fs.Remove(l.dir.Snapshot(name)))
}

func (l *local) options(s Store) Options {
	return Options{Dir: l.dir, Store: s, To: Address{"bucket", "fleet"}, Pace: sink.Pace{FS: l.fs}, Part: 1 << 10}
}

func (l *local) keys() note.Verifiers {
	l.t.Helper()
	v, err := note.NewVerifier(l.key)
	check(l.t, err)
	return note.VerifierList(v)
}

// memStore is a bucket in memory. before is asked before each call and can make it fail; after likewise, when it is done.
type memStore struct {
	objects map[string]memObject
	uploads map[string]*memUpload
	next    int
	calls   []string
	before  func(ctx context.Context, call, key string) error
	after   func(call, key string) error
}

type memObject struct {
	data []byte
	tags Tags
}

type memUpload struct {
	key   string
	parts map[int][]byte
}

func newMemStore() *memStore {
	return &memStore{objects: map[string]memObject{}, uploads: map[string]*memUpload{}}
}

func (m *memStore) call(ctx context.Context, call, key string, do func() error) error {
	m.calls = append(m.calls, call+" "+key)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if m.before != nil {
		if err := m.before(ctx, call, key); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if m.after != nil {
		return m.after(call, key)
	}
	return nil
}

func (m *memStore) List(ctx context.Context, prefix string) (list []Object, err error) {
	err = m.call(ctx, "list", prefix, func() error {
		for key, o := range m.objects {
			if strings.HasPrefix(key, prefix) {
				list = append(list, Object{Key: key, Size: int64(len(o.data))})
			}
		}
		slices.SortFunc(list, func(a, b Object) int { return cmp.Compare(a.Key, b.Key) })
		return nil
	})
	return list, err
}

func (m *memStore) missing(key string) error { return fmt.Errorf("%w: %s", ErrNotFound, key) }

func (m *memStore) Open(ctx context.Context, key string) (r io.ReadCloser, size int64, err error) {
	err = m.call(ctx, "open", key, func() error {
		o, ok := m.objects[key]
		if !ok {
			return m.missing(key)
		}
		r, size = io.NopCloser(bytes.NewReader(o.data)), int64(len(o.data))
		return nil
	})
	return r, size, err
}

func (m *memStore) Stat(ctx context.Context, key string) (o Object, err error) {
	err = m.call(ctx, "stat", key, func() error {
		have, ok := m.objects[key]
		if !ok {
			return m.missing(key)
		}
		o = Object{Key: key, Size: int64(len(have.data)), SHA256: have.tags.SHA256}
		return nil
	})
	return o, err
}

func (m *memStore) Put(ctx context.Context, key string, data []byte, t Tags) error {
	return m.call(ctx, "put", key, func() error {
		m.objects[key] = memObject{bytes.Clone(data), t}
		return nil
	})
}

func (m *memStore) Remove(ctx context.Context, key string) error {
	return m.call(ctx, "remove", key, func() error {
		delete(m.objects, key)
		return nil
	})
}

func (m *memStore) Begin(ctx context.Context, key string, t Tags) (id string, err error) {
	err = m.call(ctx, "begin", key, func() error {
		m.next++
		id = fmt.Sprint(m.next, " ", t.SHA256)
		m.uploads[id] = &memUpload{key, map[int][]byte{}}
		return nil
	})
	return id, err
}

func (m *memStore) upload(key, id string) (*memUpload, error) {
	u, ok := m.uploads[id]
	if !ok || u.key != key {
		return nil, m.missing(key)
	}
	return u, nil
}

func (m *memStore) Part(ctx context.Context, key, id string, n int, data []byte) (tag string, err error) {
	err = m.call(ctx, fmt.Sprint("part", n), key, func() error {
		u, err := m.upload(key, id)
		if err != nil {
			return err
		}
		u.parts[n] = bytes.Clone(data)
		tag = fmt.Sprintf("%d:%x", n, sha256.Sum256(data))
		return nil
	})
	return tag, err
}

func (m *memStore) Finish(ctx context.Context, key, id string, tags []string, t Tags) error {
	return m.call(ctx, "finish", key, func() error {
		u, err := m.upload(key, id)
		if err != nil {
			return err
		}
		var all []byte
		for i, tag := range tags {
			if tag != fmt.Sprintf("%d:%x", i+1, sha256.Sum256(u.parts[i+1])) {
				return errors.New("a part is another one")
			}
			all = append(all, u.parts[i+1]...)
		}
		m.objects[key] = memObject{all, t}
		delete(m.uploads, id)
		return nil
	})
}

func (m *memStore) Abort(ctx context.Context, key, id string) error {
	return m.call(ctx, "abort", key, func() error {
		delete(m.uploads, id)
		return nil
	})
}

func (m *memStore) Uploads(ctx context.Context, prefix string) (list []Upload, err error) {
	err = m.call(ctx, "uploads", prefix, func() error {
		for id, u := range m.uploads {
			if strings.HasPrefix(u.key, prefix) {
				list = append(list, Upload{u.key, id})
			}
		}
		return nil
	})
	return list, err
}

// names are the snapshots of the test's run that count.
func (m *memStore) names() (list []string) {
	for key := range m.objects {
		if name, ok := strings.CutSuffix(key, proofSuffix); ok && strings.HasSuffix(name, rundir.SnapshotSuffix) {
			list = append(list, name[strings.LastIndex(name, "/")+1:])
		}
	}
	slices.Sort(list)
	return list
}

// holds fails unless the store has these snapshots, each as it was taken, and nothing half done.
func (m *memStore) holds(t testing.TB, l *local, want ...string) {
	t.Helper()
	if got := m.names(); !slices.Equal(got, want) {
		t.Fatalf("there are %v, want %v", got, want)
	}
	r, err := Open(t.Context(), m, Address{"bucket", "fleet"}, l.dir.ID(), l.keys())
	check(t, err)
	for _, s := range r.Snapshots {
		if s.Err != nil || s.SHA256 != l.sums[s.Name] || sha256.Sum256(m.objects["fleet/"+l.dir.ID()+"/snapshots/"+s.Name].data) != l.sums[s.Name] {
			t.Errorf("%s is not the one that was taken: %v", s.Name, s.Err)
		}
	}
	if len(m.uploads) > 0 || len(r.Partial) > 0 {
		t.Errorf("%d uploads, %v are half done", len(m.uploads), r.Partial)
	}
}

func status(t testing.TB, l *local) Status {
	t.Helper()
	s, ok, err := ReadStatus(l.fs, l.dir)
	check(t, err)
	if !ok {
		t.Fatal("there is no status")
	}
	return s
}
