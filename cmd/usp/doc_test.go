package main

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/usp-project/usp/predictor"
)

// TestFlagsAreDocumented wants the one table of flags to name each, by its bit, once.
func TestFlagsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../doc/prediction.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| ([0-9]+) \\| `([a-z+-]+)` \\| (event|stays) \\| [^|]+ \\|$").FindAllStringSubmatch(string(text), -1)
	for bit := 0; ; bit++ {
		names := predictor.FlagNames(1 << bit)
		if names == nil {
			if len(rows) != bit {
				t.Errorf("%d rows for %d flags", len(rows), bit)
			}
			return
		}
		if bit >= len(rows) || rows[bit][1] != fmt.Sprint(bit) || rows[bit][2] != names[0] {
			t.Fatalf("no row for bit %d, %s, in its place", bit, names[0])
		}
	}
}
