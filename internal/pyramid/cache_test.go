package pyramid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

const cacheDir = "/cache/usp/aggregates"

// clock is one that a test moves.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }

func newClock() *clock { return &clock{time.Unix(1_700_000_000, 0)} }

func openCache(t fataler, fsys vfs.FS, most int64, c *clock) *Cache {
	t.Helper()
	k, err := OpenCache(CacheOptions{Dir: cacheDir, Max: most, FS: fsys, Now: c.now})
	check(t, err)
	return k
}

// partly opens a query that looks in a cache and reads no segment whole but the one that is recorded.
func (f *fixture) partly(k *Cache) *Query {
	f.t.Helper()
	q := &Query{opts: QueryOptions{Dir: f.dir, FS: f.fs, Damaged: func(error) {}, Cache: k, Partial: true}, leaf: defaultLeaf, room: maxMemory, known: schemas{}}
	check(f.t, q.Refresh(f.ctx()))
	return q
}

// built makes what is missing and wants that to be so many files.
func built(t fataler, k *Cache, f *fixture, want int) Built {
	t.Helper()
	b, err := k.Build(f.ctx(), BuildOptions{FS: f.fs, Dir: f.dir})
	if err != nil || b.Made != want || b.Left != 0 {
		t.Fatalf("%+v, %v; want %d files", b, err, want)
	}
	return b
}

// complete wants a query to have every record of the run, at any width.
func complete(t fataler, q *Query, f *fixture) {
	t.Helper()
	rows := f.effective()
	if e := q.Extent(); e.Unbuilt != 0 {
		t.Fatalf("%d of %d segments have no file", e.Unbuilt, e.Segments)
	}
	for _, field := range []Field{{Name: "loss"}, {Name: "flags"}, {Name: "delta"}} {
		for _, columns := range []int{1, 7, 500} {
			compare(t, q, f, rows, field, 0, math.MaxUint64, columns)
			compare(t, q, f, rows, field, f.step/3, f.step/2, columns)
		}
	}
}

// cached are the paths of the aggregates in the cache.
func cached(t fataler, fsys vfs.FS) (paths []string) {
	t.Helper()
	shelves, err := fsys.ReadDir(cacheDir)
	check(t, err)
	for _, s := range shelves {
		files, err := fsys.ReadDir(filepath.Join(cacheDir, s.Name()))
		check(t, err)
		for _, f := range files {
			if filepath.Ext(f.Name()) == suffix {
				paths = append(paths, filepath.Join(cacheDir, s.Name(), f.Name()))
			}
		}
	}
	return paths
}

func overwrite(t fataler, fsys vfs.FS, path string, data []byte) {
	t.Helper()
	h, err := fsys.OpenFile(path, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o600)
	check(t, err)
	_, err = h.Write(data)
	check(t, errors.Join(err, h.Close()))
}

// TestCache: what is missing is made once, for this user alone, outside of the run, and used by whoever comes later.
func TestCache(t *testing.T) {
	f := segments(t)
	defer f.close()
	c := newClock()
	k := openCache(t, f.fs, 0, c)
	before := fmt.Sprint(f.fs.ReadDir(f.dir.Path()))
	if b := built(t, k, f, 4); b.Records != 6700 {
		t.Errorf("%+v", b)
	}
	if after := fmt.Sprint(f.fs.ReadDir(f.dir.Path())); after != before {
		t.Errorf("the run directory has changed from %s to %s", before, after)
	}
	paths := cached(t, f.fs)
	if len(paths) != 4 {
		t.Errorf("%q", paths)
	}
	for _, path := range append(paths, filepath.Join(filepath.Dir(paths[0]), usedFile)) {
		if info, err := f.fs.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	for _, dir := range []string{filepath.Dir(paths[0]), cacheDir, filepath.Dir(cacheDir)} {
		if info, err := f.fs.Stat(dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	q := f.partly(k)
	defer q.Close()
	complete(t, q, f)
	for _, p := range q.parts {
		if !p.cached || p.fill != nil {
			t.Errorf("%s is not read from the cache", p.info.Name)
		}
	}
	again := openCache(t, f.fs, 0, c)
	if b := built(t, again, f, 0); b.Kept != 4 {
		t.Errorf("%+v", b)
	}
	_, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir}) // those of the run itself are preferred
	check(t, err)
	built(t, again, f, 0)
	if paths := cached(t, f.fs); len(paths) != 0 {
		t.Errorf("what is beside the segments is kept in the cache too: %q", paths)
	}
	check(t, q.Close())
	check(t, q.Refresh(t.Context()))
	complete(t, q, f)
}

// TestSampled: without files a long run is answered at once: what is known for sure, from few records, and from all where a
// range is short.
func TestSampled(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 11)
	defer f.close()
	for range 5 {
		f.emit(12_000, 1)
		f.lose(5)
		f.emit(3000, 1)
		f.roll()
	}
	f.emit(10, 1)
	k := openCache(t, f.fs, 0, newClock())
	q := f.partly(k)
	defer q.Close()
	rows := f.effective()
	e := q.Extent()
	if e.Unbuilt != 5 || e.Segments != 6 || e.Records != 75_010 || e.Lost != 25 || e.FromStep != 1 || e.ToStep != f.step {
		t.Errorf("%+v", e)
	}
	if n, which := q.Missing(); n != 5 || which == 0 {
		t.Errorf("%d segments are missing, %d", n, which)
	}
	for _, r := range [][2]uint64{{1, 900}, {14_000, 16_000}, {29_990, 30_010}, {f.step - 500, f.step}, {44_000, 44_000}, {0, f.step + 9}} {
		if r[1]-r[0] < 3000 { // all of its records are read
			compare(t, q, f, rows, Field{Name: "loss"}, r[0], r[1], 100)
			compare(t, q, f, rows, Field{Name: "flags"}, r[0], r[1], 30)
		}
		cs := f.all(q, Field{Name: "pair", Element: 1}, 20)
		sampled, count := 0, uint64(0)
		for _, col := range cs {
			if count += col.Count; col.Sampled {
				sampled++
			}
			exact, err := q.Range(t.Context(), Field{Name: "pair", Element: 1}, col.FromStep, col.UntilStep, 1)
			if err != nil || col.Min < exact[0].Min || col.Max > exact[0].Max || col.NaNs > exact[0].NaNs {
				t.Errorf("%v: %+v is no part of %+v", err, col, exact)
			}
		}
		if sampled < 10 || count < 5*eachSamples*defaultLeaf/2 || count > 75_010/2 {
			t.Errorf("%d of %d columns are sampled, with %d records", sampled, len(cs), count)
		}
	}
	for range 5 { // one more at each call
		made := 0
		b, err := k.Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir, Stop: func() bool { made++; return made > 6-e.Unbuilt }})
		if check(t, err); b.Made != 1 || b.Left == 0 && e.Unbuilt > 1 {
			t.Errorf("%+v", b)
		}
		check(t, q.Refresh(t.Context()))
		if now := q.Extent(); now.Unbuilt != e.Unbuilt-1 || now.Records != e.Records {
			t.Errorf("%+v after %+v", now, e)
		}
		e = q.Extent()
	}
	complete(t, q, f)
	for _, c := range f.all(q, Field{Name: "loss"}, 20) {
		if c.Sampled {
			t.Errorf("%+v", c)
		}
	}
}

// TestSampledTime: reading samples ends when its time is over, has seen the whole run by then, and goes on with the next call.
func TestSampledTime(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 12)
	defer f.close()
	for range 40 {
		f.emit(600, 1)
		f.roll()
	}
	c := newClock()
	q := &Query{opts: QueryOptions{Dir: f.dir, FS: f.fs, Damaged: func(error) {}, Partial: true}, leaf: defaultLeaf, room: maxMemory, known: schemas{}}
	q.opts.Now = func() time.Time { c.pass(sampleFor / 10); return c.at }
	defer q.Close()
	seen, rows := 0, f.effective()
	for range 5 {
		check(t, q.Refresh(t.Context()))
		looked, first, last := 0, -1, 0
		for i, p := range q.parts {
			if p.looked {
				if looked++; first < 0 {
					first = i
				}
				last = i
			}
		}
		if looked <= seen && seen < 40 || seen == 0 && (looked > 12 || first > 4 || last < 30) {
			t.Errorf("%d segments were looked at after %d, from %d to %d", looked, seen, first, last)
		}
		seen = looked
		for at := uint64(100); at < f.step; at += 600 { // also in those that were not looked at
			compare(t, q, f, rows, Field{Name: "loss"}, at, at+20, 5)
		}
	}
	if seen != 40 {
		t.Errorf("%d of 40 segments were looked at", seen)
	}
}

// TestCacheInterrupted has the making of files fail at each of its operations, and end in its midst: what was made is right, and the next
// one makes the rest.
func TestCacheInterrupted(t *testing.T) {
	f := segments(t)
	defer f.close()
	for n := 1; ; n += 3 {
		mem := vfs.NewMem()
		in := vfs.Inject(mem)
		c := newClock()
		k := openCache(t, in, 0, c)
		calls := in.Calls(vfs.OpAny)
		in.Add(vfs.Rule{Op: vfs.OpAny, Nth: n, Sticky: n%2 == 0, Err: syscall.ENOSPC, Short: true})
		_, err := k.Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
		failed := in.Calls(vfs.OpAny) - calls
		in.Clear()
		q := f.partly(k)
		rows := f.effective()
		if q.Extent().Unbuilt == 0 {
			complete(t, q, f)
		}
		compare(t, q, f, rows, Field{Name: "loss"}, 100, 300, 10)
		b, again := k.Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
		if again != nil || b.Made+b.Kept != 4 {
			t.Fatalf("operation %d failed with %v, then %+v, %v", n, err, b, again)
		}
		check(t, q.Refresh(t.Context()))
		complete(t, q, f)
		check(t, q.Close())
		names := cached(t, mem)
		if len(names) != 4 {
			t.Fatalf("operation %d: %q", n, names)
		}
		if left, err := mem.ReadDir(filepath.Dir(names[0])); err != nil || len(left) > 5 { // those, and when they were used
			t.Errorf("operation %d: %v, %v", n, left, err)
		}
		if failed < n {
			break
		}
	}
	k := openCache(t, vfs.NewMem(), 0, newClock())
	ctx, cancel := context.WithCancelCause(t.Context())
	end := errors.New("enough")
	b, err := k.Build(ctx, BuildOptions{FS: f.fs, Dir: f.dir, Progress: func(done, total uint64) {
		if done > total/3 {
			cancel(end)
		}
	}})
	if !errors.Is(err, end) || b.Made == 0 || b.Made == 4 {
		t.Errorf("%+v, %v", b, err)
	}
	built(t, k, f, 4-b.Made)
}

// TestCacheGrowing follows a run that is recorded, interrupted and resumed, with files made now and then.
func TestCacheGrowing(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 5)
	defer f.close()
	k := openCache(t, f.fs, 0, newClock())
	f.emit(50, 2)
	q := f.partly(k)
	defer q.Close()
	look := func() {
		t.Helper()
		check(t, q.Refresh(t.Context()))
		if q.Extent().Unbuilt == 0 {
			complete(t, q, f)
		}
	}
	look()
	for i, want := range []int{1, 1, 1, 2, 0} {
		f.emit(700, 2)
		look() // the segment is read as it grows
		switch i {
		case 1:
			f.rewind(f.step * 2 / 3)
			f.emit(20, 1)
		case 3:
			f.roll()
			f.emit(300, 1)
			f.roll()
		case 4:
		default:
			f.roll()
		}
		look()
		built(t, k, f, want)
		look()
		complete(t, q, f)
	}
	f.roll() // the end of the run
	built(t, k, f, 1)
	look()
	if n, _ := q.Missing(); n != 0 {
		t.Errorf("%d files are missing at the end", n)
	}
	fresh := f.partly(k)
	defer fresh.Close()
	complete(t, fresh, f)
	for _, p := range fresh.parts {
		if !p.cached {
			t.Errorf("%s is not read from the cache", p.info.Name)
		}
	}
}

// TestCacheReplaced: another run under the same name has no use of what was made for the first, neither one with another
// manifest nor an older copy of the same that went another way.
func TestCacheReplaced(t *testing.T) {
	at := time.Unix(1_700_000_000, 0).UTC()
	run := func(seed uint64, created, laid time.Time) *fixture {
		f := newFixtureAt(t, vfs.NewMem(), seed, created, laid)
		for range 3 {
			f.emit(1000, 1)
			f.roll()
		}
		f.close()
		return f
	}
	first := run(1, at, at)
	for name, other := range map[string]*fixture{"another run": run(2, at.Add(1), at.Add(1)), "an older copy that went on": run(3, at, at.Add(1))} {
		mem := vfs.NewMem()
		k := openCache(t, mem, 0, newClock())
		built(t, k, first, 3)
		q := first.partly(k) // it is looked at while it is replaced
		complete(t, q, first)
		q.opts.FS = other.fs
		if name != "another run" {
			check(t, q.Close()) // of that a server is told by nothing; the next one sees
		}
		check(t, q.Refresh(t.Context()))
		if n := q.Extent().Unbuilt; n != 3 {
			t.Errorf("%s: %d of 3 segments have no file", name, n)
		}
		compare(t, q, other, other.effective(), Field{Name: "loss"}, 900, 1200, 10)
		built(t, k, other, 3)
		check(t, q.Refresh(t.Context()))
		complete(t, q, other)
		check(t, q.Close())
		back := first.partly(k)
		if name == "another run" {
			complete(t, back, first)
		}
		check(t, back.Close())
	}
}

// TestCacheReadOnly: a directory in which nothing can be made is told when it is opened, and so is one that others may enter.
func TestCacheReadOnly(t *testing.T) {
	for _, op := range []vfs.OpKind{vfs.OpMkdir, vfs.OpCreate} {
		in := vfs.Inject(vfs.NewMem(), vfs.Rule{Op: op, Sticky: true, Err: syscall.EROFS})
		if _, err := OpenCache(CacheOptions{Dir: cacheDir, FS: in}); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%v fails: %v", op, err)
		}
	}
	mem := vfs.NewMem()
	check(t, vfs.MkdirAll(mem, cacheDir, 0o755))
	if _, err := OpenCache(CacheOptions{Dir: cacheDir, FS: mem}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("others may enter: %v", err)
	}
}
