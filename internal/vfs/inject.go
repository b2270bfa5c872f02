package vfs

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Rule says which operation fails and how. The zero value of each field is the widest choice.
type Rule struct {
	Op   OpKind // kinds that match; 0 = all
	Path string // [filepath.Match] pattern for the base name or the whole name; "" = all
	Nth  int    // the n-th matching operation fails, from 1 (0 = 1)
	// Sticky makes every matching operation after the n-th fail too.
	Sticky bool
	Err    error // nil = EIO; else an errno, as it is wrapped in *fs.PathError
	// Short lets a Write or WriteAt store the first half before it fails.
	Short bool
}

// Injector passes operations on to a file system and makes chosen ones fail without being made.
//
// Over a [Mem], a Sync that fails also makes the unsynced data clean and lost, as kernels do, so that
// code which tries a second time, and is told success, is found out by the next crash. A Close that
// fails closes the file all the same. It is safe for concurrent use.
type Injector struct {
	fs FS

	mu sync.Mutex
	// All below are guarded by mu.
	rules []*ruleState
	calls int
	kinds map[OpKind]int
	fired []Op
	hook  func(Op)
}

type ruleState struct {
	Rule
	matched int
}

// Inject returns an Injector over fsys.
func Inject(fsys FS, rules ...Rule) *Injector {
	in := &Injector{fs: fsys, kinds: make(map[OpKind]int)}
	in.Add(rules...)
	return in
}

// Add adds rules; the first that matches decides.
func (in *Injector) Add(rules ...Rule) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, r := range rules {
		in.rules = append(in.rules, &ruleState{Rule: r})
	}
}

// Clear removes all rules: the fault has ended.
func (in *Injector) Clear() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.rules = nil
}

// SetHook makes hook be called before each operation, outside the lock; nil removes it.
func (in *Injector) SetHook(hook func(Op)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.hook = hook
}

// Calls returns the number of operations of the given kinds so far, failed ones included.
func (in *Injector) Calls(kinds OpKind) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	sum := 0
	for k, n := range in.kinds {
		if kinds&k != 0 {
			sum += n
		}
	}
	return sum
}

// Fired returns the operations that were made to fail.
func (in *Injector) Fired() []Op {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]Op(nil), in.fired...)
}

// check counts an operation and returns the error to fail it with, or nil; short is the rule's Short.
func (in *Injector) check(kind OpKind, name string) (short bool, err error) {
	in.mu.Lock()
	op := Op{Kind: kind, Name: name, N: in.calls}
	in.calls++
	in.kinds[kind]++
	hook := in.hook
	for _, r := range in.rules {
		if !r.matches(op) {
			continue
		}
		r.matched++
		if nth := max(1, r.Nth); r.matched == nth || r.Sticky && r.matched > nth {
			in.fired = append(in.fired, op)
			err, short = r.Err, r.Short
			if err == nil {
				err = syscall.EIO
			}
			break
		}
	}
	in.mu.Unlock()
	if hook != nil {
		hook(op)
	}
	return short, err
}

func (r *Rule) matches(op Op) bool {
	if r.Op != 0 && r.Op&op.Kind == 0 {
		return false
	}
	if r.Path == "" {
		return true
	}
	base, err1 := filepath.Match(r.Path, filepath.Base(op.Name))
	whole, err2 := filepath.Match(r.Path, op.Name)
	return base || whole || err1 != nil || err2 != nil // a bad pattern must not go unnoticed: it fails everything
}

// pass makes call unless a rule forbids it.
func (in *Injector) pass(kind OpKind, op, name string, call func() error) error {
	if _, err := in.check(kind, name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return call()
}

// OpenFile implements [FS].
func (in *Injector) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	kind := OpOpen
	if flag&os.O_CREATE != 0 {
		kind = OpCreate
	}
	var f File
	err := in.pass(kind, "open", name, func() (err error) {
		f, err = in.fs.OpenFile(name, flag, perm)
		return err
	})
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &injectFile{File: f, in: in, dir: info.IsDir()}, nil
}

// Mkdir implements [FS].
func (in *Injector) Mkdir(name string, perm fs.FileMode) error {
	return in.pass(OpMkdir, "mkdir", name, func() error { return in.fs.Mkdir(name, perm) })
}

// Remove implements [FS].
func (in *Injector) Remove(name string) error {
	return in.pass(OpRemove, "remove", name, func() error { return in.fs.Remove(name) })
}

// Rename implements [FS].
func (in *Injector) Rename(oldname, newname string) error {
	return in.pass(OpRename, "rename", newname, func() error { return in.fs.Rename(oldname, newname) })
}

// Link implements [FS].
func (in *Injector) Link(oldname, newname string) error {
	return in.pass(OpLink, "link", newname, func() error { return in.fs.Link(oldname, newname) })
}

// Stat implements [FS].
func (in *Injector) Stat(name string) (info fs.FileInfo, err error) {
	err = in.pass(OpStat, "stat", name, func() (err error) {
		info, err = in.fs.Stat(name)
		return err
	})
	return info, err
}

// ReadDir implements [FS].
func (in *Injector) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = in.pass(OpReadDir, "readdir", name, func() (err error) {
		list, err = in.fs.ReadDir(name)
		return err
	})
	return list, err
}

// Chmod implements [FS].
func (in *Injector) Chmod(name string, mode fs.FileMode) error {
	return in.pass(OpChmod, "chmod", name, func() error { return in.fs.Chmod(name, mode) })
}

// SyncDir implements [FS].
func (in *Injector) SyncDir(name string) error {
	return in.pass(OpSyncDir, "sync", name, func() error { return in.fs.SyncDir(name) })
}

// Free implements [FS].
func (in *Injector) Free(name string) (free uint64, err error) {
	err = in.pass(OpFree, "statfs", name, func() (err error) {
		free, err = in.fs.Free(name)
		return err
	})
	return free, err
}

// Lock implements [FS].
func (in *Injector) Lock(name string) (c io.Closer, err error) {
	err = in.pass(OpLock, "flock", name, func() (err error) {
		c, err = in.fs.Lock(name)
		return err
	})
	return c, err
}
