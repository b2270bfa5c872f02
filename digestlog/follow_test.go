package digestlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// given is what a call of a Follower gives, an error to a line, and the first error that is not benign, at which it stops.
func given(l *Follower) (lines []string, bad error) {
	for it, err := range l.Entries() {
		var f *Fault
		switch {
		case err == nil:
			lines = append(lines, fmt.Sprintf("%d %s", it.Index, it.Raw))
		case !errors.As(err, &f) || !f.Benign():
			return lines, err
		}
	}
	return lines, nil
}

// all is what Entries gives.
func all(t *testing.T, fsys vfs.FS) (lines []string) {
	t.Helper()
	for it, err := range Entries(fsys, testDir) {
		var f *Fault
		switch {
		case err == nil:
			lines = append(lines, fmt.Sprintf("%d %s", it.Index, it.Raw))
		case !errors.As(err, &f) || !f.Benign():
			t.Fatal(err)
		}
	}
	return lines
}

// TestFollow wants each entry once of a log that grows, over files that are sealed, given up after a failed fsync, and taken up again by
// another process.
func TestFollow(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		mem := vfs.NewMem()
		must(t, vfs.MkdirAll(mem, testDir, 0o755))
		in := vfs.Inject(mem)
		o := testOptions(t, in)
		o.SegmentSize = 4 << 10
		l := mustOpen(t, o)
		f := NewFollower(mem, testDir)
		var got []string
		files := 0
		for i := range 300 {
			mustAppend(t, l, step(i))
			switch rng.IntN(30) {
			case 0:
				in.Add(vfs.Rule{Op: vfs.OpSync | vfs.OpDatasync, Err: syscall.EIO})
				_ = l.Sync() // it goes on in another file
				in.Clear()
				must(t, l.Sync())
			case 1, 2:
				must(t, l.Close())
				l = mustOpen(t, o)
			case 3, 4, 5, 6, 7, 8, 9:
				must(t, l.Sync())
			}
			if rng.IntN(4) == 0 {
				lines, err := given(f)
				must(t, err)
				got = append(got, lines...)
			}
		}
		must(t, l.Close())
		lines, err := given(f)
		must(t, err)
		want := all(t, mem)
		if got = append(got, lines...); !slices.Equal(got, want) {
			t.Fatalf("seed %d: %d entries, want %d", seed, len(got), len(want))
		}
		infos, err := segment.List(mem, testDir)
		must(t, err)
		if files += len(infos); files < 5 {
			t.Errorf("seed %d: only %d files", seed, files)
		}
		must(t, f.Close())
	}
}

// TestFollowReadsOnce wants the cost of a look at a log not to depend on its length.
func TestFollowReadsOnce(t *testing.T) {
	mem := vfs.NewMem()
	must(t, vfs.MkdirAll(mem, testDir, 0o755))
	in := vfs.Inject(mem)
	o := testOptions(t, mem)
	o.SegmentSize = 1 << 20
	l := mustOpen(t, o)
	defer l.Close()
	f := NewFollower(in, testDir)
	defer f.Close()
	const n = 20000
	for i := range n {
		mustAppend(t, l, step(i))
		if i%100 == 0 {
			must(t, l.Sync())
		}
	}
	must(t, l.Sync())
	if lines, err := given(f); err != nil || len(lines) != n {
		t.Fatalf("%d entries, %v", len(lines), err)
	}
	const kinds = vfs.OpRead | vfs.OpOpen
	first := in.Calls(kinds)
	for i := range 10 {
		mustAppend(t, l, step(n+i))
		must(t, l.Sync())
		if lines, err := given(f); err != nil || len(lines) != 1 {
			t.Fatalf("%d entries, %v, want 1", len(lines), err)
		}
		if lines, err := given(f); err != nil || len(lines) != 0 {
			t.Fatalf("%d entries, %v, want none", len(lines), err)
		}
	}
	if more := in.Calls(kinds) - first; more > 100 {
		t.Errorf("20 looks at a log of %d entries cost %d reads, the first %d", n, more, first)
	}
}

// TestFollowDamage wants damage reported as often as it is met, and a log read on that was mended.
func TestFollowDamage(t *testing.T) {
	mem, path := syncedLog(t, 60)
	want := all(t, mem)
	var was [1]byte
	flip := func(f vfs.File) error {
		if _, err := f.ReadAt(was[:], damagedAt); err != nil {
			return err
		}
		was[0] ^= 1
		_, err := f.WriteAt(was[:], damagedAt)
		return err
	}
	edit(t, mem, path, flip)
	f := NewFollower(mem, testDir)
	var got []string
	for range 3 {
		lines, err := given(f)
		var fault *Fault
		if !errors.As(err, &fault) || fault.Class != ClassCorrupt {
			t.Fatalf("of a damaged log: %v", err)
		}
		got = append(got, lines...)
	}
	edit(t, mem, path, flip)
	lines, err := given(f)
	must(t, err)
	if got = append(got, lines...); !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

// TestFollowRepair wants a follower not to trip over the torn end of a file, nor over its repair.
func TestFollowRepair(t *testing.T) {
	mem := vfs.NewMem()
	must(t, vfs.MkdirAll(mem, testDir, 0o755))
	o := testOptions(t, mem)
	o.SegmentSize = 1 << 20
	f := NewFollower(mem, testDir)
	var got []string
	look := func() {
		t.Helper()
		lines, err := given(f)
		must(t, err)
		got = append(got, lines...)
	}
	for round := range 5 {
		l := mustOpen(t, o) // of which nothing is closed: its process was killed
		for i := range 50 {
			mustAppend(t, l, step(round*50+i))
			must(t, l.Sync())
		}
		look()
		infos, err := segment.List(mem, testDir)
		must(t, err)
		edit(t, mem, infos[len(infos)-1].Path, func(f vfs.File) error {
			r, err := segment.Open(mem, infos[len(infos)-1].Path)
			must(t, err)
			for err == nil {
				_, _, err = r.Next()
			}
			_, err = f.WriteAt(bytes.Repeat([]byte("torn"), 100), r.Offset()+16)
			return err
		})
		look()
	}
	must(t, mustOpen(t, o).Close())
	look()
	if want := all(t, mem); !slices.Equal(got, want) || len(got) < 250 {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

// damagedAt is a byte in the middle of a syncedLog.
const damagedAt = 4096 + 1000

// syncedLog is a log of one file, which is not closed, with a batch for each entry.
func syncedLog(t *testing.T, n int) (mem *vfs.Mem, path string) {
	t.Helper()
	mem = vfs.NewMem()
	must(t, vfs.MkdirAll(mem, testDir, 0o755))
	o := testOptions(t, mem)
	o.SegmentSize = 1 << 20
	l := mustOpen(t, o)
	for i := range n {
		mustAppend(t, l, step(i))
		must(t, l.Sync())
	}
	infos, err := segment.List(mem, testDir)
	must(t, err)
	return mem, infos[0].Path
}

// TestFollowReplaced wants what is wrong in a file that was open no more than a reason to look at what is there now.
func TestFollowReplaced(t *testing.T) {
	for name, change := range map[string]func(f vfs.File) error{
		"cut": func(f vfs.File) error { return f.Truncate(damagedAt) },
		"damaged": func(f vfs.File) error {
			_, err := f.WriteAt([]byte("damage"), 2*damagedAt)
			return err
		},
	} {
		long, path := syncedLog(t, 60)
		short := vfs.NewMem()
		must(t, vfs.MkdirAll(short, testDir, 0o755))
		swap(t, short, long, path)
		edit(t, short, path, func(f vfs.File) error { // the end of it is not written yet
			r, err := segment.Open(long, path)
			must(t, err)
			for range 20 {
				_, _, err = r.Next()
				must(t, err)
			}
			info, err := f.Stat()
			must(t, err)
			_, err = f.WriteAt(make([]byte, info.Size()-r.Offset()), r.Offset())
			return err
		})
		f := NewFollower(short, testDir)
		first, err := given(f)
		must(t, err)
		edit(t, short, path, func(f vfs.File) error { // more comes, of which not all is well
			b, err := vfs.ReadFile(long, path, 2<<20)
			must(t, err)
			_, err = f.WriteAt(b, 0)
			return errors.Join(err, change(f))
		})
		swap(t, short, long, path)
		rest, err := given(f)
		if want := all(t, long); err != nil || !slices.Equal(append(first, rest...), want) || len(first) != 20 {
			t.Errorf("%s: %d and %d entries, %v; want %d", name, len(first), len(rest), err, len(want))
		}
	}
}

// TestFollowCut wants it said that a file ends early, which is known only when there is a next one.
func TestFollowCut(t *testing.T) {
	full := closedLog(t, 200, 4<<10)
	infos, err := segment.List(full, testDir)
	must(t, err)
	mem := vfs.NewMem()
	must(t, vfs.MkdirAll(mem, testDir, 0o755))
	swap(t, mem, full, infos[0].Path)
	info, err := mem.Stat(infos[0].Path)
	must(t, err)
	truncate(t, mem, infos[0].Path, info.Size()-8)
	f := NewFollower(mem, testDir)
	_, err = given(f)
	must(t, err)
	swap(t, mem, full, infos[1].Path)
	_, err = given(f)
	var fault *Fault
	if !errors.As(err, &fault) || fault.Class != ClassCorrupt || fault.File != filepath.Base(infos[0].Path) {
		t.Errorf("of a file that was cut off: %v", err)
	}
}

// TestFollowJunk wants an entry that is none reported each time, and not passed.
func TestFollowJunk(t *testing.T) {
	mem := vfs.NewMem()
	var tree frontier
	w := rawSegment(t, mem, 0, causeStart, &tree)
	for _, frame := range [][]byte{step(0).Append(nil), step(1).Append(nil)[:10], step(2).Append(nil)} {
		must(t, w.Append(frame))
	}
	must(t, w.Sync())
	f := NewFollower(mem, testDir)
	for i := range 3 {
		lines, err := given(f)
		var fault *Fault
		if !errors.As(err, &fault) || fault.Class != ClassCorrupt || len(lines) != max(0, 1-i) {
			t.Errorf("look %d: %d entries, %v", i, len(lines), err)
		}
	}
	must(t, w.Close())
}
