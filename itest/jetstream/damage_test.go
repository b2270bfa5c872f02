package jetstream_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

// flip changes a byte of a frame in its file, or changes it back.
func flip(t *testing.T, r *sinktest.Recording, ordinal uint64) {
	t.Helper()
	for f, err := range segment.Frames(vfs.OS(), r.Dir.Telemetry()) {
		if err != nil || f.Ordinal != ordinal {
			continue
		}
		file, err := os.OpenFile(f.File, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		b := []byte{f.Data[20] ^ 1}
		if _, err := file.WriteAt(b, f.Offset+4+20); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("frame %d is not there", ordinal)
}

func problems(t *testing.T, to jetstream.Options, r *sinktest.Recording) string {
	t.Helper()
	report, err := jetstream.Check(t.Context(), connect(t, to).JS, "usp", runID, jetstream.Against{Dir: r.Dir})
	if err != nil {
		t.Fatal(err)
	}
	if report.Next != r.Frames() {
		t.Errorf("the stream has %d frames, want %d", report.Next, r.Frames())
	}
	var text []string
	for _, p := range report.Problems {
		text = append(text, p.String())
	}
	return strings.Join(text, "\n")
}

// TestDamaged has run directories in which something cannot be read, before and after it was brought.
func TestDamaged(t *testing.T) {
	bring := func(r *sinktest.Recording, to jetstream.Options) {
		t.Helper()
		to.Dir = r.Dir
		if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
			t.Fatal(err)
		}
	}
	record := func(middle uint64) *sinktest.Recording {
		r := sinktest.Record(t)
		r.Emit(100)
		r.Emit(int(middle))
		r.Emit(150)
		return r
	}
	before := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10}
	r := record(50)
	saved, err := os.ReadFile(r.Dir.Telemetry() + "/" + segment.FileName(0))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, r, 120)
	bring(r, before)
	if p := problems(t, before, r); p != "" {
		t.Errorf("a stream that has all that can be read: %s", p)
	}
	have, _ := rows(t, before, runID)
	if len(have) != 250 || have[100].Seq != 150 {
		t.Errorf("%d records, the one behind the hole is %+v", len(have), have[100])
	}
	r.Emit(70)
	if err := os.Remove(r.Dir.Sink("jetstream")); err != nil {
		t.Fatal(err)
	}
	bring(r, before)
	if p := problems(t, before, r); p != "" {
		t.Errorf("continued behind a hole: %s", p)
	}
	file, err := os.OpenFile(r.Dir.Telemetry()+"/"+segment.FileName(0), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	end := len(strings.TrimRight(string(saved), "\x00"))
	if _, err := file.WriteAt(saved[:end], 0); err != nil { // mended from a copy
		t.Fatal(err)
	}
	if p := problems(t, before, r); !strings.Contains(p, "missing: usp.telemetry."+runID+" 100 to 149 at") {
		t.Errorf("what the stream has a hole for is there again: %q", p)
	}

	after := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10}
	r = record(5)
	bring(r, after)
	flip(t, r, 102)
	if p, want := problems(t, after, r), fmt.Sprintf("unreadable: usp.telemetry.%s 100 to 104 at", runID); !strings.Contains(p, want) || strings.Contains(p, "\n") {
		t.Errorf("damaged after it was brought: %q, want %q alone", p, want)
	}

	// A file that is gone, with others before and behind it.
	r = sinktest.Record(t)
	r.Emit(30)
	r.Roll()
	r.Emit(40)
	r.Roll()
	r.Emit(50)
	gone := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10}
	if err := os.Remove(r.Dir.Telemetry() + "/" + segment.FileName(30)); err != nil {
		t.Fatal(err)
	}
	bring(r, gone)
	if p := problems(t, gone, r); p != "" {
		t.Errorf("without a file that is gone: %s", p)
	}
	r.Emit(1)
	bring(r, gone)
	if p := problems(t, gone, r); p != "" {
		t.Errorf("continued: %s", p)
	}
}
