package environ

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type vectors struct {
	Whole []struct {
		Name string            `json:"name"`
		Text string            `json:"text"`
		Map  map[string]string `json:"map"`
	} `json:"whole"`
	Malformed []struct {
		Name string `json:"name"`
		Text string `json:"text"`
	} `json:"malformed"`
}

func readVectors(t testing.TB) vectors {
	b, err := os.ReadFile("../../testdata/vectors/environ/index.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVectors(t *testing.T) {
	v := readVectors(t)
	if len(v.Whole) < 3 || len(v.Malformed) < 15 {
		t.Fatalf("%d whole and %d malformed vectors; some are missing", len(v.Whole), len(v.Malformed))
	}
	for _, c := range v.Whole {
		got, err := Decode([]byte(c.Text))
		if err != nil || !maps.Equal(got, c.Map) {
			t.Errorf("%s: Decode = %q, %v", c.Name, got, err)
		}
		text, err := Encode(c.Map)
		if err != nil || string(text) != c.Text {
			t.Errorf("%s: Encode = %q, %v", c.Name, text, err)
		}
	}
	for _, c := range v.Malformed {
		if m, err := Decode([]byte(c.Text)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: Decode = %q, %v; want ErrFormat", c.Name, m, err)
		}
	}
}

// many returns n keys with values of the given length.
func many(n, length int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("k%04d", i)] = strings.Repeat("v", length)
	}
	return m
}

func TestLimits(t *testing.T) {
	line := func(n int) string { return "k=" + strings.Repeat("v", n) + "\n" }
	if _, err := Decode([]byte(line(MaxValue))); err != nil {
		t.Error(err)
	}
	if _, err := Decode([]byte(line(MaxValue + 1))); !errors.Is(err, ErrFormat) {
		t.Errorf("a long value: %v", err)
	}
	for _, tt := range []struct {
		name string
		m    map[string]string
		ok   bool
	}{
		{"as many as can be", many(MaxKeys, 1), true},
		{"one more", many(MaxKeys+1, 1), false},
		{"as long as can be", many(32, 512-7), true}, // "k0000=" and "\n"
		{"longer", many(32, 512-6), false},
	} {
		text, err := Encode(tt.m)
		if tt.ok != (err == nil) {
			t.Errorf("%s: Encode: %v", tt.name, err)
		}
		if !tt.ok {
			var b strings.Builder
			for _, k := range slices.Sorted(maps.Keys(tt.m)) {
				fmt.Fprintf(&b, "%s=%s\n", k, tt.m[k])
			}
			text = []byte(b.String())
		}
		if _, err := Decode(text); tt.ok != (err == nil) {
			t.Errorf("%s: Decode: %v", tt.name, err)
		}
	}
	for _, m := range []map[string]string{{"K": ""}, {"k": "\n"}, {"k": " v"}, {"k": "ü"}, {"k": strings.Repeat("v", 513)}, {strings.Repeat("k", 64): ""}} {
		if text, err := Encode(m); !errors.Is(err, ErrFormat) {
			t.Errorf("Encode(%q) = %q, %v", m, text, err)
		}
	}
}

func TestClean(t *testing.T) {
	long := strings.Repeat("x", 600)
	got, dropped := Clean(map[string]string{
		"xla.flags": "--xla_gpu_deterministic_ops=true\n--xla_cpu_enable_fast_math=false", "cpu.model": " Grün\x1b[31m ", "long": long, "bidi": "a\u202eb",
		"aws.secret": "s3cr3t", "api_key": "s3cr3t", "Upper": "v", "": "v", "a=b": "v", "x\ny": "v", "ü": "v", "0x": "v", "keyboard": "ok",
	})
	want := map[string]string{
		"xla.flags": "--xla_gpu_deterministic_ops=true --xla_cpu_enable_fast_math=false", "cpu.model": "Gr?n [31m", "long": long[:509] + "...", "bidi": "a?b", "keyboard": "ok",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{`""`, `"0x"`, `"Upper"`, `"a=b"`, `"x\ny"`, `"ü"`, "api_key", "aws.secret"}, dropped); diff != "" {
		t.Error(diff)
	}

	// What matters most stays.
	m := many(400, 1)
	m["zz"], m["jax.enable_x64"], m["goarch"] = "v", "true", "amd64"
	got, dropped = Clean(m)
	if len(got) != MaxKeys || len(dropped) != 403-MaxKeys || got["jax.enable_x64"] != "true" || got["goarch"] != "amd64" || dropped[len(dropped)-1] != "zz" {
		t.Errorf("%d kept, %d dropped: %v", len(got), len(dropped), dropped)
	}
	m = many(40, MaxValue)
	m["zz"] = "short"
	if got, dropped = Clean(m); len(dropped) != 9 || got["zz"] != "short" {
		t.Errorf("of 40 long values %v were dropped", dropped)
	}
	if _, err := Encode(got); err != nil {
		t.Error(err)
	}
}

func TestDiff(t *testing.T) {
	a := map[string]string{"goarch": "amd64", "goos": "linux", "cpu.features": "avx fma", "same": "x", "empty": "", "xla.flags": "--a", "program.version": "v1"}
	b := map[string]string{"goarch": "arm64", "goos": "darwin", "cpu.features": "asimd", "same": "x", "xla.flags": "--a --b", "jax.enable_x64": "true", "program.version": "v2"}
	want := []Difference{
		{Key: "goarch", A: "amd64", B: "arm64", Numerics: true},
		{Key: "jax.enable_x64", B: "true", OnlyB: true, Numerics: true},
		{Key: "xla.flags", A: "--a", B: "--a --b", Numerics: true},
		{Key: "cpu.features", A: "avx fma", B: "asimd", Numerics: true},
		{Key: "program.version", A: "v1", B: "v2", Numerics: true},
		{Key: "empty", OnlyA: true},
		{Key: "goos", A: "linux", B: "darwin"},
	}
	if diff := cmp.Diff(want, Diff(a, b)); diff != "" {
		t.Error(diff)
	}
	if got := Diff(a, a); got != nil {
		t.Errorf("an environment differs from itself: %v", got)
	}
}

// TestAny wants everything that Clean returns to be written, read, and left alone by Clean.
func TestAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.OneOf(rapid.StringMatching(`[a-z][a-z0-9_.]{0,62}`), rapid.String(), rapid.SampledFrom([]string{"goarch", "a.token"}))
		value := rapid.OneOf(rapid.String(), rapid.StringN(400, 900, -1))
		in := rapid.MapOfN(key, value, 0, 300).Draw(t, "map")
		m, dropped := Clean(in)
		if len(m)+len(dropped) != len(in) {
			t.Fatalf("%d kept and %d dropped of %d", len(m), len(dropped), len(in))
		}
		text, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(text)
		if err != nil || !maps.Equal(again, m) {
			t.Fatalf("%v\n%q\n%q", err, m, again)
		}
		if twice, dropped := Clean(m); !maps.Equal(twice, m) || dropped != nil {
			t.Fatalf("cleaned twice: %q, dropped %q", twice, dropped)
		}
		if d := Diff(m, again); d != nil {
			t.Fatal(d)
		}
	})
}

func FuzzDecode(f *testing.F) {
	v := readVectors(f)
	for _, c := range v.Whole {
		f.Add([]byte(c.Text))
	}
	for _, c := range v.Malformed {
		f.Add([]byte(c.Text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Decode(text)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		again, err := Encode(m)
		if err != nil || string(again) != string(text) {
			t.Fatalf("%q is read and written as %q, %v", text, again, err)
		}
	})
}
