package audit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/vfs"
)

// torture asks for the long forms of the loops.
var torture = os.Getenv("TORTURE") != ""

func TestClosedRun(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	r := verify(t, mem)
	if r.Verdict != audit.OK || !r.Completeness.Closed || !r.Integrity.OK {
		b, _ := json.MarshalIndent(r, "", " ")
		t.Fatalf("closed run: %s", b)
	}
	want := []audit.Generation{
		{
			End: "crashed", Emitted: 35, EmittedKnown: true, Stored: 32, Lost: 3, LostRanges: []audit.LostRange{{From: 10, To: 13, Reason: "overrun"}},
			LastStep: 34, Digests: 16,
		},
		{
			Generation: 1, End: "clean", Emitted: 24, EmittedKnown: true, Stored: 24, FirstStep: 20, LastStep: 43, Digests: 12,
			Resumed: r.Completeness.Generations[1].Resumed,
		},
	}
	if diff := cmp.Diff(want, r.Completeness.Generations); diff != "" {
		t.Errorf("generations (-want +got):\n%s", diff)
	}
	if g := r.Completeness.Generations[1].Resumed; g == nil || g.Step != 19 {
		t.Errorf("resumed: %+v", g)
	}
	if c := r.Completeness; c.Stored != 56 || c.Lost != 3 || c.Digests != 28 || c.DigestsMissing != 0 || c.Snapshots != 2 {
		t.Errorf("completeness: %+v", c)
	}
	if f := r.Files; f.Manifests != 2 || f.Telemetry != 4 || f.Digests < 2 || f.Snapshots != 2 || f.Unknown != nil || f.Leftovers != nil {
		t.Errorf("files: %+v", f)
	}
}

// TestEveryFlip flips bytes of every file of a closed run. The stride makes every
// run of the test look at other bytes of the large empty stretches; what is dense
// is flipped closely; four times as closely with TORTURE=1.
func TestEveryFlip(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	rng := rand.New(rand.NewPCG(5, 6))
	flips, spread := 0, 4
	if torture {
		spread = 1
	}
	for _, name := range files(t, mem, runDir) {
		good := read(t, mem, name)
		for at := 0; at < len(good); at++ {
			if good[at] == 0 {
				at += rng.IntN(127 * spread) // zeros come in long stretches
			} else {
				at += rng.IntN(6 * spread)
			}
			if at >= len(good) {
				break
			}
			bad := bytes.Clone(good)
			bad[at] ^= byte(1 << rng.IntN(8))
			flips++
			r := verify(t, &overlay{FS: mem, name: name, data: bad})
			if r.Verdict != audit.Failed {
				t.Fatalf("%s: byte %d of %d flipped: %v, tail %v", name, at, len(good), r.Verdict, r.Completeness.Tail)
			}
			if !strings.HasSuffix(name, place(r)) {
				t.Fatalf("%s: byte %d flipped, reported as %v", name, at, r.Integrity.Problems)
			}
		}
	}
	t.Logf("%d flips", flips)
	if flips < 1000/spread {
		t.Errorf("only %d flips", flips)
	}
}

// place is the file of one of the problems that the flipped file's name ends in;
// problems name the damaged file or what contradicts it.
func place(r *audit.Report) string {
	for _, p := range r.Integrity.Problems {
		if p.File != "" && !strings.HasSuffix(p.File, "s") { // a file, not a directory
			return p.File
		}
	}
	return "no file named"
}

// TestEveryCut truncates and removes every file of a closed run.
func TestEveryCut(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	for _, name := range files(t, mem, runDir) {
		good := read(t, mem, name)
		for n := 0; n < len(good); n += 1 + n/13 {
			if r := verify(t, &overlay{FS: mem, name: name, data: good[:n:n]}); r.Verdict != audit.Failed {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(good), r.Verdict)
			}
		}
		if r := verify(t, &overlay{FS: mem, name: name, data: good[: len(good)-1 : len(good)-1]}); r.Verdict != audit.Failed {
			t.Errorf("%s without its last byte: %v", name, r.Verdict)
		}
		want := audit.Failed
		if strings.HasSuffix(name, "/checkpoint") {
			want = audit.CrashTail // as if it had been killed before it ever signed
		}
		if r := verify(t, &overlay{FS: mem, name: name}); r.Verdict != want {
			t.Errorf("%s removed: %v, want %v", name, r.Verdict, want)
		}
	}
}

// TestCrashAtEveryOperation kills the recorder, or cuts the power, before each
// operation of the scenario. What is left must never be called damaged, and a
// recorder that finds it must be able to bring it to a good end.
func TestCrashAtEveryOperation(t *testing.T) {
	for _, policy := range []vfs.Policy{vfs.KeepAll, vfs.DropAll, vfs.Mixed, vfs.Garbage} {
		t.Run(fmt.Sprint("policy=", policy), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(policy), 1))
			mem := vfs.NewMem()
			seen := map[audit.Verdict]int{}
			mem.SetHook(func(op vfs.Op) {
				if op.Kind&vfs.OpMutates == 0 {
					return
				}
				after := mem.Crash(rng, policy)
				if _, err := after.Stat(runDir); err != nil {
					return // nothing was begun yet
				}
				r := verify(t, after)
				seen[r.Verdict]++
				if r.Verdict != audit.OK && r.Verdict != audit.CrashTail {
					t.Fatalf("crash before %v: %v: %v", op, r.Verdict, r.Integrity.Problems)
				}
				if i := verifyIndex(t, after); i.Verdict != r.Verdict || i.Completeness.Stored != r.Completeness.Stored || i.Completeness.Lost != r.Completeness.Lost {
					t.Fatalf("crash before %v: %v, by the index %v: %v", op, r.Verdict, i.Verdict, i.Integrity.Problems)
				}
				if op.N%13 == 0 {
					recover2(t, rng, policy, after, op)
				}
			})
			scenario(mem)
			if seen[audit.CrashTail] < 50 {
				t.Errorf("verdicts %v: too few crashes", seen)
			}
		})
	}
}

// recover2 re-attaches to what a crash left, with a second crash on the way.
func recover2(t *testing.T, rng *rand.Rand, policy vfs.Policy, mem *vfs.Mem, first vfs.Op) {
	t.Helper()
	again := mem.Crash(rng, vfs.KeepAll)
	again.SetHook(func(op vfs.Op) {
		if op.Kind&vfs.OpMutates == 0 || op.N%5 != 0 {
			return
		}
		after := again.Crash(rng, policy)
		if r := verify(t, after); r.Verdict != audit.OK && r.Verdict != audit.CrashTail {
			t.Fatalf("crash before %v, then before %v of the recovery: %v: %v", first, op, r.Verdict, r.Integrity.Problems)
		}
	})
	reattach(again)
	again.SetHook(nil)
	for _, r := range []*audit.Report{verify(t, again), verifyIndex(t, again)} {
		if r.Verdict != audit.OK || !r.Completeness.Closed {
			t.Fatalf("crash before %v, recovered: %v: %v %v", first, r.Verdict, r.Integrity.Problems, r.Completeness.Tail)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	names := files(t, mem, runDir)
	i := slices.IndexFunc(names, func(n string) bool { return strings.Contains(n, "digests/") })
	bad := bytes.Repeat([]byte{0xff}, 100)
	r := verify(t, &overlay{FS: mem, name: names[i], data: bad})
	if r.Verdict != audit.Failed || len(r.Integrity.Problems) > 100 {
		t.Errorf("%v with %d problems", r.Verdict, len(r.Integrity.Problems))
	}
}
