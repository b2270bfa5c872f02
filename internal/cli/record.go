package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

const recordLong = `Record what a producer emits into a ring.

RING is the path of a ring file, or a run id: then the ring is looked for in the
ring directory. Without RING, the one ring there that nobody records is taken.
The command ends when the producer has, and everything is stored; then it says
how much that was, with --json as one line of JSON.

"usp run" starts its own recorder; this command is for programs that make a ring
themselves, and for rings left behind by programs that died.`

// optionsOnStdin is how usp run and the library hand settings to the recorder that they start: the settings are theirs,
// not those of a file that this process would find.
const optionsOnStdin = "options-on-stdin"

// startedBy is set in the environment of a recorder that a program starts for itself. Its summary is for that program, as JSON; what
// fails it says as text, for a person.
const startedBy = "USP_RECORDER_CHILD"

// recorderCommand is this program's own command line as a recorder, without the ring's path.
func recorderCommand() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("where is this program? %w", err)
	}
	return []string{self, "record", "--" + optionsOnStdin}, nil
}

func (a *app) recordCommand() *cobra.Command {
	var onStdin bool
	cmd := &cobra.Command{
		Use: "record [RING]", Short: "Record what another program emits", Long: recordLong, Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			opts, err := a.recorderOptions()
			if err != nil {
				return err
			}
			if onStdin {
				if opts, err = readOptions(a.in); err != nil {
					return usageError(err)
				}
				opts.Logger = a.logger()
			}
			if len(opts.Companion.Command) == 0 { // a producer that knows nothing of sinks has them all the same
				if opts.Companion, err = a.companion(); err != nil {
					return err
				}
			}
			path, err := a.findRing(args)
			if err != nil {
				return err
			}
			out := a.out
			if !onStdin && !a.json && os.Getenv(startedBy) == "" {
				out = recordedText{a}
			}
			if code := recorder.Process(path, opts, out, a.err); code != exitOK {
				return withCode(code, nil)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&onStdin, optionsOnStdin, false, "read the settings as JSON from standard input")
	_ = cmd.Flags().MarkHidden(optionsOnStdin) // it exists: it was made in the line above
	a.setting(cmd, false, "key-file", "", "recorder.key_file", "`file` of the signing key, created on first use")
	a.setting(cmd, false, "anchor", "", "anchor.dir", "`directory` for a second copy of each run's newest signed head")
	a.setting(cmd, false, "digest-interval", "", "digest.interval", "log the digests of every `n`-th step")
	return cmd
}

// recordedText prints what a recorder's summary, which is written to it as a line of JSON, says.
type recordedText struct{ *app }

func (a recordedText) Write(line []byte) (int, error) {
	var s recorder.Summary
	if err := json.Unmarshal(line, &s); err != nil {
		return 0, fmt.Errorf("the recorder's summary: %w", err)
	}
	fmt.Fprintf(a.out, "run %s, generation %d: %v\n", s.RunID, s.Generation, s.Status)
	fmt.Fprintf(a.out, "  recorded   %d emitted, %d stored, %d lost%s; %s, %s%s\n", s.Emitted, s.Stored, s.Lost, lostText(s.LostStorage),
		count(s.Digests, "digest"), count(s.Snapshots, "snapshot"), unsavedText(s.Unsaved))
	printCommitted(a.out, "anchor", s.Anchor)
	printCommitted(a.out, "witness", s.Witness)
	fmt.Fprintf(a.out, "  run        %s\n", display(s.Dir))
	if !a.quiet {
		fmt.Fprintf(a.out, "next: usp show %s%s\n      usp verify %s%s\n", s.RunID, a.dirFlag(), s.RunID, a.dirFlag())
	}
	return len(line), nil
}

func unsavedText(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d more not saved: storage took nothing)", n)
}

// readOptions reads the settings that another process hands over. If it died before it could, there are none: with the
// defaults the records would go into a directory that is not the run's, and be gone from the ring.
func readOptions(r io.Reader) (recorder.Options, error) {
	var o recorder.Options
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		return o, fmt.Errorf("options on standard input: %w", err)
	}
	return o, nil
}

// findRing turns the argument of usp record into a path.
func (a *app) findRing(args []string) (string, error) {
	dir := a.cfg.Ring.Dir
	if dir == "" {
		dir, _ = ring.DefaultDir()
	}
	if len(args) > 0 {
		if info, err := os.Stat(args[0]); err == nil && !info.IsDir() || !rundir.ValidID(args[0]) { // a run has a directory of its name
			return args[0], nil
		}
		path := filepath.Join(dir, rundir.RingName(args[0]))
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return "", withCode(exitNotFound, fmt.Errorf("%s is neither a ring file nor a run with a ring in %s; a run that has ended has none", args[0], dir))
		}
		return path, nil
	}
	paths, err := ring.List(dir)
	if err != nil {
		return "", err
	}
	var free []string
	for _, path := range paths {
		id, _ := rundir.ParseRingName(filepath.Base(path))
		run := rundir.Dir(filepath.Join(a.cfg.Run.Dir, id))
		if lock, err := a.fs.Lock(string(run)); err == nil {
			lock.Close()
		} else if errors.Is(err, vfs.ErrLocked) {
			continue
		}
		free = append(free, path)
	}
	switch len(free) {
	case 1:
		return free[0], nil
	case 0:
		return "", withCode(exitNotFound, fmt.Errorf("no ring in %s waits for a recorder", dir))
	}
	msg := fmt.Sprintf("%d rings in %s wait for a recorder; name one:", len(free), dir)
	for _, path := range free {
		msg += "\n  usp record " + quoteArg(path) + a.dirFlag()
	}
	return "", usageError(errors.New(msg))
}
