package record_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/record"
)

// TestSummarizer: for frames that a recorder writes the summary is what counting them gives, and survives encoding.
func TestSummarizer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var z record.Summarizer
		want := record.Summary{Generation: rapid.Uint32().Draw(t, "generation"), From: rapid.Uint64Range(0, 1<<40).Draw(t, "from")}
		want.To = want.From
		step := rapid.Uint64Range(0, 1<<40).Draw(t, "step")
		for range rapid.IntRange(1, 20).Draw(t, "frames") {
			var b []byte
			if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
				n := rapid.Uint64Range(1, 1000).Draw(t, "lost")
				b = record.AppendLost(nil, want.Generation, want.To, want.To+n, record.LostOverrun)
				want.Lost += n
				want.To += n
			} else {
				b = record.AppendRecord(nil, want.Generation, want.To, []uint64{step, 9, 1})
				if want.Stored == 0 {
					want.FirstStep = step
				}
				want.LastStep = step
				want.Stored++
				want.To++
				step += rapid.Uint64Range(1, 5).Draw(t, "stride")
			}
			z.Add(want.Frames, b)
			want.Frames++
		}
		got, ok := z.Summary()
		if !ok || got != want {
			t.Fatalf("%+v %v, want %+v", got, ok, want)
		}
		if again, err := record.ParseSummary(z.Index()); err != nil || again != want {
			t.Fatalf("parsed %+v, %v", again, err)
		}
	})
}

// TestSummarizerRefuses: frames that do not follow each other have no summary. Each follows one record of generation 1, number 4, step 7.
func TestSummarizerRefuses(t *testing.T) {
	good := record.AppendRecord(nil, 1, 5, []uint64{8, 0})
	poke := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for name, b := range map[string][]byte{
		"another generation": record.AppendRecord(nil, 2, 5, []uint64{8, 0}),
		"a number left out":  record.AppendRecord(nil, 1, 6, []uint64{8, 0}),
		"a number again":     record.AppendRecord(nil, 1, 4, []uint64{8, 0}),
		"a step again":       record.AppendRecord(nil, 1, 5, []uint64{7, 0}),
		"an empty loss":      record.AppendLost(nil, 1, 5, 5, record.LostTorn),
		"a loss for nothing": record.AppendLost(nil, 1, 5, 6, 9),
		"an unknown kind":    poke(0, 3),
		"reserved bits":      poke(2, 1),
		"too short":          good[:24],
		"not in words":       append(bytes.Clone(good), 0),
		"a long loss":        append(record.AppendLost(nil, 1, 5, 6, record.LostTorn), make([]byte, 8)...),
	} {
		var z record.Summarizer
		z.Add(0, record.AppendRecord(nil, 1, 4, []uint64{7, 0}))
		if _, ok := z.Summary(); !ok {
			t.Fatal("one record has no summary")
		}
		if z.Add(1, b); z.Index() != nil {
			t.Errorf("%s: %x", name, z.Index())
		}
	}
	var z record.Summarizer
	if z.Index() != nil {
		t.Error("no frames have a summary")
	}
	z.Add(0, record.AppendRecord(nil, 1, math.MaxUint64, []uint64{7, 0}))
	if z.Index() != nil {
		t.Error("the last number of all has a summary")
	}
}

func FuzzParseSummary(f *testing.F) {
	for _, s := range []record.Summary{
		{Generation: 1, Frames: 3, Stored: 2, Lost: 5, From: 10, To: 17, FirstStep: 100, LastStep: 110},
		{Frames: 1, Stored: 1, To: 1}, {Frames: 1, Lost: 9, To: 9},
	} {
		if _, err := record.ParseSummary(s.Append(nil)); err != nil {
			f.Fatal(err)
		}
		f.Add(s.Append(nil))
	}
	for _, s := range []record.Summary{
		{}, {Frames: 1, Stored: 2, To: 2, LastStep: 1}, {Frames: 3, Stored: 1, Lost: 1, To: 2}, {Frames: 2, Stored: 2, To: 2},
		{Frames: 2, Stored: 1, Lost: 2, To: 2}, {Frames: 1, Stored: 1, Lost: 1, To: 2}, {Frames: 1, Lost: 1, To: 1, FirstStep: 1, LastStep: 1},
		{Frames: 3, Stored: 3, To: 3, LastStep: 1},
	} {
		if _, err := record.ParseSummary(s.Append(nil)); !errors.Is(err, record.ErrSummary) {
			f.Errorf("%+v: %v", s, err)
		}
	}
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := record.ParseSummary(b)
		if err != nil {
			if !errors.Is(err, record.ErrSummary) && !errors.Is(err, record.ErrSummaryVersion) {
				t.Fatal(err)
			}
			return
		}
		if again := s.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x parsed, and encoded as %x", b, again)
		}
	})
}
