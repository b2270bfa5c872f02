package sink_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestHostileCursor has cursor files that somebody else made: nothing of them moves a terminal's cursor.
func TestHostileCursor(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(10)
	d := &table{refuse: fmt.Errorf("%w: the server says \x1b]0;gone\x07\r\n\u202exy \u009b2J", sink.ErrRefused)}
	if err := sink.Bring(t.Context(), options(r), d.open()); !errors.Is(err, sink.ErrRefused) {
		t.Fatal(err)
	}
	for _, name := range []string{"a\x1b[31m", "a\nb", "A", "\u202ea"} {
		text, err := json.Marshal(sink.Status{Name: name, Fault: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.Dir.Sink(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := sink.Statuses(vfs.OS(), r.Dir)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d cursors, want that of the table alone: %+v, %v", len(all), all, err)
	}
	if f := all[0].Fault; strings.ContainsFunc(f, func(r rune) bool { return !unicode.IsPrint(r) }) || !strings.Contains(f, "the server says") {
		t.Errorf("the fault is %q", f)
	}
}
