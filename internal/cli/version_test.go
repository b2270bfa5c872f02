package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The versions that usp version prints are those of the pages that specify the formats.
func TestFormatVersions(t *testing.T) {
	pages := map[string]string{"ring": "# Ring, version ", "segment": "# Segment, version ", "snapshot": "# Snapshot, version ", "run": "# Run directory, version "}
	for _, f := range formatVersions() {
		name := f.name
		if name == "run" {
			name = "run-directory"
		}
		text, err := os.ReadFile(filepath.Join("..", "..", "doc", "format", name+".md"))
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%s%d\n", pages[f.name], f.version)
		if f.name == "digestlog" { // its version is that of each entry
			want = fmt.Sprintf("\n| 0 | 1 | version | %d |\n| 1 | 1 | kind |", f.version)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("version %d of %s is not what doc/format/%s.md describes", f.version, f.name, name)
		}
	}
}
