package cli

import (
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/audit"
)

// What is wrong with a head or a witness is not said to be wrong with the run, and the other way round.
func TestFailedVerdict(t *testing.T) {
	unwitnessed := audit.Problem{Class: audit.Unwitnessed, File: "checkpoint.cosigned"}
	strange := audit.Problem{Class: audit.NotOurs, File: "strange.head"}
	damaged := audit.Problem{Class: audit.Corrupt, File: "telemetry/0.seg"}
	kept := []audit.Kept{{File: "strange.head", Result: audit.NotOurs}}
	for name, c := range map[string]struct {
		problems []audit.Problem
		want     string
	}{
		"a replay that differs":  {nil, "it is not what was recorded"},
		"no cosignature":         {[]audit.Problem{unwitnessed}, "a witness that must have cosigned it has not"},
		"a head of another run":  {[]audit.Problem{strange}, "a head that was kept elsewhere cannot be used"},
		"both":                   {[]audit.Problem{unwitnessed, strange}, "a head that was kept elsewhere cannot be used"},
		"damage":                 {[]audit.Problem{damaged}, "it is not what was recorded"},
		"damage, no cosignature": {[]audit.Problem{unwitnessed, damaged}, "it is not what was recorded"},
		"damage, a strange head": {[]audit.Problem{strange, damaged}, "it is not what was recorded"},
		"rolled back, by a head": {[]audit.Problem{{Class: audit.RolledBack, File: "strange.head"}}, "it is not what was recorded"},
		"rewritten, unwitnessed": {[]audit.Problem{{Class: audit.Rewritten, File: "strange.head"}, unwitnessed}, "it is not what was recorded"},
	} {
		r := &audit.Report{Verdict: audit.Failed}
		r.Integrity.Problems, r.Integrity.Kept = c.problems, kept
		if len(c.problems) > 0 && c.problems[0].File == "strange.head" {
			r.Integrity.Kept[0].Result = c.problems[0].Class
		}
		if got := verdictText(r); !strings.HasPrefix(got, "FAILED: "+c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		kept[0].Result = audit.NotOurs
	}
}
