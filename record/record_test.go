package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func mustSchema(t testing.TB, fields ...Field) *Schema {
	t.Helper()
	s, err := NewSchema("test.v1", fields...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchemaLayout(t *testing.T) {
	s := mustSchema(t,
		Field{Name: "rho", Class: Digest, Len: 3},
		Field{Name: "loss", Class: Metric, Type: Float32, Unit: "nats"},
		Field{Name: "flags", Class: Flag, Type: Uint64},
		Field{Name: "ot_cost", Class: Digest},
		Field{Name: "grad", Class: Metric, Len: 2},
	)
	const want = "usp-schema v1\nname test.v1\nfield loss metric f32 1 nats\nfield flags flag u64 1 -\n" +
		"field grad metric f64 2 -\nfield rho digest f64 3 -\nfield ot_cost digest f64 1 -\n"
	if diff := cmp.Diff(want, string(s.Text())); diff != "" {
		t.Error(diff)
	}
	if s.Words() != 2+8 || s.StoredWords() != 2+4 {
		t.Errorf("words %d stored %d, want 10 and 6", s.Words(), s.StoredWords())
	}
	if i, ok := s.Index("rho"); !ok || s.Offset(i) != 6 {
		t.Errorf("rho at field %d, word %d, want word 6", i, s.Offset(i))
	}
	if diff := cmp.Diff([]string{"rho", "ot_cost"}, s.DigestFields()); diff != "" {
		t.Error(diff)
	}
	if s.Sum() != sha256.Sum256([]byte(want)) {
		t.Error("Sum is not the SHA-256 of the text")
	}
}

func TestSchemaRefusals(t *testing.T) {
	for _, c := range []struct {
		why    string
		fields []Field
	}{
		{"stands twice", []Field{{Name: "a", Class: Metric}, {Name: "a", Class: Flag}}},
		{"already", []Field{{Name: "step", Class: Metric}}},
		{"starting with a letter", []Field{{Name: "1a", Class: Metric}}},
		{"starting with a letter", []Field{{Name: "A", Class: Metric}}},
		{"class", []Field{{Name: "a"}}},
		{"unknown type", []Field{{Name: "a", Class: Metric, Type: 9}}},
		{"length", []Field{{Name: "a", Class: Metric, Len: -1}}},
		{"f64 or f32", []Field{{Name: "a", Class: Digest, Type: Uint64}}},
		{"unit", []Field{{Name: "a", Class: Metric, Unit: "m s"}}},
		{"elements", []Field{{Name: "a", Class: Metric, Len: MaxElements}, {Name: "b", Class: Metric}}},
		{"fields", nil},
	} {
		_, err := NewSchema("x", c.fields...)
		if !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%+v: error %v, want ErrSchema saying %q", c.fields, err, c.why)
		}
	}
	if _, err := NewSchema("Bad Name", Field{Name: "a", Class: Metric}); !errors.Is(err, ErrSchema) {
		t.Errorf("bad schema name: %v", err)
	}
}

// The expected digests stand in reference/predictor.md 3.0 (computed there with Python's hashlib over '<f8' bytes).
func TestSumKnownAnswers(t *testing.T) {
	nan := math.Float64frombits(0xfff8000000000123)
	for _, c := range []struct {
		xs   []float64
		want string
	}{
		{[]float64{.25, .25, .25, .25}, "5073e61eafb5e090b20e50cfa38e1505dbb9a00d659ef6cd6659298674226ad7"},
		{[]float64{.4, .3, .2, .1}, "9282b4f783dd10ee83ac28218b5b654eceb6eba3affd2082e380119ecaddbb2b"},
		{[]float64{0}, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"},
		{[]float64{math.Copysign(0, -1)}, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"},
	} {
		if got := SumFloat64s(c.xs); hex.EncodeToString(got[:]) != c.want {
			t.Errorf("SumFloat64s(%v) = %x, want %s", c.xs, got, c.want)
		}
	}
	if Canonical(nan) != 0x7ff8000000000000 || Canonical(math.NaN()) != 0x7ff8000000000000 {
		t.Error("NaN is not canonical")
	}
	if x := 5e-324; Canonical(x) != 1 || Canonical(math.Inf(-1)) != 0xfff0000000000000 {
		t.Error("subnormals and infinities must be kept")
	}
}

func TestDigester(t *testing.T) {
	s := mustSchema(t, Field{Name: "m", Class: Metric}, Field{Name: "rho", Class: Digest, Len: 4}, Field{Name: "cost", Class: Digest, Type: Float32})
	v := NewValues(s)
	rho, _ := s.Index("rho")
	cost, _ := s.Index("cost")
	v.SetFloat64s(rho, []float64{.4, .3, .2, .1})
	v.SetFloat64(cost, math.Inf(1))
	d := NewDigester(s)
	sums, bad := d.Append(nil, v.Payload(1, 2))
	if len(sums) != 2 || bad != 2 {
		t.Fatalf("%d sums, nonfinite %b, want 2 and 10", len(sums), bad)
	}
	if sums[0] != SumFloat64s([]float64{.4, .3, .2, .1}) || sums[1] != SumFloat64s([]float64{math.Inf(1)}) {
		t.Error("digests differ from SumFloat64s of the same values")
	}
	sums = sums[:0]
	if n := testing.AllocsPerRun(100, func() { sums, _ = d.Append(sums[:0], v.Payload(1, 2)) }); n != 0 && !raceEnabled {
		t.Errorf("%v allocations per record", n)
	}
}

func TestValuesPanicsOnMisuse(t *testing.T) {
	s := mustSchema(t, Field{Name: "m", Class: Metric}, Field{Name: "v", Class: Metric, Len: 2}, Field{Name: "u", Class: Flag, Type: Uint64})
	v := NewValues(s)
	for name, f := range map[string]func(){
		"vector as scalar": func() { v.SetFloat64(1, 1) },
		"float as bits":    func() { v.SetUint64(0, 1) },
		"bits as float":    func() { v.SetFloat64(2, 1) },
		"bits as int":      func() { v.SetInt64(2, 1) },
		"wrong length":     func() { v.SetFloat64s(1, []float64{1}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func genSchema(t *rapid.T) *Schema {
	n := rapid.IntRange(1, 6).Draw(t, "n")
	var fields []Field
	for i := range n {
		f := Field{Name: string(rune('a' + i)), Class: Class(rapid.IntRange(1, 3).Draw(t, "class")), Len: rapid.IntRange(1, 5).Draw(t, "len")}
		f.Type = Type(rapid.IntRange(1, 4).Draw(t, "type"))
		if f.Class == Digest {
			f.Type = Float64
		}
		f.Unit = rapid.SampledFrom([]string{"", "s", "%", "m/s"}).Draw(t, "unit")
		fields = append(fields, f)
	}
	s, err := NewSchema("gen", fields...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchemaTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSchema(t)
		back, err := ParseSchema(s.Text())
		if err != nil {
			t.Fatal(err)
		}
		if back.Sum() != s.Sum() || back.Words() != s.Words() || back.StoredWords() != s.StoredWords() {
			t.Fatal("schema changed by its text form")
		}
	})
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.Uint64(), 2, 20).Draw(t, "words")
		gen, seq := rapid.Uint32().Draw(t, "gen"), rapid.Uint64().Draw(t, "seq")
		var f Frame
		if err := DecodeFrame(AppendRecord(nil, gen, seq, words), &f); err != nil {
			t.Fatal(err)
		}
		if f.Kind != KindRecord || f.Generation != gen || f.Seq != seq || !slices.Equal(f.Words, words) {
			t.Fatalf("got %+v", f)
		}
	})
}

func FuzzParseSchema(f *testing.F) {
	f.Add([]byte("usp-schema v1\nname a\nfield m metric f64 1 -\n"))
	f.Add([]byte("usp-schema v1\nname a\nfield m metric f64 1 -\nfield d digest f32 7 kg\n"))
	f.Add([]byte("usp-schema v1\nname a\nfield d digest f32 07 kg\nfield m metric f64 1 -\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSchema(text)
		if err != nil {
			if !errors.Is(err, ErrSchema) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		if !bytes.Equal(s.Text(), text) {
			t.Fatalf("accepted %q, writes %q", text, s.Text())
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add(AppendRecord(nil, 1, 7, []uint64{1, 2, 3}))
	f.Add(AppendLost(nil, 0, 5, 9, LostOverrun))
	f.Add(AppendLost(nil, 0, 9, 5, LostTorn))
	f.Fuzz(func(t *testing.T, b []byte) {
		var fr Frame
		if err := DecodeFrame(b, &fr); err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		var back []byte
		if fr.Kind == KindRecord {
			back = AppendRecord(nil, fr.Generation, fr.Seq, fr.Words)
		} else {
			back = AppendLost(nil, fr.Generation, fr.Seq, fr.To, fr.Reason)
		}
		if !bytes.Equal(back, b) {
			t.Fatalf("accepted %x, writes %x", b, back)
		}
	})
}

func TestStreamMetaRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := StreamMeta{Generation: rapid.Uint32().Draw(t, "gen"), Stored: rapid.Uint64().Draw(t, "stored"), Lost: rapid.Uint64().Draw(t, "lost"), Schema: genSchema(t)}
		back, err := ParseStreamMeta(m.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if back.Generation != m.Generation || back.Stored != m.Stored || back.Lost != m.Lost || back.Schema.Sum() != m.Schema.Sum() {
			t.Fatalf("got %+v, want %+v", back, m)
		}
	})
}

func FuzzParseStreamMeta(f *testing.F) {
	f.Add([]byte("usp-telemetry v1\ngeneration 0\nstored 1\nlost 2\nusp-schema v1\nname a\nfield m metric f64 1 -\n"))
	f.Add([]byte("usp-telemetry v1\ngeneration 4294967296\nstored 1\nlost 2\nusp-schema v1\nname a\nfield m metric f64 1 -\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseStreamMeta(b)
		if err != nil {
			if !errors.Is(err, ErrSchema) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		if !bytes.Equal(m.Append(nil), b) {
			t.Fatalf("accepted %q, writes %q", b, m.Append(nil))
		}
	})
}
