package record

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the test vectors")

var vectorFile = filepath.Join("..", "testdata", "vectors", "ladder", "index.json")

// ladderVectors are what doc/format/digestlog.md says of ladders, as numbers. Words are the bits of float64s in hexadecimal.
type ladderVectors struct {
	Ladders []ladderVector
	Pairs   []pairVector
}

type ladderVector struct {
	Name   string
	Levels []int
	Floor  int
	Secret string // of the audit key, in hexadecimal; empty: the public key
	KeyID  string
	Words  []string
	Ladder string // in hexadecimal
}

// pairVector is how far two vectors agree by their ladders of the default levels and floor, with the public key.
type pairVector struct {
	Name string
	A, B []string
	Bits int // 0: not even to the lowest level
}

func hexWords(xs []float64) []string {
	out := make([]string, len(xs))
	for i, x := range xs {
		var b [8]byte
		for j := range b {
			b[j] = byte(math.Float64bits(x) >> (56 - 8*j))
		}
		out[i] = hex.EncodeToString(b[:])
	}
	return out
}

func makeLadderVectors() ladderVectors {
	var v ladderVectors
	third, ulp := 1.0/3, math.Nextafter(0.25, 0)
	all := []float64{0, math.Copysign(0, -1), 1, -1, 0.25, ulp, third, 5.0 / 3, 1e-313, -1e-313, 1e300, math.MaxFloat64, math.Inf(1), math.Inf(-1), math.NaN(), math.SmallestNonzeroFloat64}
	for _, c := range []struct {
		name   string
		levels []int
		floor  int
		secret string
		xs     []float64
	}{
		{"uniform of four", DefaultLevels(), DefaultFloor, "", []float64{.25, .25, .25, .25}},
		{"three", []int{2, 26, 50}, DefaultFloor, "", []float64{.1, third, -.7}},
		{"every kind of number", DefaultLevels(), DefaultFloor, "", all},
		{"no floor but zero", DefaultLevels(), MinFloor, "", all},
		{"high floor", []int{10, 42}, -40, "", []float64{1e-20, -3e-13, 0.5}},
		{"secret key", []int{10, 42}, DefaultFloor, "000102030405060708090a0b0c0d0e0f", []float64{.25, .25, .25, .25}},
		{"seventeen", []int{6, 50}, DefaultFloor, "", []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}},
	} {
		key := PublicAuditKey()
		if secret, _ := hex.DecodeString(c.secret); len(secret) > 0 {
			key = NewAuditKey(secret)
		}
		ladder := newLadderMaker(c.levels, c.floor, key, len(c.xs)).append(nil, bitsOf(c.xs))
		v.Ladders = append(v.Ladders, ladderVector{c.name, c.levels, c.floor, c.secret, hex.EncodeToString(key.ID[:]), hexWords(c.xs), hex.EncodeToString(ladder)})
	}
	for _, c := range []struct {
		name string
		a, b []float64
	}{
		{"the same", []float64{.1, .9}, []float64{.1, .9}},
		{"one unit in the last place", []float64{.25}, []float64{ulp}},
		{"30 bits", []float64{.3, .7}, []float64{.3 * (1 + math.Exp2(-30)), .7}},
		{"8 bits", []float64{.3, .7}, []float64{.3, .7 * (1 - math.Exp2(-8))}},
		{"half", []float64{.5}, []float64{.25}},
		{"flushed subnormal", []float64{1e-313}, []float64{0}},
		{"other sign", []float64{.1}, []float64{-.1}},
		{"not a number in one", []float64{math.NaN()}, []float64{1}},
	} {
		v.Pairs = append(v.Pairs, pairVector{c.name, hexWords(c.a), hexWords(c.b), reported(DefaultLevels(), DefaultFloor, c.a, c.b)})
	}
	return v
}

// TestLadderVectors holds the vectors that other languages read against this implementation.
func TestLadderVectors(t *testing.T) {
	v := makeLadderVectors()
	if *update {
		b, err := json.MarshalIndent(v, "", "  ")
		if err == nil {
			err = os.MkdirAll(filepath.Dir(vectorFile), 0o755)
		}
		if err == nil {
			err = os.WriteFile(vectorFile, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var want ladderVectors
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Error(diff)
	}
}

// TestLadderElsewhere computes the vectors with a second implementation, in Python, that was written from the format page.
func TestLadderElsewhere(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: there is no python3 to compute the ladders a second time with")
	}
	out, err := exec.Command(python, filepath.Join("testdata", "ladder.py"), vectorFile).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
