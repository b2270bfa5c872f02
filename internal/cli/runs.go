package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
)

// runRow is one line of usp runs.
type runRow struct {
	RunID      string    `json:"run_id"`
	RunDir     string    `json:"run_dir"`
	Created    time.Time `json:"created"`
	Generation uint32    `json:"generation"`
	Status     string    `json:"status"` // clean, crashed, failed, recording, unfinished, unreadable
	Step       uint64    `json:"step"`
	Error      string    `json:"error,omitempty"`
}

func (a *app) runsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "runs", Short: "List the recorded runs", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
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
			fmt.Fprintln(w, "RUN\tCREATED\tSTATUS\tSTEPS\tRESUMED")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d×\n", r.RunID, r.Created.Format("2006-01-02 15:04:05"), r.Status, r.Step, r.Generation)
			}
			return w.Flush()
		},
	}
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
		row.Status = last.End.Status.String()
	}
	return row
}
