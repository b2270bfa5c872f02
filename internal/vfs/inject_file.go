package vfs

import "io/fs"

// injectFile is a file opened through an Injector.
type injectFile struct {
	File
	in  *Injector
	dir bool
}

func (f *injectFile) pass(kind OpKind, op string, call func() error) error {
	return f.in.pass(kind, op, f.Name(), call)
}

func (f *injectFile) Read(p []byte) (n int, err error) {
	err = f.pass(OpRead, "read", func() (err error) {
		n, err = f.File.Read(p)
		return err
	})
	return n, err
}

func (f *injectFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.pass(OpRead, "read", func() (err error) {
		n, err = f.File.ReadAt(p, off)
		return err
	})
	return n, err
}

func (f *injectFile) Write(p []byte) (int, error) {
	return f.write(p, f.File.Write)
}

func (f *injectFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, off) })
}

func (f *injectFile) write(p []byte, write func([]byte) (int, error)) (int, error) {
	short, fault := f.in.check(OpWrite, f.Name())
	if fault == nil {
		return write(p)
	}
	n := 0
	if short {
		n, _ = write(p[:len(p)/2]) // the injected error is the one to report
	}
	return n, &fs.PathError{Op: "write", Path: f.Name(), Err: fault}
}

func (f *injectFile) Stat() (info fs.FileInfo, err error) {
	err = f.pass(OpStat, "stat", func() (err error) {
		info, err = f.File.Stat()
		return err
	})
	return info, err
}

func (f *injectFile) Sync() error     { return f.sync(OpSync, f.File.Sync) }
func (f *injectFile) Datasync() error { return f.sync(OpDatasync, f.File.Datasync) }

func (f *injectFile) sync(kind OpKind, sync func() error) error {
	if f.dir {
		kind = OpSyncDir
	}
	_, fault := f.in.check(kind, f.Name())
	if fault == nil {
		return sync()
	}
	if l, ok := f.File.(interface{ loseWrites() }); ok && !f.dir {
		l.loseWrites()
	}
	return &fs.PathError{Op: "sync", Path: f.Name(), Err: fault}
}

func (f *injectFile) Truncate(size int64) error {
	return f.pass(OpTruncate, "truncate", func() error { return f.File.Truncate(size) })
}

func (f *injectFile) Preallocate(size int64) error {
	return f.pass(OpPreallocate, "fallocate", func() error { return f.File.Preallocate(size) })
}

func (f *injectFile) Close() error {
	_, fault := f.in.check(OpClose, f.Name())
	err := f.File.Close()
	if fault != nil {
		return &fs.PathError{Op: "close", Path: f.Name(), Err: fault}
	}
	return err
}

func (f *injectFile) dropCache(off, n int64) error {
	if d, ok := f.File.(cacheDropper); ok {
		return d.dropCache(off, n)
	}
	return nil
}

func (f *injectFile) startWriteback(off, n int64) error { return StartWriteback(f.File, off, n) }

func (f *injectFile) nextData(off int64) (next int64, err error) {
	err = f.pass(OpRead, "lseek", func() (err error) {
		next, err = NextData(f.File, off)
		return err
	})
	return next, err
}
