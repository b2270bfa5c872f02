package segment_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"pgregory.net/rapid"
)

const dir = "run/telemetry"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newFS returns a memory file system with the directory for segments.
func newFS(t testing.TB) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	check(t, vfs.MkdirAll(m, dir, 0o700))
	return m
}

func options(fsys vfs.FS) segment.Options {
	return segment.Options{
		FS: fsys, Kind: segment.KindTelemetry, RunID: "20261122T201833-9f3kq", Meta: []byte("usp-schema v1\n"),
		Size: 16 << 10, Now: func() time.Time { return time.Unix(1_800_000_000, 5) },
	}
}

// frame returns the content of frame i: it depends on the ordinal alone, so that a re-appended one is
// the same and a misplaced one is not. Some are empty.
func frame(i uint64) []byte {
	b := make([]byte, i*37%251)
	rng := rand.New(rand.NewPCG(7, i))
	for j := range b {
		b[j] = byte(rng.Uint32())
	}
	return b
}

func create(t testing.TB, fsys vfs.FS, base uint64) *segment.Writer {
	t.Helper()
	w, err := segment.Create(dir, base, options(fsys))
	check(t, err)
	return w
}

// appendTo appends frames up to ordinal to and syncs.
func appendTo(t testing.TB, w *segment.Writer, to uint64) {
	t.Helper()
	for w.Next() < to {
		check(t, w.Append(frame(w.Next())))
	}
	check(t, w.Sync())
}

// result is all that a Reader says of a file.
type result struct {
	Ordinals []uint64
	Corrupt  [][2]int64
	Torn     int64 // offset; 0 = none
	Sealed   bool
}

// readAll reads a segment to its end, and checks each frame's content unless raw.
func readAll(t testing.TB, fsys vfs.FS, path string) result {
	t.Helper()
	r, err := segment.Open(fsys, path)
	check(t, err)
	defer r.Close()
	var res result
	for {
		data, ordinal, err := r.Next()
		var corrupt *segment.CorruptError
		var torn *segment.TornError
		switch {
		case err == io.EOF:
			res.Sealed = r.Sealed()
			return res
		case errors.As(err, &torn):
			res.Torn = torn.Offset
			if torn.Offset != r.Offset() || torn.End <= torn.Offset {
				t.Errorf("%v, but the last good batch ends at %d", err, r.Offset())
			}
			return res
		case errors.As(err, &corrupt):
			res.Corrupt = append(res.Corrupt, [2]int64{corrupt.Offset, corrupt.End})
		case err != nil:
			t.Fatal(err)
		default:
			res.Ordinals = append(res.Ordinals, ordinal)
			if !bytes.Equal(data, frame(ordinal)) {
				t.Errorf("frame %d is not what was written", ordinal)
			}
		}
	}
}

func seq(from, to uint64) (s []uint64) {
	for i := from; i < to; i++ {
		s = append(s, i)
	}
	return s
}

func TestRoundTrip(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 100)
	appendTo(t, w, 130)
	for w.Next() < 150 {
		check(t, w.Append(frame(w.Next())))
	}
	if n, size := w.Pending(); n != 20 || size == 0 {
		t.Errorf("pending %d, %d", n, size)
	}
	check(t, w.Flush())
	if n, size := w.Pending(); n != 0 || size != 0 {
		t.Errorf("pending %d, %d after flush", n, size)
	}
	path := w.Path()
	if got := readAll(t, m, path); len(got.Ordinals) != 50 || got.Sealed || got.Torn != 0 {
		t.Errorf("active file reads as %+v", got)
	}
	s, err := w.Seal()
	check(t, err)
	if diff := cmp.Diff(result{Ordinals: seq(100, 150), Sealed: true}, readAll(t, m, path)); diff != "" {
		t.Error(diff)
	}
	data, err := vfs.ReadFile(m, path, 1<<20)
	check(t, err)
	want := segment.Sealed{
		Name: "00000000000000000100.seg", Base: 100, Count: 50, Size: int64(len(data)), SHA256: sha256.Sum256(data),
	}
	if s != want {
		t.Errorf("sealed %+v, want %+v", s, want)
	}
	for what, fsys := range map[string]vfs.FS{"now": m, "after a loss of power": m.Crash(nil, vfs.DropAll)} {
		info, err := fsys.Stat(path)
		check(t, err)
		if info.Mode() != 0o444 {
			t.Errorf("%s: mode %v", what, info.Mode())
		}
	}
	if again, err := segment.Repair(m, path); err != nil || again != want {
		t.Errorf("repair of a sealed file: %+v, %v", again, err)
	}
}

func TestHeader(t *testing.T) {
	for _, meta := range []string{"", "x", strings.Repeat("m", 3964), strings.Repeat("m", 3965), strings.Repeat("m", segment.MaxMeta)} {
		m := newFS(t)
		o := options(m)
		o.Meta = []byte(meta)
		w, err := segment.Create(dir, 7, o)
		check(t, err)
		appendTo(t, w, 9)
		check(t, w.Close())
		r, err := segment.Open(m, w.Path())
		check(t, err)
		h := r.Header()
		if string(h.Meta) != meta || h.Base != 7 || h.Kind != segment.KindTelemetry || h.RunID != o.RunID ||
			!h.Created.Equal(o.Now()) || h.Version != segment.Version || h.Len%4096 != 0 {
			t.Errorf("header for %d bytes of meta: %+v", len(meta), h.Len)
		}
		check(t, r.Close())
		if got := readAll(t, m, w.Path()); !slices.Equal(got.Ordinals, seq(7, 9)) {
			t.Errorf("%d bytes of meta: %+v", len(meta), got)
		}
	}
}

func TestLimits(t *testing.T) {
	m := newFS(t)
	o := options(m)
	o.Meta = make([]byte, segment.MaxMeta+1)
	if _, err := segment.Create(dir, 0, o); err == nil {
		t.Error("too much meta is accepted")
	}
	for _, id := range []string{strings.Repeat("x", segment.MaxRunID+1), "a\x00"} {
		o := options(m)
		o.RunID = id
		if _, err := segment.Create(dir, 0, o); err == nil {
			t.Errorf("run id %q is accepted", id)
		}
	}
	w := create(t, m, 0)
	if err := w.Append(make([]byte, segment.MaxFrame+1)); !errors.Is(err, segment.ErrFrameTooLarge) {
		t.Errorf("error %v", err)
	}
	big := make([]byte, segment.MaxFrame)
	for range 20 { // more than fits one batch
		check(t, w.Append(big))
	}
	check(t, w.Sync())
	s, err := w.Seal()
	check(t, err)
	r, err := segment.Open(m, w.Path())
	check(t, err)
	for i := range s.Count {
		data, ordinal, err := r.Next()
		if err != nil || ordinal != i || len(data) != segment.MaxFrame {
			t.Fatalf("frame %d: %d bytes, ordinal %d, %v", i, len(data), ordinal, err)
		}
	}
	if s.Count != 20 {
		t.Errorf("count %d", s.Count)
	}
}

func TestCreateExclusive(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 5)
	appendTo(t, w, 6)
	if _, err := segment.Create(dir, 5, options(m)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	check(t, w.Close())
	// One that never held a frame is in nobody's way.
	w = create(t, m, 9)
	check(t, w.Abort())
	check(t, create(t, m, 9).Abort())
}

func TestEmptySegmentIsRemoved(t *testing.T) {
	m := newFS(t)
	s, err := create(t, m, 3).Seal()
	check(t, err)
	if want := (segment.Sealed{Name: segment.FileName(3), Base: 3}); s != want {
		t.Errorf("sealed %+v", s)
	}
	if _, err := m.Crash(nil, vfs.DropAll).Stat(dir + "/" + s.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the removal is not durable: %v", err)
	}
	w := create(t, m, 3)
	check(t, w.Append(frame(3)))
	check(t, w.Abort())
	s, err = segment.Repair(m, w.Path())
	check(t, err)
	if s.Count != 0 || s.Size != 0 {
		t.Errorf("repaired %+v", s)
	}
	infos, err := segment.List(m, dir)
	check(t, err)
	if len(infos) != 0 {
		t.Errorf("left %+v", infos)
	}
}

func TestClosedWriter(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 3)
	check(t, w.Close())
	_, sealErr := w.Seal()
	for _, err := range []error{w.Append(nil), w.Flush(), w.Sync(), w.Close(), sealErr} {
		if !errors.Is(err, segment.ErrClosed) {
			t.Errorf("error %v, want ErrClosed", err)
		}
	}
	check(t, w.Abort())
}

func TestList(t *testing.T) {
	m := newFS(t)
	for _, base := range []uint64{30, 10, 20} {
		w := create(t, m, base)
		appendTo(t, w, base+2)
		check(t, w.Close())
	}
	for _, name := range []string{"00000000000000000010.seg.torn", "10.seg", "x", ".00000000000000000040.seg.tmp-0", "9999999999999999999x.seg", "99999999999999999999.seg"} {
		check(t, vfs.Replace(m, dir+"/"+name, nil, 0o600))
	}
	check(t, m.Mkdir(dir+"/"+segment.FileName(50), 0o700))
	infos, err := segment.List(m, dir)
	check(t, err)
	var bases []uint64
	for _, info := range infos {
		bases = append(bases, info.Base)
		if info.Path != dir+"/"+info.Name || info.Size != 16<<10 {
			t.Errorf("%+v", info)
		}
	}
	if !slices.Equal(bases, []uint64{10, 20, 30}) {
		t.Errorf("bases %v", bases)
	}
}

// TestAnyPattern writes frames of any sizes with any pattern of flushes and syncs.
func TestAnyPattern(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newFS(t)
		base := rapid.Uint64Range(0, 1<<40).Draw(rt, "base")
		w := create(t, m, base)
		var want [][]byte
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "append", "flush", "sync"}).Draw(rt, "step") {
			case "append":
				data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, rapid.SampledFrom([]int{0, 1, 4, 7, 200, 4096, 600_000}).Draw(rt, "size"))
				check(t, w.Append(data))
				want = append(want, data)
			case "flush":
				check(t, w.Flush())
			case "sync":
				check(t, w.Sync())
			}
			ordinal, off := w.Synced()
			if got := unsynced(t, w); !slices.EqualFunc(got, want[ordinal-base:], bytes.Equal) {
				rt.Fatalf("unsynced holds %d frames, want %d", len(got), len(want[ordinal-base:]))
			}
			if off > w.Size() {
				rt.Fatalf("synced to %d of %d", off, w.Size())
			}
		}
		s, err := w.Seal()
		check(t, err)
		if s.Count != uint64(len(want)) {
			rt.Fatalf("sealed %d frames of %d", s.Count, len(want))
		}
		var got [][]byte
		for f, err := range segment.Frames(m, dir) {
			check(t, err)
			if f.Ordinal != base+uint64(len(got)) {
				rt.Fatalf("ordinal %d", f.Ordinal)
			}
			got = append(got, slices.Clone(f.Data))
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			rt.Fatal("frames differ")
		}
		if s.Count > 0 {
			data, err := vfs.ReadFile(m, w.Path(), 1<<30)
			check(t, err)
			if s.SHA256 != sha256.Sum256(data) || s.Size != int64(len(data)) {
				rt.Fatal("hash or size of the file differs from what Seal said")
			}
		}
	})
}

func unsynced(t testing.TB, w *segment.Writer) (frames [][]byte) {
	t.Helper()
	next, _ := w.Synced()
	for ordinal, data := range w.Unsynced() {
		if ordinal != next {
			t.Fatalf("unsynced ordinal %d, want %d", ordinal, next)
		}
		next++
		frames = append(frames, slices.Clone(data))
	}
	return frames
}

// A Reader can follow a Writer, up to the seal.
func TestFollow(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	r, err := segment.Open(m, w.Path())
	check(t, err)
	defer r.Close()
	next := uint64(0)
	follow := func() {
		t.Helper()
		for {
			data, ordinal, err := r.Next()
			if err == io.EOF {
				break
			}
			check(t, err)
			if ordinal != next || !bytes.Equal(data, frame(next)) {
				t.Fatalf("frame %d, want %d", ordinal, next)
			}
			next++
		}
		if next != w.Next() {
			t.Fatalf("at %d of %d", next, w.Next())
		}
	}
	for range 40 {
		follow()
		appendTo(t, w, w.Next()+w.Next()%7+1)
	}
	follow()
	follow()
	_, err = w.Seal()
	check(t, err)
	follow()
	if !r.Sealed() {
		t.Error("seal not seen")
	}
}

// Where a poisoned segment and its successor hold the same frames, they come once; where frames are
// missing between two, that is said.
func TestFramesOverSegments(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 20)
	check(t, w.Close())
	w = create(t, m, 15)
	appendTo(t, w, 30)
	_, err := w.Seal()
	check(t, err)
	w = create(t, m, 35)
	appendTo(t, w, 40)
	check(t, w.Close())
	var got []uint64
	var errs []string
	for f, err := range segment.Frames(m, dir) {
		if err != nil {
			errs = append(errs, err.Error())
			continue
		}
		got = append(got, f.Ordinal)
		at := make([]byte, 4)
		file, err := m.OpenFile(f.File, 0, 0)
		check(t, err)
		_, err = file.ReadAt(at, f.Offset)
		check(t, err)
		if int(at[0]) != len(f.Data) {
			t.Errorf("frame %d is not at offset %d", f.Ordinal, f.Offset)
		}
	}
	if !slices.Equal(got, append(seq(0, 30), seq(35, 40)...)) {
		t.Errorf("frames %v", got)
	}
	if len(errs) != 1 || !strings.Contains(errs[0], "frames 30 to 34 are missing") {
		t.Errorf("errors %q", errs)
	}
	// An early stop is no trouble.
	for range segment.Frames(m, dir) {
		break
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	data := make([]byte, 200)
	for range 2000 {
		check(t, w.Append(data))
	}
	check(t, w.Sync())
	if n := testing.AllocsPerRun(1000, func() { _ = w.Append(data) }); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
}

func BenchmarkWriter(b *testing.B) {
	const group = 50_000 // frames per sync: what 50 ms hold at 10^6 per second
	data := make([]byte, 200)
	for i := range data {
		data[i] = byte(i)
	}
	o := segment.Options{FS: vfs.OS(), Kind: segment.KindTelemetry, Size: 256 << 20}
	where := b.TempDir()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	var w *segment.Writer
	for i := range b.N {
		if w == nil {
			var err error
			w, err = segment.Create(where, uint64(i), o)
			check(b, err)
		}
		check(b, w.Append(data))
		if i%group == group-1 {
			check(b, w.Sync())
		}
		if w.Size() > o.Size-1<<20 || i == b.N-1 {
			_, err := w.Seal()
			check(b, err)
			check(b, vfs.OS().Remove(w.Path()))
			w = nil
		}
	}
}

// A Reader that has read ahead into space that was reserved meets batches that were written since: they are neither
// missing nor damaged, however much of the file it has in memory.
func TestFollowReadAhead(t *testing.T) {
	m := newFS(t)
	w, err := segment.Create("/", 0, segment.Options{FS: m, Kind: segment.KindTelemetry, RunID: "r", Size: 4 << 20})
	check(t, err)
	put := func(n int) {
		t.Helper()
		check(t, w.Append(bytes.Repeat([]byte{byte(n) | 1}, n)))
		check(t, w.Sync())
	}
	put(100)
	r, err := segment.Open(m, w.Path())
	check(t, err)
	defer r.Close()
	_, _, err = r.Next() // and the reserved space behind it, a window of it
	check(t, err)
	for range 4 {
		put(300 << 10) // each reaches beyond the window
	}
	for i := range 4 {
		b, ordinal, err := r.Next()
		check(t, err)
		if ordinal != uint64(i+1) || len(b) != 300<<10 {
			t.Fatalf("frame %d of %d bytes, want %d", ordinal, len(b), i+1)
		}
	}
}
