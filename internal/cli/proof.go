package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// proofKey is the key that has to have signed what is checked without its run: the given one, or else this user's own. Without either there is none,
// and nothing passes.
func (a *app) proofKey(key string) (v note.Verifier, trust string, err error) {
	if key != "" {
		if v, err = verifier(key); err != nil {
			return nil, "", usageError(err)
		}
		return v, trustGiven, nil
	}
	opts, err := a.recorderOptions()
	if err != nil {
		return nil, "", err
	}
	path, err := opts.SigningKeyFile()
	if err != nil {
		return nil, "", nil
	}
	_, own, err := digestlog.LoadKey(a.fs, path)
	if err != nil {
		return nil, "", nil
	}
	if v, err = note.NewVerifier(own); err != nil {
		return nil, "", nil
	}
	return v, trustOwn, nil
}

func verifierList(v note.Verifier) note.Verifiers {
	if v == nil {
		return note.VerifierList()
	}
	return note.VerifierList(v)
}

// whoseKey says what to do about a signature of somebody else; err is an ErrWrongKey, which names who that is.
func whoseKey(trust string, err error) string {
	_, who, _ := strings.Cut(err.Error(), "(")
	who = strings.TrimSuffix(who, ")")
	if trust == trustGiven {
		return "not by the key that was given, but " + who
	}
	return "not by your own key, but " + who + "; give the key of who made it, from a source you trust: --key KEY (in the run's manifest it is \"signer\")"
}

func (a *app) verifyProof(args []string, f verifyFlags) error {
	if len(args) > 1 || f.index || f.deep || f.input != "" {
		return usageError(errors.New("--proof FILE is checked by itself: give at most the id of the run that it must be of, and of the flags only --key and --from-head"))
	}
	b, err := vfs.ReadFile(a.fs, f.proof, digestlog.MaxProofFile)
	if errors.Is(err, fs.ErrNotExist) {
		return withCode(exitNotFound, fmt.Errorf("%s: no such file", f.proof))
	}
	if errors.Is(err, vfs.ErrTooLarge) {
		return withCode(exitFailed, fmt.Errorf("%s: larger than a proof can be", f.proof))
	}
	if err != nil {
		return err
	}
	v, trust, err := a.proofKey(f.key)
	if err != nil {
		return err
	}
	shown, err := a.checkProof(b, f, verifierList(v))
	var code *codeError
	if errors.As(err, &code) && code.code == exitUsage {
		return err
	}
	if err == nil && len(args) > 0 {
		err = a.ofRun(args[0], shown.Head.RunID())
	}
	r := proven(&shown)
	r.File, r.Trust = f.proof, trust
	switch {
	case errors.Is(err, digestlog.ErrWrongKey):
		r = proofReport{Kind: r.Kind, File: f.proof, Verdict: verdictWrongKey, Exit: exitWrongKey, Problem: whoseKey(trust, err)}
	case err != nil:
		r = proofReport{Kind: r.Kind, File: f.proof, Verdict: verdictFailed, Exit: exitFailed, Problem: err.Error()}
	}
	if digestlog.IsGrowthProof(b) {
		r.Kind = kindGrowth
	} else {
		r.Kind = kindInclusion
	}
	if a.json {
		if err := a.printJSON(r, true); err != nil {
			return err
		}
	} else {
		a.printProof(&r)
	}
	if r.Exit != exitOK {
		return withCode(r.Exit, nil)
	}
	return nil
}

// ofRun refuses a proof of another run than the one that is meant, which need not be here.
func (a *app) ofRun(run, proven string) error {
	id := filepath.Base(run)
	if dir, err := a.resolve(run); err == nil {
		m, _, err := rundir.ReadManifest(a.fs, dir, 0)
		if err != nil {
			return err
		}
		id = m.RunID
	}
	if id != proven {
		return fmt.Errorf("the proof is of run %s, not of %s", proven, id)
	}
	return nil
}

// checkProof verifies either kind of proof.
func (a *app) checkProof(b []byte, f verifyFlags, keys note.Verifiers) (digestlog.Proven, error) {
	if !digestlog.IsGrowthProof(b) {
		if f.fromHead != "" {
			return digestlog.Proven{}, usageError(errors.New("--from-head is for proofs of usp prove --from-size; this one is of an entry"))
		}
		p, err := digestlog.ParseProof(b)
		if err != nil {
			return digestlog.Proven{}, err
		}
		return p.Verify(keys)
	}
	p, err := digestlog.ParseGrowthProof(b)
	if err != nil {
		return digestlog.Proven{}, err
	}
	if f.fromHead == "" {
		return digestlog.Proven{}, usageError(fmt.Errorf("this proof is about an earlier head, of size %d; name the file that you kept of it: --from-head HEAD", p.From))
	}
	earlier, err := digestlog.ReadHead(a.fs, f.fromHead, keys)
	if errors.Is(err, fs.ErrNotExist) {
		return digestlog.Proven{}, usageError(fmt.Errorf("--from-head %s: no such file", f.fromHead))
	}
	if err != nil {
		return digestlog.Proven{}, err
	}
	return p.Verify(&earlier, keys)
}

func (a *app) printProof(r *proofReport) {
	w := a.out
	name := display(r.File)
	switch {
	case r.Verdict == verdictWrongKey:
		fmt.Fprintf(w, "proof %s: SIGNED WITH ANOTHER KEY\n  %s\n", name, r.Problem)
		return
	case r.Verdict != verdictOK:
		fmt.Fprintf(w, "proof %s: FAILED: it proves nothing\n  %s\n", name, r.Problem)
		return
	case r.Kind == kindGrowth:
		fmt.Fprintf(w, "proof %s: ok: the log of run %s only grew, from %d to %d entries\n", name, r.RunID, *r.FromSize, r.Size)
	default:
		fmt.Fprintf(w, "proof %s: ok: entry %d is in the log of run %s\n", name, *r.Index, r.RunID)
		fmt.Fprintf(w, "  entry     %v, record %d\n", r.Entry, r.Entry.Seq)
		for i, d := range r.Entry.Digests {
			fmt.Fprintf(w, "  digest %-2d %s\n", i, d)
		}
		if r.Entry.Detail != "" {
			fmt.Fprintf(w, "  detail    %s\n", r.Entry.Detail)
		}
	}
	fmt.Fprintf(w, "  head      over %s, root %s, of %s\n", entriesText(r.Size), r.Root, r.Origin)
	whose := "the key that was given"
	if r.Trust == trustOwn {
		whose = "your own key"
	}
	fmt.Fprintf(w, "  signed    by %s (%s)\n", strings.Join(r.Signers, ", "), whose)
	if len(r.Unverified) > 0 {
		fmt.Fprintf(w, "  note: also signed by %s, which was not checked\n", strings.Join(r.Unverified, ", "))
	}
}

// isTiles reports whether a directory is an exported log and not a run. A run into which tiles were put is a run: else it would be judged by them.
func (a *app) isTiles(dir string) bool {
	for _, name := range []string{rundir.DigestDir, rundir.ManifestFile} {
		if _, err := a.fs.Stat(filepath.Join(dir, name)); err == nil {
			return false
		}
	}
	info, err := a.fs.Stat(filepath.Join(dir, "tile"))
	return err == nil && info.IsDir()
}
