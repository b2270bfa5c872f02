package audit_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/snapshot"
)

func verifyIndex(t testing.TB, fsys vfs.FS) *audit.Report {
	t.Helper()
	r, err := audit.Verify(context.Background(), fsys, runDir, audit.Options{Index: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestIndexOfClosedRun: of an intact run the index says what reading all of it says.
func TestIndexOfClosedRun(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	want, got := verify(t, mem), verifyIndex(t, mem)
	if !got.IndexOnly || want.IndexOnly || !strings.Contains(strings.Join(got.Notes, " "), "index only") {
		t.Errorf("index only: %v, %v, notes %q", got.IndexOnly, want.IndexOnly, got.Notes)
	}
	got.IndexOnly, got.Notes = false, want.Notes
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-all +index):\n%s", diff)
	}
}

// stretch is a part of a file.
type stretch struct{ from, to int }

// unclaimed says which stretches of a run's file the index does not claim to check: the batches of telemetry segments, those of log files that
// end before the signed head begins to be computed, and what is in the sections of snapshots.
func unclaimed(t *testing.T, mem vfs.FS, name string) (out []stretch) {
	t.Helper()
	switch {
	case strings.HasSuffix(name, ".snap"):
		_, sections, err := snapshot.Inspect(mem, name)
		must(err)
		for _, s := range sections {
			out = append(out, stretch{int(s.Offset), int(s.Offset+s.StoredSize+63) &^ 63}) // with its padding
		}
	case strings.HasSuffix(name, ".seg"):
		e, err := segment.ReadEnds(mem, name)
		must(err)
		if e.Index == nil {
			t.Fatalf("%s has no index", name)
		}
		dir, _, _ := strings.Cut(name, "/0")
		infos, err := segment.List(mem, dir)
		must(err)
		if strings.HasSuffix(dir, "/digests") && infos[len(infos)-1].Path == name {
			return nil
		}
		out = append(out, stretch{e.Header.Len, int(e.Size) - 40 - 40 - (len(e.Index)+7)&^7})
	}
	return out
}

// TestIndexEveryFlip flips every byte of every file of a closed run. What the index claims to check, it finds.
func TestIndexEveryFlip(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	outside, inside, stride := 0, 0, 5 // which meets every bit
	if torture {
		stride = 1
	}
	for _, name := range files(t, mem, runDir) {
		good := read(t, mem, name)
		free := unclaimed(t, mem, name)
		for at := 0; at < len(good); at++ {
			if at%stride > 0 {
				continue
			}
			if slices.ContainsFunc(free, func(s stretch) bool { return s.from <= at && at < s.to }) {
				outside++
				continue
			}
			if good[at] == 0 && at > 300 && at < 4000 {
				at += 120 // the padding of headers
			}
			bad := bytes.Clone(good)
			bad[at] ^= 1 << (at % 8)
			inside++
			r := verifyIndex(t, &overlay{FS: mem, name: name, data: bad})
			if r.Verdict != audit.Failed {
				t.Fatalf("%s: byte %d of %d flipped: %v; not claimed are %v", name, at, len(good), r.Verdict, free)
			}
			if !strings.HasSuffix(name, place(r)) {
				t.Fatalf("%s: byte %d flipped, reported as %v", name, at, r.Integrity.Problems)
			}
		}
	}
	t.Logf("%d flips found, %d bytes are not claimed", inside, outside)
	if inside < 3000/stride || outside < 1000/stride {
		t.Errorf("only %d flips", inside)
	}
}

// TestIndexEveryCut truncates and removes every file of a closed run.
func TestIndexEveryCut(t *testing.T) {
	mem := vfs.NewMem()
	scenario(mem)
	for _, name := range files(t, mem, runDir) {
		good := read(t, mem, name)
		for n := range len(good) {
			if left := len(good) - n; n > 150 && left > 300 && n%41 != 0 {
				continue
			}
			if r := verifyIndex(t, &overlay{FS: mem, name: name, data: good[:n:n]}); r.Verdict != audit.Failed {
				t.Fatalf("%s cut to %d of %d bytes: %v", name, n, len(good), r.Verdict)
			}
		}
		if r := verifyIndex(t, &overlay{FS: mem, name: name, data: append(bytes.Clone(good), 0)}); r.Verdict != audit.Failed {
			t.Errorf("%s with a byte more: %v", name, r.Verdict)
		}
		want := audit.Failed
		if strings.HasSuffix(name, "/checkpoint") {
			want = audit.CrashTail // as if it had been killed before it ever signed
		}
		if r := verifyIndex(t, &overlay{FS: mem, name: name}); r.Verdict != want {
			t.Errorf("%s removed: %v, want %v", name, r.Verdict, want)
		}
	}
}

// liar makes an index that is not that of the frames.
type liar struct {
	record.Summarizer
	change func(*record.Summary)
}

func (l *liar) Index() []byte {
	s, ok := l.Summary()
	if !ok {
		return nil
	}
	l.change(&s)
	return s.Append(nil)
}

// TestWrongSummary: a summary that the recorder got wrong, or somebody made wrong before the file was sealed, is found where the log or
// the neighbours say otherwise, and always by reading the frames.
func TestWrongSummary(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*record.Summary)
		index  bool // found by the index
		first  bool // of the first segment, which has losses, and not of the second
	}{
		"true":                  {func(*record.Summary) {}, false, false},
		"malformed":             {func(s *record.Summary) { s.Frames = 0 }, true, false},
		"a frame more":          {func(s *record.Summary) { s.Frames++; s.Stored++; s.To++; s.LastStep++ }, true, false},
		"lost and not stored":   {func(s *record.Summary) { s.Stored--; s.Lost++; s.LastStep-- }, true, false},
		"another generation":    {func(s *record.Summary) { s.Generation += 7 }, true, false},
		"a later first number":  {func(s *record.Summary) { s.From += 100; s.To += 100 }, true, false},
		"steps that go back":    {func(s *record.Summary) { s.FirstStep, s.LastStep = 5, 5+s.LastStep-s.FirstStep }, true, false},
		"another last step":     {func(s *record.Summary) { s.LastStep += 1 << 40 }, false, false},
		"losses in more frames": {func(s *record.Summary) { s.Frames++ }, true, true},
	} {
		mem := vfs.NewMem()
		f := newFixture(mem)
		n := 0
		f.index = func(segment.Header) segment.Indexer {
			if n++; n == 2 && !test.first || n == 1 && test.first { // steps 0 to 19, 20 to 34 of generation 0
				return &liar{change: test.change}
			}
			return new(record.Summarizer)
		}
		f.scenario()
		if r := verify(t, mem); (r.Verdict == audit.Failed) != (name != "true") {
			t.Errorf("%s: %v", name, r.Verdict)
		}
		r := verifyIndex(t, mem)
		if want := map[bool]audit.Verdict{false: audit.OK, true: audit.Failed}[test.index]; r.Verdict != want {
			t.Errorf("%s: by the index %v, want %v", name, r.Verdict, want)
		}
	}
}

// TestIndexOfOldRun: segments without a summary are read, and the report says so.
func TestIndexOfOldRun(t *testing.T) {
	mem := vfs.NewMem()
	f := newFixture(mem)
	f.index = func(segment.Header) segment.Indexer { return none{} }
	f.scenario()
	want, got := verify(t, mem), verifyIndex(t, mem)
	if !strings.Contains(strings.Join(got.Notes, " "), "has no summary and was read") {
		t.Errorf("notes %q", got.Notes)
	}
	got.IndexOnly, got.Notes = false, want.Notes
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-all +index):\n%s", diff)
	}
	for _, name := range files(t, mem, runDir+"/telemetry") {
		good := read(t, mem, name)
		for at := 4096; at < len(good); at += 1 + at%7 {
			bad := bytes.Clone(good)
			bad[at] ^= 2
			if r := verifyIndex(t, &overlay{FS: mem, name: name, data: bad}); r.Verdict != audit.Failed {
				t.Fatalf("%s: byte %d flipped: %v", name, at, r.Verdict)
			}
		}
	}
}

type none struct{}

func (none) Add(uint64, []byte) {}
func (none) Index() []byte      { return nil }

// TestIndexOfAnotherSegment: a whole segment of the same frames, but larger ones, is not the one in the log.
func TestIndexOfAnotherSegment(t *testing.T) {
	mem, other := vfs.NewMem(), vfs.NewMem()
	scenario(mem)
	f := newFixture(other)
	f.schema, _ = record.NewSchema("test.v1",
		record.Field{Name: "loss", Class: record.Metric},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64, Len: 9},
		record.Field{Name: "rho", Class: record.Digest, Len: 4},
		record.Field{Name: "cost", Class: record.Digest})
	f.scenario()
	telemetry := files(t, mem, runDir+"/telemetry")
	for _, name := range telemetry {
		r := verifyIndex(t, &overlay{FS: mem, name: name, data: read(t, other, name)})
		if r.Verdict != audit.Failed || r.Integrity.Problems[0].Class != audit.Mismatch {
			t.Errorf("%s: %v %v", name, r.Verdict, r.Integrity.Problems)
		}
	}
	// The hole that a missing one leaves is seen as well.
	r := verifyIndex(t, &overlay{FS: mem, name: telemetry[0]})
	if p := r.Integrity.Problems[0]; p.Class != audit.Missing || !strings.HasSuffix(telemetry[1], p.File) {
		t.Errorf("first segment gone: %v", r.Integrity.Problems)
	}
}

// TestIndexOfAnotherSnapshot: neither is a whole snapshot of the same step with another state.
func TestIndexOfAnotherSnapshot(t *testing.T) {
	mem, other := vfs.NewMem(), vfs.NewMem()
	scenario(mem)
	f := scenario(other)
	for _, name := range files(t, mem, runDir+"/snapshots") {
		m, sections, err := snapshot.Load(other, name, nil)
		must(err)
		must(other.Remove(name))
		sections[0].Data = bytes.Repeat(sections[0].Data, 20)
		_, err = snapshot.Write(f.dir.Snapshots(), m, sections, snapshot.Options{FS: other})
		must(err)
		r := verifyIndex(t, &overlay{FS: mem, name: name, data: read(t, other, name)})
		if r.Verdict != audit.Failed || r.Integrity.Problems[0].Class != audit.Mismatch {
			t.Errorf("%s: %v %v", name, r.Verdict, r.Integrity.Problems)
		}
	}
}
