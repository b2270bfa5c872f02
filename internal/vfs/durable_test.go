package vfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
)

const limit = 1 << 20

// step is one durable operation and what may be found when it did not come to its end.
type step struct {
	name    string
	run     func(fsys vfs.FS) error
	settled func(fsys vfs.FS) error // after success
	partial func(fsys vfs.FS) error // after a crash or an error anywhere before
}

func content(fsys vfs.FS, name string, want ...string) error {
	got, err := vfs.ReadFile(fsys, name, limit)
	if errors.Is(err, fs.ErrNotExist) && slices.Contains(want, "absent") {
		return nil
	}
	if err != nil {
		return err
	}
	if !slices.Contains(want, string(got)) {
		return fmt.Errorf("%s holds %.40q, want one of %.60q", name, got, want)
	}
	return nil
}

var (
	oldData = strings.Repeat("old ", 3000) // over several blocks
	newData = strings.Repeat("NEW!", 4000)
)

func steps() []step {
	write := func(f vfs.File) error {
		_, err := f.Write([]byte(newData))
		return err
	}
	return []step{{
		name: "prepare and place",
		run: func(fsys vfs.FS) error {
			d, err := vfs.Prepare(fsys, "d/draft", 0o600, write)
			if err != nil {
				return err
			}
			if err := d.Place(); err != nil {
				return errors.Join(err, d.Discard())
			}
			return nil
		},
		settled: func(fsys vfs.FS) error { return content(fsys, "d/draft", newData) },
		partial: func(fsys vfs.FS) error { return content(fsys, "d/draft", "absent", newData) },
	}, {
		name:    "replace",
		run:     func(fsys vfs.FS) error { return vfs.Replace(fsys, "d/old", []byte(newData), 0o600) },
		settled: func(fsys vfs.FS) error { return content(fsys, "d/old", newData) },
		partial: func(fsys vfs.FS) error { return content(fsys, "d/old", oldData, newData) },
	}, {
		name:    "replace nothing",
		run:     func(fsys vfs.FS) error { return vfs.Replace(fsys, "d/new", []byte(newData), 0o600) },
		settled: func(fsys vfs.FS) error { return content(fsys, "d/new", newData) },
		partial: func(fsys vfs.FS) error { return content(fsys, "d/new", "absent", newData) },
	}, {
		name:    "create",
		run:     func(fsys vfs.FS) error { return vfs.Create(fsys, "d/new", 0o600, write) },
		settled: func(fsys vfs.FS) error { return content(fsys, "d/new", newData) },
		partial: func(fsys vfs.FS) error { return content(fsys, "d/new", "absent", newData) },
	}, {
		name: "mkdirall",
		run:  func(fsys vfs.FS) error { return vfs.MkdirAll(fsys, "d/a/b/c", 0o700) },
		settled: func(fsys vfs.FS) error {
			_, err := fsys.ReadDir("d/a/b/c")
			return err
		},
		partial: func(fsys vfs.FS) error { return content(fsys, "d/old", oldData) },
	}}
}

// prepared returns a file system in which all is durable.
func prepared(t *testing.T) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	check(t, vfs.MkdirAll(m, "d", 0o700))
	check(t, vfs.Replace(m, "d/old", []byte(oldData), 0o600))
	return m
}

func check(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// crashes returns what crashes of m now may leave.
func crashes(m *vfs.Mem, seeds int) map[string]*vfs.Mem {
	all := map[string]*vfs.Mem{
		"drop": m.Crash(nil, vfs.DropAll),
		"keep": m.Crash(nil, vfs.KeepAll),
	}
	for seed := range seeds {
		all[fmt.Sprint("mixed ", seed)] = m.Crash(rand.New(rand.NewPCG(1, uint64(seed))), vfs.Mixed)
		all[fmt.Sprint("garbage ", seed)] = m.Crash(rand.New(rand.NewPCG(2, uint64(seed))), vfs.Garbage)
	}
	return all
}

func TestDurableStepsCrashAtEveryOp(t *testing.T) {
	for _, s := range steps() {
		t.Run(s.name, func(t *testing.T) {
			m := prepared(t)
			m.SetHook(func(op vfs.Op) {
				for name, after := range crashes(m, 10) {
					if err := s.partial(after); err != nil {
						t.Errorf("crash (%s) before %v: %v", name, op, err)
					}
				}
			})
			check(t, s.run(m))
			m.SetHook(nil)
			for name, after := range crashes(m, 20) {
				if err := s.settled(after); err != nil {
					t.Errorf("crash (%s) after success: %v", name, err)
				}
			}
		})
	}
}

func TestDurableStepsFailAtEveryOp(t *testing.T) {
	for _, s := range steps() {
		for _, short := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/short=%v", s.name, short), func(t *testing.T) {
				for nth := 1; ; nth++ {
					m := prepared(t)
					in := vfs.Inject(m, vfs.Rule{Nth: nth, Err: syscall.EIO, Short: short})
					err := s.run(in)
					if len(in.Fired()) == 0 {
						check(t, err)
						if nth < 4 {
							t.Fatalf("only %d operations", nth-1)
						}
						return
					}
					if !errors.Is(err, syscall.EIO) {
						t.Errorf("%v failed and the error is %v", in.Fired(), err)
					}
					if err := s.partial(m); err != nil {
						t.Errorf("after %v failed: %v", in.Fired(), err)
					}
					noTemps(t, m, in)
				}
			})
		}
	}
}

func noTemps(t *testing.T, fsys vfs.FS, in *vfs.Injector) {
	t.Helper()
	list, err := fsys.ReadDir("d")
	check(t, err)
	for _, e := range list {
		// Where the removal itself failed, it is the next start that cleans up.
		if vfs.IsTemp(e.Name()) && in.Fired()[0].Kind != vfs.OpRemove {
			t.Errorf("after %v failed: left %s", in.Fired(), e.Name())
		}
	}
}

func TestCreateKeepsWhatIsThere(t *testing.T) {
	for name, fsys := range both(t) {
		t.Run(name, func(t *testing.T) {
			check(t, vfs.Replace(fsys, "a", []byte("first"), 0o600))
			err := vfs.Create(fsys, "a", 0o600, func(f vfs.File) error {
				_, err := f.Write([]byte("second"))
				return err
			})
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("error %v, want fs.ErrExist", err)
			}
			check(t, content(fsys, "a", "first"))
			list, err := fsys.ReadDir(".")
			check(t, err)
			if len(list) != 1 {
				t.Errorf("directory holds %v", list)
			}
		})
	}
}

// noLink is a file system without hard links.
type noLink struct{ vfs.FS }

func (noLink) Link(oldname, newname string) error {
	return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: syscall.EPERM}
}

func TestCreateWithoutHardLinks(t *testing.T) {
	fsys := noLink{vfs.NewMem()}
	write := func(f vfs.File) error {
		_, err := f.Write([]byte("x"))
		return err
	}
	check(t, vfs.Create(fsys, "a", 0o600, write))
	check(t, content(fsys, "a", "x"))
	if err := vfs.Create(fsys, "a", 0o600, write); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
}

func TestTempNames(t *testing.T) {
	for name, want := range map[string]bool{
		".a.tmp-0": true, "dir/.a.seg.tmp-17": true, "a.tmp-0": false, ".a.tmp-": false, ".a.tmp-x": false,
		".tmp-1": false, ".a": false, "": false, "..tmp-1": false,
	} {
		if got := vfs.IsTemp(name); got != want {
			t.Errorf("IsTemp(%q) = %v", name, got)
		}
	}
}

func TestRemoveTemps(t *testing.T) {
	m := prepared(t)
	m.SetHook(func(op vfs.Op) {
		if op.Kind == vfs.OpRename {
			panic("crash")
		}
	})
	func() {
		defer func() { _ = recover() }()
		_ = vfs.Replace(m, "d/old", []byte(newData), 0o600)
	}()
	m = m.Crash(nil, vfs.KeepAll)
	removed, err := vfs.RemoveTemps(m, "d")
	check(t, err)
	if !slices.Equal(removed, []string{".old.tmp-0"}) {
		t.Errorf("removed %v", removed)
	}
	check(t, content(m, "d/old", oldData))
}

func TestMkdirAllFileInTheWay(t *testing.T) {
	for name, fsys := range both(t) {
		t.Run(name, func(t *testing.T) {
			check(t, vfs.Replace(fsys, "a", nil, 0o600))
			for _, dir := range []string{"a", "a/b", "a/b/c"} {
				if err := vfs.MkdirAll(fsys, dir, 0o700); !errors.Is(err, syscall.ENOTDIR) {
					t.Errorf("%s: error %v, want ENOTDIR", dir, err)
				}
			}
		})
	}
}

// A directory that a killed process made and did not sync must not be taken for durable.
func TestMkdirAllSyncsWhatItFinds(t *testing.T) {
	m := vfs.NewMem()
	check(t, m.Mkdir("a", 0o700))
	check(t, vfs.MkdirAll(m, "a", 0o700))
	if _, err := m.Crash(nil, vfs.DropAll).Stat("a"); err != nil {
		t.Error(err)
	}
}

func TestReadFileLimit(t *testing.T) {
	for name, fsys := range both(t) {
		t.Run(name, func(t *testing.T) {
			check(t, vfs.Replace(fsys, "a", []byte("12345"), 0o600))
			check(t, content(fsys, "a", "12345"))
			if _, err := vfs.ReadFile(fsys, "a", 4); !errors.Is(err, vfs.ErrTooLarge) {
				t.Errorf("error %v, want ErrTooLarge", err)
			}
			got, err := vfs.ReadFile(fsys, "a", 5)
			if err != nil || string(got) != "12345" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// both returns an empty Mem and an empty directory of the host, in which relative names are resolved.
func both(t *testing.T) map[string]vfs.FS {
	t.Helper()
	return map[string]vfs.FS{"mem": vfs.NewMem(), "os": below{vfs.OS(), t.TempDir()}}
}

// below puts the names of an OS file system under a directory.
type below struct {
	vfs.FS
	dir string
}

func (b below) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	return b.FS.OpenFile(filepath.Join(b.dir, name), flag, perm)
}
func (b below) Mkdir(name string, perm fs.FileMode) error {
	return b.FS.Mkdir(filepath.Join(b.dir, name), perm)
}
func (b below) Remove(name string) error { return b.FS.Remove(filepath.Join(b.dir, name)) }
func (b below) Rename(oldname, newname string) error {
	return b.FS.Rename(filepath.Join(b.dir, oldname), filepath.Join(b.dir, newname))
}
func (b below) Link(oldname, newname string) error {
	return b.FS.Link(filepath.Join(b.dir, oldname), filepath.Join(b.dir, newname))
}
func (b below) Stat(name string) (fs.FileInfo, error) { return b.FS.Stat(filepath.Join(b.dir, name)) }
func (b below) ReadDir(name string) ([]fs.DirEntry, error) {
	return b.FS.ReadDir(filepath.Join(b.dir, name))
}
func (b below) Chmod(name string, mode fs.FileMode) error {
	return b.FS.Chmod(filepath.Join(b.dir, name), mode)
}
func (b below) SyncDir(name string) error { return b.FS.SyncDir(filepath.Join(b.dir, name)) }

// A draft has no name until it is placed, and finds a name that is taken.
func TestDraft(t *testing.T) {
	for name, fsys := range both(t) {
		t.Run(name, func(t *testing.T) {
			put := func(text string) *vfs.Draft {
				d, err := vfs.Prepare(fsys, "draft", 0o600, func(f vfs.File) error {
					_, err := f.Write([]byte(text))
					return err
				})
				check(t, err)
				return d
			}
			first, second := put("first"), put("second")
			if _, err := fsys.Stat("draft"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("a draft that was not placed: %v", err)
			}
			check(t, first.Place())
			check(t, first.Discard())
			check(t, content(fsys, "draft", "first"))
			if err := second.Place(); !errors.Is(err, fs.ErrExist) {
				t.Fatalf("placed on a name that is taken: %v", err)
			}
			check(t, fsys.Remove("draft"))
			check(t, second.Place())
			check(t, content(fsys, "draft", "second"))
			third := put("third")
			check(t, third.Discard())
			list, err := fsys.ReadDir(".")
			check(t, err)
			if len(list) != 1 {
				t.Fatalf("left: %v", list)
			}
		})
	}
}
