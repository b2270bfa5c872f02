package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// grower writes the manifests and the log of a run, a piece at a time.
type grower struct {
	t    *testing.T
	fs   vfs.FS
	dir  rundir.Dir
	log  *digestlog.Log
	opts digestlog.Options
	key  string
	look func()
	gen  uint32
}

func newGrower(t *testing.T, fsys vfs.FS) *grower {
	signer, key, err := digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", rand.NewChaCha8([32]byte{7}))
	check(t, err)
	g := &grower{t: t, fs: fsys, dir: rundir.At("/runs/a"), key: key}
	g.opts = digestlog.Options{FS: fsys, RunID: "a", Signer: signer, SegmentSize: 8 << 10}
	check(t, vfs.MkdirAll(fsys, g.dir.Telemetry(), 0o755))
	return g
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin opens a generation. Somebody may look between any two of its steps.
func (g *grower) begin(gen uint32, behind uint64) {
	if g.log != nil {
		check(g.t, g.log.Close())
	}
	g.gen = gen
	schema, err := record.NewSchema("test.v1", record.Field{Name: "loss", Class: record.Metric}, record.Field{Name: "rho", Class: record.Digest})
	check(g.t, err)
	m := rundir.Manifest{RunID: "a", Generation: gen, Created: time.Unix(1.8e9, 0), Schema: string(schema.Text()), DigestEvery: 1, Signer: g.key}
	if gen > 0 {
		m.Resumed = &rundir.Resumed{Generation: gen - 1, Step: behind, SnapshotSHA256: rundir.Hash{1}}
	}
	_, err = rundir.WriteManifest(g.fs, g.dir, m)
	check(g.t, err)
	if gen > 0 {
		g.look()
	}
	g.log, err = digestlog.Open(g.dir.Digests(), g.opts)
	check(g.t, err)
	if gen > 0 { // what was found out about the generation before
		g.gen--
		g.add(digestlog.Entry{Kind: digestlog.KindLost, Seq: 70, From: 70, To: 80, Reason: record.LostVanished})
		g.gen++
	}
	g.add(digestlog.Entry{Kind: digestlog.KindOpen, Resumed: gen > 0})
	if gen > 0 {
		g.add(digestlog.Entry{Kind: digestlog.KindRewind, Target: behind, FromGeneration: gen - 1, SHA256: [32]byte{1}})
	}
}

func (g *grower) add(e digestlog.Entry) {
	e.Generation = g.gen
	_, err := g.log.Append(&e)
	check(g.t, err)
	check(g.t, g.log.Sync())
	g.look()
}

// steps adds the steps of n records from seq on, some of them lost.
func (g *grower) steps(rng *rand.Rand, seq, step uint64, n uint64) {
	for i := uint64(0); i < n; i++ {
		switch rng.IntN(10) {
		case 0:
			g.add(digestlog.Entry{Kind: digestlog.KindLost, Seq: seq + i, From: seq + i, To: seq + i + 3, Reason: record.LostOverrun})
			i += 2
		case 1:
			g.add(digestlog.Entry{Kind: digestlog.KindSnapshot, Seq: seq + i, Step: step + i, Size: 7, Name: "x.snap"})
		default:
			g.add(digestlog.Entry{Kind: digestlog.KindStep, Seq: seq + i, Step: step + i, Digests: [][32]byte{{byte(i)}}})
		}
	}
}

// again is what a look at a log prints when all of it is read each time, but for the first seen entries.
func again(t *testing.T, a *app, dir rundir.Dir, seen *uint64) (lines []string) {
	line, err := audit.Open(a.fs, dir.Path())
	check(t, err)
	at := position{begin: line.Begin}
	for item, err := range digestlog.Entries(a.fs, dir.Digests()) {
		check(t, err)
		step, ok := at.stepOf(&item.Entry)
		if item.Index < *seen {
			continue
		}
		*seen = item.Index + 1
		lines = append(lines, fmt.Sprint(item.Index, " ", item.Entry.Kind, " ", ok && line.Superseded(item.Entry.Generation, step)))
	}
	return lines
}

// TestLogFollow wants of a log that grows, through two resumes, what reading all of it again at each look would print.
func TestLogFollow(t *testing.T) {
	marked := 0
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var out bytes.Buffer
		a := &app{fs: vfs.NewMem(), out: &out, err: &out, json: true, now: time.Now}
		g := newGrower(t, a.fs)
		p := &logPrinter{app: a, log: digestlog.NewFollower(a.fs, g.dir.Digests())}
		p.at.begin = func(generation uint32) uint64 { return p.line.Begin(generation) }
		var want []string
		var seen uint64
		often := 1 + rng.IntN(10)
		look := func() {
			want = append(want, again(t, a, g.dir, &seen)...)
			check(t, p.read(g.dir))
		}
		g.look = func() {
			if rng.IntN(often) == 0 {
				look()
			}
		}
		g.begin(0, 0)
		g.steps(rng, 0, 1, 60)
		g.begin(1, 40)
		g.add(digestlog.Entry{Kind: digestlog.KindLost, From: 0, To: 3, Reason: record.LostOverrun})
		g.steps(rng, 3, 44, uint64(rng.IntN(8)))
		behind := 35 + uint64(rng.IntN(10))
		g.begin(2, behind)
		g.steps(rng, 0, behind+1, 20)
		g.add(digestlog.Entry{Kind: digestlog.KindEnd, Status: digestlog.StatusClean, Emitted: 20, EmittedKnown: true})
		check(t, g.log.Close())
		look()
		check(t, p.log.Close())
		var got []string
		for line := range strings.Lines(out.String()) {
			var l logLine
			check(t, json.Unmarshal([]byte(line), &l))
			got = append(got, fmt.Sprint(l.Index, " ", l.Kind, " ", l.Superseded))
			if l.Superseded {
				marked++
			}
		}
		if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
			t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, g, w)
		}
		if !p.ended {
			t.Errorf("seed %d: the end was not seen", seed)
		}
	}
	if marked == 0 {
		t.Error("nothing was superseded")
	}
}

// TestPositionRestart wants where a generation begins taken in as soon as it is known, and not later.
func TestPositionRestart(t *testing.T) {
	begin := uint64(0)
	p := position{begin: func(uint32) uint64 { return begin }}
	p.stepOf(&digestlog.Entry{Kind: digestlog.KindOpen, Generation: 1})
	begin = 40
	p.restart()
	if step, _ := p.stepOf(&digestlog.Entry{Kind: digestlog.KindLost, Generation: 1, From: 0, To: 2}); step != 41 {
		t.Errorf("the first record lost has step %d, want 41", step)
	}
	p.stepOf(&digestlog.Entry{Kind: digestlog.KindStep, Generation: 1, Seq: 2, Step: 50})
	p.restart()
	if step, _ := p.stepOf(&digestlog.Entry{Kind: digestlog.KindLost, Generation: 1, From: 3, To: 4}); step != 51 {
		t.Errorf("the record lost behind step 50 has step %d, want 51", step)
	}
}
