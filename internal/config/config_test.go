package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/predictor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestDefaults wants the defaults to be valid and each setting documented.
func TestDefaults(t *testing.T) {
	l, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), l.Config); diff != "" {
		t.Error(diff)
	}
	seen := map[string]bool{}
	for _, f := range fieldsOf(&l.Config) {
		if f.key == "" || f.doc == "" || !strings.HasSuffix(f.doc, ".") || seen[f.env()] {
			t.Errorf("%s: no key, no comment, or a variable twice: %+v", f.name, f)
		}
		seen[f.env()] = true
		if got := l.Origin(f.name).String(); got != "default" {
			t.Errorf("%s comes from %s", f.name, got)
		}
	}
	c := l.Config
	if c.Recorder.CommitInterval != Duration(50*time.Millisecond) || c.Snapshot.Interval != 100 || c.Snapshot.KeepLast != 5 ||
		c.Digest.Interval != 1 || c.Digest.HeadInterval != Duration(time.Second) || c.Snapshot.Compression != "none" || c.Run.Dir != "runs" {
		t.Errorf("defaults have changed: %+v", c)
	}
	if c.PredictorConfig() != (predictor.Config{}).WithDefaults() {
		t.Errorf("predictor: %+v", c.PredictorConfig())
	}
}

// TestFaults is the reference of what a person sees. Each case is one file.
func TestFaults(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{
			"unknown key", "[recorder]\ncomit_interval = \"1s\"\n",
			`usp.toml:2:1: unknown key "comit_interval" in [recorder]; did you mean "commit_interval"?
   2 | comit_interval = …
     | ^^^^^^^^^^^^^^`,
		},
		{
			"unknown section, its keys not repeated", "\n  [rign] # x\nslots = 4\n[rign.x]\ny = 1\n",
			`usp.toml:2:4: unknown section "rign"; did you mean "ring"?
   2 |   [rign]
     |    ^^^^`,
		},
		{
			"key of another section", "[recorder]\nring_dir = \"x\"\nhead_interval = \"1s\"\nsgments = 1\n",
			`usp.toml:2:1: unknown key "ring_dir" in [recorder]; did you mean "dir" in [ring]?
   2 | ring_dir = …
     | ^^^^^^^^
usp.toml:3:1: unknown key "head_interval" in [recorder]; did you mean "head_interval" in [digest]?
   3 | head_interval = …
     | ^^^^^^^^^^^^^
usp.toml:4:1: unknown key "sgments" in [recorder]
   4 | sgments = …
     | ^^^^^^^`,
		},
		{
			"key without a section", "season = 5\ndir.x = 4\n",
			`usp.toml:1:1: unknown key "season"; did you mean "season" in [predictor]?
   1 | season = …
     | ^^^^^^
usp.toml:2:1: unknown section "dir"; did you mean "dir" in [anchor]?
   2 | dir.x = …
     | ^^^^^`,
		},
		{
			"other case", "[Ring]\n[digest]\nInterval = 2\n",
			`usp.toml:1:2: unknown section "Ring"; did you mean "ring"?
   1 | [Ring]
     |  ^^^^
usp.toml:3:1: unknown key "Interval" in [digest]; did you mean "interval"?
   3 | Interval = …
     | ^^^^^^^^`,
		},
		{
			"types, all at once, with ranges between", "[ring]\nslots = 1000\n[snapshot]\ninterval = \"x\"\ncompression = \"zst\"\nlevel = 3.5\nmax_age = 60\nkeep_last = [1]\nkeep_every = -1\n",
			`usp.toml:2:1: ring.slots: 1000 is not a power of two; write 512 or 1024
   2 | slots = 1000
     | ^^^^^
usp.toml:4:1: snapshot.interval: "x" is not a whole number; write one such as 100
   4 | interval = "x"
     | ^^^^^^^^
usp.toml:5:1: snapshot.compression: "zst" is not one of none, zstd; did you mean "zstd"?
   5 | compression = "zst"
     | ^^^^^^^^^^^
usp.toml:6:1: snapshot.level: 3.5 is not a whole number; write one such as 100
   6 | level = 3.5
     | ^^^^^
usp.toml:7:1: snapshot.max_age: 60 is not a duration; write one with its unit, such as "50ms"
   7 | max_age = 60
     | ^^^^^^^
usp.toml:8:1: snapshot.keep_last: a list is not a whole number; write one such as 100
   8 | keep_last = [1]
     | ^^^^^^^^^
usp.toml:9:1: snapshot.keep_every: -1 is below the least allowed, 0
   9 | keep_every = -1
     | ^^^^^^^^^^`,
		},
		{
			"inline table", "recorder = {commit_interval = \"5\", a = 1, commit_bytes = \"lots\"}\n",
			`usp.toml:1:13: recorder.commit_interval: "5" is not a duration; write one with its unit, such as "50ms" or "1h30m"
   1 | recorder = {commit_interval = "5", a = 1, commit_bytes = "lots"}
     |             ^^^^^^^^^^^^^^^
usp.toml:1:36: unknown key "a" in [recorder]
   1 | … a = …
     |   ^
usp.toml:1:43: recorder.commit_bytes: "lots" is not a size; write one such as "64MiB" or "512KiB"
   1 | recorder = {commit_interval = "5", a = 1, commit_bytes = "lots"}
     |                                           ^^^^^^^^^^^^`,
		},
		{
			"sections that are none", "ring = 5\n[[digest]]\ninterval = 2\n",
			`usp.toml:1:1: ring is a section; write [ring] and its keys below
   1 | ring = 5
     | ^^^^
usp.toml:2:3: digest is a section; write [digest] and its keys below
   2 | [[digest]]
     |   ^^^^^^`,
		},
		{
			"keys that are none", "[snapshot]\ninterval.x = 4\n[snapshot.level]\ny = 1\n",
			`usp.toml:2:1: snapshot.interval: a table is not a whole number; write one such as 100
   2 | interval.x = 4
     | ^^^^^^^^^^
usp.toml:3:2: snapshot.level: a table is not a whole number; write one such as 100
   3 | [snapshot.level]
     |  ^^^^^^^^^^^^^^`,
		},
		{
			"limits", "[ring]\nstaging_areas = 0\n[recorder]\nsegment_size = 5\ncommit_interval = \"2h\"\n[predictor]\ncoverage = 2\ngrace = 0\n",
			`usp.toml:2:1: ring.staging_areas: 0 is below the least allowed, 1
   2 | staging_areas = 0
     | ^^^^^^^^^^^^^
usp.toml:4:1: recorder.segment_size: "5B" is below the least allowed, "64KiB"
   4 | segment_size = 5
     | ^^^^^^^^^^^^
usp.toml:5:1: recorder.commit_interval: "2h0m0s" is above the most allowed, "1h0m0s"
   5 | commit_interval = "2h"
     | ^^^^^^^^^^^^^^^
usp.toml:7:1: predictor.coverage: 2 is outside the allowed 0.5 to 0.995
   7 | coverage = 2
     | ^^^^^^^^
usp.toml:8:1: predictor.grace: 0 is not allowed; remove the key for its default
   8 | grace = 0
     | ^^^^^`,
		},
		{
			"arrivals of a column that is taken", "[run]\narrival_column = \"time\"\n",
			`usp.toml:2:1: run.arrival_column: must name another column than time_column and value_column
   2 | arrival_column = "time"
     | ^^^^^^^^^^^^^^`,
		},
		{
			"one against another", "[snapshot]\nlevel = 3\n[run]\nvalue_column = \"time\"\ndir = \"\"\n[recorder]\ncommit_bytes = \"65MiB\"\n[orchestrator]\nepsilon_min = 0.6\n",
			`usp.toml:2:1: snapshot.level: has no meaning with compression "none"; remove it or write compression = "zstd"
   2 | level = 3
     | ^^^^^
usp.toml:4:1: run.value_column: time_column and value_column must name two different columns
   4 | value_column = "time"
     | ^^^^^^^^^^^^
usp.toml:5:1: run.dir: is empty; name a directory, such as "runs"
   5 | dir = ""
     | ^^^
usp.toml:7:1: recorder.commit_bytes: commit_bytes, 65MiB, is more than segment_size, 16MiB
   7 | commit_bytes = "65MiB"
     | ^^^^^^^^^^^^
usp.toml:9:1: orchestrator.epsilon_min: epsilon_min, 0.6, is above epsilon_max, 0.5
   9 | epsilon_min = 0.6
     | ^^^^^^^^^^^`,
		},
		{
			"truth values and lists", "[snapshot]\non_events = 1\nrecipients = \"" + publicKey + "\"\nlevel = true\n[ring]\nslots = [2]\n",
			`usp.toml:2:1: snapshot.on_events: 1 is not a truth value; write true or false
   2 | on_events = 1
     | ^^^^^^^^^
usp.toml:3:1: snapshot.recipients: a text is not a list of texts; write one such as ["a", "b"]
   3 | recipients = …
     | ^^^^^^^^^^
usp.toml:4:1: snapshot.level: true is not a whole number; write one such as 100
   4 | level = true
     | ^^^^^
usp.toml:6:1: ring.slots: a list is not a whole number; write one such as 100
   6 | slots = [2]
     | ^^^^^`,
		},
		{
			"an item of a list", "[snapshot]\nrecipients = [\n  \"" + publicKey + "\",\n  7,\n]\n",
			`usp.toml:2:1: snapshot.recipients: item 2, 7, is not a text; write it in quotes
   2 | recipients = …
     | ^^^^^^^^^^`,
		},
		{
			"no public key", "[snapshot]\nrecipients = [\"" + publicKey + "\", \"ssh-ed25519 AAAA\"]\n",
			`usp.toml:2:1: snapshot.recipients: recipient 2: is no age public key: want "age1…" as age-keygen prints it; keys of ssh and of plugins are not supported
   2 | recipients = …
     | ^^^^^^^^^^`,
		},
		{
			"syntax of a known key", "[run]\n\tdir = home\n",
			`usp.toml:2:8: unexpected character U+0068 'h' at start of value
   2 |  dir = home
     |        ^`,
		},
		{
			"syntax of an unknown key, which may be a secret", "[run]\npassword = hunter2\n",
			`usp.toml:2:12: unexpected character U+0068 'h' at start of value
   2 | password = …
     | ^^^^^^^^`,
		},
		{
			"twice", "[run]\ndir = \"a\"\ndir = \"b\"\n",
			`usp.toml:3:1: key dir is already defined
   3 | dir = "b"
     | ^`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Check("usp.toml", []byte(tt.text))
			var errs Errors
			if !errors.As(err, &errs) {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestPredictor wants each parameter judged by the predictor itself, with the
// others as they are.
func TestPredictor(t *testing.T) {
	for text, want := range map[string]string{
		"epsilon_min = 0.6\nepsilon_max = 0.7":           "",
		"epsilon_min = 0.005\nepsilon_max = 0.01":        "",
		"epsilon_max = 0.01":                             "usp.toml:2:1: orchestrator.epsilon_max: epsilon_min, 0.02, is above epsilon_max, 0.01",
		"epsilon_max = 2000":                             "usp.toml:2:1: orchestrator.epsilon_max: 2000 is outside the allowed 0.02 to 1000",
		"epsilon_min = 1e-9":                             "usp.toml:2:1: orchestrator.epsilon_min: 1e-09 is outside the allowed 0.001 to 100",
		"step = \"ml-polly\"":                            `usp.toml:2:1: orchestrator.step: "ml-polly" is not one of hk, jko, ewa, fixed-share, boa, ml-poly, uniform; did you mean "ml-poly"?`,
		"tau = 1e9":                                      "usp.toml:2:1: orchestrator.tau: 1e+09 is outside the allowed 1e-06 to 10000",
		"season = 9999":                                  "usp.toml:2:1: predictor.season: 9999 is outside the allowed 0 to 8784",
		"coverage = nan":                                 "usp.toml:2:1: predictor.coverage: is not finite; write a finite number",
		"cusum_slack = \"x\"\ngrace = 9\ncoverage = 0.8": "usp.toml:2:1: predictor.cusum_slack: \"x\" is not a number; write one such as 0.9",
	} {
		section := "[predictor]\n"
		if strings.HasPrefix(text, "eps") || strings.HasPrefix(text, "step") || strings.HasPrefix(text, "tau") {
			section = "[orchestrator]\n"
		}
		_, err := Check("usp.toml", []byte(section+text))
		got := ""
		if err != nil {
			got, _, _ = strings.Cut(err.Error(), "\n")
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", text, got, want)
		}
	}
	if err := (predictor.Config{Coverage: 2}).Validate(); err == nil || !strings.HasPrefix(err.Error(), "predictor: coverage is 2, want ") {
		t.Errorf("the predictor words its faults in another way: %v", err) // checkPredictor parses them
	}
}

// TestOrder wants flag over variable over file over default, and the origin to
// say so.
func TestOrder(t *testing.T) {
	file := "# comment\r\n[run]\r\ndir = \"file\"\r\ntime_column = \"t\"\r\n[ring]\r\nslots = 8\r\nstaging_areas = 3\r\n[digest]\r\ninterval = 5\r\n"
	l, err := Load(Options{
		Search:   []string{"none.toml", "usp.toml", "never.toml"},
		ReadFile: files{"usp.toml": "\ufeff" + file, "never.toml": "x"}.read,
		Env: []string{
			"USP_RING_SLOTS=16", "USP_RING_STAGING_AREAS=4", "USP_RING_DIR=/dev/shm/x", "USP_DIR=short", "USP_RUN_DIR=long",
			"USP_SNAPSHOT_MAX_AGE=1h", "USP_RECORDER_COMMIT_BYTES=64KiB", "USP_PREDICTOR_COVERAGE=0.8", "USP_DIGEST_INTERVAL=",
		},
		Flags: []Setting{{"ring.slots", "32", "--slots"}, {"predictor.season", "11", "--season"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Run.Dir, want.Run.TimeColumn = "long", "t"
	want.Ring.Slots, want.Ring.StagingAreas, want.Ring.Dir = 32, 4, "/dev/shm/x"
	want.Snapshot.MaxAge, want.Recorder.CommitBytes = Duration(time.Hour), 64<<10
	want.Predictor.Coverage, want.Predictor.Season = 0.8, 11
	want.Digest.Interval = 5
	if diff := cmp.Diff(want, l.Config); diff != "" {
		t.Error(diff)
	}
	if l.File != "usp.toml" || len(l.Warnings) != 0 {
		t.Errorf("file %q, warnings %q", l.File, l.Warnings)
	}
	for key, want := range map[string]string{
		"run.dir": "USP_RUN_DIR", "run.time_column": "usp.toml:4", "run.value_column": "default", "ring.slots": "--slots",
		"ring.staging_areas": "USP_RING_STAGING_AREAS", "predictor.season": "--season", "digest.interval": "usp.toml:9",
	} {
		if got := l.Origin(key).String(); got != want {
			t.Errorf("%s comes from %s, want %s", key, got, want)
		}
	}
	show := l.Show()
	for _, want := range []string{"slots = 32 ", "# --slots\n", "interval = 5 ", "# usp.toml:9\n", "dir = \"long\"", "# USP_RUN_DIR\n"} {
		if !strings.Contains(show, want) {
			t.Errorf("Show lacks %q:\n%s", want, show)
		}
	}
	if v := l.Values()[0]; v.Key != "run.dir" || v.Value != "long" || v.Origin != "USP_RUN_DIR" || len(l.Values()) != len(Keys()) {
		t.Errorf("Values begins with %+v", v)
	}
}

// publicKey is an age public key.
const publicKey = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"

// TestLists wants lists and truth values to come from the environment too.
func TestLists(t *testing.T) {
	l, err := Load(Options{Env: []string{"USP_SNAPSHOT_RECIPIENTS=" + publicKey + ", " + publicKey, "USP_SNAPSHOT_ON_EVENTS=false"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{publicKey, publicKey}, l.Snapshot.Recipients); diff != "" || l.Snapshot.OnEvents {
		t.Errorf("on_events %v, recipients %s", l.Snapshot.OnEvents, diff)
	}
	if def := Default(); len(def.Snapshot.Recipients) != 0 || !def.Snapshot.OnEvents {
		t.Errorf("the defaults were changed: %+v", def.Snapshot)
	}
	if want := `recipients = ["` + publicKey + `", "` + publicKey + `"]`; !strings.Contains(l.TOML(), want) {
		t.Errorf("not written as %s", want)
	}
	_, err = Load(Options{Env: []string{"USP_SNAPSHOT_RECIPIENTS=" + publicKey + ",", "USP_SNAPSHOT_ON_EVENTS=yes"}})
	want := `environment variable USP_SNAPSHOT_ON_EVENTS: "yes" is not a truth value; write true or false
environment variable USP_SNAPSHOT_RECIPIENTS: recipient 2: is empty: want an age public key, "age1…"`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
}

// TestSecretKey wants a secret key that stands where a public one or a file
// belongs to be an error that does not show it, however the file is broken.
func TestSecretKey(t *testing.T) {
	const secret = "AGE-SECRET-KEY-1QQQSYQCYQ5RQWZQFPG9SCRGWPUGPZYSNZS23V9CCRYDPK8QARC0SWZ0EL3"
	for _, text := range []string{
		"recipients = [\"" + secret + "\"]", "recipients = \"" + secret + "\"", "recipients = [\n  \"" + secret + "\",\n]", "recipients = [" + secret + "]",
		"recipients = [\n \"" + publicKey + "\"\n \"" + secret + "\"]", "identity_file = \"" + secret + "\"", "identity_file = " + secret, "identity_file = [\"" + strings.ToLower(secret) + "\"]",
		"identity_file = \"\"\"\n" + secret + "\"\"\"",
	} {
		_, err := Check("usp.toml", []byte("[snapshot]\n"+text))
		if err == nil || !strings.HasPrefix(err.Error(), "usp.toml:") || strings.Contains(strings.ToUpper(err.Error()), secret[:25]) {
			t.Errorf("%s:\n%v", text, err)
		}
	}
	for _, o := range []Options{
		{Env: []string{"USP_SNAPSHOT_RECIPIENTS=" + secret}}, {Env: []string{"USP_SNAPSHOT_IDENTITY_FILE=" + secret}},
		{Flags: []Setting{{"snapshot.identity_file", secret, "--identity"}}},
	} {
		if _, err := Load(o); err == nil || strings.Contains(err.Error(), secret[:25]) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

type files map[string]string

func (f files) read(name string) ([]byte, error) {
	text, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

// TestWhichFile wants a named file read and a missing one reported.
func TestWhichFile(t *testing.T) {
	all := files{"a.toml": "[ring]\nslots=2\n", "b.toml": "[ring]\nslots=4\n", "usp.toml": "[ring]\nslots=8\n"}
	tests := []struct {
		file, env string
		slots     int
	}{{"a.toml", "b.toml", 2}, {"", "b.toml", 4}, {"", "", 8}}
	for _, tt := range tests {
		l, err := Load(Options{File: tt.file, Env: []string{"USP_CONFIG=" + tt.env}, Search: []string{"usp.toml"}, ReadFile: all.read})
		if err != nil || l.Ring.Slots != tt.slots {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	_, err := Load(Options{File: "none.toml", Search: []string{"usp.toml"}, ReadFile: all.read})
	var errs Errors
	if !errors.Is(err, fs.ErrNotExist) || errors.As(err, &errs) || err.Error() != "configuration none.toml: file does not exist" {
		t.Errorf("got %v", err)
	}
	if _, err := Load(Options{Search: []string{t.TempDir()}}); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory: %v", err)
	}
	name := filepath.Join(t.TempDir(), "usp.toml")
	if err := os.WriteFile(name, []byte(all["a.toml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Load(Options{Search: []string{name}}); err != nil || l.Ring.Slots != 2 {
		t.Errorf("from the disk: %v", err)
	}
}

// TestEnvironment wants faults named by variable, unknown ones as warnings, and
// no value of an unknown one shown anywhere.
func TestEnvironment(t *testing.T) {
	const secret = "s3cr3t-canary"
	_, err := Load(Options{
		Env:   []string{"USP_RING_SLOTS=4x", "USP_DIGEST_INTERVAL=0", "USP_LOG_LEVEL=loud", "USP_TOKEN=" + secret, "HOME=" + secret, "broken"},
		Flags: []Setting{{"run.dri", "x", "--set"}, {"snapshot.keep_last", "-1", "--keep-last"}, {"run.dir", "\xff", "--dir"}, {"recorder.drain_timeout", "soon", "--wait"}},
	})
	want := `environment variable USP_RING_SLOTS: "4x" is not a whole number; write one such as 100
flag --set: unknown setting "run.dri"; did you mean "run.dir"?
flag --dir: "\xff" is no UTF-8 text; write it in UTF-8
flag --wait: "soon" is not a duration; write one with its unit, such as "50ms" or "1h30m"
environment variable USP_DIGEST_INTERVAL: 0 is below the least allowed, 1
flag --keep-last: -1 is below the least allowed, 0
environment variable USP_LOG_LEVEL: "loud" is not one of debug, info, warn, error`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
	l, err := Load(Options{Env: []string{"USP_TOKEN=" + secret, "USP_RECORDER_COMMIT_INTREVAL=" + secret, "USP_BIN=x", "USP_CONFIG=", "HOME=" + secret}})
	if err != nil {
		t.Fatal(err)
	}
	wantWarnings := []string{
		`unknown environment variable "USP_RECORDER_COMMIT_INTREVAL" is ignored; did you mean "USP_RECORDER_COMMIT_INTERVAL"?`,
		`unknown environment variable "USP_TOKEN" is ignored`,
	}
	if diff := cmp.Diff(wantWarnings, l.Warnings); diff != "" {
		t.Error(diff)
	}
	if all := fmt.Sprint(l.Warnings, l.Show(), l.TOML(), l.Values()); strings.Contains(all, secret) {
		t.Errorf("a secret is shown:\n%s", all)
	}
	_, err = Check("usp.toml", []byte("[sink]\ntoken = \""+secret+"\"\n[run]\npassword = \""+secret+"\"\nx = { token = \""+secret+"\", y = 1 }\n"))
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a secret is shown:\n%v", err)
	}
}

// TestDestinations: addresses that hold a secret, or that anybody could ask, are faults; the secret is not repeated.
func TestDestinations(t *testing.T) {
	for text, want := range map[string]string{
		"[otlp]\nendpoint = \"https://me:s3cret@x\"":     "usp.toml:2:1: otlp.endpoint: holds a user name",
		"[otlp]\nendpoint = \"collector:4318\"":          "otlp.endpoint: is not an http or https address",
		"[jetstream]\nurl = \"nats://me:s3cret@x:4222\"": "jetstream.url: holds a user name or password",
		"[prometheus]\nlisten = \"0.0.0.0:9464\"":        "prometheus.listen: is not on loopback",
		"[prometheus]\nlisten = \":9464\"":               "prometheus.listen: is not on loopback",
		"[prometheus]\nlisten = \"9464\"":                "prometheus.listen: is no address with a port",
	} {
		_, err := Check("usp.toml", []byte(text+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"[otlp]\nendpoint = \"http://127.0.0.1:4318\"", "[prometheus]\nlisten = \"[::1]:0\"", "[jetstream]\nurl = \"nats://127.0.0.1:4222\""} {
		if _, err := Check("usp.toml", []byte(text+"\n")); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestWitness: an address that is none or holds a secret, and a key that is none, are faults; the address is not repeated.
func TestWitness(t *testing.T) {
	const key = "witness.example/w1+0ad7d35e+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
	if _, err := Check("usp.toml", []byte("[witness]\nurl = \"http://localhost:1/x\"\nkey = [\""+key+"\"]\n")); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		`url = "witness.example"` + "\nkey = [\"" + key + "\"]":     "usp.toml:2:1: witness.url: is not an http or https address",
		`url = "https://me:s3cret@x"` + "\nkey = [\"" + key + "\"]": "witness.url: holds a user name",
		`url = "https://x"`: "witness.url: needs witness.key, which is empty",
		`key = ["x"]`:       "usp.toml:2:1: witness.key: witness: not the verifier key of a witness",
		`key = ["PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"]`: "it is one of a log (type 1)",
	} {
		_, err := Check("usp.toml", []byte("[witness]\n"+text+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
