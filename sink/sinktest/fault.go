package sinktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/usp-project/usp/sink"
)

// Fault is what is wrong with a destination.
type Fault int

// The states of a destination.
const (
	Well   Fault = iota
	Away         // it cannot be reached, or says that it takes nothing
	Silent       // it accepts, and never answers
)

// faulty has a destination that takes nothing for an hour's records, 3,600. One process is killed meanwhile, one is ended,
// and a third is there when the destination is well again.
func faulty(t *testing.T, d Destination, how Fault) {
	if d.Fault == nil {
		if d.Rows != nil {
			t.Fatal("a destination outside the sink's own memory and the run directory has to be able to be away: set Destination.Fault")
		}
		t.Skip("NOT TESTED: this destination is a part of the sink or of the run directory, so it cannot be away")
	}
	r := Record(t)
	r.Emit(300)
	r.Roll()
	if err := sink.Bring(t.Context(), options(r), d.Open()); err != nil {
		t.Fatal(err)
	}
	before := status(t, r)
	r.Emit(100)
	dying := feed(t, r, d, before.Cursor())
	dying.write(1) // and it is killed before it knows whether that is there for good
	had := r.Frames()
	d.Fault(t, how)
	defer d.Fault(t, Well)
	r.Emit(1500)
	r.Lose(historyLost)
	r.Roll()
	r.Emit(200)
	blocks := how == Silent && d.Blocks
	if !blocks {
		if at := dying.struggle(); at > had {
			t.Errorf("the sink vouches for the frames before %d, and the destination has none from %d on", at, had)
		}
	}

	o := options(r)
	o.Timeout = 200 * time.Millisecond // of a call that is not answered
	follow, end := Until()
	o.Follow = follow
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- sink.Bring(ctx, o, d.Open()) }()
	if blocks {
		untilFault(t, r, 1)
	} else {
		untilFault(t, r, 2)
	}
	r.Emit(1500)
	r.Roll()
	if s := status(t, r); s.Next != before.Next {
		t.Errorf("the cursor went from frame %d to %d while the destination took nothing", before.Next, s.Next)
	}
	if !blocks {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("ended with %v", err)
		}
		o.Timeout = 0 // of one that is, on a machine that has other things to do
		go func() { done <- sink.Bring(t.Context(), o, d.Open()) }()
	}
	d.Fault(t, Well)
	end()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("the destination is well, and the run does not come there: %+v", status(t, r))
	}
	check(t, d, want(t, r))
	if d.Lost != nil {
		if n := d.Lost(t); n != historyLost {
			t.Errorf("%d records lost, want %d", n, historyLost)
		}
	}
	if s := status(t, r); s.Fault != "" || s.Next != r.Frames() {
		t.Errorf("the cursor is %+v, want all of %d frames and no fault", s, r.Frames())
	}
}

// struggle writes as much as the sink takes and leaves it as a kill does. It returns how far the sink said it was.
func (f *feeder) struggle() (vouched uint64) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 200*time.Millisecond)
	defer cancel()
	for {
		b, err := f.f.Next()
		if err != nil || f.sink.Write(ctx, b) != nil {
			break
		}
	}
	at, err := f.sink.Sync(ctx)
	if err != nil {
		return 0
	}
	return at.Next
}

func status(t *testing.T, r *Recording) sink.Status {
	t.Helper()
	s, err := sink.ReadStatus(r.fsys, r.Dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// untilFault waits until the status says that the destination takes nothing, and that it was tried so many times.
func untilFault(t *testing.T, r *Recording, tries int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		s := status(t, r)
		if s.Fault != "" && s.Tries >= tries && !s.Since.IsZero() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the destination takes nothing, and the status does not say so: %+v", s)
		}
	}
}

// secretive looks for what a digest field held, in all that the destination has, beside the run's cursor, and in what is
// said. A stored field is there, so the search finds what there is.
func secretive(t *testing.T, d Destination) {
	r := history(t)
	var said bytes.Buffer
	o := options(r)
	o.Logger = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := sink.Bring(t.Context(), o, d.Open()); err != nil {
		t.Fatal(err)
	}
	var held [][]byte
	if d.Held != nil {
		held = d.Held(t)
		if !bytes.Contains(bytes.Join(held, []byte("\n")), []byte("loss")) {
			t.Error("what the destination holds does not even have the name of a stored field: the search would find nothing")
		}
	}
	beside := 0
	err := filepath.WalkDir(r.Dir.Sinks(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if filepath.Base(path) != "test.json" {
			beside++
		}
		b, err := os.ReadFile(path)
		held = append(held, b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.Held == nil && beside == 0 {
		t.Error("nobody can look for digest fields in what the destination holds: set Destination.Held")
	}
	for _, b := range append(held, status(t, r).State, said.Bytes()) {
		for _, c := range rawCanaries() {
			if i := bytes.Index(b, c); i >= 0 {
				t.Errorf("%q of a digest field is there: …%q…", c, b[max(0, i-40):min(len(b), i+40)])
			}
		}
	}
}

// rawCanaries are the values of the digest field as text and as numbers of either byte order.
func rawCanaries() (list [][]byte) {
	for _, c := range Canaries() {
		if c != "rho" { // which a schema names
			list = append(list, []byte(c))
		}
	}
	for i := range uint64(3) {
		w := uint64(canary + i)
		narrow := math.Float32bits(float32(math.Float64frombits(w)))
		list = append(list, binary.LittleEndian.AppendUint64(nil, w), binary.BigEndian.AppendUint64(nil, w))
		if narrow != math.Float32bits(float32(math.Inf(1))) {
			list = append(list, binary.LittleEndian.AppendUint32(nil, narrow))
		}
	}
	return list
}
