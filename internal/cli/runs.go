package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
)

// runRow is one line of usp runs.
type runRow struct {
	RunID      string    `json:"run_id"`
	RunDir     string    `json:"run_dir"`
	Created    time.Time `json:"created"`
	Generation uint32    `json:"generation"`
	Status     string    `json:"status"` // clean, interrupted, crashed, failed, recording, unfinished, unreadable
	Step       uint64    `json:"step"`
	Resume     string    `json:"resume,omitempty"` // the command that goes on with it
	Error      string    `json:"error,omitempty"`

	end *digestlog.Entry // of the newest generation, if it has ended
}

const runsLong = `List the recorded runs with how each ended:

  clean        closed by its program
  interrupted  closed in order by a signal, with rows of its input left; of standard
               input usp cannot know that, and says clean
  failed       closed by an error, such as a fault in the input
  crashed      its program died; everything that could be saved is
  unfinished   neither closed nor being recorded: its recorder or program was killed
  recording    being recorded now

usp run --resume RUN goes on with what is interrupted, crashed or unfinished of its
own runs; with the run of another program only that program goes on.

With --fleet it lists the runs of all machines that mirror theirs in a stream of NATS
JetStream (jetstream.stream), as the stream has them: also silent, which have sent nothing
for half a minute, and unreadable. Who may write to the stream can have made up all of it
but the signed heads that are verified, with the keys in serve.fleet_keys.`

func (a *app) runsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "runs", Short: "List the recorded runs", Long: runsLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("fleet") {
				return a.fleetRuns(cmd.Context())
			}
			list, err := rundir.List(a.fs, a.cfg.Run.Dir)
			if err != nil {
				return err
			}
			rows := make([]runRow, 0, len(list))
			for i := range list {
				rows = append(rows, a.runRow(&list[i]))
			}
			if a.json {
				return a.printJSON(rows, true)
			}
			if len(rows) == 0 {
				fmt.Fprintf(a.out, "no runs in %s; begin with: usp run\n", display(a.cfg.Run.Dir))
				return nil
			}
			w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "RUN\tCREATED\tSTATUS\tLAST STEP\tRESUMED")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d×\n", r.RunID, r.Created.Format("2006-01-02 15:04:05"), r.Status, r.Step, r.Generation)
			}
			if err := w.Flush(); err != nil || a.quiet {
				return err
			}
			for _, r := range slices.Backward(rows) {
				if r.Resume != "" {
					fmt.Fprintf(a.err, "usp: run %s can go on: %s\n", r.RunID, r.Resume)
					break
				}
			}
			return nil
		},
	}
	a.setting(cmd, false, "fleet", "", "serve.fleet", "list the runs in the stream of a NATS `server`, nats://HOST:PORT, in their place")
	return cmd
}

func (a *app) runRow(r *rundir.Run) runRow {
	row := runRow{RunID: r.ID, RunDir: r.Dir.Path(), Created: r.Created, Generation: r.Generation, Status: string(audit.Unfinished)}
	if r.Err != nil {
		row.Status, row.Error = "unreadable", r.Err.Error()
		return row
	}
	last := audit.Glance(a.fs, r.Dir.Path())
	row.Step, row.Status = last.LastStep, string(last.State)
	if last.State == audit.Closed {
		row.end = last.End
		row.Status = last.End.Status.String()
		if stoppedShort(r.Manifest, last.End) {
			row.Status = interrupted
		}
	}
	switch row.Status {
	case interrupted, digestlog.StatusCrashed.String(), string(audit.Unfinished):
		row.Resume = resumeCommand(row.RunID+a.dirFlag(), producerOf(r.Manifest))
	}
	return row
}

// interrupted is the status of a run that was closed in order before the end of its input.
const interrupted = "interrupted"

// producerOf is what a manifest says of the program that made it, as far as that is usp run.
func producerOf(m *rundir.Manifest) (meta producerMeta) {
	if m == nil || json.Unmarshal(m.Producer, &meta) != nil {
		return producerMeta{}
	}
	return meta
}

// stoppedShort reports whether usp run closed a generation before the last row that its input had when it began. The last
// row of standard input is not known.
func stoppedShort(m *rundir.Manifest, end *digestlog.Entry) bool {
	meta := producerOf(m)
	if meta.Program != usprun || end.Generation != m.Generation || end.Status != digestlog.StatusClean || !end.EmittedKnown {
		return false
	}
	last := end.Emitted // a record for each row
	switch {
	case m.Resumed != nil:
		last += m.Resumed.Step
	case meta.Continues != nil:
		last += meta.Continues.Step
	}
	return last < meta.Input.Rows
}
