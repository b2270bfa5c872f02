package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/usp-project/usp/internal/largepages"
	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/internal/vfs"
)

// The exit codes of Process, as in the command line's contract.
const (
	exitOK     = 0
	exitError  = 1
	exitLocked = 11
	exitTerm   = 143
)

// Process is the main function of a recorder process: Attach, Run, the summary as one line of JSON on stdout. It returns
// the exit code. The process outlives what it records: the terminal's interrupt and hang-up are not for it, and neither
// is the loss of the pipes to a producer that died. SIGTERM makes it store what it has and leave the run for the next
// recorder.
func Process(path string, o Options, stdout, stderr io.Writer) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	if o.Yield == nil {
		o.Yield = priority.Session()
	}
	if o.Yield == nil {
		go priority.EndBeginning(ctx)
	}
	if o.Narrow == nil {
		o.Narrow = oneProcessor()
	}
	if o.Settle == nil {
		o.Settle = largepages.Pieces()
	}
	if o.Yield != nil {
		priority.UnhurriedSelf()
		priority.Preemptible()
	}
	sum, beside, err := attachAndRun(ctx, path, o)
	if err == nil {
		json.NewEncoder(stdout).Encode(sum) // nobody may be left to read it; the log has it all
	}
	beside.end(ctx)
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintf(stderr, "recorder: asked to stop; run %s waits for the next recorder\n", sum.RunID)
		return exitTerm
	case errors.Is(err, vfs.ErrLocked):
		fmt.Fprintf(stderr, "recorder: %v\n", err)
		return exitLocked
	}
	fmt.Fprintf(stderr, "recorder: %v\n", err)
	return exitError
}

// oneProcessor returns what has this process's Go code run on one processor, or on as many as before.
func oneProcessor() func(on bool) {
	all := runtime.GOMAXPROCS(0)
	return func(on bool) {
		n := all
		if on {
			n = 1
		}
		runtime.GOMAXPROCS(n)
	}
}

// attachGC keeps the garbage that Attach makes, some buffers for each file that it reads, for afterwards: a recorder that takes over from
// a killed one has the records of its absence to catch up with, and collections beside the step loop are paid twice.
const attachGC = 400

func attachAndRun(ctx context.Context, path string, o Options) (Summary, *companion, error) {
	gc := debug.SetGCPercent(attachGC)
	r, err := Attach(path, o)
	debug.SetGCPercent(gc)
	if finished := (*FinishedError)(nil); errors.As(err, &finished) {
		return finished.Summary, nil, nil
	}
	if err != nil {
		return Summary{}, nil, err
	}
	beside := startCompanion(r.opts, string(r.dir))
	sum, err := r.Run(ctx)
	return sum, beside, err
}

// SigningKeyFile is where the signing key lies: KeyFile, or else usp/signing.key in the user's configuration directory,
// outside every run directory.
func (o Options) SigningKeyFile() (string, error) {
	if o.KeyFile != "" {
		return o.KeyFile, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("where is the signing key to be kept? %w; set recorder.key_file", err)
	}
	return filepath.Join(dir, "usp", "signing.key"), nil
}
