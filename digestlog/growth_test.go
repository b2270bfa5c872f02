package digestlog

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
)

// tallTree is a tree whose every hash is kept, as tlog wants it for making proofs.
type tallTree struct {
	hashes []tlog.Hash
	size   int64
}

func (x *tallTree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		list[i] = x.hashes[at]
	}
	return list, nil
}

func (x *tallTree) add(t rapid.TB, raw []byte) {
	more, err := tlog.StoredHashes(x.size, raw, x)
	if err != nil {
		t.Fatal(err)
	}
	x.hashes = append(x.hashes, more...)
	x.size++
}

func (x *tallTree) root(t rapid.TB, size uint64) tlog.Hash {
	root, err := tlog.TreeHash(int64(size), x)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// leafBytes is the leaf of some trees.
func leafBytes(i uint64) []byte { return binary.LittleEndian.AppendUint64(nil, i) }

func plainTree(t rapid.TB, size uint64) *tallTree {
	var x tallTree
	for i := range size {
		x.add(t, leafBytes(i))
	}
	return &x
}

// checkProof holds a consistency proof against two libraries: it is the one that tlog makes, and the other accepts it.
func checkProof(t rapid.TB, x *tallTree, g *Growth) {
	from, size, got := g.From(), g.Size(), g.Proof()
	if from == 0 || from == size {
		if len(got) != 0 {
			t.Fatalf("proof from %d to %d has %d hashes, want none", from, size, len(got))
		}
		return
	}
	want, err := tlog.ProveTree(int64(size), int64(from), x)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("proof from %d to %d has %d hashes, want %d", from, size, len(got), len(want))
	}
	list := make([][]byte, len(got))
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("proof from %d to %d: hash %d is %v, want %v", from, size, i, got[i], want[i])
		}
		list[i] = got[i][:]
	}
	before, after := x.root(t, from), x.root(t, size)
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, from, size, list, before[:], after[:]); err != nil {
		t.Fatalf("proof from %d to %d: %v", from, size, err)
	}
}

// TestGrowthProof tries all pairs of sizes of small trees.
func TestGrowthProof(t *testing.T) {
	const most = 70
	x := plainTree(t, most)
	start := new(Growth)
	for from := range uint64(most + 1) {
		g := start.Restart()
		if g.From() != from || g.Size() != from {
			t.Fatalf("restarted at %d: from %d to %d", from, g.From(), g.Size())
		}
		checkProof(t, x, g)
		for i := from; i < most; i++ {
			g.Append(tlog.RecordHash(leafBytes(i)))
			checkProof(t, x, g)
			// Restarted while it grows is the same as begun there.
			if g.Restart().old.root() != [32]byte(x.root(t, i+1)) {
				t.Fatalf("growth from %d restarted at %d has another tree", from, i+1)
			}
		}
		start.Append(tlog.RecordHash(leafBytes(from)))
	}
}

// TestGrowthHoldsLittle: what is kept does not grow with the log.
func TestGrowthHoldsLittle(t *testing.T) {
	var leaf tlog.Hash
	g := new(Growth)
	for range 1000 {
		g.Append(leaf)
	}
	g = g.Restart()
	for range 100_000 {
		if g.Append(leaf); len(g.old.nodes)+len(g.nodes) > 3*17 {
			t.Fatalf("%d hashes at size %d", len(g.old.nodes)+len(g.nodes), g.Size())
		}
	}
}

func TestReadGrowth(t *testing.T) {
	m := closedLog(t, 40, 2<<10)
	var x tallTree
	for it, err := range Entries(m, testDir) {
		must(t, err)
		x.add(t, it.Raw)
	}
	rapid.Check(t, func(t *rapid.T) {
		to := rapid.Uint64Range(0, uint64(x.size)).Draw(t, "to")
		from := rapid.Uint64Range(0, to).Draw(t, "from")
		g, err := ReadGrowth(m, testDir, from, to)
		if err != nil {
			t.Fatal(err)
		}
		if g.From() != from || g.Size() != to {
			t.Fatalf("growth from %d to %d, want %d to %d", g.From(), g.Size(), from, to)
		}
		checkProof(t, &x, g)
	})
	if _, err := ReadGrowth(m, testDir, 3, uint64(x.size)+1); !errors.Is(err, ErrRollback) {
		t.Errorf("growth behind the end: %v, want ErrRollback", err)
	}
	if _, err := ReadGrowth(m, testDir, 4, 3); err == nil {
		t.Error("growth to a smaller size is no error")
	}
	edit(t, m, testDir+"/00000000000000000000.seg", func(f vfs.File) error { _, err := f.WriteAt([]byte{0xff}, 4096+60); return err })
	var f *Fault
	if _, err := ReadGrowth(m, testDir, 0, uint64(x.size)); !errors.As(err, &f) || f.Class != ClassCorrupt {
		t.Errorf("growth over damage: %v, want a fault of class corrupt", err)
	}
	if g, err := ReadGrowth(m, testDir, uint64(x.size)-1, uint64(x.size)); err != nil {
		t.Errorf("growth behind the damaged file: %v, want none: that file need not be read", err)
	} else {
		checkProof(t, &x, g)
	}
}
