package config

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"
)

// TestSHA256 wants the digest to follow the values and nothing else.
func TestSHA256(t *testing.T) {
	a, err := Check("a.toml", []byte("[ring]\nslots = 8\n"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Load(Options{Env: []string{"USP_RING_SLOTS=8"}})
	if err != nil {
		t.Fatal(err)
	}
	if a.SHA256() != b.SHA256() {
		t.Error("the same settings have two digests")
	}
	var text strings.Builder
	for _, v := range a.Values() {
		section, key, _ := strings.Cut(v.Key, ".")
		_, table, _ := strings.Cut(a.TOML(), "\n["+section+"]\n")
		_, line, _ := strings.Cut("\n"+table, "\n"+key+" = ")
		line, _, _ = strings.Cut(line, "\n")
		text.WriteString(v.Key + " = " + line + "\n")
	}
	if a.SHA256() != sha256.Sum256([]byte(text.String())) {
		t.Errorf("not the digest of\n%s", &text)
	}
	seen := map[[32]byte]string{a.SHA256(): "ring.slots"}
	for i, f := range fieldsOf(new(Config)) {
		if f.name == "ring.slots" {
			continue
		}
		c := a.Config
		changed := fieldsOf(&c)[i]
		switch {
		case f.value.Kind() == reflect.String:
			changed.value.SetString("other")
		case f.value.CanFloat():
			changed.value.SetFloat(0.123)
		case f.value.CanUint():
			changed.value.SetUint(123)
		case f.value.Kind() == reflect.Bool:
			changed.value.SetBool(!changed.value.Bool())
		case f.value.Type() == reflect.TypeFor[[]int]():
			changed.value.Set(reflect.ValueOf([]int{7}))
		case f.isList():
			changed.value.Set(reflect.ValueOf([]string{"other"}))
		default:
			changed.value.SetInt(123)
		}
		if other := seen[c.SHA256()]; other != "" {
			t.Errorf("%s and %s give the same digest", f.name, other)
		}
		seen[c.SHA256()] = f.name
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"interval", "intreval", 1}, {"slots", "slts", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 1}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// TestGolden holds the texts that people copy to what they were.
func TestGolden(t *testing.T) {
	c := Default()
	for name, got := range map[string]string{"default.toml": c.TOML(), "schema.json": string(Schema())} {
		name = filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-update rewrites it): %s", name, diff)
		}
	}
}

// TestSchema wants the schema to know the settings, and no others, with
// defaults that it allows.
func TestSchema(t *testing.T) {
	var s struct {
		Properties map[string]struct {
			Additional *bool                     `json:"additionalProperties"`
			Properties map[string]map[string]any `json:"properties"`
		}
	}
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	n := 0
	for name, table := range s.Properties {
		if table.Additional == nil || *table.Additional {
			t.Errorf("[%s] allows any key", name)
		}
		n += len(table.Properties)
	}
	for _, key := range Keys() {
		section, name, _ := strings.Cut(key, ".")
		if p := s.Properties[section].Properties[name]; p["type"] == nil || p["description"] == "" || p["default"] == nil {
			t.Errorf("%s: %v", key, p)
		}
	}
	if n != len(Keys()) {
		t.Errorf("%d keys, want %d", n, len(Keys()))
	}
}

// TestRoundTrip wants TOML to give back any settings, whoever reads it.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Default()
		c.Run.Dir = rapid.String().Draw(t, "dir")
		c.Ring.Dir = rapid.StringMatching("[\x00-\x7fé\"'\\\\]*").Draw(t, "ring")
		c.Ring.StagingCapacity = Size(rapid.Int64Range(0, 1<<62).Draw(t, "capacity"))
		c.Recorder.CommitInterval = Duration(rapid.Int64().Draw(t, "interval"))
		c.Predictor.Coverage = rapid.Float64().Draw(t, "coverage")
		c.Snapshot.Interval = uint64(rapid.Int64Range(0, 1<<62).Draw(t, "steps"))
		c.Snapshot.OnEvents = rapid.Bool().Draw(t, "events")
		c.Snapshot.Recipients = append([]string{}, rapid.SliceOf(rapid.String()).Draw(t, "recipients")...)
		c.Digest.Levels = append([]int{}, rapid.SliceOf(rapid.Int()).Draw(t, "levels")...)
		text := c.TOML()
		got := Default()
		if _, errs := decode(&got, "x", []byte(text)); len(errs) > 0 {
			t.Fatalf("%v\n%s", errs, text)
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Fatal(diff)
		}
		var plain Config
		if err := toml.Unmarshal([]byte(text), &plain); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, plain); diff != "" {
			t.Fatalf("by the library alone: %s", diff)
		}
	})
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "0B": 0, "5": 5, "5B": 5, "1kB": 1000, "1KiB": 1024, "64MiB": 64 << 20, "3 GB": 3e9, "1TiB": 1 << 40, "2TB": 2e12, "8388607TiB": 8388607 << 40,
	} {
		var got, again Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%s was written as %s", text, got)
		}
	}
	for _, text := range []string{"", "B", "-1", "1.5MiB", "1mib", "1MiBs", "8388608TiB", "99999999999999999999", "0x10", "1 0"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

// FuzzDecode wants no panic on any file, errors that name their place in it,
// and what is accepted to be written and read back as it is.
func FuzzDecode(f *testing.F) {
	c := Default()
	for _, s := range []string{
		c.TOML(), "[ring]\nslots = 1000\n[rign]\nx=1\n", "recorder = {commit_interval = \"5\", a.b = [1, {c=2}]}", "[[run]]\n", "ring.slots.x = 1",
		"\ufeff[run]\r\ndir = '''\r\na\"\\'''\r\n", "[run]\n\"d\\u0069r\" = 1979-05-27T07:32:00Z\n", "a = \"", "[digest]\ninterval = 0xffff_ffff_ffff_ffff", "x=[[[[[[{a=[[",
		"[run]\ntime_column = \"value\"\n[recorder]\nsegment_size = \"64KiB\"\n",
		"[snapshot]\non_events = false\nrecipients = [\n  \"age1x\", # a\n  5]\nidentity_file = [true]\n",
		"[predictor]\ncoverage = nan\nepsilon_max = -inf\nseason = 9223372036854775807\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := Check("usp.toml", text)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("%T %v", err, err)
			}
			for _, e := range errs {
				if !strings.HasPrefix(e.Error(), "usp.toml:") {
					t.Fatalf("no place: %q", e.Error())
				}
				if strings.ContainsAny(e.What, "\n\r") || strings.Count(e.Excerpt, "\n") > 1 || len([]rune(e.Excerpt)) > 4*widest {
					t.Fatalf("not one clear line: %q", e.Error())
				}
			}
			return
		}
		again, err := Check("usp.toml", []byte(l.TOML()))
		if err != nil || !reflect.DeepEqual(again.Config, l.Config) {
			t.Fatalf("%+v was written as\n%s\nand read as %+v, %v", l.Config, l.TOML(), again, err)
		}
	})
}
