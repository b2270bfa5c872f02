package pyramid

import (
	"errors"
	"math"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// TestCacheDamaged damages each file in the cache in each of its regions, before and while it is looked at: no answer has
// anything of that, and the file is made again.
func TestCacheDamaged(t *testing.T) {
	f := segments(t)
	defer f.close()
	k := openCache(t, f.fs, 0, newClock())
	built(t, k, f, 4)
	rows := f.effective()
	for _, path := range cached(t, f.fs) {
		good, err := vfs.ReadFile(f.fs, path, 1<<30)
		check(t, err)
		places := []int{0, 9, 13, 70, 200, len(good) / 4, len(good) / 2, len(good) - 12, -1, -2, -3}
		if testing.Short() {
			places = []int{70, len(good) / 2, -1}
		}
		for _, at := range places {
			bad := append([]byte{}, good...)
			switch at {
			case -1:
				bad = bad[:len(bad)-8]
			case -2:
				bad = nil
			case -3:
				clear(bad[len(bad)/2:]) // a machine that stopped before it was written
			default:
				bad[at] ^= 4
			}
			q := f.partly(k)
			overwrite(t, f.fs, path, bad)
			later, told := f.partly(k), false
			for _, q := range []*Query{q, later} {
				q.opts.Damaged = func(error) { told = true }
				for range 3 {
					if q.Extent().Unbuilt == 0 {
						for _, field := range fields() {
							compare(t, q, f, rows, field, 0, math.MaxUint64, 5)
							compare(t, q, f, rows, field, 0, math.MaxUint64, 1)
						}
					}
					compare(t, q, f, rows, Field{Name: "loss"}, 3, 200, 20)
					_, err := k.Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
					check(t, err)
					check(t, q.Refresh(t.Context()))
				}
				complete(t, q, f)
				for _, p := range q.parts {
					if !p.cached {
						t.Errorf("%s damaged at %d: %s is not read from the cache", path, at, p.info.Name)
					}
				}
				check(t, q.Close())
			}
			if now, err := vfs.ReadFile(f.fs, path, 1<<30); err != nil || string(now) != string(good) && (told || at < 200) {
				t.Errorf("%s damaged at %d was not made again: %v", path, at, err)
			}
			overwrite(t, f.fs, path, good) // that place was not read
		}
	}
}

// TestCacheVanished: files that another process removes while they are looked at are missed, not an error of the run.
func TestCacheVanished(t *testing.T) {
	f := segments(t)
	defer f.close()
	k := openCache(t, f.fs, 0, newClock())
	built(t, k, f, 4)
	q := f.partly(k)
	defer q.Close()
	for _, path := range cached(t, f.fs)[1:] {
		check(t, f.fs.Remove(path))
	}
	if _, err := q.Range(t.Context(), Field{Name: "loss"}, 0, math.MaxUint64, 3); !errors.Is(err, ErrUnbuilt) {
		t.Errorf("%v", err)
	}
	for range 3 { // each Range finds one
		check(t, q.Refresh(t.Context()))
		_, err := q.Range(t.Context(), Field{Name: "loss"}, 0, math.MaxUint64, 3)
		if err != nil && !errors.Is(err, ErrUnbuilt) {
			t.Error(err)
		}
	}
	built(t, k, f, 3)
	check(t, q.Refresh(t.Context()))
	complete(t, q, f)
}

// runs makes runs of the same size whose ids end with 0, 1 and so on.
func runs(t *testing.T, mem vfs.FS, n int) (all []*fixture) {
	for i := range n {
		f := newFixtureAs(t, mem, runID+strconv.Itoa(i), uint64(i), time.Unix(1_700_000_000, int64(i)).UTC(), time.Unix(1_700_000_000, int64(i)))
		f.emit(2000, 1)
		f.roll()
		f.emit(2000, 1)
		f.roll()
		f.close()
		all = append(all, f)
	}
	return all
}

// TestCacheEviction: what was not looked at for longest goes when there is no room, but not what somebody looks at, is just making, or
// has made for something else.
func TestCacheEviction(t *testing.T) {
	mem := vfs.NewMem()
	c := newClock()
	all := runs(t, mem, 4)
	probe := openCache(t, mem, 0, c)
	one := int64(built(t, probe, all[0], 2).Bytes)
	k := openCache(t, mem, 2*one+200, c)
	check(t, vfs.MkdirAll(mem, filepath.Join(cacheDir, "mine"), 0o700))
	overwrite(t, mem, filepath.Join(cacheDir, "mine", "file"), make([]byte, 4*one))
	has := func(want ...bool) {
		t.Helper()
		for i, f := range all {
			id, err := identify(mem, f.dir)
			check(t, err)
			if _, err := mem.Stat(k.shelf(id)); (err == nil) != want[i] {
				t.Errorf("run %d is there: %v", i, err == nil)
			}
		}
	}
	c.pass(time.Hour)
	built(t, k, all[1], 2)
	has(true, true, false, false)
	c.pass(time.Hour)
	q := all[0].partly(k) // it is looked at again
	defer q.Close()
	c.pass(time.Hour)
	built(t, k, all[2], 2)
	has(true, false, true, false)

	check(t, q.Refresh(t.Context())) // now it is looked at all the time
	c.pass(time.Minute)
	q2 := all[2].partly(k)
	defer q2.Close()
	if _, err := k.Build(t.Context(), BuildOptions{FS: mem, Dir: all[3].dir}); !errors.Is(err, ErrFull) {
		t.Errorf("a third run where two are looked at: %v", err)
	}
	complete(t, q, all[0])
	complete(t, q2, all[2])

	c.pass(time.Hour)
	id, err := identify(mem, all[0].dir)
	check(t, err)
	lock, err := mem.Lock(k.shelf(id)) // somebody is at work on the oldest
	check(t, err)
	built(t, k, all[3], 2)
	has(true, false, false, true)
	check(t, lock.Close())
	if n, bytes, err := k.Holds(); err != nil || n != 2 || bytes > 2*one+200 {
		t.Errorf("%d runs of %d bytes, %v", n, bytes, err)
	}
	if _, err := mem.Stat(filepath.Join(cacheDir, "mine", "file")); err != nil {
		t.Errorf("what is no run's: %v", err)
	}
	c.pass(time.Hour)
	little := openCache(t, mem, one/3, c)
	if _, err := little.Build(t.Context(), BuildOptions{FS: mem, Dir: all[1].dir}); !errors.Is(err, ErrFull) {
		t.Errorf("a run that does not fit: %v", err)
	}
}

// TestCacheUsed: a run whose time of use cannot be read is as one that nobody looked at.
func TestCacheUsed(t *testing.T) {
	mem := vfs.NewMem()
	c := newClock()
	all := runs(t, mem, 2)
	k := openCache(t, mem, 0, c)
	for _, f := range all {
		built(t, k, f, 2)
		c.pass(time.Hour)
	}
	id, err := identify(mem, all[1].dir)
	check(t, err)
	for _, text := range []string{"", "x", "9999999999999999999999999999", string(make([]byte, 1000))} {
		overwrite(t, mem, filepath.Join(k.shelf(id), usedFile), []byte(text))
		if list, err := k.list(); err != nil || len(list) != 2 || list[0].shelf != k.shelf(id) {
			t.Errorf("%.20q: %+v, %v", text, list, err)
		}
	}
	q := all[1].partly(k)
	defer q.Close()
	if at := k.usedAt(k.shelf(id)); !at.Equal(c.at) {
		t.Errorf("used at %v, it is %v", at, c.at)
	}
}

// TestTwoCaches: of two processes with one cache, one makes the files of a run, and both use them.
func TestTwoCaches(t *testing.T) {
	f := segments(t)
	defer f.close()
	c := newClock()
	one, two := openCache(t, f.fs, 0, c), openCache(t, f.fs, 0, c)
	q := f.partly(two)
	defer q.Close()
	busy := 0
	b, err := one.Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir, Progress: func(done, total uint64) {
		_, err := two.Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
		if errors.Is(err, ErrBusy) {
			busy++
		}
		check(t, q.Refresh(t.Context())) // what there is already is used
	}})
	if err != nil || b.Made != 4 || busy != 4 {
		t.Errorf("%+v, %v, busy %d times", b, err, busy)
	}
	complete(t, q, f)
	built(t, two, f, 0)
}

// FuzzCached puts any bytes into the cache as the file of a segment: no answer has anything of them.
func FuzzCached(f *testing.F) {
	run := newFixture(f, vfs.NewMem(), 9)
	run.emit(700, 1)
	run.roll()
	run.emit(300, 1)
	run.roll()
	run.close()
	k := openCache(f, run.fs, 0, newClock())
	built(f, k, run, 2)
	paths := cached(f, run.fs)
	good, err := vfs.ReadFile(run.fs, paths[0], 1<<30)
	check(f, err)
	f.Add([]byte{}, uint32(0), byte(0))
	f.Add(good[:200], uint32(0), byte(1))
	f.Add([]byte(nil), uint32(300), byte(255))
	rows := run.effective()
	f.Fuzz(func(t *testing.T, data []byte, at uint32, flip byte) {
		run.t = t
		bad := data
		if len(data) == 0 { // a bit or some of the right file
			bad = append([]byte{}, good...)
			bad[int(at)%len(bad)] ^= flip
		}
		overwrite(t, run.fs, paths[0], bad)
		q := run.partly(k)
		defer q.Close()
		if q.Extent().Unbuilt == 0 {
			compare(t, q, run, rows, Field{Name: "loss"}, 0, math.MaxUint64, 4)
			compare(t, q, run, rows, Field{Name: "flags"}, 0, math.MaxUint64, 1)
		}
		compare(t, q, run, rows, Field{Name: "loss"}, 600, 800, 9)
		check(t, q.Refresh(t.Context()))
		_, err := k.Build(t.Context(), BuildOptions{FS: run.fs, Dir: run.dir})
		check(t, err)
	})
}
