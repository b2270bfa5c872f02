package segment_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/internal/segment"
)

// The memory of a Writer is given up once it is sealed, and not before: frames are in it that may be asked for.
func TestMemory(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 0)
	appendTo(t, w, 40)
	check(t, w.Append(frame(40)))
	if w.Memory() != nil {
		t.Error("a Writer in use gave its memory away")
	}
	_, err := w.Seal()
	check(t, err)
	memory := w.Memory()
	if cap(memory) == 0 || w.Memory() != nil {
		t.Fatalf("memory of %d bytes, then %d", cap(memory), cap(w.Memory()))
	}
	draft, err := segment.Prepare(dir, 41, segment.Options{FS: m, Kind: segment.KindTelemetry})
	if err != nil {
		t.Fatal(err)
	}
	draft.Reuse(memory)
	next, err := draft.Place()
	check(t, err)
	for next.Next() < 50 {
		check(t, next.Append(frame(next.Next())))
	}
	check(t, next.Abort())
	if next.Memory() != nil {
		t.Error("an aborted Writer gave away what was not synced")
	}
	n := uint64(41)
	for ordinal, got := range next.Unsynced() {
		if want := frame(n); ordinal != n || !cmp.Equal(got, want) {
			t.Errorf("frame %d is %x, want %d: %x", ordinal, got, n, want)
		}
		n++
	}
	if n != 50 {
		t.Errorf("frames up to %d", n)
	}
}
