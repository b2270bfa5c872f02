package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/sink/jetstream"
)

const verifyLong = `Check a run directory: every byte against its checksum and the digest log, the log
against its signed head, and the count of what was emitted against what is there.
Nothing is changed.

The head is checked with the key that the manifest names. If that is this user's
own key the report says so; --key demands a particular one (a verifier key, or a
file with one) and exits 12 if the run is signed with another.

Encrypted snapshots are checked as they are stored, which needs no key. --deep also
looks at the state in them if --identity, or snapshot.identity_file, names a file with
their key; without it the run is computed again from its first row.

Lost records are printed as "lost records FROM to TO", both ends lost. With --json
they are "lost_ranges" with "from" and "to", and "to" is the first one not lost.

--head FILE names a signed head of this run (its file "checkpoint") that was copied
elsewhere before; the log must still contain it. A log that is shorter is
"rolled-back", one with another history is "rewritten": neither can be seen from the
run directory alone. It may be given several times. The head in the anchor
(anchor.dir in usp.toml) is compared without being named.

--witness KEY demands that a witness with this key has cosigned a head of the run, and
says up to which entry and when. The keys under [witness] in usp.toml are looked for
too, and missing ones noted. --ask-witness asks the witness at witness.url whether it
knows more of the run than is here: that finds a run of which all was put back,
cosigned head included. Nothing but this asks anybody.

--index reads only manifests, the outline of the log up to its signed head, and the
ends of telemetry segments and snapshots. It takes a moment however many records
there are, and says nothing of the bytes in the middle of files. With a head that was
kept elsewhere it also reads the log from the file on in which that head ends.

RUN can also be a directory that usp export --to tiles made: its entries and hash tiles
are checked against its checkpoint. --proof checks a file that usp prove made, and
with RUN (its id will do) that it is of that run. Both need nothing of the run but its
verifier key: --key, or this user's own.`

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use: "verify RUN", Short: "Check that a run directory is intact and complete", Long: verifyLong, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.proof != "":
				return a.verifyProof(args, f)
			case len(args) != 1:
				return usageError(errWhatToVerify)
			case a.isTiles(args[0]):
				return a.verifyTiles(cmd.Context(), args[0], f)
			case f.fromHead != "":
				return usageError(errors.New("--from-head is for --proof FILE"))
			}
			return a.verify(cmd.Context(), args[0], f)
		},
	}
	cmd.Flags().StringVar(&f.proof, "proof", "", "check a proof's `file`, without the run")
	cmd.Flags().StringVar(&f.fromHead, "from-head", "", "with --proof: `file` of the earlier head that the log has grown from")
	cmd.Flags().StringVar(&f.key, "key", "", "verifier `key`, or a file with one, that must have signed the run")
	cmd.Flags().BoolVar(&f.deep, "deep", false, "also load every snapshot and compute the run again from the oldest one to its end")
	a.identityFlag(cmd)
	cmd.Flags().StringArrayVar(&f.heads, "head", nil, "`file` with a signed head of the run, kept elsewhere, that the log must contain; may be repeated")
	cmd.Flags().StringArrayVar(&f.keys, "witness", nil, "verifier `key` of a witness, or a file with one, that must have cosigned the run; may be repeated")
	cmd.Flags().BoolVar(&f.ask, "ask-witness", false, "also ask the witness at witness.url whether it has seen more of the run, or another one")
	cmd.Flags().BoolVar(&f.stream, "stream", false, "also hold the mirror of the run in the stream at jetstream.url against it, byte by byte")
	cmd.Flags().BoolVar(&f.index, "index", false, "check the index of the run only: fast, and most bytes are not read")
	cmd.Flags().StringVar(&f.input, "input", "", "with --deep: `file` with the run's input, if it is not where it was")
	return cmd
}

// verifyFlags are the flags of usp verify.
type verifyFlags struct {
	key   string
	deep  bool
	index bool
	input string
	heads []string // files
	keys  []string // of witnesses, or files with one
	ask   bool     // the configured witness

	stream bool // the mirror in the configured stream

	proof    string
	fromHead string

	identities []age.Identity // for encrypted snapshots
}

// deepReport is the report of usp verify --deep.
type deepReport struct {
	*audit.Report
	Replay *replay           `json:"replay,omitempty"`
	Stream *jetstream.Report `json:"stream,omitempty"` // with --stream
}

func (a *app) verify(ctx context.Context, run string, f verifyFlags) error {
	if f.index && f.deep {
		return usageError(errors.New("--index reads as little as it can and --deep as much: give one of them"))
	}
	if f.ask && a.cfg.Witness.URL == "" {
		return usageError(errors.New("--ask-witness: there is no witness to ask: set witness.url, and witness.key, in usp.toml"))
	}
	if f.stream && a.cfg.JetStream.URL == "" {
		return usageError(errors.New("--stream: there is no stream to read: set jetstream.url in usp.toml"))
	}
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	o := audit.Options{Index: f.index}
	var v note.Verifier
	if f.key != "" {
		if v, err = verifier(f.key); err != nil {
			return usageError(err)
		}
	} else {
		v = a.ownVerifier(dir)
	}
	if v != nil {
		o.Verifiers = note.VerifierList(v)
	}
	heads, notes, err := a.keptHeads(dir, f.heads)
	if err != nil {
		return err
	}
	o.Heads = heads
	if o.Witnesses, err = a.witnesses(f.keys); err != nil {
		return usageError(err)
	}
	if f.deep {
		if f.identities, err = a.identities(); err != nil {
			return err
		}
	}
	report, err := a.judge(ctx, dir, o, f)
	if err != nil {
		return err
	}
	report.Notes = append(report.Notes, notes...)
	var unasked error
	if f.ask {
		unasked = a.askWitness(ctx, dir, report.Report)
	}
	var mirror error
	if f.stream {
		report.Stream, mirror = a.checkStream(ctx, dir, o.Verifiers)
	}
	if a.json {
		if err := a.printJSON(report, true); err != nil {
			return err
		}
	} else {
		a.printReport(report)
		a.printStream(report.Stream)
	}
	if report.Exit != exitOK {
		return withCode(report.Exit, nil)
	}
	if mirror != nil {
		return mirror
	}
	if unasked != nil {
		return unasked
	}
	if n := report.Completeness.Undecrypted; n > 0 && len(f.identities) > 0 {
		return withCode(exitWrongKey, fmt.Errorf("what is stored is intact, but none of the given age identities can decrypt %s; %s", count(n, "snapshot"), a.keyAdvice()))
	}
	return nil
}

// judge verifies a run directory and, with --deep, computes the run again. A replay that comes to something else makes
// the verdict "failed".
func (a *app) judge(ctx context.Context, dir rundir.Dir, o audit.Options, f verifyFlags) (*deepReport, error) {
	if !f.deep {
		r, err := audit.Verify(ctx, a.fs, dir.Path(), o)
		return &deepReport{Report: r}, err
	}
	meta, err := readProducerMeta(a.fs, dir)
	o.Deep, o.Identities = true, f.identities
	if err == nil {
		o.Snapshot = loadable(&meta)
	}
	r, verr := audit.Verify(ctx, a.fs, dir.Path(), o)
	if verr != nil {
		return nil, verr
	}
	d := &deepReport{Report: r}
	switch {
	case err != nil:
		d.Replay = &replay{Skipped: "only the program that made the run can compute it again"}
	case r.Verdict == audit.Failed || r.Verdict == audit.NotFound:
		d.Replay = &replay{Skipped: "what is damaged is not computed again"}
	default:
		if d.Replay, err = a.replayRun(ctx, dir, &meta, f); err != nil {
			return nil, err
		}
	}
	if d.Replay.Problem != "" {
		r.Verdict, r.Exit = audit.Failed, exitFailed
	}
	return d, nil
}

// verifier reads a verifier key, given itself or by the name of a file.
func verifier(key string) (note.Verifier, error) {
	if b, err := os.ReadFile(key); err == nil {
		key = string(bytes.TrimSpace(b))
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return nil, errors.New("--key: neither a file with a verifier key nor a verifier key (NAME+HASH+KEY); the manifest of a run shows its key as \"signer\"")
	}
	return v, nil
}

// ownVerifier is the public half of the key that this user signs with, if the run says that it is signed with it, or cannot say any more.
func (a *app) ownVerifier(dir rundir.Dir) note.Verifier {
	opts, err := a.recorderOptions()
	if err != nil {
		return nil
	}
	path, err := opts.SigningKeyFile()
	if err != nil {
		return nil
	}
	_, own, err := digestlog.LoadKey(a.fs, path)
	if err != nil {
		return nil
	}
	if m, _, err := rundir.ReadManifest(a.fs, dir, 0); err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && m.Signer != own {
		return nil
	}
	v, err := note.NewVerifier(own)
	if err != nil {
		return nil
	}
	return v
}

func (a *app) printReport(r *deepReport) {
	w := a.out
	c := &r.Completeness
	if r.Verdict == audit.NotFound {
		fmt.Fprintf(w, "%s: not a run directory\n", r.Dir)
		return
	}
	fmt.Fprintf(w, "run %s: %s\n", cmp.Or(r.RunID, display(r.Dir)), verdictText(r.Report))
	if r.Integrity.OK {
		what := "intact"
		if r.IndexOnly {
			what = "index intact (index only)"
		}
		fmt.Fprintf(w, "  integrity     %s: %d log entries", what, r.Integrity.LogEntries)
		if h := r.Integrity.Head; h != nil {
			fmt.Fprintf(w, ", head over %d signed by %s", h.Size, h.Signer)
			if h.Trusted {
				fmt.Fprint(w, " (trusted)")
			}
		}
		fmt.Fprintf(w, "; %d files, %s\n", r.Files.Manifests+r.Files.Telemetry+r.Files.Digests+r.Files.Snapshots, bytesText(r.Files.Bytes))
	} else {
		fmt.Fprintf(w, "  integrity     %s\n", damageText(r.Report))
		for i := range r.Integrity.Problems {
			fmt.Fprintf(w, "    %s\n", r.Integrity.Problems[i].String())
		}
		if n := r.Integrity.Dropped; n > 0 {
			fmt.Fprintf(w, "    and %d more\n", n)
		}
	}
	a.printKept(r.Integrity.Kept)
	a.printWitnessed(r.Report)
	missing := ""
	if c.DigestsMissing > 0 {
		missing = fmt.Sprintf(" (%d more were due and are missing)", c.DigestsMissing)
	}
	fmt.Fprintf(w, "  completeness  %d stored, %d lost, %d digests%s, %s kept\n", c.Stored, c.Lost, c.Digests, missing, count(c.Snapshots, "snapshot"))
	for _, g := range c.Generations {
		emitted := "emitted not known"
		if g.EmittedKnown {
			emitted = fmt.Sprintf("%d emitted", g.Emitted)
		}
		end := g.End
		if end == "" {
			end = "no end"
		}
		steps := "no steps"
		if g.Stored > 0 {
			steps = fmt.Sprintf("steps %d to %d", g.FirstStep, g.LastStep)
		}
		fmt.Fprintf(w, "    generation %d: %s, %s = %d stored + %d lost, %s\n", g.Generation, steps, emitted, g.Stored, g.Lost, end)
		for _, l := range g.LostRanges {
			fmt.Fprintf(w, "      lost records %d to %d: %s\n", l.From, l.To-1, l.Reason)
		}
	}
	if n := c.Undecrypted; n > 0 {
		fmt.Fprintf(w, "  note: %s: the stored bytes are checked, the state in them is not; to check it, give the key: --identity FILE\n", count(n, "encrypted snapshot"))
	}
	a.printReplay(r.Replay)
	for _, list := range [][]string{c.Tail, r.Notes} {
		for _, line := range list {
			fmt.Fprintf(w, "  note: %s\n", line)
		}
	}
	for _, f := range r.Files.Unknown {
		fmt.Fprintf(w, "  note: %s is not a file of usp's; passed over\n", f)
	}
	for _, f := range r.Files.Leftovers {
		fmt.Fprintf(w, "  note: %s is left over from a crash or repair\n", f)
	}
	if r.Verdict == audit.CrashTail && !a.quiet {
		a.next("%s", a.afterCrash(r))
	}
}

// ringOf is the ring that a run was left in, "" if there is none, and whether its producer is alive.
func (a *app) ringOf(r *deepReport) (path string, alive bool) {
	dir, err := filepath.Abs(r.Dir)
	if err != nil || filepath.Base(dir) != r.RunID || !rundir.ValidID(r.RunID) || a.copied(dir) {
		return "", false // what is in the ring belongs to another directory
	}
	if path, err = a.findRing([]string{r.RunID}); err != nil {
		return "", false
	}
	c, err := ring.Open(path)
	if err != nil {
		return "", false
	}
	defer c.Close()
	alive, err = c.ProducerAlive()
	return path, alive && err == nil
}

// copied tells whether the directory of the runs has another one of that name.
func (a *app) copied(dir string) bool {
	this, err := os.Stat(dir)
	that, thatErr := os.Stat(filepath.Join(a.cfg.Run.Dir, filepath.Base(dir)))
	return err == nil && thatErr == nil && !os.SameFile(this, that)
}

// afterCrash is what to do with a run that was not closed.
func (a *app) afterCrash(r *deepReport) string {
	if len(r.Completeness.Generations) == 0 {
		return fmt.Sprintf("nothing was recorded; remove %s and start again", display(r.Dir))
	}
	m, _, err := rundir.ReadManifest(a.fs, rundir.At(r.Dir), 0)
	if err != nil {
		m = nil
	}
	if resume := resumeCommand(pathArg(r.Dir), producerOf(m)); resume != "" {
		return resume
	}
	switch path, alive := a.ringOf(r); {
	case alive:
		return "look again: the program that made it is at work"
	case path != "":
		return "usp record " + quoteArg(path) + " --dir " + pathArg(filepath.Dir(r.Dir))
	}
	return "start the program that made it again, from its newest snapshot if it has one; what is stored can be read as it is"
}

func (a *app) printReplay(r *replay) {
	switch {
	case r == nil:
	case r.Skipped != "":
		fmt.Fprintf(a.out, "  replay        none: %s\n", r.Skipped)
	case r.Problem != "":
		fmt.Fprintf(a.out, "  replay        DIFFERS: %s\n", r.Problem)
	default:
		fmt.Fprintf(a.out, "  replay        steps %d to %d: %s with the same digests, %s with the same state\n", r.FromStep, r.ToStep, count(r.Digests, "step"), count(r.Snapshots, "snapshot"))
	}
}

func verdictText(r *audit.Report) string {
	switch {
	case r.IndexOnly && r.Verdict == audit.OK && !r.InProgress:
		return "ok by its index, and closed; most bytes were not read"
	case r.IndexOnly && r.Verdict == audit.OK:
		return "ok so far by its index; it is being recorded"
	case r.IndexOnly && r.Verdict == audit.CrashTail:
		return "ok by its index, but not closed: its recorder or producer died; it can be resumed"
	case r.Verdict == audit.OK && r.InProgress:
		return "ok so far; it is being recorded"
	case r.Verdict == audit.OK:
		return "ok: intact and closed"
	case r.Verdict == audit.CrashTail && r.InProgress:
		return "ok so far; it is being recorded"
	case r.Verdict == audit.CrashTail && len(r.Completeness.Generations) == 0:
		return "nothing was recorded: its recorder or producer died before that"
	case r.Verdict == audit.CrashTail:
		return "intact, but not closed: its recorder or producer died; it can be resumed"
	case r.Verdict == audit.WrongKey && slices.ContainsFunc(r.Integrity.Kept, func(k audit.Kept) bool { return k.Result == "wrong-key" }):
		return "it or a head that was kept of it is signed with another key"
	case r.Verdict == audit.WrongKey:
		return "signed with another key than the one given"
	}
	failed := strings.ToUpper(r.Verdict.String())
	if len(r.Integrity.Problems) > 0 { // without, a replay came to something else
		switch damageText(r) {
		case unusableHead:
			return failed + ": a head that was kept elsewhere cannot be used; the run itself is intact"
		case notWitnessed:
			return failed + ": a witness that must have cosigned it has not; the run itself is intact"
		}
	}
	return failed + ": it is not what was recorded"
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for ; f >= unit && i < 4; i++ {
		f /= unit
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}
