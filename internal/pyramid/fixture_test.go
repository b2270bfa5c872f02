package pyramid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

const (
	runID  = "20261129T001254-pyr42"
	runDir = "/runs/" + runID
)

// fataler is a test of either kind.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func check(t fataler, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// row is one record that was stored, and what was lost in front of it.
type row struct {
	generation uint32
	words      []uint64
	lost       uint64
	late       []late
}

// late is what was lost behind a record in a segment without any, and how far a range must reach to have it.
type late struct{ step, lost uint64 }

// piece is what is in one segment.
type piece struct {
	generation uint32
	rows       []row
	lost       uint64 // behind the last row
}

// fixture writes a run as a recorder does, and remembers what it wrote.
type fixture struct {
	created time.Time // of the manifest
	laid    time.Time // of the segments

	t      fataler
	fs     vfs.FS
	dir    rundir.Dir
	schema *record.Schema
	log    *digestlog.Log
	signer note.Signer
	rng    *rand.Rand

	writer     *segment.Writer
	generation uint32
	ordinal    uint64
	seq, step  uint64
	pieces     []piece
	begins     map[uint32]uint64 // step behind which a generation began
}

func testSchema(t fataler) *record.Schema {
	s, err := record.NewSchema("usp.pyramid.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "small", Class: record.Metric, Type: record.Float32},
		record.Field{Name: "count", Class: record.Metric, Type: record.Uint64},
		record.Field{Name: "delta", Class: record.Metric, Type: record.Int64},
		record.Field{Name: "pair", Class: record.Metric, Len: 2},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "rho", Class: record.Digest, Len: 3},
	)
	check(t, err)
	return s
}

func fields() []Field {
	return []Field{{Name: "loss"}, {Name: "small"}, {Name: "count"}, {Name: "delta"}, {Name: "pair"}, {Name: "pair", Element: 1}, {Name: "flags"}}
}

func newFixture(t fataler, fsys vfs.FS, seed uint64) *fixture {
	t.Helper()
	return newFixtureAt(t, fsys, seed, time.Unix(1_700_000_000, 0).UTC(), time.Unix(1_700_000_000, 0))
}

func newFixtureAt(t fataler, fsys vfs.FS, seed uint64, created, laid time.Time) *fixture {
	t.Helper()
	return newFixtureAs(t, fsys, runID, seed, created, laid)
}

func newFixtureAs(t fataler, fsys vfs.FS, id string, seed uint64, created, laid time.Time) *fixture {
	t.Helper()
	f := &fixture{created: created, laid: laid, t: t, fs: fsys, dir: rundir.At(filepath.Join(filepath.Dir(runDir), id)), schema: testSchema(t), begins: map[uint32]uint64{}, rng: rand.New(rand.NewPCG(seed, 7))}
	check(t, vfs.MkdirAll(fsys, f.dir.Telemetry(), 0o755))
	var err error
	f.signer, _, err = digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", rand.NewChaCha8([32]byte{7}))
	check(t, err)
	f.log, err = digestlog.Open(f.dir.Digests(), digestlog.Options{FS: fsys, RunID: id, Signer: f.signer, SegmentSize: 8 << 10})
	check(t, err)
	f.begin(nil)
	return f
}

func (f *fixture) entry(e digestlog.Entry) {
	e.Generation = f.generation
	_, err := f.log.Append(&e)
	check(f.t, err)
}

func (f *fixture) begin(from *rundir.Resumed) {
	sum, err := rundir.WriteManifest(f.fs, f.dir, rundir.Manifest{
		RunID: f.dir.ID(), Generation: f.generation, Created: f.created, Schema: string(f.schema.Text()), Signer: "x", Resumed: from,
	})
	check(f.t, err)
	f.entry(digestlog.Entry{Kind: digestlog.KindOpen, Manifest: sum, Schema: f.schema.Sum(), Resumed: from != nil})
	if from != nil {
		f.entry(digestlog.Entry{Kind: digestlog.KindRewind, Target: from.Step, FromGeneration: from.Generation, SHA256: from.SnapshotSHA256})
	}
	check(f.t, f.log.Sync())
}

// rewind begins the next generation behind a step.
func (f *fixture) rewind(step uint64) {
	f.roll()
	f.generation++
	f.begins[f.generation] = step
	f.seq, f.step = 0, step
	f.begin(&rundir.Resumed{Generation: f.generation - 1, Step: step, SnapshotSHA256: [32]byte{1}})
}

func (f *fixture) append(frame []byte) *piece {
	if f.writer == nil {
		meta := record.StreamMeta{Generation: f.generation, Schema: f.schema}
		w, err := segment.Create(f.dir.Telemetry(), f.ordinal, segment.Options{
			FS: f.fs, Kind: segment.KindTelemetry, RunID: f.dir.ID(), Meta: meta.Append(nil), Size: 16 << 10, Index: new(record.Summarizer),
			Now: func() time.Time { return f.laid },
		})
		check(f.t, err)
		f.writer = w
		f.pieces = append(f.pieces, piece{generation: f.generation})
	}
	check(f.t, f.writer.Append(frame))
	f.ordinal++
	return &f.pieces[len(f.pieces)-1]
}

// emit stores so many records; stride is the largest distance of two steps.
func (f *fixture) emit(n, stride int) {
	for range n {
		f.step += 1 + f.rng.Uint64N(uint64(stride))
		words := []uint64{f.step, uint64(1_700_000_000_000_000_000 + int64(f.step)*1_000_000)}
		for _, k := range kindsOf(f.schema) {
			words = append(words, f.word(k))
		}
		p := f.append(record.AppendRecord(nil, f.generation, f.seq, words))
		p.rows = append(p.rows, row{generation: f.generation, words: words, lost: p.lost})
		p.lost = 0
		f.seq++
	}
	f.flush()
}

// word is any value, the odd ones among them.
func (f *fixture) word(k kind) uint64 {
	x := f.rng.NormFloat64()
	switch r := f.rng.IntN(60); {
	case k == flags:
		return f.rng.Uint64() & f.rng.Uint64() & f.rng.Uint64() & f.rng.Uint64()
	case k == signed:
		return uint64(int64(x * 1000))
	case k == unsigned:
		return f.rng.Uint64N(1000)
	case r == 0:
		return math.Float64bits(math.NaN()) | f.rng.Uint64N(1000)
	case r == 1:
		return 1 << 63
	case r == 2:
		return 0
	case r == 3 && f.rng.IntN(20) == 0:
		return math.Float64bits(math.Inf(int(f.rng.IntN(2))*2 - 1))
	}
	return math.Float64bits(float64(float32(x)))
}

func (f *fixture) lose(n uint64) {
	p := f.append(record.AppendLost(nil, f.generation, f.seq, f.seq+n, record.LostOverrun))
	p.lost += n
	f.seq += n
	f.flush()
}

func (f *fixture) flush() {
	if f.writer != nil {
		check(f.t, f.writer.Sync())
	}
}

// roll seals the segment.
func (f *fixture) roll() {
	if f.writer == nil {
		return
	}
	_, err := f.writer.Seal()
	check(f.t, err)
	f.writer = nil
}

func (f *fixture) close() {
	if f.writer != nil {
		check(f.t, f.writer.Close())
		f.writer = nil
	}
	check(f.t, f.log.Close())
}

// effective is the timeline by package audit, with what was lost in front of each record and behind the last of its segment.
func (f *fixture) effective() (rows []row) {
	line, err := audit.Open(f.fs, f.dir.Path())
	check(f.t, err)
	type at struct {
		generation uint32
		step       uint64
	}
	on := map[at]bool{}
	for r, err := range line.Records() {
		check(f.t, err)
		on[at{r.Generation, r.Step()}] = true
	}
	cutAt := func(generation uint32) uint64 { // the last step that later ones leave of it
		at := uint64(math.MaxUint64)
		for g, step := range f.begins {
			if g > generation {
				at = min(at, step)
			}
		}
		return at
	}
	wait, overridden := uint64(0), map[uint32]bool{} // the last record of a generation is
	whole := false                                   // the last of rows is the last of its segment
	for _, p := range f.pieces {
		if len(p.rows) == 0 {
			gone, known := overridden[p.generation]
			if !known {
				gone = f.begins[p.generation] >= cutAt(p.generation)
			}
			switch {
			case gone:
			case len(rows) == 0:
				wait += p.lost
			default:
				last := &rows[len(rows)-1]
				step := last.words[0]
				if !whole {
					step = cutAt(last.generation)
				}
				last.late = append(last.late, late{step, p.lost})
			}
			continue
		}
		top, skipped := uint64(0), uint64(0)
		for i, r := range p.rows {
			if r.words[0] <= top { // out of order: no timeline has it
				skipped += r.lost
				continue
			}
			top = r.words[0]
			r.lost, skipped = r.lost+skipped, 0
			if i == len(p.rows)-1 {
				r.lost += p.lost
			}
			overridden[p.generation] = !on[at{r.generation, r.words[0]}]
			if !overridden[p.generation] {
				r.lost += wait
				wait = 0
				rows = append(rows, r)
				whole = i == len(p.rows)-1
			}
		}
	}
	return rows
}

// naive is the column of some records.
func naive(rows []row, k kind, at int) Column {
	c := Column{
		FromStep: rows[0].words[0], UntilStep: rows[len(rows)-1].words[0], FromTime: int64(rows[0].words[1]),
		Generation: rows[len(rows)-1].generation, Count: uint64(len(rows)), Min: math.NaN(), Max: math.NaN(), and: math.MaxUint64,
	}
	sum, n := 0.0, 0.0
	for _, r := range rows {
		c.Lost += r.lost
		w := r.words[headWords+at]
		x := k.number(w)
		c.Last = x
		switch {
		case k == flags:
			c.and &= w
			c.Bits |= w
			n++
			if w != 0 {
				sum++
			}
		case x != x:
			c.NaNs++
		default:
			n++
			sum += x
			if c.Min != c.Min || less(x, c.Min) {
				c.Min = x
			}
			if c.Max != c.Max || less(c.Max, x) {
				c.Max = x
			}
		}
	}
	if c.Mean = sum / n; n == 0 {
		c.Mean = math.NaN()
	}
	if k != flags {
		c.and = 0
	} else {
		c.Min, c.Max = float64(c.and), float64(c.Bits)
	}
	return c
}

// less orders -0 before 0.
func less(x, y float64) bool {
	return x < y || x == y && math.Signbit(x) && !math.Signbit(y)
}

// differ says how two columns differ; means may by rounding.
func differ(got, want Column) string {
	if math.Abs(got.Mean-want.Mean) <= 1e-9*(1+math.Abs(want.Mean)) || math.IsInf(want.Mean, 0) && got.Mean == want.Mean || got.Mean != got.Mean && want.Mean != want.Mean {
		got.Mean, want.Mean = 0, 0
	}
	for _, p := range [][2]*float64{{&got.Min, &want.Min}, {&got.Max, &want.Max}, {&got.Last, &want.Last}} {
		if math.Float64bits(*p[0]) == math.Float64bits(*p[1]) || *p[0] != *p[0] && *p[1] != *p[1] {
			*p[0], *p[1] = 0, 0
		}
	}
	if got == want {
		return ""
	}
	return fmt.Sprintf("%+v, want %+v", got, want)
}

// compare asks for a range and wants exactly the records of it.
func compare(t fataler, q *Query, f *fixture, rows []row, field Field, from, until uint64, columns int) {
	t.Helper()
	got, err := q.Range(f.ctx(), field, from, until, columns)
	check(t, err)
	judge(t, got, f, rows, field, from, until, columns)
}

// judge wants columns to have exactly the records of a range.
func judge(t fataler, got []Column, f *fixture, rows []row, field Field, from, until uint64, columns int) {
	t.Helper()
	e, _ := element(f.schema, field)
	k := kindsOf(f.schema)[e]
	for len(rows) > 0 && rows[0].words[0] < from {
		rows = rows[1:]
	}
	for len(rows) > 0 && rows[len(rows)-1].words[0] > until {
		rows = rows[:len(rows)-1]
	}
	rows = slices.Clone(rows)
	for i := range rows {
		for _, l := range rows[i].late {
			if until >= l.step {
				rows[i].lost += l.lost
			}
		}
	}
	if len(got) > columns {
		t.Fatalf("%d columns of at most %d", len(got), columns)
	}
	for _, c := range got {
		n := 0
		for n < len(rows) && rows[n].words[0] <= c.UntilStep {
			n++
		}
		if n == 0 {
			t.Fatalf("a column of no records: %+v", c)
		}
		if d := differ(c, naive(rows[:n], k, e)); d != "" {
			t.Fatalf("%v in %d columns from %d until %d: %s", field, columns, from, until, d)
		}
		rows = rows[n:]
	}
	if len(rows) > 0 {
		t.Fatalf("%v in %d columns from %d until %d: %d records are in none, the first has step %d", field, columns, from, until, len(rows), rows[0].words[0])
	}
}

// feeder brings the run to a sink batch by batch.
type feeder struct {
	f    *fixture
	sink *Sink
	in   *sink.Follower
}

func feed(f *fixture, leaf uint32) *feeder {
	s := NewSink(f.fs, f.dir)
	s.leaf = cmp.Or(leaf, defaultLeaf)
	at, err := s.Begin(f.ctx(), sink.Run{ID: runID, Schema: f.schema}, sink.Cursor{})
	check(f.t, err)
	return &feeder{f, s, sink.Follow(f.fs, f.dir, at.Next)}
}

// write brings so many batches, or what there is.
func (d *feeder) write(n int) {
	for range n {
		b, err := d.in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		check(d.f.t, err)
		check(d.f.t, d.sink.Write(d.f.ctx(), b))
	}
}

func (d *feeder) close() {
	check(d.f.t, errors.Join(d.in.Close(), d.sink.Close()))
}

// open opens a query with aggregates of a few records.
func (f *fixture) open(leaf uint32) *Query {
	f.t.Helper()
	q := &Query{opts: QueryOptions{Dir: f.dir, FS: f.fs, Damaged: func(error) {}}, leaf: leaf, room: maxMemory, known: schemas{}}
	check(f.t, q.Refresh(f.ctx()))
	return q
}

func (f *fixture) ctx() context.Context { return context.Background() }
