package web

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/snapshot"
)

var created = time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)

// canary is what digest fields of a fixture hold, and no page may.
const canary = 0.123456789123

// fixture writes a run directory as a recorder does.
type fixture struct {
	t      testing.TB
	fs     vfs.FS
	dir    rundir.Dir
	schema *record.Schema
	set    func(v *record.Values, step uint64)
	signer note.Signer
	key    string
	log    *digestlog.Log
	seg    *segment.Writer
	lock   interface{ Close() error }

	ordinal, seq, stored, lost uint64
	generation                 uint32
	entries                    []digestlog.Entry
}

// experts of the fixture's predictor.
const experts = 10

func predictorFixture(t testing.TB, fsys vfs.FS, runs, name string) *fixture {
	return newFixture(t, fsys, runs, name, predictor.SchemaWithWeights(experts), func(v *record.Values, step uint64) {
		out := predictor.Output{CusumPos: float64(step % 7), CusumNeg: 1, Threshold: 5, Entropy: 1 / float64(step+1), OTCost: float64(step), Weights: make([]float64, experts)}
		for i := range out.Weights {
			out.Weights[i] = 1. / experts
		}
		if step%20 == 6 {
			out.Flags = predictor.FlagAlarmUp
		}
		predictor.Fill(v, &out)
		for i := range v.Schema().Len() {
			switch f := v.Schema().Field(i); {
			case f.Class != record.Digest:
			case f.Len == 1:
				v.SetFloat64(i, canary)
			default:
				v.SetFloat64s(i, append([]float64{canary}, make([]float64, experts-1)...))
			}
		}
	})
}

func newFixture(t testing.TB, fsys vfs.FS, runs, name string, s *record.Schema, set func(v *record.Values, step uint64)) *fixture {
	t.Helper()
	f := &fixture{t: t, fs: fsys, dir: rundir.At(filepath.Join(runs, name)), schema: s, set: set}
	var err error
	f.signer, f.key, err = digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", rand.NewChaCha8([32]byte{7}))
	f.must(err)
	f.must(vfs.MkdirAll(fsys, f.dir.Telemetry(), 0o755))
	f.must(vfs.MkdirAll(fsys, f.dir.Snapshots(), 0o755))
	f.log, err = digestlog.Open(f.dir.Digests(), digestlog.Options{FS: fsys, RunID: runID(name), Signer: f.signer, SegmentSize: 64 << 10, Now: func() time.Time { return created }})
	f.must(err)
	f.lock, err = fsys.Lock(f.dir.Path())
	f.must(err)
	f.begin(nil)
	t.Cleanup(func() {
		if f.seg != nil {
			_ = f.seg.Close() // the test is over
		}
		f.unlock()
	})
	return f
}

// runID is the run id of a directory: its name, if that can be one.
func runID(name string) string {
	if rundir.ValidID(name) {
		return name
	}
	return "20261129T000000-other"
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) unlock() {
	if f.lock != nil {
		f.must(f.lock.Close())
		f.lock = nil
	}
}

func (f *fixture) append(e digestlog.Entry) {
	f.t.Helper()
	e.Generation = f.generation
	_, err := f.log.Append(&e)
	f.must(err)
}

func (f *fixture) begin(resumed *rundir.Resumed) {
	f.t.Helper()
	f.seq, f.stored, f.lost = 0, 0, 0
	sum, err := rundir.WriteManifest(f.fs, f.dir, rundir.Manifest{
		RunID: runID(f.dir.ID()), Generation: f.generation, Created: created, Schema: string(f.schema.Text()), DigestEvery: 1, Signer: f.key, Resumed: resumed,
		Host: rundir.Host{Name: `<b id="host">host</b>`},
	})
	f.must(err)
	f.append(digestlog.Entry{Kind: digestlog.KindOpen, Manifest: sum, Schema: f.schema.Sum(), Resumed: resumed != nil})
	if resumed != nil {
		f.append(digestlog.Entry{Kind: digestlog.KindRewind, Target: resumed.Step, FromGeneration: resumed.Generation, SHA256: resumed.SnapshotSHA256})
	}
	f.sync()
	f.segment()
}

func (f *fixture) segment() {
	f.t.Helper()
	meta := record.StreamMeta{Generation: f.generation, Stored: f.stored, Lost: f.lost, Schema: f.schema}
	var err error
	f.seg, err = segment.Create(f.dir.Telemetry(), f.ordinal, segment.Options{
		FS: f.fs, Kind: segment.KindTelemetry, RunID: runID(f.dir.ID()), Meta: meta.Append(nil), Size: 1 << 20, Index: new(record.Summarizer), Now: func() time.Time { return created },
	})
	f.must(err)
}

// emit stores the records of the steps from to until.
func (f *fixture) emit(from, until uint64) {
	f.t.Helper()
	v := record.NewValues(f.schema)
	digester := record.NewDigester(f.schema)
	for step := from; step <= until; step++ {
		f.set(v, step)
		p := v.Payload(step, int64(step)*int64(time.Second))
		f.must(f.seg.Append(record.AppendRecord(nil, f.generation, f.seq, p[:f.schema.StoredWords()])))
		if len(f.schema.DigestFields()) > 0 {
			sums, nonfinite := digester.Append(nil, p)
			f.entries = append(f.entries, digestlog.Entry{Kind: digestlog.KindStep, Step: step, Seq: f.seq, Nonfinite: nonfinite, Digests: sums})
		}
		f.seq++
		f.stored++
		f.ordinal++
	}
	f.commit()
}

func (f *fixture) lose(n uint64) {
	f.t.Helper()
	f.must(f.seg.Append(record.AppendLost(nil, f.generation, f.seq, f.seq+n, record.LostOverrun)))
	f.entries = append(f.entries, digestlog.Entry{Kind: digestlog.KindLost, Seq: f.seq, From: f.seq, To: f.seq + n, Reason: record.LostOverrun})
	f.seq += n
	f.lost += n
	f.ordinal++
	f.commit()
}

func (f *fixture) commit() {
	f.t.Helper()
	f.must(f.seg.Sync())
	for _, e := range f.entries {
		f.append(e)
	}
	f.entries = nil
	f.sync()
}

func (f *fixture) sync() {
	f.t.Helper()
	f.must(f.log.Sync())
	_, err := f.log.SignHead()
	f.must(err)
}

// roll seals the segment and begins another.
func (f *fixture) roll() {
	f.t.Helper()
	f.seal()
	f.segment()
}

func (f *fixture) seal() {
	f.t.Helper()
	s, err := f.seg.Seal()
	f.must(err)
	f.seg = nil
	f.append(digestlog.Entry{Kind: digestlog.KindSeal, Stream: uint8(segment.KindTelemetry), Base: s.Base, Count: s.Count, Size: uint64(s.Size), SHA256: s.SHA256, Name: s.Name})
	f.sync()
}

func (f *fixture) snapshot(step uint64) {
	f.t.Helper()
	info, err := snapshot.Write(f.dir.Snapshots(), snapshot.Meta{
		RunID: runID(f.dir.ID()), Generation: f.generation, Step: step, Seq: f.seq, Schema: f.schema.Sum(), TreeSize: f.log.Size(), TreeRoot: f.log.Root(), Created: created,
	}, []snapshot.Section{{Name: "state", Data: []byte("x")}}, snapshot.Options{FS: f.fs})
	f.must(err)
	f.append(digestlog.Entry{Kind: digestlog.KindSnapshot, Step: step, Seq: f.seq, SHA256: info.SHA256, Size: uint64(info.Size), Name: info.Name})
	f.sync()
}

// rewind ends the generation as a crash does and begins another behind a step.
func (f *fixture) rewind(step uint64) {
	f.t.Helper()
	f.seal()
	f.append(digestlog.Entry{Kind: digestlog.KindEnd, Status: digestlog.StatusCrashed, Emitted: f.stored + f.lost, Stored: f.stored, Lost: f.lost, EmittedKnown: true})
	f.sync()
	f.generation++
	f.begin(&rundir.Resumed{Generation: f.generation - 1, Step: step, SnapshotSHA256: rundir.Hash{1}})
}

// end closes the run.
func (f *fixture) end() {
	f.t.Helper()
	f.seal()
	f.append(digestlog.Entry{Kind: digestlog.KindEnd, Status: digestlog.StatusClean, Emitted: f.stored + f.lost, Stored: f.stored, Lost: f.lost, EmittedKnown: true})
	f.sync()
	f.must(f.log.Close())
	f.unlock()
}

// cursor writes the cursor file of a sink.
func (f *fixture) cursor(name, text string) {
	f.t.Helper()
	if err := f.fs.Mkdir(f.dir.Sinks(), 0o755); !errors.Is(err, fs.ErrExist) {
		f.must(err)
	}
	f.must(vfs.Replace(f.fs, f.dir.Sink(name), []byte(text), 0o600))
}
