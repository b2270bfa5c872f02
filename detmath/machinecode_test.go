package detmath

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var allArchitectures = flag.Bool("architectures", false, "look for fused operations on five more architectures (compiles the standard library for each)")

// fused is a line of the compiler's assembly with a fused multiply-add of any architecture, single or double: the source
// file, its line, and the instruction.
var fused = regexp.MustCompile(`\((\S+):(\d+)\)\s+(X?VFN?M(?:ADD|SUB)\w*|FN?M(?:ADD|SUB)\w*|XSN?M(?:ADD|SUB)\w*|WFN?M[AS][DS]B)\s`)

// fusedLines returns the fused operations in assembly that stand in a function of one of the packages, given by import
// path, or come from their source, given by directory: what is inlined elsewhere keeps the file it is from.
func fusedLines(asm []byte, packages, dirs []string) (found []string) {
	symbol := ""
	for line := range bytes.Lines(asm) {
		if line[0] != '\t' {
			symbol, _, _ = strings.Cut(string(line), " ")
			continue
		}
		m := fused.FindSubmatch(line)
		if m == nil {
			continue
		}
		of := slices.ContainsFunc(packages, func(p string) bool { return strings.HasPrefix(symbol, p+".") })
		from := slices.Contains(dirs, filepath.Dir(string(m[1])))
		if of || from {
			found = append(found, fmt.Sprintf("%s: %s at %s:%s", symbol, m[3], filepath.Base(string(m[1])), m[2]))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// fusedWords does the same with the machine code of a program that was linked for arm64, and counts the instructions it
// read of each directory. Instructions have four bytes, and those that begin with 0x1f are FMADD, FMSUB, FNMADD and FNMSUB
// of every width, and no others. (For amd64 there is only the compiler's word: `go tool objdump` cannot read VFMADD.)
func fusedWords(t *testing.T, program string, packages, dirs []string) (found []string, read map[string]int) {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := f.Section(".text")
	code, err := text.Data()
	if err != nil || f.Machine != elf.EM_AARCH64 {
		t.Fatalf("%s: %v, %v", program, f.Machine, err)
	}
	lines, err := f.Section(".gopclntab").Data()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(lines, text.Addr))
	if err != nil {
		t.Fatal(err)
	}
	read = map[string]int{}
	for i := range table.Funcs {
		fn := &table.Funcs[i]
		of := slices.ContainsFunc(packages, func(p string) bool { return strings.HasPrefix(fn.Name, p+".") })
		for pc := fn.Entry; pc+4 <= min(fn.End, text.Addr+uint64(len(code))); pc += 4 {
			file, line, _ := table.PCToLine(pc)
			dir := filepath.Dir(file)
			if !of && !slices.Contains(dirs, dir) {
				continue
			}
			read[dir]++
			if word := binary.LittleEndian.Uint32(code[pc-text.Addr:]); word>>24 == 0x1f {
				found = append(found, fmt.Sprintf("%s: %08x at %s:%d", fn.Name, word, filepath.Base(file), line))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found), read
}

// compile builds a package of dir for a target such as amd64/v3 and returns what the compiler says with flags.
func compile(t *testing.T, target, dir, pkg, gcflags, out string) []byte {
	t.Helper()
	arch, level, _ := strings.Cut(target, "/")
	cmd := exec.Command("go", "build", "-gcflags="+gcflags, "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOWORK=off")
	if level != "" {
		cmd.Env = append(cmd.Env, "GOAMD64="+level)
	}
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go build for %s in %s: %v\n%s", target, dir, err, said)
	}
	return said
}

// planted is a package with fused operations in every place where one can hide, and a program that uses it.
var planted = map[string]string{
	"go.mod": "module planted\n\ngo 1.26\n",
	"p/p.go": `package p

func Inlined(x, y, z float64) float64 { return x*y + z }

//go:noinline
func Kept(x, y, z float64) float64 { return x*y + z }

//go:noinline
func Minus(x, y, z float64) float64 { return z - x*y }

//go:noinline
func Reversed(x, y, z float64) float64 { return x*y - z }

//go:noinline
func Single(x, y, z float32) float32 { return x*y + z }

func Closure(x float64) func(float64) float64 {
	return func(y float64) float64 { return x*y + x }
}

//go:noinline
func Generic[T ~float32 | ~float64](x, y, z T) T { return x*y + z }

//go:noinline
func Method(s S) float64 { return s.dot() }

type S [4]float64

func (s S) dot() float64 { return s[0]*s[1] + s[2]*s[3] }

//go:noinline
func Good(x, y, z float64) float64 { return float64(x*y) + z }
`,
	"main.go": `package main

import "planted/p"

var a, b, c float64 = 1, 2, 3

type own float64

func main() {
	println(p.Inlined(a, b, c), p.Kept(a, b, c), p.Minus(a, b, c), p.Reversed(a, b, c), p.Single(float32(a), 2, 3))
	f := p.Closure(a)
	g := f
	if b > 2 {
		g = p.Closure(b)
	}
	println(g(b), p.Generic(own(a), 2, 3), p.Generic(float32(a), 2, 3), p.Method(p.S{a, b, c}), p.Good(a, b, c))
}
`,
}

// TestMachineCodeSearchFinds shows the two searches every kind of fault, so that they cannot pass by being blind.
func TestMachineCodeSearchFinds(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped by -short: compiles for other architectures")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range planted {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "planted")
	always := []string{"main.main p.go:3", "main.main.Closure.func p.go:18", "p.Generic[go.shape.float32] p.go:22", "p.Generic[go.shape.float64] p.go:22",
		"p.Kept p.go:6", "p.Single p.go:15"}
	unlinked := []string{"p.Closure.func p.go:18", "p.Inlined p.go:3"}          // all calls of these are inlined
	arm := []string{"p.Method p.go:29", "p.Minus p.go:9", "p.Reversed p.go:12"} // for amd64 the compiler fuses less
	methods := []string{"p.(*S).dot p.go:29", "p.S.dot p.go:29"}                // likewise, and unlinked
	packages, dirs := []string{"planted/p"}, []string{filepath.Join(dir, "p")}
	found := fusedLines(compile(t, "amd64/v3", dir, ".", "planted/...=-S", program), packages, dirs)
	demand(t, "amd64/v3 assembly", found, always, unlinked)
	found = fusedLines(compile(t, "arm64", dir, ".", "planted/...=-S", program), packages, dirs)
	demand(t, "arm64 assembly", found, always, unlinked, arm, methods)
	found, _ = fusedWords(t, program, packages, dirs)
	demand(t, "arm64 program", found, always, arm)
}

// demand wants found to tell of these places and no others. Closures are numbered by the compiler.
func demand(t *testing.T, where string, found []string, want ...[]string) {
	t.Helper()
	place := regexp.MustCompile(`^(?:planted/)?(.*?)\d*: \S+ at (\S+)$`)
	got := map[string]bool{}
	for _, f := range found {
		got[place.ReplaceAllString(f, "$1 $2")] = true
	}
	all := slices.Sorted(slices.Values(slices.Concat(want...)))
	if g := slices.Sorted(maps.Keys(got)); !slices.Equal(g, all) {
		t.Errorf("%s: found %q, want %q; from\n%s", where, g, all, strings.Join(found, "\n"))
	}
}

// paths returns the import paths of the deterministic packages, and their directories.
func paths(t *testing.T) (packages, dirs []string) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range deterministic {
		packages, dirs = append(packages, module+name), append(dirs, filepath.Join(root, filepath.FromSlash(name)))
	}
	return packages, dirs
}

// TestMachineCodeIsNotFused reads the compiler's assembly of the deterministic packages.
func TestMachineCodeIsNotFused(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped by -short: compiles for other architectures")
	}
	targets := []string{"amd64/v3", "arm64"}
	if *allArchitectures {
		targets = append(targets, "ppc64le", "s390x", "riscv64", "loong64")
	}
	packages, dirs := paths(t)
	for _, target := range targets {
		for i, dir := range dirs {
			asm := compile(t, target, dir, ".", "-S", os.DevNull)
			if len(asm) < 1000 {
				t.Errorf("%s: the compiler shows no assembly of %s", target, packages[i])
			}
			for _, f := range fusedLines(asm, packages, dirs) {
				t.Errorf("%s: %s", target, f)
			}
		}
	}
}

// TestProgramIsNotFused reads the same of the program that users run: with what other packages inline of the deterministic
// ones and the instances they make of their generic functions, and then the linked machine code itself.
func TestProgramIsNotFused(t *testing.T) {
	if os.Getenv("TORTURE") == "" {
		t.Skip("compiles all of usp for two targets; make parity, .ci/run and TORTURE=1 do it, and TestMachineCodeIsNotFused reads the packages alone")
	}
	packages, dirs := paths(t)
	program := filepath.Join(t.TempDir(), "usp")
	for _, target := range []string{"amd64/v3", "arm64"} {
		asm := compile(t, target, "..", "./cmd/usp", module+"...=-S", program)
		for i, dir := range dirs {
			if n := bytes.Count(asm, []byte("("+dir+string(filepath.Separator))); n < 100 {
				t.Errorf("%s: the compiler shows %d lines of %s", target, n, packages[i])
			}
		}
		for _, f := range fusedLines(asm, packages, dirs) {
			t.Errorf("%s: %s", target, f)
		}
	}
	found, read := fusedWords(t, program, packages, dirs)
	for _, f := range found {
		t.Errorf("linked for arm64: %s", f)
	}
	for i, dir := range dirs {
		if read[dir] < 100 {
			t.Errorf("linked for arm64: %d instructions of %s", read[dir], packages[i])
		}
	}
	t.Logf("instructions read in the program: %v", read)
}
