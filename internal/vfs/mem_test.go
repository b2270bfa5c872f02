package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
	"pgregory.net/rapid"
)

// TestMemActsAsTheHost makes random operations on the memory file system and on the host's, and wants
// the same answers.
func TestMemActsAsTheHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "vfs")
		must(t, err)
		defer os.RemoveAll(dir)
		p := &pair{mem: vfs.NewMem(), host: below{vfs.OS(), dir}}
		defer p.close()
		t.Repeat(map[string]func(*rapid.T){
			"open":   p.open,
			"write":  p.write,
			"read":   p.read,
			"size":   p.size,
			"names":  p.names,
			"close":  func(t *rapid.T) { p.close() },
			"listed": p.list,
		})
	})
}

func must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is both file systems with a file open on each.
type pair struct {
	mem, host vfs.FS
	m, h      vfs.File
}

var names = rapid.SampledFrom([]string{"a", "b", "d", "d/a", "d/e", "d/e/a", "a/x", "."})

// same fails unless both errors are of one kind.
func same(t *rapid.T, what string, m, h error) {
	t.Helper()
	var mno, hno syscall.Errno
	errors.As(m, &mno)
	errors.As(h, &hno)
	if (m == nil) != (h == nil) || mno != hno || errors.Is(m, io.EOF) != errors.Is(h, io.EOF) {
		t.Fatalf("%s: memory says %v, host %v", what, m, h)
	}
}

func (p *pair) close() {
	if p.m != nil {
		_, _ = p.m.Close(), p.h.Close()
		p.m, p.h = nil, nil
	}
}

func (p *pair) open(t *rapid.T) {
	p.close()
	name := names.Draw(t, "name")
	if name == "." {
		return // the roots differ in what they may be opened for
	}
	flag := rapid.SampledFrom([]int{
		os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_RDWR | os.O_CREATE | os.O_EXCL,
		os.O_WRONLY | os.O_CREATE | os.O_TRUNC, os.O_RDWR | os.O_APPEND,
	}).Draw(t, "flag")
	m, merr := p.mem.OpenFile(name, flag, 0o600)
	h, herr := p.host.OpenFile(name, flag, 0o600)
	same(t, "open "+name, merr, herr)
	if merr == nil {
		p.m, p.h = m, h
	}
}

func (p *pair) write(t *rapid.T) {
	if p.m == nil {
		t.Skip("no file is open")
	}
	off := rapid.Int64Range(0, 20000).Draw(t, "off")
	data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.IntRange(1, 9000).Draw(t, "n"))
	if rapid.Bool().Draw(t, "at") {
		m, merr := p.m.WriteAt(data, off)
		h, herr := p.h.WriteAt(data, off)
		if appending := errors.Is(merr, syscall.EINVAL); appending { // os refuses with an error of its own
			if herr == nil {
				t.Fatal("host writes at an offset of an appending file")
			}
			return
		}
		same(t, "writeat", merr, herr)
		equal(t, "written", m, h)
		return
	}
	m, merr := p.m.Write(data)
	h, herr := p.h.Write(data)
	same(t, "write", merr, herr)
	equal(t, "written", m, h)
}

func equal[T comparable](t *rapid.T, what string, m, h T) {
	t.Helper()
	if m != h {
		t.Fatalf("%s: memory %v, host %v", what, m, h)
	}
}

func (p *pair) read(t *rapid.T) {
	if p.m == nil {
		t.Skip("no file is open")
	}
	mb, hb := make([]byte, rapid.IntRange(1, 9000).Draw(t, "n")), make([]byte, 9000)
	hb = hb[:len(mb)]
	off := rapid.Int64Range(0, 30000).Draw(t, "off")
	var m, h int
	var merr, herr error
	if rapid.Bool().Draw(t, "at") {
		m, merr = p.m.ReadAt(mb, off)
		h, herr = p.h.ReadAt(hb, off)
	} else {
		m, merr = p.m.Read(mb)
		h, herr = p.h.Read(hb)
	}
	same(t, "read", merr, herr)
	equal(t, "read", m, h)
	if !bytes.Equal(mb[:m], hb[:h]) {
		t.Fatalf("read at %d: contents differ", off)
	}
}

func (p *pair) size(t *rapid.T) {
	if p.m == nil {
		t.Skip("no file is open")
	}
	n := rapid.Int64Range(1, 30000).Draw(t, "size")
	if rapid.Bool().Draw(t, "truncate") {
		same(t, "truncate", p.m.Truncate(n), p.h.Truncate(n))
	} else {
		same(t, "preallocate", p.m.Preallocate(n), p.h.Preallocate(n))
	}
	mi, merr := p.m.Stat()
	hi, herr := p.h.Stat()
	same(t, "stat", merr, herr)
	equal(t, "size", mi.Size(), hi.Size()*b2i(!hi.IsDir())) // a directory's size means nothing
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (p *pair) names(t *rapid.T) {
	a, b := names.Draw(t, "a"), names.Draw(t, "b")
	if a == "." || b == "." {
		return // what hosts say of changing "." differs
	}
	switch op := rapid.SampledFrom([]string{"mkdir", "remove", "rename", "link"}).Draw(t, "op"); op {
	case "mkdir":
		same(t, op+a, p.mem.Mkdir(a, 0o700), p.host.Mkdir(a, 0o700))
	case "remove":
		same(t, op+a, p.mem.Remove(a), p.host.Remove(a))
	case "rename":
		if a == b {
			return // os has a rule of its own for a directory
		}
		m, h := p.mem.Rename(a, b), p.host.Rename(a, b)
		if (m == nil) != (h == nil) { // which of several errors comes first is the host's choice
			t.Fatalf("rename %s %s: memory says %v, host %v", a, b, m, h)
		}
	case "link":
		m, h := p.mem.Link(a, b), p.host.Link(a, b)
		if (m == nil) != (h == nil) {
			t.Fatalf("link %s %s: memory says %v, host %v", a, b, m, h)
		}
	}
}

func (p *pair) list(t *rapid.T) {
	name := names.Draw(t, "name")
	m, merr := p.mem.ReadDir(name)
	h, herr := p.host.ReadDir(name)
	same(t, "readdir "+name, merr, herr)
	equal(t, "entries", fmt.Sprint(m), fmt.Sprint(h))
	mi, merr := p.mem.Stat(name)
	hi, herr := p.host.Stat(name)
	same(t, "stat "+name, merr, herr)
	if merr == nil && name != "." {
		equal(t, "mode", mi.Mode(), hi.Mode())
		if !mi.IsDir() {
			equal(t, "size", mi.Size(), hi.Size())
		}
	}
}

func put(t *testing.T, fsys vfs.FS, name string, data string, sync bool) {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	_, err = f.WriteAt([]byte(data), 0)
	check(t, err)
	if sync {
		check(t, f.Sync())
	}
	check(t, f.Close())
}

func TestCrashKeepsOnlyWhatWasSynced(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "both", "v1", true)
	put(t, m, "data", "v1", true)
	check(t, m.SyncDir("."))
	put(t, m, "data", "v2", false)
	put(t, m, "name", "v1", true)
	check(t, m.Remove("both"))

	drop := m.Crash(nil, vfs.DropAll)
	check(t, content(drop, "both", "v1"))
	check(t, content(drop, "data", "v1"))
	check(t, errorIs(content(drop, "name"), fs.ErrNotExist))
	keep := m.Crash(nil, vfs.KeepAll)
	check(t, errorIs(content(keep, "both"), fs.ErrNotExist))
	check(t, content(keep, "data", "v2"))
	check(t, content(keep, "name", "v1"))

	check(t, m.SyncDir("."))
	drop = m.Crash(nil, vfs.DropAll)
	check(t, errorIs(content(drop, "both"), fs.ErrNotExist))
	check(t, content(drop, "name", "v1"))
	check(t, content(drop, "data", "v1")) // a directory's sync does not sync its files

	// The clone and the original do not share.
	put(t, drop, "name", "v2", true)
	check(t, content(m, "name", "v1"))
}

func errorIs(err, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("error %v, want %v", err, want)
	}
	return nil
}

// Each outcome that a crash may have must come up, and no other.
func TestCrashOutcomes(t *testing.T) {
	oldB, newB := bytes.Repeat([]byte("o"), 8192), bytes.Repeat([]byte("n"), 8000)
	for _, policy := range []vfs.Policy{vfs.Mixed, vfs.Garbage} {
		seen := map[string]int{}
		for seed := range uint64(200) {
			m := vfs.NewMem()
			put(t, m, "f", string(oldB), true)
			check(t, m.SyncDir("."))
			put(t, m, "f", string(newB), false)
			put(t, m, "g", "", true)
			after := m.Crash(rand.New(rand.NewPCG(3, seed)), policy)
			if _, err := after.Stat("g"); err == nil {
				seen["name kept"]++
			} else {
				seen["name lost"]++
			}
			got, err := vfs.ReadFile(after, "f", limit)
			check(t, err)
			if len(got) != len(oldB) || !bytes.Equal(got[len(newB):], oldB[len(newB):]) {
				t.Fatalf("bytes outside the write changed")
			}
			seen[outcome(got[:len(newB)], oldB, newB)]++
		}
		want := []string{"name kept", "name lost", "dropped", "applied", "torn at 4096", "torn at 512"}
		if policy == vfs.Garbage {
			want = []string{"dropped", "applied", "garbage"}
		} else if seen["garbage"] > 0 {
			t.Errorf("garbage without being asked for")
		}
		for _, w := range want {
			if seen[w] == 0 {
				t.Errorf("policy %d: never %s: %v", policy, w, seen)
			}
		}
	}
}

func outcome(got, oldB, newB []byte) string {
	unit := 4096
	applied, dropped := 0, 0
	for at := 0; at < len(got); at += 512 {
		end := min(at+512, len(got))
		switch {
		case bytes.Equal(got[at:end], newB[at:end]):
			applied++
		case bytes.Equal(got[at:end], oldB[at:end]):
			dropped++
		default:
			return "garbage"
		}
		if at%4096 != 0 && got[at] != got[at-1] {
			unit = 512
		}
	}
	switch {
	case applied == 0:
		return "dropped"
	case dropped == 0:
		return "applied"
	}
	return fmt.Sprintf("torn at %d", unit)
}

func TestCrashTakesARenameWhole(t *testing.T) {
	for seed := range uint64(50) {
		m := vfs.NewMem()
		check(t, vfs.MkdirAll(m, "a", 0o700))
		check(t, vfs.MkdirAll(m, "b", 0o700))
		put(t, m, "a/f", "x", true)
		check(t, m.SyncDir("a"))
		check(t, m.Rename("a/f", "b/f"))
		after := m.Crash(rand.New(rand.NewPCG(4, seed)), vfs.Mixed)
		_, inA := after.Stat("a/f")
		_, inB := after.Stat("b/f")
		if (inA == nil) == (inB == nil) {
			t.Fatalf("seed %d: in a: %v, in b: %v", seed, inA, inB)
		}
	}
}

func TestMemCapacity(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(5 * 4096)
	put(t, m, "a", "x", true)
	f, err := m.OpenFile("b", os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	if err := f.Preallocate(5 * 4096); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("preallocate: %v", err)
	}
	check(t, f.Preallocate(2*4096))
	n, err := f.WriteAt(make([]byte, 6*4096), 0)
	if n != 4*4096 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v; want all that fits", n, err)
	}
	if free, _ := m.Free("."); free != 0 {
		t.Errorf("free %d", free)
	}
	check(t, f.Truncate(4096))
	if free, _ := m.Free("."); free != 3*4096 {
		t.Errorf("free %d after truncate", free)
	}
	check(t, m.Remove("b"))
	if free, _ := m.Free("."); free != 3*4096 {
		t.Errorf("free %d while the removed file is open", free)
	}
	check(t, f.Close())
	if free, _ := m.Free("."); free != 4*4096 {
		t.Errorf("free %d after close", free)
	}
}

func TestMemPermissions(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "a", "x", true)
	check(t, m.Chmod("a", 0o400))
	_, err := m.OpenFile("a", os.O_RDWR, 0)
	check(t, errorIs(err, fs.ErrPermission))
	check(t, content(m, "a", "x"))
	check(t, m.Mkdir("d", 0o500))
	_, err = m.OpenFile("d/a", os.O_RDWR|os.O_CREATE, 0o600)
	check(t, errorIs(err, fs.ErrPermission))
}

func TestLock(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"mem": vfs.NewMem(), "os": vfs.OS()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			check(t, vfs.MkdirAll(fsys, dir, 0o700))
			check(t, vfs.Replace(fsys, dir+"/file", nil, 0o600))
			for _, what := range []string{dir, dir + "/file"} {
				l, err := fsys.Lock(what)
				check(t, err)
				_, err = fsys.Lock(what)
				check(t, errorIs(err, vfs.ErrLocked))
				check(t, l.Close())
				l, err = fsys.Lock(what)
				check(t, err)
				check(t, l.Close())
			}
			_, err := fsys.Lock(dir + "/none")
			check(t, errorIs(err, fs.ErrNotExist))
		})
	}
}
