package usp_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeProgram: the program in the README is the one in examples/loop, and it runs, and resumes.
func TestReadmeProgram(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join("examples", "loop", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(program), "\npackage main\n")
	if !strings.Contains(string(readme), "```go\npackage main\n"+code+"```") {
		t.Error("the Go program in README.md differs from examples/loop/main.go (without its package comment)")
	}
	bin := filepath.Join(t.TempDir(), "loop")
	if out, err := exec.Command("go", "build", "-o", bin, "./examples/loop").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	for _, args := range [][]string{nil, {"-resume", "latest"}} {
		cmd := exec.Command(bin, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir, "USP_RING_DIR="+filepath.Join(dir, "rings"), "USP_DIR=")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "1000 emitted, 1000 stored, 0 lost") {
			t.Fatalf("loop %v: %v\n%s", args, err, out)
		}
	}
}

// TestDocLinks: every file that a document names exists.
func TestDocLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	docs, err := filepath.Glob("doc/*.md")
	if err != nil {
		t.Fatal(err)
	}
	formats, err := filepath.Glob("doc/format/*.md")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, doc := range append(append(docs, formats...), "README.md", "CONTRIBUTING.md", "CHANGELOG.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			checked++
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
	}
	if checked < 5 {
		t.Errorf("only %d links found: the pattern finds nothing", checked)
	}
}
