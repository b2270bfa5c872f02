package cli

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/sink/jetstream"
)

// checkStream holds the mirror of a run against it. The error has the exit code: a stream that differs fails, one that is
// behind is partial.
func (a *app) checkStream(ctx context.Context, dir rundir.Dir, keys note.Verifiers) (*jetstream.Report, error) {
	c, err := jetstream.Connect(ctx, a.streamOptions(dir))
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("--stream: %w", err))
	}
	defer c.Close()
	r, err := jetstream.Check(ctx, c.JS, a.cfg.JetStream.Stream, dir.ID(), jetstream.Against{Dir: dir, Verifiers: keys, FS: a.fs})
	switch {
	case errors.Is(err, jetstream.ErrNotMirrored):
		return r, withCode(exitNotFound, fmt.Errorf("--stream: %w: usp sink %s brings it there", err, pathArg(dir.Path())))
	case err != nil:
		return r, withCode(exitUnreachable, fmt.Errorf("--stream: %w", err))
	case !r.OK():
		return r, withCode(exitFailed, errors.New("--stream: the stream is not the run"))
	case r.Behind() > 0 && !rundir.Locked(a.fs, dir):
		return r, withCode(exitPartial, fmt.Errorf("--stream: %s of the run are not there yet: usp sink %s", count(r.Behind(), "frame"), pathArg(dir.Path())))
	}
	return r, nil
}

// printStream says what was found in a stream, if it was read.
func (a *app) printStream(r *jetstream.Report) {
	if r == nil {
		return
	}
	fmt.Fprintf(a.out, "  stream        %s: %d of %d frames in %s, %d records, %d lost; %s, %s\n", r.Stream, r.Next, r.Local, count(r.Messages, "message"), r.Records, r.Lost,
		entriesText(r.Entries), count(uint64(r.Heads), "signed head"))
	for i := range r.Problems {
		fmt.Fprintf(a.out, "    %s\n", r.Problems[i].String())
	}
}
