// Package interop holds what usp exports and proves against the tools of others: Tessera's fsck and client, torchwood's reading of
// proofs, and the tiled-log client of golang.org/x/mod. It has tests only, and a module of its own because of what those tools need.
package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/torchwood"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/digestlog"
)

// exported is a log and its export.
type exported struct {
	log, tiles string // directories
	head       digestlog.SignedTreeHead
	verifier   note.Verifier
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// export makes a log of n entries and exports it.
func export(t testing.TB, n int) exported {
	t.Helper()
	dir := t.TempDir()
	signer, vkey, err := digestlog.LoadOrCreateKey(nil, filepath.Join(dir, "keys", "key"), nil)
	must(t, err)
	verifier, err := note.NewVerifier(vkey)
	must(t, err)
	x := exported{log: filepath.Join(dir, "run", "digests"), tiles: filepath.Join(dir, "run.tiles"), verifier: verifier}
	must(t, os.MkdirAll(x.log, 0o755))
	l, err := digestlog.Open(x.log, digestlog.Options{RunID: "20261122T201833-9f3kq", Signer: signer, SegmentSize: 8 << 20})
	must(t, err)
	rnd := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range n {
		e := digestlog.Entry{Kind: digestlog.KindStep, Step: uint64(i), Seq: uint64(i), Digests: make([][32]byte, 1+rnd.IntN(3))}
		for d := range e.Digests {
			e.Digests[d][rnd.IntN(32)] = byte(rnd.Uint32())
		}
		_, err := l.Append(&e)
		must(t, err)
		if i%4096 == 0 {
			must(t, l.Sync())
		}
	}
	must(t, l.Close())
	exp, err := digestlog.ExportTiles(digestlog.ExportOptions{
		Dir: x.log, HeadPath: filepath.Join(dir, "run", digestlog.HeadName), Verifiers: note.VerifierList(verifier), To: x.tiles,
	})
	must(t, err)
	x.head = exp.Head
	return x
}

// check runs Tessera's fsck over an export.
func check(x exported) error {
	hashes := func(bundle []byte) ([][]byte, error) {
		var b api.EntryBundle
		if err := b.UnmarshalText(bundle); err != nil {
			return nil, err
		}
		list := make([][]byte, len(b.Entries))
		for i, e := range b.Entries {
			list[i] = rfc6962.DefaultHasher.HashLeaf(e)
		}
		return list, nil
	}
	return fsck.New(x.head.Origin, x.verifier, client.FileFetcher{Root: x.tiles}, hashes, fsck.Opts{N: 2}).Check(context.Background())
}

// own runs VerifyTiles over an export.
func own(t testing.TB, x exported) digestlog.Report {
	t.Helper()
	r, err := digestlog.VerifyTiles(digestlog.TilesOptions{Dir: x.tiles, Verifiers: note.VerifierList(x.verifier)})
	must(t, err)
	return r
}

func TestFsck(t *testing.T) {
	for _, n := range []int{1, 2, 255, 256, 257, 511, 512, 513, 65_536 + 300} {
		x := export(t, n)
		if x.head.Size != uint64(n) {
			t.Fatalf("exported %d entries, want %d", x.head.Size, n)
		}
		if err := check(x); err != nil {
			t.Errorf("%d entries: %v", n, err)
		}
		if r := own(t, x); r.Err() != nil || r.Size != uint64(n) {
			t.Errorf("%d entries: %v", n, r.Faults)
		}
	}
}

// TestFsckRejects changes one byte of each file in turn: Tessera and usp agree that the export is not what was signed.
func TestFsckRejects(t *testing.T) {
	x := export(t, 600)
	rnd := rand.New(rand.NewPCG(3, 4))
	files := 0
	must(t, filepath.WalkDir(x.tiles, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		good, err := os.ReadFile(path)
		must(t, err)
		bad := bytes.Clone(good)
		bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
		must(t, os.WriteFile(path, bad, 0o644))
		if check(x) == nil {
			t.Errorf("%s changed, and fsck found nothing", path)
		}
		if r := own(t, x); r.Err() == nil {
			t.Errorf("%s changed, and usp found nothing", path)
		}
		return os.WriteFile(path, good, 0o644)
	}))
	if files != 8 { // the checkpoint, three bundles, three tiles of leaves and one above them
		t.Errorf("%d files were changed, want 8", files)
	}
	must(t, check(x)) // it was the change that was found
}

// policyOf wants the log's name and key.
func policyOf(x exported) torchwood.Policy {
	return torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(x.head.Origin), torchwood.SingleVerifierPolicy(x.verifier))
}

// TestProofs: the proofs that usp makes from its log are those that others make from the tiles, and others accept them.
func TestProofs(t *testing.T) {
	x := export(t, 70_000)
	ctx, size := context.Background(), int64(x.head.Size)
	fetch := client.FileFetcher{Root: x.tiles}
	builder, err := client.NewProofBuilder(ctx, x.head.Size, fetch.ReadTile)
	must(t, err)
	files, err := torchwood.NewTileFS(os.DirFS(x.tiles))
	must(t, err)
	torch, err := torchwood.NewClient(files)
	must(t, err)
	tree := tlog.Tree{N: size, Hash: x.head.Root}
	policy := policyOf(x)
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, index := range []int64{0, 255, 256, 65_535, 65_536, size - 1, rnd.Int64N(size), rnd.Int64N(size)} {
		p, err := digestlog.Prove(nil, x.log, &x.head, uint64(index))
		must(t, err)
		theirs, err := builder.InclusionProof(ctx, uint64(index))
		must(t, err)
		if !slices.EqualFunc(p.Hashes, theirs, func(a tlog.Hash, b []byte) bool { return bytes.Equal(a[:], b) }) {
			t.Errorf("entry %d: Tessera makes another proof", index)
		}
		raw, theirProof, err := torch.Entry(ctx, tree, index)
		must(t, err)
		if !bytes.Equal(raw, p.Entry) || !slices.Equal(p.Hashes, theirProof) {
			t.Errorf("entry %d: torchwood reads another entry or makes another proof", index)
		}
		must(t, tlog.CheckRecord(p.Hashes, size, x.head.Root, index, tlog.RecordHash(raw)))
		text := p.Append(nil)
		if err := torchwood.VerifyProof(policy, tlog.RecordHash(raw), text); err != nil {
			t.Errorf("entry %d: torchwood does not accept the proof: %v", index, err)
		}
		if extra, err := torchwood.ProofExtraData(text); err != nil || !bytes.Equal(extra, raw) {
			t.Errorf("entry %d: torchwood reads other extra data (%v)", index, err)
		}
		// And the other way: what torchwood writes, usp reads.
		q, err := digestlog.ParseProof(torchwood.FormatProofWithExtraData(index, raw, theirProof, x.head.Note))
		must(t, err)
		if v, err := q.Verify(note.VerifierList(x.verifier)); err != nil || v.Entry.Step != uint64(index) {
			t.Errorf("entry %d: torchwood's proof: %v", index, err)
		}
		if err := torchwood.VerifyProof(policy, tlog.RecordHash([]byte("other")), text); err == nil {
			t.Errorf("entry %d: torchwood accepts the proof for another entry", index)
		}
	}
	for _, from := range []uint64{1, 255, 256, 65_537, uint64(size)} {
		p, err := digestlog.ProveGrowth(nil, x.log, &x.head, from)
		must(t, err)
		theirs, err := builder.ConsistencyProof(ctx, from, x.head.Size)
		must(t, err)
		if !slices.EqualFunc(p.Hashes, theirs, func(a tlog.Hash, b []byte) bool { return bytes.Equal(a[:], b) }) {
			t.Errorf("growth from %d: Tessera makes another proof", from)
		}
	}
}

// TestSubtrees: the subtree roots of an export are those that x/mod computes from its leaves.
func TestSubtrees(t *testing.T) {
	x := export(t, 1000)
	tiles, err := digestlog.OpenTiles(nil, x.tiles)
	must(t, err)
	files, err := torchwood.NewTileFS(os.DirFS(x.tiles))
	must(t, err)
	reader := torchwood.TileHashReaderWithContext(context.Background(), tlog.Tree{N: 1000, Hash: x.head.Root}, files)
	for n := range int64(3) {
		want, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(8, n)})
		must(t, err)
		if got, err := tiles.Subtree(1, uint64(n)); err != nil || got != [32]byte(want[0]) {
			t.Errorf("subtree %d is %x (%v), want %v", n, got, err, want[0])
		}
	}
}

// TestRun does it as a user does: a run of the command, its export, and a proof.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	usp := filepath.Join(dir, "usp")
	build := exec.Command("go", "build", "-o", usp, "./cmd/usp")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	command := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command(usp, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=", "USP_RING_DIR="+filepath.Join(dir, "ring"))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("usp %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
		}
		return out
	}
	command("run", "-q", "example:sunspots")
	var made struct {
		RunID   string `json:"run_id"`
		Dir     string
		Entries uint64
		Signer  string
	}
	must(t, json.Unmarshal(command("export", "latest", "--to", "tiles", "--json"), &made))
	verifier, err := note.NewVerifier(made.Signer)
	must(t, err)
	x := exported{tiles: filepath.Join(dir, made.Dir), verifier: verifier, head: digestlog.SignedTreeHead{Origin: "usp/" + made.RunID}}
	must(t, check(x))
	proof := command("prove", "latest", "--step", "200", "-q")
	raw, err := torchwood.ProofExtraData(proof)
	must(t, err)
	must(t, torchwood.VerifyProof(policyOf(x), tlog.RecordHash(raw), proof))
	if e, err := digestlog.ParseEntry(raw); err != nil || e.Step != 200 {
		t.Errorf("proven: %v, %v, want step 200", fmt.Sprint(e.Kind, e.Step), err)
	}
}
