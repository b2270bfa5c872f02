package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/usp-project/usp/internal/vfs"
)

// checkAnchor tries the second place for signed heads: can it be written, and what would take it away together with the runs.
func (a *app) checkAnchor() []finding {
	const check = "anchor"
	dir := a.cfg.Anchor.Dir
	if dir == "" {
		return []finding{{Check: check, Level: "ok", Detail: "none: that a run was put back to an older state is found only with a head that was kept by hand (usp verify --head)",
			Advice: "set anchor.dir to a directory on another disk or machine"}}
	}
	at := existing(dir)
	f, err := os.CreateTemp(at, ".usp-doctor-")
	if err != nil {
		return []finding{{Check: check, Level: "fail", Detail: err.Error(), Advice: "choose another directory: --anchor, USP_ANCHOR_DIR or anchor.dir"}}
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Sync(); err != nil {
		return []finding{{Check: check, Level: "fail", Detail: err.Error()}}
	}
	out := finding{Check: check, Level: "ok", Detail: display(dir) + ": writable, on another file system than the runs"}
	runs := existing(a.cfg.Run.Dir)
	switch same, err := sameDevice(at, runs); {
	case err != nil:
		return []finding{{Check: check, Level: "fail", Detail: err.Error()}}
	case within(dir, a.cfg.Run.Dir):
		out.Level, out.Detail = "warn", display(dir)+": writable, but inside of the directory of the runs"
		out.Advice = "whoever puts that directory back to an older state puts the anchor back with it; choose a place of its own"
	case same:
		out.Level, out.Detail = "warn", display(dir)+": writable, but on the same file system as the runs"
		out.Advice = "a snapshot or backup of that file system that is put back takes the anchor with it; choose another disk or machine"
	}
	return []finding{out}
}

// sameDevice reports whether two files are on one file system.
func sameDevice(a, b string) (bool, error) {
	var dev [2]uint64
	for i, name := range []string{a, b} {
		info, err := os.Stat(name)
		if err != nil {
			return false, fmt.Errorf("which file system holds it? %w", err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			dev[i] = uint64(st.Dev)
		}
	}
	return dev[0] == dev[1], nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	path, err1 := filepath.Abs(path)
	dir, err2 := filepath.Abs(dir)
	rel, err3 := filepath.Rel(dir, path)
	return err1 == nil && err2 == nil && err3 == nil && filepath.IsLocal(rel)
}

// checkReadOnly tries in the directory of the runs what keeps a file that is sealed from being written: its mode, and the append-only attribute.
func (a *app) checkReadOnly() []finding {
	const check = "sealed files"
	f, err := os.CreateTemp(existing(a.cfg.Run.Dir), ".usp-doctor-")
	if err != nil {
		return nil // checkRuns says so
	}
	defer os.Remove(f.Name())
	defer f.Close()
	out := finding{Check: check, Level: "ok"}
	mode := "mode 0444 keeps everybody but root from writing them"
	if err := f.Chmod(0o444); err != nil {
		out.Level, mode = "warn", fmt.Sprintf("the file system keeps no modes (%v)", err)
	} else if w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0); err == nil {
		w.Close()
		if os.Getuid() == 0 {
			mode = "mode 0444, which does not keep you from writing them: you are root"
		} else {
			out.Level, mode = "warn", "mode 0444 is not heeded by this file system"
		}
	}
	attribute, held := a.tryAppendOnly(f.Name())
	out.Detail = mode + "; " + attribute
	switch want := a.cfg.Digest.AppendOnly == "auto"; {
	case want && !held:
		out.Level, out.Advice = "warn", "digest.append_only is auto, and nothing comes of it here"
	case want:
		out.Advice = "digest.append_only is auto: before a run can be removed, chattr -R -a RUN/digests; whoever has the right CAP_LINUX_IMMUTABLE can do that too"
	case held:
		out.Advice = "digest.append_only = \"auto\" would use it for the files of the log"
	}
	return []finding{out}
}

// tryAppendOnly reports whether the append-only attribute can be set here and is heeded. It leaves the file without it.
func (a *app) tryAppendOnly(name string) (text string, held bool) {
	err := vfs.SetAppendOnly(vfs.OS(), name, true)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return "the append-only attribute is not known to this file system or system", false
	case errors.Is(err, fs.ErrPermission):
		return "the append-only attribute cannot be set by you: it takes the right CAP_LINUX_IMMUTABLE", false
	case err != nil:
		return fmt.Sprintf("the append-only attribute cannot be set: %v", err), false
	}
	removed := os.Remove(name) == nil
	if err := vfs.SetAppendOnly(vfs.OS(), name, false); err != nil && !removed {
		return fmt.Sprintf("the append-only attribute cannot be taken away again: %v; remove %s yourself", err, name), false
	}
	if removed {
		return "the append-only attribute can be set, and is not heeded by this file system", false
	}
	return "the append-only attribute can be set, and holds", true
}
