package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// TestReadOnlyFiles: what is sealed or published cannot be written by the user who recorded it, who is not root, and everything that goes on
// with a run works all the same.
func TestReadOnlyFiles(t *testing.T) {
	w := newWorld(t)
	w.writeSeries("in.csv", 900, 1)
	var as *syscall.Credential
	if os.Getuid() == 0 {
		as = &syscall.Credential{Uid: 65534, Gid: 65534}
		w.readableBy(65534, w.dir, w.ring, filepath.Join(w.dir, "in.csv"))
	}
	w.env = append(w.env, "USP_RECORDER_SEGMENT_SIZE=64KiB", "USP_RECORDER_COMMIT_BYTES=4KiB", "USP_SNAPSHOT_KEEP_LAST=3", "USP_ANCHOR_DIR="+filepath.Join(w.dir, "anchor"))
	do := func(cmd *exec.Cmd, ok bool) string {
		t.Helper()
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		if err := cmd.Run(); (err == nil) != ok {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out.String())
		}
		return out.String()
	}
	usp := func(args ...string) string { t.Helper(); return do(w.command(args...), true) }
	usp("run", "-q", "in.csv", "--snapshot-interval", "100")
	w.writeSeries("in.csv", 1500, 1) // the same rows, and more
	usp("run", "-q", "--resume", "latest")
	usp("verify", "latest", "--deep")
	usp("snapshot", "prune", "latest", "--keep-last", "1")
	usp("verify", "latest")
	kinds := map[string]int{}
	run, err := filepath.EvalSymlinks(filepath.Join(w.dir, "runs", "latest"))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(run, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "checkpoint" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		kinds[filepath.Base(filepath.Dir(path))+filepath.Ext(path)]++
		want := fs.FileMode(0o444)
		if strings.HasSuffix(path, ".snap") {
			want = 0o400
		}
		if info.Mode() != want {
			t.Errorf("%s: mode %v, want %v", path, info.Mode(), want)
		}
		do(exec.Command("sh", "-c", `echo x >> "$0"`, path), false)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(kinds) != 4 || kinds["telemetry.seg"] < 3 || kinds["digests.seg"] < 3 {
		t.Errorf("files looked at: %v", kinds)
	}
	usp("verify", "latest")
}

// TestAppendOnlyLog: with the attribute on the files of the log, not even root cuts or removes one in passing, and a run can be interrupted, resumed
// and verified as without it.
func TestAppendOnlyLog(t *testing.T) {
	w := newWorld(t)
	probe := filepath.Join(w.dir, "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := vfs.SetAppendOnly(vfs.OS(), probe, true); err != nil {
		t.Skipf("NOT CHECKED: the append-only attribute cannot be set here (%v): a log that has it cannot be tested", err)
	}
	release := func() {
		files, err := filepath.Glob(filepath.Join(w.dir, "runs", "*", "digests", "*.seg"))
		for _, name := range append(files, probe) {
			if e := vfs.SetAppendOnly(vfs.OS(), name, false); err == nil {
				err = e
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
	defer release()
	w.env = append(w.env, "USP_DIGEST_APPEND_ONLY=auto", "USP_RECORDER_SEGMENT_SIZE=64KiB", "USP_RECORDER_COMMIT_BYTES=4KiB", "USP_SNAPSHOT_KEEP_LAST=2")
	w.writeSeries("in.csv", 900, 1)
	w.want([]int{0}, "run", "-q", "in.csv", "--snapshot-interval", "100")
	w.writeSeries("in.csv", 1500, 1)
	w.want([]int{0}, "run", "-q", "--resume", "latest")
	w.want([]int{0}, "verify", "latest")
	w.want([]int{0}, "snapshot", "prune", "latest", "--keep-last", "1")
	w.want([]int{0}, "verify", "latest")
	files, err := filepath.Glob(filepath.Join(w.dir, "runs", "latest", "digests", "*.seg"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	if _, events := w.want([]int{0}, "log", "latest", "--kind", "EVENT"); events != "" {
		t.Errorf("files were given up: %s", events)
	}
	for _, name := range files {
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o444 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		for what, err := range map[string]error{"remove": os.Remove(name), "cut": os.Truncate(name, 10), "rename": os.Rename(name, name+".x")} {
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s %s: %v", what, name, err)
			}
		}
	}
	w.want([]int{0}, "verify", "latest")
}
