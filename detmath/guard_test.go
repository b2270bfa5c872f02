package detmath

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The packages whose results must be the same bits everywhere: those that compute, and those that turn results into digests.
var deterministic = []string{"detmath", "ot", "predictor", "record", "internal/fixedsum", "internal/signature", "internal/fokkerplanck", "internal/aggregate", "internal/stable"}

// Packages that they may use though there is assembly in them: of integers alone, which are the same on every machine. What it computes is
// held against Go by the tests of who uses it.
var integers = []string{"internal/siplanes"}

// What such a package may take from package math: operations that are exact or correctly rounded, and constants.
var exactMath = []string{"Abs", "Ceil", "Copysign", "Float64bits", "Float64frombits", "Floor", "Frexp", "Inf", "IsInf", "IsNaN", "Ldexp",
	"NaN", "Nextafter", "Sqrt", "Trunc"}

// Imports that bring in clocks, addresses, scheduling or randomness.
var unreproducible = []string{"math/rand", "math/rand/v2", "crypto/rand", "time", "runtime", "unsafe", "sync", "sync/atomic", "os", "maps",
	"math/cmplx", "math/big", "C"}

const module = "github.com/usp-project/usp/"

// guard reports what in files could make a result depend on the machine.
type guard struct {
	fset   *token.FileSet
	info   *types.Info
	faults []string
}

func (g *guard) fault(n ast.Node, format string, args ...any) {
	p := g.fset.Position(n.Pos())
	g.faults = append(g.faults, fmt.Sprintf("%s:%d: ", filepath.Base(p.Filename), p.Line)+fmt.Sprintf(format, args...))
}

func (g *guard) isFloat(e ast.Expr) bool {
	tv := g.info.Types[e]
	b, ok := tv.Type.Underlying().(*types.Basic)
	return ok && b.Info()&(types.IsFloat|types.IsComplex) != 0 && tv.Value == nil
}

// product says whether e compiles to a multiplication: a product, or a quotient by a constant power of two.
func (g *guard) product(e *ast.BinaryExpr) bool {
	if e.Op == token.QUO {
		v := g.info.Types[e.Y].Value
		if v == nil {
			return false
		}
		f, _ := constant.Float64Val(constant.ToFloat(v))
		frac, _ := frexp(f)
		return frac == 0.5
	}
	return e.Op == token.MUL
}

// check walks one file. A floating product must stand directly inside float64(), or feed another product, a quotient
// or a comparison: only these are not fused with an addition, not even across statements.
func (g *guard) check(f *ast.File) {
	for _, imp := range f.Imports {
		path := strings.Trim(imp.Path.Value, `"`)
		own, ours := strings.CutPrefix(path, module)
		first, _, _ := strings.Cut(path, "/")
		switch {
		case slices.Contains(unreproducible, path):
			g.fault(imp, "imports %s", path)
		case ours && !slices.Contains(deterministic, own) && !slices.Contains(integers, own):
			g.fault(imp, "imports %s, which is not among the deterministic packages", path)
		case !ours && strings.Contains(first, "."):
			g.fault(imp, "imports %s, whose arithmetic nobody looks at", path)
		}
	}
	var stack []ast.Node
	ast.Inspect(f, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		switch n := n.(type) {
		case *ast.GoStmt:
			g.fault(n, "starts a goroutine")
		case *ast.SelectStmt:
			g.fault(n, "selects")
		case *ast.RangeStmt:
			if _, ok := g.info.Types[n.X].Type.Underlying().(*types.Map); ok {
				g.fault(n, "iterates over a map")
			}
		case *ast.Ident: // however the package is imported, and whether the function is called or passed on
			if fn, ok := g.info.Uses[n].(*types.Func); ok && fn.Pkg() != nil && fn.Pkg().Path() == "math" && !slices.Contains(exactMath, fn.Name()) {
				g.fault(n, "uses math.%s, which differs between machines", fn.Name())
			}
		case *ast.AssignStmt:
			if (n.Tok == token.MUL_ASSIGN || n.Tok == token.QUO_ASSIGN) && g.isFloat(n.Lhs[0]) &&
				g.product(&ast.BinaryExpr{Op: map[token.Token]token.Token{token.MUL_ASSIGN: token.MUL, token.QUO_ASSIGN: token.QUO}[n.Tok], Y: n.Rhs[0]}) {
				g.fault(n, "multiplies by assignment, which can be fused with a later addition; write x = float64(x * y)")
			}
		case *ast.BinaryExpr:
			if g.product(n) && g.isFloat(n) && !g.shielded(n, stack) {
				g.fault(n, "a product that can be fused with an addition; write float64(x * y)")
			}
		}
		stack = append(stack, n)
		return true
	})
}

// shielded says whether the innermost parent of e that is not a parenthesis or sign keeps it from being fused.
func (g *guard) shielded(e ast.Expr, stack []ast.Node) bool {
	for _, n := range slices.Backward(stack) {
		switch n := n.(type) {
		case *ast.ParenExpr:
			continue
		case *ast.UnaryExpr:
			continue
		case *ast.BinaryExpr:
			return n.Op == token.MUL || n.Op == token.QUO || (n.Op >= token.EQL && n.Op <= token.GTR) || n.Op == token.NEQ || n.Op == token.LEQ || n.Op == token.GEQ
		case *ast.CallExpr:
			return g.info.Types[n.Fun].IsType()
		default:
			return false
		}
	}
	return false
}

func frexp(f float64) (float64, int) {
	e := 0
	for ; f >= 1; f /= 2 {
		e++
	}
	for ; f > 0 && f < 0.5; f *= 2 {
		e--
	}
	return f, e
}

// load parses and type-checks one package of the module from source, its imports from the build cache.
func load(t *testing.T, name string) *guard {
	t.Helper()
	dir := filepath.Join("..", name)
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Export", ".")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v", dir, err)
	}
	exports := map[string]string{}
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p struct{ ImportPath, Export string }
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no Go files in %s: %v", dir, err)
	}
	if foreign, err := filepath.Glob(filepath.Join(dir, "*.[sSch]")); err != nil || len(foreign) > 0 {
		t.Errorf("%v: code that is not Go, which nobody looks at (%v)", foreign, err)
	}
	sources := map[string][]byte{}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			if sources[f], err = os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	return inspect(t, name, sources, func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
}

func inspect(t *testing.T, name string, sources map[string][]byte, lookup func(string) (io.ReadCloser, error)) *guard {
	t.Helper()
	g := &guard{fset: token.NewFileSet(), info: &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}}
	var parsed []*ast.File
	for file, src := range sources {
		f, err := parser.ParseFile(g.fset, file, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
	}
	conf := types.Config{Importer: importer.ForCompiler(g.fset, "gc", lookup)}
	if _, err := conf.Check(name, g.fset, parsed, g.info); err != nil {
		t.Fatal(err)
	}
	for _, f := range parsed {
		g.check(f)
	}
	slices.Sort(g.faults)
	return g
}

func TestSourceIsReproducible(t *testing.T) {
	for _, name := range deterministic {
		for _, f := range load(t, name).faults {
			t.Errorf("%s/%s", name, f)
		}
	}
}

var floatingInstruction = regexp.MustCompile(`(?m)^[^/\n]*\b[A-Z][A-Z0-9]*(PS|PD|SS|SD)\b`)

// There is no floating point in the packages of integers, neither in their Go nor in their assembly.
func TestIntegersOnly(t *testing.T) {
	for _, name := range integers {
		files, err := filepath.Glob(filepath.Join("..", name, "*.[gs]*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files in %s: %v", name, err)
		}
		for _, f := range files {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(src, []byte("float64")) || bytes.Contains(src, []byte("float32")) || bytes.Contains(src, []byte(`"math"`)) {
				t.Errorf("%s: floating point", f)
			}
			if m := floatingInstruction.Find(src); m != nil && strings.HasSuffix(f, ".s") {
				t.Errorf("%s: %q", f, m)
			}
		}
	}
	for _, bad := range []string{"\tVADDPD Y0, Y1, Y2", "\tMULSD X0, X1", "\tVFMADD231PS Y0, Y1, Y2"} {
		if !floatingInstruction.MatchString(bad) {
			t.Errorf("%q is not found", bad)
		}
	}
}

// TestGuardFinds shows the guard every kind of fault, so that it cannot pass by being blind.
func TestGuardFinds(t *testing.T) {
	const src = `package p
import "time"
import m "math"
var _ = time.Now
func f(x, y, z float64, m map[int]int, n int) float64 {
	a := x*y + z
	b := (x * y)
	a += -(x * y)
	a *= y
	go f(x, y, z, m, n)
	for range m {
	}
	select {}
	return a + b + x/4
}
var passedOn = m.Exp
func called(x float64) float64 {
	return m.FMA(x, x, m.Log1p(x)) + m.Sqrt(x)
}
func good(x, y, z float64, n int) float64 {
	n *= n*n + 1
	if x*y < z {
		return float64(x*y*z) + x*y/z + 2*3.5 + x/3
	}
	return float64((x * y)) + float64(n*n)
}`
	g := inspect(t, "p", map[string][]byte{"p.go": []byte(src)}, exported)
	lines := regexp.MustCompile(`(?m)^p\.go:(\d+)`).FindAllStringSubmatch(strings.Join(g.faults, "\n"), -1)
	var got []string
	for _, l := range lines {
		got = append(got, l[1])
	}
	slices.Sort(got)
	if want := "10 11 13 14 16 18 18 2 6 7 8 9"; strings.Join(got, " ") != want {
		t.Errorf("faults on lines %v, want %s:\n%s", got, want, strings.Join(g.faults, "\n"))
	}
}

// exported finds the compiled form of any package that this module can import.
func exported(path string) (io.ReadCloser, error) {
	out, err := exec.Command("go", "list", "-export", "-f", "{{.Export}}", path).Output()
	if err != nil {
		return nil, err
	}
	return os.Open(strings.TrimSpace(string(out)))
}

// TestGuardNames shows what the guard says of single faults.
func TestGuardNames(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"import . \"math\"\nvar F = Pow", "p.go:3: uses math.Pow, which differs between machines"},
		{"import \"math\"\nfunc f(x float64) float64 { return math.Exp(x) }", "p.go:3: uses math.Exp, which differs between machines"},
		{"import \"math/rand/v2\"\nvar F = rand.Int", "p.go:2: imports math/rand/v2"},
		{"import _ \"" + module + "internal/vfs\"", "p.go:2: imports " + module + "internal/vfs, which is not among the deterministic packages"},
		{"import _ \"golang.org/x/sys/cpu\"", "p.go:2: imports golang.org/x/sys/cpu, whose arithmetic nobody looks at"},
		{"import \"math\"\nimport _ \"" + module + "ot\"\nvar F = math.Sqrt", ""},
	} {
		g := inspect(t, "p", map[string][]byte{"p.go": []byte("package p\n" + c.src)}, exported)
		if got := strings.Join(g.faults, "; "); got != c.want {
			t.Errorf("%q: the guard says %q, want %q", c.src, got, c.want)
		}
	}
}
