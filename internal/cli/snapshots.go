package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

// snapshotRow is one snapshot as the commands print it.
type snapshotRow struct {
	Name       string       `json:"name"`
	Step       uint64       `json:"step"`
	Generation uint32       `json:"generation"`
	Reason     string       `json:"reason,omitempty"` // why it was taken: cadence, final or event; "code N" of other programs
	Size       int64        `json:"size"`
	Created    time.Time    `json:"created,omitzero"`
	Encrypted  bool         `json:"encrypted,omitempty"`
	Decrypted  bool         `json:"decrypted,omitempty"` // by verify: with a key, to the end
	SHA256     string       `json:"sha256,omitempty"`    // what the digest log says
	Logged     bool         `json:"logged"`              // the digest log vouches for it
	Current    bool         `json:"current"`             // and it can be loaded: no resume went back behind it
	Path       string       `json:"path,omitempty"`      // by show
	Sections   []sectionRow `json:"sections,omitempty"`
	Error      string       `json:"error,omitempty"`

	intact bool // with an Error: only the key is another
}

type sectionRow struct {
	Name   string `json:"name"`
	Offset int64  `json:"offset"` // of the first stored byte
	Size   int64  `json:"size"`
	Stored int64  `json:"stored"`
	KeptIn string `json:"kept_in,omitempty"` // the older snapshot that holds the bytes
}

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "List, show, verify, load and prune snapshots", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		a.snapshotListCommand(),
		&cobra.Command{Use: "show RUN [STEP]", Short: "Show what a snapshot holds (default: the newest)", Args: cobra.RangeArgs(1, 2),
			RunE: func(_ *cobra.Command, args []string) error { return a.snapshotShow(args) }},
		a.snapshotVerifyCommand(),
		a.snapshotLoadCommand(),
		a.pruneCommand(),
		a.pullCommand(),
	)
	return cmd
}

func (a *app) snapshotListCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "ls RUN", Short: "List the snapshots of a run, or of its remote copy s3://BUCKET/PREFIX/RUN", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remote.IsAddress(args[0]) {
				return a.remoteSnapshots(cmd.Context(), args[0], key)
			}
			if err := localOnly(key); err != nil {
				return err
			}
			return a.snapshotList(args[0])
		},
	}
	keyFlag(cmd, &key)
	return cmd
}

// snapshotRows lists the files of a run with what the log says of each.
func (a *app) snapshotRows(d rundir.Dir) (dir string, rows []snapshotRow, err error) {
	infos, err := snapshot.List(a.fs, d.Snapshots())
	if err != nil {
		return "", nil, err
	}
	logged, err := recorder.LoggedSnapshots(a.fs, string(d))
	if err != nil {
		return "", nil, err
	}
	effective, err := recorder.EffectiveSnapshots(a.fs, string(d))
	if err != nil {
		return "", nil, err
	}
	rows = []snapshotRow{} // none is an empty list in JSON too
	current := map[string]bool{}
	for i := range effective {
		current[effective[i].Name] = true
	}
	for i := range infos {
		s := &infos[i]
		row := snapshotRow{Name: s.Name, Step: s.Step, Generation: s.Generation, Size: s.Size, Created: s.Created, Encrypted: s.Encrypted}
		if s.Err != nil {
			row.Error = s.Err.Error()
		} else {
			row.Reason = reasonText(s.Reason)
		}
		if sum, ok := logged[s.Name]; ok {
			row.Logged, row.SHA256, row.Current = true, hex.EncodeToString(sum[:]), current[s.Name]
		}
		rows = append(rows, row)
	}
	return d.Snapshots(), rows, nil
}

func (a *app) snapshotList(run string) error {
	_, rows, err := a.steadyRows(run, nil)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(rows, true)
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.out, "no snapshots")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tGENERATION\tREASON\tSIZE\tCREATED\tSHA-256\tSTATE")
	for _, r := range rows {
		state := "logged"
		switch {
		case r.Error != "":
			state = "unreadable: " + r.Error
		case !r.Logged:
			state = "not logged: never loaded"
		case r.Encrypted:
			state = "logged, encrypted"
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%s\t%.12s\t%s\n", r.Step, r.Generation, r.Reason, r.Size, r.Created.Format("2006-01-02 15:04:05"), r.SHA256, state)
	}
	return w.Flush()
}

func (a *app) snapshotShow(args []string) error {
	var found *snapshotRow
	var meta snapshot.Meta
	var sections []snapshot.SectionInfo
	_, _, err := a.steadyRows(args[0], func(dir string, rows []snapshotRow) error {
		found = nil
		for i := range rows {
			if len(args) == 1 || fmt.Sprint(rows[i].Step) == args[1] {
				found = &rows[i] // the last one: the newest, or the newest generation's of that step
			}
		}
		if found == nil {
			return withCode(exitNotFound, fmt.Errorf("the run has no such snapshot; usp snapshot ls %s lists them", quoteArg(args[0])+a.dirFlag()))
		}
		var err error
		if found.Path, err = filepath.Abs(filepath.Join(dir, found.Name)); err != nil {
			return err
		}
		if meta, sections, err = snapshot.Inspect(a.fs, found.Path); err != nil {
			return withCode(exitFailed, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range sections {
		found.Sections = append(found.Sections, sectionRow{s.Name, s.Offset, s.Size, s.StoredSize, s.Base.Name})
	}
	if a.json {
		return a.printJSON(found, true)
	}
	encrypted := ""
	if found.Encrypted {
		encrypted = ", encrypted"
	}
	fmt.Fprintf(a.out, "%s\n  run %s, generation %d, step %d, after record %d\n  taken for: %s%s\n  log of %d entries, root %x\n  logged as %s\n",
		found.Name, meta.RunID, meta.Generation, meta.Step, meta.Seq, found.Reason, encrypted, meta.TreeSize, meta.TreeRoot[:8], found.SHA256)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "  SECTION\tBYTES\tSTORED")
	for _, s := range found.Sections {
		fmt.Fprintf(w, "  %s\t%d\t%d", s.Name, s.Size, s.Stored)
		if s.KeptIn != "" {
			fmt.Fprintf(w, " in %s", s.KeptIn)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func (a *app) snapshotVerifyCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "verify RUN", Short: "Read every snapshot whole and check it against itself and the digest log", Args: cobra.ExactArgs(1),
		Long: "Read every snapshot whole and check it against itself and the digest log.\nAn encrypted one needs no key for that; with --identity it is decrypted too, and exit\ncode 12 says that it is intact and encrypted to another key.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if remote.IsAddress(args[0]) {
				return a.remoteVerify(cmd.Context(), args[0], key)
			}
			if err := localOnly(key); err != nil {
				return err
			}
			return a.snapshotVerify(args[0])
		},
	}
	keyFlag(cmd, &key)
	a.identityFlag(cmd)
	return cmd
}

func (a *app) snapshotVerify(run string) error {
	ids, err := a.identities()
	if err != nil {
		return err
	}
	bad := 0
	_, rows, err := a.steadyRows(run, func(dir string, rows []snapshotRow) error {
		bad = 0
		damaged := 0
		for i := range rows {
			if err := a.verifySnapshot(dir, &rows[i], ids); err != nil {
				rows[i].Error = err.Error()
				bad++
				if !rows[i].intact {
					damaged++
				}
			}
		}
		switch {
		case damaged > 0:
			return withCode(exitFailed, nil)
		case bad > 0:
			return withCode(exitWrongKey, nil)
		}
		return nil
	})
	if failed := (*codeError)(nil); err != nil && !errors.As(err, &failed) {
		return err
	}
	if a.json {
		if err := a.printJSON(map[string]any{"snapshots": rows, "failed": bad}, true); err != nil {
			return err
		}
	} else {
		for _, r := range rows {
			fmt.Fprintf(a.out, "%s  %s\n", r.Name, a.snapshotVerdict(&r))
		}
		fmt.Fprintf(a.out, "%d of %d verified\n", len(rows)-bad, len(rows))
	}
	return err
}

// snapshotVerdict is what is said of a snapshot that was read whole.
func (a *app) snapshotVerdict(r *snapshotRow) string {
	switch {
	case r.intact:
		return "intact, but " + r.Error + "; give its key: " + a.keyAdvice()
	case r.Error != "":
		return r.Error
	case r.Decrypted:
		return "ok, decrypted"
	case r.Encrypted:
		return "ok as stored; not decrypted"
	}
	return "ok"
}

// verifySnapshot reads a snapshot whole and holds it against the digest log; with keys it decrypts it too.
func (a *app) verifySnapshot(dir string, r *snapshotRow, ids []age.Identity) error {
	path := filepath.Join(dir, r.Name)
	if !r.Logged {
		_, err := snapshot.Verify(a.fs, path, nil)
		return errors.Join(errors.New("not in the digest log"), err)
	}
	var want [32]byte
	if _, err := hex.Decode(want[:], []byte(r.SHA256)); err != nil {
		return err
	}
	if _, err := snapshot.Verify(a.fs, path, &want); err != nil || !r.Encrypted || len(ids) == 0 {
		return err
	}
	_, _, err := snapshot.LoadWith(a.fs, path, &want, snapshot.LoadOptions{Identities: ids})
	r.intact, r.Decrypted = keyMissing(err), err == nil
	return err
}

// steadyRows lists the snapshots and has use look at them, again if a recorder changed them meanwhile.
func (a *app) steadyRows(run string, use func(dir string, rows []snapshotRow) error) (dir string, rows []snapshotRow, err error) {
	d, err := a.resolve(run)
	if err != nil {
		return "", nil, err
	}
	err = a.steady(d, func() error {
		var err error
		if dir, rows, err = a.snapshotRows(d); err != nil || use == nil {
			return err
		}
		return use(dir, rows)
	})
	return dir, rows, err
}

// sayPruned says which snapshots were removed, or would be.
func (a *app) sayPruned(removed []string, dry bool) error {
	if a.json {
		return a.printJSON(map[string]any{"removed": removed, "dry_run": dry}, true)
	}
	verb := "removed"
	if dry {
		verb = "would remove"
	}
	for _, name := range removed {
		fmt.Fprintf(a.out, "%s %s\n", verb, name)
	}
	if len(removed) == 0 {
		fmt.Fprintln(a.out, "nothing to remove")
	}
	return nil
}

func (a *app) pruneCommand() *cobra.Command {
	var dry bool
	var key string
	cmd := &cobra.Command{
		Use: "prune RUN", Short: "Remove the snapshots that the retention settings give up",
		Long: "Remove the snapshots of a finished run that the retention settings give up.\nEach removal is logged before it is done; the two newest verified ones always stay.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remote.IsAddress(args[0]) {
				return a.remotePrune(cmd.Context(), args[0], key, dry)
			}
			if err := localOnly(key); err != nil {
				return err
			}
			dir, err := a.resolve(args[0])
			if err != nil {
				return err
			}
			opts, err := a.recorderOptions()
			if err != nil {
				return err
			}
			removed, err := recorder.Prune(string(dir), opts, dry)
			if errors.Is(err, recorder.ErrNotEnded) {
				err = fmt.Errorf("%w; if it has none, usp verify %s says what goes on with it", err, pathArg(dir.Path()))
			}
			if err != nil {
				return err
			}
			return a.sayPruned(removed, dry)
		},
	}
	keyFlag(cmd, &key)
	cmd.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be removed")
	a.setting(cmd, false, "keep-last", "", "snapshot.keep_last", "newest snapshots that are kept")
	a.setting(cmd, false, "keep-every", "", "snapshot.keep_every", "also keep one of every `n` steps")
	a.setting(cmd, false, "max-age", "", "snapshot.max_age", "remove what is older than this `duration`, unless --keep-last holds it")
	return cmd
}
