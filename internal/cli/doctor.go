package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/ring"
)

// finding is one thing that usp doctor looked at.
type finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // ok, warn, fail
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check this machine and the settings for what recording needs", Args: cobra.NoArgs,
		Long: "Check this machine and the settings for what recording needs. It tries what it says:\nit makes a ring, writes and syncs a file, and removes both. Exit 1 if something fails.",
		RunE: func(*cobra.Command, []string) error { return a.doctor() },
	}
}

func (a *app) doctor() error {
	checks := []func() []finding{a.checkRing, a.checkStaleRings, a.checkRuns, a.checkReadOnly, a.checkAnchor, a.checkStreamOf, a.checkRemote, a.checkKey, a.checkClock, a.checkCPU}
	var all []finding
	for _, check := range checks {
		all = append(all, check()...)
	}
	failed := slices.ContainsFunc(all, func(f finding) bool { return f.Level == "fail" })
	if a.json {
		if err := a.printJSON(map[string]any{"ok": !failed, "findings": all}, true); err != nil {
			return err
		}
	} else {
		for _, f := range all {
			fmt.Fprintf(a.out, "%-4s  %s: %s\n", f.Level, f.Check, f.Detail)
			if f.Advice != "" {
				fmt.Fprintf(a.out, "      %s\n", f.Advice)
			}
		}
	}
	if failed {
		return withCode(exitError, nil)
	}
	return nil
}

func (a *app) ringDir() (string, ring.DirInfo) {
	if dir := a.cfg.Ring.Dir; dir != "" {
		return dir, ring.Describe(dir)
	}
	return ring.DefaultDir()
}

// checkRing explains where rings go and tries one of the configured size.
func (a *app) checkRing() []finding {
	dir, info := a.ringDir()
	f := finding{Check: "ring", Level: "ok", Detail: fmt.Sprintf("%s (%s, chosen by %s, %s free)", dir, info.Kind, info.Source, bytesText(int64(info.Free)))}
	if info.Memory {
		f.Detail += "; memory-backed: no write-back of dirty pages can stall the loop"
	}
	if info.Warning != "" {
		f.Level, f.Advice = "warn", info.Warning
	}
	if err := tryRing(dir, a.cfg.Ring.Slots); err != nil {
		return []finding{f, {Check: "ring", Level: "fail", Detail: err.Error(), Advice: "set ring.dir to a memory-backed directory of yours, or ring.slots to fewer records"}}
	}
	return []finding{f}
}

func tryRing(dir string, slots int) error {
	if err := ring.PrepareDir(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, "doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	p, err := ring.Create(ring.Config{Path: filepath.Join(tmp, "try.ring"), RunID: "doctor", Schema: []byte("doctor"), PayloadLen: 256, Slots: slots})
	if err != nil {
		return err
	}
	return p.Close(true)
}

// checkStaleRings looks for rings whose producer is gone: they hold memory, and records that nobody stored.
func (a *app) checkStaleRings() []finding {
	dir, _ := a.ringDir()
	paths, err := ring.List(dir)
	if err != nil {
		return []finding{{Check: "rings left", Level: "warn", Detail: err.Error()}}
	}
	var out []finding
	for _, path := range paths {
		c, err := ring.Open(path)
		if err != nil {
			out = append(out, finding{Check: "rings left", Level: "warn", Detail: err.Error()})
			continue
		}
		if alive, err := c.ProducerAlive(); err == nil && !alive {
			out = append(out, finding{Check: "rings left", Level: "warn",
				Detail: fmt.Sprintf("%s: its producer is gone, %d records emitted", path, c.Produced()),
				Advice: "store them: " + a.storeLeft(path, c.Header())})
		}
		c.Close()
	}
	if len(out) == 0 {
		out = []finding{{Check: "rings left", Level: "ok", Detail: "none by dead producers"}}
	}
	return out
}

// storeLeft is what stores the records in a ring whose producer is gone.
func (a *app) storeLeft(path string, h ring.Header) string {
	record := "usp record " + quoteArg(path) + a.dirFlag()
	var meta struct{ Producer producerMeta }
	if json.Unmarshal(h.Meta, &meta) != nil {
		return record
	}
	if resume := resumeCommand(h.RunID+a.dirFlag(), meta.Producer); resume != "" {
		return resume + ", or " + record
	}
	return record
}

// existing is the directory, or the nearest one above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// checkRuns tries the directory of the runs: can it be written, how long does an fsync take, is there room.
func (a *app) checkRuns() []finding {
	dir := a.cfg.Run.Dir
	at := existing(dir)
	f, err := os.CreateTemp(at, ".usp-doctor-")
	if err != nil {
		return []finding{{Check: "runs", Level: "fail", Detail: err.Error(), Advice: "choose another directory: --dir, USP_DIR or run.dir"}}
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var l latencies
	for range 20 {
		began := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return []finding{{Check: "runs", Level: "fail", Detail: err.Error()}}
		}
		if err := f.Sync(); err != nil {
			return []finding{{Check: "runs", Level: "fail", Detail: err.Error()}}
		}
		l.add(time.Since(began))
	}
	free, err := a.fs.Free(at)
	if err != nil {
		return []finding{{Check: "runs", Level: "fail", Detail: err.Error()}}
	}
	out := finding{Check: "runs", Level: "ok", Detail: fmt.Sprintf("%s: writable, %s free, write+fsync %v (median), %v (worst of %d)", display(dir), bytesText(int64(free)), l.quantile(.5).Round(time.Microsecond), l.max.Round(time.Microsecond), l.n)}
	if need := 4 * int64(a.cfg.Recorder.SegmentSize); int64(free) < need {
		out.Level, out.Advice = "warn", fmt.Sprintf("less than %s is free: segments are reserved in advance; lower recorder.segment_size", bytesText(need))
	} else if p := l.quantile(.5); p > time.Duration(a.cfg.Recorder.CommitInterval) {
		out.Level, out.Advice = "warn", "an fsync takes longer than recorder.commit_interval: records are durable later than configured"
	}
	return []finding{out}
}

func (a *app) checkKey() []finding {
	opts, err := a.recorderOptions()
	if err != nil {
		return []finding{{Check: "signing key", Level: "fail", Detail: err.Error()}}
	}
	path, err := opts.SigningKeyFile()
	if err != nil {
		return []finding{{Check: "signing key", Level: "fail", Detail: err.Error()}}
	}
	switch _, key, err := digestlog.LoadKey(a.fs, path); {
	case errors.Is(err, fs.ErrNotExist):
		return []finding{{Check: "signing key", Level: "ok", Detail: path + ": made on first use"}}
	case err != nil:
		return []finding{{Check: "signing key", Level: "fail", Detail: err.Error()}}
	default:
		return []finding{{Check: "signing key", Level: "ok", Detail: fmt.Sprintf("%s: %s", path, key)}}
	}
}

func (a *app) checkClock() []finding {
	f := finding{Check: "clock", Level: "ok", Detail: fmt.Sprintf("%s; reading it costs %v", a.now().UTC().Format(time.RFC3339), clockCost())}
	if runs, err := rundir.List(vfs.OS(), a.cfg.Run.Dir); err == nil && len(runs) > 0 {
		if last := runs[len(runs)-1]; last.Created.After(a.now()) {
			f.Level, f.Advice = "warn", fmt.Sprintf("run %s was begun in the future: the clock was set back", last.ID)
		}
	}
	return []finding{f}
}

func (a *app) checkCPU() []finding {
	f := finding{Check: "processors", Level: "ok", Detail: fmt.Sprintf("%d for %s/%s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)}
	if runtime.NumCPU() < 2 {
		f.Level, f.Advice = "warn", "loop and recorder share one processor: the recorder's work costs the loop time"
	}
	if runtime.GOOS != "linux" {
		f.Level, f.Advice = "warn", "recording is made for Linux; here rings may lie on a disk-backed file system (see the README)"
	}
	return []finding{f}
}
