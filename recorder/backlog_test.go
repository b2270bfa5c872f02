package recorder

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
)

// A batch of more entries than the log holds unsynced is no error: the log is synced on the way. Whether a run meets that bound
// depends on its entries, so the log here has a low one.
func TestAppendSyncsAFullLog(t *testing.T) {
	fsys := vfs.NewMem()
	signer, vkey, err := digestlog.LoadOrCreateKey(fsys, "/key", bytes.NewReader(bytes.Repeat([]byte{1}, 34)))
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	o := digestlog.Options{FS: fsys, RunID: "20260101T000000-aaaaa", Signer: signer, Verifiers: note.VerifierList(v), SegmentSize: 8 << 10,
		MaxPending: 300, Now: func() time.Time { return time.Unix(1_800_000_000, 0) }}
	l, err := digestlog.Open("/log", o)
	if err != nil {
		t.Fatal(err)
	}
	step := func(i int) *digestlog.Entry {
		return &digestlog.Entry{Kind: digestlog.KindStep, Step: uint64(i), Seq: uint64(i), Digests: [][32]byte{{byte(i)}, {1}}}
	}
	r, full := &Recorder{log: l}, false
	for i := range 20 {
		if i < 10 {
			if _, err := l.Append(step(i)); errors.Is(err, digestlog.ErrBacklog) {
				full = true
			} else if err != nil {
				t.Fatal(err)
			} else {
				continue
			}
		}
		if err := r.append(step(i)); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	if !full {
		t.Error("the log was never full: nothing was tried")
	}
}
