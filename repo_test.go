package usp_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

const module = "github.com/usp-project/usp"

// tiers is the order of the packages: each imports only packages of a lower
// tier. A new package needs a line here.
func tiers() map[string]int {
	return map[string]int{
		"internal/fixedsum": -5, "internal/siplanes": -5,

		"record": 0, "ring": 0, "detmath": 0, "internal/vfs": 0, "internal/examples": 0, "internal/tui": 0, "internal/input": 0, "internal/plot": 0, "internal/environ": 0, "internal/systemd": 0, "internal/priority": 0, "internal/largepages": 0,
		"ot": 5, "internal/signature": 5, "internal/fokkerplanck": 5, "internal/aggregate": 5, "internal/stable": 5,
		"internal/segment": 10, "snapshot": 10, "predictor": 10,
		"internal/score": 15,
		"digestlog":      20, "internal/rundir": 20,
		"internal/witness": 25, "internal/witness/witnesstest": 26,
		"recorder": 30, "internal/audit": 30, "internal/compare": 30,
		"sink": 32, "internal/pyramid": 33, "sink/sinktest": 33, "sink/tensorboard": 34, "internal/columnar": 33, "sink/parquet": 34, "sink/prometheus": 34, "sink/otlp": 34, "sink/jetstream": 34, "remote": 34,
		".": 35, "internal/bench": 35,
		"internal/fleet":  36,
		"internal/config": 40,
		"internal/web":    45,
		"internal/cli":    50,
		"cmd/usp":         60, "cmd/usp-man": 60,
		"examples/experts": 60, "examples/loop": 60,
	}
}

// The lengths from which a person should think, and beyond which this test fails.
const (
	softFile = 500
	hardFile = 800
	hardFunc = 100 // not for tests, where it would cut tables apart
)

// TestRepo holds the repository to its habits. It reads the files itself: what
// `go list` says would come from the test cache after a file has changed.
func TestRepo(t *testing.T) {
	for name, gate := range gates() {
		t.Run(name, func(t *testing.T) {
			for _, problem := range gate(os.DirFS(".")) {
				t.Error(problem)
			}
		})
	}
	for _, name := range goFiles(os.DirFS(".")) {
		if n := lines(os.DirFS("."), name); n > softFile && n <= hardFile {
			t.Logf("%s has %d lines; think about two files from %d", name, n, softFile)
		}
	}
}

// TestGates shows each gate red, on a repository made for it.
func TestGates(t *testing.T) {
	const comment = "// Package record does it.\npackage record\n"
	long := comment + "\nfunc f() {\n" + strings.Repeat("\tprintln()\n", hardFunc) + "}\n"
	tests := []struct {
		gate, want string
		files      map[string]string
	}{
		{"tiers", "record/a.go: record (tier 0) imports snapshot (tier 10)", map[string]string{"record/a.go": comment + `import _ "` + module + `/snapshot"`}},
		{"tiers", "record/a.go: record (tier 0) imports ring (tier 0)", map[string]string{"record/a.go": comment + `import _ "` + module + `/ring"`}},
		{"tiers", "record/a_linux.go: imports " + module + "/nowhere, which", map[string]string{"record/a_linux.go": comment + `import _ "` + module + `/nowhere"`}},
		{"tiers", "nowhere: the package has no tier", map[string]string{"nowhere/a.go": "package nowhere"}},
		{"tiers", "ring: has a tier, but no package", map[string]string{"record/a.go": comment}},
		{"package comments", "record: no file has a package comment", map[string]string{"record/a.go": "// Package record does it.\n\npackage record\n"}},
		{"package comments", "record: 2 files have a package comment", map[string]string{"record/a.go": comment, "record/b.go": comment}},
		{"package comments", `record: the package comment begins with "This does`, map[string]string{"record/a.go": "// This does it.\npackage record\n"}},
		{"lengths", "record/a.go has 801 lines", map[string]string{"record/a.go": comment + strings.Repeat("\n", hardFile-1)}},
		{"lengths", "record/a.go:4: f has 102 lines", map[string]string{"record/a.go": long}},
		{"no init", "record/a.go:3: func init", map[string]string{"record/a.go": comment + "func init() {}\n"}},
		{"words", "doc/a.md:2: TO" + "DO", map[string]string{"doc/a.md": "a\n  TO" + "DO: b\n"}},
		{"words", ".ci/run:1: FIX" + "ME", map[string]string{".ci/run": "# FIX" + "ME"}},
		{"words", "record/a.go:1: /ro" + "ot/", map[string]string{"record/a.go": "// see /ro" + "ot/x\npackage record\n"}},
		{"words", "README.md:1: /ho" + "me/jane/", map[string]string{"README.md": "cd /ho" + "me/jane/usp"}},
		{"go.mod", "go.mod: want one line \"go 1.26.0\"", map[string]string{"go.mod": "module x\ngo 1.27\n"}},
		{"go.mod", "go.mod: replace", map[string]string{"go.mod": "module x\ngo 1.26.0\nreplace x => ../x\n"}},
	}
	seen := map[string]bool{}
	for _, tt := range tests {
		seen[tt.gate] = true
		fsys := fstest.MapFS{}
		for name, text := range tt.files {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
		problems := gates()[tt.gate](fsys)
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.HasPrefix(p, tt.want) }) {
			t.Errorf("the gate %q does not say %q, only %q", tt.gate, tt.want, problems)
		}
	}
	for name := range gates() {
		if !seen[name] {
			t.Errorf("the gate %q was not shown red", name)
		}
	}
}

// A gate returns what is wrong with a repository.
type gate func(fs.FS) []string

func gates() map[string]gate {
	return map[string]gate{
		"tiers": tierGate, "package comments": commentGate, "lengths": lengthGate, "no init": initGate, "words": wordGate, "go.mod": modGate,
	}
}

func tierGate(fsys fs.FS) (problems []string) {
	order := tiers()
	packages := map[string]bool{}
	for _, name := range goFiles(fsys) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		dir := path.Dir(name)
		packages[dir] = true
		_, file, err := parse(fsys, name, parser.ImportsOnly)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		for _, spec := range file.Imports {
			to, _ := strconv.Unquote(spec.Path.Value)
			if to != module && !strings.HasPrefix(to, module+"/") {
				continue
			}
			to = cmp.Or(strings.TrimPrefix(strings.TrimPrefix(to, module), "/"), ".")
			if tier, ok := order[to]; !ok {
				problems = append(problems, fmt.Sprintf("%s: imports %s/%s, which is not in the table of tiers", name, module, to))
			} else if tier >= order[dir] {
				problems = append(problems, fmt.Sprintf("%s: %s (tier %d) imports %s (tier %d); move what both need down, or pass it in", name, dir, order[dir], to, tier))
			}
		}
	}
	for dir := range packages {
		if _, ok := order[dir]; !ok {
			problems = append(problems, dir+": the package has no tier; add it to the table in repo_test.go")
		}
	}
	for dir := range order {
		if !packages[dir] {
			problems = append(problems, dir+": has a tier, but no package")
		}
	}
	return problems
}

func commentGate(fsys fs.FS) (problems []string) {
	comments := map[string][]string{}
	for _, name := range goFiles(fsys) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		_, file, err := parse(fsys, name, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		dir := path.Dir(name)
		comments[dir] = slices.Clip(comments[dir])
		if file.Doc == nil {
			continue
		}
		text := file.Doc.Text()
		comments[dir] = append(comments[dir], name)
		want := "Package " + file.Name.Name + " "
		if file.Name.Name == "main" {
			want = "Command " + path.Base(dir) + " "
		}
		if !strings.HasPrefix(text, want) {
			problems = append(problems, fmt.Sprintf("%s: the package comment begins with %.20q, want %q", dir, text, want))
		}
	}
	for dir, files := range comments {
		switch len(files) {
		case 0:
			problems = append(problems, dir+": no file has a package comment directly above its package clause")
		case 1:
		default:
			problems = append(problems, fmt.Sprintf("%s: %d files have a package comment: %s", dir, len(files), strings.Join(files, ", ")))
		}
	}
	return problems
}

func lengthGate(fsys fs.FS) (problems []string) {
	for _, name := range goFiles(fsys) {
		if n := lines(fsys, name); n > hardFile {
			problems = append(problems, fmt.Sprintf("%s has %d lines, more than %d; split it by what a reader looks for", name, n, hardFile))
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		set, file, err := parse(fsys, name, parser.SkipObjectResolution)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			from, to := set.Position(f.Pos()).Line, set.Position(f.End()).Line
			if n := to - from + 1; n > hardFunc {
				problems = append(problems, fmt.Sprintf("%s:%d: %s has %d lines, more than %d", name, from, f.Name.Name, n, hardFunc))
			}
		}
	}
	return problems
}

func initGate(fsys fs.FS) (problems []string) {
	for _, name := range goFiles(fsys) {
		set, file, err := parse(fsys, name, parser.SkipObjectResolution)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				problems = append(problems, fmt.Sprintf("%s:%d: func init runs behind the reader's back; call it from where it is needed", name, set.Position(f.Pos()).Line))
			}
		}
	}
	return problems
}

// wordGate looks for unfinished marks and for paths of the author's machine in
// every file of text.
func wordGate(fsys fs.FS) (problems []string) {
	marks := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`)
	paths := regexp.MustCompile(`/(work|root|farm|home/[a-z]+|Users/[A-Za-z]+|tmp/spec)/`)
	for _, name := range files(fsys) {
		data, err := fs.ReadFile(fsys, name)
		if err != nil || !utf8.Valid(data) {
			continue // a vector or another binary file
		}
		for i, line := range strings.Split(string(data), "\n") {
			for _, re := range []*regexp.Regexp{marks, paths} {
				if found := re.FindString(line); found != "" {
					problems = append(problems, fmt.Sprintf("%s:%d: %s", name, i+1, found))
				}
			}
		}
	}
	return problems
}

// modGate keeps the main module plain: the language version that users need,
// and nothing that holds on one machine only.
func modGate(fsys fs.FS) (problems []string) {
	data, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return []string{err.Error()}
	}
	all := strings.Split(string(data), "\n")
	if !slices.Contains(all, "go 1.26.0") {
		problems = append(problems, `go.mod: want one line "go 1.26.0"`)
	}
	for _, line := range all {
		for _, word := range []string{"replace", "toolchain", "tool", "exclude"} {
			if strings.HasPrefix(strings.TrimSpace(line), word+" ") {
				problems = append(problems, "go.mod: "+word+" does not belong in a module that others import")
			}
		}
	}
	return problems
}

// files lists what belongs to the repository: not what .gitignore names, and
// not the modules nested in it.
func files(fsys fs.FS) []string {
	var list []string
	walk := func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", "runs", "bin", "dist", "python/.venv", "python/.venv-cuda", "python/build", "python/.hypothesis", "benchmarks/python/.venv"}, name) {
				return fs.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			list = append(list, name)
		}
		return nil
	}
	if err := fs.WalkDir(fsys, ".", walk); err != nil {
		panic(err) // the tree is ours to read
	}
	return list
}

// goFiles lists the Go files of this module.
func goFiles(fsys fs.FS) []string {
	nested := map[string]bool{}
	all := files(fsys)
	for _, name := range all {
		if path.Base(name) == "go.mod" && name != "go.mod" {
			nested[path.Dir(name)] = true
		}
	}
	return slices.DeleteFunc(all, func(name string) bool {
		if path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/") {
			return true
		}
		for dir := range nested {
			if strings.HasPrefix(name, dir+"/") {
				return true
			}
		}
		return false
	})
}

func parse(fsys fs.FS, name string, mode parser.Mode) (*token.FileSet, *ast.File, error) {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, nil, err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, data, mode)
	return set, file, err
}

func lines(fsys fs.FS, name string) int {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return 0
	}
	return strings.Count(string(data), "\n")
}
