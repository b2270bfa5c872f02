package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
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
