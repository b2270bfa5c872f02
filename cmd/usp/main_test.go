package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the test binary the usp command too, and a step loop, for the scripts and for tests that run them as processes.
func TestMain(m *testing.M) {
	// A process with the race detector waits for a second before it ends. Hundreds are started here.
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	testscript.Main(m, map[string]func(){"usp": main, "loop": loopMain})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("USP_RING_DIR", filepath.Join(env.WorkDir, ".ring"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":   exits,
			"jsonis":  jsonIs,
			"flip":    flip,
			"agekey":  ageKey,
			"attack":  attack,
			"witness": startWitness,
			"sums":    sums,
			"walk":    walk,
		},
	})
}

// exits CODE COMMAND ARG… runs a command and wants an exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// ageKey NAME makes an age key: the secret one in the file NAME.key, the public one in the variable NAME.
func ageKey(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: agekey NAME")
	}
	id, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), []byte("# made for a test\n"+id.String()+"\n"), 0o600))
	ts.Setenv(args[0], id.Recipient().String())
}

// walk FILE N SEED writes a random walk of N rows.
func walk(ts *testscript.TestScript, neg bool, args []string) {
	var n, seed uint64
	if neg || len(args) != 3 {
		ts.Fatalf("usage: walk FILE N SEED")
	}
	_, err := fmt.Sscan(args[1]+" "+args[2], &n, &seed)
	ts.Check(err)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := bytes.NewBufferString("time,value\n")
	x := 0.0
	for i := range n {
		x += rnd.NormFloat64()
		fmt.Fprintf(b, "%d,%.6f\n", i*1_000_000_000, x)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// sums DIR FILE lists in FILE every file below DIR with its mode and SHA-256, to see that nothing was changed.
func sums(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sums DIR FILE")
	}
	var b bytes.Buffer
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			fmt.Fprintf(&b, "%s %v\n", path, d.Type())
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %v %x\n", path, info.Mode(), sha256.Sum256(data))
		return err
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.Bytes(), 0o600))
}

// flip FILE OFFSET inverts one byte; a negative offset counts from the end.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	matches, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(matches) == 0 {
		ts.Fatalf("no file %s", args[0])
	}
	offset, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.Chmod(matches[0], 0o600))
	b, err := os.ReadFile(matches[0])
	ts.Check(err)
	if offset < 0 {
		offset += len(b)
	}
	b[offset] ^= 0x10
	ts.Check(os.WriteFile(matches[0], b, 0o600))
}

// uspBinary makes the test binary callable under the name usp and returns its path.
func uspBinary(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "usp")
	if os.Link(self, path) == nil {
		return path
	}
	in, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
