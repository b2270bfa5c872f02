package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

const proveLong = `Write a file that shows something of a run's digest log to someone who has not got
the run, and who knows its verifier key. usp verify --proof FILE checks it.

  --step N       that the digests of step N are in the log: the newest generation's,
                 if the step was computed more than once (C2SP tlog-proof)
  --index I      that entry I is in the log, whatever it is
  --from-size M  that the log began with the M entries of an earlier head; to check it,
                 that head is needed (the body of a C2SP tlog-witness request)

Without -o the proof goes to standard output.`

const proofMode = 0o644

type proveFlags struct {
	step, index, from string
	out               string
}

func (a *app) proveCommand() *cobra.Command {
	var f proveFlags
	cmd := &cobra.Command{
		Use: "prove RUN --step N", Short: "Prove a step's digests to someone without the run", Long: proveLong, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.prove(args[0], f) },
	}
	cmd.Flags().StringVar(&f.step, "step", "", "prove the digests of step `N`")
	cmd.Flags().StringVar(&f.index, "index", "", "prove entry `I` of the log, from 0")
	cmd.Flags().StringVar(&f.from, "from-size", "", "prove that the log only grew since it had `M` entries")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "`file` to write")
	return cmd
}

// proofReport is what usp prove and usp verify --proof print.
type proofReport struct {
	Kind       string     `json:"kind"` // inclusion, or growth
	Verdict    string     `json:"verdict"`
	Exit       int        `json:"exit"`
	File       string     `json:"file,omitempty"`
	RunID      string     `json:"run_id,omitempty"`
	Origin     string     `json:"origin,omitempty"`
	Size       uint64     `json:"size,omitempty"`              // entries that the head covers
	Root       string     `json:"root,omitempty"`              // hexadecimal
	Signers    []string   `json:"signers,omitempty"`           // whose signatures were checked
	Unverified []string   `json:"signers_unchecked,omitempty"` // whose were not: their keys were not given
	Trust      string     `json:"trust,omitempty"`             // whose key that is: given, own, or manifest
	Index      *uint64    `json:"index,omitempty"`
	Entry      *proofLine `json:"entry,omitempty"`
	FromSize   *uint64    `json:"from_size,omitempty"`
	Problem    string     `json:"problem,omitempty"`
	Key        string     `json:"key,omitempty"`   // the verifier key that the run's manifest names
	Proof      string     `json:"proof,omitempty"` // the file's text, if there is no file
}

// proofLine is an entry as far as it can be read without the run.
type proofLine struct {
	Kind       string   `json:"kind"`
	Generation uint32   `json:"generation"`
	Step       uint64   `json:"step"`
	Seq        uint64   `json:"seq"`
	Digests    []string `json:"digests,omitempty"` // in the order of the schema's digest fields
	Detail     string   `json:"detail,omitempty"`
}

func (a *app) prove(run string, f proveFlags) error {
	numbers, given := [3]uint64{}, 0
	for i, text := range []string{f.step, f.index, f.from} {
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n > math.MaxInt64 {
			return usageError(fmt.Errorf("%q is not a number of a step or entry", text))
		}
		numbers[i], given = n, given+1
	}
	if given != 1 {
		return usageError(errors.New("say what to prove: one of --step N, --index I and --from-size M"))
	}
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	p := prover{app: a, dir: dir}
	err = a.steady(dir, func() (err error) {
		if p.signed, err = a.readSigned(dir); err != nil {
			return err
		}
		switch {
		case f.step != "":
			return p.step(numbers[0])
		case f.index != "":
			return p.entry(numbers[1])
		}
		return p.growth(numbers[2])
	})
	if err != nil {
		return logError(err)
	}
	return p.write(f)
}

// prover makes one proof.
type prover struct {
	app    *app
	dir    rundir.Dir
	signed signedLog
	report proofReport
	text   []byte
}

// step proves the entry of the newest generation that has the step.
func (p *prover) step(step uint64) error {
	line, err := audit.Open(p.app.fs, p.dir.Path())
	if err != nil {
		return withCode(exitFailed, err)
	}
	near := ""
	for it, err := range line.Digests() {
		switch e := &it.Entry; {
		case err != nil:
			return withCode(exitFailed, err)
		case e.Step == step:
			return p.entry(it.Index)
		case e.Step < step:
			near = fmt.Sprintf("; the one before with digests is %d", e.Step)
			continue
		case near == "":
			near = fmt.Sprintf("; the first with digests is %d", e.Step)
		}
		break
	}
	return withCode(exitNotFound, fmt.Errorf("run %s has no digests of step %d%s", line.RunID, step, near))
}

func (p *prover) entry(index uint64) error {
	proof, err := digestlog.Prove(p.app.fs, p.dir.Digests(), &p.signed.head, index)
	if err != nil {
		return err
	}
	v, err := proof.Verify(p.signed.keys)
	if err != nil {
		return err
	}
	p.report, p.text = proven(&v), proof.Append(nil)
	return nil
}

func (p *prover) growth(from uint64) error {
	proof, err := digestlog.ProveGrowth(p.app.fs, p.dir.Digests(), &p.signed.head, from)
	if err != nil {
		return err
	}
	h := &p.signed.head
	p.report = proofReport{Kind: kindGrowth, Origin: h.Origin, RunID: h.RunID(), Size: h.Size, Root: hex.EncodeToString(h.Root[:]), FromSize: &proof.From}
	p.text = proof.Append(nil)
	return nil
}

// write prints the proof or puts it into a file.
func (p *prover) write(f proveFlags) error {
	a, r := p.app, &p.report
	r.Verdict, r.Trust, r.Key = verdictOK, trustManifest, p.signed.verifierKey
	earlier := ""
	if r.Kind == kindGrowth {
		earlier = " --from-head HEAD"
	}
	if f.out == "" && !a.json {
		if _, err := a.out.Write(p.text); err != nil {
			return err
		}
		if !a.quiet {
			fmt.Fprintf(a.err, "next: put this into a file, and usp verify --proof FILE%s --key %s\n", earlier, r.Key)
		}
		return nil
	}
	if f.out == "" {
		r.Proof = string(p.text)
	} else {
		if err := vfs.Replace(a.fs, filepath.Clean(f.out), p.text, proofMode); err != nil {
			return err
		}
		r.File = f.out
	}
	if a.json {
		return a.printJSON(r, true)
	}
	what := ""
	if r.Kind == kindGrowth {
		what = fmt.Sprintf("that the log of run %s only grew, from %d to %d entries", r.RunID, *r.FromSize, r.Size)
	} else {
		what = fmt.Sprintf("entry %d of %d of run %s, %s", *r.Index, r.Size, r.RunID, r.Entry)
	}
	fmt.Fprintf(a.out, "proven: %s\n  in %s, %s\n", what, display(f.out), bytesText(int64(len(p.text))))
	a.next("usp verify --proof %s%s --key %s", pathArg(f.out), earlier, r.Key)
	return nil
}

// Values of proofReport.
const (
	kindInclusion = "inclusion"
	kindGrowth    = "growth"

	verdictOK       = "ok"
	verdictFailed   = "failed"
	verdictWrongKey = "wrong-key"

	trustGiven    = "given"    // the key is the one of --key
	trustOwn      = "own"      // this user's
	trustManifest = "manifest" // the one that the run names
)

// proven is the report of a proof that holds.
func proven(v *digestlog.Proven) proofReport {
	r := proofReport{
		Kind: kindInclusion, Verdict: verdictOK, Origin: v.Head.Origin, RunID: v.Head.RunID(), Size: v.Head.Size, Root: hex.EncodeToString(v.Head.Root[:]),
		Signers: v.Signers, Unverified: v.Unverified,
	}
	if v.Raw == nil {
		r.Kind, r.FromSize = kindGrowth, &v.From
		return r
	}
	e := &v.Entry
	r.Index = &v.Index
	r.Entry = &proofLine{Kind: e.Kind.String(), Generation: e.Generation, Step: e.Step, Seq: e.Seq, Detail: detail(e)}
	for _, d := range e.Digests {
		r.Entry.Digests = append(r.Entry.Digests, hex.EncodeToString(d[:]))
	}
	if v.Unknown != nil {
		r.Entry.Detail = "of a newer usp: only what it begins with can be read"
	}
	return r
}

func (l *proofLine) String() string {
	return fmt.Sprintf("%s of generation %d, step %d", l.Kind, l.Generation, l.Step)
}
