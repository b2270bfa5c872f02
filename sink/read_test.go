package sink_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestRead compares what is selected with a walk over all records, for any range, over generations, losses and segments.
func TestRead(t *testing.T) {
	r := sinktest.Record(t)
	for range 4 {
		r.Emit(30)
		r.Roll()
	}
	r.Emit(10)
	r.Lose(3)
	r.Rewind(100)
	r.Emit(9000)
	r.Lose(2)
	r.Rewind(8000)
	r.Emit(50)
	line, err := audit.Open(vfs.OS(), r.Dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	type at struct {
		generation uint32
		step       uint64
	}
	var all, effective []at
	f := sink.Follow(vfs.OS(), r.Dir, 0)
	defer f.Close()
	for {
		b, err := f.Next()
		if err != nil {
			break
		}
		for i := range b.Seq {
			x := at{b.Generation, b.Row(i)[0]}
			all = append(all, x)
			if !line.Superseded(x.generation, x.step) {
				effective = append(effective, x)
			}
		}
	}
	if len(all) != 130+9000+50 || len(effective) != 100+7900+50 {
		t.Fatalf("%d records, %d effective", len(all), len(effective))
	}
	rapid.Check(t, func(t *rapid.T) {
		s := sink.Selection{AllGenerations: rapid.Bool().Draw(t, "all")}
		s.From = rapid.Uint64Range(0, 9200).Draw(t, "from")
		s.Until = rapid.Uint64Range(0, 9200).Draw(t, "until")
		passed := uint64(0)
		s.Passed = func(frames, total uint64) {
			if frames < passed || frames > total || total != r.Frames() {
				t.Fatalf("passed %d of %d after %d", frames, total, passed)
			}
			passed = frames
		}
		want := effective
		if s.AllGenerations {
			want = all
		}
		want = slices.DeleteFunc(slices.Clone(want), func(x at) bool { return x.step < s.From || s.Until > 0 && x.step > s.Until })
		var got []at
		lost := uint64(0)
		for b, err := range sink.Read(vfs.OS(), line, s) {
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Words) != len(b.Seq)*b.Schema.StoredWords() {
				t.Fatalf("%d words of %d records", len(b.Words), len(b.Seq))
			}
			for i := range b.Seq {
				got = append(got, at{b.Generation, b.Row(i)[0]})
			}
			for _, l := range b.Losses {
				lost += l.To - l.From
				if l.Before < 0 || l.Before > len(b.Seq) {
					t.Fatalf("a loss before record %d of %d", l.Before, len(b.Seq))
				}
			}
		}
		if !slices.Equal(got, want) || lost != 5 || passed != r.Frames() {
			t.Fatalf("%+v: %d records, want %d; %d lost; passed %d", s, len(got), len(want), lost, passed)
		}
	})
}

// TestReadSkips: what is sealed and holds nothing of the selection is not read.
func TestReadSkips(t *testing.T) {
	r := sinktest.Record(t)
	for range 5 {
		r.Emit(100)
		r.Roll()
	}
	line, err := audit.Open(vfs.OS(), r.Dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	var segments []uint64
	for b, err := range sink.Read(vfs.OS(), line, sink.Selection{From: 150, Until: 250}) {
		if err != nil {
			t.Fatal(err)
		}
		segments = append(segments, b.Segment)
	}
	if !slices.Equal(segments, []uint64{100, 200}) {
		t.Errorf("read the segments %v", segments)
	}
}

// TestReadPastHeaders leaves out segments whose headers cannot be read, the last one too, and says so once of each.
func TestReadPastHeaders(t *testing.T) {
	for _, offset := range []int64{0, 40} { // no segment's name, a header that is not what it was
		for _, bases := range [][]uint64{{0}, {10}, {20}, {0, 10}, {10, 20}, {0, 10, 20}} {
			r := sinktest.Record(t)
			for range 3 {
				r.Emit(10)
				r.Roll()
			}
			for _, base := range bases {
				path := filepath.Join(r.Dir.Telemetry(), segment.FileName(base))
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				b[offset] ^= 1
				if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			line, err := audit.Open(vfs.OS(), r.Dir.Path())
			if err != nil {
				t.Fatal(err)
			}
			records, damage := 0, 0
			for b, err := range sink.Read(vfs.OS(), line, sink.Selection{Damaged: func(error) { damage++ }}) {
				if err != nil {
					t.Fatal(err)
				}
				records += b.Records()
			}
			if records != 30-10*len(bases) || damage != len(bases) {
				t.Errorf("byte %d of %v changed: %d records, %d damaged", offset, bases, records, damage)
			}
			_, err = sink.End(vfs.OS(), r.Dir)
			if last := slices.Contains(bases, 20); (err != nil) != last {
				t.Errorf("byte %d of %v changed: the end: %v", offset, bases, err)
			}
		}
	}
}

// TestReadUnordered selects from a run whose program let its steps go back.
func TestReadUnordered(t *testing.T) {
	r := sinktest.Record(t)
	order := []uint64{5, 6, 1, 2, 9, 3, 7, 4, 8}
	emit := func(n int) {
		r.EmitWords(n, func(step uint64) []uint64 { return sinktest.Payload(r.Schema, order[step-1]) })
	}
	emit(4)
	r.Lose(1)
	emit(4)
	r.Roll()
	line, err := audit.Open(vfs.OS(), r.Dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	var steps, seqs []uint64
	before := -1
	for b, err := range sink.Read(vfs.OS(), line, sink.Selection{From: 2, Until: 7}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Seq {
			steps, seqs = append(steps, b.Row(i)[0]), append(seqs, b.Seq[i])
		}
		for _, l := range b.Losses {
			before = l.Before
		}
	}
	if !slices.Equal(steps, []uint64{5, 6, 2, 3, 7, 4}) || !slices.Equal(seqs, []uint64{0, 1, 3, 5, 6, 7}) || before != 3 {
		t.Errorf("steps %v, sequence numbers %v, a loss before record %d", steps, seqs, before)
	}
}

// TestReadNothing reads a run that has no telemetry yet.
func TestReadNothing(t *testing.T) {
	r := sinktest.Record(t)
	line, err := audit.Open(vfs.OS(), r.Dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for b, err := range sink.Read(vfs.OS(), line, sink.Selection{}) {
			t.Fatal(b, err)
		}
		if err := os.Remove(r.Dir.Telemetry()); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
