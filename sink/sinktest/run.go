// Package sinktest tells whether a sink keeps what package sink promises, whatever its destination is. Each sink's tests
// call Test.
package sinktest

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// Schema has a field of every class and type, and a digest field, whose values no destination may see.
func Schema() *record.Schema {
	s, err := record.NewSchema("usp.sinktest.v1",
		record.Field{Name: "loss", Class: record.Metric, Type: record.Float64, Len: 1},
		record.Field{Name: "small", Class: record.Metric, Type: record.Float32, Len: 1},
		record.Field{Name: "count", Class: record.Metric, Type: record.Uint64, Len: 1},
		record.Field{Name: "delta", Class: record.Metric, Type: record.Int64, Len: 1},
		record.Field{Name: "pair", Class: record.Metric, Type: record.Float64, Len: 2},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64, Len: 1},
		record.Field{Name: "rho", Class: record.Digest, Type: record.Float64, Len: 3},
	)
	if err != nil {
		panic(err)
	}
	return s
}

// A Recording is a run directory that is written as a recorder does, without one.
type Recording struct {
	Dir    rundir.Dir
	Schema *record.Schema

	t          testing.TB
	fsys       vfs.FS
	log        *digestlog.Log
	generation uint32
	writer     *segment.Writer
	ordinal    uint64
	seq, step  uint64
}

// Record begins a run in a new directory.
func Record(t testing.TB) *Recording { return RecordSchema(t, Schema()) }

// RecordSchema is Record with another schema.
func RecordSchema(t testing.TB, s *record.Schema) *Recording {
	t.Helper()
	return RecordRun(t, "20261129T000000-s1nk5", s)
}

// RecordRun is RecordSchema with another run id.
func RecordRun(t testing.TB, id string, s *record.Schema) *Recording {
	t.Helper()
	r := &Recording{Dir: rundir.At(filepath.Join(t.TempDir(), id)), Schema: s, t: t, fsys: vfs.OS()}
	for _, dir := range []string{r.Dir.Path(), r.Dir.Telemetry(), r.Dir.Digests()} {
		r.must(vfs.MkdirAll(r.fsys, dir, 0o700))
	}
	var err error
	r.log, err = digestlog.Open(r.Dir.Digests(), digestlog.Options{RunID: id, SegmentSize: 1 << 20})
	r.must(err)
	r.manifest(nil)
	t.Cleanup(func() {
		_ = r.log.Close() // the test is over
		if r.writer != nil {
			_ = r.writer.Close() // the test is over
		}
	})
	return r
}

func (r *Recording) manifest(from *rundir.Resumed) {
	r.t.Helper()
	sum, err := rundir.WriteManifest(r.fsys, r.Dir, rundir.Manifest{
		Format: rundir.Format, Version: rundir.Version, RunID: r.Dir.ID(), Generation: r.generation,
		Created: time.Unix(1_700_000_000, 0).UTC(), Schema: string(r.Schema.Text()), SchemaSHA256: r.Schema.Sum(),
		Ring:   rundir.Ring{Name: "test.ring", Slots: 64, SlotSize: 128},
		Signer: "sinktest+00000000+AA", Resumed: from,
	})
	r.must(err)
	_, err = r.log.Append(&digestlog.Entry{Kind: digestlog.KindOpen, Generation: r.generation, Manifest: sum, Schema: r.Schema.Sum(), Resumed: from != nil})
	r.must(err)
	if from != nil {
		_, err = r.log.Append(&digestlog.Entry{
			Kind: digestlog.KindRewind, Generation: r.generation, Step: from.Step, Target: from.Step, FromGeneration: from.Generation, SHA256: [32]byte{1},
		})
		r.must(err)
	}
	r.must(r.log.Sync())
}

func (r *Recording) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// Emit stores so many records. Each word can be told from its step, see Payload.
func (r *Recording) Emit(n int) {
	r.t.Helper()
	r.EmitWords(n, func(step uint64) []uint64 { return Payload(r.Schema, step) })
}

// EmitWords is Emit with other payloads.
func (r *Recording) EmitWords(n int, payload func(step uint64) []uint64) {
	r.t.Helper()
	for range n {
		r.step++
		r.append(record.AppendRecord(nil, r.generation, r.seq, payload(r.step)[:r.Schema.StoredWords()]))
		r.seq++
	}
	r.must(r.writer.Sync())
}

// Lose counts so many records as lost.
func (r *Recording) Lose(n uint64) {
	r.t.Helper()
	r.append(record.AppendLost(nil, r.generation, r.seq, r.seq+n, record.LostOverrun))
	r.seq += n
	r.step += n
	r.must(r.writer.Sync())
}

func (r *Recording) append(frame []byte) {
	r.t.Helper()
	if r.writer == nil {
		meta := record.StreamMeta{Generation: r.generation, Schema: r.Schema}
		w, err := segment.Create(r.Dir.Telemetry(), r.ordinal, segment.Options{
			FS: r.fsys, Kind: segment.KindTelemetry, RunID: r.Dir.ID(), Meta: meta.Append(nil), Size: 32 << 20, Index: new(record.Summarizer),
		})
		r.must(err)
		r.writer = w
	}
	r.must(r.writer.Append(frame))
	r.ordinal++
}

// Roll seals the segment; what follows goes into the next.
func (r *Recording) Roll() {
	r.t.Helper()
	if r.writer != nil {
		_, err := r.writer.Seal()
		r.must(err)
		r.writer = nil
	}
}

// Rewind ends the generation and begins the next one behind an earlier step.
func (r *Recording) Rewind(step uint64) {
	r.t.Helper()
	r.Roll()
	r.generation++
	r.seq, r.step = 0, step
	r.manifest(&rundir.Resumed{Generation: r.generation - 1, Step: step})
}

// Frames is the number of frames so far.
func (r *Recording) Frames() uint64 { return r.ordinal }

// canary is in each word of a digest field, and must not be anywhere else.
const canary = 0x7ed1_c0de_5ec2_e700

// Payload is the record of a step, digest fields with it: every stored word is another one, exactly representable in its
// type, and small enough to be exact as a float32.
func Payload(s *record.Schema, step uint64) []uint64 {
	words := make([]uint64, s.Words())
	words[0], words[1] = step, uint64(1_700_000_000_000_000_000+int64(step)*1_000_000)
	for i := range s.Len() {
		f := s.Field(i)
		for j := range f.Len {
			x := step%4096*64 + uint64(i*8+j)
			w := &words[s.Offset(i)+j]
			switch {
			case f.Class == record.Digest:
				*w = canary + uint64(j)
			case f.Type == record.Float64, f.Type == record.Float32:
				*w = math.Float64bits(float64(x) + 0.5)
			case f.Type == record.Int64:
				*w = uint64(-int64(x))
			default:
				*w = x
			}
		}
	}
	return words
}

// Canaries are what a digest field looks like in the places where one might find it.
func Canaries() []string {
	return []string{fmt.Sprint(uint64(canary)), fmt.Sprintf("%x", uint64(canary)), fmt.Sprint(math.Float64frombits(canary)), "rho"}
}
