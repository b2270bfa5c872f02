package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/snapshot"
)

// watcher tells what a recorder does in the run directories below a directory, at the moment it does it.
type watcher struct {
	f       *os.File
	runs    string
	dirs    map[int32]string
	moments chan aim
}

// watch begins to watch; the channel is closed by close.
func watch(runs string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	// Room for all that a run does: what nobody waits for is passed over, not waited for.
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), runs: runs, dirs: map[int32]string{}, moments: make(chan aim, 1<<14)}
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return nil, err
	}
	w.add(runs)
	go w.read()
	return w, nil
}

func (w *watcher) close() error { return w.f.Close() }

// add watches a directory and those in it. One that has just been removed is none to watch.
func (w *watcher) add(dir string) {
	var n int
	raw, err := w.f.SyscallConn()
	if err != nil {
		return
	}
	if raw.Control(func(fd uintptr) {
		n, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_ATTRIB)
	}) != nil || err != nil {
		return
	}
	w.dirs[int32(n)] = dir
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			w.add(filepath.Join(dir, e.Name()))
		}
	}
}

func (w *watcher) read() {
	defer close(w.moments)
	buf := make([]byte, 1<<16)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:end], "\x00"))
			b = b[end:]
			dir := w.dirs[wd]
			if mask&unix.IN_ISDIR != 0 && mask&unix.IN_CREATE != 0 {
				w.add(filepath.Join(dir, name))
			}
			if dir == w.runs {
				continue
			}
			w.tell(moment(filepath.Base(dir), name, mask))
			w.tell(atResume) // whatever is done: a run that is resumed is first brought into order
		}
	}
}

func (w *watcher) tell(a aim) {
	if a == "" {
		return
	}
	select {
	case w.moments <- a:
	default:
	}
}

// moment says what a change of a name in a directory is a part of.
func moment(dir, name string, mask uint32) aim {
	file, _, temp := strings.Cut(strings.TrimPrefix(name, "."), ".tmp-")
	_, _, isSnapshot := snapshot.ParseFileName(file)
	base, isSegment := segment.ParseName(file)
	switch {
	case dir == rundir.SnapshotDir && isSnapshot && !temp && mask&unix.IN_DELETE != 0:
		return atPrune
	case dir == rundir.SnapshotDir && isSnapshot && mask&unix.IN_CREATE != 0:
		return atSnapshot
	case isSegment && base > 0 && mask&unix.IN_DELETE == 0: // the file after the first is made, or one becomes read-only
		return atRoll
	}
	return ""
}

// children are the processes that a process has started.
func children(pid int) (pids []int) {
	files, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children") // the pattern is good
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has just ended
		}
		for s := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}
