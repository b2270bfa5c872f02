package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

// remoteRow is one snapshot in a remote store as the commands print it.
type remoteRow struct {
	snapshotRow
	Bases  []string `json:"bases,omitempty"`
	Stored int64    `json:"stored"` // bytes there; -1: gone
}

// remoteList is what usp snapshot ls and verify print of a remote run.
type remoteList struct {
	RunID     string      `json:"run_id"`
	From      string      `json:"from"`
	Trust     string      `json:"trust"`
	Signer    string      `json:"signer"`
	Snapshots []remoteRow `json:"snapshots"`
	Partial   []string    `json:"partial,omitempty"` // without a proof: never loaded
	Failed    int         `json:"failed"`
}

// keyFlag makes the flag that says who must have signed what a store has.
func keyFlag(cmd *cobra.Command, key *string) {
	cmd.Flags().StringVar(key, "key", "", "of s3://…: verifier `key` that must have signed the run")
}

// localOnly refuses --key for a run directory, which has its own.
func localOnly(key string) error {
	if key != "" {
		return usageError(errors.New("--key is for s3://BUCKET/PREFIX/RUN; a run directory has its own"))
	}
	return nil
}

func (a *app) remoteList(ctx context.Context, text, key string) (*remote.Run, *remoteList, error) {
	r, trust, err := a.remoteRun(ctx, text, key)
	if err != nil {
		return nil, nil, err
	}
	l := &remoteList{RunID: r.ID, From: r.Address.OfRun(r.ID), Trust: trust, Signer: r.Manifests[0].Signer, Snapshots: []remoteRow{}, Partial: r.Partial}
	for _, s := range r.Snapshots {
		row := remoteRow{Bases: s.Bases, Stored: s.Stored}
		row.Name, row.Step, row.Generation = s.Name, s.Step, s.Generation
		if s.Err != nil {
			row.Error = s.Err.Error()
			l.Failed++
		} else {
			row.Reason, row.Size, row.Created, row.Encrypted, row.SHA256 = reasonText(s.Reason), s.Size, s.Created, s.Encrypted, hex.EncodeToString(s.SHA256[:])
			row.Logged, row.Current = true, s.Current
		}
		l.Snapshots = append(l.Snapshots, row)
	}
	return r, l, nil
}

func (a *app) remoteSnapshots(ctx context.Context, text, key string) error {
	_, l, err := a.remoteList(ctx, text, key)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(l, true)
	}
	if len(l.Snapshots) == 0 {
		fmt.Fprintln(a.out, "no snapshots")
	} else {
		w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "STEP\tGENERATION\tREASON\tSIZE\tCREATED\tSHA-256\tSTATE")
		for i := len(l.Snapshots) - 1; i >= 0; i-- {
			r := &l.Snapshots[i]
			state := "proven"
			switch {
			case r.Error != "":
				state = r.Error
			case !r.Current:
				state = "proven; a resume went back behind it"
			case r.Encrypted:
				state = "proven, encrypted"
			}
			fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%s\t%.12s\t%s\n", r.Step, r.Generation, r.Reason, r.Size, r.Created.Format("2006-01-02 15:04:05"), r.SHA256, state)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	for _, name := range l.Partial {
		fmt.Fprintf(a.out, "%s  without a proof: never loaded\n", name)
	}
	return nil
}

// remoteVerify fetches every snapshot and checks every byte.
func (a *app) remoteVerify(ctx context.Context, text, key string) error {
	ids, err := a.identities()
	if err != nil {
		return err
	}
	r, l, err := a.remoteList(ctx, text, key)
	if err != nil {
		return err
	}
	dir, remove, err := a.fetchDir()
	if err != nil {
		return err
	}
	defer remove()
	damaged := false
	for i, s := range r.Snapshots {
		row := &l.Snapshots[i]
		if s.Err == nil {
			if err := a.verifyRemote(ctx, r, s, dir, row, ids); err != nil {
				return err
			}
			if row.Error != "" {
				l.Failed++
			}
		}
		damaged = damaged || row.Error != "" && !row.intact
	}
	if a.json {
		err = a.printJSON(l, true)
	} else {
		a.printRemoteVerify(l)
	}
	switch {
	case err != nil:
		return err
	case damaged:
		return withCode(exitFailed, nil)
	case l.Failed > 0:
		return withCode(exitWrongKey, nil)
	}
	return nil
}

// verifyRemote checks one snapshot. The error is of the store; what is wrong with the snapshot is in its row.
func (a *app) verifyRemote(ctx context.Context, r *remote.Run, s *remote.Snapshot, dir string, row *remoteRow, ids []age.Identity) error {
	path, err := r.Fetch(ctx, a.fs, s, dir)
	if err != nil {
		if !errors.Is(err, remote.ErrDamaged) {
			return remoteError(err)
		}
		row.Error = err.Error()
		return nil
	}
	defer func() { _ = a.fs.Remove(path) }() // of the scratch directory, which goes as a whole
	if _, err = snapshot.Verify(a.fs, path, &s.SHA256); err == nil && s.Encrypted && len(ids) > 0 {
		_, _, err = snapshot.LoadWith(a.fs, path, &s.SHA256, snapshot.LoadOptions{Identities: ids})
		row.intact, row.Decrypted = keyMissing(err), err == nil
	}
	if err != nil {
		row.Error = err.Error()
	}
	return nil
}

func (a *app) printRemoteVerify(l *remoteList) {
	for i := range l.Snapshots {
		r := &l.Snapshots[i]
		fmt.Fprintf(a.out, "%s  %s\n", r.Name, a.snapshotVerdict(&r.snapshotRow))
	}
	fmt.Fprintf(a.out, "%d of %d verified, with %s\n", len(l.Snapshots)-l.Failed, len(l.Snapshots), trustText(l.Trust))
}

func (a *app) remotePrune(ctx context.Context, text, key string, dry bool) error {
	r, _, err := a.remoteRun(ctx, text, key)
	if err != nil {
		return err
	}
	removed, err := r.Prune(ctx, a.retention(), a.lockFor(), a.now(), dry)
	if err != nil {
		return remoteError(err)
	}
	return a.sayPruned(removed, dry)
}

// remoteLoad is snapshotLoad from a remote store.
func (a *app) remoteLoad(ctx context.Context, text, key string, f loadFlags, ids []age.Identity, out *outlet) (*loadReport, error) {
	r, _, err := a.remoteRun(ctx, text, key)
	if err != nil {
		return nil, err
	}
	dir, remove, err := a.fetchDir()
	if err != nil {
		return nil, err
	}
	defer remove()
	var step *uint64
	if f.hasStep {
		step = &f.step
	}
	report := &loadReport{RunID: r.ID}
	found, _, err := a.tryEach(ctx, r, step, dir, func(path string, s *remote.Snapshot) error {
		_, err := snapshot.LoadTo(a.fs, path, &s.SHA256, snapshot.LoadOptions{Identities: ids}, f.sections, func(_ snapshot.Meta, size int64) (io.WriterAt, error) {
			report.Size = size
			return out, out.begin(size)
		})
		switch {
		case out.err != nil:
			return fmt.Errorf("write the state: %w", out.err)
		case errors.Is(err, snapshot.ErrNoSection):
			return withCode(exitNotFound, err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	report.Snapshot, report.SHA256 = found.Name, hex.EncodeToString(found.SHA256[:])
	report.Step, report.Generation, report.Seq, report.Reason = found.Step, found.Generation, found.Seq, reasonText(found.Reason)
	return report, nil
}

const pullLong = `Bring the snapshots of a run from a remote store into a directory, each with its proof:
the newest that verifies, or with --all every one. Beside X.snap lies X.snap.proof,
which usp verify --proof checks, and the run's manifests.

What does not verify is named and left out; exit code 20 says so.`

type pullFlags struct {
	to, key string
	all     bool
}

func (a *app) pullCommand() *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use: "pull s3://BUCKET/PREFIX/RUN --to DIR", Short: "Bring snapshots, with their proofs, from a remote store", Long: pullLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.pull(cmd.Context(), args[0], f) },
	}
	cmd.Flags().StringVar(&f.to, "to", "", "`directory` to write to; it is made if it is not there")
	cmd.Flags().BoolVar(&f.all, "all", false, "bring all snapshots")
	keyFlag(cmd, &f.key)
	return cmd
}

// pullReport is usp snapshot pull --json.
type pullReport struct {
	RunID    string      `json:"run_id"`
	Dir      string      `json:"dir"`
	Trust    string      `json:"trust"`
	Pulled   []string    `json:"pulled"`
	Rejected []rejection `json:"rejected,omitempty"`
}

func (a *app) pull(ctx context.Context, text string, f pullFlags) error {
	if f.to == "" {
		return usageError(errors.New("say where to: --to DIR"))
	}
	r, trust, err := a.remoteRun(ctx, text, f.key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.to, 0o700); err != nil {
		return err
	}
	report := &pullReport{RunID: r.ID, Dir: f.to, Trust: trust, Pulled: []string{}}
	if err := a.pullEach(ctx, r, f, report); err != nil {
		return err
	}
	for _, m := range r.Manifests {
		if err := a.place(filepath.Join(f.to, rundir.ManifestName(m.Generation)), r.ManifestText(m.Generation)); err != nil {
			return err
		}
	}
	if a.json {
		err = a.printJSON(report, true)
	} else {
		for _, name := range report.Pulled {
			fmt.Fprintf(a.out, "%s\n", showPath(filepath.Join(f.to, name)))
		}
		fmt.Fprintf(a.out, "%s of run %s, checked with %s\n", count(uint64(len(report.Pulled)), "snapshot"), r.ID, trustText(trust))
	}
	if err == nil && len(report.Rejected) > 0 && (f.all || len(report.Pulled) == 0) {
		return withCode(exitFailed, nil)
	}
	return err
}

// pullEach brings the newest snapshot that verifies, or all that do.
func (a *app) pullEach(ctx context.Context, r *remote.Run, f pullFlags, report *pullReport) error {
	take := func(path string, s *remote.Snapshot) error {
		if _, err := snapshot.Verify(a.fs, path, &s.SHA256); err != nil {
			return err
		}
		report.Pulled = append(report.Pulled, s.Name)
		return a.place(path+".proof", s.Proof)
	}
	if !f.all {
		var err error
		_, report.Rejected, err = a.tryEach(ctx, r, nil, f.to, take)
		return err
	}
	for _, s := range r.Snapshots {
		path, err := r.Fetch(ctx, a.fs, s, f.to)
		if err == nil {
			err = take(path, s)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, remote.ErrDamaged) {
			return remoteError(err)
		}
		fmt.Fprintf(a.err, "usp: warning: snapshot of step %d left out: %v\n", s.Step, err)
		report.Rejected = append(report.Rejected, rejection{Snapshot: s.Name, Step: s.Step, Generation: s.Generation, Reason: err.Error()})
	}
	if len(r.Snapshots) == 0 {
		return noneOf(r, 0, nil)
	}
	return nil
}

// place writes a small file, or leaves one with the same bytes.
func (a *app) place(path string, b []byte) error {
	if have, err := vfs.ReadFile(a.fs, path, int64(len(b))); err == nil && string(have) == string(b) {
		return nil
	}
	return vfs.Replace(a.fs, path, b, 0o600)
}
