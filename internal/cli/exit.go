package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/ring"
)

// The exit codes, a contract for scripts.
const (
	exitOK        = 0
	exitError     = 1
	exitUsage     = 2
	exitPartial   = 3
	exitNotFound  = 10
	exitLocked    = 11
	exitWrongKey  = 12
	exitFailed    = 20
	exitCrashTail = 21
	exitDiverge   = 22

	exitUnreachable = 75  // a remote place did not answer
	exitPipe        = 141 // as a shell says of a command that SIGPIPE ended
)

// codeError is an error with an exit code. With a nil cause the command has said everything already.
type codeError struct {
	code  int
	cause error
}

func (e *codeError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

func (e *codeError) Unwrap() error { return e.cause }

func withCode(code int, err error) error { return &codeError{code, err} }

func usageError(err error) error { return withCode(exitUsage, err) }

// signalError says which signal asked the command to end.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return "ended by " + e.signal.String() }

func exitCode(err error) int {
	var (
		code     *codeError
		settings config.Errors
		data     *input.DataError
		died     *usp.RecorderError
		sig      signalError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return code.code
	case errors.As(err, &sig):
		return 128 + int(sig.signal)
	case errors.Is(err, syscall.EPIPE):
		return exitPipe
	case errors.As(err, &settings), errors.As(err, &data):
		return exitUsage
	case keyMissing(err):
		return exitWrongKey
	case errors.Is(err, rundir.ErrNotFound):
		return exitNotFound
	case errors.Is(err, vfs.ErrLocked), errors.Is(err, recorder.ErrRunning), errors.Is(err, ring.ErrExist):
		return exitLocked
	case errors.As(err, &died) && died.ExitCode > 1:
		return died.ExitCode
	case errors.Is(err, usp.ErrIncomplete):
		return exitPartial
	}
	return exitError
}

// withUsage makes cobra's own errors about arguments, which have no type, ones of usage that say what the command takes.
func withUsage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	msg := err.Error()
	switch {
	case strings.HasPrefix(msg, "unknown command") && cmd.HasSubCommands():
		return usageError(fmt.Errorf("%w; %s --help lists the commands", err, cmd.CommandPath()))
	case strings.HasPrefix(msg, "unknown command"): // a command without arguments was given one
		return usageError(fmt.Errorf("%s takes no argument; see %s --help", cmd.CommandPath(), cmd.CommandPath()))
	case strings.HasPrefix(msg, "accepts "), strings.HasPrefix(msg, "requires "):
		return usageError(fmt.Errorf("%w; usage: %s", err, cmd.UseLine()))
	}
	return err
}

// exit prints the error, if it was not printed, and returns the exit code.
func (a *app) exit(ctx context.Context, err error) int {
	if err != nil && errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	code := exitCode(err)
	said := &codeError{}
	if err == nil || code == exitPipe || errors.As(err, &said) && said.cause == nil {
		return code
	}
	if a.json {
		json.NewEncoder(a.err).Encode(map[string]any{"type": "exit_error", "code": code, "message": message(err)})
		return code
	}
	fmt.Fprintf(a.err, "usp: %s\n", harmless(message(err)))
	return code
}

// harmless is a text that moves no terminal's cursor but to the next line. An error may repeat the name of a file, or what a server
// has said.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return ' '
		}
		return r
	}, s)
}

// message is an error as a person should see it: without Go's package prefix, and for file errors the plain words.
func message(err error) string {
	var (
		path    *fs.PathError
		missing *rundir.NotFoundError
	)
	msg := strings.TrimPrefix(err.Error(), "usp: ")
	if errors.As(err, &path) && errors.Is(err, fs.ErrNotExist) && msg == path.Error() {
		return path.Path + ": no such file or directory"
	}
	if errors.As(err, &missing) && len(missing.Close) == 0 && msg == missing.Error() {
		if missing.Arg == rundir.Latest {
			return msg + "; usp run records one, and --dir names another directory"
		}
		return msg + "; usp runs lists those that are there, and --dir names another directory"
	}
	return msg
}
