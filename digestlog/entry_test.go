package digestlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/record"
)

// sum is a recognisable digest.
func sum(b byte) (s [32]byte) {
	for i := range s {
		s[i] = b
	}
	return s
}

// sampleEntries has one of each kind, in the order of a small run.
func sampleEntries() []Entry {
	return []Entry{
		{Kind: KindOpen, Manifest: sum(0x11), Schema: sum(0x22), Resumed: true, Ext: []byte("x")},
		{Kind: KindStep, Generation: 1, Step: 2, Seq: 3, Nonfinite: 2, Digests: [][32]byte{sum(0x33), sum(0x44)}},
		{Kind: KindLost, Generation: 1, Step: 2, Seq: 3, From: 4, To: 9, Reason: record.LostOverrun},
		{Kind: KindSnapshot, Step: 10, Seq: 10, SHA256: sum(0x55), Size: 4096, Name: "00000000000000000010-0000.snap"},
		{Kind: KindRewind, Generation: 1, Target: 10, FromGeneration: 7, SHA256: sum(0x66)},
		{Kind: KindSeal, Stream: 1, Base: 100, Count: 20, Size: 8192, SHA256: sum(0x77), Name: "00000000000000000100.seg"},
		{Kind: KindEnd, Status: StatusClean, Emitted: 120, Stored: 115, Lost: 5, EmittedKnown: true},
		{Kind: KindPrune, Step: 30, Target: 10, SHA256: sum(0x55), Name: "00000000000000000010-0000.snap"},
		{Kind: KindEvent, Code: EventStorage, Text: "no space left on device – für 3 s"},
	}
}

func TestEntryRoundTrip(t *testing.T) {
	for _, e := range sampleEntries() {
		t.Run(e.Kind.String(), func(t *testing.T) {
			if err := e.Validate(); err != nil {
				t.Fatal(err)
			}
			b := e.Append(nil)
			got, err := ParseEntry(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(e, got); diff != "" {
				t.Errorf("parse after encode (-want +got):\n%s", diff)
			}
			for n := range b {
				if _, err := ParseEntry(b[:n]); !errors.Is(err, ErrEntry) {
					t.Errorf("first %d of %d bytes: %v, want ErrEntry", n, len(b), err)
				}
			}
			if _, err := ParseEntry(append(b, 0)); !errors.Is(err, ErrEntry) {
				t.Errorf("one byte too many: %v, want ErrEntry", err)
			}
		})
	}
}

// TestEntryLayout pins the encoding of a STEP entry to the worked example of doc/format/digestlog.md.
func TestEntryLayout(t *testing.T) {
	e := Entry{Kind: KindStep, Generation: 1, Step: 2, Seq: 3, Nonfinite: 2, Digests: [][32]byte{sum(0x33), sum(0x44)}}
	want := "01" + "02" + "0000" + "01000000" + "0200000000000000" + "0300000000000000" +
		"02000000" + "02000000" + strings.Repeat("33", 32) + strings.Repeat("44", 32) + "0000"
	if got := hex.EncodeToString(e.Append(nil)); got != want {
		t.Errorf("STEP is\n%s, want\n%s", got, want)
	}
}

func TestParseEntryRefuses(t *testing.T) {
	valid := func(k Kind) []byte {
		e := sampleEntries()[k-1]
		return e.Append(nil)
	}
	set := func(b []byte, at int, v byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] = v
		return b
	}
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, ErrEntry},
		{"version 0", set(valid(KindLost), 0, 0), ErrEntry},
		{"version 2", set(valid(KindLost), 0, 2), ErrEntryVersion},
		{"kind 0", set(valid(KindLost), 1, 0), ErrEntry},
		{"kind 10", set(valid(KindLost), 1, 10), ErrUnknownKind},
		{"truth value 2 in OPEN", set(valid(KindOpen), entryHeader+64, 2), ErrEntry},
		{"truth value 2 in END", set(valid(KindEnd), -1, 2), ErrEntry},
		{"status 0", set(valid(KindEnd), entryHeader, 0), ErrEntry},
		{"emitted although not known", set(valid(KindEnd), -1, 0), ErrEntry},
		{"reason 0", set(valid(KindLost), -1, 0), ErrEntry},
		{"empty lost range", set(valid(KindLost), entryHeader+8, 4), ErrEntry},
		{"too many digests", set(valid(KindStep), entryHeader+7, 0xff), ErrEntry},
		{"nonfinite bit without a digest", set(valid(KindStep), entryHeader, 4), ErrEntry},
		{"name with a slash", set(valid(KindSnapshot), -1, '/'), ErrEntry},
		{"name with a leading dot", set(valid(KindSnapshot), entryHeader+42, '.'), ErrEntry},
		{"text with a control character", set(valid(KindEvent), -1, 0x1b), ErrEntry},
		{"text with broken UTF-8", set(valid(KindEvent), -1, 0xff), ErrEntry},
		{"event code 0", set(valid(KindEvent), entryHeader, 0), ErrEntry},
		{"stream 0", set(valid(KindSeal), entryHeader, 0), ErrEntry},
		{"too long", append([]byte{1}, make([]byte, MaxEntrySize)...), ErrEntry},
	}
	for _, tt := range tests {
		if _, err := ParseEntry(tt.in); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestUnknownKindKeepsHeader(t *testing.T) {
	e := Entry{Kind: KindLost, Flags: 5, Generation: 6, Step: 7, Seq: 8, From: 1, To: 2, Reason: 1}
	b := e.Append(nil)
	b[1] = 200
	got, err := ParseEntry(b)
	want := Entry{Kind: 200, Flags: 5, Generation: 6, Step: 7, Seq: 8}
	if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, ErrUnknownKind) {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("a", 300)
	bad := map[string]Entry{
		"kind 0":           {},
		"too many digests": {Kind: KindStep, Digests: make([][32]byte, MaxDigests+1)},
		"long extension":   {Kind: KindOpen, Ext: make([]byte, MaxExt+1)},
		"no name":          {Kind: KindPrune},
		"long name":        {Kind: KindPrune, Name: long},
		"long text":        {Kind: KindEvent, Code: 1, Text: long},
	}
	for name, e := range bad {
		if err := e.Validate(); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v, want ErrEntry", name, err)
		}
	}
	largest := Entry{Kind: KindStep, Nonfinite: 1<<32 - 1, Digests: make([][32]byte, MaxDigests), Ext: make([]byte, MaxExt)}
	if n := len(largest.Append(nil)); largest.Validate() != nil || n > MaxEntrySize {
		t.Errorf("the largest entry has %d bytes (%v), at most %d", n, largest.Validate(), MaxEntrySize)
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"two\nlines\x1b[31m":     "two lines [31m",
		"broken \xff":            "broken  ",
		strings.Repeat("ü", 200): strings.Repeat("ü", 128),
	} {
		got := CleanText(in)
		if got != want {
			t.Errorf("CleanText(%q) = %q, want %q", in, got, want)
		}
		e := Entry{Kind: KindEvent, Code: 1, Text: got}
		if err := e.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]string{
		"STEP": KindStep.String(), "kind(77)": Kind(77).String(), "crashed": StatusCrashed.String(),
		"status(9)": Status(9).String(), "poisoned": EventPoisoned.String(), "event(9)": EventCode(9).String(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func genSum(t *rapid.T, label string) (s [32]byte) {
	copy(s[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
	return s
}

// genEntry draws any valid entry.
func genEntry(t *rapid.T) Entry {
	e := Entry{
		Kind: Kind(rapid.IntRange(1, 9).Draw(t, "kind")), Flags: rapid.Uint16().Draw(t, "flags"),
		Generation: rapid.Uint32().Draw(t, "generation"), Step: rapid.Uint64().Draw(t, "step"), Seq: rapid.Uint64().Draw(t, "seq"),
	}
	name := rapid.StringMatching(`[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,80}`)
	ext := rapid.Custom(func(t *rapid.T) []byte {
		if b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "ext"); len(b) > 0 {
			return b
		}
		return nil
	})
	switch e.Kind {
	case KindOpen:
		e.Manifest, e.Schema, e.Resumed, e.Ext = genSum(t, "m"), genSum(t, "s"), rapid.Bool().Draw(t, "r"), ext.Draw(t, "x")
	case KindStep:
		for i := range rapid.IntRange(0, 5).Draw(t, "n") {
			e.Digests = append(e.Digests, genSum(t, "d"))
			e.Nonfinite |= rapid.Uint32Range(0, 1).Draw(t, "nf") << i
		}
		e.Ext = ext.Draw(t, "x")
	case KindLost:
		e.From = rapid.Uint64Range(0, 1<<63).Draw(t, "from")
		e.To = e.From + rapid.Uint64Range(1, 1<<62).Draw(t, "len")
		e.Reason = record.LostReason(rapid.IntRange(1, 255).Draw(t, "reason"))
	case KindSnapshot:
		e.SHA256, e.Size, e.Name = genSum(t, "h"), rapid.Uint64().Draw(t, "size"), name.Draw(t, "name")
	case KindRewind:
		e.Target, e.FromGeneration, e.SHA256 = rapid.Uint64().Draw(t, "to"), rapid.Uint32().Draw(t, "g"), genSum(t, "h")
	case KindSeal:
		e.Stream = uint8(rapid.IntRange(1, 255).Draw(t, "stream"))
		e.Base, e.Count, e.Size = rapid.Uint64().Draw(t, "b"), rapid.Uint64().Draw(t, "c"), rapid.Uint64().Draw(t, "z")
		e.SHA256, e.Name = genSum(t, "h"), name.Draw(t, "name")
	case KindEnd:
		e.Status = Status(rapid.IntRange(1, 255).Draw(t, "status"))
		e.Stored, e.Lost = rapid.Uint64().Draw(t, "s"), rapid.Uint64().Draw(t, "l")
		if e.EmittedKnown = rapid.Bool().Draw(t, "k"); e.EmittedKnown {
			e.Emitted = rapid.Uint64().Draw(t, "e")
		}
	case KindPrune:
		e.Target, e.Name, e.SHA256 = rapid.Uint64().Draw(t, "to"), name.Draw(t, "name"), genSum(t, "h")
	case KindEvent:
		e.Code, e.Text = EventCode(rapid.IntRange(1, 65535).Draw(t, "code")), CleanText(rapid.String().Draw(t, "text"))
	}
	return e
}

func TestEntryProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEntry(t)
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		b := e.Append(nil)
		got, err := ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, got); diff != "" {
			t.Fatalf("-want +got:\n%s", diff)
		}
		if again := got.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("encoded again: %x, want %x", again, b)
		}
	})
}

func FuzzParseEntry(f *testing.F) {
	for _, e := range sampleEntries() {
		f.Add(e.Append(nil))
	}
	f.Add([]byte{2, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEntry(b)
		if err != nil {
			if !errors.Is(err, ErrEntry) && !errors.Is(err, ErrEntryVersion) && !errors.Is(err, ErrUnknownKind) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		if again := e.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("parsed %x and encoded %x", b, again)
		}
	})
}
