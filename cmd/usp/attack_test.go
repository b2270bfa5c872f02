package main

import (
	"crypto/ed25519"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
	"github.com/usp-project/usp/internal/witness/witnesstest"
)

// attack cut RUN N keeps the first N entries of a run's log, attack rewrite RUN changes a digest in it. Either signs the result with the
// run's own key, as one can who has taken over the machine that recorded it.
func attack(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: attack cut RUN N, attack rewrite RUN")
	}
	dir := rundir.At(ts.MkAbs(args[1]))
	keep := ^uint64(0)
	if args[0] == "cut" {
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		keep = uint64(n)
	}
	m, _, err := rundir.ReadManifest(vfs.OS(), dir, 0)
	ts.Check(err)
	signer, _, err := digestlog.LoadKey(nil, filepath.Join(ts.Getenv("HOME"), ".config", "usp", "signing.key"))
	ts.Check(err)
	made := ts.MkAbs(args[1] + ".attack")
	log, err := digestlog.Open(filepath.Join(made, rundir.DigestDir), digestlog.Options{RunID: m.RunID, Signer: signer})
	ts.Check(err)
	for it, err := range digestlog.Entries(nil, dir.Digests()) {
		ts.Check(err)
		if it.Index >= keep {
			break
		}
		if args[0] == "rewrite" {
			rewrite(ts, dir, &it.Entry)
		}
		_, err = log.Append(&it.Entry)
		ts.Check(err)
	}
	ts.Check(log.Close())
	ts.Check(os.RemoveAll(dir.Digests()))
	ts.Check(os.Rename(filepath.Join(made, rundir.DigestDir), dir.Digests()))
	ts.Check(os.Rename(filepath.Join(made, rundir.HeadFile), dir.Head()))
}

// rewrite changes the digest of step 2, and takes the snapshots away, which hold the roots that the log had.
func rewrite(ts *testscript.TestScript, dir rundir.Dir, e *digestlog.Entry) {
	switch {
	case e.Kind == digestlog.KindStep && e.Step == 2:
		e.Digests[0][0] ^= 1
	case e.Kind == digestlog.KindSnapshot:
		ts.Check(os.Remove(dir.Snapshot(e.Name)))
		*e = digestlog.Entry{Kind: digestlog.KindEvent, Generation: e.Generation, Code: digestlog.EventStorage, Text: "nothing"}
	}
}

// startWitness starts a witness on the loopback, which knows the key of this user's runs. Its address is in the variable WITNESS, its verifier
// key in WITNESSKEY.
func startWitness(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: witness")
	}
	signer, err := witness.NewSigner("witness.example/w1", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), func() time.Time {
		return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	})
	ts.Check(err)
	_, vkey, err := digestlog.LoadOrCreateKey(nil, filepath.Join(ts.Getenv("HOME"), ".config", "usp", "signing.key"), nil)
	ts.Check(err)
	key, err := note.NewVerifier(vkey)
	ts.Check(err)
	w := witnesstest.New(signer)
	w.Trust("usp/", key)
	server := httptest.NewServer(w)
	ts.Defer(server.Close)
	ts.Setenv("WITNESS", server.URL)
	ts.Setenv("WITNESSKEY", signer.VerifierKey())
}
