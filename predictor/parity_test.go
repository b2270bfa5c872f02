package predictor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/cpu"
)

// The chain of the trace at two checkpoints, as this package on linux/amd64 has it. It changes together with the chains
// of TestGoldenChains, and for the same reasons.
var traceGolden = map[int]string{
	1_000:   "e4ac78b96d690c13906f9d768d8bbb05b347638370a6a590b0fdcffea75fa6e7",
	10_000:  "2a1fd68eeba3acaff6474346419cb4993c59c7e5321eff76235f235bd7619982",
	100_000: "624d6832f3963de4bb207fb0448176f176d4d8f10ee37a8aac72a662b0515e67",
}

// traceSteps is the number of steps that are compared: 10⁵ with TORTURE=1, which .ci/run and make parity set, and a slice
// of that otherwise.
func traceSteps() int {
	switch {
	case torture():
		return 100_000
	case testing.Short():
		return 1_000
	}
	return 2_000
}

// target is a machine to run the trace on: a binary of this package's tests and how to start it; without argv, this process.
type target struct {
	name string
	env  []string
	argv []string
}

func (m target) command(t *testing.T, args ...string) string {
	t.Helper()
	argv := append(append([]string{}, m.argv...), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), m.env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v %v: %v\n%s%s", m.name, m.env, argv, err, out, stderr.String())
	}
	return string(out)
}

func (m target) trace(t *testing.T, args ...any) string {
	t.Helper()
	argv := []string{traceArg}
	for _, a := range args {
		argv = append(argv, fmt.Sprint(a))
	}
	if m.argv == nil {
		var out strings.Builder
		if err := trace(argv[1:], &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	return m.command(t, argv...)
}

// golden has the target run TestGoldenChains too: other series, the kernel window of the default, and a declared season. The
// sunspots have all that; TORTURE=1 adds the longer series.
func (m target) golden(t *testing.T) {
	t.Helper()
	which, passed := "^TestGoldenChains$/^sunspots$", "--- PASS: TestGoldenChains/sunspots"
	if torture() {
		which, passed = "^TestGoldenChains$", "--- PASS: TestGoldenChains "
	}
	if out := m.command(t, "-test.run="+which, "-test.v"); !strings.Contains(out, passed) {
		t.Errorf("%s: TestGoldenChains did not run:\n%s", m.name, out)
	}
}

// here is this process.
var here = target{name: "this binary"}

// difference runs the trace on both and returns where they part, to the step and field; "" if nowhere.
func difference(t *testing.T, a, b target, argsA, argsB []any) string {
	t.Helper()
	x, y := a.trace(t, argsA...), b.trace(t, argsB...)
	if firstDifference(x, y) == "" {
		return ""
	}
	var at int
	if _, err := fmt.Sscanf(strings.Trim(strings.SplitN(firstDifference(x, y), " and ", 2)[0], `"`), "checkpoint %d", &at); err != nil {
		return firstDifference(x, y)
	}
	return firstDifference(a.trace(t, append(argsA, "-show", at)...), b.trace(t, append(argsB, "-show", at)...))
}

// sameTrace demands that m's trace is that of this binary, to the last bit of every field.
func sameTrace(t *testing.T, m target, steps int) {
	t.Helper()
	args := []any{"-steps", steps}
	if d := difference(t, here, m, args, args); d != "" {
		t.Errorf("%s parts from this binary: %s", m.name, d)
	}
}

// fact reads what a trace says of the machine it ran on.
func fact(t *testing.T, trace, name string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^machine .*\b` + name + `=(\S+)`).FindStringSubmatch(trace)
	if found == nil {
		t.Fatalf("the trace does not say %s:\n%.200s", name, trace)
	}
	return found[1]
}

// TestTraceGolden also sees to it that the series leads through every state there is.
func TestTraceGolden(t *testing.T) {
	steps := traceSteps()
	if !testing.Short() {
		steps = max(steps, 10_000) // what leads through every state
	}
	out := here.trace(t, "-steps", steps)
	for at, want := range traceGolden {
		if at > steps {
			continue
		}
		if line := fmt.Sprintf("checkpoint %d %s\n", at, want); !strings.Contains(out, line) {
			t.Errorf("the chain at step %d is not %s; the trace says\n%s", at, want, regexp.MustCompile(fmt.Sprintf(`(?m)^checkpoint %d .*`, at)).FindString(out))
		}
	}
	// A step in closed form always converges.
	if all := strings.Join(FlagNames((flagEnd-1)&^FlagNotConverged), ","); steps >= 10_000 && !strings.Contains(out, "end "+all+" ") {
		t.Errorf("the series does not raise all of %s:\n%s", all, out[strings.LastIndex(out, "end "):])
	}
}

func TestSameBitsWhateverTheRuntime(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"GOMAXPROCS=1", "GOMAXPROCS=7", "GOMAXPROCS=2"}
	if testing.Short() {
		all = all[:1]
	}
	for _, env := range all {
		m := target{name: env, env: []string{env}, argv: []string{self}}
		sameTrace(t, m, traceSteps())
		if !testing.Short() {
			m.golden(t)
		}
		if procs := fact(t, m.trace(t, "-steps", 1), "procs"); "GOMAXPROCS="+procs != env {
			t.Errorf("under %s the program has %s processors", env, procs)
		}
	}
}

// needsCompiler leaves a test out where it would compile for another target.
func needsCompiler(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped by -short: compiles the tests for another target")
	}
}

// build compiles this package's tests for another target.
func build(t *testing.T, name string, env ...string) target {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "predictor.test")
	cmd := exec.Command("go", "test", "-c", "-o", bin, ".")
	cmd.Env = append(os.Environ(), append(env, "GOOS=linux", "CGO_ENABLED=0")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", env, err, out)
	}
	return target{name: name, argv: []string{bin}}
}

// TestSameBitsOnAMD64Levels compares code without and with the instructions of x86-64-v3, and code that asks at run time
// and is told that there is no fused multiply-add.
func TestSameBitsOnAMD64Levels(t *testing.T) {
	needsCompiler(t)
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		t.Skip("needs linux/amd64 to run what it compiles")
	}
	v1 := build(t, "GOAMD64=v1", "GOARCH=amd64", "GOAMD64=v1")
	sameTrace(t, v1, traceSteps())
	v1.golden(t)
	if out := v1.trace(t, "-steps", 1); fact(t, out, "fused") != "false" {
		t.Error("GOAMD64=v1 fuses: this is not the target it should be")
	}

	off := v1
	off.name, off.env = "GOAMD64=v1 GODEBUG=cpu.fma=off", []string{"GODEBUG=cpu.fma=off"}
	sameTrace(t, off, traceSteps())
	off.golden(t)
	switch with, without := fact(t, v1.trace(t, "-steps", 1), "exp"), fact(t, off.trace(t, "-steps", 1), "exp"); {
	case !cpu.X86.HasFMA:
		t.Log("GODEBUG=cpu.fma=off shows nothing here: this processor has no FMA anyway")
	case with == without:
		t.Error("GODEBUG=cpu.fma=off is not heeded: math.Exp gives the same bits as without it")
	default:
		t.Logf("GODEBUG=cpu.fma=off is heeded: math.Exp gives other bits (%s, not %s)", without, with)
	}

	if !(cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasBMI2) {
		t.Skip("GOAMD64=v3 left out: this processor lacks AVX2, FMA or BMI2")
	}
	v3 := build(t, "GOAMD64=v3", "GOARCH=amd64", "GOAMD64=v3")
	sameTrace(t, v3, traceSteps())
	v3.golden(t)
	if out := v3.trace(t, "-steps", 1); fact(t, out, "fused") != "true" {
		t.Error("GOAMD64=v3 does not fuse: this is not the target it should be")
	}
	partsWhereFused(t, v1, v3)
}

// partsWhereFused shows that the comparison finds a difference that the compiler makes, not only one made by hand.
func partsWhereFused(t *testing.T, without, with target) {
	t.Helper()
	args := []any{"-steps", 1000, "-fusable", "-show", 1000}
	if d := difference(t, without, with, args, args); !regexp.MustCompile(`^step \d+, field planted: `).MatchString(d) {
		t.Errorf("%s and %s differ in a fused operation, but the comparison says %q", without.name, with.name, d)
	}
}

// armSteps is the slice that the emulator takes from the start; the snapshots of TestSameBitsOnARM64 lead it further.
func armSteps() int {
	if torture() {
		return traceSteps()
	}
	return traceEvery
}

// TestSameBitsOnARM64 runs the other processor's code in an emulator, from the start and from a snapshot taken by this
// one's, and the other way round.
func TestSameBitsOnARM64(t *testing.T) {
	needsCompiler(t)
	if runtime.GOARCH == "arm64" {
		t.Skip("runs on arm64 already: TestTraceGolden is the test")
	}
	emulator, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		emulator, err = exec.LookPath("qemu-aarch64")
	}
	if err != nil {
		t.Skip("neither qemu-aarch64-static nor qemu-aarch64 is installed: arm64 not run here (its machine code is searched in package detmath)")
	}
	arm := build(t, "arm64", "GOARCH=arm64")
	arm.argv = append([]string{emulator}, arm.argv...)
	if out := arm.trace(t, "-steps", 1); !strings.HasPrefix(out, "machine arm64 ") || fact(t, out, "fused") != "true" {
		t.Errorf("the target is not arm64 with fused operations: %.100s", out)
	}
	sameTrace(t, arm, armSteps())
	arm.golden(t)
	partsWhereFused(t, here, arm)

	const half = traceEvery + 500 // between two checkpoints
	for _, way := range [][2]target{{here, arm}, {arm, here}} {
		dir := t.TempDir()
		way[0].trace(t, "-steps", half, "-save", dir)
		whole, rest := []any{"-steps", half + 2*traceEvery}, []any{"-steps", half + 2*traceEvery, "-from", dir, "-at", half}
		// Of the whole, only what the rest also shows is compared.
		a, b := here.trace(t, append(whole, "-show", half-half%traceEvery+traceEvery)...), way[1].trace(t, append(rest, "-show", half-half%traceEvery+traceEvery)...)
		if d := firstDifference(after(a, half), b); d != "" {
			t.Errorf("saved on %s, continued on %s, parts from a run without a break: %s", way[0].name, way[1].name, d)
		}
		if !strings.Contains(b, fmt.Sprintf("field %d ", half+1)) || strings.Count(b, "checkpoint ") != 2 {
			t.Errorf("the run from the snapshot did not begin at step %d:\n%.300s", half+1, b)
		}
	}
}

// after leaves out what a trace says up to a step.
func after(trace string, step int) string {
	var kept []string
	for line := range strings.Lines(trace) {
		var kind string
		var at int
		if n, _ := fmt.Sscan(line, &kind, &at); n == 2 && at <= step {
			continue
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}

// TestDifferenceIsLocated turns single bits of one trace and demands that the comparison names step and field.
func TestDifferenceIsLocated(t *testing.T) {
	tests := []struct {
		plant, want string
		steps       int
	}{
		{"rho[3]@1", "step 1, field rho[3]: ", 1000},
		{"digest of rho@1000", "step 1000, field digest of rho: ", 1000},
		{"ot_cost@1733", "step 1733, field ot_cost: ", 2000},
		{"state@2000", "step 2000, field state: ", 2000},
		{"upper@1001", "step 1001, field upper: ", 2000},
	}
	if testing.Short() {
		tests = tests[:1]
	}
	for _, c := range tests {
		d := difference(t, here, here, []any{"-steps", c.steps}, []any{"-steps", c.steps, "-plant", c.plant})
		if !strings.HasPrefix(d, c.want) {
			t.Errorf("planted %s, found %q", c.plant, d)
		}
	}
	if d := firstDifference("machine a\nend 1\n", "machine b\nend 1\nend 2\n"); d == "" {
		t.Error("a trace that is longer is called equal")
	}
}
