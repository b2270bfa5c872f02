package digestlog

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// rfc6962Vectors is the data of the Certificate Transparency test suites; the file says where it is from.
type rfc6962Vectors struct {
	Provenance string   `json:"provenance"`
	Leaves     []string `json:"leaves"`
	Roots      []string `json:"roots"` // by tree size, from 0
}

func readRFC6962(t *testing.T) rfc6962Vectors {
	t.Helper()
	b, err := os.ReadFile("../testdata/vectors/digestlog/rfc6962.json")
	if err != nil {
		t.Fatal(err)
	}
	var v rfc6962Vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFrontierRFC6962(t *testing.T) {
	v := readRFC6962(t)
	var f frontier
	for size, want := range v.Roots {
		if got := f.root(); hex.EncodeToString(got[:]) != want {
			t.Errorf("root at size %d is %x, want %s", size, got, want)
		}
		if size < len(v.Leaves) {
			leaf, err := hex.DecodeString(v.Leaves[size])
			if err != nil {
				t.Fatal(err)
			}
			f.add(tlog.RecordHash(leaf))
		}
	}
	if f.size != 8 || len(v.Roots) != 9 {
		t.Errorf("checked %d leaves and %d roots, want 8 and 9", f.size, len(v.Roots))
	}
}

// TestFrontierAgrees holds the frontier against the library that Verify uses.
func TestFrontierAgrees(t *testing.T) {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	other := factory.NewEmptyRange(0)
	var f frontier
	for i := range 1100 {
		leaf := []byte{byte(i), byte(i >> 8)}
		f.add(tlog.RecordHash(leaf))
		if err := other.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
			t.Fatal(err)
		}
		want, err := other.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.root(); !bytes.Equal(got[:], want) {
			t.Fatalf("root at size %d is %x, want %x", f.size, got, want)
		}
	}
}

func TestMetaRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := frontier{}
		for i := range rapid.IntRange(0, 300).Draw(t, "n") {
			f.add(tlog.RecordHash([]byte{byte(i)}))
		}
		c := cause(rapid.IntRange(1, int(maxCause)).Draw(t, "cause"))
		b := appendMeta(nil, c, &f)
		gotCause, got, err := parseMeta(b, f.size)
		if err != nil {
			t.Fatal(err)
		}
		if gotCause != c || got.root() != f.root() || got.size != f.size {
			t.Fatalf("got cause %d, size %d, want %d, %d", gotCause, got.size, c, f.size)
		}
		if _, _, err := parseMeta(b, f.size+1); err == nil {
			t.Fatal("a tree state of another base was accepted")
		}
	})
}

func FuzzParseMeta(f *testing.F) {
	var tree frontier
	for i := range 7 {
		f.Add(appendMeta(nil, causeRoll, &tree), tree.size)
		tree.add(tlog.RecordHash([]byte{byte(i)}))
	}
	f.Fuzz(func(t *testing.T, b []byte, base uint64) {
		c, tree, err := parseMeta(b, base)
		if err != nil {
			return
		}
		if again := appendMeta(nil, c, &tree); !bytes.Equal(again, b) {
			t.Fatalf("parsed %x and encoded %x", b, again)
		}
	})
}
