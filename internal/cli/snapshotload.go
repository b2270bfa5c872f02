package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

const snapshotLoadLong = `Write the saved state of a run, the newest that verifies, as one container of sections
(doc/format/snapshot.md) to standard output or to a file.

As in a resume, a snapshot counts if its own checksums and the digest log both vouch for
every byte; one that does not pass is named, and the next older one is tried. Nothing
reaches standard output before all is checked. A file appears, with mode 0600, when it
is complete. /dev/fd/N is written to directly, and empty again if nothing passed.

What was loaded is said on standard error, or on standard output if the state goes to a
file; --json says it as JSON.`

type loadFlags struct {
	step     uint64
	hasStep  bool
	to       string
	sections []string
	key      string
}

// loadReport says which snapshot was loaded.
type loadReport struct {
	RunID      string      `json:"run_id"`
	Snapshot   string      `json:"snapshot"`
	Step       uint64      `json:"step"`
	Generation uint32      `json:"generation"`
	Seq        uint64      `json:"seq"`
	Reason     string      `json:"reason"`
	SHA256     string      `json:"sha256"`
	Size       int64       `json:"size"` // of the container
	Rejected   []rejection `json:"rejected,omitempty"`
}

func (a *app) snapshotLoadCommand() *cobra.Command {
	var f loadFlags
	cmd := &cobra.Command{
		Use: "load RUN [--step N] [--to FILE]", Short: "Write the saved state, once it is verified, for another program", Long: snapshotLoadLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.hasStep = cmd.Flags().Changed("step")
			return a.snapshotLoad(cmd.Context(), args[0], f)
		},
	}
	cmd.Flags().Uint64Var(&f.step, "step", 0, "load the snapshot of step `n`, and no other")
	cmd.Flags().StringVar(&f.to, "to", "", "write to a new `file`, or to /dev/fd/N")
	cmd.Flags().StringArrayVar(&f.sections, "section", nil, "write only the section of this `name`; can be given again. All is verified in any case")
	a.identityFlag(cmd)
	keyFlag(cmd, &f.key)
	return cmd
}

func (a *app) snapshotLoad(ctx context.Context, run string, f loadFlags) error {
	if f.to == "" && isTerminal(a.stdout) {
		return usageError(errors.New("a state is not for a terminal; redirect standard output, or give --to FILE"))
	}
	ids, err := a.identities()
	if err != nil {
		return err
	}
	far := remote.IsAddress(run)
	var dir rundir.Dir
	if !far {
		if err := localOnly(f.key); err != nil {
			return err
		}
		if dir, err = a.resolve(run); err != nil {
			return err
		}
	}
	out, err := a.openOutlet(f.to)
	if err != nil {
		return err
	}
	var report *loadReport
	if far {
		report, err = a.remoteLoad(ctx, run, f.key, f, ids, out)
	} else {
		report, err = a.loadTo(dir, f, ids, out)
	}
	err = errors.Join(err, out.end(err == nil))
	if report != nil {
		for i, r := range report.Rejected {
			next := ""
			switch {
			case i+1 < len(report.Rejected):
				next = fmt.Sprintf("; trying the one of step %d", report.Rejected[i+1].Step)
			case err == nil:
				next = fmt.Sprintf("; trying the one of step %d", report.Step)
			}
			fmt.Fprintf(a.err, "usp: warning: snapshot of step %d not loaded: %s%s\n", r.Step, r.Reason, next)
		}
	}
	if err != nil {
		return a.needsKey(err)
	}
	return a.sayLoaded(report, f.to != "")
}

func (a *app) sayLoaded(r *loadReport, stdout bool) error {
	to := *a
	if !stdout {
		to.out = a.err
	}
	if a.json {
		return to.printJSON(r, false)
	}
	if stdout || !a.quiet {
		fmt.Fprintf(to.out, "loaded %s: run %s, generation %d, step %d, %d bytes\n", r.Snapshot, r.RunID, r.Generation, r.Step, r.Size)
	}
	return nil
}

// loadTo has the newest snapshot that verifies written to out. While the run is recorded, one may be pruned between when
// the log was read and when it was opened: then the log is read again.
func (a *app) loadTo(dir rundir.Dir, f loadFlags, ids []age.Identity, out *outlet) (report *loadReport, err error) {
	for try := 0; ; try++ {
		gone := false
		report, err = a.loadOnce(dir, f, ids, out, &gone)
		if !gone || try == 3 || !rundir.Locked(a.fs, dir) {
			return report, err
		}
	}
}

func (a *app) loadOnce(dir rundir.Dir, f loadFlags, ids []age.Identity, out *outlet, gone *bool) (*loadReport, error) {
	var step *uint64
	if f.hasStep {
		step = &f.step
	}
	report := &loadReport{RunID: dir.ID()}
	var stop error // says nothing about the snapshot: another one would not do
	found, err := recorder.FindSnapshot(a.fs, dir.Path(), step, func(err error) {
		*gone = *gone || errors.Is(err, fs.ErrNotExist)
		var r *recorder.RejectedError
		if errors.As(err, &r) && stop == nil {
			report.Rejected = append(report.Rejected, rejection{Snapshot: r.Name, Step: r.Step, Generation: r.Generation, Reason: r.Err.Error()})
		}
	}, func(path string, want *[32]byte) (snapshot.Meta, error) {
		if stop != nil {
			return snapshot.Meta{}, stop
		}
		m, err := snapshot.LoadTo(a.fs, path, want, snapshot.LoadOptions{Identities: ids}, f.sections, func(_ snapshot.Meta, size int64) (io.WriterAt, error) {
			report.Size = size
			return out, out.begin(size)
		})
		if out.err != nil {
			stop = fmt.Errorf("write the state: %w", out.err)
		} else if errors.Is(err, snapshot.ErrNoSection) {
			stop = withCode(exitNotFound, fmt.Errorf("%w; usp snapshot show %s lists them", err, pathArg(dir.Path())))
		}
		return m, err
	})
	switch {
	case stop != nil:
		return nil, stop
	case errors.Is(err, recorder.ErrNoSnapshot) && len(report.Rejected) > 0:
		return report, withCode(exitFailed, errors.New("no snapshot of the run can be loaded"))
	case errors.Is(err, recorder.ErrNoSnapshot) && f.hasStep:
		return report, withCode(exitNotFound, fmt.Errorf("the run has no snapshot of step %d that its log vouches for; usp snapshot ls %s lists them", f.step, pathArg(dir.Path())))
	case errors.Is(err, recorder.ErrNoSnapshot):
		return report, withCode(exitNotFound, errors.New("the run has no snapshot that its log vouches for"))
	case err != nil:
		return report, err
	}
	report.Snapshot, report.SHA256 = found.Name, fmt.Sprintf("%x", found.SHA256)
	report.Step, report.Generation, report.Seq, report.Reason = found.Meta.Step, found.Meta.Generation, found.Meta.Seq, reasonText(found.Meta.Reason)
	return report, nil
}

// outlet is where a container is put together: a file that can be written anywhere in, or memory for what cannot.
type outlet struct {
	w      io.Writer // where memory goes in the end
	memory []byte
	file   *os.File
	name   string // of the file once it is complete; "": it is written to in place
	err    error
}

// openOutlet prepares what --to names; "" is standard output.
func (a *app) openOutlet(to string) (*outlet, error) {
	if to == "" {
		return &outlet{w: a.out}, nil
	}
	st, err := os.Stat(to)
	passed := strings.HasPrefix(to, "/dev/fd/") || strings.HasPrefix(to, "/proc/self/fd/")
	switch {
	case errors.Is(err, fs.ErrNotExist) && !passed:
		f, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".tmp-*")
		if err != nil {
			return nil, err
		}
		return &outlet{file: f, name: to}, nil
	case err != nil:
		return nil, err
	case st.Mode().IsRegular() && !passed:
		return nil, &fs.PathError{Op: "write", Path: to, Err: fs.ErrExist}
	}
	f, err := os.OpenFile(to, os.O_WRONLY, 0)
	switch {
	case err != nil:
		return nil, err
	case isTerminal(f):
		f.Close()
		return nil, usageError(fmt.Errorf("--to %s: a state is not for a terminal", to))
	case st.Mode().IsRegular():
		return &outlet{file: f}, nil
	}
	return &outlet{file: f, w: f}, nil
}

// begin makes room for size bytes of zeros, and forgets what was written before.
func (o *outlet) begin(size int64) error {
	if o.w != nil {
		o.memory = nil // not both at once
		o.memory = make([]byte, size)
		return nil
	}
	o.err = o.file.Truncate(0)
	if o.err == nil {
		o.err = o.file.Truncate(size)
	}
	return o.err
}

// WriteAt writes inside of what begin made room for.
func (o *outlet) WriteAt(b []byte, off int64) (int, error) {
	if o.w != nil {
		return copy(o.memory[off:], b), nil
	}
	n, err := o.file.WriteAt(b, off)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// end hands out what is complete, or takes back what is not.
func (o *outlet) end(complete bool) (err error) {
	switch {
	case complete && o.w != nil:
		_, err = o.w.Write(o.memory)
	case o.w != nil:
	case complete && o.name != "":
		// A link, since it never replaces a file; the temporary name goes in any case.
		err = os.Link(o.file.Name(), o.name)
		err = errors.Join(err, os.Remove(o.file.Name()))
	case o.name != "":
		err = os.Remove(o.file.Name())
	case !complete:
		err = o.file.Truncate(0)
	}
	if o.file != nil {
		err = errors.Join(err, o.file.Close())
	}
	return err
}
