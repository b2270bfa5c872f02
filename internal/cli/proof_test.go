package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerifyVectors runs the command over all exports and proofs among the vectors: the exit code is that of their class.
func TestVerifyVectors(t *testing.T) {
	const dir = "../../testdata/vectors/digestlog"
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Key     string
		Vectors []struct{ File, Kind, Class, From string }
	}
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	codes := map[string]int{"ok": exitOK, "too-new": exitOK, "corrupt": exitFailed, "digest-mismatch": exitFailed, "not-ours": exitWrongKey}
	ran := map[string]int{}
	for _, v := range index.Vectors {
		path := filepath.Join(dir, v.File)
		args := []string{"verify", "--json", "--key", index.Key}
		switch v.Kind {
		case "tiles":
			args = append(args, path)
		case "proof":
			args = append(args, "--proof", path)
		case "growth":
			args = append(args, "--proof", path, "--from-head", filepath.Join(dir, v.From))
		default:
			continue
		}
		ran[v.Kind]++
		t.Setenv("HOME", t.TempDir())
		var out, errw bytes.Buffer
		code := Main(args, strings.NewReader(""), &out, &errw)
		want, known := codes[v.Class]
		if !known || code != want {
			t.Errorf("%s (%s): exit code %d, want %d\n%s%s", v.File, v.Class, code, want, out.String(), errw.String())
		}
		var doc struct {
			Exit    *int
			Verdict string
		}
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil || doc.Exit == nil || *doc.Exit != code || doc.Verdict == verdictOK != (code == exitOK) {
			t.Errorf("%s: exit code %d and %s", v.File, code, out.String())
		}
		if strings.HasSuffix(v.File, "-kind") || strings.Contains(v.File, "-kind.") {
			if !strings.Contains(out.String(), "of a newer usp") {
				t.Errorf("%s: nothing is said of the entry that is not understood:\n%s", v.File, out.String())
			}
		}
	}
	if ran["tiles"] < 8 || ran["proof"] < 10 || ran["growth"] < 4 {
		t.Errorf("ran %v", ran)
	}
}
