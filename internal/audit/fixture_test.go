package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/snapshot"
)

const (
	runID  = "20261122T201833-9f3kq"
	runDir = "/runs/" + runID
)

var created = time.Date(2026, 11, 22, 20, 18, 33, 0, time.UTC)

// fixture writes run directories in the order that doc/format/run-directory.md
// asks of a recorder. Its errors are panics of type error.
type fixture struct {
	fs     vfs.FS
	dir    rundir.Dir
	schema *record.Schema
	every  uint64
	value  func(step uint64) float64

	signer note.Signer
	key    string
	log    *digestlog.Log
	seg    *segment.Writer
	base   uint64 // ordinal of the next telemetry frame when seg is nil

	gen          uint32
	seq          uint64
	stored, lost uint64
	entries      []digestlog.Entry // of the pending batch
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func testSchema() *record.Schema {
	s, err := record.NewSchema("test.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "rho", Class: record.Digest, Len: 4},
		record.Field{Name: "cost", Class: record.Digest})
	must(err)
	return s
}

// newFixture makes the run directory of a new run.
func newFixture(fsys vfs.FS) *fixture {
	f := openFixture(fsys)
	must(vfs.MkdirAll(fsys, f.dir.Telemetry(), 0o755))
	must(vfs.MkdirAll(fsys, f.dir.Snapshots(), 0o755))
	f.openLog()
	return f
}

func openFixture(fsys vfs.FS) *fixture {
	f := &fixture{fs: fsys, dir: rundir.At(runDir), schema: testSchema(), every: 2, value: func(step uint64) float64 { return 1 / float64(step+1) }}
	var err error
	f.signer, f.key, err = digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", rand.NewChaCha8([32]byte{7}))
	must(err)
	return f
}

func (f *fixture) openLog() {
	var err error
	f.log, err = digestlog.Open(f.dir.Digests(), digestlog.Options{FS: f.fs, RunID: runID, Signer: f.signer, SegmentSize: 8 << 10, Now: func() time.Time { return created }})
	must(err)
}

func (f *fixture) append(e digestlog.Entry) {
	e.Generation = f.gen
	_, err := f.log.Append(&e)
	must(err)
}

// begin opens a generation: manifest, OPEN, REWIND, head, first segment.
func (f *fixture) begin(gen uint32, resumed *rundir.Resumed) {
	f.gen, f.seq, f.stored, f.lost = gen, 0, 0, 0
	if err := f.fs.Remove(f.dir.Manifest(gen)); !errors.Is(err, fs.ErrNotExist) {
		must(err)
	}
	sum, err := rundir.WriteManifest(f.fs, f.dir, rundir.Manifest{
		RunID: runID, Generation: gen, Created: created, Schema: string(f.schema.Text()), DigestEvery: f.every, Signer: f.key, Resumed: resumed,
	})
	must(err)
	f.append(digestlog.Entry{Kind: digestlog.KindOpen, Manifest: sum, Schema: f.schema.Sum(), Resumed: resumed != nil})
	if resumed != nil {
		f.append(digestlog.Entry{Kind: digestlog.KindRewind, Target: resumed.Step, FromGeneration: resumed.Generation, SHA256: resumed.SnapshotSHA256})
	}
	must(f.log.Sync())
	f.sign()
	f.newSegment()
}

func (f *fixture) sign() {
	_, err := f.log.SignHead()
	must(err)
}

func (f *fixture) newSegment() {
	var err error
	f.seg, err = segment.Create(f.dir.Telemetry(), f.base, segment.Options{
		FS: f.fs, Kind: segment.KindTelemetry, RunID: runID, Meta: f.schema.Text(), Size: 8 << 10, Now: func() time.Time { return created },
	})
	must(err)
}

// emit records steps [from, to).
func (f *fixture) emit(from, to uint64) {
	v := record.NewValues(f.schema)
	for step := from; step < to; step++ {
		x := f.value(step)
		v.SetFloat64(0, x)
		v.SetFloat64s(2, []float64{x, 0.25, 0.25, 0.25})
		v.SetFloat64(3, x*x)
		p := v.Payload(step, int64(step)*1e9)
		must(f.seg.Append(record.AppendRecord(nil, f.gen, f.seq, p[:f.schema.StoredWords()])))
		if step%f.every == 0 {
			sums, nonfinite := record.NewDigester(f.schema).Append(nil, p)
			f.entries = append(f.entries, digestlog.Entry{Kind: digestlog.KindStep, Step: step, Seq: f.seq, Nonfinite: nonfinite, Digests: sums})
		}
		f.seq++
		f.stored++
	}
}

// lose notes n records as lost.
func (f *fixture) lose(n uint64) {
	must(f.seg.Append(record.AppendLost(nil, f.gen, f.seq, f.seq+n, record.LostOverrun)))
	f.entries = append(f.entries, digestlog.Entry{Kind: digestlog.KindLost, Seq: f.seq, From: f.seq, To: f.seq + n, Reason: record.LostOverrun})
	f.seq += n
	f.lost += n
}

// commit makes what was emitted durable: telemetry, then log.
func (f *fixture) commit() {
	must(f.seg.Sync())
	for _, e := range f.entries {
		f.append(e)
	}
	f.entries = nil
	must(f.log.Sync())
}

func (f *fixture) seal() {
	s, err := f.seg.Seal()
	must(err)
	f.seg = nil
	f.logSeal(s)
}

func (f *fixture) logSeal(s segment.Sealed) {
	f.base = s.Base + s.Count
	if s.Count == 0 && s.Size == 0 {
		return // it held nothing and is gone
	}
	f.append(digestlog.Entry{Kind: digestlog.KindSeal, Stream: uint8(segment.KindTelemetry), Base: s.Base, Count: s.Count, Size: uint64(s.Size), SHA256: s.SHA256, Name: s.Name})
}

func (f *fixture) roll() {
	f.commit()
	f.seal()
	must(f.log.Sync())
	f.newSegment()
}

// snapshot publishes the state after a step whose records are committed.
func (f *fixture) snapshot(step uint64) snapshot.Info {
	state := []snapshot.Section{{Name: "state", Data: []byte(fmt.Sprint("state after ", step))}}
	info, err := snapshot.Write(f.dir.Snapshots(), snapshot.Meta{
		RunID: runID, Generation: f.gen, Step: step, Seq: f.seq, Schema: f.schema.Sum(), TreeSize: f.log.Size(), TreeRoot: f.log.Root(), Created: created,
	}, state, snapshot.Options{FS: f.fs})
	must(err)
	f.append(digestlog.Entry{Kind: digestlog.KindSnapshot, Step: step, Seq: f.seq, SHA256: info.SHA256, Size: uint64(info.Size), Name: info.Name})
	must(f.log.Sync())
	return info
}

// referring publishes a snapshot of step 8 and one of step 9 that refers to it. It
// returns the first one, whose entry edit may change.
func (f *fixture) referring(edit func(*digestlog.Entry)) (base snapshot.Info) {
	o := snapshot.Options{FS: f.fs, Reuse: &snapshot.Reuse{}}
	state := []snapshot.Section{{Name: "history", Data: make([]byte, 1<<16)}}
	for step := uint64(8); step < 10; step++ {
		info, err := snapshot.Write(f.dir.Snapshots(), snapshot.Meta{
			RunID: runID, Generation: f.gen, Step: step, Seq: step + 1, Schema: f.schema.Sum(), TreeSize: f.log.Size(), TreeRoot: f.log.Root(), Created: created,
		}, state, o)
		must(err)
		e := digestlog.Entry{Kind: digestlog.KindSnapshot, Step: step, Seq: step + 1, SHA256: info.SHA256, Size: uint64(info.Size), Name: info.Name}
		if step == 8 {
			base = info
			if edit != nil {
				edit(&e)
			}
		}
		f.append(e)
	}
	must(f.log.Sync())
	return base
}

func (f *fixture) prune(i snapshot.Info) {
	f.append(digestlog.Entry{Kind: digestlog.KindPrune, Target: i.Step, Name: i.Name, SHA256: i.SHA256})
	must(f.log.Sync())
	must(f.fs.Remove(f.dir.Snapshot(i.Name)))
}

func (f *fixture) end(status digestlog.Status) {
	if f.seg != nil {
		f.commit()
		f.seal()
	}
	f.append(digestlog.Entry{Kind: digestlog.KindEnd, Status: status, Emitted: f.stored + f.lost, Stored: f.stored, Lost: f.lost, EmittedKnown: true})
	must(f.log.Sync())
	f.sign()
	must(f.log.Close())
}

// scenario is a run with everything in it: rolls, losses, snapshots, a prune, an
// end, a resume behind step 19 and another end.
func scenario(fsys vfs.FS) *fixture {
	f := newFixture(fsys)
	f.begin(0, nil)
	f.emit(0, 10)
	f.commit()
	first := f.snapshot(9)
	f.lose(3)
	f.emit(13, 20)
	f.commit()
	second := f.snapshot(19)
	f.roll()
	f.emit(20, 30)
	f.commit()
	f.snapshot(29)
	f.prune(first)
	f.emit(30, 35)
	f.end(digestlog.StatusCrashed)

	f.openLog()
	f.begin(1, &rundir.Resumed{Generation: 0, Step: 19, SnapshotSHA256: second.SHA256})
	f.emit(20, 40)
	f.roll()
	f.emit(40, 44)
	f.end(digestlog.StatusClean)
	return f
}

// reattach does what a recorder does that finds a run: everything left open is
// sealed and logged, and the newest generation is ended. A run without an OPEN
// entry is begun instead.
func reattach(fsys vfs.FS) {
	f := openFixture(fsys)
	must(vfs.MkdirAll(fsys, f.dir.Telemetry(), 0o755))
	must(vfs.MkdirAll(fsys, f.dir.Snapshots(), 0o755))
	f.openLog()
	seen := f.history()
	f.tidy(seen)
	infos, err := segment.List(fsys, f.dir.Telemetry())
	must(err)
	for _, i := range infos {
		if seen.seals[i.Name] {
			f.base = i.Base
			continue
		}
		s, err := segment.Repair(fsys, i.Path)
		must(err)
		f.logSeal(s)
	}
	if !seen.opened {
		f.begin(0, nil)
		f.end(digestlog.StatusCrashed)
		return
	}
	f.gen = seen.gen
	if !seen.ended {
		f.reconcile(seen)
		f.end(digestlog.StatusCrashed)
		return
	}
	must(f.log.Sync())
	f.sign()
	must(f.log.Close())
}

// history is what reattach takes from the log.
type history struct {
	opened, ended bool
	gen           uint32
	lostTo        uint64 // end of the last LOST range of the generation
	seals         map[string]bool
	snapshots     map[string]bool
	pruned        map[string]bool
}

func (f *fixture) history() history {
	h := history{seals: map[string]bool{}, snapshots: map[string]bool{}, pruned: map[string]bool{}}
	for it, err := range digestlog.Entries(f.fs, f.dir.Digests()) {
		must(err)
		switch e := it.Entry; e.Kind {
		case digestlog.KindOpen:
			h.opened, h.ended, h.gen, h.lostTo = true, false, e.Generation, 0
		case digestlog.KindEnd:
			h.ended = true
		case digestlog.KindLost:
			h.lostTo = e.To
		case digestlog.KindSeal:
			h.seals[e.Name] = true
		case digestlog.KindSnapshot:
			h.snapshots[e.Name] = true
		case digestlog.KindPrune:
			h.pruned[e.Name] = true
		}
	}
	return h
}

func (f *fixture) tidy(h history) {
	for _, dir := range []string{f.dir.Path(), f.dir.Telemetry(), f.dir.Snapshots()} {
		_, err := vfs.RemoveTemps(f.fs, dir)
		must(err)
	}
	list, err := f.fs.ReadDir(f.dir.Snapshots())
	must(err)
	for _, d := range list {
		path := f.dir.Snapshot(d.Name())
		if _, _, ok := snapshot.ParseFileName(d.Name()); !ok {
			continue
		}
		if h.pruned[d.Name()] {
			must(f.fs.Remove(path))
		} else if !h.snapshots[d.Name()] {
			must(f.fs.Rename(path, path+rundir.OrphanSuffix))
		}
	}
}

// reconcile counts the generation's telemetry and logs the losses that the log lacks.
func (f *fixture) reconcile(h history) {
	var fr record.Frame
	for raw, err := range segment.Frames(f.fs, f.dir.Telemetry()) {
		must(err)
		must(record.DecodeFrame(raw.Data, &fr))
		if fr.Generation != f.gen {
			continue
		}
		if fr.Kind == record.KindRecord {
			f.stored++
			continue
		}
		f.lost += fr.To - fr.Seq
		if fr.Seq >= h.lostTo {
			f.append(digestlog.Entry{Kind: digestlog.KindLost, Seq: fr.Seq, From: fr.Seq, To: fr.To, Reason: fr.Reason})
		}
	}
}

func verify(t testing.TB, fsys vfs.FS) *audit.Report {
	t.Helper()
	r, err := audit.Verify(context.Background(), fsys, runDir, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// files lists a directory tree's files.
func files(t testing.TB, fsys vfs.FS, dir string) (names []string) {
	t.Helper()
	list, err := fsys.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.IsDir() {
			names = append(names, files(t, fsys, dir+"/"+d.Name())...)
		} else {
			names = append(names, dir+"/"+d.Name())
		}
	}
	return names
}

func read(t testing.TB, fsys vfs.FS, name string) []byte {
	t.Helper()
	b, err := vfs.ReadFile(fsys, name, math.MaxInt32)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// overlay shows one file of a file system with other content, or not at all.
type overlay struct {
	vfs.FS
	name string
	data []byte // nil: the file is not there
}

type overlayFile struct {
	vfs.File
	data []byte
	pos  int64
}

type overlayInfo struct {
	fs.FileInfo
	size int64
}

func (i overlayInfo) Size() int64 { return i.size }

func (o *overlay) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if name != o.name {
		return o.FS.OpenFile(name, flag, perm)
	}
	if o.data == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	f, err := o.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &overlayFile{File: f, data: o.data}, nil
}

func (o *overlay) Stat(name string) (fs.FileInfo, error) {
	if name == o.name && o.data == nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	return o.FS.Stat(name)
}

func (o *overlay) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := o.FS.ReadDir(name)
	if o.data != nil {
		return list, err
	}
	var rest []fs.DirEntry
	for _, d := range list {
		if name+"/"+d.Name() != o.name {
			rest = append(rest, d)
		}
	}
	return rest, err
}

func (f *overlayFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *overlayFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *overlayFile) Stat() (fs.FileInfo, error) {
	st, err := f.File.Stat()
	return overlayInfo{st, int64(len(f.data))}, err
}
