package compare_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/compare"
	"github.com/usp-project/usp/internal/environ"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

const runID = "20261122T201833-9f3kq"

// program is a producer and its recorder: what it computes at a step, and how it is logged.
type program struct {
	t       testing.TB
	fsys    vfs.FS
	dir     string
	log     *digestlog.Log
	fields  []record.Field
	plan    record.PlanOptions
	env     map[string]string
	rho     func(step uint64) []float64
	cost    func(step uint64) float64
	flags   func(step uint64) uint64
	segment int64

	schema     *record.Schema
	prober     *record.Prober
	digester   *record.Digester
	values     *record.Values
	every      uint64
	generation uint32
	seq        uint64
}

// weights are four numbers that sum to 1 and move from step to step.
func weights(step uint64) []float64 {
	w, sum := make([]float64, 4), 0.0
	for i := range w {
		w[i] = 1 + math.Abs(math.Sin(float64(step)*0.37+float64(i)))
		sum += w[i]
	}
	for i := range w {
		w[i] /= sum
	}
	return w
}

func newProgram(t testing.TB, fsys vfs.FS, dir string) *program {
	return &program{
		t: t, fsys: fsys, dir: dir,
		fields: []record.Field{
			{Name: "loss", Class: record.Metric}, {Name: "flags", Class: record.Flag, Type: record.Uint64},
			{Name: "rho", Class: record.Digest, Len: 4}, {Name: "cost", Class: record.Digest},
		},
		plan: record.PlanOptions{Every: 1, Levels: record.DefaultLevels(), Floor: record.DefaultFloor, Key: record.PublicAuditKey(), Weights: []string{"rho"}},
		env:  map[string]string{"goarch": "amd64"},
		rho:  weights, cost: func(step uint64) float64 { return 3 + math.Cos(float64(step)) }, flags: func(uint64) uint64 { return 0 },
		segment: 2 << 20,
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin opens the log and a generation, resumed behind a step if resumed is not nil.
func (p *program) begin(generation uint32, resumed *uint64) {
	p.t.Helper()
	var err error
	if p.log == nil {
		p.log, err = digestlog.Open(rundir.At(p.dir).Digests(), digestlog.Options{
			FS: p.fsys, RunID: runID, SegmentSize: p.segment, Now: func() time.Time { return time.Unix(0, 0) },
		})
		check(p.t, err)
	}
	p.schema, err = record.NewSchema("test.v1", p.fields...)
	check(p.t, err)
	plan, err := record.NewPlan(p.schema, p.plan)
	check(p.t, err)
	p.prober, p.digester, p.values = record.NewProber(p.schema, plan, p.plan.Key), record.NewDigester(p.schema), record.NewValues(p.schema)
	p.every, p.generation, p.seq = plan.Every, generation, 0
	env, err := environ.Encode(p.env)
	check(p.t, err)
	ext := digestlog.AppendBlock(nil, digestlog.TagPlan, plan.Text())
	if p.env != nil {
		ext = digestlog.AppendBlock(ext, digestlog.TagEnvironment, env)
	}
	p.append(&digestlog.Entry{Kind: digestlog.KindOpen, Generation: generation, Schema: p.schema.Sum(), Resumed: resumed != nil, Ext: ext})
	if resumed != nil {
		p.append(&digestlog.Entry{Kind: digestlog.KindRewind, Generation: generation, Target: *resumed, SHA256: [32]byte{1}})
	}
}

func (p *program) append(e *digestlog.Entry) {
	p.t.Helper()
	_, err := p.log.Append(e)
	check(p.t, err)
}

// steps computes and logs the steps [from, to).
func (p *program) steps(from, to uint64) {
	p.t.Helper()
	for step := from; step < to; step++ {
		if p.seq++; step%p.every != 0 {
			continue
		}
		for name, set := range map[string]func(i int){
			"rho":   func(i int) { p.values.SetFloat64s(i, p.rho(step)) },
			"cost":  func(i int) { p.values.SetFloat64(i, p.cost(step)) },
			"flags": func(i int) { p.values.SetUint64(i, p.flags(step)) },
		} {
			if i, ok := p.schema.Index(name); ok {
				set(i)
			}
		}
		payload := p.values.Payload(step, 0)
		e := digestlog.Entry{Kind: digestlog.KindStep, Generation: p.generation, Step: step, Seq: p.seq - 1}
		e.Digests, e.Nonfinite = p.digester.Append(nil, payload)
		e.Ext = digestlog.AppendBlock(nil, digestlog.TagLadder, p.prober.AppendLadders(nil, payload))
		e.Ext = digestlog.AppendBlock(e.Ext, digestlog.TagInvariants, p.prober.AppendInvariants(nil, payload))
		p.append(&e)
		if step%100 == 99 {
			check(p.t, p.log.Sync())
		}
	}
}

// lose says that the steps [from, to) of the first generation were lost.
func (p *program) lose(from, to uint64) {
	p.append(&digestlog.Entry{Kind: digestlog.KindLost, Generation: p.generation, Seq: p.seq, From: p.seq, To: p.seq + to - from, Reason: record.LostOverrun})
	p.seq += to - from
}

func (p *program) end() {
	p.t.Helper()
	p.append(&digestlog.Entry{Kind: digestlog.KindEnd, Generation: p.generation, Status: digestlog.StatusClean})
	check(p.t, p.log.Sync())
	check(p.t, p.log.Close())
}

// run is a program from its first step to its last.
func (p *program) run(steps uint64) {
	p.t.Helper()
	p.begin(0, nil)
	p.steps(0, steps)
	p.end()
}

// pair runs two programs, of which change makes the second another one, and compares them.
func pair(t testing.TB, steps uint64, change func(p *program), o compare.Options) *compare.Comparison {
	t.Helper()
	mem := vfs.NewMem()
	newProgram(t, mem, "/a").run(steps)
	b := newProgram(t, mem, "/b")
	change(b)
	b.run(steps)
	return held(t, mem, o)
}

func held(t testing.TB, mem vfs.FS, o compare.Options) *compare.Comparison {
	t.Helper()
	c, err := compare.Compare(context.Background(), mem, "/a", "/b", o)
	check(t, err)
	return c
}
