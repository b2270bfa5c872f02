package audit

import (
	"io"
	"math/rand/v2"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// TestStepList: the entries come again as they were, whether they are kept or read again, and with those that have come meanwhile.
func TestStepList(t *testing.T) {
	for name, c := range map[string]struct {
		odd      int // every so manieth step is missing
		steps    int
		progress bool
		full     bool
	}{
		"even":                 {1 << 30, 20_000, false, false},
		"gaps":                 {100, 20_000, false, false},
		"too many runs":        {2, 40_000, false, true},
		"too many, and more":   {2, 40_000, true, true},
		"more in the meantime": {100, 20_000, true, false},
		"none":                 {1, 10, false, false},
	} {
		m := vfs.NewMem()
		j := &judge{fsys: m, dir: rundir.At("/run")}
		j.InProgress = c.progress
		l, err := digestlog.Open(j.dir.Digests(), digestlog.Options{FS: m, RunID: "run", SegmentSize: 1 << 20})
		must(t, err)
		rng := rand.New(rand.NewPCG(1, 1))
		write := func(from, to int) {
			for i := from; i < to; i++ {
				if rng.IntN(c.odd) == 0 {
					continue
				}
				_, err := l.Append(&digestlog.Entry{Kind: digestlog.KindStep, Generation: uint32(i / 15_000), Step: 3 * uint64(i), Seq: uint64(i)})
				must(t, err)
			}
			must(t, l.Sync())
		}
		write(0, c.steps)
		r := digestlog.NewStepReader(m, j.dir.Digests())
		for {
			s, err := r.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			j.steps.add(&s)
		}
		must(t, r.Close())
		if c.progress {
			write(c.steps, c.steps+1000)
		}
		r = digestlog.NewStepReader(m, j.dir.Digests())
		for n := 0; ; n++ {
			want, err := r.Next()
			var got digestlog.StepEntry
			ok, nextErr := j.nextStep(&got)
			if nextErr != nil || ok != (err == nil) || ok && (got.Generation != want.Generation || got.Step != want.Step || got.Seq != want.Seq) {
				t.Fatalf("%s: entry %d is %+v %v %v, want %+v", name, n, got, ok, nextErr, want)
			}
			if !ok {
				break
			}
		}
		if j.steps.full != c.full || len(j.steps.runs) > stepRuns {
			t.Errorf("%s: %d runs, full %v", name, len(j.steps.runs), j.steps.full)
		}
		must(t, r.Close())
		must(t, j.steps.close())
		must(t, l.Abort())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
