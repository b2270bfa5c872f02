package predictor

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/cpu"
)

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "abea217c7cdf6a3b0921cdcb2a7b97f79c2bfb6af093cbad19c676e8d98b5703"},
	{"nile", "f1097f45c37b97ccbdd364209403291f07b026540750b1282fea38161ae0d9b3"},
	{"co2", "618a5e1b956edee88b9ce23e5cc62908118b0ad75029f74cb5de156df3bc6e53"},
	{"disturbed", "c63001ee9b44c8badeeda9816ef5e90ee4e43430f1c858b9d10c804e62839ee4"}, // through quarantine, shift, freeze, alarm and the search for a season
}

func disturbed() []float64 {
	y := append(walk(17, 600), accelerating(100, -1)...)
	y[50] += 1e4
	for i := 200; i < 600; i++ {
		y[i] += 500
	}
	for i := 300; i < 320; i++ {
		y[i] = 600
	}
	return y
}

func TestGoldenChains(t *testing.T) {
	for _, g := range golden {
		var y []float64
		season := 0
		if g.name == "disturbed" {
			y = disturbed()
		} else {
			y, season = example(t, g.name)
		}
		var c chain
		feed(t, create(t, Config{Season: season}), y, func(_ int, _ float64, out *Output) { c.add(out) })
		if c.String() != g.chain {
			t.Errorf("%s: chain %s, want %s", g.name, &c, g.chain)
		}
	}
}

// rerun runs a test binary's TestGoldenChains and demands that it ran and passed.
func rerun(t *testing.T, env []string, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], append(argv[1:], "-test.run=^TestGoldenChains$", "-test.v")...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestGoldenChains") {
		t.Errorf("%v %v: %v\n%s", env, argv, err, out)
	}
}

func TestSameBitsWhateverTheRuntime(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range []string{"GODEBUG=cpu.fma=off", "GOMAXPROCS=1", "GOMAXPROCS=2"} {
		rerun(t, []string{env}, self)
	}
}

// build compiles this package's tests for another target and returns the binary.
func build(t *testing.T, env ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped by -short: compiles the tests for another target")
	}
	bin := filepath.Join(t.TempDir(), "predictor.test")
	cmd := exec.Command("go", "test", "-c", "-o", bin, ".")
	cmd.Env = append(os.Environ(), append(env, "GOOS=linux", "CGO_ENABLED=0")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", env, err, out)
	}
	return bin
}

func TestSameBitsOnAMD64Levels(t *testing.T) {
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		t.Skip("needs linux/amd64 to run what it compiles")
	}
	for _, level := range []string{"v1", "v3"} {
		if level == "v3" && !(cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasBMI2) {
			t.Log("GOAMD64=v3 left out: this processor lacks AVX2, FMA or BMI2")
			continue
		}
		rerun(t, nil, build(t, "GOARCH=amd64", "GOAMD64="+level))
	}
}

func TestSameBitsOnARM64(t *testing.T) {
	if runtime.GOARCH == "arm64" {
		t.Skip("runs on arm64 already: TestGoldenChains is the test")
	}
	for _, emulator := range []string{"qemu-aarch64-static", "qemu-aarch64"} {
		if path, err := exec.LookPath(emulator); err == nil {
			rerun(t, nil, path, build(t, "GOARCH=arm64"))
			return
		}
	}
	t.Skip("neither qemu-aarch64-static nor qemu-aarch64 is installed: arm64 not run here (its machine code is searched in package detmath)")
}
