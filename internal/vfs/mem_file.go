package vfs

import (
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// memWrite is one unsynced change of a file's content.
type memWrite struct {
	kind OpKind // OpWrite, OpTruncate or OpPreallocate
	off  int64
	data []byte // OpWrite: own copy
	size int64  // OpTruncate, OpPreallocate
}

// OpenFile implements [FS].
func (m *Mem) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	kind := OpOpen
	if flag&os.O_CREATE != 0 {
		kind = OpCreate
	}
	m.begin(kind, name)
	defer m.mu.Unlock()
	n, err := m.openNode(name, flag, perm)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	n.opens++
	return &memFile{m: m, n: n, name: name, flag: flag}, nil
}

func (m *Mem) openNode(name string, flag int, perm fs.FileMode) (*memNode, error) {
	writes := flag&(os.O_WRONLY|os.O_RDWR) != 0
	n, err := m.find(name)
	switch {
	case err == syscall.ENOENT && flag&os.O_CREATE != 0:
		dir, base, err := m.parent(name)
		if err != nil {
			return nil, err
		}
		n = m.newNode(false, perm)
		m.change(dirSet{dir, base, n})
		return n, nil // the permission bits bind only later opens
	case err != nil:
		return nil, err
	case flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case n.dir && (writes || flag&os.O_CREATE != 0):
		return nil, syscall.EISDIR
	case n.appendOnly && (writes && flag&os.O_APPEND == 0 || flag&os.O_TRUNC != 0):
		return nil, syscall.EPERM
	case writes && n.mode&0o200 == 0, flag&os.O_WRONLY == 0 && n.mode&0o400 == 0:
		return nil, syscall.EACCES
	}
	if flag&os.O_TRUNC != 0 && writes {
		m.truncate(n, 0)
	}
	return n, nil
}

// memFile is an open file of a Mem. All but the constants is guarded by m.mu.
type memFile struct {
	m      *Mem
	n      *memNode
	name   string
	flag   int
	pos    int64
	closed bool
}

func (f *memFile) Name() string { return f.name }

// begin announces the operation, takes the lock and checks the handle; the caller unlocks.
func (f *memFile) begin(kind OpKind, writes bool) error {
	if f.n.dir && kind&OpAnySync != 0 {
		kind = OpSyncDir
	}
	f.m.begin(kind, f.name)
	switch access := f.flag & (os.O_WRONLY | os.O_RDWR); {
	case f.closed:
		return fs.ErrClosed
	case writes && access == os.O_RDONLY, kind == OpRead && access == os.O_WRONLY:
		return syscall.EBADF
	case kind == OpRead && f.n.dir:
		return syscall.EISDIR
	}
	return nil
}

func (f *memFile) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

func (f *memFile) Read(p []byte) (int, error) {
	err := f.begin(OpRead, false)
	defer f.m.mu.Unlock()
	if err != nil {
		return 0, f.fail("read", err)
	}
	n := f.n.data.readAt(p, f.pos)
	f.pos += int64(n)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	err := f.begin(OpRead, false)
	defer f.m.mu.Unlock()
	if err == nil && off < 0 {
		err = syscall.EINVAL
	}
	if err != nil {
		return 0, f.fail("read", err)
	}
	n := f.n.data.readAt(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) nextData(off int64) (int64, error) {
	err := f.begin(OpRead, false)
	defer f.m.mu.Unlock()
	if err == nil && off < 0 {
		err = syscall.EINVAL
	}
	if err != nil {
		return 0, f.fail("lseek", err)
	}
	next := f.n.data.nextData(off)
	if next < 0 {
		return 0, io.EOF
	}
	return next, nil
}

func (f *memFile) Write(p []byte) (int, error) {
	err := f.begin(OpWrite, true)
	defer f.m.mu.Unlock()
	if err != nil {
		return 0, f.fail("write", err)
	}
	if f.flag&os.O_APPEND != 0 {
		f.pos = f.n.data.size
	}
	n, err := f.m.write(f.n, p, f.pos)
	f.pos += int64(n)
	if err != nil {
		return n, f.fail("write", err)
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.begin(OpWrite, true)
	defer f.m.mu.Unlock()
	if err == nil && (off < 0 || f.flag&os.O_APPEND != 0) {
		err = syscall.EINVAL
	}
	if err != nil {
		return 0, f.fail("write", err)
	}
	n, err := f.m.write(f.n, p, off)
	if err != nil {
		return n, f.fail("write", err)
	}
	return n, nil
}

// write stores what there is room for, as a disk that fills up does.
func (m *Mem) write(n *memNode, p []byte, off int64) (int, error) {
	var err error
	if m.capacity > 0 {
		free := max(0, (m.capacity-m.used)/blockSize) // what is reserved stays usable
		for len(p) > 0 && n.data.newBlocks(off, len(p), n.reserved) > free {
			err = syscall.ENOSPC
			last := (off + int64(len(p)) - 1) / blockSize * blockSize // cut back to the block's start
			p = p[:max(0, last-off)]
		}
	}
	m.charge(n, n.data.newBlocks(off, len(p), n.reserved)*blockSize)
	if len(p) > 0 {
		n.data.writeAt(p, off)
		n.writes = append(n.writes, memWrite{kind: OpWrite, off: off, data: slices.Clone(p)})
		m.touch(n)
	}
	return len(p), err
}

func (m *Mem) charge(n *memNode, bytes int64) {
	n.charged += bytes
	m.used += bytes
}

func (f *memFile) Truncate(size int64) error {
	err := f.begin(OpTruncate, true)
	defer f.m.mu.Unlock()
	if err == syscall.EBADF || err == nil && size < 0 {
		err = syscall.EINVAL // ftruncate(2) has it so
	}
	if err == nil && f.n.appendOnly {
		err = syscall.EPERM
	}
	if err != nil {
		return f.fail("truncate", err)
	}
	f.m.truncate(f.n, size)
	return nil
}

func (m *Mem) truncate(n *memNode, size int64) {
	n.data.truncate(size)
	n.writes = append(n.writes, memWrite{kind: OpTruncate, size: size})
	n.reserved = min(n.reserved, blocksOf(size))
	m.charge(n, n.held()*blockSize-n.charged)
	m.touch(n)
}

func blocksOf(bytes int64) int64 { return (bytes + blockSize - 1) / blockSize }

// held returns the number of blocks that a file takes: those reserved and those written past them.
func (n *memNode) held() int64 {
	held := n.reserved
	for i := range n.data.blocks {
		if i >= n.reserved {
			held++
		}
	}
	return held
}

func (f *memFile) Preallocate(size int64) error {
	err := f.begin(OpPreallocate, true)
	defer f.m.mu.Unlock()
	if err != nil {
		return f.fail("fallocate", err)
	}
	n, before := f.n, f.n.reserved
	n.reserved = max(n.reserved, blocksOf(size))
	more := n.held()*blockSize - n.charged
	if f.m.capacity > 0 && f.m.used+more > f.m.capacity {
		n.reserved = before
		return f.fail("fallocate", syscall.ENOSPC)
	}
	f.m.charge(n, more)
	n.data.size = max(n.data.size, size)
	n.writes = append(n.writes, memWrite{kind: OpPreallocate, size: size})
	return nil
}

func (f *memFile) Sync() error     { return f.sync(OpSync) }
func (f *memFile) Datasync() error { return f.sync(OpDatasync) }

func (f *memFile) sync(kind OpKind) error {
	err := f.begin(kind, false)
	defer f.m.mu.Unlock()
	if err != nil {
		return f.fail("sync", err)
	}
	if f.n.dir {
		f.m.syncDir(f.n)
		return nil
	}
	f.n.sync()
	if kind == OpSync {
		f.n.diskMode, f.n.diskAppendOnly = f.n.mode, f.n.appendOnly
	}
	return nil
}

// sync makes data durable, copying only what changed.
func (n *memNode) sync() {
	for _, w := range n.writes {
		if w.kind == OpTruncate {
			n.disk = n.data.share()
			n.writes = nil
			return
		}
		for i := w.off / blockSize; i*blockSize < w.off+int64(len(w.data)); i++ {
			n.data.shareBlock(&n.disk, i)
		}
	}
	n.disk.truncate(n.data.size)
	n.writes = nil
}

// loseWrites does what kernels do after a failed fsync: the unsynced data stays readable, but counts
// as clean and will never be written.
func (f *memFile) loseWrites() {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.n.writes = nil
}

// dropCache makes reads see the disk where a failed fsync has made the cache lie, in all of the file.
func (f *memFile) dropCache(int64, int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if len(f.n.writes) == 0 {
		f.n.data = f.n.disk.share()
	}
	return nil
}

func (f *memFile) Stat() (fs.FileInfo, error) {
	err := f.begin(OpStat, false)
	defer f.m.mu.Unlock()
	if err != nil {
		return nil, f.fail("stat", err)
	}
	return f.n.info(f.name), nil
}

func (f *memFile) Close() error {
	err := f.begin(OpClose, false)
	defer f.m.mu.Unlock()
	if err != nil {
		return f.fail("close", err)
	}
	f.closed = true
	f.n.opens--
	f.m.release(f.n)
	return nil
}
