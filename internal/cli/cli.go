// Package cli is the command line of usp: what each command reads, does and prints, and with which code it exits.
//
// Results, with what to do next, go to standard output, everything else (progress, messages) to standard error. Every command has
// --json: one document, or for commands that run long, lines of which the last is the summary. The exit codes are a
// contract for scripts and stand in the help of the root command.
//
// The package wires the others together; it computes and stores nothing itself. Every command is a function from an
// app, which holds the streams, the environment and the settings, so that all of it can be run in a test.
package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

// app is what every command works with.
type app struct {
	in  io.Reader
	out io.Writer
	err io.Writer
	env []string

	stdout io.Writer // out as it was given, to ask whether it is a terminal

	configFile string
	json       bool
	quiet      bool
	settings   []config.Setting // given as flags, in order
	cfg        *config.Loaded   // set before a command runs
	fs         vfs.FS
	now        func() time.Time
}

// Main runs one command line and returns the exit code.
func Main(args []string, in io.Reader, out, errw io.Writer) int {
	checked := &checkedWriter{w: out}
	a := &app{in: in, out: checked, err: errw, env: os.Environ(), fs: vfs.OS(), now: time.Now, stdout: out}
	a.json = slices.Contains(args, "--json") // also for what is wrong with the flags before it
	ctx, stop := withSignals(context.Background())
	defer stop()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(checked)
	root.SetErr(errw)
	cmd, err := root.ExecuteContextC(ctx)
	err = withUsage(cmd, err)
	if checked.err != nil && (err == nil || errors.Is(err, checked.err)) {
		err = fmt.Errorf("standard output: %w", checked.err)
	}
	return a.exit(ctx, err)
}

// Root is the tree of all commands, for who writes about them. It cannot be run.
func Root() *cobra.Command { return new(app).root() }

// checkedWriter remembers the first error, so that no command has to look at each line it prints.
type checkedWriter struct {
	w   io.Writer
	err error
}

func (c *checkedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.err == nil {
		c.err = err
	}
	return n, err
}

// withSignals returns a context that the first SIGINT, SIGTERM or SIGHUP cancels with a signalError. A second one ends the
// process at once.
func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 1)
	signal.Ignore(syscall.SIGPIPE) // a reader that goes away is an error of writing, not the end of a run
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case s := <-ch:
			signal.Stop(ch)
			cancel(signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(ch); cancel(nil) }
}

const rootLong = `usp predicts series and records step loops: every step's telemetry, digests and
snapshots reach disk through a process of their own, and the loop never waits.

  usp run                     predict the shipped sunspot series and record it
  usp run prices.csv --value-column close
  usp show latest             what the newest run did
  usp verify latest           whether its directory is intact and complete
  usp compare RUN RUN         whether two runs computed the same, else where they part
  usp replay latest           whether this machine computes the run again, to the bit

RUN is a run id, the path of a run directory, or latest.

Exit codes:
  0 ok                       11 locked by another process
  1 error                    12 signed or encrypted with another key
  2 usage, settings, input   20 verification failed: damage or tampering
  3 partial                  21 unsealed end after a crash (recoverable)
  10 not found               22 runs diverge
  75 a remote place does not answer
  129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM; 141 nobody reads the output`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "usp", Short: "Predict series and record step loops without stalling them", Long: rootLong,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs, Version: version(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == "version" || cmd.Name() == "help" || cmd.Name() == "completion" || cmd.Parent() != nil && (cmd.Parent().Name() == "completion" || cmd.Parent().Name() == "config") {
				return nil
			}
			return a.loadConfig()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config", "c", "", "settings `file` (default: usp.toml here, then in the user's configuration directory)")
	f.BoolVar(&a.json, "json", false, "print JSON instead of text")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print no progress and no hints")
	a.setting(root, true, "dir", "d", "run.dir", "`directory` of the run directories")
	a.setting(root, true, "log-level", "", "log.level", "least severe message on standard error: debug, info, warn, error")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
	})
	root.AddCommand(a.runCommand(), a.backtestCommand(), a.recordCommand(), a.runsCommand(), a.topCommand(), a.showCommand(), a.logCommand(), a.verifyCommand(),
		a.compareCommand(), a.replayCommand(), a.exportCommand(), a.serveCommand(), a.sinkCommand(), a.proveCommand(), a.snapshotCommand(), a.configCommand(), a.benchCommand(), a.doctorCommand(), a.versionCommand())
	return root
}

// setting makes a flag that sets a configuration key. The key's own parser reads the value.
func (a *app) setting(cmd *cobra.Command, persistent bool, name, short, key, usage string) {
	flags := cmd.Flags()
	if persistent {
		flags = cmd.PersistentFlags()
	}
	flags.FuncP(name, short, usage, func(value string) error {
		a.settings = append(a.settings, config.Setting{Key: key, Value: value, Flag: "--" + name})
		return nil
	})
}

func (a *app) loadConfig() error {
	userDir, _ := os.UserConfigDir() // none: only ./usp.toml is looked for
	cfg, err := config.Load(config.Options{File: a.configFile, Search: config.FileNames(userDir), Env: a.env, Flags: a.settings})
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintf(a.err, "usp: warning: %s\n", w)
	}
	a.cfg = cfg
	return nil
}

// logger writes messages to standard error at the configured level.
func (a *app) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(a.cfg.Log.Level)) // one of the names that the configuration allows
	o := &slog.HandlerOptions{Level: level}
	if a.cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}

// recorderOptions hands the settings to the recorder.
func (a *app) recorderOptions() (recorder.Options, error) {
	c := &a.cfg.Config
	codec, err := snapshot.ParseCodec(c.Snapshot.Compression)
	if err != nil {
		return recorder.Options{}, err
	}
	keep := snapshot.Retention{KeepLast: c.Snapshot.KeepLast, KeepEvery: c.Snapshot.KeepEvery, MaxAge: time.Duration(c.Snapshot.MaxAge)}
	if keep == (snapshot.Retention{}) {
		keep.KeepLast = math.MaxInt32 // all: the recorder takes the zero value for its own default
	}
	beside, err := a.companion()
	if err != nil {
		return recorder.Options{}, err
	}
	sum := c.SHA256()
	return recorder.Options{
		Runs: c.Run.Dir, KeyFile: c.Recorder.KeyFile,
		CommitInterval: time.Duration(c.Recorder.CommitInterval), CommitBytes: int(c.Recorder.CommitBytes),
		HeadInterval: time.Duration(c.Digest.HeadInterval), SegmentSize: int64(c.Recorder.SegmentSize),
		HoldBytes: int(c.Recorder.HoldBytes), Patience: time.Duration(c.Recorder.Patience), DigestInterval: c.Digest.Interval,
		DigestLevels: c.Digest.Levels, DigestFloor: c.Digest.FloorBits, DigestWeights: c.Digest.Weights, AuditKeyFile: c.Digest.AuditKeyFile,
		Snapshot:  recorder.SnapshotOptions{Codec: codec, Level: c.Snapshot.Level, Reuse: c.Snapshot.Reuse, Retention: keep, Recipients: c.Snapshot.Recipients},
		AnchorDir: c.Anchor.Dir, AppendOnly: c.Digest.AppendOnly == "auto",
		Witness: recorder.WitnessOptions{
			URL: c.Witness.URL, Keys: c.Witness.Key, Interval: time.Duration(c.Witness.Interval), Timeout: time.Duration(c.Witness.Timeout),
		},
		Companion: beside, ConfigSum: hex.EncodeToString(sum[:]), Version: version(),
		FS: a.fs, Logger: a.logger(), Now: a.now,
	}, nil
}

// resolve finds a run directory, links followed: what lies beside it is found from where it really is.
func (a *app) resolve(run string) (rundir.Dir, error) {
	dir, err := rundir.Resolve(a.fs, a.cfg.Run.Dir, run)
	if err != nil {
		return dir, err
	}
	if a.isTiles(dir.Path()) {
		return dir, usageError(fmt.Errorf("%s is an exported log, which only usp verify and usp compare can read; name the run itself", run))
	}
	if path, err := filepath.EvalSymlinks(dir.Path()); err == nil {
		return rundir.At(path), nil
	}
	return dir, nil
}

// dirFlag is what a command that is suggested must say to find the same runs.
func (a *app) dirFlag() string {
	if a.cfg.Origin("run.dir").Source != config.FromFlag {
		return ""
	}
	return " --dir " + quoteArg(a.cfg.Run.Dir)
}

// steady runs a command's reading of a run that a recorder may be changing meanwhile: files are sealed, pruned and
// published under its eyes. What fails then is tried again; what fails of a run that nobody records is an error.
func (a *app) steady(dir rundir.Dir, read func() error) error {
	for try := 0; ; try++ {
		busy := rundir.Locked(a.fs, dir)
		err := read()
		if err == nil || try == 10 || !busy && !rundir.Locked(a.fs, dir) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// printJSON prints one document, or one line of many.
func (a *app) printJSON(v any, indent bool) error {
	enc := json.NewEncoder(a.out)
	if indent {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(v)
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// inTerminal reports whether keys can be pressed.
func (a *app) inTerminal() bool {
	f, ok := a.in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// width is that of the terminal, or 80 columns.
func (a *app) width() int {
	if f, ok := a.stdout.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
			return min(w, 160)
		}
	}
	return 80
}

// display shortens a path to one relative to the working directory, where that is shorter.
func display(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) {
		return rel
	}
	return path
}

// pathArg is a path as it stands in a command that is named.
func pathArg(path string) string { return quoteArg(display(path)) }
