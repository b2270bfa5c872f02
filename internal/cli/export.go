package cli

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
)

const exportLong = `Write a run in a form that other tools read. The run is not changed.

  parquet      records as a Parquet file: for DuckDB, pandas, polars
  csv, jsonl   records as text; -o - writes to standard output
  tensorboard  records as an event file, in a directory for tensorboard --logdir
  tiles        the digest log, as far as its signed head covers it, as C2SP tlog-tiles:
               checkpoint, hash tiles and entry bundles. A third party can check them
               without the run and without usp, or with usp verify DIR.

Records are those of the effective timeline: of a step that a resumed run computed
again, the newest. What is written appears when all is in it, and replaces nothing.`

// The formats that --to takes.
const (
	toParquet     = "parquet"
	toCSV         = "csv"
	toLines       = "jsonl"
	toTensorBoard = "tensorboard"
	toTiles       = "tiles"
)

type exportFlags struct {
	to     string
	out    string
	from   uint64
	until  uint64
	fields []string
	all    bool
}

func (a *app) exportCommand() *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use: "export RUN --to FORMAT", Short: "Write a run for other tools", Long: exportLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.export(cmd, args[0], f) },
	}
	cmd.Flags().StringVar(&f.to, "to", "", "`format`: parquet, csv, jsonl, tensorboard or tiles")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "`file` or directory to make (default: ./RUN-ID.FORMAT)")
	cmd.Flags().Uint64Var(&f.from, "from", 0, "first `step`")
	cmd.Flags().Uint64Var(&f.until, "until", 0, "last `step`; 0: to the end")
	cmd.Flags().StringSliceVar(&f.fields, "fields", nil, "these `fields` only (default: all that are stored)")
	a.setting(cmd, false, "progress", "", "run.progress", "progress on standard error: auto, plain, json, none")
	cmd.Flags().BoolVar(&f.all, "all-generations", false, "also the records that a resumed run computed again")
	return cmd
}

func (a *app) export(cmd *cobra.Command, run string, f exportFlags) error {
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	switch f.to {
	case toTiles:
		for _, name := range []string{"from", "until", "fields", "all-generations"} {
			if cmd.Flags().Changed(name) {
				return usageError(fmt.Errorf("--%s has no meaning with --to tiles: the log is exported whole", name))
			}
		}
		return a.exportTiles(dir, f)
	case toParquet, toCSV, toLines, toTensorBoard:
		if f.out == "-" && (f.to == toParquet || f.to == toTensorBoard) {
			return usageError(fmt.Errorf("-o -: %s is not written to standard output; name a file", f.to))
		}
		if f.until > 0 && f.from > f.until {
			return usageError(fmt.Errorf("--from %d is behind --until %d", f.from, f.until))
		}
		return a.exportTable(cmd.Context(), dir, f)
	}
	return usageError(fmt.Errorf("--to %q: there are parquet, csv, jsonl, tensorboard and tiles", f.to))
}

// exportReport is what usp export prints about tiles.
type exportReport struct {
	RunID   string `json:"run_id"`
	Dir     string `json:"dir"`
	Entries uint64 `json:"entries"` // all that the head covers
	Root    string `json:"root"`
	Files   int    `json:"files"`
	Bytes   int64  `json:"bytes"`
	Unknown uint64 `json:"unknown_entries,omitempty"` // of a newer version or kind
	Signer  string `json:"signer"`                    // verifier key
}

func (a *app) exportTiles(dir rundir.Dir, f exportFlags) error {
	signed, err := a.readSigned(dir)
	if err != nil {
		return err
	}
	if f.out == "" {
		f.out = signed.head.RunID() + ".tiles"
	}
	var x digestlog.Export
	err = a.steady(dir, func() (err error) {
		x, err = digestlog.ExportTiles(digestlog.ExportOptions{FS: a.fs, Dir: dir.Digests(), HeadPath: dir.Head(), Verifiers: signed.keys, To: f.out})
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already and not empty: remove it, or name another directory with -o", f.out)
	}
	if err != nil {
		return logError(err)
	}
	if x.Unknown > 0 {
		fmt.Fprintf(a.err, "usp: warning: %s of a newer usp: exported as they are\n", entriesText(x.Unknown))
	}
	r := exportReport{
		RunID: x.Head.RunID(), Dir: f.out, Entries: x.Head.Size, Root: fmt.Sprintf("%x", x.Head.Root), Files: x.Files, Bytes: x.Bytes,
		Unknown: x.Unknown, Signer: signed.verifierKey,
	}
	if a.json {
		return a.printJSON(r, true)
	}
	fmt.Fprintf(a.out, "run %s: %s exported as C2SP tiles to %s: %d files, %s\n", r.RunID, entriesText(r.Entries), r.Dir, r.Files, bytesText(r.Bytes))
	a.next("usp verify %s --key %s", pathArg(r.Dir), r.Signer)
	return nil
}

// signedLog is what a run says of its digest log: the head, and the keys that its manifests name.
type signedLog struct {
	head        digestlog.SignedTreeHead
	keys        note.Verifiers
	verifierKey string // the one that has signed the head
}

// readSigned reads the head of a run and checks it with the keys in the manifests: that it is the run's own says nothing of who that is.
func (a *app) readSigned(dir rundir.Dir) (s signedLog, err error) {
	last, err := rundir.LastGeneration(a.fs, dir)
	if err != nil {
		return s, err
	}
	named := map[string]string{}
	var list []note.Verifier
	for g := range last + 1 {
		m, _, err := rundir.ReadManifest(a.fs, dir, g)
		if errors.Is(err, fs.ErrNotExist) && g > 0 {
			continue // the generation never got as far
		}
		if err != nil {
			return s, withCode(exitFailed, err)
		}
		v, err := note.NewVerifier(m.Signer)
		if err != nil {
			return s, withCode(exitFailed, fmt.Errorf("%s: the signer is not a verifier key", dir.Manifest(g)))
		}
		if name := keyName(v); named[name] == "" {
			named[name] = m.Signer
			list = append(list, v)
		}
	}
	s.keys = note.VerifierList(list...)
	s.head, err = digestlog.ReadHead(a.fs, dir.Head(), s.keys)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("nothing of run %s is signed yet; try again in a moment, or see usp verify %s", dir.ID(), pathArg(dir.Path()))
	}
	if err != nil {
		return s, logError(err)
	}
	n, err := note.Open(s.head.Note, s.keys)
	if err != nil {
		return s, logError(err)
	}
	s.verifierKey = named[fmt.Sprintf("%s+%08x", n.Sigs[0].Name, n.Sigs[0].Hash)]
	return s, nil
}

// keyName is how a key is named where the whole of it is too long.
func keyName(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }

// logError gives an error of the digest log its exit code.
func logError(err error) error {
	var f *digestlog.Fault
	switch {
	case errors.Is(err, digestlog.ErrWrongKey):
		return withCode(exitWrongKey, err)
	case errors.As(err, &f), errors.Is(err, digestlog.ErrSignature), errors.Is(err, digestlog.ErrHead), errors.Is(err, digestlog.ErrRollback),
		errors.Is(err, digestlog.ErrHeadMismatch), errors.Is(err, digestlog.ErrProof), errors.Is(err, digestlog.ErrUnproven), errors.Is(err, digestlog.ErrEntry):
		return withCode(exitFailed, err)
	case errors.Is(err, digestlog.ErrNotSigned):
		return withCode(exitNotFound, err)
	}
	return err
}

// next says what to do now, unless nobody wants to know.
func (a *app) next(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.out, "next: "+format+"\n", args...)
	}
}

func entriesText(n uint64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
