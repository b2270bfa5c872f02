package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Mem is a file system in memory that knows what of it would survive a loss of power: file data only
// after Sync or Datasync, permission bits after Sync, names only after their directory was synced.
// [Mem.Crash] makes the file system that the next boot would find.
//
// Names are taken as rooted at "/", which is the only directory at first. Its clock is a counter: the
// modification time advances by one second with each change. Permission bits are checked as for an
// ordinary owner. It is safe for concurrent use.
type Mem struct {
	mu sync.Mutex
	// All below are guarded by mu.
	root     *memNode
	pending  []*dirOp // changes of directories not yet synced, in order
	ops      int
	hook     func(Op)
	capacity int64 // bytes; 0 = no limit
	used     int64
	tick     int64
	locks    map[*memNode]bool
}

// memNode is a file or a directory.
type memNode struct {
	dir      bool
	mode     fs.FileMode // permission bits
	diskMode fs.FileMode

	appendOnly     bool // see SetAppendOnly
	diskAppendOnly bool

	mtime time.Time
	links int
	opens int

	data     blob       // what reads see
	disk     blob       // what was last synced
	writes   []memWrite // what was done to data since, in order
	reserved int64      // blocks that Preallocate has paid for
	charged  int64      // bytes counted in Mem.used

	entries     map[string]*memNode
	diskEntries map[string]*memNode
}

// dirOp is one atomic change of directories: all of its assignments reach the disk, or none.
type dirOp struct{ set []dirSet }

// dirSet makes name in dir stand for node; nil removes it.
type dirSet struct {
	dir  *memNode
	name string
	node *memNode
}

// NewMem returns an empty file system.
func NewMem() *Mem {
	m := &Mem{locks: make(map[*memNode]bool)}
	m.root = m.newNode(true, 0o755)
	m.root.links = 1
	return m
}

// SetHook makes hook be called before each operation, outside the lock, so that it may call
// [Mem.Crash]; nil removes it.
func (m *Mem) SetHook(hook func(Op)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

// SetCapacity limits the bytes that files may take; more is ENOSPC. 0 is no limit.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Ops returns the number of operations so far.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// begin counts and announces an operation and then takes the lock.
func (m *Mem) begin(kind OpKind, name string) {
	m.mu.Lock()
	op := Op{Kind: kind, Name: name, N: m.ops}
	m.ops++
	hook := m.hook
	m.mu.Unlock()
	if hook != nil {
		hook(op)
	}
	m.mu.Lock()
}

func (m *Mem) newNode(dir bool, perm fs.FileMode) *memNode {
	n := &memNode{dir: dir, mode: perm.Perm(), diskMode: perm.Perm()}
	if dir {
		n.entries = make(map[string]*memNode)
		n.diskEntries = make(map[string]*memNode)
	}
	m.touch(n)
	return n
}

func (m *Mem) touch(n *memNode) {
	m.tick++
	n.mtime = time.Unix(m.tick, 0).UTC()
}

// find walks to name; a missing last part is ENOENT as any other.
func (m *Mem) find(name string) (*memNode, error) {
	n := m.root
	for part := range strings.SplitSeq(rooted(name), "/") {
		if part == "" {
			continue
		}
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		next, ok := n.entries[part]
		if !ok {
			return nil, syscall.ENOENT
		}
		n = next
	}
	return n, nil
}

// parent finds the directory of name for changing it.
func (m *Mem) parent(name string) (dir *memNode, base string, err error) {
	name = rooted(name)
	if name == "/" {
		return nil, "", syscall.EBUSY
	}
	dir, err = m.find(filepath.Dir(name))
	switch {
	case err != nil:
		return nil, "", err
	case !dir.dir:
		return nil, "", syscall.ENOTDIR
	case dir.mode&0o300 != 0o300:
		return nil, "", syscall.EACCES
	}
	return dir, filepath.Base(name), nil
}

func rooted(name string) string { return filepath.ToSlash(filepath.Clean("/" + name)) }

// change makes the assignments visible and remembers them as unsynced.
func (m *Mem) change(set ...dirSet) {
	for _, s := range set {
		if old := s.dir.entries[s.name]; old != nil {
			m.unlink(old)
		}
		if s.node == nil {
			delete(s.dir.entries, s.name)
		} else {
			s.node.links++
			s.dir.entries[s.name] = s.node
		}
		m.touch(s.dir)
	}
	m.pending = append(m.pending, &dirOp{set})
}

func (m *Mem) unlink(n *memNode) {
	n.links--
	m.release(n)
}

// release returns the space of a file that has neither name nor handle.
func (m *Mem) release(n *memNode) {
	if n.links == 0 && n.opens == 0 {
		m.used -= n.charged
		n.charged = 0
	}
}

// Mkdir implements [FS].
func (m *Mem) Mkdir(name string, perm fs.FileMode) error {
	m.begin(OpMkdir, name)
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err == syscall.EBUSY { // the root
		err = syscall.EEXIST
	}
	if err == nil && dir.entries[base] != nil {
		err = syscall.EEXIST
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	m.change(dirSet{dir, base, m.newNode(true, perm)})
	return nil
}

// Remove implements [FS].
func (m *Mem) Remove(name string) error {
	m.begin(OpRemove, name)
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err == nil {
		n := dir.entries[base]
		switch {
		case n == nil:
			err = syscall.ENOENT
		case n.appendOnly:
			err = syscall.EPERM
		case n.dir && len(n.entries) > 0:
			err = syscall.ENOTEMPTY
		}
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	m.change(dirSet{dir, base, nil})
	return nil
}

// Rename implements [FS]. It reaches the disk as one change, also between two directories.
func (m *Mem) Rename(oldname, newname string) error {
	m.begin(OpRename, newname)
	defer m.mu.Unlock()
	if err := m.rename(oldname, newname); err != nil {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: err}
	}
	return nil
}

func (m *Mem) rename(oldname, newname string) error {
	from, oldbase, err := m.parent(oldname)
	if err != nil {
		return err
	}
	to, newbase, err := m.parent(newname)
	if err != nil {
		return err
	}
	n, old := from.entries[oldbase], to.entries[newbase]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n.appendOnly || old != nil && old.appendOnly:
		return syscall.EPERM
	case old != nil && old.dir: // os.Rename replaces no directory
		return syscall.EEXIST
	case n == old:
		return nil
	case n.dir && strings.HasPrefix(rooted(newname)+"/", rooted(oldname)+"/"):
		return syscall.EINVAL
	case old != nil && n.dir:
		return syscall.ENOTDIR
	}
	m.change(dirSet{to, newbase, n}, dirSet{from, oldbase, nil})
	return nil
}

// Link implements [FS].
func (m *Mem) Link(oldname, newname string) error {
	m.begin(OpLink, newname)
	defer m.mu.Unlock()
	n, err := m.find(oldname)
	if err == nil && (n.dir || n.appendOnly) {
		err = syscall.EPERM
	}
	var dir *memNode
	var base string
	if err == nil {
		dir, base, err = m.parent(newname)
	}
	if err == nil && dir.entries[base] != nil {
		err = syscall.EEXIST
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: err}
	}
	m.change(dirSet{dir, base, n})
	return nil
}

// Stat implements [FS].
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.begin(OpStat, name)
	defer m.mu.Unlock()
	n, err := m.find(name)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return n.info(name), nil
}

// ReadDir implements [FS].
func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	m.begin(OpReadDir, name)
	defer m.mu.Unlock()
	n, err := m.find(name)
	switch {
	case err != nil:
	case !n.dir:
		err = syscall.ENOTDIR
	case n.mode&0o400 == 0:
		err = syscall.EACCES
	}
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	var list []fs.DirEntry
	for _, base := range slices.Sorted(maps.Keys(n.entries)) {
		list = append(list, fs.FileInfoToDirEntry(n.entries[base].info(base)))
	}
	return list, nil
}

// Chmod implements [FS]. The bits are durable after Sync on the file.
func (m *Mem) Chmod(name string, mode fs.FileMode) error {
	m.begin(OpChmod, name)
	defer m.mu.Unlock()
	n, err := m.find(name)
	if err == nil && n.appendOnly {
		err = syscall.EPERM
	}
	if err != nil {
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	n.mode = mode.Perm()
	return nil
}

// SyncDir implements [FS].
func (m *Mem) SyncDir(name string) error {
	m.begin(OpSyncDir, name)
	defer m.mu.Unlock()
	n, err := m.find(name)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return &fs.PathError{Op: "sync", Path: name, Err: err}
	}
	m.syncDir(n)
	return nil
}

// syncDir puts every pending change that touches dir on the disk, with its other half if it has one.
func (m *Mem) syncDir(dir *memNode) {
	dir.diskMode = dir.mode
	m.pending = slices.DeleteFunc(m.pending, func(op *dirOp) bool {
		if !slices.ContainsFunc(op.set, func(s dirSet) bool { return s.dir == dir }) {
			return false
		}
		for _, s := range op.set {
			s.apply(s.dir.diskEntries)
		}
		return true
	})
}

func (s dirSet) apply(entries map[string]*memNode) {
	if s.node == nil {
		delete(entries, s.name)
	} else {
		entries[s.name] = s.node
	}
}

// Free implements [FS].
func (m *Mem) Free(name string) (uint64, error) {
	m.begin(OpFree, name)
	defer m.mu.Unlock()
	if _, err := m.find(name); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	if m.capacity == 0 {
		return 1 << 50, nil
	}
	return uint64(max(0, m.capacity-m.used)), nil
}

// Lock implements [FS]. A crash releases it.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.begin(OpLock, name)
	defer m.mu.Unlock()
	n, err := m.find(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if m.locks[n] {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	m.locks[n] = true
	return &memLock{m: m, n: n}, nil
}

type memLock struct {
	m *Mem
	n *memNode
}

func (l *memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.n == nil {
		return fs.ErrClosed
	}
	delete(l.m.locks, l.n)
	l.n = nil
	return nil
}

// info describes the node as it is now.
func (n *memNode) info(name string) memInfo {
	return memInfo{name: filepath.Base(name), size: n.data.size, mode: n.mode, dir: n.dir, mtime: n.mtime}
}

type memInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	dir   bool
	mtime time.Time
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return i.mtime }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) Sys() any           { return nil }

func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return i.mode | fs.ModeDir
	}
	return i.mode
}
