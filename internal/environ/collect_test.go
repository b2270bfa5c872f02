package environ

import (
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCollect wants what this machine has, and the text of it.
func TestCollect(t *testing.T) {
	t.Setenv("GODEBUG", "cpu.fma=off,http2client=0,cpu.x=s3cr3t")
	t.Setenv("USP_S3CR3T", "s3cr3t")
	m := Collect()
	if _, err := Encode(m); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"goos": runtime.GOOS, "goarch": runtime.GOARCH, "go.version": runtime.Version(), "godebug": "cpu.fma=off"} {
		if m[k] != want {
			t.Errorf("%s = %q, want %q", k, m[k], want)
		}
	}
	keys := []string{"cpu.features", "cpu.count", "gomaxprocs", "go.compiler"} // a test binary has no record of its modules
	switch runtime.GOARCH {
	case "amd64":
		keys = append(keys, "goamd64")
	case "arm64":
		keys = append(keys, "goarm64")
	}
	if runtime.GOOS == "linux" {
		keys = append(keys, "cpu.model", "os.release")
	}
	for _, k := range keys {
		if m[k] == "" {
			t.Errorf("%s is missing", k)
		}
	}
	host, _ := os.Hostname()
	dir, _ := os.Getwd()
	for k, v := range m {
		if strings.Contains(v, "s3cr3t") || strings.Contains(v, dir) || host != "" && v == host {
			t.Errorf("%s = %q", k, v)
		}
	}
}

// TestSwitchedOff wants the features as GODEBUG leaves them: a process of its own, as they are found out when it begins.
func TestSwitchedOff(t *testing.T) {
	if os.Getenv("USP_TEST_FEATURES") != "" {
		t.Logf("features: %s;", Collect()["cpu.features"])
		return
	}
	feature, option := "avx2", "avx2"
	if runtime.GOARCH == "arm64" {
		feature, option = "fphp", "fphp"
	}
	ask := func(godebug string) string {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSwitchedOff$", "-test.v")
		cmd.Env = append(os.Environ(), "USP_TEST_FEATURES=1", "GODEBUG="+godebug)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		_, after, _ := strings.Cut(string(out), "features: ")
		list, _, _ := strings.Cut(after, ";")
		return " " + list + " "
	}
	if !strings.Contains(ask(""), " "+feature+" ") {
		t.Skipf("this processor has no %s", feature)
	}
	if got := ask("cpu." + option + "=off"); strings.Contains(got, " "+feature+" ") {
		t.Errorf("%s was switched off, and is listed:%s", feature, got)
	}
}

func TestDescribe(t *testing.T) {
	p := process{
		godebug: "cpu.avx=off,cpu.all=on,cpu.=on,cpu.avx=maybe, cpu.sse3=off,x=1", release: "6.1",
		cpuinfo: []byte("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 2\n\nprocessor\t: 1\nmodel name\t: other\n"),
		build: &debug.BuildInfo{
			Main: debug.Module{Path: "example.org/private", Version: "v1.2.3"},
			Deps: []*debug.Module{
				{Path: "gonum.org/v1/gonum", Version: "v0.16.0", Sum: "h1:a"},
				{Path: usp, Version: "v0.9.0", Sum: "h1:b"},
				{Path: "example.org/secret", Version: "v1.0.0", Replace: &debug.Module{Path: "../secret"}},
			},
			Settings: []debug.BuildSetting{
				{Key: "GOAMD64", Value: "v3"}, {Key: "CGO_ENABLED", Value: "1"}, {Key: "-race", Value: "true"}, {Key: "CGO_CFLAGS", Value: "-I/private"},
				{Key: "-gcflags", Value: "all=-N -l -trimpath=/private"}, {Key: "-tags", Value: "noasm,customer"}, {Key: "-pgo", Value: "/private/default.pgo"},
				{Key: "-ldflags", Value: "-X main.password=x"}, {Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}, {Key: "vcs.time", Value: "2026"},
			},
		},
	}
	got := p.describe()
	for _, k := range []string{"goos", "goarch", "go.version", "go.compiler", "gomaxprocs", "cpu.count"} { // those of this machine
		delete(got, k)
	}
	want := map[string]string{
		"godebug": "cpu.avx=off,cpu.all=on", "os.release": "6.1", "cpu.model": "AMD EPYC (family 25 model 1 stepping 2)",
		"program.version": "v1.2.3", "program.revision": "abc", "program.modified": "true", "usp.version": "v0.9.0", "module.gonum": "v0.16.0",
		"goamd64": "v3", "cgo": "1", "race": "true", "go.gcflags": "-N -l", "go.tags": "noasm", "go.pgo": "on", "go.deps": got["go.deps"],
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	p.build.Deps[2].Version = "v1.0.1" // replaced: not what is built
	same := p.describe()["go.deps"]
	p.build.Deps[0].Sum = "h1:c"
	if len(want["go.deps"]) != 16 || same != want["go.deps"] || p.describe()["go.deps"] == same {
		t.Errorf("go.deps: %q, %q, %q", want["go.deps"], same, p.describe()["go.deps"])
	}
	p.build.Main.Path = usp
	if m := p.describe(); m["usp.revision"] != "abc" || m["program.revision"] != "" {
		t.Errorf("built from usp's own module: %v", m)
	}
	arm := []byte("CPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n")
	if got := cpuModel(arm); got != "implementer 0x41 part 0xd0c variant 0x3 revision 1" {
		t.Errorf("cpuModel = %q", got)
	}
	if got := (&process{}).describe(); got["cpu.model"] != "" || got["goarch"] == "" {
		t.Errorf("of nothing: %v", got)
	}
}
